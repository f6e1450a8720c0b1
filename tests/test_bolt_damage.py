"""Damaged bbolt files: refused with page and reason, or read right; never a crash or a quiet loss.

A page has no checksum. So a flipped bit in a key, a value or a bucket's sequence may change just
that; and where the last element of a leaf ends, only the element itself says.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from quorate.core._bolt import Bolt, BoltError
from tests.boltmodel import LEAF, Content, Maker, Model, bucket_at, leaf_body
from tests.depth import depth, seed
from tests.test_bolt import old_file, read, sim_disk, write

CONTENT: Content = {
    b"empty": (0, []),
    b"large": (0, [(b"v", b"x" * 1200)]),
    b"key": (0, [(b"%02d" % at, bytes([65 + at]) * 60) for at in range(14)]),
    b"meta": (9, [(b"index", b"12345678"), (b"term", b"1")]),
}
IN_ORDER = {name: CONTENT[name] for name in sorted(CONTENT)}


def small_file() -> bytes:
    """Each kind of page, in a file without free pages."""
    return write(sim_disk(), CONTENT, page_size=512, freelist=1)


def judged(data: bytes | bytearray) -> Content | BoltError:
    """What the file holds, or why it is refused."""
    try:
        bolt = Bolt(data)
        content = read(bolt)
        check = bolt.check()
    except BoltError as error:
        return error
    # A fresh file has no free page.
    return content if check.pages_free == 0 else BoltError("", 0, "a page that nobody uses")


def changed(content: Content) -> int:
    """How many names, sequences, keys and values differ; -1 when something is missing or new."""
    if [len(pairs) for _, pairs in content.values()] != [len(p) for _, p in IN_ORDER.values()]:
        return -1
    count = 0
    for (name, bucket), (old_name, old_bucket) in zip(
        content.items(), IN_ORDER.items(), strict=True
    ):
        count += name != old_name
        count += bucket[0] != old_bucket[0]
        for pair, old_pair in zip(bucket[1], old_bucket[1], strict=True):
            count += (pair[0] != old_pair[0]) + (pair[1] != old_pair[1])
    return count


def test_every_flipped_bit() -> None:
    data = bytearray(small_file())
    soft = Model(bytes(data), softness=True).soft
    assert judged(data) == IN_ORDER
    refused = 0
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        result = judged(data)
        data[bit // 8] ^= 1 << bit % 8
        where = f"byte {bit // 8} (page {bit // 4096}, offset {bit // 8 % 512}), bit {bit % 8}"
        if isinstance(result, BoltError):
            refused += 1
        elif bit // 8 in soft:
            assert 0 <= changed(result) <= 2, where
        else:
            assert result == IN_ORDER, where
    assert refused > 10_000


def test_every_page_zeroed_and_every_two_swapped() -> None:
    data = small_file()
    soft = Model(data, softness=True).soft
    pages = [data[at : at + 512] for at in range(0, len(data), 512)]
    # Pages that begin inside the large value have no header.
    inner = {at for at in range(len(pages)) if at * 512 in soft}
    assert len(inner) == 2
    for first in range(len(pages)):
        result = judged(b"".join([*pages[:first], bytes(512), *pages[first + 1 :]]))
        if first in inner:
            assert not isinstance(result, BoltError)
            assert changed(result) == 1
        else:
            assert isinstance(result, BoltError) if first > 1 else result == IN_ORDER, first
        for second in range(first):
            swapped = list(pages)
            swapped[first], swapped[second] = pages[second], pages[first]
            # A meta in the place of an inner page leaves the other meta, and the form is right.
            if first not in inner or second > 1:
                result = judged(b"".join(swapped))
                assert isinstance(result, BoltError), (first, second)


def test_every_truncation() -> None:
    data = small_file()
    for size in range(len(data)):
        assert isinstance(judged(data[:size]), BoltError), size
    assert judged(data + b"more") == IN_ORDER


# --- what only a hand makes ---------------------------------------------------


def tree(root: Callable[[Maker], None]) -> bytes:
    """A file whose bucket `b` has its root in page 3; pages 4 to 7 are leaves of a, g, m, s."""
    maker = Maker()
    maker.leaf(2, [(b"b", bucket_at(3))], flags=1)
    for id, key in enumerate([b"a", b"g", b"m", b"s"], 4):
        maker.leaf(id, [(key, b"1"), (key + b"z", b"2")])
    root(maker)
    maker.metas(2, 10)
    return maker.file(10)


def good(maker: Maker) -> None:
    maker.branch(8, [(b"m", 6), (b"s", 7)])
    maker.branch(9, [(b"a", 4), (b"g", 5)])
    maker.branch(3, [(b"a", 9), (b"m", 8)])


def raw(flags: int, count: int, body: bytes) -> Callable[[Maker], None]:
    return lambda maker: maker.place(3, flags, count, body)


def header(offset: int, value: bytes) -> Callable[[Maker], None]:
    """A leaf of one key whose header has other bytes there."""

    def build(maker: Maker) -> None:
        maker.leaf(3, [(b"a", b"")])
        page = maker.pages[3]
        maker.pages[3] = page[:offset] + value + page[offset + len(value) :]

    return build


def low_branch(*children: tuple[bytes, int]) -> Callable[[Maker], None]:
    def build(maker: Maker) -> None:
        good(maker)
        maker.branch(8, list(children))

    return build


CASES: list[tuple[Callable[[Maker], None], str]] = [
    (lambda maker: maker.branch(3, [(b"a", 3)]), "page 3: the tree is deeper|used twice"),
    (lambda maker: maker.branch(3, [(b"a", 4), (b"b", 3)]), "page 3: its first key is below"),
    (low_branch((b"m", 3)), "page 3: its first key is below"),
    (low_branch((b"m", 8)), "page 8: the tree is deeper|used twice"),
    (low_branch((b"m", 6), (b"mc", 7)), "page 6: its last key is not below"),
    (low_branch((b"m", 5), (b"s", 7)), "page 5: its first key is below"),
    (low_branch((b"m", 6), (b"s", 6)), "page 6: its first key is below"),
    (low_branch((b"m", 0)), "page 0: it is referred to"),
    (low_branch((b"m", 1)), "page 1: it is referred to"),
    (low_branch((b"m", 10)), "page 10: it is referred to"),
    (low_branch((b"m", (1 << 64) - 1)), "page 18446744073709551615: it is referred to"),
    (low_branch((b"m", 1 << 55)), "it is referred to"),
    (low_branch((b"s", 6), (b"m", 7)), "page 8: its keys do not ascend"),
    (low_branch((b"m", 6), (b"m", 7)), "page 8: its keys do not ascend"),
    (low_branch((b"l", 6)), "page 8: its first key is below"),
    (raw(1, 0, b""), "page 3: it is a branch without elements"),
    (raw(2, 0xFFFF, b""), "page 3: it has more elements than room"),
    (raw(2, 32, b""), "page 3: it has more elements than room"),
    (raw(2, 1, b""), "page 3: an element lies where no writer puts it"),
    (raw(3, 0, b""), "page 3: it is neither a branch nor a leaf"),
    (raw(0x10, 0, b""), "page 3: it is neither a branch nor a leaf"),
    (raw(LEAF, 0, b"x"), "page 3: there is something behind its last element"),
    (raw(LEAF, 1, leaf_body([(b"k", b"v")], flags=2)), "page 3: an element has unknown flags"),
    (raw(LEAF, 1, leaf_body([(b"", b"v")])), "page 3: the size of a key or value is impossible"),
    (raw(LEAF, 2, leaf_body([(b"b", b""), (b"a", b"")])), "page 3: its keys do not ascend"),
    (raw(LEAF, 2, leaf_body([(b"aa", b""), (b"a", b"")])), "page 3: its keys do not ascend"),
    (lambda maker: maker.leaf(3, [(b"k", bytes(5000))]), "page 3: it goes on behind the last"),
    (header(0, b"\x04"), "page 3: it has the number of another page"),
    (header(12, b"\x01"), "page 3: it takes more pages than its elements need"),
    (header(12, b"\xff" * 4), "page 3: it goes on behind the last"),
    (lambda maker: maker.leaf(2, [(b"b", b"")], flags=1), "page 2: the value of a bucket"),
    (lambda maker: maker.leaf(2, [(b"b", bytes(16))], flags=1), "page 2: the value of an inline"),
    (lambda maker: maker.leaf(2, [(b"b", bytes(32))], flags=1), "page 2: the page of an inline"),
    (
        lambda maker: maker.leaf(2, [(b"b", bucket_at(3) + b"x")], flags=1),
        "page 2: the value of a bucket is too long",
    ),
    (lambda maker: maker.leaf(2, [(b"b", b"x")]), "page 2: a key lies"),
]


def test_a_good_tree_passes() -> None:
    assert Bolt(tree(good)).check().pairs == 8


@pytest.mark.parametrize(("build", "reason"), CASES)
def test_a_bad_page_is_named_with_its_reason(build: Callable[[Maker], None], reason: str) -> None:
    data = tree(build)
    with pytest.raises(BoltError, match=reason):
        read(Bolt(data))
    with pytest.raises(BoltError):
        read_backwards(Bolt(data))
    with pytest.raises(BoltError, match=reason):
        Bolt(data).check()


def read_backwards(bolt: Bolt) -> None:
    for name in bolt.buckets():
        cursor = bolt.cursor(name)
        found = cursor.last()
        while found is not None:
            found = cursor.previous()


def test_a_bucket_in_itself_is_found() -> None:
    data = tree(lambda maker: maker.leaf(2, [(b"b", bucket_at(2))], flags=1))
    with pytest.raises(BoltError, match="page 2: it is used twice"):
        Bolt(data).check()


def test_two_buckets_with_one_tree_are_found() -> None:
    def twins(maker: Maker) -> None:
        good(maker)
        maker.leaf(2, [(b"b", bucket_at(3)), (b"c", bucket_at(3))], flags=1)

    data = tree(twins)
    with pytest.raises(BoltError, match="page 3: it is used twice"):
        Bolt(data).check()


# --- mutations ----------------------------------------------------------------

INTERESTING = [0, 1, 2, 3, 15, 16, 0x10, 0x7F, 0x80, 0xFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]


def mutate(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    kind = rng.randrange(5)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        size = rng.choice([1, 2, 4, 8])
        at -= at % size
        value = rng.choice(INTERESTING) if rng.random() < 0.7 else rng.getrandbits(64)
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    elif kind == 2:
        other, size = rng.randrange(len(data)), rng.randint(1, 40)
        data[at : at + size] = data[other : other + size]
    elif kind == 3:
        page, other = rng.randrange(len(data) // 512), rng.randrange(len(data) // 512)
        data[page * 512 + 8 : page * 512 + 512] = data[other * 512 + 8 : other * 512 + 512]
    else:
        del data[len(data) - rng.choice([0, 0, 1, 512, 600]) :]


def explore(bolt: Bolt, rng: random.Random) -> None:
    """Every way of reading; a cursor is used again after it was refused."""
    cursors = [bolt.cursor(name) for name in bolt.buckets()]
    for cursor in cursors:
        for _ in range(12):
            try:
                move = rng.choice(
                    [cursor.first, cursor.last, cursor.next, cursor.next, cursor.previous]
                )
                if rng.random() < 0.2:
                    cursor.seek(rng.randbytes(2))
                else:
                    move()
            except BoltError:
                pass
    read(bolt)
    bolt.check()


def test_random_mutations() -> None:
    number = seed()
    rng = random.Random(number)
    originals = [small_file(), tree(good), old_file(inside=True).file(20)]
    end = time.monotonic() + depth(2, 300)
    turns = refused = 0
    while time.monotonic() < end:
        turns += 1
        data = bytearray(rng.choice(originals))
        # Both metas are kept most of the time, or little else would ever be reached.
        metas = data[:1024]
        for _ in range(rng.randint(1, 6)):
            mutate(rng, data)
        if rng.random() < 0.8:
            data[:1024] = metas
        try:
            explore(Bolt(data, f"QUORATE_SEED={number}, turn {turns}"), rng)
        except BoltError:
            refused += 1
    assert refused > turns // 4, f"QUORATE_SEED={number}: {refused} of {turns} refused"
