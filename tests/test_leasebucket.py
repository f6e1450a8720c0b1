"""core/_leasebucket beside a plain copy: the file has the leases of one moment, however long it
took to look at them, and leaves in which nothing changed stay where they are.
"""

from __future__ import annotations

import random

import pytest

from quorate.core._bolt import Bolt
from quorate.core._boltwriter import BoltWriter
from quorate.core._disk import DiskError
from quorate.core._leasebucket import LeaseBucket
from quorate.core._restore import Restore
from quorate.core._storeview import StoreView
from quorate.core.errors import Fatal
from quorate.core.limits import LEASE_CHANGES_MIN, LEASE_LEAF_BYTES
from tests.core_driver import Core
from tests.depth import depth, seed
from tests.messages import delimited, encode
from tests.sim.disk import SimDisk

PATH = "/d/db"
PAGE = 4096
CHECKPOINT_FIELD, REVOKE_FIELD, GRANT_FIELD = 11, 9, 8
Row = tuple[int, int, int]


class Leases:
    """A core with leases, and the file of its checkpoints."""

    def __init__(self, number: int = 1) -> None:
        self.chance = random.Random(number)
        self.core = Core()
        self.lessor = self.core.lessor
        self.view = StoreView(self.core.store)
        self.disk = SimDisk(self.chance)
        self.disk.make_directory("/d")
        self.saved: list[Row] = []

    def grant(self, *ids: int, ttl: int = 100) -> None:
        rows = (encode("LeaseGrantRequest", {"ID": id, "TTL": ttl}) for id in ids)
        self.core.apply(*(delimited(GRANT_FIELD, row) for row in rows))

    def revoke(self, *ids: int) -> None:
        rows = (encode("LeaseRevokeRequest", {"ID": id}) for id in ids)
        self.core.apply(*(delimited(REVOKE_FIELD, row) for row in rows))

    def checkpoint(self, *ids: int, remaining: int) -> None:
        rows = (encode("LeaseCheckpoint", {"ID": id, "remaining_TTL": remaining}) for id in ids)
        self.core.apply(delimited(CHECKPOINT_FIELD, b"".join(delimited(1, row) for row in rows)))

    def change(self) -> None:
        """Something, to some lease or to many."""
        dice, ids = self.chance.random(), [row[0] for row in self.view.leases()]
        some = self.chance.sample(ids, min(len(ids), self.chance.choice((1, 3, 300))))
        if dice < 0.45:
            count = self.chance.choice((1, 2, 700))
            self.grant(*(self.chance.randrange(-(2**62), 2**62) or 1 for _ in range(count)))
        elif dice < 0.6:
            first = self.chance.randrange(1000)
            self.grant(*range(first, first + 500), ttl=77)
        elif dice < 0.8:
            self.revoke(*some)
        else:
            self.checkpoint(*some, remaining=self.chance.choice((0, 5, 10**7)))

    @property
    def content(self) -> bytes:
        return bytes(self.disk.file(PATH).data)

    def writer(self, whole: bool) -> BoltWriter:
        if whole:
            if "db" in (self.disk.list("/d") or ()):
                self.disk.remove(PATH)
            return BoltWriter(self.disk, PATH, leaf_size=65536, deferred=True)
        return BoltWriter.append_to(self.disk, Bolt(self.content, PATH), deferred=True)

    def save(self, whole: bool = False, budget: int = 1 << 40, between: int = 0) -> LeaseBucket:
        """A checkpoint, with so many changes between its steps and while it is written."""
        bucket = LeaseBucket(self.lessor, whole=whole)
        while bucket.step(budget):
            if self.chance.random() < 0.5 and between:
                between -= 1
                self.change()
        bucket.take()
        self.saved = self.view.leases()
        for _ in range(between):
            self.change()
        writer = self.writer(whole)
        bucket.write(writer)
        writer.finish()
        assert self.of_the_file() == self.saved
        self.lessor.check()
        return bucket

    def of_the_file(self) -> list[Row]:
        """What a restart finds."""
        bolt = Bolt(self.content, PATH)
        bolt.check()
        core = Core()
        restore = Restore(bolt, core.store)
        while restore.step(1000):
            pass
        return StoreView(core.store).leases()


