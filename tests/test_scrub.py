"""core/_scrub and core/scrub: damage of the memory is found and stops the writes."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate.core._disk import DiskError
from quorate.core._scrub import Scrub
from quorate.core._storeview import StoreView
from quorate.core._wal import make_directories
from quorate.core.errors import CorruptError, SnapshotFailedError, TooManyRequestsError
from quorate.core.limits import SCRUB_LOOKS_PER_SECOND_MAX, SCRUB_SECONDS
from quorate.core.raft import Raft
from quorate.core.scrub import OWED_LOOKS_MAX, SCRUB_STEP, Part, Scrubbing
from tests.depth import depth, seed
from tests.messages import Message
from tests.node_driver import DATA, Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_upkeep import Log, alarms, change_alarm

DB = f"{DATA}/member/snap/db"
WAL = f"{DATA}/member/wal"


def written(versions: int = 3) -> StoreView:
    """A store with keys of some versions, a leased one and a deleted one."""
    view = StoreView()
    for number in range(versions):
        for key in (b"a", b"key", b"leased", b"z" * 700):
            view.begin()
            view.put(key, b"value %d" % number, 7 if key == b"leased" else 0)
            view.end()
    view.begin()
    view.put(b"gone", b"")
    view.end()
    view.begin()
    view.delete_range(b"gone")
    view.end()
    return view


def whole_pass(scrub: Scrub, budget: int = 3) -> str:
    """Step to the end of a pass, or to the first fault."""
    passes = scrub.passes
    while scrub.passes == passes:
        if fault := scrub.step(budget):
            return fault
    return ""


# --- what is found --------------------------------------------------------------------------------


def test_nothing_is_wrong_with_what_was_written() -> None:
    scrub = Scrub(written().store)
    assert [whole_pass(scrub, budget) for budget in (1, 2, 3, 1000)] == [""] * 4
    assert scrub.passes == 4
    assert whole_pass(Scrub(StoreView().store)) == ""


@pytest.mark.parametrize(
    ("where", "bits"), [("head", 256), ("key", 24), ("value", 56), ("lease", 64)]
)
def test_every_bit_that_flips_is_found(where: str, bits: int) -> None:
    """Sizes excepted: beyond their lowest bits they lead out of what a test may read."""
    key = b"leased" if where == "lease" else b"key"
    for bit in range(bits):
        if where == "head" and bit < 64 and bit % 32 > 5:
            continue
        for revision in (3 if key == b"key" else 4, 0):
            view = written()
            scrub = Scrub(view.store)
            assert whole_pass(scrub) == ""
            view.damage(key, where, bit, revision)
            assert whole_pass(scrub), (where, bit, revision)


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("previous", "version 7.0: the versions of its key do not hang together"),
        ("newer", "version 11.0: the versions of its key do not hang together"),
        ("live", "version 11.0: the tree does not lead to it"),
        ("item", "version 11.0: the tree does not lead to it"),
    ],
)
def test_links_that_lead_astray_are_found(where: str, fault: str) -> None:
    view = written()
    view.damage(b"key", where)
    assert whole_pass(Scrub(view.store)) == fault


def test_writes_and_compactions_go_on_during_a_pass() -> None:
    chance = random.Random(seed())
    view = written()
    scrub = Scrub(view.store)
    for _ in range(depth(3000, 100_000)):
        dice = chance.random()
        key = b"k%d" % chance.randrange(50)
        if dice < 0.6:
            view.begin()
            view.put(key, chance.randbytes(chance.choice((0, 5, 100, 9000))))
            view.end()
        elif dice < 0.75:
            view.begin()
            view.delete_range(key, key + b"5")
            view.end()
        elif dice < 0.8 and view.store.compact_revision < view.store.revision:
            view.compact(
                chance.randint(max(view.store.compact_revision, 0) + 1, view.store.revision)
            )
        elif dice < 0.9:
            view.compact_step(chance.randrange(20))
        assert scrub.step(chance.randrange(30)) == "", f"seed {seed()}"
    assert scrub.passes > 3
    view.store.check()


def test_what_was_restored_is_sealed_by_the_first_pass(tmp_path: Path) -> None:
    """Reading a file touches no value; the first pass does."""
    view = written()
    before = Scrub(view.store)
    view.damage(b"key", "unsealed")
    assert whole_pass(before) == ""
    view.damage(b"key", "value", 9)
    assert "checksum" in whole_pass(before)


# --- the duty -------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "log")
    yield log
    os.close(log.descriptor)


def pass_seconds(member: Member, seconds: float) -> None:
    end = member.now + round(seconds * 1000)
    while member.now < end:
        due = member.node.due()
        assert due is not None
        member.now = min(max(due, member.now + 100), end)
        member.settle()


def filled(member: Member, keys: int) -> None:
    for number in range(keys):
        member.put(b"%05d" % number)


def test_a_fault_raises_the_alarm_within_a_minute_and_stops_writes(log: Log) -> None:
    member = Member(new_disk(), logger=log.logger)
    filled(member, 500)
    view = StoreView(member.node.state.store)
    view.damage(b"00321", "value", 3)
    pass_seconds(member, 60)
    own = member.node.wal.node_id
    assert alarms(member) == [{"memberID": own, "alarm": 2}]
    [line] = log.lines("corruption")
    assert line["level"] == "error"
    assert line["what"] == "version 323.0: its checksum is wrong"
    calls: dict[str, Message] = {
        "KV/Put": {"key": b"k"},
        "KV/DeleteRange": {"key": b"k"},
        "KV/Txn": {"success": [{"request_put": {"key": b"k"}}]},
        "KV/Compact": {"revision": 5},
        "Lease/LeaseGrant": {"ID": 1, "TTL": 60},
    }
    for name, asked in calls.items():
        assert member.refused(name, asked) is CorruptError, name
    assert member.refused("KV/Range", {"key": b"00001"}) is None
    # Disarmed, the fault is found again.
    change_alarm(member, 2, own, 2)
    member.put(b"k")
    pass_seconds(member, 60)
    assert alarms(member) == [{"memberID": own, "alarm": 2}]
    assert len(log.lines("corruption")) == 2


def test_a_restart_heals_what_only_the_memory_had() -> None:
    disk = new_disk()
    member = Member(disk)
    filled(member, 300)
    StoreView(member.node.state.store).damage(b"00100", "value", 3)
    pass_seconds(member, 60)
    assert alarms(member)
    member = Member(disk.crash("all"))
    change_alarm(member, 2, member.node.wal.node_id, 2)
    pass_seconds(member, 130)
    assert alarms(member) == []
    assert member.everything()[b"00100"][0] == b"v"


def test_an_alarm_that_raft_refused_is_raised_later(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = Member(new_disk(), logger=log.logger)
    filled(member, 300)
    StoreView(member.node.state.store).damage(b"00100", "value", 3)

    def refuse(raft: Raft, run: object) -> None:
        raise TooManyRequestsError

    with monkeypatch.context() as patch:
        patch.setattr(Raft, "propose", refuse)
        pass_seconds(member, 60)
    assert 0 < len(log.lines("was not taken")) < 62
    assert alarms(member) == []
    pass_seconds(member, 2)
    assert alarms(member)


class Counter:
    """A looker that counts."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.looked: list[int] = []

    @property
    def passes(self) -> int:
        return sum(self.looked) // self.size

    def step(self, looks: int) -> str:
        self.looked.append(looks)
        return ""


