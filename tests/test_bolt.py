"""bbolt files: what is written is read back, here and by a model, whatever the disk does."""

from __future__ import annotations

import bisect
import mmap
import random
from pathlib import Path
from typing import Any

import pytest

from quorate.core._bolt import Bolt, BoltError, Check
from quorate.core._boltwriter import BoltWriter
from quorate.core._disk import DiskError, OsDisk
from quorate.core.errors import Fatal
from tests.boltmodel import Content, Maker, Model, bucket_at, inline_bucket
from tests.depth import depth, seed
from tests.sim.disk import SimDisk

PATH = "/d/db"
PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


def sim_disk(number: int = 1) -> SimDisk:
    disk = SimDisk(random.Random(number))
    disk.make_directory("/d")
    disk.sync_directory("/")
    return disk


def write(disk: SimDisk, content: Content, **how: Any) -> bytes:
    """The bytes of a file with that content."""
    writer = BoltWriter(disk, PATH, **how)
    fill(writer, content)
    size = writer.finish()
    data = bytes(disk.file(PATH).data)
    assert len(data) == size == writer.pages * writer.page_size
    return data


def fill(writer: BoltWriter, content: Content) -> None:
    for name, (sequence, pairs) in content.items():
        writer.begin(name, sequence)
        for key, value in pairs:
            writer.put(key, value)
        writer.end()


def read(bolt: Bolt) -> Content:
    content: Content = {}
    for name in bolt.buckets():
        pairs = [(key, value or b"") for key, value in bolt.items(name)]
        content[name] = (bolt.sequence(name), pairs)
    return content


