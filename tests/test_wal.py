"""The write-ahead log: against its byte-level model and against every fault."""

from __future__ import annotations

import errno
import os
import random
import select
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.core._disk import DiskError, OsDisk
from quorate.core._run import Run
from quorate.core._wal import Wal
from quorate.core._walread import WalCorruptError, WalLockedError
from quorate.core.errors import Fatal
from tests import walmodel
from tests.depth import depth, seed
from tests.sim.disk import SimDisk

DIRECTORY = "/d/member/wal"
FIRST = f"{DIRECTORY}/{0:016x}-{0:016x}.wal"
SMALL = 4096
NODE, CLUSTER = 0x667880157B8812C8, 0xDC50B8DAAE93B3E0

Entry = tuple[int, int, bytes]  # type, term, data
Log = dict[int, Entry]


def run_of(index: int, term: int, *data: bytes, kind: int = 0) -> Run:
    run = Run.of([(kind, item) for item in data])
    run.assign(index, term)
    return run


def create(disk: SimDisk, segment_bytes: int = SMALL) -> Wal:
    return Wal.create(disk, DIRECTORY, NODE, CLUSTER, segment_bytes=segment_bytes, ahead=False)


def reopen(disk: SimDisk, segment_bytes: int = SMALL) -> tuple[Wal, Log]:
    wal = Wal.open(disk, DIRECTORY, segment_bytes=segment_bytes, ahead=False)
    try:
        log = recovered(wal)
        wal.check()
    except BaseException:
        wal.close()
        raise
    return wal, log


def recovered(wal: Wal) -> Log:
    log: Log = {}
    for run in wal.recover():
        assert run.last_index <= wal.commit or run.first_index > wal.commit, run
        for at, (kind, data) in enumerate(run.unpack()):
            assert run.first_index + at == len(log) + 1
            log[run.first_index + at] = (kind, run.term, data)
    assert wal.last_index == len(log)
    return log


def segments(disk: SimDisk) -> list[bytes]:
    names = disk.list(DIRECTORY)
    assert names is not None
    return [bytes(disk.file(f"{DIRECTORY}/{name}").data) for name in names if name.endswith(".wal")]


def small_log(disk: SimDisk) -> Log:
    """A dozen records of every kind, as a member's first seconds make them."""
    wal = create(disk)
    wal.append(run_of(1, 1, b"bootstrap", kind=1), (1, 0, 1))
    wal.append(run_of(2, 2, b""), (2, NODE, 1))
    wal.sync()
    wal.append(run_of(3, 2, b"a" * 30, b"b" * 300), (2, NODE, 2))
    wal.sync()
    wal.append(run_of(5, 2, b"c" * 600), (2, NODE, 4))
    wal.sync()
    wal.close()
    return {
        1: (1, 1, b"bootstrap"),
        2: (0, 2, b""),
        3: (0, 2, b"a" * 30),
        4: (0, 2, b"b" * 300),
        5: (0, 2, b"c" * 600),
    }


# --- the format ---------------------------------------------------------------


def test_the_first_bytes_are_those_etcd_3_4_wrote() -> None:
    """The head of a log that etcd 3.4.23 made for this node and cluster."""
    disk = SimDisk(random.Random(1))
    create(disk).close()
    head = bytes.fromhex(
        "0400000000000084 0804100000000000"
        "1f00000000000081 080110eac9d2fc091a1508c8a5a0dcd782a0bc6610e0e7cef4aa9baea8dc0100"
        "0e00000000000082 080510ceb2b2a3051a04080010000000"
    )
    assert bytes(disk.file(FIRST).data) == head + bytes(SMALL - len(head))


def test_records_are_those_of_the_model() -> None:
    disk = SimDisk(random.Random(1))
    log = small_log(disk)
    decoded = walmodel.decode(segments(disk))
    assert decoded.entries == log
    assert decoded.states == [(1, 0, 1), (2, NODE, 1), (2, NODE, 2), (2, NODE, 4)]
    assert decoded.snapshots == [(0, 0)]
    assert decoded.metadata == {walmodel.scalars(NODE, CLUSTER)}


