"""A pump in memory with the contract of `workers/_pump.pyx`, and a core behind it that answers."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import trio
import trio.testing

from quorate.core.admin import Alarm, AlarmsDone, Done, Figures, MemberInfo, Metrics, handle
from quorate.core.errors import EtcdError
from quorate.core.snapshots import Handed, Loan, SnapshotDone, Source
from quorate.workers.worker import EventKind

FIGURES = Figures(
    cluster_id=0xCDF818194E3A8C32,
    member_id=0x8E9E05C52164694D,
    revision=7,
    raft_term=2,
    raft_index=12,
    raft_applied_index=11,
    leader_id=0x8E9E05C52164694D,
    is_learner=False,
    database_bytes=20480,
    database_bytes_in_use=16384,
    quota_bytes=2 << 30,
    storage_version="3.7.0",
)


class Finished(NamedTuple):
    """How a call ended."""

    status: int
    text: str
    trailers: list[tuple[str, str]]


class FakeStatistics:
    """Counts of a pump that has seen no hot call."""

    def __init__(self) -> None:
        self.methods: dict[str, list[int]] = {}
        self.named: dict[str, int] = {}


class FakeNode:
    """A node whose reads and proposals are answered at once, unless `hung`."""

    def __init__(self) -> None:
        self.now = FIGURES
        self.alarms_on: list[Alarm] = []
        self.read_error: EtcdError | None = None
        self.hung = False
        self.reads = 0
        self.proposed: list[bytes] = []
        self.counters: list[int] = [0] * 2048
        # What askers for a snapshot get; None lets them wait.
        self.snapshot: Source | EtcdError | None = None
        # The other ends of what they hold.
        self.holders: list[int] = []

    def figures(self) -> Figures:
        return self.now

    def members(self) -> list[MemberInfo]:
        urls = ("http://localhost:2380",), ("http://localhost:2379",)
        return [MemberInfo(self.now.member_id, "default", *urls, False)]

    def alarms(self) -> list[Alarm]:
        return self.alarms_on

    def read_index(self, done: Done) -> None:
        self.reads += 1
        if not self.hung:
            done(self.read_error)

    def propose_alarm(self, request: bytes, done: AlarmsDone) -> None:
        self.proposed.append(request)
        done([Alarm(self.now.member_id, 1)])

    def open_snapshot(self, done: SnapshotDone) -> None:
        if isinstance(self.snapshot, EtcdError):
            done(self.snapshot)
        elif self.snapshot is not None:
            ours, theirs = os.pipe()
            self.holders.append(ours)
            done(Loan(self.snapshot, theirs))
            os.close(theirs)

    def metrics(self) -> Metrics:
        return {"etcd_mvcc_put_total": 3.0}

    def worker_counters(self) -> list[int]:
        return self.counters


class FakePump:
    """Notes what it is told; questions go to `node`; events are given by `put`."""

    def __init__(self, node: FakeNode | None = None) -> None:
        self.node = node
        self.sent: list[tuple[int, bytes]] = []
        self.finished: dict[int, Finished] = {}
        self.asked: list[tuple[int, int, bytes]] = []
        self.canceled: list[int] = []
        self.events: list[tuple[Any, ...]] = []
        self.turns = 0
        self.before_turn: Callable[[], object] = int
        self.waiting = 0
        self.accepting = False
        self.drained = False
        self.idle = True
        self.clients_gone = 0
        self.counted = FakeStatistics()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        # Where descriptors go: the core's end first.
        self.channel: list[socket.socket] = []

    def connect(self) -> socket.socket:
        """Have answers with descriptors; the worker's end of the channel."""
        self.channel = list(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.channel[1].setblocking(False)
        return self.channel[1]

    def close(self) -> None:
        os.close(self.fd)
        for end in self.channel:
            end.close()

    def put(self, *event: Any) -> None:
        """An event for the next turn."""
        self.events.append(event)
        os.eventfd_write(self.fd, 1)

    def turn(self, linger: float) -> Iterable[tuple[Any, ...]]:
        self.turns += 1
        self.before_turn()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        events, self.events = self.events, []
        return events

    def next_deadline(self) -> float:
        return math.inf

    def accept(self) -> None:
        self.accepting = True

    def drain(self) -> None:
        self.drained = True

    def statistics(self) -> FakeStatistics:
        return self.counted

    def send_message(self, call_id: int, message: bytes) -> int:
        assert call_id not in self.finished, f"call {call_id} has ended"
        self.sent.append((call_id, message))
        return self.waiting

    def finish(
        self, call_id: int, status: int, message: str, trailers: list[tuple[str, str]]
    ) -> None:
        assert call_id not in self.finished, f"call {call_id} ended twice"
        self.finished[call_id] = Finished(status, message, trailers)

    def ask(self, call: int, payload: bytes) -> int:
        ask_id = len(self.asked) + 1
        self.asked.append((ask_id, call, payload))
        if self.node is not None:
            handle(self.node, call, payload, self._replier(ask_id))
        return ask_id

    def cancel_ask(self, ask_id: int) -> None:
        self.canceled.append(ask_id)

    def _replier(self, ask_id: int) -> Callable[[bytes | Handed | EtcdError], None]:
        def reply(answer: bytes | Handed | EtcdError) -> None:
            if isinstance(answer, Handed):
                socket.send_fds(
                    self.channel[0], [ask_id.to_bytes(8, "little")], list(answer.descriptors)
                )
                answer = answer.message
            if isinstance(answer, EtcdError):
                self.put(EventKind.REPLY, ask_id, 4, answer.id, b"")
            else:
                half = len(answer) // 2
                self.put(EventKind.REPLY, ask_id, 1, 0, answer[:half])
                self.put(EventKind.REPLY, ask_id, 6, 0, answer[half:])

        return reply


async def settle() -> None:
    """Let every task run until all wait for something outside."""
    await trio.testing.wait_all_tasks_blocked()
