"""etcd's write-ahead log, byte by byte and naively: the slow twin of core/_wal*.pyx."""

from __future__ import annotations

from dataclasses import dataclass, field

METADATA, ENTRY, STATE, CRC, SNAPSHOT = 1, 2, 3, 4, 5


def _step(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


TABLE = [_step(value) for value in range(256)]


def crc32c(crc: int, data: bytes) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def scalars(*values: int) -> bytes:
    """Fields 1, 2, 3 … as varints, zeros written too."""
    return b"".join(bytes([8 * at]) + varint(value) for at, value in enumerate(values, 1))


def encode_entry(kind: int, term: int, index: int, data: bytes) -> bytes:
    return scalars(kind, term, index) + encode_data(data)


def encode_data(data: bytes) -> bytes:
    return b"\x22" + varint(len(data)) + data if data else b""


def encode_frame(kind: int, crc: int, data: bytes) -> bytes:
    record = scalars(kind, crc) + (b"\x1a" + varint(len(data)) + data if data else b"")
    pad = -len(record) % 8
    word = len(record) | ((0x80 | pad) << 56 if pad else 0)
    return word.to_bytes(8, "little") + record + bytes(pad)


def decode_fields(message: bytes) -> dict[int, int | bytes]:
    fields: dict[int, int | bytes] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        value = number()
        if tag & 7 == 2:
            fields[tag >> 3] = message[at : at + value]
            at += value
        else:
            fields[tag >> 3] = value
    return fields


@dataclass
class Decoded:
    """A whole log as the model reads it."""

    entries: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)  # type, term, data
    states: list[tuple[int, ...]] = field(default_factory=list)
    snapshots: list[tuple[int, ...]] = field(default_factory=list)
    metadata: set[bytes] = field(default_factory=set)
    ends: list[list[int]] = field(default_factory=list)  # per segment: where each record ends


def decode(segments: list[bytes]) -> Decoded:
    """Read a whole log's segments; asserts that encoding again gives the same bytes."""
    log = Decoded()
    crc = 0
    for segment in segments:
        at = 0
        ends = []
        while at + 8 <= len(segment) and segment[at : at + 8] != bytes(8):
            word = int.from_bytes(segment[at : at + 8], "little")
            fields = decode_fields(segment[at + 8 : at + 8 + (word & (1 << 56) - 1)])
            kind, data = fields[1], fields.get(3, b"")
            assert isinstance(kind, int)
            assert isinstance(data, bytes)
            crc = crc32c(crc, data)
            frame = encode_frame(kind, crc, data)
            assert segment[at : at + len(frame)] == frame, (at, frame)
            at += len(frame)
            ends.append(at)
            take(log, kind, data)
        assert not any(segment[at:]), "something follows the end"
        log.ends.append(ends)
    return log


def take(log: Decoded, kind: int, data: bytes) -> None:
    fields = decode_fields(data)
    numbers = tuple(fields.get(at, 0) for at in (1, 2, 3))
    if kind == ENTRY:
        index, content = numbers[2], fields.get(4, b"")
        assert isinstance(index, int)
        assert isinstance(content, bytes)
        assert data == scalars(*numbers) + encode_data(content)  # type: ignore[arg-type]
        for later in [known for known in log.entries if known >= index]:
            del log.entries[later]
        log.entries[index] = (*numbers[:2], content)  # type: ignore[assignment]
    elif kind == STATE:
        log.states.append(numbers)  # type: ignore[arg-type]
    elif kind == SNAPSHOT:
        log.snapshots.append(numbers[:2])  # type: ignore[arg-type]
    elif kind == METADATA:
        log.metadata.add(data)