class Driver:
    """The log and its model side by side."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.wal = create(disk)
        self.log: Log = {}
        self.term = 1

    def append(self, sizes: list[int]) -> None:
        data = [bytes([size % 251]) * size for size in sizes]
        self.wal.append(run_of(len(self.log) + 1, self.term, *data), None)
        self.log |= {len(self.log) + 1 + at: (0, self.term, item) for at, item in enumerate(data)}
        self.state(0)

    def override(self, back: int) -> None:
        index = max(self.wal.commit, len(self.log) - back) + 1
        if index > len(self.log):
            return
        self.term += 1
        self.log = {at: entry for at, entry in self.log.items() if at < index}
        self.log[index] = (0, self.term, b"over")
        self.wal.append(run_of(index, self.term, b"over"), None)
        self.state(0)

    def state(self, ahead: int) -> None:
        commit = min(len(self.log), self.wal.commit + ahead)
        self.wal.append(None, (self.term, NODE, commit))

    def sync(self) -> None:
        self.wal.check()
        self.wal.sync()
        decoded = walmodel.decode(segments(self.disk))
        assert decoded.entries == self.log
        assert decoded.metadata == {walmodel.scalars(NODE, CLUSTER)}

    def reopen(self) -> None:
        self.sync()
        state = self.wal.hard_state
        self.wal.close()
        self.wal, log = reopen(self.disk)
        assert log == self.log
        assert self.wal.hard_state == state


STEPS = st.one_of(
    st.tuples(
        st.just("append"),
        st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2 * SMALL)), min_size=1, max_size=9),
    ),
    st.tuples(st.just("override"), st.integers(0, 5)),
    st.tuples(st.just("state"), st.integers(0, 5)),
    st.tuples(st.sampled_from(["sync", "reopen"]), st.none()),
)


@settings(max_examples=depth(60, 3000), deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_random_appends_cuts_and_reopens_match_the_model(
    steps: list[tuple[str, list[int] | int | None]],
) -> None:
    driver = Driver(SimDisk(random.Random(1)))
    for step, argument in steps:
        method = getattr(driver, step)
        method() if argument is None else method(argument)
    driver.reopen()
    driver.wal.close()


def test_a_batch_that_does_not_fit_begins_the_next_segment() -> None:
    disk = SimDisk(random.Random(1))
    wal = create(disk)
    wal.append(run_of(1, 1, b"x" * 3000), (1, 0, 0))
    wal.append(run_of(2, 1, b"y" * 600, b"z" * 600), (1, 0, 1))
    wal.sync()
    wal.close()
    names = disk.list(DIRECTORY)
    assert names == [f"{0:016x}-{0:016x}.wal", f"{1:016x}-{2:016x}.wal"]
    assert [len(segment) for segment in segments(disk)] == [SMALL, SMALL]
    assert set(walmodel.decode(segments(disk)).entries) == {1, 2, 3}


def test_only_a_record_larger_than_a_segment_makes_one_grow() -> None:
    disk = SimDisk(random.Random(1))
    wal = create(disk)
    wal.append(run_of(1, 1, *[b"x" * 1000] * 10), (1, 0, 0))
    wal.append(run_of(11, 1, b"y" * 5000), None)
    wal.append(run_of(12, 1, b"z"), None)
    wal.sync()
    wal.close()
    sizes = [len(segment) for segment in segments(disk)]
    assert sizes == [SMALL] * (len(sizes) - 2) + [sizes[-2], SMALL]
    assert 5000 < sizes[-2] < 5300
    assert len(reopen(disk)[1]) == 12


def test_a_segment_that_begins_inside_a_batch_of_a_new_term_is_read() -> None:
    """Hypothesis found it: the head repeats a HardState older than the entries before it."""
    disk = SimDisk(random.Random(1))
    wal = create(disk)
    wal.append(run_of(1, 1, b"x"), (1, NODE, 0))
    wal.append(run_of(2, 2, *[b"y" * 900] * 8), (2, NODE, 1))
    wal.sync()
    wal.close()
    wal, log = reopen(disk)
    assert len(log) == 9
    assert wal.hard_state == (2, NODE, 1)
    wal.close()


def test_a_backend_skips_what_it_holds_and_the_log_tells_the_term() -> None:
    disk = SimDisk(random.Random(1))
    wal = create(disk)
    for index in range(1, 21):
        wal.append(run_of(index, 1 + index // 8, b"x" * 500), (1 + index // 8, 0, index))
        wal.sync()
    wal.close()
    for start, term in [(1, 1), (7, 1), (8, 2), (15, 2), (16, 3), (20, 3)]:
        again = Wal.open(disk, DIRECTORY, start, segment_bytes=SMALL, ahead=False)
        runs = list(again.recover())
        assert [run.first_index for run in runs[:1]] == ([start + 1] if start < 20 else [])
        assert (again.start_term, again.last_index, again.last_term) == (term, 20, 3)
        again.close()
    again = Wal.open(disk, DIRECTORY, 21, segment_bytes=SMALL, ahead=False)
    with pytest.raises(WalCorruptError, match="entry 21, the last that the backend file holds"):
        list(again.recover())
    again.close()


def test_a_snapshot_skips_what_it_holds() -> None:
    disk = SimDisk(random.Random(1))
    wal = create(disk)
    for index in range(1, 21):
        wal.append(run_of(index, 1, b"x" * 500), (1, 0, index))
        wal.sync()
    wal.append_snapshot(15, 1, b"\x08\x01")
    wal.append_snapshot(20, 1, b"\x08\x01")
    wal.sync()
    wal.close()
    again = Wal.open(disk, DIRECTORY, 15, 1, segment_bytes=SMALL, ahead=False)
    assert [
        index for run in again.recover() for index in range(run.first_index, run.last_index + 1)
    ] == [
        16,
        17,
        18,
        19,
        20,
    ]
    again.close()
    for snapshot, reason in [
        ((14, 1), "no record of the snapshot"),
        ((15, 2), "whose term is less"),
        ((20, 2), "another term"),
    ]:
        with pytest.raises(WalCorruptError, match=reason):
            list(Wal.open(disk.copy(), DIRECTORY, *snapshot, ahead=False).recover())


# --- damage -------------------------------------------------------------------


def test_the_tail_cut_at_every_byte_of_the_last_three_records() -> None:
    """By the end of the file: recovered. By zeros: also, or refused where one bit is missing."""
    disk = SimDisk(random.Random(1))
    log = small_log(disk)
    ends = walmodel.decode(segments(disk)).ends[0]
    refused = 0
    for cut in range(ends[-4], ends[-1]):
        for zeros in False, True:
            torn = disk.copy()
            file = torn.file(FIRST)
            file.data[cut:] = bytes(SMALL - cut if zeros else 0)
            file.sync()
            whole = file.data[: ends[-2]] == disk.file(FIRST).data[: ends[-2]]
            expected = {1, 2, 3, 4, 5} if whole else {1, 2, 3, 4}
            try:
                wal, found = reopen(torn)
            except WalCorruptError as error:
                if not zeros or "one bit" not in error.reason:
                    raise
                refused += 1
                continue
            assert found == {index: log[index] for index in expected}, cut
            wal.append(run_of(len(found) + 1, 3, b"next"), (3, NODE, wal.commit))
            wal.sync()
            wal.close()
            assert len(walmodel.decode(segments(torn)).entries) == len(found) + 1
    assert refused <= 3


def zero_values(disk: SimDisk) -> Log:
    """Records full of zeros: to etcd each looks torn as soon as it does not check."""
    wal = create(disk, 3 * SMALL)
    wal.append(run_of(1, 1, b"v", bytes(1600), b"w"), (1, NODE, 0))
    wal.append(run_of(4, 1, bytes(1600)), None)
    wal.sync()
    wal.close()
    return {1: (0, 1, b"v"), 2: (0, 1, bytes(1600)), 3: (0, 1, b"w"), 4: (0, 1, bytes(1600))}


def empty_tail(disk: SimDisk) -> Log:
    """Types have no checksum: an entry without data also reads as a HardState."""
    wal = create(disk)
    wal.append(run_of(1, 1, b"bootstrap", kind=1), (1, 1, 1))
    wal.append(run_of(2, 2, b"", b""), (2, 1, 3))
    wal.append(run_of(4, 2, b""), None)
    wal.sync()
    wal.close()
    return {1: (1, 1, b"bootstrap"), **dict.fromkeys((2, 3, 4), (0, 2, b""))}


def two_segments(disk: SimDisk) -> Log:
    """A log that was cut once; the second segment holds an overridden entry."""
    wal = create(disk)
    wal.append(run_of(1, 1, b"x" * 900), (1, NODE, 1))
    wal.append(run_of(2, 1, b"y" * 3000), (1, NODE, 1))
    wal.sync()
    wal.append(run_of(2, 2, b"z" * 20), (2, NODE, 1))
    wal.sync()
    wal.close()
    return {1: (0, 1, b"x" * 900), 2: (0, 2, b"z" * 20)}


@pytest.mark.parametrize("make", [small_log, zero_values, empty_tail, two_segments])
def test_every_flipped_bit_is_recovered_from_or_refused(make: Callable[[SimDisk], Log]) -> None:
    disk = SimDisk(random.Random(1))
    log = make(disk)
    names = [name for name in disk.list(DIRECTORY) or [] if name.endswith(".wal")]
    ends = walmodel.decode(segments(disk)).ends
    wal, _ = reopen(disk)
    state = wal.hard_state
    wal.close()
    exact = 0
    step = 1 if depth(1, 2) == 2 or make is small_log else 7
    for name, end in zip(names, ends, strict=True):
        for bit in range(0, 8 * (end[-1] + 600), step):
            flipped = disk.copy()
            flipped.flip(f"{DIRECTORY}/{name}", bit)
            try:
                wal, found = reopen(flipped, 3 * SMALL)
            except WalCorruptError:
                continue
            exact += 1
            assert (found, wal.hard_state) == (log, state), (name, bit // 8, bit % 8)
            wal.close()
    assert exact  # in padding, or behind the end


def test_damage_that_looks_torn_is_refused_when_a_later_record_committed_it() -> None:
    """A sector that was lost long after its sync: etcd would end the log there."""
    disk = SimDisk(random.Random(1))
    small_log(disk)
    ends = walmodel.decode(segments(disk)).ends[0]
    file = disk.file(FIRST)
    start = ends[-4] + 100 - (ends[-4] + 100) % 512
    file.data[start : start + 512] = bytes(512)
    file.sync()
    with pytest.raises(WalCorruptError):
        reopen(disk)


def model_log(*records: tuple[int, bytes]) -> SimDisk:
    """A log of one segment with these records behind the head."""
    disk = SimDisk(random.Random(1))
    create(disk).close()
    crc, out = 0, b""
    head = [(4, b""), (1, walmodel.scalars(NODE, CLUSTER)), (5, walmodel.scalars(0, 0))]
    for kind, data in [*head, *records]:
        crc = walmodel.crc32c(crc, data)
        out += walmodel.encode_frame(kind, crc, data)
    file = disk.file(FIRST)
    file.data[: len(out)] = out
    file.sync()
    return disk


def entry(index: int, term: int = 1, kind: int = 0) -> tuple[int, bytes]:
    return walmodel.ENTRY, walmodel.encode_entry(kind, term, index, b"data")


def state(term: int, commit: int) -> tuple[int, bytes]:
    return walmodel.STATE, walmodel.scalars(term, NODE, commit)


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([entry(1), entry(3)], "does not follow"),
        ([entry(1 << 63)], "does not follow"),
        ([entry(1, 2), entry(2, 1)], "term is less"),
        ([entry(1), entry(1)], "comes twice"),
        ([entry(1), state(1, 1), entry(1, 2)], "overrides a committed"),
        ([entry(1), state(1, 2)], "was committed but the log ends"),
        ([entry(1), state(2, 1), state(1, 1)], "goes back"),
        ([entry(1), state(1, 1), state(1, 0)], "goes back"),
        ([entry(1, 2), state(1, 1)], "less than the last entry"),
        ([entry(0)], "malformed entry"),
        ([entry(1, 0)], "malformed entry"),
        ([entry(1, 1, 3)], "malformed entry"),
        ([(2, b"\xff")], "malformed entry"),
        ([(2, walmodel.scalars(0, 1, 1, 5))], "malformed entry"),
        ([(3, b"\x08\x01\x22\x01x")], "malformed hard state"),
        ([(4, b"")], "holds no other"),
        ([(1, walmodel.scalars(NODE, 1))], "not that of"),
        ([(24, b"x")], "no sector of it is missing"),
        ([(0, b"x")], "one bit"),
    ],
)
def test_what_no_raft_wrote_is_refused(records: list[tuple[int, bytes]], reason: str) -> None:
    with pytest.raises(WalCorruptError, match=reason) as refused:
        reopen(model_log(*records))
    assert FIRST in str(refused.value)
    assert "restore a snapshot" in str(refused.value)


def test_etcds_force_new_cluster_writes_changes_over_entries_of_the_same_term() -> None:
    disk = model_log(
        entry(1), state(1, 1), entry(2), entry(3), entry(2, kind=1), entry(3, kind=1), state(1, 3)
    )
    wal, log = reopen(disk)
    assert {index: kind for index, (kind, _, _) in log.items()} == {1: 0, 2: 1, 3: 1}
    wal.close()


def test_scalars_that_3_7_leaves_out_are_zeros() -> None:
    disk = model_log((2, b"\x10\x01\x18\x01"), (3, b"\x08\x01\x18\x01"))
    wal, log = reopen(disk)
    assert log == {1: (0, 1, b"")}
    assert wal.hard_state == (1, 0, 1)
    wal.close()


def test_a_missing_segment_and_a_huge_length_are_refused() -> None:
    disk = SimDisk(random.Random(1))
    wal = create(disk)
    for index in range(1, 13):
        wal.append(run_of(index, 1, b"x" * 1000), (1, 0, index))
    wal.sync()
    wal.close()
    middle = sorted(disk.list(DIRECTORY) or [])[1]
    damaged = disk.copy()
    damaged.remove(f"{DIRECTORY}/{middle}")
    with pytest.raises(WalCorruptError, match="is missing"):
        reopen(damaged)
    lying = model_log(entry(1), state(1, 0))
    file = lying.file(FIRST)
    file.data[72:80] = (1 << 55).to_bytes(8, "little")
    file.sync()
    with pytest.raises(WalCorruptError):
        reopen(lying)


def overwritten(offset_from_end: int, data: bytes) -> SimDisk:
    """The small log with bytes put over the beginning of one of its last records."""
    disk = SimDisk(random.Random(1))
    small_log(disk)
    at = walmodel.decode(segments(disk)).ends[0][offset_from_end]
    file = disk.file(FIRST)
    file.data[at : at + len(data)] = data
    file.sync()
    return disk


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (0, "followed by data in its own sector"),
        (0x0700000000000045, "none that a log has"),
        (0x85000000_00000003 + 60_000, "beyond the end of the file"),
        (0x100, "no sector of it is missing"),
    ],
)
def test_a_length_of_several_wrong_bits_is_no_torn_write(word: int, reason: str) -> None:
    with pytest.raises(WalCorruptError, match=reason):
        reopen(overwritten(-3, word.to_bytes(8, "little")))


def test_what_was_cut_is_kept_beside_the_log() -> None:
    disk = SimDisk(random.Random(1))
    small_log(disk)
    end = walmodel.decode(segments(disk)).ends[0][-3]
    file = disk.file(FIRST)
    torn = bytes(file.data[end : end + 200])
    file.data[end + 200 :] = b""
    file.sync()
    wal, _ = reopen(disk)
    assert wal.torn_bytes == 200
    wal.close()
    assert bytes(disk.file(f"{FIRST}.{end:016x}.broken").data) == torn
    assert len(disk.file(FIRST).data) == SMALL


# --- faults -------------------------------------------------------------------


class Session:
    """A member's life: batches of different sizes over several segments, a reopening between."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.log: Log = {}
        self.acknowledged = 0

    def live(self) -> None:
        wal = create(self.disk)
        try:
            self.batches(wal, random.Random(5), 12)
        finally:
            wal.close()
        wal = Wal.open(self.disk, DIRECTORY, segment_bytes=SMALL, ahead=False)
        try:
            self.log = {at: self.log[at] for at in range(1, self.acknowledged + 1)}
            assert recovered(wal) == self.log
            self.batches(wal, random.Random(6), 6)
        finally:
            wal.close()

    def batches(self, wal: Wal, rng: random.Random, count: int) -> None:
        for _ in range(count):
            first = len(self.log) + 1
            data = [rng.randbytes(rng.choice([0, 3, 200, 1200])) for _ in range(rng.randint(1, 5))]
            self.log |= {first + at: (0, 1, item) for at, item in enumerate(data)}
            wal.append(run_of(first, 1, *data), (1, NODE, self.acknowledged))
            if rng.random() < 0.5:
                # Not yet written, and often not in the same segment.
                continue
            try:
                wal.sync()
            except DiskError as error:
                final(wal, error)
                raise
            self.acknowledged = len(self.log)

    def survives(self, disk: SimDisk) -> None:
        """What was acknowledged is there, and what is there was written."""
        if disk.list(DIRECTORY) is None:
            assert self.acknowledged == 0
            return
        wal, found = reopen(disk)
        assert self.acknowledged <= len(found) <= len(self.log)
        assert found == {index: self.log[index] for index in found}
        wal.append(run_of(len(found) + 1, 9, b"next"), (9, NODE, wal.commit))
        wal.sync()
        wal.close()
        again, found_again = reopen(disk)
        assert len(found_again) == len(found) + 1
        again.close()


