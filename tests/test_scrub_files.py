"""core/_scrubfile, core/_scrublog: damage on the disk is found, and nothing else is called so."""

from __future__ import annotations

import contextlib
import random
from itertools import pairwise
from typing import Any

import pytest

from quorate.core._bolt import Bolt
from quorate.core._disk import DiskError
from quorate.core._scrub import Scrub
from quorate.core._scrubfile import FileScrub
from quorate.core._scrublog import LogScrub
from quorate.core._storeview import StoreView
from tests.depth import depth, seed
from tests.node_driver import DATA, Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_checkpoints import KEYS, SNAP

DB = f"{SNAP}/db"
WAL = f"{DATA}/member/wal"
PAGE = 4096


class Looking:
    """The three lookers of a member, in place of the duty that paces its own."""

    def __init__(self, member: Member) -> None:
        node = member.node
        node.duties = ()
        store = node.state.store
        self.file = FileScrub(store, node.checkpoints)
        self.log = LogScrub(node.wal)
        self.lookers = (Scrub(store), self.file, self.log)

    def step(self, looks: int) -> str:
        """A slice of each; what is wrong."""
        return next(filter(None, [looker.step(looks) for looker in self.lookers]), "")


def whole_pass(looker: FileScrub | LogScrub, looks: int = 50) -> str:
    """Step to the end of a pass, or to the first fault. Raises DiskError."""
    passes = looker.passes
    while looker.passes == passes:
        if fault := looker.step(looks):
            return fault
    return ""


def filled(disk: SimDisk, **flags: Any) -> Member:
    """A member whose file has several checkpoints, branches, and values of all sizes."""
    member = Member(disk, **{"snapshot_count": 300, "max_wals": 0, **flags})
    for number in range(1000):
        member.put(b"key %d" % (number % 700), b"%d" % number * (1 + number % 150))
        if number % 250 == 249:
            member.now += 5000
            member.settle()
    member.call("Lease/LeaseGrant", {"ID": 5, "TTL": 1000})
    member.call("KV/Put", {"key": b"leased", "value": b"v", "lease": 5})
    member.call("KV/DeleteRange", {"key": b"key 7"})
    member.node.checkpoints.wanted_index = member.node.applier.applied
    member.settle()
    assert member.node.checkpoints.saved.index >= member.node.applier.applied - 1
    return member


# --- the backend file -----------------------------------------------------------------------------


def test_a_good_file_and_log_are_not_called_damaged() -> None:
    member = filled(new_disk())
    looking = Looking(member)
    for looks in (1, 7, 100, 10_000):
        assert whole_pass(looking.file, looks) == ""
        assert whole_pass(looking.log, looks) == ""
    assert member.node.checkpoints.saved.transaction > 3


def test_every_flipped_bit_of_the_file_is_found() -> None:
    disk = new_disk()
    member = filled(disk)
    scrub = FileScrub(member.node.state.store, member.node.checkpoints)
    chance = random.Random(seed())
    content = disk.file(DB).data
    size = member.node.checkpoints.saved.size
    # Of the metas only what bbolt itself looks at.
    places = [*range(16, 80), *range(PAGE + 16, PAGE + 80)]
    places += chance.sample(range(2 * PAGE, size), depth(300, 20_000))
    for at in places:
        bit = 1 << chance.randrange(8)
        content[at] ^= bit
        assert DB in whole_pass(scrub, 10_000), (at, bit)
        content[at] ^= bit
    assert whole_pass(scrub) == ""


def flip(content: bytearray, at: int, bits: int = 1) -> None:
    content[at] ^= bits


