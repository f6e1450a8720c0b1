"""core/checkpoints: whatever dies or fails and wherever, file and log together are the state.

The measure is the log itself: where none of it is removed, a member that has nothing but the log
tells what the state is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from quorate.core._bolt import Bolt
from quorate.core._disk import DiskError, OsDisk
from quorate.core._restore import Restore
from quorate.core._storeview import StoreView
from quorate.core._wal import make_directories
from quorate.core.errors import SnapshotFailedError
from quorate.core.limits import CHECKPOINT_RETRY_SECONDS
from quorate.core.snapshots import Loan
from tests.depth import depth, seed
from tests.node_driver import DATA, Member, new_disk
from tests.sim.disk import SimDisk

SNAP = f"{DATA}/member/snap"
KEYS = [b"k%d" % number for number in range(8)]
# A checkpoint after two entries, without a pause: time stands still here, so there is none.
OFTEN: dict[str, Any] = {"snapshot_count": 2, "max_wals": 0}


def told(member: Member) -> object:
    """All that a store says of itself once its compactions are done."""
    store = member.node.state.store
    view = StoreView(store)
    while store.finished_revision < store.compact_revision:
        assert view.compact_step(1000) or store.finished_revision == store.compact_revision
    revisions = range(max(store.compact_revision, 1), store.revision + 1)
    return (
        store.revision,
        store.compact_revision,
        view.history(),
        [view.range(b"\0", b"\0", revision) for revision in revisions],
        view.hash_kv(),
        view.leases(),
    )


def of_the_log(disk: SimDisk) -> object:
    """What the log alone says; only if all of it is there."""
    copy = disk.copy()
    for name in copy.list(SNAP) or ():
        copy.remove(f"{SNAP}/{name}")
    member = Member(copy, snapshot_count=1 << 40)
    answer = told(member)
    member.check()
    return answer


class Session:
    """A client that does all that a store can do, until the machine dies."""

    def __init__(self, number: int) -> None:
        self.chance = random.Random(number)
        self.revision = 0
        self.lease = 100

    def run(self, disk: SimDisk, rounds: int = 12, **flags: Any) -> Member:
        """Raises DiskError."""
        member = Member(disk, **{**OFTEN, **flags})
        assert member.revision >= self.revision
        for _ in range(rounds):
            self.act(member)
            self.revision = member.revision
            member.now += 2000
        return member

    def act(self, member: Member) -> None:
        chance, store = self.chance, member.node.state.store
        dice, key = chance.random(), chance.choice(KEYS)
        if dice < 0.55:
            member.put(key, chance.randbytes(chance.choice((0, 10, 100, 3000))))
        elif dice < 0.65:
            member.call("KV/DeleteRange", {"key": key})
        elif dice < 0.73:
            self.lease += 1
            member.call("Lease/LeaseGrant", {"ID": self.lease, "TTL": 1000})
            member.call("KV/Put", {"key": key, "value": bytes(80), "lease": self.lease})
        elif dice < 0.8:
            self.act_on_lease(member)
        elif store.revision > max(store.compact_revision, 0) + 1:
            oldest = max(store.compact_revision, 0) + 1
            revision = chance.randrange(oldest, store.revision + 1)
            member.call("KV/Compact", {"revision": revision, "physical": dice < 0.9})

    def act_on_lease(self, member: Member) -> None:
        """One is revoked, or kept alive, or time brings its checkpoint or its end."""
        dice, known = self.chance.random(), StoreView(member.node.state.store).leases()
        if dice < 0.5:
            member.now += self.chance.choice((400_000, 2_000_000))
            member.settle()
        elif known and dice < 0.8:
            member.refused("Lease/LeaseRevoke", {"ID": self.chance.choice(known)[0]})
        elif known:
            member.keep_alive(self.chance.choice(known)[0])


def operations_of(number: int) -> int:
    disk = new_disk()
    Session(number).run(disk)
    return disk.operations


def survives(disk: SimDisk, session: Session, where: str) -> Member:
    """A member starts, has what it was told, and goes on; it is what the log says."""
    try:
        member = session.run(disk, rounds=0)
        member.settle()
        expected = of_the_log(disk)
        assert told(member) == expected
        member.check()
        for _ in range(3):
            session.act(member)
        session.revision = member.revision
        assert told(member) == of_the_log(disk)
    except Exception as error:
        error.add_note(where)
        raise
    return member


# --- what a checkpoint leaves ---------------------------------------------------------------------


@pytest.mark.parametrize("number", range(depth(20, 500)))
def test_a_restart_finds_the_state(number: int) -> None:
    disk, session = new_disk(), Session(seed() + number)
    for _ in range(4):
        member = session.run(disk, rounds=session.chance.randrange(25))
        if session.chance.random() < 0.5:
            member.node.close()
            assert member.node.checkpoints.saved.index >= member.node.applier.applied - 100
        disk = disk.crash(session.chance.choice(("nothing", "all")))
        survives(disk, session, f"seed {seed() + number}")
        disk = disk.crash("nothing")


def test_values_are_read_from_the_file_and_memory_is_given_back() -> None:
    disk = new_disk()
    member = Member(disk, snapshot_count=10)
    for number in range(10):
        member.put(b"%d" % number, bytes([number]) * 1000)
    member.settle()
    values = member.node.state.store.values
    assert values.blocks < 10
    assert len(values.mappings) == 1
    assert member.everything()[b"3"][0] == bytes([3]) * 1000
    member.check()


def test_a_second_checkpoint_writes_only_what_is_new() -> None:
    disk = new_disk()
    member = Member(disk, snapshot_count=100)
    for number in range(100):
        member.put(b"%d" % number, bytes(1000))
    member.settle()
    first = member.node.checkpoints.saved
    content = bytes(disk.file(f"{SNAP}/db").data)
    member.now += 5000
    for number in range(100):
        member.put(b"more %d" % number, bytes(10))
    member.settle()
    second = member.node.checkpoints.saved
    assert second.index > first.index
    assert second.mapping is first.mapping
    # All that the first had is where it was, but for the metas.
    after = bytes(disk.file(f"{SNAP}/db").data)
    assert after[8192 : first.size] == content[8192 : first.size]
    assert second.size - first.size < 20_000
    assert Bolt(after).transaction == Bolt(content).transaction + 1


def test_a_file_of_garbage_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.core.checkpoints.GARBAGE_BYTES_MIN", 0)
    disk = new_disk()
    member = Member(disk, snapshot_count=20, max_wals=0)
    for number in range(400):
        revision = member.put(b"key", bytes([number % 256]) * 2000)
        member.now += 5000
        if number % 20 == 19:
            member.call("KV/Compact", {"revision": revision, "physical": True})
    member.settle()
    assert member.node.checkpoints.saved.size < 400_000
    assert len(disk.file(f"{SNAP}/db").data) < 400_000
    assert len(member.node.state.store.values.mappings) == 1
    assert told(member) == of_the_log(disk)


def test_old_segments_and_snapshot_files_go() -> None:
    disk = new_disk()
    member = Member(disk, snapshot_count=5, max_wals=2, max_snapshots=3)
    for number in range(200):
        member.put(b"%d" % (number % 7), bytes(1000))
        member.now += 5000
    member.settle()
    names = disk.list(f"{DATA}/member/wal") or []
    assert len([name for name in names if name.endswith(".wal")]) in (2, 3)
    assert len([n for n in disk.list(SNAP) or () if n.endswith(".snap")]) in (3, 4)
    before = member.everything()
    assert Member(disk.crash("nothing")).everything() == before


def test_a_large_checkpoint_is_followed_by_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where few entries make a checkpoint large, a disk is not kept busy with them."""
    monkeypatch.setattr("quorate.core.checkpoints.CHECKPOINT_BYTES_PER_SECOND", 10_000)
    disk = new_disk()
    Member(disk, snapshot_count=100).put(b"k", bytes(100_000))
    # Now the file has much of which this log has written nothing.
    member = Member(disk.crash("nothing"), **OFTEN)
    member.put(b"k")
    member.settle()
    checkpoints = member.node.checkpoints
    first = checkpoints.saved
    assert first.size > 100_000
    for _ in range(4):
        member.put(b"k")
        member.put(b"k")
        member.now += 2000
    member.settle()
    assert checkpoints.saved is first
    member.now += 8000
    member.settle()
    assert checkpoints.saved.index == member.node.applier.applied
    # What the log has is no reason to rest.
    member.put(b"k", bytes(100_000))
    member.put(b"k")
    member.now += 2000
    member.settle()
    member.put(b"k")
    member.put(b"k")
    member.now += 2000
    member.settle()
    assert checkpoints.saved.index == member.node.applier.applied
    # Whoever asks for one gets it at once, however large the one before was.
    member.put(b"k", bytes(100_000))
    member.put(b"k")
    checkpoints.demand().step()
    member.settle()
    assert checkpoints.saved.index == member.node.applier.applied