def final(wal: Wal, error: DiskError) -> None:
    """Every later call raises the same error."""
    for call in wal.sync, lambda: wal.append(None, (9, 9, 0)), lambda: wal.start_sync(0):
        with pytest.raises(DiskError) as repeated:
            call()
        assert str(repeated.value) == str(error)


def operations() -> int:
    disk = SimDisk(random.Random(1))
    Session(disk).live()
    return disk.operations


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_every_operation_that_fails_is_final_and_loses_nothing(number: int) -> None:
    for at in range(1, operations() + 1):
        disk = SimDisk(random.Random(at))
        disk.fail_at, disk.fail_errno = at, number
        session = Session(disk)
        with pytest.raises(DiskError) as failed:
            session.live()
        assert failed.value.errno == number
        session.survives(disk.crash())


@pytest.mark.parametrize("how", ["nothing", "all", "prefix", "sectors"])
def test_a_crash_at_every_operation_loses_nothing(how: str) -> None:
    chance = seed()
    for at in range(1, operations() + 1):
        for round_ in range(depth(2, 50)):
            disk = SimDisk(random.Random(chance + at * 1000 + round_))
            disk.die_at = at
            session = Session(disk)
            with pytest.raises(DiskError):
                session.live()
            try:
                session.survives(disk.crash(how))
            except WalCorruptError as error:
                # The one thing that a torn write can't be told from.
                if "one bit" not in error.reason:
                    raise AssertionError((chance, at, round_)) from error
            except BaseException:
                print(f"QUORATE_SEED={chance} operation {at} round {round_}")
                raise


