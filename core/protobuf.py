"""Protocol-buffer encoding for the few values that Python writes and reads one by one.

Rules:
1. A value's class has a table, `FIELDS`; its encoding follows from the table and nothing else.
2. Written is what gogo-proto writes (etcd up to 3.6): a proto2 scalar always, also when zero; a
   proto3 scalar only when not zero; fields in the order of the table, which is that of their
   numbers. 3.7 leaves out unset proto2 scalars and reads both.
3. Read is what any etcd writes: a missing scalar has its default, a repeated number may be packed,
   an unknown field or a known one of another wire type is passed over, the last of several wins.
4. Malformed bytes raise `MalformedError`; the caller decides whether that is an answer or the end.

Hot messages never come here: they have Cython codecs on `_protobuf.pxd`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple, Self

from .errors import MalformedError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GROUP, _GROUP_END = 3, 4
_UINT64_MAX = (1 << 64) - 1
_FIELD_NUMBER_MAX = (1 << 29) - 1
_GROUP_DEPTH_MAX = 100


class Kind(Enum):
    """How a field is written, and what its attribute holds."""

    ALWAYS = auto()  # proto2 scalar: int or bool, written also when zero
    NONZERO = auto()  # proto3 scalar: int or bool, left out when zero
    NUMBERS = auto()  # tuple of int, one tag each
    BYTES = auto()  # bytes, left out when empty
    TEXT = auto()  # str, left out when empty
    TEXT_ALWAYS = auto()  # proto2 str, written also when empty
    TEXTS = auto()  # tuple of str
    OPTIONAL = auto()  # a message or None
    MESSAGES = auto()  # tuple of messages


class Field(NamedTuple):
    """One row of a message's table; `of` is a message's class, or `bool`."""

    number: int
    name: str
    kind: Kind
    of: type[Any] | None = None


def encode_varint(value: int) -> bytes:
    """A number of 0..2**64-1 as a protobuf varint."""
    assert 0 <= value <= _UINT64_MAX, value
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at `at` and the place after it."""
    value = shift = 0
    while at < len(data) and shift <= 63:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > _UINT64_MAX:
                break
            return value, at
        shift += 7
    raise MalformedError


def _read_tag(data: bytes, at: int) -> tuple[int, int, int]:
    """Field number, wire type and the place after the tag at `at`."""
    tag, at = _read_varint(data, at)
    if not 0 < tag >> 3 <= _FIELD_NUMBER_MAX:
        raise MalformedError
    return tag >> 3, tag & 7, at


def _skip_group(data: bytes, at: int, number: int) -> int:
    """The place after the group `number` whose content begins at `at`."""
    open_groups = [number]
    while open_groups:
        number, wire, at = _read_tag(data, at)
        if wire == _GROUP:
            open_groups.append(number)
            if len(open_groups) > _GROUP_DEPTH_MAX:
                raise MalformedError
        elif wire == _GROUP_END:
            if open_groups.pop() != number:
                raise MalformedError
        else:
            _, at = _read_value(data, at, wire)
    return at


def _read_value(data: bytes, at: int, wire: int) -> tuple[int | bytes, int]:
    """The value of a field that is no group, and the place after it."""
    if wire == _VARINT:
        return _read_varint(data, at)
    if wire == _BYTES:
        size, at = _read_varint(data, at)
    elif wire in (_FIXED64, _FIXED32):
        size = 8 if wire == _FIXED64 else 4
    else:
        raise MalformedError
    if size > len(data) - at:
        raise MalformedError
    return data[at : at + size], at + size


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Every (number, wire type, value) in order, groups passed over; raises MalformedError."""
    at = 0
    while at < len(data):
        number, wire, at = _read_tag(data, at)
        if wire == _GROUP:
            at = _skip_group(data, at, number)
            continue
        value, at = _read_value(data, at, wire)
        yield number, wire, value


def _text(value: int | bytes) -> str:
    """UTF-8, as Go's proto3 demands it; proto2 does not, but no text of ours is anything else."""
    assert isinstance(value, bytes)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise MalformedError from None


def _unpack(value: bytes) -> tuple[int, ...]:
    """The numbers of a packed field."""
    numbers = []
    at = 0
    while at < len(value):
        number, at = _read_varint(value, at)
        numbers.append(number)
    return tuple(numbers)


class Encoded:
    """A value with a protobuf encoding, given by the table `FIELDS`."""

    __slots__ = ()
    FIELDS: ClassVar[tuple[Field, ...]] = ()

    def encode(self) -> bytes:
        """The message's bytes."""
        return b"".join(_encode_field(field, getattr(self, field.name)) for field in self.FIELDS)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The message in `data`; raises MalformedError."""
        by_number = {field.number: field for field in cls.FIELDS}
        values: dict[str, object] = {}
        for number, wire, value in fields(data):
            field = by_number.get(number)
            if field is not None:
                _decode_field(field, wire, value, values)
        return cls(**values)


def _encode_field(field: Field, value: object) -> bytes:
    """One field with its tag, or nothing where nothing is written."""
    kind = field.kind
    if kind is Kind.ALWAYS or kind is Kind.NONZERO:
        assert isinstance(value, int)
        if not value and kind is Kind.NONZERO:
            return b""
        return encode_varint(field.number << 3) + encode_varint(value)
    if kind is Kind.NUMBERS:
        assert isinstance(value, tuple)
        tag = encode_varint(field.number << 3)
        return b"".join(tag + encode_varint(number) for number in value)
    if kind in (Kind.MESSAGES, Kind.TEXTS):
        assert isinstance(value, tuple)
        return b"".join(_encode_bytes(field.number, part) for part in value)
    if value is None or (not value and kind is not Kind.TEXT_ALWAYS):
        return b""
    return _encode_bytes(field.number, value)


def _encode_bytes(number: int, value: object) -> bytes:
    """A length-delimited field."""
    if isinstance(value, Encoded | str):
        value = value.encode()
    assert isinstance(value, bytes)
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(value)) + value


def _decode_field(field: Field, wire: int, value: int | bytes, values: dict[str, object]) -> None:
    """Put a field's value into `values`; a known field with another wire type is passed over."""
    kind = field.kind
    before = values.get(field.name, ())
    assert isinstance(before, tuple) or kind not in (Kind.NUMBERS, Kind.MESSAGES, Kind.TEXTS)
    if kind is Kind.NUMBERS and isinstance(value, bytes) and wire == _BYTES:
        values[field.name] = (*before, *_unpack(value))  # type: ignore[misc]
    elif isinstance(value, int):
        if kind is Kind.NUMBERS:
            values[field.name] = (*before, value)  # type: ignore[misc]
        elif kind is Kind.ALWAYS or kind is Kind.NONZERO:
            values[field.name] = bool(value) if field.of is bool else value
    elif wire == _BYTES:
        _decode_bytes(field, value, before, values)


def _decode_bytes(field: Field, value: bytes, before: object, values: dict[str, object]) -> None:
    """Put a length-delimited field's value into `values`."""
    kind = field.kind
    if kind is Kind.BYTES:
        values[field.name] = value
    elif kind is Kind.TEXT or kind is Kind.TEXT_ALWAYS:
        values[field.name] = _text(value)
    elif kind is Kind.TEXTS:
        values[field.name] = (*before, _text(value))  # type: ignore[misc]
    elif kind is Kind.OPTIONAL:
        assert field.of is not None
        values[field.name] = field.of.decode(value)
    elif kind is Kind.MESSAGES:
        assert field.of is not None
        values[field.name] = (*before, field.of.decode(value))  # type: ignore[misc]
