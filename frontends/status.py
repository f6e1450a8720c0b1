"""What a gRPC status looks like on the wire: error id -> code and etcd's text; Go's quoting.

Rules:
1. `core.errors` alone knows codes and texts; this is their form in a trailer.
2. `grpc-message` is percent-encoded as in grpc-go: everything but printable ASCII, and `%` itself.
"""

from __future__ import annotations

import zlib

from quorate.core.errors import BY_ID
from quorate.frontends.methods import SERVICES

_ESCAPES = {
    0x07: "\\a",
    0x08: "\\b",
    0x0C: "\\f",
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
    0x0B: "\\v",
}


def lines() -> dict[int, tuple[int, bytes]]:
    """Per error id the gRPC code and the encoded message; id 0 is success."""
    table = {number: (error.code.value, encode(error.text)) for number, error in BY_ID.items()}
    return {0: (0, b""), **table}


def encode(text: str) -> bytes:
    """The text as the value of `grpc-message`."""
    raw = text.encode("utf-8", "surrogateescape")
    if all(0x20 <= byte <= 0x7E and byte != 0x25 for byte in raw):
        return raw
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in raw
    )


def quote(value: bytes) -> str:
    """The value as Go's `%q` prints it: printable text stays, invalid UTF-8 becomes \\x escapes."""
    return '"' + "".join(map(_quote_character, value.decode("utf-8", "surrogateescape"))) + '"'


def _quote_character(character: str) -> str:
    number = ord(character)
    if character in '"\\':
        return "\\" + character
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    if number in _ESCAPES:
        return _ESCAPES[number]
    if character.isprintable():
        return character
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def timeout_text(value: bytes) -> str:
    """What grpc-go says of a `grpc-timeout` that it can't read."""
    if len(value) < 2:
        reason = f"transport: timeout string is too short: {quote(value)}"
    elif len(value) > 9:
        reason = f"transport: timeout string is too long: {quote(value)}"
    elif value[-1:] not in (b"H", b"M", b"S", b"m", b"u", b"n"):
        reason = f"transport: timeout unit is not recognized: {quote(value)}"
    else:
        reason = f"strconv.ParseUint: parsing {quote(value[:-1])}: invalid syntax"
    return f"malformed grpc-timeout: {reason}"


def path_text(value: bytes) -> str:
    """What grpc-go says of a path that leads nowhere."""
    service, slash, method = value[1:].rpartition(b"/")
    if value[:1] != b"/" or not slash:
        return f"malformed method name: {quote(value)}"
    name = service.decode("utf-8", "surrogateescape")
    if name in SERVICES:
        return f"unknown method {method.decode('utf-8', 'surrogateescape')} for service {name}"
    return f"unknown service {name}"


def inflate(message: bytes, bytes_max: int) -> bytes:
    """The message unzipped. Raises ValueError with Go's text, OverflowError if it is too large."""
    if not message:
        raise ValueError("EOF")
    if len(message) < 10:
        raise ValueError("unexpected EOF")
    if message[:3] != b"\x1f\x8b\x08":
        raise ValueError("gzip: invalid header")
    machine = zlib.decompressobj(wbits=31)
    try:
        plain = machine.decompress(message, bytes_max + 1)
    except zlib.error as error:
        checksum = "check" in str(error)
        raise ValueError(
            "gzip: invalid checksum" if checksum else "flate: corrupt input before offset 0"
        ) from error
    if len(plain) > bytes_max:
        raise OverflowError
    if not machine.eof:
        raise ValueError("unexpected EOF")
    return plain
