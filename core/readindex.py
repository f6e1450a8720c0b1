"""Linearizable reads: which wait for an index, and which have theirs.

Rules:
1. A read may be answered from the state at any index that was committed when it arrived or later.
2. A leader knows what is committed only after an entry of its own term is (§8 of the paper: an
   older leader may have committed more than this one has learned yet): until then reads wait here.
3. A lone voter needs nobody's word that it still leads. With more voters, one round of heartbeats
   with its own number confirms all reads that wait; that is where `release` is called from.
4. Who stops leading drops the reads that wait: only the next leader can answer them.

A context is what the driver gave, usually one object for a turn's reads; raft never looks at it.
"""

from __future__ import annotations

from typing import NamedTuple


class ReadState(NamedTuple):
    """The reads of `context` may be answered once everything up to `read_index` is applied."""

    context: object
    read_index: int


class ReadIndex:
    """The reads of one leader's term."""

    __slots__ = ("ready", "waiting")

    def __init__(self) -> None:
        # In the order in which they came.
        self.waiting: list[object] = []
        self.ready: list[ReadState] = []

    def add(self, context: object) -> None:
        """Let the reads wait."""
        self.waiting.append(context)

    def release(self, index: int) -> None:
        """`index` answers every read that waits."""
        self.ready.extend(ReadState(context, index) for context in self.waiting)
        self.waiting.clear()

    def drop(self) -> list[object]:
        """Give up the reads that wait; those that have an index keep it."""
        dropped = self.waiting
        self.waiting = []
        return dropped