def test_appending_before_recovery_or_against_the_log_is_refused() -> None:
    disk = SimDisk(random.Random(1))
    small_log(disk)
    wal = Wal.open(disk, DIRECTORY, segment_bytes=SMALL, ahead=False)
    with pytest.raises(Fatal, match="not open"):
        wal.append(run_of(6, 2, b"x"), None)
    recovered(wal)
    for run in run_of(7, 2, b"gap"), run_of(4, 3, b"committed"), run_of(6, 1, b"old term"):
        with pytest.raises(Fatal, match="can't follow"):
            wal.append(run, None)
    for hard_state in (1, 0, 4), (2, 0, 3), (2, 0, 6):
        with pytest.raises(Fatal, match="can't follow"):
            wal.append(None, hard_state)
    wal.close()


# --- the thread ---------------------------------------------------------------


def ring(doorbell: int) -> None:
    assert select.select([doorbell], [], [], 10)[0]
    assert os.eventfd_read(doorbell) == 1


def test_what_is_appended_during_a_sync_waits_for_the_next() -> None:
    disk = SimDisk(random.Random(1))
    wal = create(disk)
    doorbell = os.eventfd(0)
    disk.gate = threading.Event()
    wal.append(run_of(1, 1, b"first"), (1, 0, 0))
    wal.start_sync(doorbell)
    assert wal.syncing
    wal.append(run_of(2, 1, b"second"), (1, 0, 1))
    wal.check()
    assert select.select([doorbell], [], [], 0)[0] == []
    disk.gate.set()
    ring(doorbell)
    wal.finish_sync()
    assert not wal.syncing
    assert wal.pending_bytes
    assert set(walmodel.decode(segments(disk)).entries) == {1}
    wal.start_sync(doorbell)
    ring(doorbell)
    wal.finish_sync()
    assert set(walmodel.decode(segments(disk)).entries) == {1, 2}
    wal.close()
    os.close(doorbell)


