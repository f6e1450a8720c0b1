"""core/fleet: workers are forked with nothing but their own, watched, counted and replaced."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from quorate.core import fleet as fleets
from quorate.core._apply import Applier
from quorate.core._batch import Batch
from quorate.core._mvcc import Store
from quorate.core.config import Config
from quorate.core.fleet import Command, Fleet, Inheritance, WorkerMain, ring_bytes
from quorate.core.limits import (
    GRPC_OVERHEAD_BYTES,
    REQUEST_BYTES_MAX_DEFAULT,
    RING_BYTES_MIN,
    WORKER_COUNTERS_MAX,
)
from quorate.core.logs import Logger
from tests.core_driver import PUT, request

SECONDS_MAX = 10


def wait_for(inheritance: Inheritance, command: Command) -> None:
    """In a worker: until the core says so, for at most SECONDS_MAX."""
    for _ in range(SECONDS_MAX * 100):
        if inheritance.bell.command == command:
            return
        if inheritance.bell.wait(10):
            inheritance.bell.rise()  # or the next wait is none, and the time over at once
    os._exit(99)


def stays(inheritance: Inheritance, block: memoryview) -> int:
    """A worker that counts one and leaves when it is told to."""
    block[0] = 1
    block[1] = inheritance.slot + 10
    inheritance.requests.push(request(os.getpid(), PUT))
    wait_for(inheritance, Command.DRAIN)
    return 0


@pytest.fixture
def make() -> Iterator[Callable[..., Fleet]]:
    """Makes fleets whose workers are gone after the test."""
    made: list[Fleet] = []

    def fleet(
        worker_main: WorkerMain, workers: int = 1, listeners: Sequence[socket.socket] = ()
    ) -> Fleet:
        config = Config(workers=workers)
        made.append(Fleet(config, Logger((), "info"), listeners, worker_main))
        return made[-1]

    frozen = gc.get_freeze_count()
    yield fleet
    for one in made:
        for slot, pid in enumerate(one.pids):
            one.lose(slot)
            if pid:
                one.kill(slot)
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    continue
    if not frozen:
        gc.unfreeze()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what a child process does."""
    with trio.fail_after(SECONDS_MAX):
        while not condition():
            await trio.sleep(0.002)


def asked(fleet: Fleet, slot: int = 0) -> int:
    """The pid that the worker of the slot sent, 0 while it has not."""
    port = fleet.ports[slot]
    record = port.requests.pull() if port is not None else None
    return int.from_bytes(record[:8], "little") if record else 0


# --- sizes and counters ---------------------------------------------------------------------------


@pytest.mark.parametrize("request_bytes", [0, 1, REQUEST_BYTES_MAX_DEFAULT, 3 << 20, 100 << 20])
def test_a_ring_is_a_power_of_two_and_holds_two_requests(request_bytes: int) -> None:
    size = ring_bytes(request_bytes)
    assert size.bit_count() == 1
    assert size >= RING_BYTES_MIN
    assert 2 * (request_bytes + GRPC_OVERHEAD_BYTES) <= size
    assert size == RING_BYTES_MIN or size < 4 * (request_bytes + GRPC_OVERHEAD_BYTES)


def test_counters_are_those_of_all_workers_past_and_present(
    make: Callable[..., Fleet],
) -> None:
    fleet = make(stays, workers=2)

    async def main() -> None:
        for slot in range(2):
            fleet.start(slot)
        await until(lambda: fleet.counters()[:2] == [2, 21])
        old = fleet.pids[0]
        fleet.kill(0)
        fleet.lose(0)
        fleet.lose(0)  # twice is once
        assert fleet.counters()[:2] == [2, 21]
        os.waitpid(old, 0)
        fleet.start(0)
        await until(lambda: fleet.counters()[:2] == [3, 31])
        assert len(fleet.counters()) == WORKER_COUNTERS_MAX

    trio.run(main)


# --- lives ----------------------------------------------------------------------------------------


def test_a_dead_worker_is_replaced_with_new_rings_and_a_new_generation(
    make: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "LIFE_SECONDS_MIN", 0.0)
    fleet = make(stays)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            first = fleet.start(0)
            nursery.start_soon(fleet.watch, 0)
            port = fleet.ports[0]
            assert port is not None
            await until(lambda: asked(fleet) == first)
            os.kill(first, signal.SIGKILL)
            await until(lambda: fleet.ports[0] not in (None, port))
            new = fleet.ports[0]
            assert new is not None
            assert new.generation > port.generation
            assert new.slot == port.slot
            assert fleet.pids[0] != first
            await until(lambda: asked(fleet) == fleet.pids[0])
            fleet.tell(Command.DRAIN)
            await until(lambda: not fleet.alive())

    trio.run(main)


def test_one_that_dies_again_and_again_is_replaced_more_slowly(
    make: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "RESTART_PAUSE_SECONDS", 0.2)
    fleet = make(lambda inheritance, block: 3)
    started: list[float] = []

    def start(slot: int, real: Callable[[int], int] = fleet.start) -> int:
        started.append(trio.current_time())
        return real(slot)

    fleet.start = start  # type: ignore[method-assign]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            fleet.start(0)
            nursery.start_soon(fleet.watch, 0)
            await until(lambda: len(started) == fleets.EARLY_DEATHS_MAX + 3)
            nursery.cancel_scope.cancel()

    trio.run(main)
    pauses = [later - earlier for earlier, later in pairwise(started)]
    assert min(pauses[fleets.EARLY_DEATHS_MAX :]) >= 0.2


