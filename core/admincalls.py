"""The numbers of what workers ask the core in Python; `core/admin.py` answers."""

from __future__ import annotations

from enum import IntEnum


class AdminCall(IntEnum):
    """The `extra` of a METHOD_ADMIN record."""

    STATUS = 1  # StatusRequest -> StatusResponse
    MEMBER_LIST = 2  # MemberListRequest -> MemberListResponse
    ALARM = 3  # AlarmRequest -> AlarmResponse
    METRICS = 4  # nothing -> JSON
    HEALTH = 5  # `0` or `1` (after a linearizable read) -> JSON
    DEFRAGMENT = 6  # DefragmentRequest -> DefragmentResponse
    # SnapshotRequest -> SnapshotResponse, whose `blob` comes instead of the file's first bytes and
    # whose `remaining_bytes` is the size of it all; with it two descriptors: the file, to be read,
    # and one to be held as long as the file is.
    SNAPSHOT = 7
