"""core/_selection: every order, limit, filter and revision of a Range against a naive model."""

from __future__ import annotations

import random
from itertools import product

import pytest

from tests.core_driver import Core
from tests.messages import Message
from tests.model import Model
from tests.range_model import range_reply

LEASES = (0, 0, 7, -9)
RANGES: list[Message] = [
    {"key": b"k3"},
    {"key": b"k", "range_end": b"l"},
    {"key": b"k2", "range_end": b"k4"},
    {"key": b"k5", "range_end": b"\0"},
    {"key": b"\0", "range_end": b"\0"},
    {"key": b"k9", "range_end": b"k1"},
    {"key": b"nothing"},
]
FILTERS: list[Message] = [
    {},
    {"min_mod_revision": 40},
    {"max_mod_revision": 60},
    {"min_create_revision": 30, "max_create_revision": 70},
    {"min_mod_revision": 99_999},
    {"max_create_revision": -5},
]
FLAGS: list[Message] = [{}, {"keys_only": True}, {"count_only": True}]
LIMITS = (0, 1, 7, 1000, -3)
REVISIONS = (0, 50, 80)


class Pair:
    """A core and the model of what it was told."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.core = Core()
        self.model = Model()
        for lease in sorted({*LEASES} - {0}):
            self.core.grant(lease)

    def write(self, count: int) -> None:
        """So many random revisions."""
        for _ in range(count):
            key = b"k%d" % self.rng.randrange(60)
            self.model.begin()
            if self.rng.random() < 0.2:
                end = self.rng.choice([b"", key + b"\xff"])
                deleted = self.model.delete_range(key, end)
                reply = self.core.call("KV/DeleteRange", {"key": key, "range_end": end})
                assert reply.get("deleted", 0) == len(deleted)
            else:
                value, lease = self.rng.choice([b"", b"a", b"b" * 200]), self.rng.choice(LEASES)
                self.model.put(key, value, lease)
                self.core.put(key, value, lease=lease)
            self.model.end()
        assert self.core.store.revision == self.model.revision

    def check(self, asked: Message) -> Message:
        """Ask a Range and compare."""
        reply = self.core.call("KV/Range", asked)
        header = reply.pop("header")
        assert header["revision"] == self.model.revision
        assert reply == range_reply(self.model, asked), asked
        return reply


@pytest.fixture(scope="module")
def pair() -> Pair:
    one = Pair(random.Random(20))
    one.write(120)
    one.core.call("KV/Compact", {"revision": 45})
    return one


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("target", [0, 1, 2, 3, 4])
def test_every_combination_of_options(target: int, order: int, pair: Pair) -> None:
    seen = set()
    for limit, revision, filters, flags in product(LIMITS, REVISIONS, FILTERS, FLAGS):
        asked = {"limit": limit, "revision": revision, "key": b"\0", "range_end": b"\0"}
        asked |= {"sort_target": target, "sort_order": order} | filters | flags
        reply = pair.check(asked)
        seen.add((len(reply.get("kvs", [])) > 1, reply.get("more", False)))
    assert len(seen) == 4


def test_random_combinations_over_every_kind_of_range(pair: Pair) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(1_500):
        asked = dict(rng.choice(RANGES)) | rng.choice(FILTERS) | rng.choice(FLAGS)
        newest = pair.model.revision
        asked |= {"limit": rng.choice(LIMITS), "revision": rng.randint(45, newest)}
        asked |= {"sort_target": rng.randrange(5), "sort_order": rng.randrange(3)}
        asked["serializable"] = rng.random() < 0.5
        try:
            pair.check(asked)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


def test_a_range_within_a_txn_answers_as_alone(pair: Pair) -> None:
    rng = random.Random(4)
    for _ in range(300):
        asked = dict(rng.choice(RANGES)) | rng.choice(FILTERS) | rng.choice(FLAGS)
        asked |= {"limit": rng.choice(LIMITS), "revision": rng.choice(REVISIONS)}
        asked |= {"sort_target": rng.randrange(5), "sort_order": rng.randrange(3)}
        reply = pair.core.call("KV/Txn", {"success": [{"request_range": asked}]})
        [response] = reply["responses"]
        inner = response["response_range"]
        assert inner.pop("header") == {"revision": pair.model.revision}
        assert inner == range_reply(pair.model, asked), asked


def test_a_range_within_a_writing_txn_sees_its_writes() -> None:
    pair = Pair(random.Random(3))
    pair.write(60)
    model = pair.model
    model.begin()
    model.put(b"k7", b"mine", 0)
    model.delete_range(b"k1", b"k3")
    now = {"key": b"k", "range_end": b"l", "sort_target": 3, "sort_order": 2, "limit": 5}
    then = now | {"revision": model.revision}
    before = range_reply(model, then)
    reply = pair.core.call(
        "KV/Txn",
        {
            "success": [
                {"request_put": {"key": b"k7", "value": b"mine"}},
                {"request_delete_range": {"key": b"k1", "range_end": b"k3"}},
                {"request_range": now},
                {"request_range": then},
            ]
        },
    )
    model.end()
    _, _, new, old = [next(iter(response.values())) for response in reply["responses"]]
    assert new.pop("header") == old.pop("header") == {"revision": model.revision}
    assert new == range_reply(model, now)
    assert old == before


@pytest.mark.parametrize("order", [1, 2])
def test_a_sort_longer_than_a_step_is_a_sort(order: int) -> None:
    """More keys than a step looks at: walk, sort and measuring all pause in the middle."""
    rng = random.Random(order)
    core, model = Core(), Model()
    keys = [b"%05d" % number for number in range(2_500)]
    rng.shuffle(keys)
    for key in keys:
        model.begin()
        model.put(key, b"v%d" % rng.randrange(50), 0)
        model.end()
        core.put(key, model.get(key)[1])  # type: ignore[index]
    for target in range(5):
        for limit in (0, 10, 2_400):
            asked = {"key": b"\0", "range_end": b"\0", "sort_target": target, "sort_order": order}
            reply = core.call("KV/Range", asked | {"limit": limit})
            del reply["header"]
            assert reply == range_reply(model, asked | {"limit": limit})


def test_counts_at_old_revisions_are_walked_and_right() -> None:
    core, model = Core(), Model()
    for number in range(3_000):
        model.begin()
        model.put(b"%04d" % number, b"", 0)
        model.end()
        core.put(b"%04d" % number, b"")
    middle = core.store.revision
    core.call("KV/DeleteRange", {"key": b"0500", "range_end": b"2500"})
    everything = {"key": b"\0", "range_end": b"\0"}
    for asked in ({"count_only": True}, {"limit": 2}, {"limit": 1, "sort_target": 3}):
        old = core.call("KV/Range", everything | asked | {"revision": middle})
        new = core.call("KV/Range", everything | asked)
        assert (old["count"], new["count"]) == (3_000, 1_000)
        assert old.get("more", False) == new.get("more", False) == ("limit" in asked)
