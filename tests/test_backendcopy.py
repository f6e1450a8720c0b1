"""core/backendcopy: a file of the state at one index, beside writers, on a disk that may fail."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from quorate.core import backendcopy
from quorate.core._bolt import Bolt
from quorate.core._boltwriter import BoltWriter
from quorate.core._restore import Restore
from quorate.core._storeview import StoreView
from quorate.core._wal import make_directories
from quorate.core.apply import State
from quorate.core.backend import Backend, read_members
from quorate.core.backendcopy import (
    LEAF_BYTES,
    STEP_BYTES,
    TEMPORARY,
    BackendCopy,
    remove_leftovers,
)
from quorate.core.errors import SnapshotFailedError
from quorate.core.limits import COPY_BYTES_WAITING_MAX
from quorate.core.logs import Logger
from quorate.core.snapshots import Loan
from tests.node_driver import DATA, Member, new_disk
from tests.sim.disk import SimDisk

SNAP = f"{DATA}/member/snap"
SECONDS_MAX = 10


class Lent:
    """What `open_snapshot` answered: the bytes of the file, once it came."""

    def __init__(self, member: Member) -> None:
        self.content = b""
        self.error: object = None
        self.member = member
        member.node.snapshots.open_snapshot(self.done)

    def done(self, loan: object) -> None:
        if not isinstance(loan, Loan):
            self.error = loan
            return
        source = loan.source
        assert source.head == b""
        with mmap.mmap(source.descriptor, 0, prot=mmap.PROT_READ) as mapped:
            self.content = bytes(mapped)
        assert len(self.content) == source.size
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(source.descriptor, b"x")

    def wait(self) -> Lent:
        """Turn until it came."""
        for _ in range(10_000):
            more = self.member.turn()
            if self.content or self.error is not None:
                return self
            if not more:
                assert self.member.bell.wait(SECONDS_MAX * 1000), "nobody rings"
                self.member.bell.rise()
        raise AssertionError("it never comes")


def restored(content: bytes) -> tuple[Backend, State]:
    """The state that the file is."""
    backend = Backend("copy", Bolt(content, "copy"))
    backend.bolt.check()
    state = State([], Logger((), "info"))
    pairs = Restore(backend.bolt, state.store)
    while pairs.step(100):
        pass
    pairs.finish(backend.revision(b"scheduledCompactRev"), backend.revision(b"finishedCompactRev"))
    return backend, state


@pytest.fixture
def member() -> Iterator[Member]:
    member = Member(new_disk())
    yield member
    member.node.snapshots.close()
    threads = [each for each in threading.enumerate() if each.name == "copy"]
    for thread in threads:
        thread.join(SECONDS_MAX)
        assert not thread.is_alive()


def names(member: Member) -> list[str]:
    return member.node.wal.disk.list(SNAP) or []


def test_the_state_is_in_it(member: Member) -> None:
    for number in range(300):
        member.put(b"k%03d" % (number % 50), b"v%d" % number)
    member.call("Lease/LeaseGrant", {"ID": 7, "TTL": 100})
    member.call("KV/Compact", {"revision": 200})
    backend, state = restored(Lent(member).wait().content)
    assert state.store.revision == member.revision == 301
    assert (state.store.compact_revision, state.store.finished_revision) == (200, 200)
    assert state.store.lessor.count == 1
    assert backend.index == member.node.applier.applied
    assert dict(backend.items(b"meta"))[b"term"] == member.node.raft.term.to_bytes(8, "big")
    assert list(read_members(backend).members) == member.node.state.members.list()
    assert names(member) == []


def test_writers_go_on_and_are_not_in_it(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has exactly the revisions up to its own, whatever comes between two slices."""
    monkeypatch.setattr(backendcopy, "STEP_ROUNDS", 1)
    monkeypatch.setattr(backendcopy, "STEP_PAIRS", 1)
    for number in range(100):
        member.put(b"k%03d" % number, b"old")
    revision, index = member.revision, member.node.applier.applied
    lent = Lent(member)
    member.turn()
    # From the end, of which the copy knows nothing yet.
    for number in range(90):
        member.worker.start("KV/Put", {"key": b"k%03d" % (99 - number), "value": b"new"})
        if number % 10 == 9:
            member.worker.start("KV/Compact", {"revision": member.revision})
        member.turn()
        assert not lent.content, "it was made at once"
    assert member.revision > revision + 80
    backend, state = restored(lent.wait().content)
    assert (state.store.revision, backend.index) == (revision, index)
    assert set(everything(state).values()) == {b"old"}
    member.settle()
    assert member.node.state.store.finished_revision == member.node.state.store.compact_revision


def everything(state: State) -> dict[bytes, bytes]:
    """Key and value of what lives."""
    return {key: value for key, value, *_ in StoreView(state.store).range(b"\0", b"\0")}


class SlowDisk(SimDisk):
    """Its temporary file is written when the test says so."""

    def __init__(self) -> None:
        super().__init__(random.Random(1))
        self.go = threading.Event()

    def write(
        self, handle: int, data: bytes | bytearray | memoryview, offset: int, path: str = ""
    ) -> None:
        if TEMPORARY in path:
            assert self.go.wait(SECONDS_MAX)
        super().write(handle, data, offset, path)


