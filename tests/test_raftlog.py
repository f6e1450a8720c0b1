"""The log of runs: its marks, what it drops, and a naive model beside random steps."""

from __future__ import annotations

import random

import pytest

from quorate.core._run import Run
from quorate.core.raftlog import LogCompactedError, RaftLog

from .depth import depth
from .depth import seed as fresh_seed


def run_of(count: int, first_index: int, term: int, size: int = 8) -> Run:
    run = Run.of([(0, b"x" * size)] * count)
    run.assign(first_index, term)
    return run


def indexes(runs: list[Run]) -> list[tuple[int, int]]:
    return [(run.first_index, run.last_index) for run in runs]


def recovered(*counts: int, snapshot_index: int = 0, term: int = 3) -> RaftLog:
    runs = []
    first = snapshot_index + 1
    for count in counts:
        runs.append(run_of(count, first, term))
        first += count
    return RaftLog(runs, snapshot_index, 1 if snapshot_index else 0)


def test_recovered_runs_are_stable_and_not_applied() -> None:
    log = recovered(3, 2, snapshot_index=10)
    log.check()
    assert (log.snapshot_index, log.applied, log.committed) == (10, 10, 10)
    assert (log.stable, log.offered, log.last_index, log.last_term) == (15, 15, 15, 3)
    assert log.unstable_runs() == []
    assert log.committed_runs() == []


@pytest.mark.parametrize(
    "runs",
    [
        [run_of(2, 2, 1)],  # a gap at the left
        [run_of(2, 1, 1), run_of(2, 4, 1)],  # a gap
        [run_of(2, 1, 1), run_of(2, 2, 1)],  # an overlap
        [run_of(2, 1, 2), run_of(2, 3, 1)],  # a falling term
    ],
)
def test_recovered_runs_must_fit(runs: list[Run]) -> None:
    with pytest.raises(AssertionError):
        RaftLog(runs)


def test_a_run_goes_through() -> None:
    log = RaftLog()
    run = run_of(3, 1, 1)
    log.append(run)
    assert log.unstable_runs() == [run]
    log.offer()
    assert log.unstable_runs() == []
    log.commit_to(3)
    assert log.committed_runs() == [], "committed, but not on this member's disk"
    log.stable_to(3)
    assert log.committed_runs() == [run]
    log.apply_begins([run])
    assert log.committed_runs() == []
    log.applied_to(3)
    assert log.applied == 3
    log.check()


def test_a_half_committed_run_waits() -> None:
    log = recovered(4, 4)
    log.commit_to(6)
    assert indexes(log.committed_runs()) == [(1, 4)]
    log.apply_begins(log.committed_runs())
    assert log.committed_runs() == []
    log.commit_to(8)
    assert indexes(log.committed_runs()) == [(5, 8)]


def test_marks_refuse_what_cannot_be() -> None:
    log = recovered(4, 4)
    with pytest.raises(AssertionError, match="commit 9 beyond the last entry 8"):
        log.commit_to(9)
    with pytest.raises(AssertionError, match="stored 9 of 8 offered"):
        log.stable_to(9)
    log.commit_to(8)
    with pytest.raises(AssertionError, match=r"applied 4, not within 0\.\.0"):
        log.applied_to(4)
    log.apply_begins(log.committed_runs())
    with pytest.raises(AssertionError, match="applied 6, inside a run that ends at 8"):
        log.applied_to(6)


def test_marks_never_go_back() -> None:
    log = recovered(4, 4)
    log.commit_to(6)
    log.commit_to(2)
    log.stable_to(3)
    assert (log.committed, log.stable) == (6, 8)


def test_term_and_slice() -> None:
    log = RaftLog([run_of(3, 11, 2), run_of(2, 14, 2), run_of(4, 16, 5)], 10, 1)
    assert [log.term(index) for index in (10, 11, 15, 16, 19)] == [1, 2, 2, 5, 5]
    assert indexes(log.slice(12, 14)) == [(11, 13), (14, 15)]
    assert indexes(log.slice(11, 19)) == [(11, 13), (14, 15), (16, 19)]
    assert indexes(log.slice(15, 15)) == [(14, 15)]
    with pytest.raises(LogCompactedError):
        log.term(9)
    with pytest.raises(LogCompactedError):
        log.slice(10, 12)
    with pytest.raises(AssertionError):
        log.term(20)


