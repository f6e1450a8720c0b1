"""Changes of bytes that need no knowledge of their format, and numbers that are on edges."""

from __future__ import annotations

import random

EDGES = (
    0, 1, 2, 3, 7, 8, 15, 16, 17, 127, 128, 255, 256, 511, 512, 4095, 4096, 0x7FFF, 0x8000,
    0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 32, 1 << 56,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1,
)  # fmt: skip


def number(rng: random.Random, near: int = 0, bits: int = 64) -> int:
    """One on an edge, near another one, small, or any."""
    choice = rng.randrange(4)
    if choice == 0:
        found = rng.choice(EDGES)
    elif choice == 1:
        found = near + rng.randint(-3, 3)
    elif choice == 2:
        found = rng.randrange(40)
    else:
        found = rng.getrandbits(bits)
    return found & ((1 << bits) - 1)


def bytes_of(rng: random.Random, size_max: int = 40) -> bytes:
    """A few bytes."""
    return rng.randbytes(rng.choice((0, 1, 2, 8, 17, rng.randint(0, size_max))))


def havoc(data: bytes, rng: random.Random) -> bytes:
    """Flip, set, insert, take out, copy or cut, once."""
    out = bytearray(data) or bytearray(1)
    at = rng.randrange(len(out))
    size = min(rng.choice((1, 2, 4, 8, 16, 64)), len(out) - at)
    choice = rng.randrange(7)
    if choice == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif choice == 1:
        out[at] = number(rng, out[at], 8)
    elif choice == 2:
        out[at : at + size] = number(rng, 0, 8 * size).to_bytes(size, "little")
    elif choice == 3:
        out[at:at] = bytes_of(rng)
    elif choice == 4:
        del out[at : at + size]
    elif choice == 5:
        source = rng.randrange(len(out))
        out[at : at + size] = out[source : source + size]
    else:
        del out[at:]
    return bytes(out)
