"""`snapshot restore` and `defrag` on a disk that fails and dies at each of their steps."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from quorate.core._bolt import Bolt
from quorate.core._boltwriter import BoltWriter
from quorate.core._disk import DiskError
from quorate.core._walread import WalReader
from quorate.core.apply import State
from quorate.core.backend import find_start, open_backend
from quorate.core.backend import restore as read_backend
from quorate.core.errors import Fatal
from quorate.core.logs import Logger
from quorate.core.members import Cluster, initial_members
from quorate.core.snapfile import read_snapshot
from quorate.ctl import restore as module
from quorate.ctl.commandline import CommandError
from quorate.ctl.restore import Plan, check_places, marks, revision_key
from quorate.ctl.rewriting import defragment
from tests.depth import depth, seed
from tests.sim.disk import SimDisk
from tests.test_backend import Buckets, lease, pair, revision

HOW = ["nothing", "all", "prefix", "sectors"]
MEMBERS = tuple(initial_members({"one": ["http://a:1"], "two": ["http://b:1", "http://c:1"]}, "t"))
PLAN = Plan(MEMBERS, "two", "/d")
SOURCE: Buckets = {
    b"alarm": {b"\x08\x07\x10\x01": b""},
    b"auth": {b"authRevision": bytes(8)},
    b"cluster": {b"clusterVersion": b"3.5.0"},
    b"key": {revision(at): pair(b"k%d" % at, at, bytes(300)) for at in range(2, 32)},
    b"lease": {bytes(7) + b"\5": lease(5, 100)},
    b"members": {b"7": b"of another cluster"},
    b"members_removed": {b"8": b"removed"},
    b"meta": {
        b"consistent_index": (99).to_bytes(8, "big"),
        b"term": (7).to_bytes(8, "big"),
        b"confState": b"of another cluster",
        b"known to a later etcd": b"kept",
    },
    b"of a later etcd": {b"a": b"b"},
}


def restore(disk: SimDisk, bolt: Bolt, plan: Plan) -> None:
    """With a small log: it is zeros."""
    module.restore(disk, bolt, plan, segment_bytes=8192)


def source(
    buckets: Buckets = SOURCE, disk: SimDisk | None = None, path: str = "/file", fill: int = 100
) -> bytes:
    disk = disk or SimDisk(random.Random(0))
    writer = BoltWriter(disk, path, fill_percent=fill)
    for name, pairs in buckets.items():
        writer.begin(name)
        for key, value in sorted(pairs.items()):
            writer.put(key, value)
        writer.end()
    writer.finish()
    return bytes(disk.file(path).data)


FILE = source()


def content(data: bytes) -> dict[bytes, dict[bytes, bytes | None]]:
    bolt = Bolt(data)
    bolt.check()
    return {name: dict(bolt.items(name)) for name in bolt.buckets()}


def is_there(disk: SimDisk, plan: Plan = PLAN) -> bool:
    """Whether the directory has a member; what it has must be whole."""
    snap = f"{plan.data_dir}/member/snap"
    if disk.list(f"{plan.data_dir}/member") is None:
        return False
    assert read_snapshot(disk, snap, f"{1:016x}-{2:016x}.snap") == Cluster(plan.members)
    backend = open_backend(disk, snap)
    assert backend is not None
    wal = plan.wal_dir or f"{plan.data_dir}/member/wal"
    start = find_start(backend, disk, snap, wal)
    state = State([], Logger(()))
    read_backend(backend, start, state, Logger(()))
    reader = WalReader(disk, wal, start.index, start.term)
    for run in reader:
        assert run.last_index <= reader.commit
        state.applier.apply(run)
    reader.close()
    assert (state.applied, reader.snapshots) == (2, [(0, 0), (2, 1)])
    assert state.members.list() == list(plan.members)
    assert state.conf_state() == plan.conf_state
    return True


def new_disk(chance: random.Random) -> SimDisk:
    disk = SimDisk(chance)
    disk.make_directory("/d")
    disk.sync_directory("/")
    return disk


def test_what_a_restored_file_holds() -> None:
    disk = new_disk(random.Random(0))
    restore(disk, Bolt(FILE), PLAN)
    assert is_there(disk)
    found = content(bytes(disk.file("/d/member/snap/db").data))
    members = {b"%x" % member.id: member.to_json() for member in MEMBERS}
    voters = b",".join(b"%d" % member.id for member in MEMBERS)
    assert found == {
        **SOURCE,
        b"members": members,
        b"members_removed": {},
        b"meta": {
            b"confState": b'{"voters":[' + voters + b'],"auto_leave":false}',
            b"consistent_index": (2).to_bytes(8, "big"),
            b"known to a later etcd": b"kept",
            b"term": (1).to_bytes(8, "big"),
        },
    }


def test_a_bump_of_the_revision() -> None:
    disk = new_disk(random.Random(0))
    plan = Plan(MEMBERS, "two", "/d", bump=1000)
    restore(disk, Bolt(FILE), plan)
    assert is_there(disk, plan)
    found = content(bytes(disk.file("/d/member/snap/db").data))
    assert found[b"key"] == {**SOURCE[b"key"], revision(1031): b""}
    assert found[b"meta"][b"scheduledCompactRev"] == revision(1031)
    assert revision_key(1031) == revision(1031)


def test_a_bump_of_nothing() -> None:
    empty = Bolt(source({b"meta": {}}))
    assert marks(empty, Plan(MEMBERS, "one", "/d", bump=5))[b"scheduledCompactRev"] == revision(5)


def test_a_bump_too_far() -> None:
    with pytest.raises(CommandError, match="larger than any"):
        restore(new_disk(random.Random(0)), Bolt(FILE), Plan(MEMBERS, "two", "/d", bump=2**63 - 5))


@pytest.mark.parametrize("wal_dir", ["", "/logs/wal"])
def test_a_log_elsewhere(wal_dir: str) -> None:
    disk = new_disk(random.Random(0))
    plan = Plan(MEMBERS, "one", "/d", wal_dir)
    restore(disk, Bolt(FILE), plan)
    assert is_there(disk, plan)
    assert (disk.list("/d/member") == ["snap"]) is bool(wal_dir)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("wal_dir", ["", "/logs/wal"])
def test_a_restore_that_dies_leaves_a_member_or_none(wal_dir: str, how: str) -> None:
    chance = random.Random(seed())
    plan = Plan(MEMBERS, "one", "/d", wal_dir)
    disk = new_disk(chance)
    before = disk.operations
    restore(disk, Bolt(FILE), plan)
    count = disk.operations - before
    assert count > 20
    for die_at in list(range(1, count + 2)) * depth(1, 20):
        disk = new_disk(chance)
        disk.die_at = disk.operations + die_at
        done = not dies(lambda disk=disk: restore(disk, Bolt(FILE), plan))  # type: ignore[misc]
        after = disk.crash(how)
        there = is_there(after, plan)
        assert there or not done, f"seed {seed()}, {how} at {die_at}"
        if there or (wal_dir and after.list(wal_dir)):
            continue
        check_places(after, Plan(MEMBERS, "one", "/d"))
        restore(after, Bolt(FILE), plan)
        assert is_there(after.crash(how), plan), f"seed {seed()}, {how} at {die_at}"


def dies(work: Callable[[], object]) -> bool:
    try:
        work()
    except DiskError:
        return True
    return False


def test_a_restore_on_a_disk_that_fails() -> None:
    """Full, or broken: each operation in turn; the error says which."""
    at = 0
    while True:
        at += 1
        disk = new_disk(random.Random(0))
        disk.fail_at = disk.operations + at
        if not dies(lambda disk=disk: restore(disk, Bolt(FILE), PLAN)):  # type: ignore[misc]
            break
        assert not disk.handles
        disk.fail_at = None
        if disk.list("/d/member") is None:
            restore(disk, Bolt(FILE), PLAN)
        assert is_there(disk)
    assert at > 20


def test_places_that_are_taken() -> None:
    disk = new_disk(random.Random(0))
    check_places(disk, PLAN)
    check_places(disk, Plan(MEMBERS, "one", "/none"))
    disk.make_directory("/d/member.restoring")
    check_places(disk, PLAN)
    disk.make_directory("/d/other")
    with pytest.raises(CommandError, match='data-dir "/d" not empty or could not be read'):
        check_places(disk, PLAN)
    with pytest.raises(CommandError, match='wal-dir "/proc" exists'):
        check_places(disk, Plan(MEMBERS, "one", "/none", "/proc"))


def test_a_damaged_page_stops_a_restore() -> None:
    bad = bytearray(FILE)
    bad[3 * 4096 + 8] ^= 1
    disk = new_disk(random.Random(0))
    with pytest.raises(Fatal, match="page 3"):
        restore(disk, Bolt(bytes(bad)), PLAN)
    assert not is_there(disk)


# --- defrag


def defragged(disk: SimDisk) -> None:
    data = bytes(disk.file("/d/db").data)
    defragment(disk, "/d", Bolt(data))


def test_a_defragmented_file_holds_the_same() -> None:
    disk = new_disk(random.Random(0))
    assert len(source(SOURCE, disk, "/d/db", 40)) > len(FILE)
    disk.sync_directory("/d")
    defragged(disk)
    assert content(bytes(disk.file("/d/db").data)) == SOURCE
    assert disk.list("/d") == ["db"]
    assert bytes(disk.file("/d/db").data) == FILE


@pytest.mark.parametrize("how", HOW)
def test_a_defrag_that_dies_leaves_the_file(how: str) -> None:
    chance = random.Random(seed())
    for die_at in list(range(1, 15)) * depth(2, 50):
        disk = new_disk(chance)
        source(SOURCE, disk, "/d/db", 40)
        disk.sync_directory("/d")
        disk.die_at = disk.operations + die_at
        done = not dies(lambda disk=disk: defragged(disk))  # type: ignore[misc]
        after = disk.crash(how)
        assert not done or bytes(after.file("/d/db").data) == FILE
        assert content(bytes(after.file("/d/db").data)) == SOURCE, f"seed {seed()}, {die_at}"
        defragged(after)
        assert after.list("/d") == ["db"]
