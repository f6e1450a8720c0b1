"""The calls that workers ask the core in protobuf: status, members, alarms, health, metrics.

Rules:
1. `handle` never waits: it answers through `answer`, at once or when the node has read or applied
   what is needed.
2. A worker is not trusted: an unknown call or a malformed payload is an error and changes nothing.
3. State changes are proposed; what raft must never see (an unknown alarm action) is refused here.

This module may import `quorate.api`, because requests and answers are etcd's own messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from grpclib.exceptions import GRPCError

from quorate.api.decoding import decode
from quorate.api.etcdserverpb import (
    AlarmMember,
    AlarmRequest,
    AlarmRequestAlarmAction,
    AlarmResponse,
    AlarmType,
    DefragmentResponse,
    Member,
    MemberListRequest,
    MemberListResponse,
    ResponseHeader,
    SnapshotResponse,
    StatusResponse,
)
from quorate.core.admincalls import AdminCall
from quorate.core.errors import (
    EtcdError,
    InvalidAlarmActionError,
    MalformedError,
    NoLeaderError,
    NotImplementedError,
)
from quorate.core.snapshots import Handed, Loan, SnapshotDone
from quorate.core.version import SERVER_VERSION


class Figures(NamedTuple):
    """What the node is doing now."""

    cluster_id: int
    member_id: int
    revision: int
    raft_term: int
    raft_index: int  # last committed
    raft_applied_index: int
    leader_id: int  # 0 = none
    is_learner: bool
    database_bytes: int
    database_bytes_in_use: int
    quota_bytes: int  # 0 = no quota
    storage_version: str  # of the backend file


class Alarm(NamedTuple):
    """One alarm of one member."""

    member_id: int
    kind: int  # AlarmType


class MemberInfo(NamedTuple):
    """A member of the cluster."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


class Histogram(NamedTuple):
    """Observations by bucket; the buckets' bounds are the metric's own."""

    counts: Sequence[int]  # one per bound, not cumulative, and one more for what is above
    sum: float


Metrics = dict[str, "float | Histogram"]
Done = Callable[[EtcdError | None], None]
AlarmsDone = Callable[["Sequence[Alarm] | EtcdError"], None]
Answer = Callable[["bytes | Handed | EtcdError"], None]


class Node(Protocol):
    """What admin calls need of `core/node.py`."""

    def figures(self) -> Figures:
        """The figures of this moment."""

    def members(self) -> Sequence[MemberInfo]:
        """All members, by id."""

    def alarms(self) -> Sequence[Alarm]:
        """The alarms that are on, as applied here."""

    def read_index(self, done: Done) -> None:
        """Call `done` once all that is committed now is applied, or with the error."""

    def propose_alarm(self, request: bytes, done: AlarmsDone) -> None:
        """Propose an AlarmRequest; `done` gets the alarms that it changed."""

    def open_snapshot(self, done: SnapshotDone) -> None:
        """Call `done` with a backend file of the state as it is now or later."""

    def metrics(self) -> Metrics:
        """By name, the metrics that the core counts, without those of `figures`."""

    def worker_counters(self) -> Sequence[int]:
        """The sum of the counters of all workers, past and present."""


def handle(node: Node, call: int, payload: bytes, answer: Answer) -> None:
    """Answer one admin call; see `AdminCall` for the calls."""
    handler = HANDLERS.get(call)
    if handler is None:
        answer(NotImplementedError())
        return
    try:
        handler(node, payload, answer)
    except EtcdError as error:
        answer(error)
    except GRPCError:
        # Only a worker that skips its own check sends text that is not UTF-8.
        answer(MalformedError())


def header_of(figures: Figures) -> ResponseHeader:
    """The header of an answer made at these figures."""
    return ResponseHeader(
        cluster_id=figures.cluster_id,
        member_id=figures.member_id,
        revision=figures.revision,
        raft_term=figures.raft_term,
    )


def handle_status(node: Node, payload: bytes, answer: Answer) -> None:
    """StatusRequest -> StatusResponse: works without a leader, too."""
    figures = node.figures()
    errors = [] if figures.leader_id else [NoLeaderError.text]
    errors += [
        f"memberID:{alarm.member_id} alarm:{AlarmType(alarm.kind)}" for alarm in node.alarms()
    ]
    response = StatusResponse(
        header=header_of(figures),
        version=SERVER_VERSION,
        db_size=figures.database_bytes,
        leader=figures.leader_id,
        raft_index=figures.raft_index,
        raft_term=figures.raft_term,
        raft_applied_index=figures.raft_applied_index,
        errors=errors,
        db_size_in_use=figures.database_bytes_in_use,
        is_learner=figures.is_learner,
        storage_version=figures.storage_version,
        db_size_quota=figures.quota_bytes,
    )
    answer(bytes(response))


