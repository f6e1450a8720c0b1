"""One worker process: turns of the pump, and trio tasks for what is not hot.

Rules:
1. The pump is only touched by the one trio thread, and every turn of it is made by `Worker.loop`;
   whoever has given the pump something to send calls `wake`.
2. No task may keep the thread: hot traffic waits meanwhile.
3. The core's commands come through the doorbell. DRAIN: no new connections, what is under way is
   answered, up to DRAIN_SECONDS_MAX. The kernel kills the worker when the core dies.
"""

from __future__ import annotations

import math
import os
import socket
from array import array
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Protocol

import trio
from grpclib.const import Handler

from quorate.core._eventring import EventReader, EventRing
from quorate.core._ring import Doorbell, Ring
from quorate.core.config import Config
from quorate.core.errors import Fatal
from quorate.core.limits import (
    COUNTERS_PUBLISH_SECONDS,
    DRAIN_SECONDS_MAX,
    GONE_CONNECTIONS_MAX,
    LINGER_SECONDS,
    REQUEST_SECONDS_DEFAULT,
    WATCH_PROGRESS_SECONDS_MIN,
    WORKER_FREE_BYTES,
)
from quorate.core.logs import Logger
from quorate.frontends.counters import METHOD_FIELDS, Counters, pack
from quorate.workers import calls
from quorate.workers._pump import Pump as CythonPump
from quorate.workers._system import die_with_parent, keep_memory, release_memory
from quorate.workers.calls import Calls, Core
from quorate.workers.cluster import Cluster
from quorate.workers.health import Health
from quorate.workers.http1 import Http1
from quorate.workers.maintenance import Maintenance
from quorate.workers.pages import Pages


class Command(IntEnum):
    """What the core says through the worker's doorbell; the numbers are core/fleet.py's."""

    WAIT = 0
    SERVE = 1
    DRAIN = 2


class EventKind(IntEnum):
    """The first item of the pump's event tuples."""

    CALL = 1  # call_id, path, metadata pairs
    MESSAGE = 2  # call_id, message
    HALF_CLOSED = 3  # call_id
    RESET = 4  # call_id
    REPLY = 5  # ask_id, flags, error_id, payload
    HTTP1 = 6  # fd, first bytes
    CORRUPT = 7  # nothing: the core's ring is broken
    DRAINED = 8  # call_id


class Statistics(Protocol):
    """What the pump has counted itself: hot calls, and bytes of all connections."""

    @property
    def methods(self) -> Mapping[str, Sequence[int]]:
        """Path -> METHOD_FIELDS numbers, in the order of `frontends/counters`."""

    @property
    def named(self) -> Mapping[str, int]:
        """Some of the NAMED of `frontends/counters`."""


class Bell(Protocol):
    """What a worker needs of its doorbell, which also makes the pump's `fd` readable."""

    command: int


class Pump(calls.Pump, Protocol):
    """What a worker needs of `workers/_pump.pyx`."""

    @property
    def fd(self) -> int:
        """Readable when a turn has something to do."""

    @property
    def idle(self) -> bool:
        """Whether no call is under way and nothing waits to be sent."""

    @property
    def clients_gone(self) -> int:
        """How many of the connections that were accepted are over."""

    def turn(self, linger: float) -> Iterable[tuple[Any, ...]]:
        """Do all that can be done, wait up to `linger` seconds for more; events for Python."""

    def next_deadline(self) -> float:
        """Seconds from now after which a turn is due though nothing happens; inf for never."""

    def accept(self) -> None:
        """From now on take connections from the listening sockets."""

    def drain(self) -> None:
        """Take no more connections and calls; tell clients to go elsewhere."""

    def statistics(self) -> Statistics:
        """Counts since the start."""


