"""Each bug that etcd's storage had, told as a test: what was done, and what must be there after it.

The numbers are etcd's issues. One member on a disk that dies at each of its operations in turn.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quorate.core._bolt import Bolt
from quorate.core._disk import DiskError
from quorate.core._storeview import StoreView
from quorate.core.errors import CompactedError
from tests.core_driver import WATCH
from tests.messages import decode
from tests.node_driver import Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_checkpoints import OFTEN, SNAP, Session, of_the_log, state_in, told
from tests.test_node import held, puts, read_beside

DB = f"{SNAP}/db"
WATCHED = struct.Struct("<qqII")
HOWS = ("nothing", "all", "sectors")
# Checkpoints only when the test asks for them, and all of the log stays.
SELDOM = 1 << 40

Content = object


def checkpoint(member: Member) -> None:
    """Write one now, to its end."""
    checkpoints = member.node.checkpoints
    checkpoints.wanted_index = member.node.applier.applied
    member.settle()


def stories(
    prepare: Callable[[SimDisk], Member], work: Callable[[Member], object]
) -> Iterator[tuple[Member, SimDisk, str]]:
    """The machine dies at each operation of `work`: the member that was, and what disk it left."""
    disk = new_disk()
    member = prepare(disk)
    before = disk.operations
    work(member)
    total = disk.operations - before
    assert total > 5, total
    for at in range(1, total + 1):
        for how in HOWS:
            disk = new_disk(at)
            member = prepare(disk)
            disk.die_at = disk.operations + at
            with contextlib.suppress(DiskError):
                work(member)
            yield member, disk.crash(how), f"{how}, died at {at} of {total}"


def file_of(disk: SimDisk) -> bytes:
    """The backend file; no bytes if there is none yet."""
    return bytes(disk.file(DB).data) if "db" in (disk.list(SNAP) or ()) else b""


def now(view: StoreView) -> tuple[int, Content]:
    return view.store.revision, view.range(b"\0", b"\0")


def whole_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little garbage is enough for a whole new file."""
    monkeypatch.setattr("quorate.core.checkpoints.GARBAGE_BYTES_MIN", 0)


class Remembering(Member):
    """A member that remembers what it was after each index."""

    def __init__(self, disk: SimDisk, **flags: Any) -> None:
        self.states: dict[int, tuple[int, Content]] = {}
        super().__init__(disk, **flags)

    def turn(self) -> bool:
        try:
            return super().turn()
        finally:
            state = self.node.state
            self.states[state.applied] = now(StoreView(state.store))


def test_13766_the_index_in_the_file_is_that_of_what_is_in_it() -> None:
    """The index of the log was saved by a hook, before what its entry did: after a crash in between
    the entry was taken for applied, and its keys were missing on this member for ever.
    """

    def prepare(disk: SimDisk) -> Remembering:
        return Remembering(disk, **OFTEN)

    def work(member: Member) -> None:
        session = Session(5)
        for _ in range(8):
            session.act(member)
            member.now += 2000

    files = 0
    for member, disk, where in stories(prepare, work):
        if content := file_of(disk):
            files += 1
            bolt, view = state_in(content)
            meta = dict(bolt.items(b"meta"))
            index = int.from_bytes(meta[b"consistent_index"] or b"", "big")
            assert isinstance(member, Remembering)
            assert now(view) == member.states[index], where
    assert files > 20


def test_14370_nothing_is_answered_before_it_is_durable() -> None:
    """A lone member answered a put while the log's sync was still under way; after a crash it had
    never been.
    """
    disk = new_disk()
    member = Member(disk, snapshot_count=SELDOM)
    with held(disk) as gate:
        calls = puts(member.worker, b"k", 20)
        read_beside(member.worker)
        for _ in range(5):
            member.turn()
        assert member.node.wal.syncing
        assert not any(call.ended for call in calls)
        lost = Member(disk.crash("nothing"))
        assert lost.everything() == {}
        gate.set()
        member.settle()
    # Each by itself, and a crash at the very moment of the answer, checkpoints beside it.
    disk = new_disk()
    member = Member(disk, **OFTEN)
    for number in range(12):
        member.now += 2000
        [call] = puts(member.worker, b"%d" % number, 1)
        for _ in range(100):
            member.turn()
            if call.ended:
                break
        key = b"%d000" % number
        assert call.ended
        assert key in Member(disk.crash("nothing")).everything(), number


