"""kill -9 at random under load: acknowledged writes are there, none half, revisions never fall."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from tests.crash.load import Ledger, Load
from tests.depth import depth, seed
from tests.http2 import Raw
from tests.messages import encode
from tests.polling import wait_until
from tests.server import Program, Server
from tests.wire import Client

pytestmark = pytest.mark.crash

REPLACE_SECONDS = 2.0
WORKER_GAP_SECONDS = 0.5
# More than die early before the fleet takes its time to replace them: that keeps to the gap, too.
WORKERS_KILLED = 6
RANGE = encode("RangeRequest", {"key": b"k"})
# Everything is compared after each kill; what is older than so many rounds is deleted first.
ROUNDS_KEPT = 8


@pytest.mark.parametrize(("connections", "window"), [(1, 1), (1, 64), (8, 8)])
def test_the_core_is_killed_at_random_moments(
    connections: int, window: int, server: Server
) -> None:
    start = seed()
    print(f"QUORATE_SEED={start}")
    chance, ledger = random.Random(start), Ledger()
    acknowledged = 0
    for number in range(depth(4, 67)):
        load = Load(server.port, ledger, f"r{number}", connections, window).start()
        # A random moment of the load.
        time.sleep(chance.choice([0.02, 0.1, 0.3, 0.5]) * chance.random() + 0.02)
        server.kill()
        load.join()
        if chance.random() < 0.25:
            server.launch()
            # In the middle of the recovery, or soon after it.
            time.sleep(0.4 * chance.random())
            server.kill()
        server.restart()
        with Client(server.port) as client:
            acknowledged += len(ledger.acknowledged)
            ledger.verify(client)
            if number % ROUNDS_KEPT == ROUNDS_KEPT - 1:
                ledger.forget(client)
    assert acknowledged > 20, "the load wrote nothing"


def need_workers(server: Server, program: Program) -> list[int]:
    """The server's workers; skips for a server that has none."""
    if not program.is_quorate:
        pytest.skip("etcd has no workers")
    workers = server.workers()
    assert workers, "quorate runs without workers"
    return workers


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_is_killed_under_load(count: int, program: Program, server: Server) -> None:
    if not program.is_quorate:
        pytest.skip("etcd has no workers")
    server.stop()
    server.flags = ("--workers", str(count))
    server.restart()
    chance, ledger, core = random.Random(seed()), Ledger(), server.identity()[0]
    gaps = []
    for number in range(depth(WORKERS_KILLED, 30)):
        victim = chance.choice(need_workers(server, program))
        load = Load(server.port, ledger, f"r{number}", 4, 8).start()
        # A random moment of the load.
        time.sleep(0.05 + 0.2 * chance.random())
        os.kill(victim, signal.SIGKILL)
        gaps.append(service_gap(server.port))
        load.stop()
        assert gaps[-1] <= WORKER_GAP_SECONDS, f"no service for {gaps[-1]:.3f} s"
        with Client(server.port) as client:
            ledger.verify(client)
        wait_for_workers(server, count, without=victim)
    print("no service for", *(f"{gap:.3f}" for gap in sorted(gaps)), "s")
    assert server.identity()[0] == core
    assert len(ledger.acknowledged) > 20


def service_gap(port: int, seconds: float = 5.0) -> float:
    """How long it takes until three new connections in a row are served."""
    began = time.monotonic()
    served, back = 0, 0.0
    while served < 3:
        now = time.monotonic() - began
        assert now < seconds, "the service does not come back"
        try:
            with Raw(port) as raw:
                answer = raw.call("/etcdserverpb.KV/Range", RANGE)
            answered = answer.status == 0
        except OSError:
            answered = False
        if answered:
            back = back if served else time.monotonic() - began
            served += 1
        else:
            served = 0
            # Only a connection shows whether it is served.
            time.sleep(0.005)
    return back


def wait_for_workers(server: Server, count: int, *, without: int) -> None:
    """Return once the dead worker has been replaced."""

    def replaced() -> bool:
        workers = server.workers()
        return len(workers) == count and without not in workers

    wait_until(replaced, "new worker", REPLACE_SECONDS)


def test_a_worker_dies_with_its_core(program: Program, server: Server) -> None:
    need_workers(server, program)
    server.kill()  # waits for the children and fails if one stays
