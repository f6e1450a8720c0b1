"""Bytes from a client become a message, as strictly as in etcd.

Rules:
1. betterproto2 reads much that is broken (cut fields, field 0, wire type 7), so the bytes are
   checked before it sees them.
2. What Go's protobuf takes, this takes: unknown fields and a known field of the wrong wire type are
   skipped; a scalar list may be packed or not; groups are skipped when they are closed.
3. Whatever else is wrong ends in one of Go's three texts, and never in another exception.

Only for messages off the hot path: the hot ones are checked in Cython.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, NamedTuple, TypeVar

import betterproto2
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from quorate.core.errors import MalformedError, TooDeepError

MessageT = TypeVar("MessageT", bound=betterproto2.Message)

# Messages and groups inside one another. Go stops at 10,000; no message decoded here has a use for
# it.
DEPTH_MAX = 100
FIELD_NUMBER_MAX = (1 << 29) - 1

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)
NOT_UTF8 = "grpc: error unmarshalling request: string field contains invalid UTF-8"


class Shape(NamedTuple):
    """What a field may look like on the wire."""

    wire_type: int
    packed: bool  # may also come as one run of bytes
    text: bool
    message: type[betterproto2.Message] | None


def decode(kind: type[MessageT], data: bytes) -> MessageT:
    """The message in `data`. Raises MalformedError, TooDeepError, or GRPCError for bad UTF-8."""
    return kind.parse(normalize(kind, data, 0))


def normalize(kind: type[betterproto2.Message], data: bytes, depth: int) -> bytes:
    """The same message without the fields that are to be skipped. Raises like `decode`."""
    if depth > DEPTH_MAX:
        raise TooDeepError
    shapes = shapes_of(kind)
    kept = bytearray()
    position = 0
    while position < len(data):
        start = position
        tag, position = read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number <= FIELD_NUMBER_MAX or wire_type == GROUP_END:
            raise MalformedError
        body = position
        position = skip(data, position, number, wire_type, depth)
        shape = shapes.get(number)
        if shape is None or not takes(shape, wire_type):
            continue
        if wire_type != BYTES:
            kept += data[start:position]
            continue
        _, inside = read_varint(data, body)
        content = normalize_bytes(shape, data[inside:position], depth)
        kept += data[start:body] + betterproto2.encode_varint(len(content)) + content
    return bytes(kept)


def normalize_bytes(shape: Shape, content: bytes, depth: int) -> bytes:
    """What stands in a length-delimited field of a known shape, checked. Raises like `decode`."""
    if shape.message is not None:
        return normalize(shape.message, content, depth + 1)
    if shape.text:
        try:
            content.decode()
        except UnicodeDecodeError:
            raise GRPCError(Status.INTERNAL, NOT_UTF8) from None
    elif shape.wire_type != BYTES:
        position = 0
        while position < len(content):
            position = skip(content, position, 1, shape.wire_type, depth)
    return content


def takes(shape: Shape, wire_type: int) -> bool:
    """Whether a field of this shape may come with this wire type."""
    return wire_type == shape.wire_type or (wire_type == BYTES and shape.packed)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A varint of at most 64 bits and the position after it. Raises MalformedError."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise MalformedError
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                raise MalformedError
            return value, position
    raise MalformedError


def skip(data: bytes, position: int, number: int, wire_type: int, depth: int) -> int:
    """The position after a field's content. Raises MalformedError or TooDeepError."""
    if wire_type == VARINT:
        return read_varint(data, position)[1]
    if wire_type == BYTES:
        size, position = read_varint(data, position)
        position += size
    elif wire_type in (FIXED32, FIXED64):
        position += 4 if wire_type == FIXED32 else 8
    elif wire_type == GROUP:
        return skip_group(data, position, number, depth + 1)
    else:
        raise MalformedError
    if position > len(data):
        raise MalformedError
    return position


def skip_group(data: bytes, position: int, number: int, depth: int) -> int:
    """The position after the end of group `number`. Raises MalformedError or TooDeepError."""
    if depth > DEPTH_MAX:
        raise TooDeepError
    while True:
        tag, position = read_varint(data, position)
        if not 0 < tag >> 3 <= FIELD_NUMBER_MAX:
            raise MalformedError
        if tag & 7 == GROUP_END:
            if tag >> 3 != number:
                raise MalformedError
            return position
        position = skip(data, position, tag >> 3, tag & 7, depth)


@cache
def shapes_of(kind: type[betterproto2.Message]) -> dict[int, Shape]:
    """The shape of each field of a message, by number."""
    found: dict[int, Shape] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        meta: Any = betterproto2.FieldMetadata.get(field)
        message = None
        if meta.proto_type == betterproto2.TYPE_MESSAGE:
            message = kind._cls_for(field)
        found[meta.number] = Shape(
            wire_type=wire_type_of(meta.proto_type),
            packed=meta.repeated and meta.proto_type in betterproto2.PACKED_TYPES,
            text=meta.proto_type == betterproto2.TYPE_STRING,
            message=message,
        )
    return found


def wire_type_of(proto_type: str) -> int:
    """How a type is written when it is not packed."""
    if proto_type in betterproto2.WIRE_VARINT_TYPES:
        return VARINT
    if proto_type in betterproto2.WIRE_FIXED_32_TYPES:
        return FIXED32
    if proto_type in betterproto2.WIRE_FIXED_64_TYPES:
        return FIXED64
    return BYTES
