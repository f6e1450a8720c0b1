"""core/_request, frontends/_kv, _overlap: taken or refused, against a naive reading of rules."""

import random
from typing import Any

import pytest

from quorate.core.errors import (
    BY_ID,
    DuplicateKeyError,
    EmptyKeyError,
    InvalidSortOptionError,
    KeyNotFoundError,
    LeaseProvidedError,
    MalformedError,
    TooDeepError,
    TooManyOpsError,
    ValueProvidedError,
)
from quorate.frontends._kv import judge

RANGE, PUT, DELETE, TXN, COMPACT, STREAM = 1, 2, 3, 4, 5, 6
Op = tuple[Any, ...]


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def error_of(method: int, message: bytes, limit: int = 128) -> type[Exception] | None:
    number = judge(method, message, limit)
    return BY_ID[number] if number else None


@pytest.mark.parametrize(
    ("method", "message", "error"),
    [
        (PUT, field(1, b"k") + field(2, b"v"), None),
        (PUT, b"", EmptyKeyError),
        (PUT, field(1, b"k") + field(2, b"v") + field(5, 1), ValueProvidedError),
        (PUT, field(1, b"k") + field(3, 7) + field(6, 1), LeaseProvidedError),
        (PUT, field(1, b"k") + field(99, b"unknown") + field(98, 1), None),
        (PUT, field(1, 5), EmptyKeyError),  # a known field of a wrong type is unknown
        (PUT, b"\x0a\x05ab", MalformedError),  # a length that lies
        (PUT, b"\x80", MalformedError),
        (PUT, b"\x00\x01", MalformedError),  # field 0
        (PUT, b"\x0f", MalformedError),  # wire type 7
        (PUT, b"\x08" + b"\xff" * 10, MalformedError),  # a varint without end
        (PUT, field(1, b"k") + b"\xa3\x06\xa4\x06", None),  # an unknown group, balanced
        (PUT, field(1, b"k") + b"\xa3\x06\xac\x06", MalformedError),  # ended as another
        (PUT, field(1, b"k") + b"\xa3\x06", MalformedError),  # not ended
        (PUT, field(1, b"k") + b"\xa3\x06" * 200 + b"\xa4\x06" * 200, MalformedError),
        (RANGE, field(1, b"k") + field(5, 2) + field(6, 4), None),
        (RANGE, field(1, b"k") + field(5, 3), InvalidSortOptionError),
        (RANGE, field(1, b"k") + field(6, 5), InvalidSortOptionError),
        (RANGE, field(1, b"k") + field(5, 2**64 - 1), InvalidSortOptionError),
        (DELETE, field(2, b"k"), EmptyKeyError),
        (TXN, b"", None),
        (TXN, field(2, b""), KeyNotFoundError),
        (TXN, field(1, b""), EmptyKeyError),
        (TXN, field(2, field(2, field(1, b"a"))) * 2, DuplicateKeyError),
        (COMPACT, field(1, 2**64 - 5) + field(2, 1), None),
        (STREAM, field(1, b"k") + field(5, 1), None),
        (STREAM, field(1, b"k") + field(5, 2), "RangeStreamSortError"),
        (STREAM, field(1, b"k") + field(10, 2), "RangeStreamFilterError"),
        (64, b"", MalformedError),
    ],
)
def test_one_message(method: int, message: bytes, error: type[Exception] | str | None) -> None:
    found = error_of(method, message)
    assert (found.__name__ if isinstance(error, str) and found else found) == error


def test_the_last_of_a_oneof_wins_and_the_same_is_merged() -> None:
    put_then_range = field(2, field(1, b"k") + field(5, 1) + field(2, b"v")) + field(
        1, field(1, b"k")
    )
    assert error_of(TXN, field(2, put_then_range)) is None
    merged = field(2, field(1, b"k") + field(5, 1)) + field(2, field(2, b"v"))
    assert error_of(TXN, field(2, merged)) is ValueProvidedError


def nested(depth: int) -> bytes:
    """A Txn within a Txn within …, `depth` wrappers around an empty one; built inside out."""
    body = b""
    for _ in range(depth):
        body = field(2, field(4, body))
    return body


