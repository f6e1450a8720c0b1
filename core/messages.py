"""Raft's values and those of the entries that Python handles: small, immutable, compared by value.

Rules:
1. Names are raftpb's and etcdserverpb's own, spelled out; encodings are theirs byte for byte
   (`protobuf.py` says which of gogo's and google's forms is written and that both are read).
2. Enumerated fields are plain ints here, because a committed entry may hold any number and must
   still be applied alike by every member.
3. No entry of a batch comes through here: an entry is bytes in a `Run` until somebody must know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from .errors import MalformedError
from .protobuf import Encoded, Field, Kind


class EntryType(IntEnum):
    """What an entry's data is."""

    NORMAL = 0  # an InternalRaftRequest, or nothing: what a leader begins its term with
    CONF_CHANGE = 1
    CONF_CHANGE_V2 = 2


class MessageType(IntEnum):
    """The kinds of raft messages that a lone voter meets; `Raft.step` passes over any other."""

    HUP = 0
    VOTE_RESPONSE = 6
    STORAGE_APPEND_RESPONSE = 20
    STORAGE_APPLY_RESPONSE = 22


class ConfChangeType(IntEnum):
    """What a change does to a member."""

    ADD_NODE = 0
    REMOVE_NODE = 1
    UPDATE_NODE = 2
    ADD_LEARNER_NODE = 3


class AlarmAction(IntEnum):
    """What an AlarmRequest asks for."""

    GET = 0
    ACTIVATE = 1
    DEACTIVATE = 2


class AlarmType(IntEnum):
    """What is wrong with a member; in a question NONE means all."""

    NONE = 0
    NOSPACE = 1
    CORRUPT = 2


# --- raftpb ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HardState(Encoded):
    """What a member must remember over a restart before it answers anything."""

    FIELDS: ClassVar = (
        Field(1, "term", Kind.ALWAYS),
        Field(2, "vote", Kind.ALWAYS),
        Field(3, "commit", Kind.ALWAYS),
    )

    term: int = 0
    vote: int = 0
    commit: int = 0


@dataclass(frozen=True, slots=True)
class ConfState(Encoded):
    """Who votes and who learns, as of one index; the last three fields only in a joint change."""

    FIELDS: ClassVar = (
        Field(1, "voters", Kind.NUMBERS),
        Field(2, "learners", Kind.NUMBERS),
        Field(3, "voters_outgoing", Kind.NUMBERS),
        Field(4, "learners_next", Kind.NUMBERS),
        Field(5, "auto_leave", Kind.ALWAYS, bool),
    )

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


@dataclass(frozen=True, slots=True)
class ConfChangeSingle(Encoded):
    """One step of a ConfChangeV2."""

    FIELDS: ClassVar = (
        Field(1, "type", Kind.ALWAYS),
        Field(2, "node_id", Kind.ALWAYS),
    )

    type: int = ConfChangeType.ADD_NODE
    node_id: int = 0


@dataclass(frozen=True, slots=True)
class ConfChangeV2(Encoded):
    """Several changes at once; etcd itself never writes one, but the log may hold it."""

    FIELDS: ClassVar = (
        Field(1, "transition", Kind.ALWAYS),
        Field(2, "changes", Kind.MESSAGES, ConfChangeSingle),
        Field(3, "context", Kind.BYTES),
    )

    transition: int = 0
    changes: tuple[ConfChangeSingle, ...] = ()
    context: bytes = b""


@dataclass(frozen=True, slots=True)
class ConfChange(Encoded):
    """One member added, removed or changed; `context` is etcd's JSON of the member."""

    FIELDS: ClassVar = (
        Field(1, "id", Kind.ALWAYS),
        Field(2, "type", Kind.ALWAYS),
        Field(3, "node_id", Kind.ALWAYS),
        Field(4, "context", Kind.BYTES),
    )

    id: int = 0
    type: int = ConfChangeType.ADD_NODE
    node_id: int = 0
    context: bytes = b""

    def as_v2(self) -> ConfChangeV2:
        """The same change in the form that raft applies."""
        return ConfChangeV2(0, (ConfChangeSingle(self.type, self.node_id),), self.context)


@dataclass(frozen=True, slots=True)
class SnapshotMetadata(Encoded):
    """Which state a snapshot holds (raftpb)."""

    FIELDS: ClassVar = (
        Field(1, "conf_state", Kind.OPTIONAL, ConfState),
        Field(2, "index", Kind.ALWAYS),
        Field(3, "term", Kind.ALWAYS),
    )

    # Not nullable in gogo's form: always written.
    conf_state: ConfState = ConfState()
    index: int = 0
    term: int = 0


@dataclass(frozen=True, slots=True)
class WalSnapshot(Encoded):
    """The WAL's record that a snapshot exists (walpb.Snapshot); `conf_state` is new in 3.5."""

    FIELDS: ClassVar = (
        Field(1, "index", Kind.ALWAYS),
        Field(2, "term", Kind.ALWAYS),
        Field(3, "conf_state", Kind.OPTIONAL, ConfState),
    )

    index: int = 0
    term: int = 0
    conf_state: ConfState | None = None


