"""The store against the naive model of `tests/model.py`, every invariant walked after each step."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.core._storeview import Hash, StoreView, Walk
from quorate.core.errors import CompactedError, FutureRevisionError
from tests.depth import depth
from tests.model import Model, Version

LONG = b"/registry/" + b"x" * 70
KEYS = [
    b"\0",
    b"\0\0",
    b"\xff",
    b"\xff\xff",
    b"a",
    b"a\0",
    b"ab",
    b"abcdefgh",
    b"abcdefgh\0",
    b"abcdefghi",
    b"abcdefgi",
    b"/registry/pods/kube-system/a",
    b"/registry/pods/kube-system/b",
    LONG,
    LONG + b"a",
    LONG + b"\0",
]
ENDS = [b"", b"\0", b"\xff\xff\xff", b"abcdefgh", b"/registry0", LONG + b"b"]
VALUES = [b"", b"v", b"value" * 20, b"w" * 2000]
LEASES = [0, 0, 0, 7, -1, 1 << 62]


class Pair:
    """The store and its model, and what goes on slowly between the steps."""

    def __init__(self) -> None:
        self.view = StoreView()
        self.model = Model()
        self.walks: list[tuple[int, Walk, list[Version]]] = []
        self.hashes: list[tuple[Hash, tuple[int, int, int]]] = []

    def settle(self) -> None:
        """After each step."""
        store = self.view.store
        while self.model.finished_revision != store.finished_revision:
            pending = [r for r in self.model.hashes_to_come if r <= store.finished_revision]
            self.model.finish(min(pending, default=store.finished_revision))
        assert store.revision == self.model.revision
        assert store.compact_revision == self.model.compact_revision
        store.check()

    def write(self, writes: list[tuple[Any, ...]]) -> None:
        self.view.begin()
        self.model.begin()
        for kind, *arguments in writes:
            if kind == "put":
                assert self.view.put(*arguments) == self.model.put(*arguments)
            else:
                assert self.view.delete_range(*arguments) == self.model.delete_range(*arguments)
            assert self.view.write_revision() == self.model.write_revision()
            # Reads within the transaction see its writes, reads at the revision before do not.
            self.look(arguments[0], b"\0", 0)
            self.look(b"\0", b"\0", self.model.revision)
        assert self.view.end() == self.model.end()

    def look(self, key: bytes, end: bytes, revision: int) -> None:
        expected = self.model.range(key, end, revision)
        assert self.view.range(key, end, revision) == expected
        assert self.view.count(key, end, revision) == len(expected)
        assert self.view.get(key, revision) == self.model.get(key, revision)

    def readable(self, fraction: float) -> int:
        """A revision that may be read."""
        oldest = max(1, self.model.compact_revision)
        return oldest + int(fraction * (self.model.revision - oldest + 0.999))

    def compact(self, revision: int) -> None:
        if revision <= self.model.compact_revision:
            with pytest.raises(CompactedError):
                self.view.compact(revision)
        elif revision > self.model.revision:
            with pytest.raises(FutureRevisionError):
                self.view.compact(revision)
        else:
            self.model.compact(revision)
            self.view.compact(revision)

    def start_walk(self, key: bytes, end: bytes, revision: int) -> None:
        self.view.pin(revision)
        expected = self.model.range(key, end, revision)
        self.walks.append((revision, Walk(self.view, key, end, revision), expected))

    def go_on(self, number: int, count: int) -> None:
        """Take some of a walk; at its end the pin goes."""
        if not self.walks:
            return
        revision, walk, expected = self.walks[number % len(self.walks)]
        for _ in range(count):
            found = next(walk, None)
            assert found == (expected.pop(0) if expected else None)
            if found is None:
                self.view.unpin(revision)
                self.walks.pop(number % len(self.walks))
                return

    def start_hash(self, revision: int) -> None:
        expected = self.model.hash_kv(revision)
        if expected is None:
            with pytest.raises((CompactedError, FutureRevisionError)):
                Hash(self.view, revision)
        else:
            self.hashes.append((Hash(self.view, revision), expected))

    def go_on_hash(self, number: int, budget: int) -> None:
        if not self.hashes:
            return
        run, expected = self.hashes[number % len(self.hashes)]
        if not run.step(budget):
            assert run.close() == expected
            self.hashes.pop(number % len(self.hashes))

    def finish(self) -> None:
        """Let everything come to its end, and compare what is left."""
        while self.walks:
            self.go_on(0, 1000)
        while self.hashes:
            self.go_on_hash(0, 1000)
        while self.view.compact_step(3):
            pass
        self.settle()
        assert self.view.store.finished_revision == self.model.compact_revision
        stored = [(*r.place, r.key, r.version) for r in self.model.stored()]
        assert self.view.history() == stored
        assert self.view.hash_kv(0) == self.model.hash_kv(0)
        assert self.view.figures()["versions"] == len(stored)

    def step(self, step: tuple[Any, ...]) -> None:
        kind, *arguments = step
        if kind == "write":
            self.write(*arguments)
        elif kind == "look":
            self.look(arguments[0], arguments[1], self.readable(arguments[2]))
        elif kind == "compact":
            self.compact(self.model.compact_revision + arguments[0])
        elif kind == "compact_step":
            self.view.compact_step(arguments[0])
        elif kind == "walk":
            self.start_walk(arguments[0], arguments[1], self.readable(arguments[2]))
        elif kind == "go_on":
            self.go_on(*arguments)
        elif kind == "hash":
            self.start_hash(max(0, self.model.revision + arguments[0]))
        elif kind == "go_on_hash":
            self.go_on_hash(*arguments)
        else:
            self.history(self.readable(arguments[0]), arguments[1])
        self.settle()

    def history(self, revision: int, sub: int) -> None:
        found = self.view.history(revision, sub)
        everything = [(*r.place, r.key, r.version) for r in self.model.log]
        needed = [(*r.place, r.key, r.version) for r in self.model.stored()]
        assert [entry for entry in everything if entry in found] == found
        assert all(entry in found for entry in needed if entry[:2] >= (revision, sub))
        assert all(entry[:2] >= (revision, sub) for entry in found)


keys = st.sampled_from(KEYS)
ends = st.one_of(st.sampled_from(ENDS), st.sampled_from(KEYS))
fractions = st.floats(0, 1)
puts = st.tuples(st.just("put"), keys, st.sampled_from(VALUES), st.sampled_from(LEASES))
deletes = st.tuples(st.just("delete"), keys, ends)
small = st.integers(0, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(st.one_of(puts, puts, deletes), max_size=4)),
        st.tuples(st.just("write"), st.lists(st.one_of(puts, puts, deletes), max_size=4)),
        st.tuples(st.just("look"), keys, ends, fractions),
        st.tuples(st.just("compact"), st.integers(0, 6)),
        st.tuples(st.just("compact_step"), st.integers(0, 9)),
        st.tuples(st.just("walk"), keys, ends, fractions),
        st.tuples(st.just("go_on"), small, small),
        st.tuples(st.just("hash"), st.integers(-6, 1)),
        st.tuples(st.just("go_on_hash"), small, st.integers(1, 9)),
        st.tuples(st.just("history"), fractions, small),
    ),
    max_size=60,
)


@settings(max_examples=depth(200, 20_000), deadline=None)
@given(STEPS)
def test_steps_that_shrink(steps: list[tuple[Any, ...]]) -> None:
    pair = Pair()
    for step in steps:
        pair.step(step)
    pair.finish()


def random_write(rng: random.Random, pool: list[bytes]) -> tuple[Any, ...]:
    if rng.random() < 0.75:
        return "put", rng.choice(pool), rng.choice(VALUES[:3]), rng.choice(LEASES)
    key = rng.choice(pool)
    return "delete", key, rng.choice([b"", b"", b"", key + b"\xff", rng.choice(pool)])


def random_step(rng: random.Random, pool: list[bytes]) -> tuple[Any, ...]:
    kind = rng.choice(
        ["write"] * 10
        + ["look", "compact", "walk", "hash", "history"]
        + ["compact_step", "go_on", "go_on_hash"] * 3
    )
    key, end, some = rng.choice(pool), rng.choice([*ENDS, rng.choice(pool)]), rng.randrange(40)
    return {
        "write": (kind, [random_write(rng, pool) for _ in range(rng.choice([0, 1, 1, 1, 5]))]),
        "look": (kind, key, end, rng.random()),
        "compact": (kind, rng.choice([0, 1, 2, some, some, 3 * some])),
        "compact_step": (kind, some),
        "walk": (kind, key, end, rng.random()),
        "go_on": (kind, some, some),
        "hash": (kind, rng.choice([1, 0, 0, -some])),
        "go_on_hash": (kind, some, 3 * some + 1),
        "history": (kind, rng.random(), some % 3),
    }[kind]


@pytest.mark.parametrize("seed", range(depth(10, 500)))
def test_random_steps(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([3, 30, 300])
    pool = [*KEYS, *(b"/registry/pods/ns-%d/%05d" % (i % 7, i) for i in range(count))]
    pair = Pair()
    for _ in range(500):
        pair.step(random_step(rng, pool))
    pair.finish()


def filled(count: int, value: bytes = b"v") -> StoreView:
    """One transaction with `count` keys."""
    view = StoreView()
    view.begin()
    for number in range(count):
        view.put(b"key-%06d" % number, value)
    view.end()
    return view


def test_an_empty_store() -> None:
    view = StoreView()
    view.store.check()
    assert (view.store.revision, view.store.compact_revision) == (1, -1)
    assert view.get(b"a") is None
    assert view.range(b"\0", b"\0") == []
    assert view.count(b"\0", b"\0") == 0
    assert not view.compact_step()
    view.begin()
    assert view.delete_range(b"\0", b"\0") == []
    assert view.end() == 1


def test_a_range_that_ends_before_it_begins_is_empty() -> None:
    view = filled(200)
    for end in (b"key-000010", b"key-000009", b"a"):
        assert view.range(b"key-000010", end) == []
        assert view.count(b"key-000010", end) == 0
        view.begin()
        assert view.delete_range(b"key-000010", end) == []
        assert view.end() == 2


def test_after_a_compaction_to_zero_a_hash_of_zero_still_means_now() -> None:
    """etcd 3.7 remembers the hash of revision 0 then, and answers every HashKV of 0 with it."""
    view = StoreView()
    view.compact(0)
    while view.compact_step():
        pass
    view.store.check()
    empty = view.hash_kv(0)
    assert empty[1:] == (0, 1)
    with pytest.raises(CompactedError):
        view.compact(0)
    view.begin()
    view.put(b"key", b"value")
    assert view.end() == 2
    assert view.hash_kv(0)[1:] == (0, 2)
    assert view.hash_kv(0)[0] != empty[0]


def test_a_key_that_the_compacted_revision_deleted_and_put_again_stays() -> None:
    view = filled(3)
    view.begin()
    view.delete_range(b"key-000001", b"\0")
    view.put(b"key-000001", b"again")
    assert view.end() == 3
    view.compact(3)
    while view.compact_step():
        pass
    view.store.check()
    assert view.get(b"key-000001") == (b"key-000001", b"again", 3, 3, 1, 0)
    assert view.count(b"\0", b"\0") == 2


@pytest.mark.parametrize("others", [0, 1])
def test_a_hash_leaves_nothing_out_when_no_key_lives(others: int) -> None:
    # etcd skips what a compaction will remove only if it finds anything that it would keep.
    pair = Pair()
    pair.write([("put", b"a", b"1", 0), ("put", b"b", b"2", 7)])
    pair.write([("put", b"a", b"3", 0)])
    pair.compact(3)
    pair.write([("delete", b"a", b"\0")])
    for number in range(others):
        pair.write([("put", b"c%d" % number, b"", 0)])
    for budget in (0, 2, 100):
        pair.view.compact_step(budget)
        pair.settle()
        for revision in range(pair.model.revision + 2):
            pair.start_hash(revision)
            while pair.hashes:
                pair.go_on_hash(0, 1)
    pair.finish()


def test_compaction_waits_for_pins_and_goes_on_after_them() -> None:
    view = filled(5000)
    view.pin(2)
    walk = Walk(view, b"\0", b"\0", 2)
    first = [next(walk) for _ in range(100)]
    view.begin()
    view.delete_range(b"\0", b"\0")
    view.end()
    view.begin()
    view.put(b"other", b"")
    view.end()
    view.compact(4)
    while view.compact_step(100):
        pass
    view.store.check()
    assert view.figures()["versions"] == 10_001
    rest = list(walk)
    assert [v[0] for v in first + rest] == [b"key-%06d" % i for i in range(5000)]
    view.unpin(2)
    while view.compact_step(100):
        pass
    view.store.check()
    assert view.figures()["versions"] == 1


def test_compaction_frees_memory() -> None:
    view = filled(20_000, b"x" * 256)
    full = view.figures()["arena_bytes"]
    view.begin()
    view.delete_range(b"key-000100", b"\0")
    view.end()
    view.begin()
    view.put(b"a", b"")
    view.compact(view.end())
    steps = 0
    while view.compact_step(100):
        steps += 1
    view.store.check()
    assert 380 < steps < 420
    assert view.count(b"\0", b"\0") == 101
    assert view.figures()["arena_bytes"] < full // 10


def test_very_long_keys_and_values() -> None:
    pair = Pair()
    mebibyte = b"m" * (1 << 20)
    values = [b"", b"v" * 3_000_000, b"w" * 5_000_000]
    for key in (mebibyte, mebibyte + b"\0", mebibyte[:-1], mebibyte[:200_000]):
        for value in values:
            pair.write([("put", key, value, 7)])
    pair.settle()
    pair.look(mebibyte, b"\0", 6)
    pair.write([("delete", mebibyte, b"\0")])
    view, store = pair.view, pair.view.store
    view.compact(store.revision - 1)
    while view.compact_step(1):
        pass
    store.check()
    assert view.count(b"\0", b"\0") == 2
    assert store.arena.used_bytes < 30_000_000


def test_a_step_keeps_its_budget_also_for_large_values() -> None:
    view = filled(50, b"x" * 102_400)
    view.begin()
    view.put(b"key-000000", b"")
    view.compact(view.end())
    steps = 0
    while view.compact_step(101):
        steps += 1
    assert steps >= 49


def test_size_follows_what_is_stored() -> None:
    view = StoreView()
    assert view.figures()["size_in_use"] == 4 * 4096
    view = filled(10_000, b"x" * 256)
    size = view.figures()["size_in_use"]
    # Element, revision, key, value and the small fields, in pages that are nine tenths full.
    assert 10_000 * (16 + 17 + 12 + 259 + 6) < size < 1.2 * 10_000 * (16 + 17 + 12 + 259 + 6)
    view.begin()
    view.delete_range(b"\0", b"\0")
    view.compact(view.end())
    while view.compact_step():
        pass
    assert view.figures()["size_in_use"] < size // 4


def test_overhead_of_a_key() -> None:
    view = filled(100_000, b"x" * 256)
    figures = view.figures()
    overhead = figures["arena_bytes"] - figures["key_bytes"] - figures["value_bytes"]
    # Eight of them are the address of a value outside.
    assert overhead / 100_000 < 104
