"""Clients that behave badly do not slow others, do not grow the server for good, end nothing."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.crash.attackers import ATTACKS
from tests.depth import depth
from tests.http2 import Raw, grpc_headers, prefixed
from tests.messages import encode
from tests.server import Program, Server
from tests.wire import Client

pytestmark = pytest.mark.crash

ROOT = Path(__file__).resolve().parent.parent.parent
QUIET_SECONDS = 0.5
ATTACK_SECONDS = depth(1, 3)
WARM_SECONDS = 0.3
# A bystander's p99 may double. Below this many seconds the machine's own noise is larger.
P99_FLOOR = 0.025
TRIES = 3
MIB = 1 << 20
PEAK_GROWTH, LASTING_GROWTH = 128 * MIB, 32 * MIB
IDLE_BYTES_EACH = 20 * 1024
# Of what a connection takes, so much may stay when it is gone.
LASTING_BYTES_EACH = 5 * 1024
SETTLE_SECONDS = 5.0
# A soft limit of open files such as a shell gives, only lower, and more connections than it allows.
FILES_SOFT, CONNECTIONS = 256, 400
# 3.4.23: 2.7 GiB, and bystanders that wait for more than three seconds.
TOO_MUCH_FOR_ETCD = {"shut_windows", "slow_readers", "tiny_windows"}


@pytest.fixture(scope="module")
def victim(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with 8 MB to list."""
    with Server(program, tmp_path_factory.mktemp("victim")) as server:
        with Client(server.start().port) as client:
            for number in range(8):
                client.put(b"big/%d" % number, bytes(MIB))
        yield server


class Bystander(Raw):
    """One connection that puts and gets, one call at a time."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.calls = [
            ("/etcdserverpb.KV/Put", prefixed(encode("PutRequest", {"key": b"by", "value": b"v"}))),
            ("/etcdserverpb.KV/Range", prefixed(encode("RangeRequest", {"key": b"by"}))),
        ]

    def p99(self, seconds: float) -> float:
        """The 99th percentile of what its calls take, over that time."""
        times, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            for path, data in self.calls:
                began = time.perf_counter()
                answer = self.ask(grpc_headers(path), data)
                times.append(time.perf_counter() - began)
                assert answer.status == 0, answer
                # A client at leisure: what it feels is not its own load.
                time.sleep(0.001)
        assert len(times) >= 20, f"only {len(times)} calls in {seconds} s"
        return sorted(times)[len(times) * 99 // 100]


def attacker(name: str, port: int, amount: float) -> subprocess.Popen[bytes]:
    """Start one in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.crash.attackers", name, str(port), str(amount)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def shrinks_to(server: Server, size: int) -> int:
    """Wait until the server's memory is down to that; what it is in the end."""
    end = time.monotonic() + SETTLE_SECONDS
    while (now := server.memory()) > size and time.monotonic() < end:
        # /proc, which cannot tell.
        time.sleep(0.1)
    return now


def suffer(name: str, server: Server, bystander: Bystander) -> tuple[float, int]:
    """One attack: the bystander's p99 during it, and the server's memory at its end."""
    with attacker(name, server.port, WARM_SECONDS + ATTACK_SECONDS + 0.3) as process:
        try:
            time.sleep(WARM_SECONDS)
            during = bystander.p99(ATTACK_SECONDS)
            peak = server.memory()
            assert process.wait(30) == 0
        finally:
            process.kill()
    return during, peak


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_a_bystander_hardly_feels(name: str, victim: Server, program: Program) -> None:
    before, memory = victim.identity(), victim.memory()
    if not program.is_quorate and name in TOO_MUCH_FOR_ETCD:
        pytest.skip("etcd holds every answer whole: gigabytes")
    verdicts, peak = [], 0
    for _ in range(TRIES):
        with Bystander(victim.port) as bystander:
            quiet = bystander.p99(QUIET_SECONDS)
            during, peak = suffer(name, victim, bystander)
        allowed = max(2 * quiet, P99_FLOOR)
        verdicts.append(f"{quiet * 1000:.1f} ms, under attack {during * 1000:.1f} ms")
        if during <= allowed:
            break
    else:
        pytest.fail(f"p99 of a bystander: {verdicts}")
    print(f"{name}: p99 {verdicts[-1]}; memory {memory // MIB} MiB, peak {peak // MIB} MiB")
    assert victim.identity() == before, victim.tail()
    if program.is_quorate:
        assert peak <= memory + PEAK_GROWTH
        after = shrinks_to(victim, memory + LASTING_GROWTH)
        assert after <= memory + LASTING_GROWTH, f"{memory // MIB} MiB, now {after // MIB} MiB"


def test_many_idle_connections_cost_little(server: Server, program: Program) -> None:
    count = depth(2000, 10_000)
    with Client(server.port) as client:
        client.put(b"k", b"v")
    # What the start and the put took is given back.
    time.sleep(0.5)
    memory, before = server.memory(), server.identity()
    with Bystander(server.port) as bystander, attacker("idle", server.port, count) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            # So that the workers have accepted all of them.
            time.sleep(0.5)
            each = (server.memory() - memory) / count
            p99 = bystander.p99(QUIET_SECONDS)
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)
        finally:
            process.kill()
    print(
        f"{count} idle connections: {each / 1024:.1f} KiB each, bystander's p99 {p99 * 1000:.1f} ms"
    )
    assert server.identity() == before
    if program.is_quorate:
        assert p99 <= 2 * P99_FLOOR
        assert each <= IDLE_BYTES_EACH
        lasting = memory + count * LASTING_BYTES_EACH
        assert (after := shrinks_to(server, lasting)) <= lasting, f"{memory} bytes, now {after}"


@contextlib.contextmanager
def soft_limit_of_files(count: int) -> Iterator[int]:
    """What is started meanwhile begins with this soft limit; yields the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_low_soft_limit_of_files_is_raised(program: Program, tmp_path: Path) -> None:
    with Server(program, tmp_path / "server") as server:
        with soft_limit_of_files(FILES_SOFT) as hard:
            server.launch()
        server.wait_ready()
        for pid, _ in server.identity():
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == hard > CONNECTIONS
        with contextlib.ExitStack() as stack:
            for _ in range(CONNECTIONS):
                stack.enter_context(Raw(server.port)).drain(0)
            with Bystander(server.port) as bystander:
                assert bystander.p99(WARM_SECONDS) <= 1