def test_14685_a_whole_new_file_does_not_have_entries_applied_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash in a defragmentation left a new file whose index was older than what it held: at the
    start, entries of the log were applied to it a second time.
    """
    whole_files(monkeypatch)

    def prepare(disk: SimDisk) -> Member:
        member = Member(disk, snapshot_count=SELDOM, max_wals=0)
        for number in range(12):
            member.put(b"key", b"%d" % number + bytes(3000))
        checkpoint(member)
        member.put(b"key", b"12")
        member.call("KV/Compact", {"revision": 14, "physical": True})
        return member

    def work(member: Member) -> None:
        member.put(b"other")
        assert member.node.checkpoints.wants_whole()
        checkpoint(member)

    for _, disk, where in stories(prepare, work):
        after = Member(disk, snapshot_count=SELDOM)
        assert after.revision in (14, 15), where
        [kv] = after.call("KV/Range", {"key": b"key"})["kvs"]
        assert (kv["value"], kv["version"], kv["mod_revision"]) == (b"12", 13, 14), where
        assert told(after) == of_the_log(disk), where


def test_17780_the_revision_does_not_go_back_with_a_compaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Revisions were counted from the keys in the file. The newest was a deletion, a compaction at
    it had removed it, and a crash came before that was marked as done: the revision went back, and
    was given to another write.
    """
    whole_files(monkeypatch)

    def prepare(disk: SimDisk) -> Member:
        member = Member(disk, snapshot_count=SELDOM, max_wals=0)
        member.put(b"stays")
        for _ in range(8):
            member.put(b"key", bytes(10_000))
        checkpoint(member)
        member.call("KV/DeleteRange", {"key": b"key"})
        return member

    def work(member: Member) -> None:
        member.call("KV/Compact", {"revision": 11, "physical": True})
        checkpoint(member)
        checkpoint(member)

    compacted = set()
    for _, disk, where in stories(prepare, work):
        after = Member(disk, snapshot_count=SELDOM)
        compacted.add(after.node.state.store.compact_revision)
        assert after.revision == 11, where
        assert after.put(b"next") == 12, where
        assert told(after) == of_the_log(disk), where
    assert len(compacted) == 2, compacted


def events(member: Member, start: int) -> list[tuple[int, int, bytes]]:
    """What a watcher of everything is told from a revision on: (revision, 1 = deleted, key)."""
    payload = WATCHED.pack(7, start, 0, 1) + b"\0" + b"\0"
    call = member.finish(member.worker.ask(WATCH, payload))
    assert call.error == 0, call.error
    found = [decode("WatchResponse", message)["events"] for message in call.messages]
    return [
        (event["kv"]["mod_revision"], event.get("type", 0), event["kv"]["key"])
        for some in found
        for event in some
    ]


