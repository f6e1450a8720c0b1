"""The table of gRPC paths: which road a call takes.

Rules:
1. A hot path is answered by the core through `_grpc.pyx`, without Python. Every other path that a
   worker serves is answered by a Python handler, and Watch by `_watches.pyx`; what nobody serves is
   Unimplemented, in etcd's or grpc-go's words.
2. `method` is a Method of core/_record.pxd; a `timed` call ends after etcd's own request timeout.
"""

from __future__ import annotations

from typing import NamedTuple

from quorate.frontends.methods import BIDI_STREAM, METHODS


class Hot(NamedTuple):
    """A path that the core answers."""

    method: int
    timed: bool


HOT: dict[str, Hot] = {
    "/etcdserverpb.KV/Range": Hot(1, True),
    "/etcdserverpb.KV/Put": Hot(2, True),
    "/etcdserverpb.KV/DeleteRange": Hot(3, True),
    "/etcdserverpb.KV/Txn": Hot(4, True),
    "/etcdserverpb.KV/Compact": Hot(5, True),
    "/etcdserverpb.KV/RangeStream": Hot(6, True),
    "/etcdserverpb.Lease/LeaseGrant": Hot(16, True),
    "/etcdserverpb.Lease/LeaseRevoke": Hot(17, True),
    "/etcdserverpb.Lease/LeaseKeepAlive": Hot(18, False),
    "/etcdserverpb.Lease/LeaseTimeToLive": Hot(19, True),
    "/etcdserverpb.Lease/LeaseLeases": Hot(20, True),
    "/etcdserverpb.Maintenance/HashKV": Hot(7, False),
    "/etcdserverpb.Maintenance/Hash": Hot(8, False),
}

# Answered by the worker itself, with what the core tells all workers.
WATCH = "/etcdserverpb.Watch/Watch"


def client_streams(path: str) -> bool:
    """Whether a client may send more than one message on a call of this path."""
    return METHODS.get(path) == BIDI_STREAM


assert HOT.keys() | {WATCH} <= METHODS.keys()
