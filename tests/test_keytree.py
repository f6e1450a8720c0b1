"""The tree against a SortedDict: same order, same ranks, every rule kept after each step."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sortedcontainers import SortedDict

from quorate.core._keytree import KeySet
from tests.depth import depth

# What goes wrong in ordered trees of bytes: prefixes of one another, ties of the first 8 bytes,
# zero bytes that look like padding, and prefixes longer than a node remembers.
LONG = b"/registry/" + b"x" * 70
PREFIXES = [
    b"",
    b"\0",
    b"\xff",
    b"a",
    b"abcdefgh",
    b"abcdefgh\0",
    b"/registry/pods/kube-system/",
    LONG,
    LONG + b"/" + b"y" * 64,
]
TAILS = [b"", b"\0", b"\0\0", b"\0" * 9, b"a", b"\xff", b"\xff\xff", b"abcdefg", b"abcdefgh"]


def random_key(rng: random.Random) -> bytes:
    key = rng.choice(PREFIXES) + rng.choice(TAILS)
    kind = rng.randrange(4)
    if kind == 0:
        return key
    if kind == 1:
        return key + b"%06d" % rng.randrange(3000)
    if kind == 2:
        return key + rng.randbytes(rng.randrange(4))
    return rng.randbytes(rng.randrange(12))


class Pair:
    """A tree and its model."""

    def __init__(self) -> None:
        self.tree = KeySet()
        self.model: SortedDict[bytes, bool] = SortedDict()

    def put(self, key: bytes, live: bool) -> None:
        assert self.tree.put(key, live) == (key in self.model)
        self.model[key] = live

    def remove(self, key: bytes) -> None:
        assert self.tree.remove(key) == (self.model.pop(key, None) is not None)

    def look(self, key: bytes) -> None:
        before = self.model.irange(None, key, (True, False))
        assert self.tree.rank(key) == sum(self.model[k] for k in before)
        assert self.tree.get(key) == (key if key in self.model else None)
        after = [(k, self.model[k]) for k in self.model.irange(key)]
        assert self.tree.walk(key) == after
        sizes = self.tree.leaf_sizes(key)
        assert len(after) <= sum(sizes) < len(after) + 64 + 1

    def look_at_each(self, keys: list[bytes]) -> None:
        found = self.tree.get_each(keys)
        assert found == [key if key in self.model else None for key in keys]

    def check(self) -> None:
        blocks = self.tree.tree.check()
        assert self.tree.arena.blocks == blocks + len(self.model)
        assert self.tree.tree.live == sum(self.model.values())


@pytest.mark.parametrize("seed", range(depth(8, 300)))
def test_random_steps(seed: int) -> None:
    rng = random.Random(seed)
    pair = Pair()
    for step in range(2400):
        growing = step // 600 % 2 == 0
        key = random_key(rng)
        if not pair.model or rng.random() < (0.85 if growing else 0.2):
            pair.put(key, rng.random() < 0.7)
        else:
            pair.remove(pair.model.peekitem(rng.randrange(len(pair.model)))[0])
        if step % 10 == 0:
            pair.check()
            pair.look(key)
            stored = rng.sample(list(pair.model), min(len(pair.model), 20))
            pair.look_at_each([key, *stored, *(random_key(rng) for _ in range(20))])
    pair.tree.arena.check()


KEYS = st.one_of(
    st.binary(max_size=10),
    st.builds(lambda a, b: a + b, st.sampled_from(PREFIXES), st.sampled_from(TAILS)),
)
STEPS = st.lists(st.tuples(st.sampled_from(["put", "dead", "remove"]), KEYS), max_size=150)


@settings(max_examples=depth(150, 20_000), deadline=None)
@given(STEPS)
def test_steps_that_shrink(steps: list[tuple[str, bytes]]) -> None:
    pair = Pair()
    for step, key in steps:
        if step == "remove":
            pair.remove(key)
        else:
            pair.put(key, step == "put")
        pair.check()
        pair.look(key)


@pytest.mark.parametrize("order", ["up", "down", "shuffled"])
def test_grows_and_shrinks_through_all_heights(order: str) -> None:
    keys = [b"/registry/pods/ns/%08d" % i for i in range(9000)]
    if order == "down":
        keys.reverse()
    if order == "shuffled":
        random.Random(1).shuffle(keys)
    pair = Pair()
    for key in keys:
        pair.put(key, True)
    pair.check()
    assert pair.tree.tree.height == 2
    if order == "up":
        # Rule 5: what is written in order fills the leaves.
        assert pair.tree.arena.used_bytes < len(keys) * (32 + 20)
    pair.look(keys[4500])
    pair.look_at_each(keys)
    pair.look_at_each([key[:-1] for key in keys] + [key + b"\0" for key in keys])
    for number, key in enumerate(keys):
        pair.remove(key)
        if number % 500 == 0:
            pair.check()
    pair.check()
    assert pair.tree.tree.height == 0
    assert pair.tree.arena.blocks == 1


def test_removal_in_every_pattern_keeps_the_rules() -> None:
    rng = random.Random(7)
    for pattern in range(6):
        pair = Pair()
        keys = [b"k%07d" % i for i in range(3000)]
        for key in keys:
            pair.put(key, True)
        cuts = [keys[::2], keys[:2900], keys[100:], keys[1000:2000], keys[1::64], keys[:]]
        doomed = cuts[pattern]
        if pattern == 5:
            rng.shuffle(doomed)
        for number, key in enumerate(doomed):
            pair.remove(key)
            if number % 100 == 0:
                pair.check()
        pair.check()
        pair.look(keys[1500])


def test_very_long_keys() -> None:
    pair = Pair()
    mebibyte = b"m" * (1 << 20)
    for tail in (b"", b"\0", b"a", b"b", b"\xff"):
        pair.put(mebibyte + tail, True)
        pair.put(mebibyte[:-1] + tail, True)
    for number in range(70):
        pair.put(mebibyte[:200_000] + b"%03d" % number, True)
    pair.check()
    pair.look(mebibyte)
    pair.look(mebibyte + b"\0")
    pair.look_at_each([*pair.model, mebibyte + b"\0"])
    for key in list(pair.model):
        pair.remove(key)
    pair.check()
    assert pair.tree.arena.blocks == 1