def test_nesting_is_bounded_by_the_budget_and_by_protobuf_never_by_the_stack() -> None:
    assert error_of(TXN, nested(128)) is None
    assert error_of(TXN, nested(129)) is TooManyOpsError
    assert error_of(TXN, nested(4_999), 10_000) is None
    assert error_of(TXN, nested(5_000), 10_000) is TooDeepError
    assert error_of(TXN, nested(60_000)) is TooDeepError


def test_lists_are_counted_each_and_children_share_what_is_left() -> None:
    ranges = field(2, field(1, field(1, b"k")))
    assert error_of(TXN, ranges * 128) is None
    assert error_of(TXN, ranges * 129) is TooManyOpsError
    child = field(2, field(4, ranges * 100))
    assert error_of(TXN, child + ranges * 27) is None
    assert error_of(TXN, child + ranges * 28) is TooManyOpsError


# --- the overlap rule against a naive model -------------------------------------------------------


def covers(begin: bytes, end: bytes, key: bytes) -> bool:
    return key == begin if not end else begin <= key < end


class Duplicate(Exception):
    pass


def model(ops: list[Op]) -> tuple[set[bytes], list[tuple[bytes, bytes]]]:
    """The puts and deletes of a list, in the words of the module's rules. Raises Duplicate."""
    deletes = [(op[1], op[2]) for op in ops if op[0] == "delete"]
    puts: set[bytes] = set()
    for op in ops:
        if op[0] != "txn":
            continue
        (then_puts, then_deletes), (else_puts, else_deletes) = model(op[1]), model(op[2])
        for key in then_puts | else_puts:
            if key in puts or any(covers(b, e, key) for b, e in deletes):
                raise Duplicate
        puts |= then_puts | else_puts
        deletes += then_deletes + else_deletes
    for op in ops:
        if op[0] == "put":
            if op[1] in puts or any(covers(b, e, op[1]) for b, e in deletes):
                raise Duplicate
            puts.add(op[1])
    return puts, deletes


def encode_op(op: Op) -> bytes:
    if op[0] == "put":
        return field(2, field(1, op[1]))
    if op[0] == "delete":
        end = op[2]
        return field(3, field(1, op[1]) + (field(2, end) if end else b""))
    return field(4, encode(op[1], op[2]))


def encode(success: list[Op], failure: list[Op]) -> bytes:
    out = b"".join(field(2, encode_op(op)) for op in success)
    return out + b"".join(field(3, encode_op(op)) for op in failure)


def random_ops(rng: random.Random, depth: int) -> list[Op]:
    keys = [b"a", b"a\0", b"a\0\0", b"ab", b"b", b"b\0", b"c", b"\0", b"\xff"]
    ops: list[Op] = []
    for _ in range(rng.randrange(0, 4)):
        kind = rng.choice(["put", "put", "delete", "txn"])
        if kind == "put":
            ops.append(("put", rng.choice(keys)))
        elif kind == "delete":
            ops.append(("delete", rng.choice(keys), rng.choice([b"", b"", *keys])))
        elif depth:
            ops.append(("txn", random_ops(rng, depth - 1), random_ops(rng, depth - 1)))
    return ops


def test_overlaps_against_the_model() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    seen = {True: 0, False: 0}
    for _ in range(20_000):
        success, failure = random_ops(rng, 3), random_ops(rng, 3)
        try:
            model(success)
            model(failure)
            expected = False
        except Duplicate:
            expected = True
        seen[expected] += 1
        found = error_of(TXN, encode(success, failure)) is DuplicateKeyError
        assert found == expected, f"seed {seed}: {success} {failure}"
    assert min(seen.values()) > 2_000, seen


def test_random_bytes_get_an_answer() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(20_000):
        message = bytearray(encode(random_ops(rng, 2), random_ops(rng, 2)))
        for _ in range(rng.randrange(0, 4)):
            if message:
                message[rng.randrange(len(message))] = rng.randrange(256)
        judge(rng.choice([RANGE, PUT, DELETE, TXN, COMPACT, STREAM]), bytes(message))
