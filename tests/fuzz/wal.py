"""The target `wal`: segments of a log; its mutator works on records and makes their chain again.

An input is a head of three bytes (where to start, its term, flags) and segments, each behind
SEPARATOR and the index that its name says (one byte).
"""

from __future__ import annotations

import random
from typing import Any

from quorate.core._disk import DiskError
from quorate.core._walread import WalCorruptError, WalReader
from tests.fuzz.mutations import bytes_of, havoc, number
from tests.sim.disk import File, SimDisk
from tests.walmodel import (
    CRC,
    ENTRY,
    METADATA,
    SNAPSHOT,
    STATE,
    crc32c,
    decode_fields,
    encode_entry,
    encode_frame,
    scalars,
)

SEPARATOR = b"\xfeSEGMENT"
DIRECTORY = "/d/wal"
Records = list[tuple[int, bytes]]
Log = list[tuple[int, Records]]
RECORDS_MAX = 400


def seeds() -> dict[str, bytes]:
    """A log of one segment, of two, after a snapshot, with entries that were replaced, and torn."""
    head: Records = [(METADATA, scalars(7, 9)), (SNAPSHOT, scalars(0, 0))]
    entries: Records = [(ENTRY, encode_entry(0, 1, at, b"x" * 9 * at)) for at in range(1, 6)]
    state: Records = [(STATE, scalars(1, 7, 3))]
    change: Records = [(ENTRY, encode_entry(1, 1, 6, b"change")), (STATE, scalars(1, 7, 6))]
    replaced: Records = [(ENTRY, encode_entry(0, 2, 5, b"new")), (STATE, scalars(2, 7, 5))]
    one: Log = [(0, [*head, *entries, *state])]
    second: Records = [(METADATA, scalars(7, 9)), *state, *change]
    two: Log = [(0, [*head, *entries, *state]), (6, second)]
    later: Log = [
        (3, [head[0], (SNAPSHOT, scalars(4, 1)), *entries[3:], (STATE, scalars(1, 7, 5))])
    ]
    again: Log = [(0, [*head, *entries, *state, *replaced])]
    whole = encode(bytes((0, 0, 0)), one)
    return {
        "one": whole + bytes(64),
        "two": encode(bytes((0, 0, 0)), two) + bytes(24),
        "snapshot": encode(bytes((4, 1, 0)), later),
        "unknown_term": encode(bytes((4, 0, 0)), one) + bytes(512),
        "replaced": encode(bytes((0, 0, 0)), again),
        "torn": whole[:-5] + bytes(200),
    }


def run(data: bytes) -> bool:
    """Read it twice: what was cut the first time is not there the second time, all else is."""
    if len(data) < 3:
        return False
    disk = disk_of(data)
    start_index, start_term = data[0], data[1]
    if start_index == 0:
        start_term = 0
    try:
        first = entries_of(disk, start_index, start_term)
    except WalCorruptError:
        return False
    except DiskError as error:
        raise AssertionError("the disk has no faults") from error
    assert entries_of(disk, start_index, start_term) == first, "a second reading gives another log"
    plain = plain_entries(disk, start_index)
    if plain is not None:
        told = [
            (index, run[0], content)
            for run in first
            if isinstance(run, tuple)
            for index, (_, content) in enumerate(run[2], run[1])
        ]
        assert told == plain, "read plainly it is another log"
    return True


def plain_entries(disk: SimDisk, start_index: int) -> list[tuple[int, int, bytes]] | None:
    """Index, term and data of what a log whose torn end was cut holds; None if this can't tell.

    Asserts that no committed entry is replaced.
    """
    names = [name for name in disk.list(DIRECTORY) or () if name.endswith(".wal")]
    first = max(at for at, name in enumerate(names) if int(name[17:33], 16) <= start_index)
    segments = [b"\0" + bytes(disk.file(f"{DIRECTORY}/{name}").data) for name in names]
    entries: dict[int, tuple[int, bytes]] = {}
    commit = 0
    for segment in segments[first:]:
        records = strict_records(segment)
        if records is None:
            return None
        for kind, content in records:
            fields: dict[int, Any] = decode_fields(content)
            if kind == STATE:
                commit = fields.get(3, 0)
            elif kind == ENTRY:
                index = fields.get(3, 0)
                if index > start_index or entries:
                    replaced = index in entries or index <= start_index
                    assert index > commit or not replaced, "a committed entry is replaced"
                    entries = {at: entry for at, entry in entries.items() if at < index}
                if index > start_index:
                    entries[index] = (fields.get(2, 0), fields.get(4, b""))
    return [(index, *entries[index]) for index in sorted(entries)]


def strict_records(segment: bytes) -> Records | None:
    """All records of a segment but its first crc; None if anything else is in it."""
    found, end = frames(segment)
    records = [decode_record(record) for record in found]
    if any(segment[end:]) or not all(records):
        return None
    return [record for record in records if record and record[0] != CRC]


def disk_of(data: bytes) -> SimDisk:
    """The log's directory."""
    disk = SimDisk(random.Random(1))
    disk.make_directory("/d")
    disk.make_directory(DIRECTORY)
    for sequence, segment in enumerate(data[3:].split(SEPARATOR)[1:]):
        first_index = segment[0] if segment else 0
        path = f"{DIRECTORY}/{sequence:016x}-{first_index:016x}.wal"
        disk.names[path] = File(bytearray(segment[1:]), bytearray(segment[1:]))
    return disk