class Worker:
    """The tasks of a worker process."""

    def __init__(
        self,
        pump: Pump,
        bell: Bell,
        block: memoryview,
        logger: Logger,
        channel: socket.socket | None = None,
    ) -> None:
        self.pump = pump
        self.counters = Counters()
        self.core = Core(pump, self.wake, channel)
        self.pages = Pages(self.core, self.counters, self.publish)
        self.http1 = Http1(self.pages, logger)
        self._bell = bell
        self._logger = logger
        self._command = Command.WAIT
        self._block = block
        self._clients_gone = 0
        self._woken = False
        self._waiting = trio.CancelScope()
        self._drain_deadline = math.inf

    def wake(self) -> None:
        """The pump has something to send: make a turn soon."""
        self._woken = True
        self._waiting.cancel()

    def obey(self) -> None:
        """Do what the core's command says, once."""
        command = Command(self._bell.command)
        if command == self._command:
            return
        self._command = command
        self.wake()
        if command == Command.SERVE:
            self.pump.accept()
        elif command == Command.DRAIN:
            self._drain_deadline = trio.current_time() + DRAIN_SECONDS_MAX
            self.pump.drain()
            self.http1.drain()
            self.calls.end_streams()

    async def serve(self) -> None:
        """Serve until the core says DRAIN and what was under way then is done."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.calls = Calls(
                self.pump, handlers(self.core), nursery, self.wake, self.counters, self._logger
            )
            nursery.start_soon(self._publish_forever)
            nursery.start_soon(self.core.receive_forever)
            await self.loop()
            nursery.cancel_scope.cancel()
        # The cancelled calls have said `server stopped`: send that.
        self.pump.turn(0.0)
        self.publish()

    async def loop(self) -> None:
        """Turn the pump whenever it has something to do."""
        while True:
            self._woken = False
            for event in self.pump.turn(LINGER_SECONDS):
                self.dispatch(event)
            # After the turn, which has emptied the doorbell: a command that rang before is seen
            # now, one that rings later makes the pump's descriptor readable.
            self.obey()
            await trio.lowlevel.checkpoint()
            if self._drained():
                return
            if not self._woken:
                await self._wait()

    async def _wait(self) -> None:
        deadline = min(trio.current_time() + self.pump.next_deadline(), self._drain_deadline)
        with trio.CancelScope(deadline=deadline) as self._waiting:
            await trio.lowlevel.wait_readable(self.pump.fd)

    def _drained(self) -> bool:
        if self._drain_deadline == math.inf:
            return False
        idle = self.pump.idle and not self.calls.replies_due and not self.http1.answers_due
        return idle or trio.current_time() >= self._drain_deadline

    def dispatch(self, event: tuple[Any, ...]) -> None:
        """Hand one event of the pump to whom it concerns."""
        kind = event[0]
        if kind == EventKind.REPLY:
            self.core.on_reply(*event[1:])
        elif kind == EventKind.CALL:
            self.calls.on_call(*event[1:])
        elif kind == EventKind.MESSAGE:
            self.calls.on_message(*event[1:])
        elif kind == EventKind.HALF_CLOSED:
            self.calls.on_half_closed(*event[1:])
        elif kind == EventKind.RESET:
            self.calls.on_reset(*event[1:])
        elif kind == EventKind.DRAINED:
            self.calls.on_drained(*event[1:])
        elif kind == EventKind.CORRUPT:
            raise Fatal("the ring of the core's replies is corrupt")
        else:
            assert kind == EventKind.HTTP1, f"the pump made an unknown event {kind}"
            self._serve_http1(*event[1:])

    def _serve_http1(self, descriptor: int, first_bytes: bytes) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))
        self._nursery.start_soon(self.http1.serve, stream, first_bytes)

    def publish(self) -> None:
        """Write this worker's counters where the core reads them."""
        statistics = self.pump.statistics()
        merged = Counters(dict(self.counters.methods), {**self.counters.named})
        for path, counts in statistics.methods.items():
            assert len(counts) == METHOD_FIELDS, f"{path}: {len(counts)} counts"
            own = merged.methods[path]
            merged.methods[path] = [a + b for a, b in zip(own, counts, strict=True)]
        for name, count in statistics.named.items():
            merged.named[name] += count
        numbers = pack(merged)
        self._block[: len(numbers)] = memoryview(array("Q", numbers))

    def release(self) -> None:
        """Give memory back once many connections have gone since the last time."""
        gone = self.pump.clients_gone
        if gone - self._clients_gone >= GONE_CONNECTIONS_MAX:
            self._clients_gone = gone
            release_memory()

    async def _publish_forever(self) -> None:
        while True:
            self.publish()
            self.release()
            await trio.sleep(COUNTERS_PUBLISH_SECONDS)


