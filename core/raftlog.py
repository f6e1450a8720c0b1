"""The log as raft sees it: runs of entries, and how far they have got.

A run moves through the log from right to left:

    snapshot        applied   applying   stable    offered     last
    ───┴── kept ───────┴──────────┴─────────┴──────────┴─────────┘
                                  └ committed lies between applying and last

Rules:
1. Invariant: snapshot <= applied <= applying <= committed <= last,
   applying <= stable <= offered <= last: nothing is applied before it is on this member's disk.
2. Runs are consecutive, none is empty, terms never fall, and only whole runs move: an index inside
   a run can be committed (after a restart), but the run is handed out when its last entry is.
   A configuration change stands alone in its run.
3. What is applied is dropped from the left, run by run, beyond the two limits; `snapshot_index`
   and `snapshot_term` are those of the entry before the first run kept.
4. Nothing here reads an entry: what a `Run` tells of itself suffices.

Costs: every verb takes constant time per run it moves; `term` of an old index is a binary search;
dropping moves the list's pointers (40 KB for 5,000 runs, a microsecond).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import attrgetter

from ._run import Run
from .limits import APPLIED_BYTES_KEPT_MAX, APPLIED_ENTRIES_KEPT_MAX


class LogCompactedError(LookupError):
    """The entry was dropped: who needs it needs a snapshot instead."""


_last_index_of = attrgetter("last_index")


class RaftLog:
    """All runs that are not yet dropped, and the marks of rule 1.

    `runs` are those recovered from the disk, in order, beginning after `snapshot_index`; they are
    stable, and nothing of them is applied.
    """

    __slots__ = (
        "_applied_at",
        "_applying_at",
        "_offered_at",
        "_runs",
        "applied",
        "applied_bytes",
        "applying",
        "bytes_kept_max",
        "committed",
        "entries_kept_max",
        "last_index",
        "last_term",
        "offered",
        "snapshot_index",
        "snapshot_term",
        "stable",
        "unapplied_bytes",
    )

    def __init__(
        self,
        runs: Iterable[Run] = (),
        snapshot_index: int = 0,
        snapshot_term: int = 0,
        *,
        bytes_kept_max: int = APPLIED_BYTES_KEPT_MAX,
        entries_kept_max: int = APPLIED_ENTRIES_KEPT_MAX,
    ) -> None:
        self.snapshot_index = snapshot_index
        self.snapshot_term = snapshot_term
        self.bytes_kept_max = bytes_kept_max
        self.entries_kept_max = entries_kept_max
        self._runs: list[Run] = []
        self.last_index = snapshot_index
        self.last_term = snapshot_term
        # Positions in `_runs`: of the first run not applied, not handed to apply, not offered.
        self._applied_at = self._applying_at = self._offered_at = 0
        self.applied = self.applying = self.committed = snapshot_index
        self.stable = self.offered = snapshot_index
        # Bytes of the runs left and right of `applied`.
        self.applied_bytes = self.unapplied_bytes = 0
        for run in runs:
            assert run.first_index == self.last_index + 1, (run, self.last_index)
            assert run.term >= self.last_term > 0 or self.last_term == 0, (run, self.last_term)
            self.append(run)
        self._offered_at = len(self._runs)
        self.stable = self.offered = self.last_index

    # --- the right end: append, store

    def append(self, run: Run) -> None:
        """Put a run after the last one; it already has its index and term."""
        self._runs.append(run)
        self.last_index += run.count
        self.last_term = run.term
        self.unapplied_bytes += run.size

    def unstable_runs(self) -> list[Run]:
        """The runs that were not yet offered to the storage."""
        return self._runs[self._offered_at :]

    def offer(self) -> None:
        """All runs are with the storage now."""
        self._offered_at = len(self._runs)
        self.offered = self.last_index

    def stable_to(self, index: int) -> None:
        """The storage has everything up to `index`, durably."""
        assert index <= self.offered, f"stored {index} of {self.offered} offered"
        if index > self.stable:
            self.stable = index

    # --- the left end: commit, apply, drop

    def commit_to(self, index: int) -> None:
        """Everything up to `index` is decided."""
        assert index <= self.last_index, f"commit {index} beyond the last entry {self.last_index}"
        if index > self.committed:
            self.committed = index

    def committed_runs(self) -> list[Run]:
        """The runs to apply next: decided, on the disk, and not yet handed out."""
        runs = self._runs
        limit = min(self.committed, self.stable)
        at = start = self._applying_at
        last = self.applying
        while at < len(runs):
            last += runs[at].count
            if last > limit:
                break
            at += 1
        return runs[start:at]

    def apply_begins(self, runs: Sequence[Run]) -> None:
        """What `committed_runs` answered is being applied."""
        self._applying_at += len(runs)
        self.applying = runs[-1].last_index

    def applied_to(self, index: int) -> None:
        """Everything up to `index`, the end of a run, is applied; drops what is too much."""
        assert self.applied <= index <= self.applying, (
            f"applied {index}, not within {self.applied}..{self.applying}"
        )
        while self.applied < index:
            run = self._runs[self._applied_at]
            self._applied_at += 1
            self.applied += run.count
            self.applied_bytes += run.size
            self.unapplied_bytes -= run.size
        assert self.applied == index, f"applied {index}, inside a run that ends at {self.applied}"
        if (
            self.applied_bytes > self.bytes_kept_max
            or index - self.snapshot_index > self.entries_kept_max
        ):
            self._drop()

    def _drop(self) -> None:
        """Forget applied runs from the left until both limits hold."""
        dropped = 0
        while (
            self.applied_bytes > self.bytes_kept_max
            or self.applied - self.snapshot_index > self.entries_kept_max
        ):
            run = self._runs[dropped]
            dropped += 1
            self.applied_bytes -= run.size
            self.snapshot_index += run.count
            self.snapshot_term = run.term
        del self._runs[:dropped]
        self._applied_at -= dropped
        self._applying_at -= dropped
        self._offered_at -= dropped

    # --- looking

    def has_unapplied_conf_change(self) -> bool:
        """Whether a configuration change is decided but not applied."""
        waiting = self._runs[self._applied_at :]
        return any(run.has_conf_change and run.first_index <= self.committed for run in waiting)

    def term(self, index: int) -> int:
        """The term of the entry at `index`; raises LogCompactedError if that was dropped."""
        assert index <= self.last_index, f"term of {index} beyond the last entry {self.last_index}"
        if index < self.snapshot_index:
            raise LogCompactedError(index)
        if index == self.snapshot_index:
            return self.snapshot_term
        # Most questions are about the newest runs.
        run = self._runs[-1]
        if index < run.first_index:
            run = self._runs[self._position(index)]
        return run.term

    def slice(self, first_index: int, last_index: int) -> list[Run]:
        """The runs that hold `first_index`..`last_index`, whole.

        Raises LogCompactedError if one of them was dropped.
        """
        assert first_index <= last_index <= self.last_index, (first_index, last_index)
        if first_index <= self.snapshot_index:
            raise LogCompactedError(first_index)
        return self._runs[self._position(first_index) : self._position(last_index) + 1]

    def _position(self, index: int) -> int:
        """Where in `_runs` the run with entry `index` stands."""
        return bisect_left(self._runs, index, key=_last_index_of)

    def check(self) -> None:
        """Walk every invariant of the rules; for tests and the debug build."""
        marks = (self.snapshot_index, self.applied, self.applying, self.committed, self.last_index)
        assert list(marks) == sorted(marks), marks
        marks = (self.snapshot_index, self.applying, self.stable, self.offered, self.last_index)
        assert list(marks) == sorted(marks), marks
        index, term, sizes = self.snapshot_index, self.snapshot_term, [0, 0]
        ends = {0: index}
        for position, run in enumerate(self._runs):
            assert run.count == 1 or (run.count > 1 and not run.has_conf_change), run
            assert run.first_index == index + 1, (run, index)
            assert run.term >= term, (run, term)
            index, term = run.last_index, run.term
            sizes[position >= self._applied_at] += run.size
            ends[position + 1] = index
        assert (index, term) == (self.last_index, self.last_term), (index, term)
        assert ends[self._applied_at] == self.applied, (ends, self._applied_at, self.applied)
        assert ends[self._applying_at] == self.applying, (ends, self._applying_at, self.applying)
        assert ends[self._offered_at] == self.offered, (ends, self._offered_at, self.offered)
        assert sizes == [self.applied_bytes, self.unapplied_bytes], sizes
        assert self.applied - self.snapshot_index <= self.entries_kept_max, marks
        assert self.applied_bytes <= self.bytes_kept_max, sizes