@pytest.mark.parametrize("first_pass", [True, False])
def test_what_memory_has_too_is_compared_with_it(first_pass: bool) -> None:
    """Also before anybody took the checksums of a file that a start found."""
    disk = new_disk()
    filled(disk).node.close()
    member = Member(disk.crash("all"), snapshot_count=1 << 40)
    looking = Looking(member)
    content = member.node.checkpoints.disk.file(DB).data  # type: ignore[attr-defined]
    if not first_pass:
        assert whole_pass(looking.file) == ""
    bolt = Bolt(bytes(content))
    cursor = bolt.cursor(b"key")
    assert cursor.seek((500).to_bytes(8, "big") + b"_" + bytes(8))
    at = bytes(content).index((500).to_bytes(8, "big") + b"_" + bytes(8) + b"\x0a")
    for where, reason in (
        (at + 7, "is missing|is none that was saved|keys do not ascend|is out of"),
        (at + 8, "this is no revision|keys do not ascend"),
        (at + 19, "another key"),
        (at + 17 + 9, "other numbers|another key|no key-value"),
    ):
        flip(content, where)
        fault = whole_pass(looking.file)
        assert any(one in fault for one in reason.split("|")), (where - at, fault)
        flip(content, where)
    assert whole_pass(looking.file) == ""


def test_a_file_that_lost_its_end_is_found() -> None:
    disk = new_disk()
    member = filled(disk)
    scrub = FileScrub(member.node.state.store, member.node.checkpoints)
    content = disk.file(DB).data
    whole = bytes(content)
    for size in (
        0,
        100,
        PAGE,
        5 * PAGE + 7,
        len(whole) // 2,
        member.node.checkpoints.saved.size - 1,
    ):
        content[:] = whole[:size]
        assert whole_pass(scrub) != "", size
        content[:] = whole
        # In a pass it is what the disk cannot read, and then it is known to be shorter.
        scrub.step(300)
        scrub.step(100)
        content[:] = whole[:size]
        with contextlib.suppress(DiskError):
            assert whole_pass(scrub) != "", size
        assert whole_pass(scrub) != "", size
        content[:] = whole
    assert whole_pass(scrub) == ""


