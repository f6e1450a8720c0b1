"""core/_wholehash: Maintenance.Hash is etcd's hash of the file that a checkpoint leaves."""

from __future__ import annotations

from quorate.core.backend import open_backend
from tests.model import crc32c
from tests.node_driver import Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_checkpoints import OFTEN, SNAP

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
