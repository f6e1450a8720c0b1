"""The target `bolt`: any bytes as a bbolt file; its mutator works on pages and corrects sums."""

from __future__ import annotations

import random
import struct

from quorate.core._bolt import Bolt, BoltError
from quorate.core._mvcc import Store
from quorate.core._restore import BackendError, Restore
from tests.boltmodel import (
    LEAF,
    NO_FREELIST,
    Maker,
    Model,
    bucket_at,
    fnv,
    inline_bucket,
    leaf_body,
)
from tests.fuzz.mutations import EDGES, havoc, number

PAGE = 512
META = struct.Struct("<4I5Q")


def seeds() -> dict[str, bytes]:
    """Files with each kind of page."""
    found = {}
    for name, freelist in (("plain", None), ("freelist", False), ("counted", True)):
        maker = Maker()
        maker.leaf(4, [(b"a", b"1"), (b"b", b"2" * 700)])
        maker.leaf(9, [(b"m", b"3")])
        maker.leaf(8, [(b"x", b"4"), (b"y", b"")])
        maker.branch(6, [(b"a", 4), (b"m", 9), (b"w", 8)])
        buckets = [
            (b"e", inline_bucket([])),
            (b"i", inline_bucket([(b"k", b"v")], 7)),
            (b"p", bucket_at(6, 3)),
        ]
        maker.leaf(12, buckets, flags=1)
        if freelist is not None:
            maker.freelist(10, [2, 3, 7, 11], inside=freelist)
        maker.metas(12, 13, NO_FREELIST if freelist is None else 10)
        found[name] = maker.file(13)
    nested = Maker()
    nested.leaf(3, [(b"b", inline_bucket([(b"c", b"d")]))], flags=1)
    nested.place(2, LEAF, 1, leaf_body([(b"key", bucket_at(3, 1))], flags=1))
    nested.metas(2, 4)
    found["nested"] = nested.file(4)
    return found


def run(data: bytes) -> bool:
    """Read all of it in both directions, walk it, and compare with the model if it is sound."""
    if not data:
        return False
    try:
        bolt = Bolt(data)
        content = {name: (bolt.sequence(name), list(bolt.items(name))) for name in bolt.buckets()}
        check = bolt.check()
    except BoltError:
        return False
    nested = [value is None for _, pairs in content.values() for _, value in pairs]
    assert check.pairs >= nested.count(False)
    if bolt.warning is None and not any(nested):
        assert Model(data).content == content
    for name, (_, pairs) in content.items():
        compare_ways(bolt, name, pairs)
    restore(bolt)
    return True


def compare_ways(bolt: Bolt, name: bytes, pairs: list[tuple[bytes, bytes | None]]) -> None:
    """A bucket from its end, and by each key that it has or has not."""
    cursor = bolt.cursor(name)
    backwards = []
    item = cursor.last()
    while item is not None:
        backwards.append(item)
        item = cursor.previous()
    assert backwards[::-1] == pairs
    for at, (key, value) in enumerate(pairs):
        assert bolt.get(name, key) == value
        assert cursor.seek(key) == (key, value)
        assert cursor.seek(key + b"\0") == (pairs[at + 1] if at + 1 < len(pairs) else None)


def restore(bolt: Bolt) -> None:
    """A sound file as a store, if it is one; what keys mean is another target's matter."""
    store = Store()
    try:
        pairs = Restore(bolt, store)
        while pairs.step(1000):
            pass
        pairs.finish(0, 0)
    except (BackendError, BoltError):
        return


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change a page, an element or a meta; the metas' sums are right afterwards, mostly."""
    size = page_size(data)
    if len(data) < 3 * size or rng.random() < 0.1:
        return havoc(data, rng)
    out = bytearray(data)
    at = rng.randrange(len(out) // size) * size
    choice = rng.randrange(6)
    if choice == 0:
        change_header(out, at, rng)
    elif choice in (1, 2):
        change_element(out, at, rng)
    elif choice == 3:
        change_meta(out, rng.randrange(2) * size + 16, rng)
    elif choice == 4:
        source = rng.randrange(len(out) // size) * size
        keep = out[at : at + 8] if rng.random() < 0.7 else out[source : source + 8]
        out[at : at + size] = keep + out[source + 8 : source + size]
    else:
        out = bytearray(
            out[: rng.randint(0, len(out) // size) * size] + havoc(bytes(out[at:]), rng)
        )
    if rng.random() < 0.9:
        correct_sums(out, size)
    return bytes(out)


def page_size(data: bytes) -> int:
    """What the first meta says, or the seeds' own."""
    said = int.from_bytes(data[24:28], "little")
    return said if PAGE <= said <= 65536 and said & (said - 1) == 0 else PAGE


def change_header(out: bytearray, at: int, rng: random.Random) -> None:
    """Number, kind, count or overflow of a page."""
    field, width = rng.choice(((0, 8), (8, 2), (10, 2), (12, 4)))
    change_number(out, at + field, width, rng)


def change_element(out: bytearray, at: int, rng: random.Random) -> None:
    """A field of one of the elements of a page."""
    count = min(int.from_bytes(out[at + 10 : at + 12], "little"), 30)
    element = at + 16 + 16 * rng.randrange(count + 1)
    field, width = rng.choice(((0, 4), (4, 4), (8, 4), (12, 4), (8, 8)))
    change_number(out, element + field, width, rng)


def change_meta(out: bytearray, at: int, rng: random.Random) -> None:
    """A field of a meta: page size, root, sequence, freelist, high water, transaction."""
    field, width = rng.choice(((8, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8)))
    change_number(out, at + field, width, rng)


def change_number(out: bytearray, at: int, width: int, rng: random.Random) -> None:
    if at + width > len(out):
        return
    near = int.from_bytes(out[at : at + width], "little")
    found = rng.choice(EDGES) if rng.random() < 0.2 else number(rng, near, 8 * width)
    out[at : at + width] = (found & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def correct_sums(out: bytearray, size: int) -> None:
    """Let both metas' checksums be right."""
    for at in (16, size + 16):
        if len(out) >= at + 64:
            out[at + 56 : at + 64] = fnv(bytes(out[at : at + 56])).to_bytes(8, "little")