def test_a_page_in_anothers_place_is_found() -> None:
    disk = new_disk()
    member = filled(disk)
    scrub = FileScrub(member.node.state.store, member.node.checkpoints)
    content = disk.file(DB).data
    for number in range(2, len(content) // PAGE - 1):
        one, other = number * PAGE, (number + 1) * PAGE
        before = bytes(content)
        content[one:other], content[other : other + PAGE] = (
            before[other : other + PAGE],
            before[one:other],
        )
        if content != before:
            assert whole_pass(scrub, 10_000) != "", number
        content[:] = before
    assert whole_pass(scrub) == ""


def test_a_version_that_only_memory_or_only_the_file_has() -> None:
    """Where no compaction can be the reason."""
    members = [Member(new_disk(), snapshot_count=1 << 40, max_wals=0) for _ in range(2)]
    for member, keys in zip(members, ([b"x"], [b"x", b"y"]), strict=True):
        for number in range(10):
            member.put(b"%d" % number)
        puts = [{"request_put": {"key": key, "value": b"v"}} for key in keys]
        member.call("KV/Txn", {"success": puts})
        member.put(b"last")
        member.node.checkpoints.wanted_index = member.node.applier.applied
        member.settle()
    stores = [member.node.state.store for member in members]
    files = [member.node.checkpoints for member in members]
    assert "revision 12.1: in memory it is missing" in whole_pass(FileScrub(stores[0], files[1]))
    assert "revision 12.1 is missing" in whole_pass(FileScrub(stores[1], files[0]))
    for store, file in zip(stores, files, strict=True):
        assert whole_pass(FileScrub(store, file)) == ""
    # Also when a compaction may take it by now, which the file cannot know of.
    view = StoreView(stores[1])
    for _ in range(2):
        view.begin()
        view.put(b"y", b"newer")
        view.end()
    view.compact(stores[1].revision)
    assert "revision 12.1 is missing" in whole_pass(FileScrub(stores[1], files[0]))


def test_an_older_meta_is_found() -> None:
    disk = new_disk()
    member = filled(disk)
    scrub = FileScrub(member.node.state.store, member.node.checkpoints)
    content = disk.file(DB).data
    newest = member.node.checkpoints.saved.transaction & 1
    content[newest * PAGE : (newest + 1) * PAGE] = bytes(PAGE)
    assert "was written here" in whole_pass(scrub)


def test_the_other_meta_is_left_alone_while_it_may_be_being_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = new_disk()
    member = filled(disk)
    checkpoints = member.node.checkpoints
    looking = Looking(member)
    monkeypatch.setattr("quorate.core.checkpoints.PAIRS_STEP", 1)
    for _ in range(10):
        member.put(b"more")
    checkpoints.wanted_index = member.node.applier.applied
    member.turn()
    assert checkpoints.is_writing
    other = 1 - (checkpoints.saved.transaction & 1)
    content = disk.file(DB).data
    before = bytes(content[other * PAGE : (other + 1) * PAGE])
    content[other * PAGE : (other + 1) * PAGE] = bytes(range(256)) * (PAGE // 256)
    assert whole_pass(looking.file) == ""
    content[other * PAGE : (other + 1) * PAGE] = before
    member.settle()
    assert not checkpoints.is_writing
    assert whole_pass(looking.file) == ""


def test_what_a_disk_cannot_read_is_told() -> None:
    disk = new_disk()
    member = filled(disk)
    looking = Looking(member)
    for scrub in (looking.file, looking.log):
        for later in (1, 3, 5):
            disk.fail_at = disk.operations + later
            with pytest.raises(DiskError):
                whole_pass(scrub)
        assert whole_pass(scrub) == ""


# --- the log --------------------------------------------------------------------------------------


def test_every_flipped_bit_of_the_log_is_found() -> None:
    disk = new_disk()
    member = filled(disk)
    scrub = LogScrub(member.node.wal)
    chance = random.Random(seed())
    names = [name for name in disk.list(WAL) or () if name.endswith(".wal")]
    assert len(names) > 3
    for name in names:
        content = disk.file(f"{WAL}/{name}").data
        end = len(bytes(content).rstrip(b"\0"))
        for at in chance.sample(range(end), min(end, depth(100, 5000))):
            bit = 1 << chance.randrange(8)
            content[at] ^= bit
            assert name in whole_pass(scrub, 10_000), (at, bit)
            content[at] ^= bit
    assert whole_pass(scrub) == ""


def ends(content: bytes) -> list[int]:
    """Where each record of a segment ends."""
    found, at = [], 0
    while word := int.from_bytes(content[at : at + 8], "little"):
        at += 8 + (word & (1 << 56) - 1) + (word >> 56 & 7 if word >> 63 else 0)
        found.append(at)
    return found


def test_a_log_that_lost_something_is_found() -> None:
    disk = new_disk()
    member = filled(disk)
    scrub = LogScrub(member.node.wal)
    names = [name for name in disk.list(WAL) or () if name.endswith(".wal")]
    for name in names[1:]:
        file = disk.names.pop(f"{WAL}/{name}")
        assert "is missing" in whole_pass(scrub), name
        disk.names[f"{WAL}/{name}"] = file
    for name, after in pairwise(names):
        content = disk.file(f"{WAL}/{name}").data
        before = bytes(content)
        content[len(before.rstrip(b"\0")) - 40 :] = bytes(len(before))
        fault = whole_pass(scrub)
        assert name in fault or after in fault, name
        content[:] = before
        # A record less, and the rest as if it had never been written.
        content[ends(before)[-2] :] = bytes(len(before) - ends(before)[-2])
        assert f"{after}: offset 0: the segment's first crc does not" in whole_pass(scrub), name
        content[:] = before
    last = disk.file(f"{WAL}/{names[-1]}").data
    whole = bytes(last)
    end = len(whole.rstrip(b"\0"))
    for size in (0, 50, end // 2, end - 1):
        last[:] = whole[:size]
        assert whole_pass(scrub) != "", size
        last[:] = whole[:size] + bytes(len(whole) - size)
        assert whole_pass(scrub) != "", size
    last[:] = whole
    assert whole_pass(scrub) == ""


def test_segments_that_are_removed_in_a_pass_are_no_fault() -> None:
    disk = new_disk()
    member = filled(disk)
    names = [name for name in disk.list(WAL) or () if name.endswith(".wal")]
    for looks in (1, 5, 20):
        for steps in (1, 3, 10):
            for removed in range(1, len(names)):
                scrub = LogScrub(member.node.wal)
                kept = dict(disk.names)
                for _ in range(steps):
                    scrub.step(looks)
                for name in names[:removed]:
                    del disk.names[f"{WAL}/{name}"]
                assert whole_pass(scrub, looks) == ""
                disk.names.update(kept)


# --- everything at once ---------------------------------------------------------------------------


def ask(member: Member, chance: random.Random) -> None:
    """Any request, and nobody waits for its end."""
    store, dice, key = member.node.state.store, chance.random(), chance.choice(KEYS)
    lease = chance.randrange(1, 4)
    put = {"key": key, "value": chance.randbytes(chance.choice((0, 10, 100, 3000)))}
    if dice < 0.5:
        member.worker.start("KV/Put", {**put, "lease": lease if dice < 0.1 else 0})
    elif dice < 0.6:
        member.worker.start("KV/DeleteRange", {"key": key, "range_end": key + b"\xff"})
    elif dice < 0.7:
        others = [{"request_put": {"key": one, "value": b"of a txn"}} for one in KEYS[:3]]
        member.worker.start("KV/Txn", {"success": others})
    elif dice < 0.8:
        member.worker.start("Lease/LeaseGrant", {"ID": lease, "TTL": 1000})
    elif dice < 0.85:
        member.worker.start("Lease/LeaseRevoke", {"ID": lease})
    elif dice < 0.92:
        member.node.checkpoints.wanted_index = member.node.applier.applied
    elif store.revision > store.compact_revision + 2:
        revision = chance.randrange(max(store.compact_revision, 0) + 1, store.revision + 1)
        member.worker.start("KV/Compact", {"revision": revision})


@pytest.mark.parametrize("number", range(depth(20, 500)))
def test_nothing_that_a_member_does_is_called_damage(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of requests, sweeps, checkpoints and passes come in any order, and so do crashes."""
    chance = random.Random(seed() + number)
    pairs_step = chance.choice((1, 5, 400))
    monkeypatch.setattr("quorate.core.checkpoints.PAIRS_STEP", pairs_step)
    monkeypatch.setattr("quorate.core.node.COMPACT_STEP", chance.choice((1, 5, 200)))
    if chance.random() < 0.5:
        monkeypatch.setattr("quorate.core.checkpoints.GARBAGE_BYTES_MIN", 0)
    disk = new_disk()
    passes = during = 0
    for _ in range(3):
        member = Member(
            disk,
            snapshot_count=chance.choice((2, 10, 50)),
            max_wals=chance.choice((0, 1, 3)),
            max_txn_ops=128,
        )
        looking = Looking(member)
        view = StoreView(member.node.state.store)
        pins: list[int] = []
        for _ in range(depth(300, 600)):
            ask(member, chance)
            store = member.node.state.store
            dice = chance.random()
            if dice < 0.05:
                pins.append(chance.randint(max(store.compact_revision, 1), store.revision))
                view.pin(pins[-1])
            elif dice < 0.1 and pins:
                view.unpin(pins.pop())
            member.now += chance.choice((0, 100, 2000))
            for _ in range(chance.randrange(5)):
                member.turn()
                during += member.node.checkpoints.is_writing
                fault = looking.step(chance.choice((1, 3, 20, 500)))
                assert fault == "", f"seed {seed() + number}"
            if dice > 0.9:
                member.settle()
                member.worker.calls.clear()
        passes += min(looker.passes for looker in looking.lookers)
        member.settle()
        member.check()
        disk = disk.crash(chance.choice(("nothing", "all")))
    assert passes > 3
    # A checkpoint in one slice is over before anybody looks.
    assert during > 0 or pairs_step == 400
