"""A damaged backend file: refused with its place, or file and log together are the state.

A page has no checksum: a byte of a value, or of a key that keeps its place, may change unseen. In
all other places nothing is ever read wrong without a word.
"""

from __future__ import annotations

import functools
import random

import pytest

from quorate.core._bolt import Bolt, BoltError
from quorate.core.errors import Fatal
from tests.boltmodel import Model
from tests.depth import depth, seed
from tests.node_driver import DATA, Heard, Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_checkpoints import OFTEN, SNAP, Session, of_the_log, told

DB = f"{SNAP}/db"
PAGE = 4096
META_BYTES = 80
DAMAGED = "one meta page of the backend file is damaged; the log covers what the other lacks"


@functools.cache
def written() -> tuple[SimDisk, object]:
    """A stopped member with several checkpoints in one file, its whole log, and its state."""
    disk, session = new_disk(), Session(2)
    member = session.run(disk, rounds=30)
    assert member.node.state.store.compact_revision > 0
    assert member.node.applier.lessor.metrics()[4]
    member.node.close()
    disk = disk.crash("nothing")
    assert Bolt(bytes(disk.file(DB).data)).transaction > 3
    return disk, of_the_log(disk)


def damaged(at: int, data: bytes) -> SimDisk:
    disk = written()[0].copy()
    disk.file(DB).data[at : at + len(data)] = data
    return disk


def cut(size: int) -> SimDisk:
    disk = written()[0].copy()
    del disk.file(DB).data[size:]
    return disk


def judged(disk: SimDisk, logger: Heard | None = None) -> object:
    """What a member says of its state, or why it does not start.

    Its invariants are checked where that is what it should be: a number of a key-value may have
    changed unseen, too.
    """
    try:
        member = Member(disk, snapshot_count=1 << 40, logger=logger)
    except Fatal as refusal:
        return refusal
    found = told(member)
    if found == written()[1]:
        member.check()
    return found


def content(disk: SimDisk) -> dict[str, bytes | None]:
    return {path: bytes(file.data) if file else None for path, file in disk.names.items()}


def refused(disk: SimDisk, reason: str) -> None:
    """The start is refused, and nothing was touched."""
    before = content(disk)
    with pytest.raises(Fatal, match=reason):
        Member(disk)
    assert content(disk) == before


# --- metas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [0, 1])
def test_with_a_damaged_meta_the_other_is_used_and_the_log_says_so(page: int) -> None:
    good, expected = written()
    whole = bytes(good.file(DB).data)
    for bit in range(0, META_BYTES * 8, depth(7, 1)):
        at = page * PAGE + bit // 8
        heard = Heard()
        disk = damaged(at, bytes([whole[at] ^ 1 << bit % 8]))
        assert judged(disk, heard) == expected, bit
        # The header has bytes that bbolt itself does not look at.
        if bit // 8 >= 16:
            assert heard.of("warn") == [DAMAGED], bit
    heard = Heard()
    assert judged(good.copy(), heard) == expected
    assert heard.of("warn") == []


def test_after_a_damaged_meta_the_file_is_written_anew() -> None:
    disk = damaged(PAGE, bytes(PAGE))
    member = Member(disk, **OFTEN)
    for _ in range(3):
        member.put(b"more")
        member.now += 2000
    member.settle()
    assert Bolt(bytes(disk.file(DB).data)).warning is None
    assert told(member) == of_the_log(disk)
    heard = Heard()
    assert judged(disk.crash("nothing"), heard) == told(member)
    assert heard.of("warn") == []


def test_without_a_meta_the_file_is_refused() -> None:
    refused(damaged(0, bytes(2 * PAGE)), f"{DB}: page 0: .* and the other meta is bad, too")


def test_a_log_that_no_longer_covers_the_older_meta_is_refused() -> None:
    disk = new_disk()
    member = Member(disk, snapshot_count=5, max_wals=1)
    for number in range(60):
        member.put(b"%d" % (number % 7), bytes(3000))
        member.now += 2000
    member.node.close()
    disk = disk.crash("nothing")
    newest = Bolt(bytes(disk.file(DB).data)).transaction & 1
    disk.file(DB).data[newest * PAGE : newest * PAGE + PAGE] = bytes(PAGE)
    segments = [name for name in disk.list(f"{DATA}/member/wal") or () if name.endswith(".wal")]
    for name in segments[:-1]:
        disk.remove(f"{DATA}/member/wal/{name}")
    refused(disk, "no segment holds entry")


# --- pages and bits -------------------------------------------------------------------------------


def test_every_page_zeroed() -> None:
    good, expected = written()
    refusals = 0
    for page in range(2, len(good.file(DB).data) // PAGE):
        result = judged(damaged(page * PAGE, bytes(PAGE)))
        if isinstance(result, Fatal):
            refusals += 1
            assert isinstance(result, BoltError), page
            assert f"{DB}: page {page}: " in str(result)
        else:
            assert result == expected, page
    assert refusals > 5


def test_flipped_bits() -> None:
    good, expected = written()
    whole = bytes(good.file(DB).data)
    soft = Model(whole, softness=True).soft
    start = seed()
    chance = random.Random(start)
    refusals = unseen = 0
    # Zeros behind the elements of a page are most of the file, and all alike.
    places = [at for at in range(2 * PAGE, len(whole)) if whole[at] or chance.random() < 0.02]
    for at in chance.sample(places, min(len(places), depth(300, 4_000))):
        bit = chance.randrange(8)
        result = judged(damaged(at, bytes([whole[at] ^ 1 << bit])))
        where = f"seed {start}, page {at // PAGE}, offset {at % PAGE}, bit {bit}"
        if isinstance(result, Fatal):
            refusals += 1
            assert DB in str(result) or "member/wal" in str(result), where
        elif at in soft:
            unseen += result != expected
        else:
            assert result == expected, where
    print(f"QUORATE_SEED={start}: {refusals} refused, {unseen} values changed unseen")
    assert refusals > 5


def test_a_shorter_file() -> None:
    good, expected = written()
    size = len(good.file(DB).data)
    refusals = 0
    for kept in (*range(0, size, PAGE), *range(1, size, depth(PAGE - 1, 511))):
        result = judged(cut(kept))
        if isinstance(result, Fatal):
            refusals += 1
            assert isinstance(result, BoltError), kept
        else:
            assert result == expected, kept
    assert refusals > 5


# --- a file of somebody else ----------------------------------------------------------------------


def another(rounds: int, **flags: str) -> SimDisk:
    disk = new_disk()
    Session(3).run(disk, rounds=rounds, **flags).node.close()
    return disk.crash("nothing")


@pytest.mark.parametrize("rounds", [2, 30, 200])
def test_a_file_of_another_cluster_is_refused(rounds: int) -> None:
    disk = written()[0].copy()
    theirs = another(rounds, initial_cluster_token="another")
    disk.file(DB).data[:] = theirs.file(DB).data
    refused(disk, f"{DB}.*one of them is not of this member|is missing|the log ends at")


def test_a_file_that_is_newer_than_the_log_is_refused() -> None:
    disk = written()[0].copy()
    disk.file(DB).data[:] = another(200).file(DB).data
    refused(disk, r"member/wal/.*entry \d+, the last that the backend file holds, is missing")


def test_a_file_without_its_log_is_refused() -> None:
    disk = written()[0].copy()
    for name in disk.list(f"{DATA}/member/wal") or ():
        disk.remove(f"{DATA}/member/wal/{name}")
    refused(disk, f"{DB} is of a member whose log is missing")