def apply_all(log: RaftLog, count: int, size: int, runs: int) -> None:
    for _ in range(runs):
        log.append(run_of(count, log.last_index + 1, 1, size))
        log.offer()
        log.stable_to(log.last_index)
        log.commit_to(log.last_index)
        log.apply_begins(log.committed_runs())
        log.applied_to(log.last_index)
        log.check()


def test_applied_entries_are_dropped_by_count() -> None:
    log = RaftLog(entries_kept_max=100)
    apply_all(log, 7, 10, 30)
    assert (log.last_index, log.snapshot_index) == (210, 112)
    assert log.term(112) == 1


def test_applied_entries_are_dropped_by_bytes() -> None:
    log = RaftLog(bytes_kept_max=10_000)
    apply_all(log, 1, 992, 30)
    assert (log.last_index, log.snapshot_index, log.applied_bytes) == (30, 20, 10_000)


def test_one_run_larger_than_the_limit_goes_when_applied() -> None:
    log = RaftLog(bytes_kept_max=1000)
    apply_all(log, 1, 5000, 1)
    assert (log.snapshot_index, log.applied_bytes) == (1, 0)


def test_unapplied_runs_are_never_dropped() -> None:
    log = RaftLog(entries_kept_max=2, bytes_kept_max=10)
    for _ in range(10):
        log.append(run_of(5, log.last_index + 1, 1))
    log.check()
    assert (log.snapshot_index, log.unapplied_bytes) == (0, 10 * 5 * 16)


def test_unapplied_conf_change() -> None:
    change = Run.of([(1, b"")])
    change.assign(3, 1)
    log = RaftLog([run_of(2, 1, 1), change])
    log.commit_to(2)
    assert not log.has_unapplied_conf_change()
    log.commit_to(3)
    assert log.has_unapplied_conf_change()
    log.apply_begins(log.committed_runs())
    assert log.has_unapplied_conf_change()
    log.applied_to(3)
    assert not log.has_unapplied_conf_change()


def test_random_steps_against_a_model() -> None:
    seed = fresh_seed()
    print(f"QUORATE_SEED={seed}")
    chance = random.Random(seed)
    log = RaftLog(entries_kept_max=40, bytes_kept_max=2000)
    terms = {0: 0}  # the model: every entry's term, and every mark as a number
    ends = [0]
    term = stable = offered = committed = applying = applied = 0
    for _ in range(depth(4000, 400000)):
        step = chance.randrange(6)
        if step == 0:
            count = chance.randint(1, 9)
            term = max(1, term + (chance.random() < 0.1))
            log.append(run_of(count, ends[-1] + 1, term, chance.randrange(60)))
            terms.update((ends[-1] + 1 + offset, term) for offset in range(count))
            ends.append(ends[-1] + count)
        elif step == 1:
            unstable = [end for end in ends if end > offered]
            assert [run.last_index for run in log.unstable_runs()] == unstable, seed
            log.offer()
            offered = ends[-1]
        elif step == 2:
            stable = chance.randint(stable, offered)
            log.stable_to(stable)
        elif step == 3:
            committed = chance.randint(committed, ends[-1])
            log.commit_to(committed)
        elif step == 4:
            runs = log.committed_runs()
            wanted = [end for end in ends if applying < end <= min(committed, stable)]
            assert [run.last_index for run in runs] == wanted, seed
            if runs:
                log.apply_begins(runs)
                applying = wanted[-1]
        else:
            applied = chance.choice([end for end in ends if applied <= end <= applying])
            log.applied_to(applied)
        log.check()
        marks = (log.applied, log.applying, log.committed, log.stable, log.offered, log.last_index)
        assert marks == (applied, applying, committed, stable, offered, ends[-1]), seed
        index = chance.randint(log.snapshot_index, log.last_index)
        assert log.term(index) == terms[index], f"seed {seed}"
        if index > log.snapshot_index:
            last = chance.randint(index, log.last_index)
            got = indexes(log.slice(index, last))
            assert got[0][0] <= index <= got[0][1], f"seed {seed}"
            assert got[-1][0] <= last <= got[-1][1], f"seed {seed}"