def test_a_failure_in_the_thread_is_final() -> None:
    disk = SimDisk(random.Random(1))
    wal = create(disk)
    doorbell = os.eventfd(0)
    wal.append(run_of(1, 1, b"first"), (1, 0, 0))
    disk.fail_at = disk.operations + 2
    wal.start_sync(doorbell)
    ring(doorbell)
    with pytest.raises(DiskError, match="fdatasync") as failed:
        wal.finish_sync()
    final(wal, failed.value)
    wal.close()
    os.close(doorbell)


@pytest.mark.slow
def test_a_sync_of_more_than_a_second_is_reported() -> None:
    disk = SimDisk(random.Random(1))
    wal = create(disk)
    disk.gate = threading.Event()
    timer = threading.Timer(1.05, disk.gate.set)
    timer.start()
    wal.append(run_of(1, 1, b"first"), (1, 0, 0))
    wal.sync()
    timer.join()
    statistics = wal.statistics()
    assert statistics.fsync_slow_count == 1
    assert statistics.fsync_last_seconds > 1
    assert statistics.fsync_buckets[11] == statistics.fsync_count == 1
    wal.close()


def test_without_fsync_nothing_is_synced() -> None:
    disk = SimDisk(random.Random(1))
    wal = Wal.create(disk, DIRECTORY, 1, 2, segment_bytes=SMALL, no_fsync=True, ahead=False)
    wal.append(run_of(1, 1, *[b"x" * 900] * 9), (1, 0, 0))
    wal.sync()
    assert wal.statistics().fsync_count == 0
    assert wal.written_bytes > 8100
    wal.close()