@pytest.mark.parametrize("whole", [False, True])
def test_18089_a_compaction_at_a_deletion_leaves_it_to_watchers(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction at the revision of a deletion removed that, and who watched from there on, which
    is allowed, was not told of it.
    """
    if whole:
        whole_files(monkeypatch)

    def prepare(disk: SimDisk) -> Member:
        member = Member(disk, snapshot_count=SELDOM, max_wals=0)
        member.put(b"k", bytes(100_000))
        checkpoint(member)
        member.call("KV/DeleteRange", {"key": b"k"})
        member.put(b"other")
        return member

    def work(member: Member) -> None:
        member.call("KV/Compact", {"revision": 3, "physical": True})
        assert events(member, 3) == [(3, 1, b"k"), (4, 0, b"other")]
        checkpoint(member)

    for _, disk, where in stories(prepare, work):
        after = Member(disk, snapshot_count=SELDOM)
        assert events(after, 3) == [(3, 1, b"k"), (4, 0, b"other")], where
        checkpoint(after)
        again = Member(disk.crash("nothing"), snapshot_count=SELDOM)
        assert events(again, 3) == [(3, 1, b"k"), (4, 0, b"other")], where


def test_19179_a_watch_from_the_compacted_revision_on_hears_of_each_deletion_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys that came back after they had been deleted at the compacted revision: a watch that was
    opened there was told of the new puts, and not of the deletions before them.
    """
    disk = new_disk()
    member = Member(disk, snapshot_count=SELDOM, max_wals=0)
    for key in (b"a", b"b", b"c"):
        member.put(key, bytes(100_000 if key < b"c" else 1))
    member.call("KV/DeleteRange", {"key": b"a", "range_end": b"c"})
    expected = [(5, 1, b"a"), (5, 1, b"b"), (6, 0, b"a")]
    member.put(b"a")
    for step in range(3):
        if step == 1:
            member.call("KV/Compact", {"revision": 5, "physical": True})
        checkpoint(member)
        assert events(member, 5) == expected
        after = Member(disk.crash("nothing"), snapshot_count=SELDOM)
        assert events(after, 5) == expected
        [kv] = after.call("KV/Range", {"key": b"a"})["kvs"]
        assert (kv["create_revision"], kv["version"]) == (6, 1)
        if step == 1:
            # The next one is a file without what was compacted.
            whole_files(monkeypatch)
            member.call("KV/DeleteRange", {"key": b"none"})
            assert member.node.checkpoints.wants_whole()
    assert told(Member(disk.crash("nothing"))) == of_the_log(disk)


def test_18667_a_txn_that_reads_what_is_compacted_changes_nothing_anywhere() -> None:
    """A Txn put a key and read at a revision that was compacted. The member that was asked refused
    all of it; others, for whom the read had been left out, applied the put.
    """
    txn = {
        "success": [
            {"request_put": {"key": b"k", "value": b"new"}},
            {"request_range": {"key": b"k", "revision": 3}},
        ]
    }
    disk = new_disk()
    member = Member(disk, snapshot_count=SELDOM, max_wals=0)
    for number in range(6):
        member.put(b"k", b"%d" % number)
    checkpoint(member)
    member.call("KV/Compact", {"revision": 5})
    before = told(member)
    # The file does not have the compaction, or has it as scheduled; the log has both calls.
    for _ in range(3):
        assert member.refused("KV/Txn", txn) is CompactedError
        assert told(member) == before
        after = Member(disk.crash("nothing"), snapshot_count=SELDOM)
        assert told(after) == before == of_the_log(disk)
        assert after.refused("KV/Txn", txn) is CompactedError
        assert told(after) == before
        checkpoint(member)
    assert member.put(b"k") == 8


def test_20271_each_page_that_a_meta_names_is_what_it_was_when_that_was_written() -> None:
    """A page of the file said of itself that it was none: `Page expected to be: 5`. Whatever a
    crash leaves, both metas name whole trees, and what the older one names has not changed.
    """

    def work(member: Member) -> None:
        session = Session(9)
        for _ in range(8):
            session.act(member)
            member.now += 2000

    pairs = 0
    for _, disk, where in stories(lambda disk: Member(disk, **OFTEN), work):
        content = bytearray(file_of(disk))
        if not content:
            continue
        bolt, _ = state_in(bytes(content))
        if bolt.warning is not None:
            # The one that was being written.
            continue
        newest = bolt.transaction & 1
        content[newest * 4096 : newest * 4096 + 4096] = bytes(4096)
        older, _ = state_in(bytes(content))
        assert older.transaction == Bolt(file_of(disk)).transaction - 1, where
        pairs += 1
    assert pairs > 20
