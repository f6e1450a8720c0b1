"""core/_wholehash: Maintenance.Hash is etcd's hash of the file that a checkpoint leaves."""

from __future__ import annotations

from quorate.core._boltwriter import BoltWriter
from quorate.core.backend import open_backend
from tests.model import crc32c
from tests.node_driver import Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_checkpoints import OFTEN, SNAP
from tests.test_upkeep import change_alarm

NOT_HASHED = (b"consistent_index", b"storageVersion", b"term")


def etcds_hash(disk: SimDisk, applied: int) -> int:
    """Bucket by bucket: its name, then all keys and values but for what raft alone moves on."""
    backend = open_backend(disk, SNAP)
    assert backend is not None
    assert backend.index == applied, "the file is older"
    hashed = bytearray()
    for bucket in sorted(backend.bolt.buckets()):
        hashed += bucket
        for key, value in backend.bolt.items(bucket):
            if bucket != b"meta" or key not in NOT_HASHED:
                hashed += key + (value or b"")
    return crc32c(bytes(hashed))


def test_it_is_the_hash_of_the_file() -> None:
    disk = new_disk()
    member = Member(disk, **OFTEN)
    for number in range(40):
        member.call("KV/Put", {"key": b"k%d" % (number % 7), "value": bytes(number * 7)})
    for lease in (5, 1 << 62, 77):
        member.call("Lease/LeaseGrant", {"ID": lease, "TTL": 6000})
    member.call("KV/DeleteRange", {"key": b"k3"})
    member.call("KV/Put", {"key": b"leased", "lease": 5})
    for _ in range(5):
        if member.node.checkpoints.saved.index == member.node.state.applied:
            break
        member.now += 100_000
        member.put(b"until a checkpoint comes with the last one")
        member.settle()
    hashed = member.call("Maintenance/Hash")["hash"]
    member.node.close()
    assert etcds_hash(disk, member.node.state.applied) == hashed
    again = Member(disk.crash("all"), **OFTEN)
    assert again.call("Maintenance/Hash")["hash"] == hashed
    again.put(b"k")
    assert again.call("Maintenance/Hash")["hash"] != hashed


def rewrite(disk: SimDisk) -> None:
    """The file as an etcd leaves it that does not write one of the marks: 3.4."""
    backend = open_backend(disk, SNAP)
    assert backend is not None
    writer = BoltWriter(disk, f"{SNAP}/db.new")
    for bucket in backend.bolt.buckets():
        writer.begin(bucket)
        for key, value in backend.bolt.items(bucket):
            if key != b"confState":
                writer.put(key, value or b"")
        writer.end()
    writer.finish()
    writer.close()
    disk.rename(f"{SNAP}/db.new", f"{SNAP}/db")


def test_until_a_checkpoint_a_file_is_hashed_as_it_is() -> None:
    member = Member(new_disk())
    member.put(b"k")
    member.node.checkpoints.wanted_index = member.node.state.applied
    member.settle()
    # Not in the file: a start applies it.
    member.put(b"later")
    before = member.call("Maintenance/Hash")["hash"]
    disk = member.node.checkpoints.disk
    assert isinstance(disk, SimDisk)
    disk = disk.crash("all")
    unlike = disk.crash("all")
    rewrite(unlike)
    assert Member(disk).call("Maintenance/Hash")["hash"] == before
    again = Member(unlike)
    hashed = again.call("Maintenance/Hash")["hash"]
    assert hashed != before
    assert list(again.node.state.unlike_rows) == [(b"meta", b"confState")]
    # What is hashed is what the etcd that wrote the file would have, once it has the same entries.
    again.node.checkpoints.wanted_index = again.node.state.applied
    again.settle()
    assert again.call("Maintenance/Hash")["hash"] == before
    again.node.close()
    rewrite(unlike)
    assert etcds_hash(unlike, again.node.state.applied) == hashed


def test_what_changed_since_the_file_was_written_is_hashed() -> None:
    """An alarm of the log's tail is not what the file says otherwise."""
    member = Member(new_disk())
    member.put(b"k")
    member.node.checkpoints.wanted_index = member.node.state.applied
    member.settle()
    change_alarm(member, 1, 77)
    # So that the log says of the alarm that it is committed; the alarm refuses what needs room.
    member.call("KV/DeleteRange", {"key": b"k"})
    hashed = member.call("Maintenance/Hash")["hash"]
    disk = member.node.checkpoints.disk
    assert isinstance(disk, SimDisk)
    again = Member(disk.crash("all"))
    assert again.node.state.unlike_rows == {}
    assert again.call("Maintenance/Hash")["hash"] == hashed


def test_writes_and_compactions_may_come_while_it_is_made() -> None:
    member = Member(new_disk())
    for number in range(2500):
        member.put(b"k%d" % (number % 50))
    expected = member.call("Maintenance/Hash")["hash"]
    asked = member.worker.start("Maintenance/Hash")
    member.turn()
    member.worker.start("KV/Put", {"key": b"later"})
    member.worker.start("KV/Compact", {"revision": 2000})
    assert member.finish(asked).result()[0]["hash"] == expected
    member.settle()
    assert member.node.state.store.finished_revision == 2000