def handle_member_list(node: Node, payload: bytes, answer: Answer) -> None:
    """MemberListRequest -> MemberListResponse; after a read index if it shall be linearizable."""

    def done(error: EtcdError | None = None) -> None:
        if error is not None:
            answer(error)
            return
        members = [
            Member(
                id=member.id,
                name=member.name,
                peer_urls=list(member.peer_urls),
                client_urls=list(member.client_urls),
                is_learner=member.is_learner,
            )
            for member in node.members()
        ]
        header = header_of(node.figures())
        header.revision = 0  # etcd's cluster service knows no revision
        answer(bytes(MemberListResponse(header=header, members=members)))

    if decode(MemberListRequest, payload).linearizable:
        node.read_index(done)
    else:
        done()


def handle_alarm(node: Node, payload: bytes, answer: Answer) -> None:
    """AlarmRequest -> AlarmResponse with the alarms that are on (GET) or that were changed."""
    request = decode(AlarmRequest, payload)

    def alarms_done(result: Sequence[Alarm] | EtcdError) -> None:
        if isinstance(result, EtcdError):
            answer(result)
            return
        alarms = [AlarmMember(member_id=one.member_id, alarm=AlarmType(one.kind)) for one in result]
        answer(bytes(AlarmResponse(header=header_of(node.figures()), alarms=alarms)))

    def read_done(error: EtcdError | None) -> None:
        wanted = [one for one in node.alarms() if request.alarm in (AlarmType.NONE, one.kind)]
        alarms_done(wanted if error is None else error)

    if request.action == AlarmRequestAlarmAction.GET:
        node.read_index(read_done)
    elif request.action in (
        AlarmRequestAlarmAction.ACTIVATE,
        AlarmRequestAlarmAction.DEACTIVATE,
    ):
        node.propose_alarm(bytes(request), alarms_done)
    else:
        raise InvalidAlarmActionError


def handle_defragment(node: Node, payload: bytes, answer: Answer) -> None:
    """DefragmentRequest -> DefragmentResponse at once: compaction leaves nothing to defragment."""
    answer(bytes(DefragmentResponse(header=header_of(node.figures()))))


def handle_snapshot(node: Node, payload: bytes, answer: Answer) -> None:
    """SnapshotRequest -> SnapshotResponse and descriptors, see `AdminCall`."""

    def done(loan: Loan | EtcdError) -> None:
        if isinstance(loan, EtcdError):
            answer(loan)
            return
        source = loan.source
        response = SnapshotResponse(
            remaining_bytes=source.size, blob=source.head, version=source.version
        )
        answer(Handed((source.descriptor, loan.holder), bytes(response)))

    node.open_snapshot(done)


def handle_health(node: Node, payload: bytes, answer: Answer) -> None:
    """Payload `1`: after a linearizable read, `0`: at once. JSON: leader, learner, alarms."""

    def done(error: EtcdError | None = None) -> None:
        if error is not None:
            answer(error)
            return
        figures = node.figures()
        health = {
            "leader": figures.leader_id != 0,
            "learner": figures.is_learner,
            "alarms": [one.kind for one in node.alarms()],
        }
        answer(json.dumps(health).encode())

    if payload == b"1":
        node.read_index(done)
    elif payload == b"0":
        done()
    else:
        raise MalformedError


def handle_metrics(node: Node, payload: bytes, answer: Answer) -> None:
    """Answers JSON: figures by name, metrics by etcd's name, alarms, counters of the workers."""
    values = {
        "figures": node.figures()._asdict(),
        "metrics": node.metrics(),
        "counters": list(node.worker_counters()),
    }
    answer(json.dumps(values).encode())


HANDLERS: dict[int, Callable[[Node, bytes, Answer], None]] = {
    AdminCall.STATUS: handle_status,
    AdminCall.MEMBER_LIST: handle_member_list,
    AdminCall.ALARM: handle_alarm,
    AdminCall.METRICS: handle_metrics,
    AdminCall.HEALTH: handle_health,
    AdminCall.DEFRAGMENT: handle_defragment,
    AdminCall.SNAPSHOT: handle_snapshot,
}
