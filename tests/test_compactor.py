"""core/compactor: when etcd would compact to what, by a clock that is the test's."""

from __future__ import annotations

import pytest

from quorate.core.compactor import (
    HOUR_MILLISECONDS,
    Compactor,
    Periodic,
    Retention,
    Revisions,
    make_compactor,
    read_retention,
)

MINUTE = 60_000
HOUR = HOUR_MILLISECONDS


class World:
    """A clock, and a revision that goes up by `rate` with every minute."""

    def __init__(self, rate: int = 100) -> None:
        self.now = 5_000
        self.rate = rate
        self.leads = True
        self.fails = False

    @property
    def revision(self) -> int:
        return 1 + self.rate * (self.now - 5_000) // MINUTE

    def run(self, compactor: Compactor, milliseconds: int) -> list[tuple[float, int]]:
        """Let time go by; answers (minute, revision) of each compaction that was asked for."""
        found = []
        end = self.now + milliseconds
        while compactor.due <= end:
            assert compactor.due > self.now
            self.now = compactor.due
            target = compactor.poll(self.now, self.revision, self.leads)
            if target is not None:
                found.append(((self.now - 5_000) / MINUTE, target))
                if not self.fails:
                    compactor.succeeded(target, self.now)
        self.now = end
        return found


def periodic(world: World, retention: int) -> Periodic:
    return Periodic(retention, world.now, world.revision)


def test_nothing_is_compacted_before_the_retention_is_over() -> None:
    world = World()
    compactor = periodic(world, HOUR)
    assert world.run(compactor, HOUR - 1) == []
    assert world.run(compactor, 1) == [(60, 1)]


@pytest.mark.parametrize("minutes", [1, 10, 59, 60])
def test_up_to_an_hour_it_compacts_once_in_a_retention(minutes: int) -> None:
    world = World()
    compactor = periodic(world, minutes * MINUTE)
    # As in etcd: 10 intervals ago the first time, then 11.
    expected = [(minutes, 1)]
    expected += [(minutes * n, 1 + (1000 * n - 1100) * minutes // 10) for n in range(2, 6)]
    assert world.run(compactor, 5 * minutes * MINUTE) == expected


def test_above_an_hour_it_compacts_hourly_to_what_is_as_old_as_the_retention() -> None:
    world = World()
    found = world.run(periodic(world, 24 * HOUR), 27 * HOUR)
    expected = [(60 * hour, 1 + 6000 * (hour - 24) - 600) for hour in range(25, 28)]
    assert found == [(24 * 60, 1), *expected]


def test_an_hour_is_sampled_ten_times() -> None:
    world = World()
    compactor = periodic(world, 2 * HOUR)
    assert compactor.due == world.now + 6 * MINUTE
    compactor = periodic(world, 10_000)
    assert compactor.due == world.now + 1000


def test_nothing_written_is_nothing_compacted() -> None:
    world = World(rate=0)
    compactor = periodic(world, 10 * MINUTE)
    assert world.run(compactor, 60 * MINUTE) == [(10, 1)]
    # The first sample that is another is compacted to at once, when it is the oldest.
    world.rate = 1
    assert world.run(compactor, 13 * MINUTE) == [(72, 62)]


def test_a_failure_is_tried_again_with_the_next_sample() -> None:
    world = World()
    world.fails = True
    compactor = periodic(world, 10 * MINUTE)
    assert world.run(compactor, 12 * MINUTE) == [(10, 1), (11, 1), (12, 101)]
    world.fails = False
    assert world.run(compactor, 12 * MINUTE) == [(13, 201), (23, 1201)]
    assert compactor.retry_milliseconds == MINUTE


def test_only_the_leader_compacts_and_a_new_one_knows_the_past() -> None:
    for kind in ("periodic", "revision"):
        world = World()
        world.leads = False
        compactor = make_compactor(Retention(kind, 10 * MINUTE), world.now, world.revision)
        assert compactor is not None
        assert world.run(compactor, 35 * MINUTE) == []
    world = World()
    world.leads = False
    compactor = periodic(world, 10 * MINUTE)
    world.run(compactor, 35 * MINUTE)
    world.leads = True
    assert world.run(compactor, MINUTE) == [(36, 1 + 100 * 25)]


def test_by_revision_it_looks_each_five_minutes() -> None:
    world = World()
    compactor = Revisions(1000, world.now)
    assert world.run(compactor, 21 * MINUTE) == [(10, 1), (15, 501), (20, 1001)]
    assert compactor.retry_milliseconds == 5 * MINUTE


def test_by_revision_nothing_is_compacted_twice() -> None:
    world = World()
    compactor = Revisions(1000, world.now)
    world.run(compactor, 20 * MINUTE)
    world.rate = 0
    world.now += MINUTE
    assert compactor.poll(compactor.due, 2001, True) is None
    assert compactor.poll(compactor.due, 2002, True) == 1002
    # It failed, so that it is asked for again.
    assert compactor.poll(compactor.due, 2002, True) == 1002


def test_by_revision_there_must_be_more_than_are_kept() -> None:
    compactor = Revisions(10, 0)
    assert compactor.poll(compactor.due, 10, True) is None
    assert compactor.poll(compactor.due, 11, True) == 1


@pytest.mark.parametrize(
    ("mode", "text", "amount"),
    [
        ("periodic", "0", 0),
        ("periodic", "0s", 0),
        ("periodic", "1", HOUR),
        ("periodic", "+2", 2 * HOUR),
        ("periodic", "72", 72 * HOUR),
        ("periodic", "10m", 10 * MINUTE),
        ("periodic", "1h30m", 90 * MINUTE),
        ("periodic", "2.5s", 2500),
        ("periodic", "1ms", 1000),
        ("revision", "0", 0),
        ("revision", "1000", 1000),
        ("revision", "1us", 1000),
    ],
)
def test_retentions_are_read_as_etcd_reads_them(mode: str, text: str, amount: int) -> None:
    retention = read_retention(mode, text)
    assert retention == (mode, amount)
    assert (make_compactor(retention, 0, 1) is None) == (amount == 0)


@pytest.mark.parametrize("mode", ["periodic", "revision"])
@pytest.mark.parametrize("text", ["-1", "-1h", "x", "1 h", "1d"])
def test_what_is_no_retention_is_refused(mode: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"error parsing CompactionRetention|less than nothing"):
        read_retention(mode, text)
