"""The arena's blocks: they never overlap, nobody changes another's, and the books are right."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import random
from itertools import pairwise

import pytest

from quorate.core._arena import Arena, Blocks
from tests.depth import depth

CHUNK = 4 * 1024 * 1024


def sizes(rng: random.Random) -> int:
    kind = rng.randrange(10)
    if kind < 6:
        return rng.randrange(1, 1100)
    if kind < 8:
        return rng.randrange(1000, 20_000)
    if kind < 9:
        return rng.choice([8, 1024, 1025, 1032, 16_368, 16_369, 4096 * 7 - 48, 4096 * 7 - 47])
    return rng.randrange(20_000, 300_000)


def overlap(blocks: Blocks) -> bool:
    held = blocks.addresses()
    return any(a + size > b for (a, size), (b, _) in pairwise(held))


@pytest.mark.parametrize("seed", range(depth(4, 200)))
def test_random_blocks(seed: int) -> None:
    rng = random.Random(seed)
    blocks = Blocks()
    held: list[int] = []
    for step in range(1500):
        growing = step // 300 % 2 == 0
        if held and rng.random() < (0.35 if growing else 0.65):
            blocks.give(held.pop(rng.randrange(len(held))))
        else:
            held.append(blocks.take(sizes(rng)))
        if step % 50 == 0:
            blocks.arena.check()
            assert not overlap(blocks), seed
    while held:
        blocks.give(held.pop(rng.randrange(len(held))))
    blocks.arena.check()
    assert blocks.arena.used_bytes == 0
    # Each size class may keep one empty span.
    assert blocks.arena.span_bytes <= 188 * 65_536 + 4096 * blocks.arena.mapped_bytes // CHUNK


def test_every_size_up_to_the_largest_class() -> None:
    blocks = Blocks()
    for size in range(0, 17_000, 7):
        before = blocks.arena.used_bytes
        number = blocks.take(size)
        rounding = blocks.arena.used_bytes - before - size
        assert 0 <= rounding <= max(8, size // 4 + 8), (size, rounding)
        if size % 3:
            blocks.give(number)
    blocks.arena.check()
    assert not overlap(blocks)


def test_small_rounding() -> None:
    blocks = Blocks()
    for size in range(1, 1025):
        before = blocks.arena.used_bytes
        blocks.take(size)
        assert blocks.arena.used_bytes - before == (size + 7) // 8 * 8


def test_huge_blocks_are_mapped_alone_and_unmapped() -> None:
    blocks = Blocks()
    largest_in_chunk = CHUNK - 4096 - 48
    inside = blocks.take(largest_in_chunk)
    assert blocks.arena.mapped_bytes == CHUNK
    alone = blocks.take(largest_in_chunk + 1)
    other = blocks.take(30_000_000)
    blocks.arena.check()
    assert blocks.arena.mapped_bytes > 2 * CHUNK - 8192 + 30_000_000
    blocks.give(alone)
    blocks.give(other)
    blocks.give(inside)
    blocks.arena.check()
    assert blocks.arena.mapped_bytes == CHUNK


def resident_bytes() -> int:
    # Not statm, whose counters lag.
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Rss:"))


def test_memory_goes_back_to_the_system() -> None:
    gc.collect()
    blocks = Blocks()
    start = resident_bytes()
    held = [blocks.take(344) for _ in range(100_000)]
    full = resident_bytes() - start
    assert full > 30_000_000
    for number in held:
        blocks.give(number)
    blocks.arena.check()
    assert blocks.arena.mapped_bytes <= 2 * CHUNK
    assert blocks.arena.idle_bytes < 2 * CHUNK
    assert blocks.arena.span_bytes <= 200_000
    # Python's own objects for the numbers stay; the blocks' memory does not.
    assert resident_bytes() - start < full - 25_000_000


def test_holes_are_used_again() -> None:
    blocks = Blocks()
    held = [blocks.take(344) for _ in range(20_000)]
    mapped = blocks.arena.mapped_bytes
    for number in held[::2]:
        blocks.give(number)
    for _ in range(10_000):
        blocks.take(344)
    blocks.arena.check()
    assert blocks.arena.mapped_bytes == mapped


def test_no_memory() -> None:
    blocks = Blocks()
    with pytest.raises(MemoryError):
        blocks.take(1 << 62)
    blocks.arena.check()


def is_mapped(address: int) -> bool:
    with open("/proc/self/maps") as file:
        spans = [line.split()[0].split("-") for line in file]
    return any(int(a, 16) <= address < int(b, 16) for a, b in spans)


LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
PRIVATE_FIXED_NO_REPLACE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000


def in_the_child(blocks: list[Blocks]) -> bytes:
    """What a forked process finds; it has the only other reference to the list's arena."""
    [(address, _)] = blocks[0].addresses()
    if is_mapped(address):
        return b"copied"
    # What the child maps may come to lie in the hole that the arena left: here, it does.
    hole = address // CHUNK * CHUNK
    if LIBC.mmap(hole, CHUNK, mmap.PROT_READ, PRIVATE_FIXED_NO_REPLACE, -1, 0) != hole:
        return b"there is no hole"
    blocks.clear()
    return b"well" if is_mapped(address) else b"freed what is not its own"


def test_a_fork_neither_copies_nor_frees() -> None:
    held = [Blocks()]
    held[0].take(1000)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, in_the_child(held))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reader, 100) == b"well"
    os.close(reader)
    os.close(writer)
    held[0].give(1)
    held[0].arena.check()


def test_an_unused_arena_holds_nothing() -> None:
    arena = Arena()
    arena.check()
    assert (arena.mapped_bytes, arena.span_bytes, arena.used_bytes, arena.blocks) == (0, 0, 0, 0)


def test_some_free_memory_stays_and_the_rest_goes() -> None:
    blocks = Blocks()
    held = [blocks.take(60_000) for _ in range(2000)]
    for number in held[::2]:
        blocks.give(number)
    blocks.arena.check()
    assert 4_000_000 < blocks.arena.idle_bytes <= 4_194_304
    again = [blocks.take(60_000) for _ in range(1000)]
    blocks.arena.check()
    assert blocks.arena.idle_bytes == 0
    for number in again:
        blocks.give(number)
