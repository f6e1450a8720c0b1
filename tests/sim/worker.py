"""A simulated worker: the real `Worker` with the real `Grpc`, and sockets that are byte arrays.

Rules:
1. `SimPump` has the contract of `workers/_pump.pyx`: a turn goes round until nothing moves, sleep
   is announced before the last look, sockets take so many bytes and no more.
2. It turns only when the world says so (`go`); a worker that stands still answers nobody.
3. When a worker is killed nothing more of it is seen, but what its sockets hold.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable
from typing import Any

import trio

from quorate.core._eventring import EventReader
from quorate.core._port import Port
from quorate.core._ring import Doorbell, Ring
from quorate.core.fleet import counter_block
from quorate.core.logs import Logger
from quorate.frontends._grpc import Connection, Grpc
from quorate.workers._pump import Statistics
from quorate.workers.worker import SERVED, Worker
from tests.connections import SECOND
from tests.sim.core import Core

ROUNDS_MAX = 50
# What a socket takes before its reader does, and one recv.
SOCKET_BYTES = 32 * 1024
RECEIVE_BYTES = 16 * 1024
SEND_BYTES = 64 * 1024
PROGRESS_SECONDS = 0.5
KEEPALIVE_SECONDS = 120.0


class Link:
    """Two sockets that are connected: the client's `feed` and `drain`, and the worker's side."""

    def __init__(self, pump: SimPump) -> None:
        self.pump = pump
        self.server = Connection(pump)
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.client_gone = False
        self.server_gone = False

    # --- the client's end

    def feed(self, data: bytes) -> bool:
        """Send."""
        if not self.server_gone:
            self.to_server += data
            self.pump.due = True
        return not self.server_gone

    def drain(self) -> bytes:
        """Receive what is there."""
        data = bytes(self.to_client)
        self.to_client.clear()
        self.pump.due = True
        return data

    def close(self) -> None:
        """The client goes."""
        self.client_gone = self.pump.due = True

    # --- the worker's end

    def receive(self) -> bool:
        """One recv; whether anything came."""
        if not self.to_server:
            return False
        data = bytes(self.to_server[:RECEIVE_BYTES])
        del self.to_server[:RECEIVE_BYTES]
        self.server.feed(data)
        return True

    def send(self) -> bool:
        """One send; whether anything went."""
        if len(self.to_client) >= SOCKET_BYTES:
            return False
        data = self.server.drain(SEND_BYTES)
        self.to_client += data
        return bool(data)

    def leave(self) -> None:
        """The worker closes."""
        self.server_gone = True
        self.server.close()


class SimPump(Grpc):
    """Sockets in memory; keywords are those of `Grpc`."""

    def __init__(self, *, bell: Doorbell, core_bell: Doorbell, **options: Any) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.links: list[Link] = []
        self.due = True
        self.stopped = False
        self.is_accepting = False
        self.nanoseconds = 0
        self.gone = 0
        self._bell = bell
        self._core_bell = core_bell

    def stop(self) -> None:
        """No turn any more, and nothing is sent."""
        self.stopped = True
        for link in self.links:
            link.leave()
        self.links.clear()

    # --- the contract of a pump

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return not self.gauges()["calls_live"]

    @property
    def clients_gone(self) -> int:
        """How many connections are over."""
        return self.gone

    def turn(self, linger: float) -> Iterable[tuple[Any, ...]]:
        """Rounds until nothing moves or Python has work."""
        if self.stopped:
            return []
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        self._bell.rise()
        self.due = False
        self.set_time(self.nanoseconds)
        events: list[tuple[Any, ...]] = []
        for _ in range(ROUNDS_MAX):
            moved = self._round()
            events = self.take_events()
            if events or not moved:
                break
        self._bell.sleep()
        self.due = self.due or moved
        return events

    def _round(self) -> bool:
        moved = False
        for link in self.links:
            moved = link.receive() or moved
        if self.deliver():
            moved = True
            self._core_bell.wake()
        for link in list(self.links):
            moved = link.send() or moved
            if link.client_gone or link.server.finished:
                self.links.remove(link)
                self.gone += 1
                link.leave()
        return moved

    def tick(self) -> None:
        """Look after silent clients."""
        for link in self.links:
            link.server.tick()
        self.due = True

    def next_deadline(self) -> float:
        """The world makes it turn whenever time went by."""
        return math.inf

    def accept(self) -> None:
        """From now on `connect` works."""
        self.is_accepting = True

    def drain(self) -> None:
        """Take no more clients."""
        self.is_accepting = False
        for link in self.links:
            link.server.shut_down()

    def connect(self) -> Link:
        """A client comes."""
        assert self.is_accepting
        self.links.append(Link(self))
        return self.links[-1]

    def statistics(self) -> Statistics:
        """Counts of hot calls."""
        return Statistics(self.method_counts(), {})


class SimWorker:
    """One worker and its rings."""

    def __init__(
        self, core: Core, slot: int, generation: int, ring_bytes: tuple[int, int], seed: int
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.bell = Doorbell()
        requests, replies = map(Ring, ring_bytes)
        self.port = Port(requests, replies, self.bell, slot, generation)
        self.pump = SimPump(
            requests=self.port.requests.other_side(),
            replies=self.port.replies.other_side(),
            events=EventReader(core.event_ring),
            bell=self.bell,
            core_bell=core.bell,
            served=SERVED,
            watch_progress_interval=PROGRESS_SECONDS,
            keepalive_interval=KEEPALIVE_SECONDS,
            watch_seed=seed,
        )
        self.block = counter_block()
        self.worker = Worker(self.pump, self.bell, self.block, Logger((), "info"))
        self.scope = trio.CancelScope()
        self.left = False
        self.alive = True

    async def run(self) -> None:
        """Be a worker until killed, or drained."""
        try:
            with self.scope:
                await self.worker.serve()
                self.left = True
        finally:
            os.close(self.pump.fd)

    def due(self) -> bool:
        """Whether there is a reason to turn."""
        return self.alive and (self.pump.due or self.bell.wait(0))

    def go(self) -> None:
        """Make the pump's descriptor readable."""
        os.eventfd_write(self.pump.fd, 1)

    def set_time(self, now: int) -> None:
        """Milliseconds of the world; seen at the next turn."""
        self.pump.nanoseconds = now * SECOND // 1000
        self.pump.due = True

    def kill(self) -> None:
        """The end, at once."""
        self.alive = False
        self.pump.stop()
        self.scope.cancel()

    def gauges(self) -> dict[str, int]:
        """What lives in the pump."""
        return self.pump.gauges()