def random_content(rng: random.Random, page_size: int) -> Content:
    content: Content = {}
    for _ in range(rng.choice([0, 1, 5, 40])):
        pairs: dict[bytes, bytes] = {}
        value_size_max = rng.choice([0, 20, page_size // 3, 3 * page_size])
        for _ in range(rng.choice([0, 1, 3, 30, 100])):
            key = rng.randbytes(rng.choice([1, 2, 17, 17, min(32768, rng.randint(1, page_size))]))
            pairs[key] = rng.randbytes(rng.randint(0, value_size_max))
        content[rng.randbytes(rng.randint(1, 40))] = (rng.getrandbits(64), sorted(pairs.items()))
    return content


def test_random_buckets_come_back() -> None:
    number = seed()
    rng = random.Random(number)
    for turn in range(depth(16, 2000)):
        page_size = rng.choice(PAGE_SIZES[:4] if turn % 4 else PAGE_SIZES)
        how = {
            "page_size": page_size,
            "leaf_size": rng.choice([0, page_size, 3 * page_size, 65536]),
            "fill_percent": rng.choice([10, 50, 90, 100]),
            "transaction": rng.choice([1, 2, 77]),
            "freelist": rng.choice([0, 1]),
        }
        content = random_content(rng, page_size)
        why = f"QUORATE_SEED={number}, turn {turn}, {how}"
        data = write(sim_disk(), content, **how)
        bolt = Bolt(data, PATH)
        assert read(bolt) == content == Model(data).content, why
        assert list(read(bolt)) == sorted(content), why
        assert (bolt.transaction, bolt.page_size) == (how["transaction"], page_size), why
        assert (bolt.freelist is not None) == bool(how["freelist"]), why
        check = bolt.check()
        assert check.buckets == len(content), why
        assert check.pairs == sum(len(pairs) for _, pairs in content.values()), why
        assert (check.pages_free, check.pages_reached) == (0, bolt.high_water), why
        assert write(sim_disk(), content, **how) == data, why


def test_a_cursor_goes_everywhere() -> None:
    number = seed()
    rng = random.Random(number)
    keys = sorted({rng.randbytes(rng.randint(1, 5)) for _ in range(3000)})
    data = write(sim_disk(), {b"b": (0, [(key, key * 2) for key in keys])}, page_size=512)
    cursor = Bolt(data).cursor(b"b")
    assert cursor.next() is None
    assert cursor.previous() is None
    assert cursor.first() == (keys[0], keys[0] * 2)
    assert cursor.previous() is None
    assert cursor.last() == (keys[-1], keys[-1] * 2)
    assert cursor.next() is None
    at = 0
    cursor.first()
    for step in range(depth(5000, 100_000)):
        what = rng.randrange(3)
        if what == 0:
            key = rng.randbytes(rng.randint(0, 5)) if rng.random() < 0.8 else rng.choice(keys)
            at = bisect.bisect_left(keys, key)
            found = cursor.seek(key)
        else:
            at += 1 if what == 1 else -1
            found = cursor.next() if what == 1 else cursor.previous()
        expected = (keys[at], keys[at] * 2) if 0 <= at < len(keys) else None
        assert found == expected, f"QUORATE_SEED={number}, step {step}"
        if expected is None:
            at = rng.choice([0, len(keys) - 1])
            assert (cursor.last() if at else cursor.first()) is not None


@pytest.mark.parametrize("leaf_size", [0, 65536])
def test_each_pair_is_where_the_writer_says(tmp_path: Path, leaf_size: int) -> None:
    path = tmp_path / "db"
    writer = BoltWriter(OsDisk(), str(path), leaf_size=leaf_size)
    values = [bytes([at % 251]) * (at % 700) for at in range(3000)]
    values[1500] = b"large" * 1_000_000
    places: list[int] = []
    writer.begin(b"small")
    writer.put(b"a", b"b")
    writer.end()
    writer.begin(b"key", places=True)
    for at, value in enumerate(values):
        writer.put(at.to_bytes(8, "big"), value)
        if at % 100 == 0:
            places += writer.take_places()
    writer.end()
    places += writer.take_places()
    writer.finish()
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for at, (place, value) in enumerate(zip(places, values, strict=True)):
            assert data[place : place + 8] == at.to_bytes(8, "big")
            assert data[place + 8 : place + 8 + len(value)] == value
        bolt = Bolt(data)
        assert [value for _, value in bolt.items(b"key")] == values
        del bolt


# --- going on with a file -------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(depth(30, 500)))
def test_a_file_is_gone_on_with(number: int) -> None:
    """Buckets grow, are written anew or stay; what the file had before is not touched."""
    chance = random.Random(seed() + number)
    page_size = chance.choice((512, 4096))
    disk = sim_disk()
    key = 0
    content: Content = {b"stays": (3, [(b"a", bytes(chance.randrange(3000)))]), b"other": (0, [])}
    grown: list[tuple[bytes, bytes]] = []

    def pairs(at_least: int) -> list[tuple[bytes, bytes]]:
        nonlocal key
        found = []
        for _ in range(at_least + chance.randrange(60)):
            key += 1
            found.append((b"%08d" % key, bytes(chance.choice((0, 9, 300, 9000)))))
        return found

    grown += pairs(1)
    writer = BoltWriter(disk, PATH, page_size=page_size, leaf_size=chance.choice((0, 16384)))
    fill(writer, content)
    writer.begin(b"key", 7, places=True)
    for pair in grown:
        writer.put(*pair)
    writer.end()
    writer.finish()
    for _ in range(chance.randrange(1, 12)):
        before = bytes(disk.file(PATH).data)
        bolt = Bolt(before, PATH)
        writer = BoltWriter.append_to(
            disk, bolt, leaf_size=chance.choice((0, 16384)), deferred=chance.random() < 0.5
        )
        new = pairs(0) if chance.random() < 0.8 else []
        writer.extend(b"key", places=True)
        for pair in new:
            writer.put(*pair)
        writer.end()
        grown += new
        if chance.random() < 0.5:
            content[b"other"] = (0, pairs(0))
            fill(writer, {b"other": content[b"other"]})
        size = writer.finish()
        after = bytes(disk.file(PATH).data)
        old_end = bolt.high_water * page_size
        assert after[2 * page_size : old_end] == before[2 * page_size : old_end]
        kept = bolt.transaction & 1
        assert after[kept * page_size :][:page_size] == before[kept * page_size :][:page_size]
        found = Bolt(after, PATH)
        assert (found.transaction, found.high_water * page_size) == (bolt.transaction + 1, size)
        assert read(found) == {**content, b"key": (7, grown)}, f"seed {seed() + number}"
        assert found.check().buckets >= len(content)
        assert read(Bolt(before, PATH)).keys() == {*content, b"key"}


@pytest.mark.parametrize("bucket", [b"missing", b"empty", b"small"])
def test_a_bucket_without_pages_is_not_gone_on_with(bucket: bytes) -> None:
    disk = sim_disk()
    writer = BoltWriter(disk, PATH)
    writer.begin(b"empty", places=True)
    writer.end()
    fill(writer, {b"small": (0, [(b"k", b"v")])})
    writer.finish()
    bolt = Bolt(bytes(disk.file(PATH).data), PATH)
    assert not bolt.has_pages(bucket)
    writer = BoltWriter.append_to(disk, bolt)
    with pytest.raises(Fatal, match="can't be gone on with"):
        writer.extend(bucket)


def test_the_largest_keys_and_what_is_too_large() -> None:
    pairs = [(bytes([first]) * 32768, b"v") for first in range(1, 9)]
    for page_size in (512, 4096):
        data = write(sim_disk(), {b"b": (0, pairs)}, page_size=page_size)
        assert read(Bolt(data)) == {b"b": (0, pairs)}
        Bolt(data).check()
    writer = BoltWriter(sim_disk(), PATH)
    writer.begin(b"b")
    for key in (b"", bytes(32769)):
        with pytest.raises(Fatal):
            writer.put(key, b"")


def test_a_bucket_lies_inline_where_bbolt_has_it_so() -> None:
    """Up to a quarter of a page, headers included."""
    for size, inline in ((1024 - 33, True), (1024 - 32, False)):
        data = write(sim_disk(), {b"b": (5, [(b"k", bytes(size))])})
        assert Bolt(data).check().pages_reached == (3 if inline else 4)


def test_what_is_out_of_order_is_refused() -> None:
    writer = BoltWriter(sim_disk(), PATH)
    with pytest.raises(Fatal, match="no bucket"):
        writer.put(b"a", b"")
    with pytest.raises(Fatal, match="no bucket"):
        writer.end()
    writer.begin(b"one")
    writer.put(b"b", b"")
    for key in (b"b", b"a"):
        with pytest.raises(Fatal, match="after key b'b'"):
            writer.put(key, b"")
    with pytest.raises(Fatal, match="is open"):
        writer.finish()
    writer.end()
    with pytest.raises(Fatal, match="was there before"):
        writer.begin(b"one")
    with pytest.raises(Fatal, match="name"):
        writer.begin(b"")
    writer.finish()
    with pytest.raises(Fatal, match="closed"):
        writer.finish()


def test_a_file_that_is_not_empty_is_not_written_over() -> None:
    disk = sim_disk()
    write(disk, {})
    with pytest.raises(Fatal, match="not empty"):
        BoltWriter(disk, PATH)


def test_a_disk_that_fails_or_dies_at_any_operation() -> None:
    """What is there afterwards is the whole file or no bbolt file."""
    pairs = [(at.to_bytes(2, "big"), bytes(40_000)) for at in range(40)]
    content: Content = {b"a": (0, [(b"k", b"v")]), b"b": (0, pairs)}
    disk = sim_disk()
    write(disk, content)
    operations = disk.operations
    whole = 0
    for at in range(3, operations + 1):
        for fault in ("fail_at", "die_at"):
            disk = sim_disk(at)
            setattr(disk, fault, at)
            with pytest.raises(DiskError):
                write(disk, content)
            # The worst case: the name is there, whatever became of the bytes.
            disk.durable_names = dict(disk.names)
            for how in ("nothing", "all", *["prefix"] * 3, *["sectors"] * 5):
                left = disk.crash(how).names.get(PATH)
                if left is None:
                    continue
                try:
                    bolt = Bolt(bytes(left.data))
                except BoltError:
                    continue
                # With a good meta all else is there.
                assert read(bolt) == content, (at, fault, how)
                whole += 1
    assert whole, "the metas never reached the disk"


def test_the_first_failure_is_final() -> None:
    disk = sim_disk()
    writer = BoltWriter(disk, PATH)
    writer.begin(b"b")
    disk.fail_at = disk.operations + 1
    large = bytes(2_000_000)
    writer.put(b"a", large)
    with pytest.raises(DiskError):
        writer.put(b"b", large)
    for refused in (writer.end, writer.finish, lambda: writer.put(b"c", b"")):
        with pytest.raises(Fatal):
            refused()
    assert not writer.finished
    writer.close()


# --- files of others ----------------------------------------------------------


def old_file(**freelist: bool) -> Maker:
    """A file as a long life leaves it: free pages between others, half-full pages, a freelist."""
    maker = Maker()
    maker.leaf(4, [(b"a", b"1"), (b"b", b"2" * 700)])
    maker.leaf(9, [(b"m", b"3")])
    maker.leaf(8, [(b"x", b"4"), (b"y", b"")])
    maker.branch(6, [(b"a", 4), (b"m", 9), (b"w", 8)])
    maker.leaf(
        12,
        [
            (b"e", inline_bucket([])),
            (b"i", inline_bucket([(b"k", b"v")], 7)),
            (b"p", bucket_at(6, 3)),
        ],
        flags=1,
    )
    maker.pages[7] = b"left behind"
    if freelist:
        maker.freelist(10, [2, 3, 7, 11], **freelist)
    maker.metas(12, 13, 10 if freelist else 0xFFFFFFFFFFFFFFFF)
    return maker


OLD_CONTENT: Content = {
    b"e": (0, []),
    b"i": (7, [(b"k", b"v")]),
    b"p": (3, [(b"a", b"1"), (b"b", b"2" * 700), (b"m", b"3"), (b"x", b"4"), (b"y", b"")]),
}


@pytest.mark.parametrize("freelist", [{}, {"inside": False}, {"inside": True}])
def test_an_old_file(freelist: dict[str, bool]) -> None:
    bolt = Bolt(old_file(**freelist).file(40))
    assert read(bolt) == OLD_CONTENT
    assert bolt.warning is None
    assert bolt.get(b"p", b"m") == b"3"
    assert bolt.get(b"p", b"n") is None
    with pytest.raises(KeyError):
        bolt.cursor(b"q")
    check = Check(bolt)
    slices = 1
    while not check.run(1):
        slices += 1
    assert slices > 4
    assert (check.buckets, check.pairs) == (3, 6)
    assert check.pages_free == (4 if freelist else 5)
    assert check.run(1)


@pytest.mark.parametrize(
    ("free", "reason"),
    [
        ([2, 3, 7], "page 11: it is neither used nor free"),
        ([2, 3, 7, 9, 11], "page 9: it is used twice"),
        ([2, 3, 7, 10, 11], "page 10: it is used twice"),
        ([2, 3, 3, 7, 11], "no ascending ones"),
        ([2, 3, 7, 11, 13], "no ascending ones"),
        ([1, 2, 3, 7, 11], "no ascending ones"),
    ],
)
def test_a_freelist_that_lies(free: list[int], reason: str) -> None:
    maker = old_file(inside=True)
    maker.freelist(10, free)
    with pytest.raises(BoltError, match=reason):
        Bolt(maker.file(13)).check()


def test_nested_buckets() -> None:
    maker = Maker()
    maker.leaf(2, [(b"in", bucket_at(3))], flags=1)
    maker.leaf(3, [(b"deep", inline_bucket([(b"k", b"v")]))], flags=1)
    maker.leaf(4, [(b"top", bucket_at(2))], flags=1)
    maker.metas(4, 5)
    bolt = Bolt(maker.file(5))
    assert list(bolt.items(b"top")) == [(b"in", None)]
    assert type(bolt.cursor(b"top"))(bolt, b"top", b"in", b"deep").first() == (b"k", b"v")
    check = bolt.check()
    assert (check.buckets, check.pairs) == (3, 1)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_the_newer_of_two_good_metas_counts(page_size: int) -> None:
    maker = Maker(page_size)
    maker.leaf(2, [(b"old", inline_bucket([]))], flags=1)
    maker.leaf(3, [(b"new", inline_bucket([]))], flags=1)
    for newer in (0, 1):
        maker.meta(newer, 3, 4, transaction=9)
        maker.meta(1 - newer, 2, 4, transaction=8)
        data = bytearray(maker.file(4))
        assert Bolt(data).buckets() == [b"new"]
        data[newer * page_size + 60] ^= 1
        bolt = Bolt(data)
        assert bolt.buckets() == [b"old"]
        assert f"meta page {newer}: its checksum is wrong" in (bolt.warning or "")
        data[(1 - newer) * page_size + 60] ^= 1
        with pytest.raises(BoltError, match="checksum"):
            Bolt(data)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"root": 1}, "root"),
        ({"root": 13}, "root"),
        ({"high_water": 14}, "shorter"),
        ({"high_water": 1 << 60}, "shorter"),
        ({"freelist": 1}, "freelist"),
        ({"freelist": 13}, "freelist"),
        ({"page_size": 256}, "page size"),
        ({"page_size": 131072}, "page size"),
        ({"page_size": 768}, "page size"),
        ({"page_size": 0x80000000}, "page size"),
    ],
)
def test_a_meta_that_points_outside(fields: dict[str, int], reason: str) -> None:
    maker = old_file()
    arguments = {"root": 12, "high_water": 13, "transaction": 8} | fields
    maker.meta(0, **arguments)
    assert reason in (Bolt(maker.file(13)).warning or "")
    maker.meta(1, **(arguments | {"transaction": 9}))
    with pytest.raises(BoltError, match=reason):
        Bolt(maker.file(13))