@dataclass(frozen=True, slots=True)
class WalMetadata(Encoded):
    """The WAL's record of whose log it is (etcdserverpb.Metadata)."""

    FIELDS: ClassVar = (
        Field(1, "node_id", Kind.ALWAYS),
        Field(2, "cluster_id", Kind.ALWAYS),
    )

    node_id: int = 0
    cluster_id: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One step of raft: from another member, from itself, or from the storage.

    `term` 0 marks what is local. The fields are raftpb.Message's; entries, snapshots and the
    encoding belong to the links between members.
    """

    type: int
    to: int = 0
    from_: int = 0
    term: int = 0
    log_term: int = 0
    index: int = 0
    commit: int = 0
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""
    vote: int = 0


# --- etcdserverpb: what an entry holds -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestHeader(Encoded):
    """Who proposed an entry."""

    FIELDS: ClassVar = (
        Field(1, "id", Kind.NONZERO),
        Field(2, "username", Kind.TEXT),
        Field(3, "auth_revision", Kind.NONZERO),
    )

    id: int = 0
    username: str = ""
    auth_revision: int = 0


@dataclass(frozen=True, slots=True)
class CompactionRequest(Encoded):
    """Forget what was before a revision."""

    FIELDS: ClassVar = (Field(1, "revision", Kind.NONZERO),)

    revision: int = 0


@dataclass(frozen=True, slots=True)
class AlarmRequest(Encoded):
    """Ask for, raise or clear alarms."""

    FIELDS: ClassVar = (
        Field(1, "action", Kind.NONZERO),
        Field(2, "member_id", Kind.NONZERO),
        Field(3, "alarm", Kind.NONZERO),
    )

    action: int = AlarmAction.GET
    member_id: int = 0
    alarm: int = AlarmType.NONE


@dataclass(frozen=True, slots=True, order=True)
class AlarmMember(Encoded):
    """One alarm of one member; the key of the backend's bucket `alarm`."""

    FIELDS: ClassVar = (
        Field(1, "member_id", Kind.NONZERO),
        Field(2, "alarm", Kind.NONZERO),
    )

    member_id: int = 0
    alarm: int = AlarmType.NONE


@dataclass(frozen=True, slots=True)
class ClusterVersionSetRequest(Encoded):
    """The leader says which version all members have."""

    FIELDS: ClassVar = (Field(1, "version", Kind.TEXT),)

    version: str = ""


@dataclass(frozen=True, slots=True)
class Attributes(Encoded):
    """What a member tells about itself after its start."""

    FIELDS: ClassVar = (
        Field(1, "name", Kind.TEXT),
        Field(2, "client_urls", Kind.TEXTS),
    )

    name: str = ""
    client_urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterMemberAttrSetRequest(Encoded):
    """A member publishes its name and client URLs."""

    FIELDS: ClassVar = (
        Field(1, "member_id", Kind.NONZERO),
        Field(2, "member_attributes", Kind.OPTIONAL, Attributes),
    )

    member_id: int = 0
    member_attributes: Attributes | None = None


@dataclass(frozen=True, slots=True)
class RequestV2(Encoded):
    """A request of the v2 API (etcdserverpb.Request): how etcd up to 3.4 published itself."""

    FIELDS: ClassVar = (
        Field(1, "id", Kind.ALWAYS),
        Field(2, "method", Kind.TEXT_ALWAYS),
        Field(3, "path", Kind.TEXT_ALWAYS),
        Field(4, "value", Kind.TEXT_ALWAYS),
    )

    id: int = 0
    method: str = ""
    path: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class InternalRaftRequest(Encoded):
    """The data of a normal entry, as far as Python handles it; the KV part is Cython's."""

    FIELDS: ClassVar = (
        Field(1, "id", Kind.NONZERO),
        Field(2, "v2", Kind.OPTIONAL, RequestV2),
        Field(7, "compaction", Kind.OPTIONAL, CompactionRequest),
        Field(10, "alarm", Kind.OPTIONAL, AlarmRequest),
        Field(100, "header", Kind.OPTIONAL, RequestHeader),
        Field(1300, "cluster_version_set", Kind.OPTIONAL, ClusterVersionSetRequest),
        Field(1301, "cluster_member_attr_set", Kind.OPTIONAL, ClusterMemberAttrSetRequest),
    )

    id: int = 0
    v2: RequestV2 | None = None
    compaction: CompactionRequest | None = None
    alarm: AlarmRequest | None = None
    header: RequestHeader | None = None
    cluster_version_set: ClusterVersionSetRequest | None = None
    cluster_member_attr_set: ClusterMemberAttrSetRequest | None = None


def decode_request(data: bytes) -> InternalRaftRequest:
    """The request in a normal entry's data; raises MalformedError.

    Up to 3.4 a request of the v2 API stood in the entry bare. Its field 2 is the method's name,
    which is no valid message, so that the two can't be taken for one another: etcd tells them
    apart in the same way.
    """
    try:
        return InternalRaftRequest.decode(data)
    except MalformedError:
        return InternalRaftRequest(v2=RequestV2.decode(data))