# The methods that Python answers; all others of etcd's API are hot or not built yet.
SERVED = (
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Alarm",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Defragment",
    "/etcdserverpb.Maintenance/Snapshot",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
)


def handlers(core: Core) -> dict[str, Handler]:
    """The handler of each path of SERVED."""
    found: dict[str, Handler] = {}
    for service in (Cluster(core), Maintenance(core), Health(core)):
        found.update(service.__mapping__())
    return {path: found[path] for path in SERVED}


class Inheritance(Protocol):
    """What the core hands to the process that it forked; core/fleet.py makes it."""

    @property
    def slot(self) -> int:
        """Which of the workers this is, from 0."""

    @property
    def core_pid(self) -> int:
        """The process that forked this one."""

    @property
    def config(self) -> Config:
        """The flags."""

    @property
    def logger(self) -> Logger:
        """Where lines go."""

    @property
    def listeners(self) -> Sequence[socket.socket]:
        """The listening sockets, the core's too."""

    @property
    def requests(self) -> Ring:
        """The ring to the core."""

    @property
    def replies(self) -> Ring:
        """The ring from the core."""

    @property
    def bell(self) -> Doorbell:
        """Rung for this worker."""

    @property
    def core_bell(self) -> Doorbell:
        """Rung for the core."""

    @property
    def event_ring(self) -> EventRing:
        """What all workers are told."""

    @property
    def channel(self) -> socket.socket | None:
        """Where descriptors come from the core; without one none come."""


def worker_main(inheritance: Inheritance, block: memoryview) -> int:
    """Be a worker until the core says DRAIN; the answer is the exit code.

    To be called in a thread of a process that the core has just forked; `block` is its counters.
    """
    if not die_with_parent(inheritance.core_pid):
        return 0
    keep_memory(WORKER_FREE_BYTES)

    async def main() -> None:
        pump = make_pump(inheritance)
        worker = Worker(pump, inheritance.bell, block, inheritance.logger, inheritance.channel)
        await worker.serve()

    trio.run(main)
    return 0


def make_pump(inheritance: Inheritance) -> Pump:
    """The pump of a worker, as the flags want it."""
    config = inheritance.config
    pump: Pump = CythonPump(
        listeners=[listener.fileno() for listener in inheritance.listeners],
        bell=inheritance.bell,
        core_bell=inheritance.core_bell,
        requests=inheritance.requests,
        replies=inheritance.replies,
        events=EventReader(inheritance.event_ring),
        watch_progress_interval=max(
            WATCH_PROGRESS_SECONDS_MIN, config.watch_progress_notify_interval
        ),
        served=SERVED,
        request_bytes_max=config.max_request_bytes,
        txn_ops_max=config.max_txn_ops,
        streams_max=config.max_concurrent_streams,
        keepalive_min=config.grpc_keepalive_min_time,
        keepalive_interval=config.grpc_keepalive_interval,
        keepalive_timeout=config.grpc_keepalive_timeout,
        # For the benchmark: how fast is the front alone?
        echo=os.environ.get("QUORATE_ECHO") == "1",
        request_timeout=REQUEST_SECONDS_DEFAULT + 2 * (config.election_timeout / 1000 - 1.0),
    )
    inheritance.event_ring.close()
    return pump
