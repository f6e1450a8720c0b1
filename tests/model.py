"""The store in the plainest way that could be right: all is kept, and looked up by definition.

Slow on purpose. `tests/test_mvcc.py` compares the real store with it after every step.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from sortedcontainers import SortedDict

Version = tuple[bytes, bytes, int, int, int, int]


class Record(NamedTuple):
    """One write to one key."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    sub: int

    @property
    def tombstone(self) -> bool:
        return self.version == 0

    @property
    def place(self) -> tuple[int, int]:
        return self.mod_revision, self.sub

    def unpack(self) -> Version:
        """As the real store answers it."""
        return self[:6]


def in_range(key: bytes, first: bytes, end: bytes) -> bool:
    """Whether etcd's range (first, end) has the key."""
    if end == b"":
        return key == first
    return key >= first and (end == b"\0" or key < end)


class Model:
    """All writes ever, by key and in order."""

    def __init__(self) -> None:
        self.revision = 1
        self.compact_revision = -1
        self.keys: SortedDict[bytes, list[Record]] = SortedDict()
        self.log: list[Record] = []
        self.sub = 0
        # Hashes of compactions: those under way by revision, and those that are remembered.
        self.finished_revision = -1
        self.hashes_to_come: dict[int, tuple[int, int, int]] = {}
        self.hashes: dict[int, tuple[int, int, int]] = {}

    # -- writes

    def begin(self) -> None:
        self.sub = 0

    def end(self) -> int:
        self.revision = self.write_revision()
        self.sub = 0
        return self.revision

    def write_revision(self) -> int:
        return self.revision + bool(self.sub)

    def put(self, key: bytes, value: bytes, lease: int) -> tuple[Version, Version | None]:
        before = self.get(key)
        created, version = (self.revision + 1, 1) if before is None else (before[2], before[4] + 1)
        self.write(Record(key, value, created, self.revision + 1, version, lease, self.sub))
        return self.keys[key][-1].unpack(), before

    def delete_range(self, first: bytes, end: bytes) -> list[Version]:
        deleted = self.range(first, end)
        for found in deleted:
            self.write(Record(found[0], b"", 0, self.revision + 1, 0, 0, self.sub))
        return deleted

    def write(self, record: Record) -> None:
        self.keys.setdefault(record.key, []).append(record)
        self.log.append(record)
        self.sub += 1

    # -- reads

    def at(self, key: bytes, revision: int) -> Record | None:
        """The last write to the key up to the revision, deletions included."""
        records: list[Record] = self.keys.get(key, [])
        for record in reversed(records):
            if revision == 0 or record.mod_revision <= revision:
                return record
        return None

    def get(self, key: bytes, revision: int = 0) -> Version | None:
        record = self.at(key, revision)
        return None if record is None or record.tombstone else record.unpack()

    def range(self, first: bytes, end: bytes, revision: int = 0) -> list[Version]:
        if end == b"":
            keys: Iterator[bytes] = iter([first])
        else:
            keys = self.keys.irange(first, None if end == b"\0" else end, (True, False))
        found = (self.get(key, revision) for key in keys if in_range(key, first, end))
        return [version for version in found if version is not None]

    # -- compaction and hashes

    def available(self, revision: int, *, tombstones: bool) -> set[tuple[int, int]]:
        """What a compaction to the revision keeps of what was written up to it."""
        found = set()
        for key in self.keys:
            record = self.at(key, revision) if revision > 0 else None
            if record is None:
                continue
            if record.tombstone and not (tombstones and record.mod_revision == revision):
                continue
            found.add(record.place)
        return found

    def stored(self) -> list[Record]:
        """What is left once compaction is done."""
        kept = self.available(self.compact_revision, tombstones=True)
        return [r for r in self.log if r.mod_revision >= self.compact_revision or r.place in kept]

    def compact(self, revision: int) -> None:
        assert self.compact_revision < revision <= self.revision
        if self.finished_revision == self.compact_revision:
            self.hashes_to_come[revision] = self.hash_compacted(revision, self.compact_revision)
        self.compact_revision = revision

    def finish(self, revision: int) -> None:
        """The real store says that its removal is done up to here."""
        self.finished_revision = revision
        if revision in self.hashes_to_come:
            self.hashes[revision] = self.hashes_to_come.pop(revision)
        while len(self.hashes) > 10:
            del self.hashes[min(self.hashes)]

    def hash_compacted(self, revision: int, before: int) -> tuple[int, int, int]:
        keep = self.available(revision, tombstones=True)
        return self.hash_of(revision, before, keep), before, revision

    def hash_kv(self, revision: int) -> tuple[int, int, int] | None:
        """None when etcd refuses."""
        if revision and revision in self.hashes:
            return self.hashes[revision]
        if revision > self.revision or 0 < revision < self.compact_revision:
            return None
        revision = revision or self.revision
        keep = self.available(revision, tombstones=False)
        return self.hash_of(revision, self.compact_revision, keep), self.compact_revision, revision

    def hash_of(self, revision: int, compacted: int, keep: set[tuple[int, int]]) -> int:
        there = self.available(compacted, tombstones=True)
        data = [b"key"]
        for record in self.log:
            if record.mod_revision > revision:
                continue
            if record.mod_revision <= compacted and record.place not in there:
                continue
            if record.mod_revision <= compacted and keep and record.place not in keep:
                continue
            if record.mod_revision == compacted and record.tombstone:
                continue
            data.append(bucket_key(record))
            data.append(bucket_value(record))
        return crc32c(b"".join(data))


def bucket_key(record: Record) -> bytes:
    """The record's key in a backend file."""
    tail = b"t" if record.tombstone else b""
    return struct.pack(">q", record.mod_revision) + b"_" + struct.pack(">q", record.sub) + tail


def bucket_value(record: Record) -> bytes:
    """The record's value there: a mvccpb.KeyValue."""
    parts = [b"\x0a", varint(len(record.key)), record.key]
    if not record.tombstone:
        for field, number in enumerate(record[2:5], 2):
            parts += [bytes([field << 3]), varint(number)]
    if record.value:
        parts += [b"\x2a", varint(len(record.value)), record.value]
    if record.lease:
        parts += [b"\x30", varint(record.lease % (1 << 64))]
    return b"".join(parts)


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def crc_table() -> list[int]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = (entry >> 1) ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return table


CRC_TABLE = crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C, a byte at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF
