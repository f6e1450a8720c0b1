"""A checkpoint holds the store as it was when it began, whatever goes on meanwhile."""

from __future__ import annotations

import random
from typing import Any

import pytest

from quorate.core._bolt import Bolt
from quorate.core._boltwriter import BoltWriter
from quorate.core._checkpoint import Checkpoint
from quorate.core._leasebucket import LeaseBucket
from quorate.core._mapping import Mapping
from quorate.core._mvcc import Store
from quorate.core._restore import Restore, checksum
from quorate.core._storeview import StoreView
from tests.core_driver import Core
from tests.depth import depth, seed
from tests.sim.disk import SimDisk

PATH = "/d/db"
KEYS = [b"k%d" % number for number in range(12)]
LEASES = (1, 2, 3, -4)


def new_writer(**how: Any) -> BoltWriter:
    disk = SimDisk(random.Random(1))
    disk.make_directory("/d")
    return BoltWriter(disk, PATH, **how)


def finish(checkpoint: Checkpoint, writer: BoltWriter, pairs: int = 10) -> Bolt:
    """Write what is left, and open the file."""
    while checkpoint.step(pairs):
        pass
    checkpoint.close()
    writer.finish()
    assert isinstance(writer.disk, SimDisk)
    bolt = Bolt(bytes(writer.disk.file(PATH).data), PATH)
    assert bolt.check().pages_free == 0
    return bolt


def restored(bolt: Bolt, compacted: int, finished: int | None = None) -> Store:
    store = Store()
    restore = Restore(bolt, store)
    while restore.step(7):
        pass
    restore.finish(max(compacted, 0), max(compacted if finished is None else finished, 0))
    store.check()
    return store


