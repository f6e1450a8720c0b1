"""The worker processes: made by fork, watched, replaced.

Rules:
1. A worker is a child of the core, dies with it (parent-death signal), and gets by the fork what it
   may have: the listening sockets, its own two rings, its own and the core's doorbell, and a socket
   over which the core hands it descriptors. Everything else is closed or unmapped before it runs.
2. The store's memory is not copied into the child (MADV_DONTFORK), so a fork stays cheap however
   much data there is.
3. A worker that dies is replaced at once, with new rings and a new generation: what its clients
   asked is answered to nobody. One that dies again and again is replaced more slowly, so that a
   fault at its start does not become a fork bomb.
4. Commands go through the worker's doorbell: SERVE lets it accept, DRAIN makes it finish what is
   under way and leave.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import trio

from quorate.core._eventring import EventRing
from quorate.core._port import Port
from quorate.core._ring import Doorbell, Ring
from quorate.core.config import Config
from quorate.core.limits import (
    EVENT_RING_BYTES_MIN,
    GRPC_OVERHEAD_BYTES,
    RING_BYTES_MIN,
    WORKER_COUNTERS_MAX,
    WORKER_GAUGES_MAX,
)
from quorate.core.logs import Logger

# After so many workers of a slot in a row that lived shorter than this, the next one waits a while:
# short enough that service is back within half a second even then.
EARLY_DEATHS_MAX = 3
LIFE_SECONDS_MIN = 1.0
RESTART_PAUSE_SECONDS = 0.2


class Command(IntEnum):
    """What a worker is told through its doorbell."""

    WAIT = 0
    SERVE = 1
    DRAIN = 2


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a worker process starts with."""

    slot: int
    core_pid: int  # when this process ends, the kernel ends the worker
    config: Config
    logger: Logger
    listeners: Sequence[socket.socket]
    requests: Ring
    replies: Ring
    bell: Doorbell  # its own
    core_bell: Doorbell
    event_ring: EventRing  # a worker maps it anew to read, and lets go of this
    channel: socket.socket  # where descriptors come from the core


# Runs in the child until the worker is done, with its block of counters; answers the exit code.
WorkerMain = Callable[[Inheritance, memoryview], int]


def ring_bytes(request_bytes_max: int) -> int:
    """The capacity of a ring that holds two of the largest requests, a power of two."""
    wanted = max(RING_BYTES_MIN, 2 * (request_bytes_max + GRPC_OVERHEAD_BYTES))
    return 1 << (wanted - 1).bit_length()


def event_ring_bytes(request_bytes_max: int) -> int:
    """The capacity of the event ring, a power of two; an event may hold two large values."""
    wanted = max(EVENT_RING_BYTES_MIN, 8 * (request_bytes_max + GRPC_OVERHEAD_BYTES))
    return 1 << (wanted - 1).bit_length()


