"""Blocks of counters that workers fill and the core sums, in memory that both share.

Rules:
1. Each worker slot has one block of unsigned 64-bit counters, made before the fork; only that
   slot's worker writes it, and what a counter means is the workers' knowledge.
2. Sums never go back: when a worker has died, `retire` keeps its counts and clears the block for
   its successor.
"""

from __future__ import annotations

from mmap import mmap

from quorate.core.limits import WORKER_COUNTERS_MAX

COUNTER_BYTES = 8


class CounterBlocks:
    """The blocks of all worker slots, and what dead workers left."""

    def __init__(self, slots: int) -> None:
        self._blocks = [
            memoryview(mmap(-1, WORKER_COUNTERS_MAX * COUNTER_BYTES)).cast("Q")
            for _ in range(slots)
        ]
        self._retired = [0] * WORKER_COUNTERS_MAX

    def block(self, slot: int) -> memoryview:
        """The block that the worker of this slot writes."""
        return self._blocks[slot]

    def retire(self, slot: int) -> None:
        """The worker of this slot is dead."""
        block = self._blocks[slot]
        self._retired = [kept + count for kept, count in zip(self._retired, block, strict=True)]
        block[:] = memoryview(bytes(WORKER_COUNTERS_MAX * COUNTER_BYTES)).cast("Q")

    def total(self) -> list[int]:
        """The sum over all workers, past and present."""
        return [sum(counts) for counts in zip(self._retired, *self._blocks, strict=True)]