@pytest.mark.parametrize("number", range(depth(20, 400)))
def test_the_file_has_the_leases_of_one_moment(number: int) -> None:
    leases = Leases(seed() + number)
    chance = leases.chance
    whole = True
    for _ in range(12):
        for _ in range(chance.choice((0, 1, 5))):
            leases.change()
        if chance.random() < 0.1:
            leases.lessor.forget_changes()
        try:
            bucket = leases.save(whole, chance.choice((3, 50, 1 << 40)), chance.choice((0, 0, 5)))
        except BaseException as error:
            error.add_note(f"seed {seed() + number}")
            raise
        assert bucket.is_whole or not whole
        whole = chance.random() < 0.1


def test_a_step_does_what_it_may_and_no_more() -> None:
    """A million leases are walked in slices of a turn."""
    leases = Leases()
    leases.grant(*range(1, 5001))
    bucket = LeaseBucket(leases.lessor, whole=True)
    steps = 1
    while bucket.step(100):
        steps += 1
    # Buckets count, too, and the table is half full at most.
    assert 5000 * 3 / 100 <= steps <= 5000 * 10 / 100
    bucket.close()


def test_the_table_keeps_its_size_while_it_is_walked() -> None:
    leases = Leases()
    leases.grant(*range(1, 1001))
    bucket = LeaseBucket(leases.lessor, whole=True)
    assert bucket.step(500)
    before = leases.lessor.memory()
    leases.grant(*range(10_000, 13_000))
    leases.lessor.check()
    while bucket.step(500):
        pass
    bucket.take()
    assert leases.lessor.memory() - before < 3000 * 100
    leases.grant(20_000)
    leases.revoke(*range(1, 1000))
    leases.lessor.check()
    writer = leases.writer(whole=True)
    bucket.write(writer)
    writer.finish()
    assert [row[0] for row in leases.of_the_file()] == [*range(1, 1001), *range(10_000, 13_000)]


def test_leases_that_the_table_moves_are_written_once() -> None:
    """The 129th lease has the table grow; with each one more, eight buckets move."""
    leases = Leases()
    leases.grant(*range(1, 130))
    bucket = LeaseBucket(leases.lessor, whole=True)
    assert bucket.step(100)
    leases.grant(*range(1000, 1010))
    while bucket.step(100):
        pass
    bucket.take()
    writer = leases.writer(whole=True)
    bucket.write(writer)
    writer.finish()
    assert [row[0] for row in leases.of_the_file()] == [*range(1, 130), *range(1000, 1010)]


def test_only_leaves_with_changes_are_written() -> None:
    leases = Leases()
    leases.grant(*(leases.chance.getrandbits(62) for _ in range(20_000)))
    leases.save(whole=True)
    first = leases.content
    ids = [row[0] for row in leases.view.leases()]
    leases.revoke(ids[7000])
    leases.checkpoint(ids[15_000], remaining=50)
    bucket = leases.save()
    assert not bucket.is_whole
    # Two leaves, the branches, and the root: nothing that was there before has moved.
    assert leases.content[2 * PAGE : len(first)] == first[2 * PAGE :]
    assert bucket.written < 2 * LEASE_LEAF_BYTES / 32
    assert len(leases.content) - len(first) <= 2 * LEASE_LEAF_BYTES + 7 * PAGE


def test_nothing_is_written_when_nothing_changed() -> None:
    leases = Leases()
    leases.grant(*range(1, 5001))
    leases.save(whole=True)
    size = len(leases.content)
    assert leases.save().written == 0
    assert len(leases.content) - size == PAGE, "more than the root of all buckets"