def test_a_worker_that_fails_is_a_line_and_an_exit_code(make: Callable[..., Fleet]) -> None:
    def fails(inheritance: Inheritance, block: memoryview) -> int:
        raise ValueError("expected by the test")

    reading, writing = os.pipe()
    fleet = make(fails)
    fleet.logger = Logger((writing,), "info")
    assert trio.run(fleets.wait_for_exit, fleet.start(0)) == 1
    os.close(writing)
    with os.fdopen(reading) as lines:
        [line] = [json.loads(line) for line in lines]
    assert (line["msg"], line["slot"]) == ("worker failed", 0)
    assert line["error"] == "ValueError('expected by the test')"
    assert "in fails" in line["stack"]


def test_a_corrupt_port_kills_its_worker_and_gets_a_new_one(
    make: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "LIFE_SECONDS_MIN", 0.0)

    def hostile(inheritance: Inheritance, block: memoryview) -> int:
        block[0] = 1
        if inheritance.bell.command == Command.WAIT:
            inheritance.requests.poke(0, b"\xff" * 8)
        inheritance.core_bell.wake()
        wait_for(inheritance, Command.DRAIN)
        return 0

    fleet = make(hostile)

    # The batch that drains a port marks it.
    batch = Batch(fleet.ports, Applier(Store(), fleet.ports, print), 1 << 20, 128)

    async def replaced() -> None:
        async with trio.open_nursery() as nursery:
            first = fleet.start(0)
            nursery.start_soon(fleet.watch, 0)
            port = fleet.ports[0]
            assert port is not None

            def corrupt() -> bool:
                batch.drain()
                return port.corrupt

            await until(corrupt)
            fleet.tell(Command.SERVE)
            fleet.replace_corrupt()
            assert fleet.ports[0] is None
            await until(lambda: fleet.ports[0] is not None)
            assert fleet.pids[0] != first
            assert fleet.counters()[0] >= 1
            batch.drain()
            [new] = fleet.ports
            assert new is not None
            assert not new.corrupt
            fleet.tell(Command.DRAIN)

    trio.run(replaced)


def test_drain_ends_the_watching_and_starts_nobody(make: Callable[..., Fleet]) -> None:
    fleet = make(stays, workers=2)

    async def main() -> None:
        with trio.fail_after(SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                for slot in range(2):
                    fleet.start(slot)
                    nursery.start_soon(fleet.watch, slot)
                fleet.tell(Command.SERVE)
                assert fleet.alive()
                fleet.tell(Command.DRAIN)
        assert not fleet.alive()
        assert fleet.generation == 2
        assert fleet.counters()[0] == 2

    trio.run(main)


def test_a_worker_that_comes_late_has_the_command_of_now(make: Callable[..., Fleet]) -> None:
    fleet = make(stays)
    fleet.tell(Command.DRAIN)
    assert trio.run(fleets.wait_for_exit, fleet.start(0)) == 0


# --- what a worker gets ---------------------------------------------------------------------------


def test_a_worker_has_its_own_descriptors_and_no_other(
    make: Callable[..., Fleet], tmp_path: Path
) -> None:
    told = tmp_path / "told"

    def tells(inheritance: Inheritance, block: memoryview) -> int:
        kept = {"fd": set(os.listdir("/proc/self/fd"))}
        expected = {item.fd for item in (inheritance.requests, inheritance.replies)}
        expected |= {inheritance.bell.fd, inheritance.core_bell.fd, 0, 1, 2}
        expected |= {inheritance.event_ring.fd, inheritance.channel.fileno()}
        expected |= {listener.fileno() for listener in inheritance.listeners}
        extra = {int(name) for name in kept["fd"]} - expected
        ignored = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        told.write_text(f"{len(extra)} {ignored == [signal.SIG_IGN] * 2} {os.getppid()}")
        return 0

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        open(tmp_path / "core's own", "w") as own,
    ):
        assert own.fileno() > 2
        fleet = make(tells, listeners=[listener])
        assert trio.run(fleets.wait_for_exit, fleet.start(0)) == 0
    # One descriptor is that of the listing itself.
    assert told.read_text() == f"1 True {os.getpid()}"


def test_both_ends_of_a_ring_meet_over_the_fork(make: Callable[..., Fleet]) -> None:
    def echoes(inheritance: Inheritance, block: memoryview) -> int:
        for _ in range(SECONDS_MAX * 100):
            record = inheritance.replies.pull()
            if record is not None:
                return 0 if inheritance.requests.push(record) else 1
            if inheritance.bell.wait(10):
                inheritance.bell.rise()
        return 2

    fleet = make(echoes)
    pid = fleet.start(0)
    port = fleet.ports[0]
    assert port is not None
    port.answer(7, b"hello")
    port.flush()
    assert trio.run(fleets.wait_for_exit, pid) == 0
    record = port.requests.pull()
    assert record is not None
    assert record.endswith(b"hello")


def test_waiting_for_an_exit_tells_codes_and_signals(make: Callable[..., Fleet]) -> None:
    fleet = make(lambda inheritance, block: 7)
    assert trio.run(fleets.wait_for_exit, fleet.start(0)) == 7
    fleet = make(stays)
    pid = fleet.start(0)
    fleet.kill(0)
    assert trio.run(fleets.wait_for_exit, pid) == -signal.SIGKILL
    fleet.kill(0)  # nobody is there any more