class Fleet:
    """All workers of this core. `ports` is shared with the batch: slot -> Port, or None."""

    def __init__(
        self,
        config: Config,
        logger: Logger,
        listeners: Sequence[socket.socket],
        worker_main: WorkerMain,
    ) -> None:
        self.config = config
        self.logger = logger
        self.listeners = listeners
        self.worker_main = worker_main
        self.core_bell = Doorbell()
        self.event_ring = EventRing(event_ring_bytes(config.max_request_bytes))
        self.ports: list[Port | None] = [None] * config.workers
        self.pids: list[int] = [0] * config.workers
        self.blocks = [counter_block() for _ in range(config.workers)]
        # What workers that are gone have counted.
        self.retired = [0] * WORKER_COUNTERS_MAX
        self.generation = 0
        self.command: Command = Command.WAIT

    def start(self, slot: int) -> int:
        """Fork the worker of a slot, with new rings; answers its pid."""
        capacity = ring_bytes(self.config.max_request_bytes)
        self.blocks[slot] = counter_block()
        requests, replies, bell = Ring(capacity), Ring(capacity), Doorbell()
        bell.command = self.command
        # A message stays whole, and what the worker does not take does not stop the core.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        inheritance = Inheritance(
            slot,
            os.getpid(),
            self.config,
            self.logger,
            self.listeners,
            requests,
            replies,
            bell,
            self.core_bell,
            self.event_ring,
            theirs,
        )
        # Objects that exist now are not touched by the collector again, in either process: their
        # pages stay shared.
        gc.freeze()
        pid = os.fork()
        if pid == 0:
            become_worker(inheritance, self.blocks[slot], self.worker_main)
        gc.unfreeze()
        theirs.close()
        self.generation += 1
        port = self.ports[slot] = Port(requests, replies, bell, slot, self.generation)
        port.channel = ours
        self.pids[slot] = pid
        return pid

    def tell(self, command: Command) -> None:
        """Give every worker, and those to come, a command."""
        self.command = command
        for port in self.ports:
            if port is not None:
                port.bell.command = command

    async def watch(self, slot: int) -> None:
        """Keep a slot filled until the fleet drains; the slot's first worker was started."""
        early_deaths = 0
        while True:
            began = trio.current_time()
            status = await wait_for_exit(self.pids[slot])
            self.lose(slot)
            if self.draining():
                return
            self.logger.warn("worker died", slot=slot, pid=self.pids[slot], status=status)
            early_deaths = early_deaths + 1 if trio.current_time() - began < LIFE_SECONDS_MIN else 0
            if early_deaths > EARLY_DEATHS_MAX:
                await trio.sleep(RESTART_PAUSE_SECONDS)
            if self.draining():
                return
            self.start(slot)
            self.logger.info("worker started", slot=slot, pid=self.pids[slot])

    def lose(self, slot: int) -> None:
        """Forget a worker that is gone."""
        port = self.ports[slot]
        self.ports[slot] = None
        if port is not None:
            port.close()
            self.blocks[slot][-WORKER_GAUGES_MAX:] = counter_block()[-WORKER_GAUGES_MAX:]
            self.retired = [sum(pair) for pair in zip(self.retired, self.blocks[slot], strict=True)]

    def counters(self) -> Sequence[int]:
        """The sum of the counters of all workers, past and present."""
        live = [self.blocks[slot] for slot, port in enumerate(self.ports) if port is not None]
        return [sum(numbers) for numbers in zip(self.retired, *live, strict=True)]

    def replace_corrupt(self) -> None:
        """End the workers that broke the format of their rings; `watch` replaces them."""
        for slot, port in enumerate(self.ports):
            if port is not None and port.corrupt:
                self.logger.error("worker wrote nonsense into its ring", slot=slot)
                self.lose(slot)
                self.kill(slot)

    def kill(self, slot: int) -> None:
        """End one worker at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[slot], signal.SIGKILL)

    def waits_for_room(self) -> bool:
        """Whether replies wait until a worker has made room in its ring."""
        return any(port is not None and port.waits_for_room for port in self.ports)

    def draining(self) -> bool:
        """Whether the server stops."""
        return self.command is Command.DRAIN

    def alive(self) -> bool:
        """Whether any worker lives."""
        return any(port is not None for port in self.ports)


def counter_block() -> memoryview:
    """Zeroed counters in memory that a forked worker shares with the core."""
    return memoryview(mmap.mmap(-1, 8 * WORKER_COUNTERS_MAX)).cast("Q")


async def wait_for_exit(pid: int) -> int:
    """Wait until a child ends; answers its exit code, negative for a signal."""
    descriptor = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def become_worker(inheritance: Inheritance, block: memoryview, worker_main: WorkerMain) -> None:
    """In the child of a fork: drop what is the core's, run the worker, and never return."""
    code = 1
    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        close_all_but(inherited_descriptors(inheritance))
        code = run_in_thread(worker_main, inheritance, block)
    except BaseException as error:
        stack = "".join(traceback.format_exception(error))
        inheritance.logger.error(
            "worker failed", slot=inheritance.slot, error=repr(error), stack=stack
        )
    finally:
        os._exit(code)


def run_in_thread(worker_main: WorkerMain, inheritance: Inheritance, block: memoryview) -> int:
    """Run the worker in a fresh thread: the forked one may be inside the core's event loop."""
    codes: list[int] = []
    failures: list[BaseException] = []

    def target() -> None:
        try:
            codes.append(worker_main(inheritance, block))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, name="worker")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return codes[0]


def inherited_descriptors(inheritance: Inheritance) -> set[int]:
    """The descriptors that a worker keeps."""
    own: list[Any] = [inheritance.requests, inheritance.replies]
    own += [inheritance.bell, inheritance.core_bell, inheritance.event_ring]
    kept = {0, 1, 2} | {item.fd for item in own}
    kept |= {listener.fileno() for listener in inheritance.listeners}
    kept.add(inheritance.channel.fileno())
    return kept | set(inheritance.logger.descriptors)


def close_all_but(kept: set[int]) -> None:
    """Close every other descriptor of this process."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
