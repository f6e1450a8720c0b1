"""Watchers keep being told the whole truth: quiet, with kills, pauses, compactions, slow readers.

Each run records what writers were promised and watchers told, and `tests.watchcheck` judges it.

Sleeps wait for nothing: they let the load, or a fault, go on for so long, or until a random moment.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from tests.crash.watching import EVERYTHING, KEYS, Run, mixed
from tests.depth import depth, seed
from tests.server import Program, Server
from tests.watchcheck import Segment
from tests.watches import NO_WATCH, NODELETE, NOPUT, is_progress, notifying
from tests.wire import Client

pytestmark = pytest.mark.crash

RUN_SECONDS = depth(2, 20)
LARGE = 100_000
# 3.4.23 answers progress requests ahead of events (#15220), and so cancels for compaction watches
# that were told to be beyond it. Deletes at the compacted revision it loses (#18089, #19179).
KNOWN_OF_34 = {"bookmark", "compaction"}


def judge(run: Run, program: Program, *, least: int = 100) -> None:
    """The run holds enough, and no promise was broken."""
    complaints = run.verdict()
    assert run.history.last >= least, f"only {run.history.last} revisions"
    known = set() if program.is_quorate or program.version >= (3, 5) else KNOWN_OF_34
    if known and run.compacted:
        known = known | {"gap"}
    wrong = [one for one in complaints if one.kind not in known]
    text = "\n".join(f"{one.kind}: {one.text}" for one in wrong[:20])
    assert not wrong, f"{len(wrong)} complaints about {run.history.last} revisions:\n{text}"


@pytest.mark.parametrize("number", range(depth(1, 10)))
def test_a_quiet_run(number: int, server: Server, program: Program) -> None:
    with Run(server.port, mixed(), seed() + number) as run:
        time.sleep(RUN_SECONDS)
    judge(run, program)
    assert run.count(is_progress) > 0, "no progress request was answered"


def test_notified_progress(program: Program, tmp_path: Path) -> None:
    """Every 100 ms, among the events."""
    silent = Segment(
        *EVERYTHING, filters=(NOPUT, NODELETE), progress_notify=True, name="only progress"
    )
    flag = notifying(program.kind, program.version)
    with Server(program, tmp_path / "notifier", flag) as server:
        with Run(server.start().port, [*mixed(), [silent]], seed(), pace=0.1) as run:
            time.sleep(RUN_SECONDS)
        judge(run, program, least=20)
    assert run.count(lambda one: is_progress(one) and one.get("watch_id") != NO_WATCH) > 2


@pytest.mark.parametrize("number", range(depth(1, 30)))
def test_kills_of_the_core(number: int, server: Server, program: Program) -> None:
    start = seed() + number
    chance = random.Random(start)
    with Run(server.port, mixed(), start) as run:
        for _ in range(3):
            time.sleep(0.2 + 0.6 * chance.random())
            server.kill()
            server.restart()
        time.sleep(0.3)
    judge(run, program)
    assert all(group.streams >= 4 for group in run.groups)


def need_worker(server: Server, program: Program, seconds: float = 2.0) -> int:
    """A worker of the server; skips for one that never has any."""
    if not program.is_quorate:
        pytest.skip("etcd has no workers")
    end = time.monotonic() + seconds
    while not (workers := server.workers()):
        assert time.monotonic() < end, "no worker"
        # /proc, which cannot tell.
        time.sleep(0.01)
    return random.choice(workers)


@pytest.mark.parametrize("number", range(depth(1, 30)))
def test_kills_of_workers(number: int, server: Server, program: Program) -> None:
    need_worker(server, program)
    with Run(server.port, mixed(), seed() + number) as run:
        for _ in range(4):
            time.sleep(0.5)
            os.kill(need_worker(server, program), signal.SIGKILL)
        time.sleep(0.3)
    judge(run, program)


def test_a_paused_core(server: Server, program: Program) -> None:
    with Run(server.port, mixed(), seed()) as run:
        for _ in range(depth(1, 5)):
            time.sleep(0.5)
            server.pause()
            time.sleep(1.5)
            server.resume()
        time.sleep(0.5)
    judge(run, program)
    assert all(group.streams == 1 for group in run.groups), "a stream was cut"


def test_a_paused_worker(server: Server, program: Program) -> None:
    need_worker(server, program)
    with Run(server.port, mixed(), seed()) as run:
        for _ in range(depth(1, 5)):
            time.sleep(0.5)
            worker = need_worker(server, program)
            os.kill(worker, signal.SIGSTOP)
            time.sleep(1.5)
            os.kill(worker, signal.SIGCONT)
        time.sleep(0.5)
    judge(run, program)
    assert all(group.streams == 1 for group in run.groups), "a stream was cut"


@pytest.mark.parametrize("number", range(depth(1, 10)))
def test_reconnects(number: int, server: Server, program: Program) -> None:
    start = seed() + number
    chance = random.Random(start)
    with Run(server.port, mixed(), start) as run:
        for _ in range(10 * RUN_SECONDS):
            time.sleep(0.1)
            chance.choice(run.groups).break_off()
    judge(run, program)
    assert sum(group.streams for group in run.groups) > 5 * RUN_SECONDS


@pytest.mark.parametrize("number", range(depth(1, 10)))
def test_slow_readers(number: int, server: Server, program: Program) -> None:
    """Streams that are not read for a while, with values that fill every buffer on the way."""
    with Run(
        server.port,
        mixed(),
        seed() + number,
        pace=0.02,
        size=lambda chance: LARGE if chance.random() < 0.5 else 20,
    ) as run:
        for _ in range(depth(1, 5)):
            slow = [group.stream for group in run.groups if group.stream is not None]
            for stream in slow:
                stream.pause()
            time.sleep(1)
            for stream in slow:
                stream.resume()
            time.sleep(0.5)
    judge(run, program, least=50)


@pytest.mark.parametrize("number", range(depth(1, 20)))
def test_compaction_under_watchers(number: int, server: Server, program: Program) -> None:
    """Watchers that begin behind, or fall behind, are canceled, and go on at that revision."""
    start = seed() + number
    chance = random.Random(start)
    with Run(server.port, mixed(), start) as run:
        for _ in range(10 * RUN_SECONDS):
            time.sleep(0.1)
            run.compact(chance.choice([0, 0, 1, 5, 50]))
            chance.choice(run.groups).break_off()
    judge(run, program)
    assert run.compacted > 20


def test_compaction_under_a_slow_reader(server: Server, program: Program) -> None:
    """What it was not sent yet is compacted meanwhile."""
    with Run(server.port, mixed(), seed(), pace=0.02, size=lambda _: LARGE) as run:
        for _ in range(depth(1, 5)):
            slow = [group.stream for group in run.groups if group.stream is not None]
            for stream in slow:
                stream.pause()
            time.sleep(1)
            run.compact(0)
            for stream in slow:
                stream.resume()
            time.sleep(0.3)
    judge(run, program, least=30)


def test_many_watches_on_one_stream(server: Server, program: Program) -> None:
    """Hundreds, on keys and ranges that overlap."""
    chance = random.Random(start := seed())
    asked = []
    for number in range(depth(300, 2000)):
        key, prev_kv = chance.choice(KEYS), chance.random() < 0.5
        end = chance.choice([b"", b"", key[:-2] + b"0", b"\0"])
        begin = chance.choice([0, 0, 1, 30])
        asked.append(Segment(key, end, begin, prev_kv=prev_kv, name=f"watch {number}"))
    with Run(server.port, [asked], start, writers=2, pace=0.03) as run:
        time.sleep(1)
    judge(run, program, least=30)


def test_many_streams_on_one_connection(server: Server, program: Program) -> None:
    with Client(server.port) as client:
        groups = [group for _ in range(depth(10, 60)) for group in mixed()]
        with Run(server.port, groups, seed(), writers=2, pace=0.03, client=client) as run:
            time.sleep(1)
        judge(run, program, least=30)


def test_bursts_that_overrun_a_paused_worker(program: Program, server: Server) -> None:
    """More than any ring holds is written while a worker sleeps; its watchers miss nothing."""
    need_worker(server, program)
    server.stop()
    server.flags = ("--workers", "2")
    server.restart()
    groups = [[Segment(*EVERYTHING, name=f"all {number}")] for number in range(6)]
    with Run(server.port, groups, seed(), writers=6, pace=0.0, size=lambda _: LARGE) as run:
        for worker in server.workers() * depth(1, 3):
            time.sleep(0.1)
            os.kill(worker, signal.SIGSTOP)
            time.sleep(0.7)
            os.kill(worker, signal.SIGCONT)
    judge(run, program)
