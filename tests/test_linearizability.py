"""The checker finds each kind of wrong history, and calls no right one wrong."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest

from tests.linearizability import (
    UNKNOWN,
    Answer,
    Operation,
    State,
    apply,
    check,
    check_key,
    ordered,
)

K = b"k"


def put(called: float, returned: float, value: bytes, revision: int = UNKNOWN) -> Operation:
    answer = None if returned == math.inf else Answer(revision=revision)
    return Operation("put", K, called, returned, value=value, answer=answer)


def get(
    called: float,
    returned: float,
    value: bytes | None,
    revision: int = UNKNOWN,
    version: int = UNKNOWN,
) -> Operation:
    return Operation("get", K, called, returned, answer=Answer(value, revision, version))


GOOD = {
    "one after the other": [put(0, 1, b"a"), get(2, 3, b"a")],
    "a read beside a write sees either": [put(0, 9, b"a"), get(1, 2, None), get(3, 4, b"a")],
    "two writes, either order": [put(0, 9, b"a"), put(0, 9, b"b"), get(10, 11, b"a")],
    "an unknown write that happened": [put(0, math.inf, b"a"), get(5, 6, b"a")],
    "an unknown write that never did": [put(0, math.inf, b"a"), get(5, 6, None)],
    "an unknown write that happens late": [
        put(0, math.inf, b"a"),
        put(1, 2, b"b"),
        get(3, 4, b"b"),
        get(5, 6, b"a"),
    ],
    "a swap that fails": [
        put(0, 1, b"a"),
        Operation("swap", K, 2, 3, value=b"c", expected=b"x", answer=Answer(succeeded=False)),
        get(4, 5, b"a"),
    ],
    "a delete": [
        put(0, 1, b"a", 2),
        Operation("delete", K, 2, 3, answer=Answer(revision=3)),
        get(4, 5, None),
        put(6, 7, b"b", 4),
        get(8, 9, b"b", revision=4, version=1),
    ],
}
BAD = {
    "a stale read": [put(0, 1, b"a"), put(2, 3, b"b"), get(4, 5, b"a")],
    "a lost write": [put(0, 1, b"a"), get(2, 3, None)],
    "a read of the future": [get(0, 1, b"a"), put(2, 3, b"a")],
    "a value that comes back": [
        put(0, 9, b"a"),
        put(0, 9, b"b"),
        get(10, 11, b"a"),
        get(12, 13, b"b"),
    ],
    "a read that goes back": [put(0, 9, b"a"), get(1, 2, b"a"), get(3, 4, None)],
    "a swap that ran twice": [
        put(0, 1, b"a"),
        Operation("swap", K, 2, 3, value=b"b", expected=b"a", answer=Answer()),
        Operation("swap", K, 4, 5, value=b"c", expected=b"a", answer=Answer()),
    ],
    "a write that ran twice": [put(0, 1, b"a", 2), get(2, 3, b"a", revision=2, version=2)],
    "a revision that goes back": [put(0, 1, b"a", 7), put(2, 3, b"b", 6)],
    "a wrong revision": [put(0, 1, b"a", 7), get(2, 3, b"a", revision=8)],
    "a refused swap that happened": [
        put(0, 1, b"a"),
        Operation("swap", K, 2, 3, value=b"c", expected=b"x", answer=Answer(succeeded=False)),
        get(4, 5, b"c"),
    ],
    "a delete that did not": [
        put(0, 1, b"a"),
        Operation("delete", K, 2, 3, answer=Answer()),
        get(4, 5, b"a"),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_linearizable_history_passes(name: str) -> None:
    assert check(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_history_is_found(name: str) -> None:
    assert check(BAD[name]) == [K]


def brute_force(operations: list[Operation]) -> bool:
    """Try every order, and every choice of the unknown operations that happened."""
    known = [one for one in operations if one.returned != math.inf]
    unknown = [one for one in operations if one.returned == math.inf]
    for count in range(len(unknown) + 1):
        for happened in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *happened]):
                if _in_time(order) and _possible(order):
                    return True
    return False


def _in_time(order: tuple[Operation, ...]) -> bool:
    return all(
        not later.returned < earlier.called
        for at, earlier in enumerate(order)
        for later in order[at + 1 :]
    )


def _possible(order: tuple[Operation, ...]) -> bool:
    state: State | None = State()
    for operation in order:
        assert state is not None
        state = apply(state, operation)
        if state is None:
            return False
    return True


def random_history(chance: random.Random, length: int) -> list[Operation]:
    """Short operations at random times with answers that are right or wrong at random."""
    history = []
    values = [b"a", b"b", b"c", b"d", b"e", b"f"][:length]
    for at in range(length):
        called = chance.randrange(12)
        returned = called + chance.randrange(1, 6) + 0.5
        kind = chance.choice(["put", "put", "get", "get", "get", "swap", "delete"])
        unknown = kind != "get" and chance.random() < 0.2
        seen = chance.choice([None, *values]) if kind == "get" else None
        answer = Answer(seen, succeeded=kind == "put" or chance.random() < 0.7)
        history.append(
            Operation(
                kind,
                K,
                called,
                math.inf if unknown else returned,
                value=values[at] if kind in {"put", "swap"} else None,
                expected=chance.choice([None, *values]) if kind == "swap" else None,
                answer=None if unknown else answer,
            )
        )
    return history


def test_the_search_agrees_with_trying_every_order() -> None:
    chance = random.Random(7)
    verdicts = {True: 0, False: 0}
    for number in range(1500):
        history = random_history(chance, chance.randrange(2, 6))
        expected = brute_force(history)
        assert check_key(history) == expected, f"history {number}: {history}"
        verdicts[expected] += 1
    assert min(verdicts.values()) > 200, verdicts


def simulated(chance: random.Random, clients: int, calls: int) -> list[Operation]:
    """A long history of a correct register: operations take effect between call and return."""
    plans = []
    for client in range(clients):
        now = chance.random()
        for number in range(calls):
            moment = now + chance.random()
            returned = moment + chance.random()
            plans.append((moment, now, returned, b"%d.%d" % (client, number)))
            now = returned + chance.random() * 0.1
    state, history = State(), []
    for revision, (_, called, returned, value) in enumerate(sorted(plans), start=2):
        if chance.random() < 0.5:
            history.append(put(called, returned, value, revision))
            state = State(value, revision, state.version + 1)
        else:
            seen = {"revision": state.revision, "version": state.version}
            history.append(get(called, returned, state.value, **(seen if state.value else {})))
    return history


def test_a_long_history_is_checked_fast_and_one_wrong_read_in_it_is_found() -> None:
    chance = random.Random(11)
    history = simulated(chance, 10, 200)
    began = time.perf_counter()
    assert check(history) == []
    assert time.perf_counter() - began < 3
    reads = [at for at, one in enumerate(history) if one.kind == "get" and at > 1000]
    one = history[reads[0]]
    history[reads[0]] = get(one.called, one.returned, b"0.0", revision=UNKNOWN)
    assert check(history) == [K]


def test_keys_are_searched_by_themselves() -> None:
    other = [Operation("get", b"z", 2, 3, answer=Answer(None))]
    assert check([*GOOD["one after the other"], *other]) == []
    assert check([*BAD["a lost write"], *other]) == [K]


def test_revisions_over_all_keys_follow_real_time() -> None:
    assert ordered([(0, 1, 2), (2, 3, 3), (0, 5, 4)])
    assert not ordered([(0, 1, 3), (2, 3, 2)])
    assert not ordered([(0, 1, 2), (0, 1, 2)])
    assert ordered([(0, 9, 3), (1, 2, 2)])