def counting(*counters: Counter) -> list[Part]:
    return [Part("", counter, lambda fault: None) for counter in counters]


@pytest.mark.parametrize("turn_milliseconds", [0.1, 1, 100, 1000])
def test_a_pass_takes_its_time_however_often_the_node_turns(turn_milliseconds: float) -> None:
    member = Member(new_disk())
    counter = Counter(20_000)
    member.now = 1_000_000
    scrubbing = Scrubbing(member.node, counting(counter))
    for turn in range(round(10_000 / turn_milliseconds)):
        member.now = 1_000_000 + int(turn * turn_milliseconds)
        while scrubbing.step(member.now):
            pass
    looked = sum(counter.looked)
    assert looked == pytest.approx(20_000 * 10 / SCRUB_SECONDS, rel=0.3, abs=OWED_LOOKS_MAX * 0.1)
    assert max(counter.looked) <= SCRUB_STEP


def test_the_parts_take_turns_and_share_the_time() -> None:
    member = Member(new_disk())
    counters = [Counter(10_000), Counter(30_000)]
    scrubbing = Scrubbing(member.node, counting(*counters))
    for _ in range(round(SCRUB_SECONDS * 10)):
        member.now += 100
        while scrubbing.step(member.now):
            pass
    for counter in counters:
        assert sum(counter.looked) == pytest.approx(counter.size, abs=OWED_LOOKS_MAX * 0.2)


def test_however_much_there_is_no_more_is_looked_at_than_two_percent_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member = Member(new_disk())
    counter = Counter(20_000)
    scrubbing = Scrubbing(member.node, counting(counter), seconds=1e-9)
    for _ in range(100):
        member.now += 100
        while scrubbing.step(member.now):
            pass
    assert sum(counter.looked) <= SCRUB_LOOKS_PER_SECOND_MAX * 10
    assert sum(counter.looked) > SCRUB_LOOKS_PER_SECOND_MAX * 9
    # A process that stood still does not make up for all of it.
    counter.looked.clear()
    member.now += 3_600_000
    while scrubbing.step(member.now):
        pass
    assert sum(counter.looked) <= OWED_LOOKS_MAX


# --- what follows from damaged files --------------------------------------------------------------


def saved(disk: SimDisk, log: Log, keys: int = 300, **flags: Any) -> Member:
    """A member whose file has all that was written."""
    member = Member(disk, **{"logger": log.logger, "max_wals": 0, **flags})
    filled(member, keys)
    member.node.checkpoints.wanted_index = member.node.applier.applied
    member.settle()
    return member