def test_a_leaf_that_stays_alone_has_no_branch() -> None:
    leases = Leases()
    first = 1 << 40
    in_leaf = -(-(LEASE_LEAF_BYTES * 7 // 8 - 16) // 33)
    leases.grant(*range(first, first + 300))
    leases.save(whole=True)
    leases.revoke(*range(first + in_leaf, first + 300))
    assert leases.save().written == 0
    # Two metas, the root of all buckets, and the leaf.
    assert Bolt(leases.content, PATH).check().pages_reached == 2 + 1 + 2
    leases.grant(first + 300)
    leases.save()


def test_leaves_stay_full_enough() -> None:
    """Whatever comes and goes, the bucket takes no more than twice what its leases do."""
    leases = Leases()
    chance = leases.chance
    leases.grant(*(chance.getrandbits(62) for _ in range(5000)))
    leases.save(whole=True)
    for round in range(60):
        ids = [row[0] for row in leases.view.leases()]
        leases.revoke(*chance.sample(ids, 100))
        leases.grant(*(chance.getrandbits(62) for _ in range(100)))
        leases.save()
        if round % 20 == 19:
            full = len(leases.content)
            leases.lessor.forget_changes()
            leases.save()
            whole = len(leases.content) - full
            bolt = Bolt(leases.content, PATH)
            assert bolt.check().pages_reached * PAGE < 2 * whole
    leases.revoke(*(row[0] for row in leases.view.leases()[1:]))
    assert leases.save().written == 1
    leases.revoke(leases.view.leases()[0][0])
    leases.save()
    assert leases.of_the_file() == []


def test_leaves_that_lost_most_become_one() -> None:
    leases = Leases()
    leases.grant(*range(1, 9001))
    leases.save(whole=True)
    for first in (1, 3001, 6001):
        leases.revoke(*(id for id in range(first, first + 3000) if id % 50))
        leases.save()
    # Two metas, the root of all buckets, a branch, and few leaves of one or two pages each.
    assert Bolt(leases.content, PATH).check().pages_reached < 4 + 10


def test_ids_that_follow_one_another_fill_leaves() -> None:
    """As those that a server chooses do; those that were granted first run out first."""
    leases = Leases()
    leases.grant(1)
    leases.save(whole=True)
    for first in range(2, 6000, 50):
        leases.grant(*range(first, first + 50))
        if first > 2000:
            leases.revoke(*range(first - 2000, first - 1950))
        assert leases.save().written < 600
    bolt = Bolt(leases.content, PATH)
    size = bolt.count(b"lease")[1]
    assert bolt.check().pages_reached * PAGE < 2 * size + 5 * LEASE_LEAF_BYTES


def test_too_many_changes_are_not_noted() -> None:
    """They take no more memory than a bound, and the next checkpoint walks."""
    leases = Leases()
    leases.grant(*range(1, 101))
    leases.save(whole=True)
    before = leases.lessor.memory()
    for _ in range(LEASE_CHANGES_MIN // 100):
        leases.checkpoint(*range(1, 101), remaining=3)
    assert leases.lessor.noting
    assert leases.lessor.memory() - before <= 32 * LEASE_CHANGES_MIN
    leases.checkpoint(*range(1, 101), remaining=4)
    assert not leases.lessor.noting
    assert leases.lessor.memory() == before
    assert leases.save().is_whole
    assert leases.lessor.noting


def test_all_changes_are_noted_while_leases_are_walked() -> None:
    leases = Leases()
    leases.grant(*range(1, 101))
    bucket = LeaseBucket(leases.lessor, whole=True)
    assert bucket.step(10)
    for _ in range(LEASE_CHANGES_MIN // 100 + 1):
        leases.checkpoint(*range(1, 101), remaining=3)
    assert leases.lessor.noting
    while bucket.step(100):
        pass
    bucket.take()
    leases.checkpoint(5, remaining=4)
    writer = leases.writer(whole=True)
    bucket.write(writer)
    writer.finish()
    assert leases.of_the_file() == [(id, 100, 3) for id in range(1, 101)]


def test_one_that_is_given_up_lets_the_table_grow() -> None:
    leases = Leases()
    leases.grant(*range(1, 1001))
    bucket = LeaseBucket(leases.lessor, whole=True)
    assert bucket.step(10)
    bucket.close()
    assert not leases.lessor.walking
    leases.grant(*range(2000, 5000))
    leases.lessor.check()
    leases.save(whole=True)


def test_changes_that_got_lost_end_the_checkpoint() -> None:
    leases = Leases()
    leases.grant(1)
    bucket = LeaseBucket(leases.lessor, whole=True)
    leases.lessor.forget_changes()
    with pytest.raises(Fatal, match="no memory for changes of leases"):
        bucket.take()


def test_a_failing_disk_ends_the_checkpoint() -> None:
    leases = Leases()
    leases.grant(*range(1, 100_001))
    bucket = LeaseBucket(leases.lessor, whole=True)
    while bucket.step(100_000):
        pass
    bucket.take()
    writer = leases.writer(whole=True)
    leases.disk.fail_at = leases.disk.operations + 1
    with pytest.raises(DiskError):
        bucket.write(writer)


def test_a_damaged_leaf_is_not_taken_over() -> None:
    """Only where something changed it is read."""
    leases = Leases()
    leases.grant(*range(1, 5001))
    leases.save(whole=True)
    content = bytearray(leases.content)
    at = content.index((2500).to_bytes(8, "big") + b"\x08")
    content[at + 9] ^= 1
    leases.disk.file(PATH).data[:] = content
    leases.revoke(2501)
    bucket = LeaseBucket(leases.lessor, whole=False)
    bucket.take()
    with pytest.raises(Fatal, match="a lease under another's id"):
        bucket.write(leases.writer(whole=False))
