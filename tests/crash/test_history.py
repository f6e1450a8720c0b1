"""Concurrent histories, with kills and pauses in them, are linearizable.

Sleeps wait for nothing: they let the load, or a fault, go on for so long, or until a random moment.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from tests.crash.history import Recorder
from tests.depth import depth, seed
from tests.linearizability import check, ordered
from tests.polling import wait_until
from tests.server import Program, Server

pytestmark = pytest.mark.crash

PAUSE_SECONDS = 5.0


def verify(recorder: Recorder, *, least: int) -> None:
    """The history holds enough, is linearizable key by key, and its revisions follow real time."""
    done = sum(one.answer is not None for one in recorder.history)
    assert done >= least, f"only {done} calls were answered"
    assert check(recorder.history) == []
    assert ordered(recorder.writes)


@pytest.mark.parametrize("number", range(depth(1, 20)))
def test_a_quiet_history(number: int, server: Server) -> None:
    with Recorder(server.port, 10, 4, seed() + number, pace=0.002) as recorder:
        time.sleep(2)
    verify(recorder, least=500)


@pytest.mark.parametrize("number", range(depth(1, 40)))
def test_a_history_with_kills_of_the_core(number: int, server: Server) -> None:
    start = seed() + number
    print(f"QUORATE_SEED={start}")
    chance = random.Random(start)
    with Recorder(server.port, 8, 6, start, pace=0.01) as recorder:
        for _ in range(3):
            time.sleep(0.3 + 0.7 * chance.random())
            server.kill()
            server.restart()
        time.sleep(0.5)
    verify(recorder, least=100)


def test_a_history_with_kills_of_workers(server: Server, program: Program) -> None:
    if not program.is_quorate:
        pytest.skip("etcd has no workers")
    with Recorder(server.port, 8, 6, seed(), pace=0.01) as recorder:
        for _ in range(4):
            time.sleep(0.5)
            # One that has just been replaced may not have its successor yet.
            wait_until(server.workers, "worker", seconds=2.0)
            os.kill(server.workers()[0], signal.SIGKILL)
        time.sleep(0.5)
    verify(recorder, least=100)


def test_a_paused_core_is_late_and_nothing_is_wrong(server: Server) -> None:
    with Recorder(server.port, 8, 4, seed(), pace=0.005) as recorder:
        time.sleep(0.5)
        server.pause()
        time.sleep(PAUSE_SECONDS)
        server.resume()
        time.sleep(1)
    assert all(one.answer is not None for one in recorder.history), "a call failed"
    verify(recorder, least=200)


def test_a_paused_worker_is_late_and_nothing_is_wrong(server: Server, program: Program) -> None:
    if not program.is_quorate:
        pytest.skip("etcd has no workers")
    before = server.identity()
    with Recorder(server.port, 8, 4, seed(), pace=0.005) as recorder:
        time.sleep(0.5)
        worker = server.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        os.kill(worker, signal.SIGCONT)
        time.sleep(1)
    assert all(one.answer is not None for one in recorder.history), "a call failed"
    assert server.identity() == before, "the paused worker was replaced"
    verify(recorder, least=200)