def test_a_slow_disk_costs_memory_up_to_a_limit_and_nobody_waits_for_it() -> None:
    disk = SlowDisk()
    make_directories(disk, SNAP)
    member = Member(disk, segment_bytes=4 * 1024 * 1024)
    for number in range(24):
        member.put(b"k%d" % number, bytes(500_000))
    lent = Lent(member)
    while member.turn():
        pass
    making = member.node.snapshots._making
    assert isinstance(making, BackendCopy)
    # What is gathered before it goes to the thread, and the slice that went beyond the limit.
    assert 0 <= making.waiting - COPY_BYTES_WAITING_MAX < 2 * 1024 * 1024
    assert not lent.content
    assert member.put(b"late") == member.revision
    disk.go.set()
    _, state = restored(lent.wait().content)
    assert len(everything(state)) == 24
    member.node.snapshots.close()


def test_slices_are_short(member: Member) -> None:
    for number in range(1000):
        member.put(b"k%05d" % number, bytes(300))
    copy = BackendCopy(member.node.wal.disk, SNAP, member.node.state, 2, member.bell.fd)
    slices = 1
    pages = copy.pages
    while copy.step():
        slices += 1
        # A leaf is closed when the next one begins.
        assert (copy.pages - pages) * 4096 <= STEP_BYTES + 2 * LEAF_BYTES
        pages = copy.pages
    assert slices > 4
    copy.close()


def test_every_failure_of_the_disk(member: Member) -> None:
    """It is told to who asked; the member and its log go on, and nothing is left."""
    disk = member.node.wal.disk
    assert isinstance(disk, SimDisk)
    for number in range(200):
        member.put(b"k%03d" % number, b"v")
    disk.fail_errno = errno.ENOSPC
    failures = 0
    while True:
        disk.fail_at = disk.operations + failures + 1
        lent = Lent(member).wait()
        if lent.content:
            break
        failures += 1
        assert isinstance(lent.error, SnapshotFailedError)
        member.put(b"later")
        assert member.node.snapshots.files == member.node.snapshots.under_way == 0
        member.call("KV/Compact", {"revision": member.revision})
        member.settle()
        store = member.node.state.store
        assert store.finished_revision == store.compact_revision, "what it held is held still"
    # Open, remove, two writes, sync, open to read.
    assert failures == 6
    assert names(member) == []
    member.check()


def test_an_end_in_the_middle(member: Member) -> None:
    for number in range(1000):
        member.put(b"k%05d" % number, bytes(300))
    lent = Lent(member)
    member.turn()
    member.node.snapshots.close()
    member.settle()
    assert (lent.content, lent.error) == (b"", None)
    assert names(member) == []


def test_an_end_when_only_the_disk_is_waited_for(member: Member) -> None:
    """Who comes first, the thread with the descriptor or the end: it is closed."""
    member.put(b"k")
    disk = member.node.wal.disk
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for late in (False, True):
        copy = BackendCopy(disk, SNAP, member.node.state, 2, member.bell.fd)
        while copy.step():
            pass
        if late:
            wait_until(lambda copy=copy: copy.made)  # type: ignore[misc]
        copy.close()
        copy.close()
        wait_until(lambda copy=copy: copy.made)  # type: ignore[misc]
    assert len(os.listdir("/proc/self/fd")) == before


def test_left_overs_are_removed_at_the_next_start(member: Member) -> None:
    disk = member.node.wal.disk
    for name in ("db.tmp.copy", "db.tmp.123", "0000000000000001-0000000000000002.snap", "keep"):
        disk.close(disk.open(f"{SNAP}/{name}", create=True))
    remove_leftovers(disk, f"{SNAP}/nowhere")
    remove_leftovers(disk, SNAP)
    assert names(member) == ["0000000000000001-0000000000000002.snap", "keep"]
    disk.close(disk.open(f"{SNAP}/db.tmp.copy", create=True))
    assert isinstance(disk, SimDisk)
    member.node.wal.close()
    Member(disk)
    assert "db.tmp.copy" not in (disk.list(SNAP) or [])


def test_what_nobody_knows_is_in_it_after_a_move() -> None:
    """Buckets of the file that the member started from go along."""
    disk = new_disk()
    member = Member(disk)
    member.put(b"k")
    content = Lent(member).wait().content
    backend, _ = restored(content)
    writer = BoltWriter(disk, f"{SNAP}/db")
    for name in [*backend.bolt.buckets(), b"later"]:
        writer.begin(name)
        for key, value in backend.items(name) if name != b"later" else [(b"one", b"1")]:
            writer.put(key, value)
        writer.end()
    writer.finish()
    member.node.snapshots.close()
    member.node.wal.close()
    again = Member(disk)
    backend, state = restored(Lent(again).wait().content)
    assert list(backend.items(b"later")) == [(b"one", b"1")]
    assert everything(state) == {b"k": b"v"}
    again.node.snapshots.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    end = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < end, "it does not end"
        time.sleep(0.001)