def test_a_damaged_file_raises_the_alarm_and_is_not_gone_on_with(log: Log) -> None:
    disk = new_disk()
    member = saved(disk, log)
    content = disk.file(DB).data
    pass_seconds(member, 60)
    assert alarms(member) == []
    at = bytes(content).index(b"00123")
    content[at] ^= 1
    pass_seconds(member, 60)
    own = member.node.wal.node_id
    assert alarms(member) == [{"memberID": own, "alarm": 2}]
    [line] = log.lines("corruption")
    assert line["where"] == "backend file"
    assert "bucket key: revision 125.0: in memory it is of another key" in line["what"]
    assert member.refused("KV/Put", {"key": b"k"}) is CorruptError
    assert member.everything()[b"00123"][0] == b"v"
    # Nobody gets a copy of it, and no checkpoint replaces it, also not when the server stops.
    before = bytes(content), disk.list(WAL)
    answers: list[object] = []
    member.node.snapshots.open_snapshot(answers.append)
    member.settle()
    assert [type(answer) for answer in answers] == [SnapshotFailedError]
    member.node.checkpoints.wanted_index = member.node.applier.applied
    pass_seconds(member, 60)
    member.node.close()
    assert (bytes(content), disk.list(WAL)) == before


def test_a_file_that_is_in_order_again_is_gone_on_with(log: Log) -> None:
    disk = new_disk()
    member = saved(disk, log)
    content = disk.file(DB).data
    content[3 * 4096 + 100] ^= 4
    pass_seconds(member, 60)
    assert alarms(member)
    content[3 * 4096 + 100] ^= 4
    change_alarm(member, 2, member.node.wal.node_id, 2)
    pass_seconds(member, 130)
    assert alarms(member) == []
    member.put(b"k")
    member.node.checkpoints.wanted_index = member.node.applier.applied
    member.settle()
    assert member.node.checkpoints.saved.index >= member.node.applier.applied - 1
    pass_seconds(member, 130)
    assert alarms(member) == []


def test_a_checkpoint_under_way_is_given_up(log: Log) -> None:
    disk = new_disk()
    member = saved(disk, log, keys=1000)
    checkpoints = member.node.checkpoints
    content = bytes(disk.file(DB).data)
    before = checkpoints.saved
    filled(member, 1000)
    checkpoints.wanted_index = member.node.applier.applied
    member.turn()
    assert checkpoints.is_writing
    checkpoints.stop("damage")
    member.settle()
    assert not checkpoints.is_writing
    assert checkpoints.saved == before
    assert bytes(disk.file(DB).data)[: before.size] == content[: before.size]
    checkpoints.go_on()
    checkpoints.wanted_index = member.node.applier.applied
    member.now += 60_000
    member.settle()
    assert checkpoints.saved.revision == member.revision
    pass_seconds(member, 130)
    assert alarms(member) == []


def test_a_damaged_log_has_its_entries_saved_at_once_and_is_kept(log: Log) -> None:
    disk = new_disk()
    member = saved(disk, log, keys=500, segment_bytes=4096, max_wals=1)
    filled(member, 500)
    index = member.node.checkpoints.saved.index
    names = disk.list(WAL) or []
    content = disk.file(f"{WAL}/{names[len(names) // 2]}").data
    content[2000] ^= 16
    pass_seconds(member, 60)
    assert alarms(member) == [{"memberID": member.node.wal.node_id, "alarm": 2}]
    [line] = log.lines("corruption")
    assert line["where"] == "log"
    assert f"{names[len(names) // 2]}: offset " in line["what"]
    assert member.node.checkpoints.saved.index > index + 400
    assert (disk.list(WAL) or [])[: len(names)] == names
    everything = member.everything()
    member.node.close()
    # What is damaged is not needed any more.
    assert Member(disk.crash("all"), max_wals=0, segment_bytes=4096).everything() == everything


class Unreadable(SimDisk):
    """A disk on which one file cannot be read."""

    errno = 0
    where = ""
    times = 0

    def read(self, handle: int, size: int, offset: int, path: str = "") -> bytes:
        if self.times and self.handles[handle] is self.names.get(self.where):
            self.times -= 1
            raise DiskError("read", self.where, self.errno)
        return super().read(handle, size, offset, path)


@pytest.mark.parametrize(
    ("number", "times", "is_fault"),
    [(errno.EIO, 1, False), (errno.EIO, 2, True), (errno.EMFILE, 2, False)],
)
@pytest.mark.parametrize("part", ["backend file", "log"])
def test_what_a_disk_cannot_read_twice_is_a_fault(
    log: Log, part: str, number: int, times: int, is_fault: bool
) -> None:
    disk = Unreadable(random.Random(1))
    make_directories(disk, f"{DATA}/member/snap")
    member = saved(disk, log)
    names = disk.list(WAL) or []
    disk.errno, disk.where = number, DB if part == "backend file" else f"{WAL}/{names[-1]}"
    disk.times = times
    pass_seconds(member, 130)
    assert disk.times == 0
    assert bool(alarms(member)) is is_fault
    assert len(log.lines("could not look for data corruption")) == (1 if is_fault else times)
