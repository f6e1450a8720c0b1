"""The event ring: whole records in order, or the news that they were overwritten."""

from __future__ import annotations

import mmap
import struct

import pytest

from quorate.core._eventring import EventReader, EventRing

RECORD = struct.Struct("<IIqIIII")
CAPACITY = 4096


def record(revision: int, size: int = 8) -> bytes:
    """A record of `size` bytes after its head, a multiple of 8."""
    body = bytes([revision % 251]) * size
    return RECORD.pack(RECORD.size + size, 2, revision, 0, 0, size, 0) + body


def revisions(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        size, _, revision, *_ = RECORD.unpack_from(data, at)
        assert data[at + RECORD.size : at + size] == bytes([revision % 251]) * (size - RECORD.size)
        found.append(revision)
        at += size
    return found


def test_readers_see_the_same_records_over_many_laps() -> None:
    ring = EventRing(CAPACITY)
    readers = [EventReader(ring), EventReader(ring)]
    for number in range(1000):
        ring.append(record(number, 8 * (number % 40)), number)
        for reader in readers:
            assert reader.seen == number
            data = reader.read()
            assert data is not None
            assert revisions(data) == [number]
    assert readers[0].read() == b""


def test_a_batch_ends_with_a_whole_record() -> None:
    ring = EventRing(CAPACITY)
    reader = EventReader(ring)
    for number in range(10):
        ring.append(record(number, 64), number)
    assert revisions(reader.read(250) or b"") == [0, 1]
    assert revisions(reader.read(10) or b"") == [2], "a record longer than the limit comes alone"
    assert revisions(reader.read() or b"") == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("behind", [0, 1, 100])
def test_who_is_overrun_is_told(behind: int) -> None:
    ring = EventRing(CAPACITY)
    reader = EventReader(ring)
    fitting = CAPACITY // len(record(0, 96))
    for number in range(fitting):
        ring.append(record(number, 96), number)
    for number in range(behind):
        ring.append(record(number, 96), number)
    data = reader.read()
    if behind:
        assert data is None
    else:
        assert revisions(data or b"") == list(range(fitting))


def test_nobody_else_can_write_to_it() -> None:
    ring = EventRing(CAPACITY)
    with pytest.raises(PermissionError):
        mmap.mmap(ring.fd, CAPACITY)
    mmap.mmap(ring.fd, CAPACITY, prot=mmap.PROT_READ).close()
