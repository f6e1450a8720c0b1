"""When to compact by itself, and to which revision: --auto-compaction-mode and -retention.

Rules:
1. Pure: time (milliseconds of a clock that never goes back), the revision and whether this member
   leads are arguments. Who calls `poll` proposes what it answers and tells how that ended.
2. Periodic: the revision is sampled ten times in a retention, or in an hour if that is shorter. The
   oldest sample is compacted to: first when a whole retention is over, then, at most one interval
   older than the retention, once in a retention or an hour. After a failure, and when nothing was
   written, the next sample is the next try.
3. Revision: every five minutes all but the newest `retention` revisions are compacted.
4. Only the leader compacts; the others sample on, so that a new leader knows the past.
5. Retention 0 is no compactor. etcd's retention of less than nothing is a busy loop, and is refused
   here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import NamedTuple

from .flags import quoted, read_duration

HOUR_MILLISECONDS = 3_600_000
# etcd's: samples of a retention, and the interval of the mode `revision`.
SAMPLES = 10
REVISION_INTERVAL_MILLISECONDS = 300_000
# Below this a retention could not be kept ten times as exact as the core's clock is read.
PERIOD_MILLISECONDS_MIN = 1_000


class Retention(NamedTuple):
    """What the two flags ask for."""

    mode: str
    amount: int
    """Milliseconds or, in the mode `revision`, revisions; 0 = no automatic compaction."""


def read_retention(mode: str, text: str) -> Retention:
    """The flags' values as etcd reads them; a bare number is hours, or revisions.

    Raises ValueError. A duration in the mode `revision` is so many revisions as it has nanoseconds:
    etcd's reading.
    """
    digits = text.removeprefix("+")
    if digits.isascii() and digits.isdigit():
        number = int(digits)
        return Retention(mode, number if mode == "revision" else number * HOUR_MILLISECONDS)
    try:
        seconds = read_duration(text)
    except ValueError:
        why = f"time: invalid duration {quoted(text)}"
        raise ValueError(f"error parsing CompactionRetention: {why}") from None
    if seconds < 0:
        raise ValueError(f"--auto-compaction-retention={text} is less than nothing")
    if mode == "revision":
        return Retention(mode, round(seconds * 1e9))
    return Retention(mode, max(round(seconds * 1000), PERIOD_MILLISECONDS_MIN if seconds else 0))


class Compactor(ABC):
    """Says when to compact to what. `due` is when to ask again."""

    name: str
    retention: int

    def __init__(self, retention: int, due: int) -> None:
        self.retention = retention
        self.due = due

    @abstractmethod
    def poll(self, now: int, revision: int, leads: bool) -> int | None:
        """It is `due`: the revision to compact to now, if any."""

    @abstractmethod
    def succeeded(self, compacted: int, now: int) -> None:
        """The compaction to `compacted` is done, or had been done before."""

    @property
    @abstractmethod
    def retry_milliseconds(self) -> int:
        """How long after a failure the next try is."""


class Periodic(Compactor):
    """Keeps what is younger than the retention."""

    name = "periodic"

    def __init__(self, retention: int, now: int, revision: int) -> None:
        interval = min(retention, HOUR_MILLISECONDS)
        self._interval = interval
        self._sample_milliseconds = interval // SAMPLES
        # etcd's count; the newest is an interval old when the oldest is asked for.
        kept = retention // self._sample_milliseconds + 1
        self._samples: deque[int] = deque([revision], maxlen=kept)
        self._compacted = 0
        self._succeeded_at = now
        # How long to wait from one success to the next; at first it is the retention.
        self._wait = retention
        super().__init__(retention, now + self._sample_milliseconds)

    def poll(self, now: int, revision: int, leads: bool) -> int | None:
        """The sample of a retention ago, when it is time for it."""
        oldest = self._samples[0]
        self._samples.append(revision)
        self.due = now + self._sample_milliseconds
        if not leads or now - self._succeeded_at < self._wait or oldest == self._compacted:
            return None
        self._wait = self._interval
        return oldest

    def succeeded(self, compacted: int, now: int) -> None:
        """The next one is an interval away."""
        self._compacted = compacted
        self._succeeded_at = now

    @property
    def retry_milliseconds(self) -> int:
        """With the next sample."""
        return self._sample_milliseconds


class Revisions(Compactor):
    """Keeps the newest revisions, as many as the retention says."""

    name = "revision"

    def __init__(self, retention: int, now: int) -> None:
        self._compacted = 0
        super().__init__(retention, now + REVISION_INTERVAL_MILLISECONDS)

    def poll(self, now: int, revision: int, leads: bool) -> int | None:
        """What is too many, if anything is since the last time."""
        self.due = now + REVISION_INTERVAL_MILLISECONDS
        target = revision - self.retention
        if not leads or target <= 0 or target == self._compacted:
            return None
        return target

    def succeeded(self, compacted: int, now: int) -> None:
        """Not again to the same revision."""
        self._compacted = compacted

    @property
    def retry_milliseconds(self) -> int:
        """With the next interval."""
        return REVISION_INTERVAL_MILLISECONDS


def make_compactor(retention: Retention, now: int, revision: int) -> Compactor | None:
    """The compactor that the flags ask for; None if they ask for none."""
    if retention.amount == 0:
        return None
    if retention.mode == "revision":
        return Revisions(retention.amount, now)
    return Periodic(retention.amount, now, revision)