# --- the real disk ------------------------------------------------------------


def test_segments_made_ahead_on_a_real_disk(tmp_path: Path) -> None:
    directory = str(tmp_path / "member" / "wal")
    disk = OsDisk()
    size = 300_000
    wal = Wal.create(disk, directory, NODE, CLUSTER, segment_bytes=size)
    doorbell = os.eventfd(0)
    rng = random.Random(3)
    log: Log = {}
    for turn in range(120):
        data = [rng.randbytes(rng.randrange(1000)) for _ in range(30)]
        wal.append(run_of(len(log) + 1, 1, *data), (1, NODE, len(log)))
        log |= {len(log) + 1 + at: (0, 1, item) for at, item in enumerate(data)}
        if turn % 2:
            wal.sync()
        else:
            wal.start_sync(doorbell)
            ring(doorbell)
            wal.finish_sync()
        wal.check()
    wal.close()
    os.close(doorbell)
    files = sorted(os.listdir(directory))
    assert len(files) > 5
    assert all(name.endswith(".wal") for name in files)
    assert {os.stat(f"{directory}/{name}").st_size for name in files} == {size}
    assert {os.stat(f"{directory}/{name}").st_mode & 0o777 for name in files} == {0o600}
    assert os.stat(directory).st_mode & 0o777 == 0o700
    content = [Path(directory, name).read_bytes() for name in files]
    assert walmodel.decode(content).entries == log
    again = Wal.open(disk, directory, segment_bytes=size)
    assert recovered(again) == log
    with pytest.raises(WalLockedError, match="another process"):
        Wal.open(disk, directory)
    again.close()
    with pytest.raises(Fatal, match="not empty"):
        Wal.create(disk, directory, 1, 1)


def test_zeros_are_never_written_over_the_log(tmp_path: Path) -> None:
    """The log overtakes the thread that fills its own segment, and the thread goes on behind it."""
    directory = str(tmp_path / "wal")
    wal = Wal.create(OsDisk(), directory, NODE, CLUSTER, segment_bytes=16_000_000)
    log: Log = {}
    for size in [9_000_000] + [2000] * 60 + [2_000_000] + [2000] * 60:
        data = os.urandom(size)
        wal.append(run_of(len(log) + 1, 1, data), (1, NODE, len(log)))
        wal.sync()
        log[len(log) + 1] = (0, 1, data)
    wal.close()
    again = Wal.open(OsDisk(), directory, segment_bytes=16_000_000)
    assert recovered(again) == log
    again.close()
