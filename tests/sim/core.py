"""The core of a simulated machine: a real member whose turns, syncs and end the world decides.

Rules:
1. The member is `tests/node_driver.py`'s; it turns only when it was rung for or has more to do, as
   `core/main.py` has it.
2. A sync that does not run in the turn itself is made by the log's own thread, as ever. The thread
   is held at a gate, and whoever begins or releases a sync waits until it stands still again: no
   step of the simulation goes on beside it.
3. How long a sync took is not the machine's to say, but the world's.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable
from typing import Any, cast

from quorate.core._disk import DiskError
from quorate.core._eventring import EventRing
from quorate.core._port import Port
from quorate.core._ring import Doorbell
from quorate.core._wal import Wal
from quorate.core.fleet import counter_block
from tests.node_driver import SYNC_SECONDS_MAX, Member
from tests.sim.disk import SimDisk


class Gate(threading.Event):
    """Stops the log's thread before its sync takes effect, and says that it has come."""

    def __init__(self, bell: Doorbell) -> None:
        super().__init__()
        self._bell = bell

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            os.eventfd_write(self._bell.fd, 1)
        return super().wait(timeout)


class SimWal:
    """The log as the node sees it."""

    def __init__(self, wal: Wal, disk: SimDisk, seconds: Callable[[], float]) -> None:
        self.held = False  # a sync is under way, and not released
        self._wal = wal
        self._disk = disk
        self._seconds = seconds
        self._bell = Doorbell()
        self._doorbell = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wal, name)

    @property
    def last_sync_seconds(self) -> float:
        """How long the last sync took."""
        return self._seconds()

    @property
    def sync_done(self) -> bool:
        """Whether the sync was released."""
        return self._wal.syncing and not self.held

    def start_sync(self, doorbell: int) -> None:
        """Begin a sync, which goes as far as the gate."""
        assert not self.held
        self._doorbell = doorbell
        self._disk.gate = Gate(self._bell)
        self.held = True
        self._wal.start_sync(self._bell.fd)
        self._await_thread()

    def release(self) -> None:
        """Let the sync end, and ring for it."""
        assert self.held
        assert self._disk.gate is not None
        # One that failed before the gate is done, and has rung for that.
        if not self._wal.sync_done:
            self._disk.gate.set()
            self._await_thread()
        assert self._wal.sync_done
        self._disk.gate = None
        self.held = False
        os.eventfd_write(self._doorbell, 1)

    def abandon(self) -> None:
        """The machine is gone: end the thread; what it does yet is on nobody's disk."""
        self._disk.die_at = 0
        if self._disk.gate is not None:
            self._disk.gate.set()
        with contextlib.suppress(DiskError):
            self._wal.close()

    def _await_thread(self) -> None:
        assert self._bell.wait(SYNC_SECONDS_MAX * 1000), "the log's thread hangs"
        self._bell.rise()


class Core:
    """A running core; `ports` are its workers'."""

    def __init__(
        self,
        disk: SimDisk,
        chance: random.Random,
        now: int,
        workers: int,
        event_ring_bytes: int,
        sync_seconds: Callable[[], float],
    ) -> None:
        self.disk = disk
        self.event_ring = EventRing(event_ring_bytes)
        self.member = Member(disk, workers=0, now=now, event_ring=self.event_ring, chance=chance)
        self.node = self.member.node
        self.wal = SimWal(self.node.wal, disk, sync_seconds)
        self.node.wal = cast(Wal, self.wal)
        self.ports: list[Port | None] = self.member.fleet.ports
        self.ports[:] = [None] * workers
        self.member.fleet.blocks[:] = [counter_block() for _ in range(workers)]
        self.bell = self.member.bell
        self.more = True
        self._ticked = now

    @property
    def revision(self) -> int:
        """What the store has come to."""
        return self.member.revision

    def adopt(self, slot: int, port: Port, block: memoryview) -> None:
        """A worker has begun."""
        self.ports[slot] = port
        self.member.fleet.blocks[slot] = block

    def lose(self, slot: int) -> None:
        """A worker is gone."""
        self.member.fleet.lose(slot)

    def due(self) -> bool:
        """Whether there is a reason to turn."""
        return self.more or self.member.fleet.waits_for_room() or self.bell.wait(0)

    def turn(self) -> None:
        """One turn. Raises DiskError."""
        self.bell.rise()
        self.more = self.member.turn()
        if not self.more:
            self.bell.sleep()
            self.more = self.node.batch.waiting()
        for port in self.ports:
            assert port is None or (not port.corrupt and not port.dropped), port

    def set_time(self, now: int, tick_milliseconds: int) -> None:
        """Time went by."""
        self.member.now = now
        if now >= self._ticked + tick_milliseconds:
            self.node.tick(now - self._ticked)
            self._ticked = now
        os.eventfd_write(self.bell.fd, 1)

    def check(self) -> None:
        """Every invariant."""
        self.member.check()

    def crash(self, how: str | None) -> SimDisk:
        """The end, at once; answers the disk that is left."""
        after = self.disk.crash(how)
        self.wal.abandon()
        return after