def entries_of(disk: SimDisk, start_index: int, start_term: int) -> list[object]:
    """Everything that a reader tells. Raises WalCorruptError."""
    reader = WalReader(disk, DIRECTORY, start_index, start_term)
    told: list[object] = []
    try:
        last = start_index
        for run in reader:
            assert run.first_index == last + 1, "a gap"
            assert run.last_index <= reader.commit or reader.ended, "it is not committed"
            assert not run.first_index <= reader.commit < run.last_index, "half of it is committed"
            last = run.last_index
            told.append((run.term, run.first_index, run.unpack()))
        assert reader.ended
        assert last == reader.last_index
        told += [reader.metadata, reader.term, reader.vote, reader.commit, reader.snapshots]
    finally:
        reader.close()
    return told


def encode(head: bytes, log: Log) -> bytes:
    """The input of a log: frames with their chain of checksums."""
    out, crc = head, 0
    for first_index, records in log:
        out += SEPARATOR + bytes((first_index,)) + encode_frame(CRC, crc, b"")
        for kind, data in records:
            crc = crc32c(crc, data)
            out += encode_frame(kind, crc, data)
    return out


def decode(data: bytes) -> Log:
    """The records of an input, as far as they have their form; sums are not looked at."""
    log: Log = []
    for segment in data[3:].split(SEPARATOR)[1:]:
        parsed = [decode_record(record) for record in frames(segment)[0]]
        records = [record for record in parsed if record and record[0] != CRC]
        log.append((segment[0] if segment else 0, records))
    return log


def frames(segment: bytes) -> tuple[list[bytes], int]:
    """What the frames of a segment hold, as far as one leads to the next, and where they end."""
    found: list[bytes] = []
    at = 1
    while at + 10 <= len(segment) and len(found) < RECORDS_MAX:
        size = int.from_bytes(segment[at : at + 7], "little")
        record = segment[at + 8 : at + 8 + size]
        if size == 0 or len(record) < size:
            break
        found.append(record)
        at += 8 + size + -size % 8
    return found, at


def decode_record(record: bytes) -> tuple[int, bytes] | None:
    """Type and data: the type is one byte, the data all behind its tag."""
    if len(record) < 4 or record[0] != 8 or record[2] != 16:
        return None
    at = 3
    while at < len(record) and record[at] & 0x80:
        at += 1
    rest = record[at + 1 :]
    if not rest:
        return record[1], b""
    at = 1
    while at < len(rest) and rest[at] & 0x80:
        at += 1
    return record[1], rest[at + 1 :]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change records and make the log again, and now and then spoil some of its bytes."""
    if rng.random() < 0.15 or len(data) < 3:
        return havoc(data, rng)
    log = decode(data) or [(0, [])]
    for _ in range(rng.choice((1, 1, 2, 4))):
        change_record(log[rng.randrange(len(log))][1], rng)
    if rng.random() < 0.1:
        split(log, rng)
    head = bytearray(data[:3])
    if rng.random() < 0.1:
        head[rng.randrange(2)] = rng.randrange(9)
    out = bytearray(encode(bytes(head), log)) + bytes(rng.choice((0, 0, 3, 8, 64, 600)))
    if rng.random() < 0.4:
        spoil(out, rng)
    return bytes(out)


def change_record(records: Records, rng: random.Random) -> None:
    """One more, one less, two that change places, or other content."""
    at = rng.randrange(len(records) + 1)
    choice = rng.randrange(5)
    if choice == 0 or at == len(records):
        records.insert(at, random_record(rng))
    elif choice == 1:
        del records[at]
    elif choice == 2:
        other = rng.randrange(len(records))
        records[at], records[other] = records[other], records[at]
    elif choice == 3:
        kind = records[at][0] if rng.random() < 0.8 else rng.randrange(8)
        records[at] = kind, havoc(records[at][1], rng)
    else:
        records.insert(at, records[at])


def random_record(rng: random.Random) -> tuple[int, bytes]:
    """A record that is likely to make sense somewhere."""

    def small() -> int:
        return rng.randrange(9) if rng.random() < 0.9 else number(rng)

    kind = rng.choice((ENTRY, ENTRY, STATE, STATE, SNAPSHOT, METADATA))
    if kind == ENTRY:
        return kind, encode_entry(rng.randrange(4), small(), small(), bytes_of(rng, 300))
    return kind, scalars(*(small() for _ in range(3 if kind == STATE else 2)))


def split(log: Log, rng: random.Random) -> None:
    """Let a segment go on in a new one."""
    at = rng.randrange(len(log))
    first_index, records = log[at]
    middle = rng.randint(0, len(records))
    log[at : at + 1] = [
        (first_index, records[:middle]),
        (rng.randrange(9), [*records[:1], *records[middle:]]),
    ]


def spoil(out: bytearray, rng: random.Random) -> None:
    """What crashes and bad disks do: a sector of zeros, a flipped bit, an end, zeros behind."""
    at = rng.randrange(3, len(out))
    choice = rng.randrange(4)
    if choice == 0:
        size = min(rng.choice((1, 8, 100, 512)), len(out) - at)
        out[at : at + size] = bytes(size)
    elif choice == 1:
        out[at] ^= 1 << rng.randrange(8)
    elif choice == 2:
        del out[at:]
    else:
        out[at:] = bytes(len(out) - at)
