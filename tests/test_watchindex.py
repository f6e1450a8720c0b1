"""The index of watchers against a naive one, with every invariant checked after each step."""

from __future__ import annotations

import random

from quorate.frontends._watchindex import WatchIndex
from tests.depth import depth, seed

KEYS = [b"a", b"ab", b"abc", b"b", b"ba", b"p/", b"p/x", b"p/x/y", b"\x00", b"\xff", b"\xff\xff"]


def concerns(key: bytes, end: bytes, asked: bytes) -> bool:
    if not end:
        return asked == key
    return asked >= key and (end == b"\0" or asked < end)


def random_range(chance: random.Random) -> tuple[bytes, bytes]:
    key = chance.choice(KEYS)
    end = chance.choice([b"", b"\0", *KEYS])
    return (key, end) if not end or end == b"\0" or key < end else (key, b"")


def test_random_watchers_against_the_model() -> None:
    number = seed()
    print(f"QUORATE_SEED={number}")
    chance = random.Random(number)
    index = WatchIndex(number)
    model: dict[int, tuple[bytes, bytes, int]] = {}
    for step in range(depth(1500, 50_000)):
        if model and chance.random() < (0.3 if step % 500 < 400 else 0.7):
            gone = chance.choice(list(model))
            assert index.unwatch(gone)
            del model[gone]
        else:
            key, end = random_range(chance)
            flags = chance.randrange(3)
            index.watch(step, key, end, flags)
            model[step] = key, end, flags
        subjects = index.check()
        assert subjects == len(set(model.values()))
        assert index.watcher_count == len(model)
        asked = chance.choice(KEYS)
        found = [id for id, (key, end, _) in model.items() if concerns(key, end, asked)]
        assert index.concerned(asked) == sorted(found), (asked, step)


def test_many_keys_are_found_and_forgotten() -> None:
    index = WatchIndex(7)
    for number in range(5000):
        index.watch(number, b"key/%06d" % number)
    assert index.check() == 5000
    assert all(index.concerned(b"key/%06d" % number) == [number] for number in range(0, 5000, 7))
    assert index.concerned(b"key/") == []
    for number in range(5000):
        assert index.unwatch(number)
        assert not index.unwatch(number)
    assert index.check() == 0
