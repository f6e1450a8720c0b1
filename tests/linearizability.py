"""Is a recorded concurrent history linearizable? Porcupine's algorithm, key by key.

The search is that of Wing and Gong with Lowe's memory of visited states: walk the calls and returns
in time; linearize any operation that has been called, if the model lets it have the answer that it
had; go back when a return is met that can't be. Two positions with the same set of linearized
operations and the same state need to be searched only once. Keys are independent of each other (an
operation touches one key), so each key's history is searched by itself.

Rules of a history:
1. `called < returned` in one clock. An operation whose outcome is not known (a timeout, a broken
   connection) has `returned` infinite and `answer` None: it may have happened at any time after its
   call, or never.
2. Values written are all different, so that a read names the write it saw.

`ordered` checks what the per-key search can't see: revisions over all keys, in real time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

UNKNOWN = -1
# Positions to search before giving up on one key: far more than a sound history here needs.
SEARCH_MAX = 2_000_000


class State(NamedTuple):
    """What a key holds; `revision` and `version` may be UNKNOWN after an unanswered write."""

    value: bytes | None = None
    revision: int = 0
    version: int = 0


class Answer(NamedTuple):
    """What the server said: of a read what it saw, of a write its revision.

    `deleted` is for a delete, `succeeded` for a swap; `revision` is the header's for a write, the
    pair's for a read.
    """

    value: bytes | None = None
    revision: int = UNKNOWN
    version: int = UNKNOWN
    succeeded: bool = True


@dataclass(frozen=True)
class Operation:
    """One client's call: `kind` is get, put, delete or swap (put if the value is `expected`)."""

    kind: str
    key: bytes
    called: float
    returned: float = math.inf
    value: bytes | None = None
    expected: bytes | None = None
    answer: Answer | None = None


def apply(state: State, operation: Operation) -> State | None:
    """The state after the operation, or None when it can't have had its answer there."""
    answer = operation.answer
    if operation.kind == "get":
        return _get(state, answer)
    if operation.kind == "delete":
        exists = state.value is not None
        if answer is not None and answer.succeeded != exists:
            return None
        return _written(state, answer, None) if exists else state
    if operation.kind == "swap":
        holds = state.value == operation.expected
        if answer is not None and answer.succeeded != holds:
            return None
        return _written(state, answer, operation.value) if holds else state
    return _written(state, answer, operation.value)


def _get(state: State, answer: Answer | None) -> State | None:
    """A read learns revision and version where they were unknown."""
    if answer is None:
        return state
    if answer.value != state.value:
        return None
    if state.value is None:
        return state
    for known, seen in ((state.revision, answer.revision), (state.version, answer.version)):
        if UNKNOWN not in (known, seen) and known != seen:
            return None
    return State(
        state.value,
        state.revision if answer.revision == UNKNOWN else answer.revision,
        state.version if answer.version == UNKNOWN else answer.version,
    )


def _written(state: State, answer: Answer | None, value: bytes | None) -> State | None:
    """A write's revision is above that of the one before."""
    revision = answer.revision if answer is not None else UNKNOWN
    if UNKNOWN not in (revision, state.revision) and revision <= state.revision:
        return None
    if value is None:
        return State(None, revision, 0)
    return State(value, revision, UNKNOWN if state.version == UNKNOWN else state.version + 1)


class _Entry:
    """A call or a return in the list of those still to be placed."""

    __slots__ = ("match", "next", "number", "operation", "previous")

    def __init__(self, number: int, operation: Operation) -> None:
        self.number = number
        self.operation = operation
        self.match: _Entry | None = None  # a call's return; None for a return
        self.next: _Entry | None = None
        self.previous: _Entry | None = None

    def unlink(self) -> None:
        """Take it out of the list."""
        assert self.previous is not None
        self.previous.next = self.next
        if self.next is not None:
            self.next.previous = self.previous

    def relink(self) -> None:
        """Put it back to where it was."""
        assert self.previous is not None
        self.previous.next = self
        if self.next is not None:
            self.next.previous = self


def _entries(operations: list[Operation]) -> _Entry:
    """The head of a list of calls and returns by time; returns before calls of the same moment."""
    events: list[tuple[float, int, _Entry]] = []
    for number, operation in enumerate(operations):
        call, back = _Entry(number, operation), _Entry(number, operation)
        call.match = back
        events += [(operation.called, 1, call), (operation.returned, 0, back)]
    head = last = _Entry(-1, Operation("head", b"", -math.inf))
    for _, _, entry in sorted(events, key=lambda event: event[:2]):
        last.next, entry.previous = entry, last
        last = entry
    return head


def check_key(operations: list[Operation]) -> bool:
    """Whether a key's history is linearizable. Raises AssertionError if the search is too long."""
    head = _entries(operations)
    state, placed, searched = State(), 0, 0
    visited: set[tuple[int, State]] = set()
    way: list[tuple[_Entry, State]] = []
    open_ends = sum(1 << n for n, one in enumerate(operations) if one.returned == math.inf)
    everything = (1 << len(operations)) - 1
    entry = head.next
    while entry is not None and placed | open_ends != everything:
        searched += 1
        assert searched < SEARCH_MAX, f"{len(operations)} operations: search given up"
        if entry.match is not None:
            after = apply(state, entry.operation)
            found = (placed | 1 << entry.number, after)
            if after is not None and found not in visited:
                visited.add((found[0], after))
                way.append((entry, state))
                state, placed = after, found[0]
                entry.unlink()
                entry.match.unlink()
                entry = head.next
            else:
                entry = entry.next
        elif not way:
            return False
        else:
            entry, state = way.pop()
            placed &= ~(1 << entry.number)
            assert entry.match is not None
            entry.match.relink()
            entry.relink()
            entry = entry.next
    return True


def check(history: list[Operation]) -> list[bytes]:
    """The keys whose histories are not linearizable; none for a good history."""
    keys: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in history:
        keys[operation.key].append(operation)
    return [key for key, operations in sorted(keys.items()) if not check_key(operations)]


def ordered(writes: list[tuple[float, float, int]]) -> bool:
    """Whether acknowledged writes (called, returned, revision) have distinct revisions, in order.

    A write that returned before another was called has the lower revision.
    """
    revisions = [revision for _, _, revision in writes]
    if len(set(revisions)) != len(revisions):
        return False
    returns = sorted((returned, revision) for _, returned, revision in writes)
    highest, at = 0, 0
    for called, _, revision in sorted(writes):
        while at < len(returns) and returns[at][0] < called:
            highest = max(highest, returns[at][1])
            at += 1
        if revision <= highest:
            return False
    return True