@pytest.mark.parametrize("number", range(depth(6, 200)))
def test_leases_go_on_while_they_are_walked(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grants, revokes, keep-alives and time between the slices of all checkpoints, of which some
    find that too much has changed, some that the file has to be written anew.
    """
    monkeypatch.setattr("quorate.core.checkpoints.LEASES_STEP", 20)
    monkeypatch.setattr("quorate.core.checkpoints.GARBAGE_BYTES_MIN", 1 << 14)
    chance = random.Random(seed() + number)
    disk = new_disk()
    member = Member(disk, **OFTEN)
    walked = 0
    for at in range(600):
        known, dice = range(1, 200), chance.random()
        lease = chance.choice(known)
        if dice < 0.5:
            ttl = chance.choice((10, 1000))
            member.worker.start("Lease/LeaseGrant", {"ID": lease, "TTL": ttl})
        elif dice < 0.7:
            member.worker.start("Lease/LeaseRevoke", {"ID": lease})
        elif dice < 0.8:
            member.worker.start("Lease/LeaseKeepAlive", {"ID": lease})
        elif dice < 0.9:
            member.worker.start("KV/Put", {"key": b"%d" % (at % 9), "value": bytes(300)})
        else:
            member.now += chance.choice((100, 2000, 400_000))
        lessor = member.node.applier.lessor
        if at % 40 == 0 and not lessor.walking:
            lessor.forget_changes()
        walked += lessor.walking
        member.turn()
    member.settle()
    expected = told(member)
    assert walked > 10, f"seed {seed() + number}: {walked}"
    assert Member(disk.copy()).node.applier.lessor.noting
    assert expected == of_the_log(disk), f"seed {seed() + number}"
    assert told(Member(disk.crash("nothing"), **OFTEN)) == expected, f"seed {seed() + number}"


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["nothing", "all", "sectors"])
def test_a_crash_at_every_operation_loses_nothing(how: str) -> None:
    """Deep runs do it with more sessions.

    Not with a write that is cut at any byte, which no disk does: values here are random, and a
    record that lacks but a last byte of one bit looks like one with a flipped bit.
    """
    first = seed()
    for number in range(first, first + depth(1, 8)):
        total = operations_of(number)
        for at in range(1, total + 1, 6 // depth(1, 6)):
            disk, session = new_disk(at), Session(number)
            disk.die_at = at
            with contextlib.suppress(DiskError):
                session.run(disk)
            disk = disk.crash(how)
            # A second crash, in the recovery or after it.
            disk.die_at = 1 + at * 7 % total
            with contextlib.suppress(DiskError):
                session.run(disk, rounds=4)
            survives(disk.crash(how), session, f"seed {number}, died at {at} of {total}")


@pytest.mark.parametrize("failure", [errno.EIO, errno.ENOSPC])
def test_a_failing_operation_ends_the_checkpoint_or_the_server_but_loses_nothing(
    failure: int,
) -> None:
    number = seed()
    total = operations_of(number)
    went_on = died = 0
    for at in range(20, total + 1, 6 // depth(1, 6)):
        disk, session = new_disk(at), Session(number)
        disk.fail_at, disk.fail_errno = at, failure
        member = None
        with contextlib.suppress(DiskError):
            member = session.run(disk)
        if member is None:
            died += 1
            survives(disk.crash(), session, f"seed {number}, {at} failed")
            continue
        went_on += 1
        member.now += int(CHECKPOINT_RETRY_SECONDS * 1000)
        member.put(b"one more")
        member.put(b"and one")
        member.settle()
        assert member.node.checkpoints.saved.can_extend, f"none after {at}"
        assert told(member) == of_the_log(disk), f"seed {number}, {at} failed"
        survives(disk.crash("nothing"), session, f"seed {number}, {at} failed")
    assert min(went_on, died) > 0, (went_on, died)


@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_damaged_in_memory_is_not_written(where: str) -> None:
    """The file is as it was, and the log still has the entry: a restart brings it back."""
    disk = new_disk()
    member = Member(disk, snapshot_count=1 << 40, max_wals=0)
    member.put(b"k", bytes(100))
    StoreView(member.node.state.store).damage(b"k", where, 3)
    client = Client(member)
    member.settle()
    assert isinstance(client.error, SnapshotFailedError)
    assert not member.node.checkpoints.saved.can_extend
    assert Member(disk.crash("nothing")).everything() == {b"k": (bytes(100), 2)}


def test_what_a_crash_left_is_removed() -> None:
    disk = new_disk()
    handle = disk.open(f"{SNAP}/db.tmp.checkpoint", create=True)
    disk.write(handle, b"half", 0)
    Member(disk)
    assert "db.tmp.checkpoint" not in (disk.list(SNAP) or [])


# --- snapshots ------------------------------------------------------------------------------------


class Client:
    """Who asks for a snapshot; `content` is what a worker would send of it."""

    def __init__(self, member: Member) -> None:
        self.content = b""
        self.index = 0
        self.error: object = None
        member.node.snapshots.open_snapshot(self.done)

    def done(self, loan: object) -> None:
        if not isinstance(loan, Loan):
            self.error = loan
            return
        source = loan.source
        with os.fdopen(os.dup(source.descriptor), "rb") as file:
            file.seek(len(source.head))
            self.content = source.head + file.read(source.size - len(source.head))
        assert len(self.content) == source.size


def state_in(content: bytes) -> tuple[Bolt, StoreView]:
    bolt = Bolt(content)
    bolt.check()
    meta = dict(bolt.items(b"meta"))
    view = StoreView()
    pairs = Restore(bolt, view.store)
    while pairs.step(100):
        pass
    marks = [
        meta.get(name) or bytes(17) for name in (b"scheduledCompactRev", b"finishedCompactRev")
    ]
    scheduled, finished = (int.from_bytes(mark[:8], "big") for mark in marks)
    pairs.finish(scheduled, finished)
    while view.compact_step():
        pass
    return bolt, view


def on_a_disk(path: Path, **flags: Any) -> Member:
    make_directories(OsDisk(), f"{path}/member/snap")
    return Member(OsDisk(), data_dir=str(path), **flags)


@pytest.mark.parametrize("number", range(depth(4, 100)))
def test_a_snapshot_has_all_up_to_its_index_and_nothing_else(number: int, tmp_path: Path) -> None:
    session, member = Session(seed() + number), on_a_disk(tmp_path, **OFTEN)
    asked: list[tuple[Client, object, object]] = []
    for _ in range(8):
        for _ in range(session.chance.randrange(8)):
            session.act(member)
        client = Client(member)
        member.settle()
        store = member.node.state.store
        view = StoreView(store)
        asked.append((client, view.range(b"\0", b"\0"), view.hash_kv()[0]))
    for client, now, hashed in asked:
        assert client.error is None
        bolt, found = state_in(client.content)
        assert found.range(b"\0", b"\0") == now, f"seed {seed() + number}"
        assert found.hash_kv()[0] == hashed
        # The other meta is as good: a copy has no transaction before.
        content = bytearray(client.content)
        content[4096 * (bolt.transaction & 1) + 20] ^= 1
        assert Bolt(bytes(content)).transaction == bolt.transaction - 1
        assert state_in(bytes(content))[1].range(b"\0", b"\0") == now
    member.node.close()


def test_a_snapshot_that_cannot_be_written_is_an_error_to_who_asked() -> None:
    disk = new_disk()
    member = Member(disk, snapshot_count=1 << 40)
    member.put(b"k", bytes(100))
    disk.fail_at, disk.fail_errno = disk.operations + 3, errno.ENOSPC
    client = Client(member)
    member.settle()
    assert isinstance(client.error, SnapshotFailedError)
    assert member.put(b"k") == 3