class Twins:
    """Two stores with the same writes."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.one, self.other = StoreView(Store()), StoreView(Store())

    def write(self, times: int) -> None:
        for _ in range(times):
            key, dice = self.chance.choice(KEYS), self.chance.random()
            value = self.chance.randbytes(self.chance.choice((0, 3, 400)))
            for view in (self.one, self.other):
                view.begin()
                if dice < 0.7:
                    view.put(key, value)
                elif dice < 0.9:
                    view.delete_range(key, key + b"\xff")
                else:
                    view.put(b"a", value)
                    view.delete_range(KEYS[0], KEYS[3])
                view.end()

    def compact(self) -> None:
        store = self.one.store
        oldest = max(store.compact_revision, 0)
        if store.revision > oldest + 1:
            revision = self.chance.randrange(oldest + 1, store.revision + 1)
            self.one.compact(revision)
            self.other.compact(revision)

    def go_on(self) -> None:
        """What may happen between two slices."""
        self.write(self.chance.randrange(3))
        if self.chance.random() < 0.1:
            self.compact()
        if self.chance.random() < 0.5:
            self.one.compact_step(self.chance.randrange(20))


def told(view: StoreView, compacted: int) -> object:
    """All that can be read of a store whose compactions are done."""
    everything = [
        view.range(b"\0", b"\0", revision)
        for revision in range(max(compacted, 1), view.store.revision + 1)
    ]
    return view.history(), everything


@pytest.mark.parametrize("number", range(depth(50, 1000)))
def test_it_is_the_store_as_it_was(number: int) -> None:
    chance = random.Random(seed() + number)
    twins = Twins(chance)
    for _ in range(chance.randrange(4)):
        twins.write(chance.randrange(60))
        twins.compact()
        twins.one.compact_step(chance.randrange(40))
    store = twins.one.store
    writer = new_writer(leaf_size=chance.choice((4096, 16384)))
    checkpoint = Checkpoint(store, writer)
    revision, compacted = store.revision, store.compact_revision
    assert (checkpoint.revision, checkpoint.compact_revision) == (revision, compacted)
    while twins.other.compact_step(1000):
        pass
    expected = told(twins.other, compacted)
    while checkpoint.step(chance.randrange(1, 9)):
        twins.go_on()
        store.check()
    found = restored(finish(checkpoint, writer), compacted)
    assert found.revision == revision, f"seed {seed() + number}"
    assert told(StoreView(found), compacted) == expected, f"seed {seed() + number}"
    while twins.one.compact_step(1000):
        pass
    assert store.finished_revision == store.compact_revision, "compactions still wait"
    store.check()


@pytest.mark.parametrize("number", range(depth(30, 1000)))
def test_a_file_that_is_gone_on_with_is_the_store_as_it_was(number: int) -> None:
    """It keeps garbage, and never has a gap: what it says after its compaction is the same."""
    chance = random.Random(seed() + number)
    twins = Twins(chance)
    store = twins.one.store
    disk: SimDisk | None = None
    while store.versions == 0:
        twins.write(1)
    finished = saved = 0
    for _ in range(5):
        if disk is None:
            writer = new_writer(leaf_size=chance.choice((4096, 16384)))
            assert isinstance(writer.disk, SimDisk)
            disk = writer.disk
            finished = store.compact_revision
        else:
            bolt = Bolt(bytes(disk.file(PATH).data), PATH)
            writer = BoltWriter.append_to(disk, bolt, leaf_size=chance.choice((4096, 16384)))
        checkpoint = Checkpoint(store, writer, after=saved)
        revision, compacted = store.revision, store.compact_revision
        while twins.other.compact_step(1000):
            pass
        expected = told(twins.other, compacted)
        while checkpoint.step(chance.randrange(1, 9)):
            twins.go_on()
            store.check()
        writer.finish()
        mapping = Mapping(disk, disk.open(PATH), PATH)
        assert store.values.add_mapping(mapping)
        while checkpoint.map_step(mapping, chance.randrange(1, 9)):
            twins.go_on()
            store.check()
        checkpoint.close()
        store.values.drop_mappings()
        store.check()
        saved = store.saved_revision = revision
        found = restored(Bolt(bytes(disk.file(PATH).data), PATH), compacted, finished)
        while StoreView(found).compact_step(1000):
            pass
        assert told(StoreView(found), compacted) == expected, f"seed {seed() + number}"
        if len(store.values.mappings) == 4:
            break
        twins.write(chance.randrange(20))
        twins.compact()
        twins.go_on()
    while twins.one.compact_step(1000):
        pass
    assert store.waits_for_checkpoint or store.finished_revision == store.compact_revision


def test_keys_hang_on_leases() -> None:
    core = Core()
    for lease in LEASES:
        core.grant(lease, 100)
    core.put(b"k", b"v", lease=-4)
    core.put(b"l", b"v", lease=2)
    core.call("Lease/LeaseRevoke", {"ID": 2})
    writer = new_writer()
    leases = LeaseBucket(core.lessor, whole=True)
    while leases.step(100):
        pass
    leases.take()
    leases.write(writer)
    checkpoint = Checkpoint(core.store, writer)
    bolt = finish(checkpoint, writer, 1)
    found = restored(bolt, -1)
    assert [key.hex() for key, _ in bolt.items(b"lease")] == [
        "0000000000000001",
        "0000000000000003",
        "fffffffffffffffc",
    ]
    assert found.lessor.count == 3
    assert StoreView(found).get(b"k") == (b"k", b"v", 2, 2, 1, -4)
    assert checkpoint.pairs == leases.written == 3
    # Two puts and the tombstone that the revoke wrote.
    assert len(StoreView(found).history()) == 3


def test_an_empty_store() -> None:
    writer = new_writer()
    bolt = finish(Checkpoint(Store(), writer), writer)
    assert bolt.buckets() == [b"key"]
    assert restored(bolt, -1).revision == 1


def test_one_that_is_given_up_lets_compactions_go_on() -> None:
    twins = Twins(random.Random(1))
    twins.write(50)
    store = twins.one.store
    checkpoint = Checkpoint(store, new_writer())
    checkpoint.step(1)
    twins.one.compact(store.revision)
    assert not twins.one.compact_step(1000)
    assert store.finished_revision == -1
    checkpoint.close()
    checkpoint.close()
    while twins.one.compact_step(1000):
        pass
    assert store.finished_revision == store.revision


def test_a_revision_that_jumped_is_written_as_it_was_read() -> None:
    """`snapshot restore --bump-revision` leaves an empty pair, which etcd's hashes see."""
    jump = (1003).to_bytes(8, "big") + b"_" + bytes(8)
    writer = new_writer()
    writer.begin(b"key")
    view = StoreView()
    view.begin()
    view.put(b"a", b"b")
    view.end()
    before = new_writer()
    first = finish(Checkpoint(view.store, before), before)
    for key, value in first.items(b"key"):
        writer.put(key, value or b"")
    writer.put(jump, b"")
    writer.end()
    writer.finish()
    assert isinstance(writer.disk, SimDisk)
    bolt = Bolt(bytes(writer.disk.file(PATH).data), PATH)
    store = restored(bolt, 1003)
    pairs = list(bolt.items(b"key"))
    expected = checksum(b"key" + b"".join(key + (value or b"") for key, value in pairs))
    assert StoreView(store).hash_kv() == (expected, 1003, 1003)
    assert StoreView(store).range(b"\0", b"\0") == [(b"a", b"b", 2, 2, 1, 0)]
    again = new_writer()
    assert list(finish(Checkpoint(store, again), again).items(b"key")) == pairs
