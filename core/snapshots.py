"""Snapshots of the state for clients: consistent backend files, lent to workers that stream them.

Rules:
1. A snapshot holds everything that was answered before it was asked for. So askers share a file
   only if nothing was applied between what it holds and their question; who comes later while one
   is made waits for the next, with all who came later, too.
2. A file is lent as a descriptor that can only be read. Worker and client take as long as they
   like: the core does nothing per byte, and a slow client holds disk space, no memory and no
   writer.
3. With each descriptor goes the writing end of a pipe. When the other end says that nobody holds it
   any more, because the worker is done or dead, the loan is over: nobody has to report.
4. At most SNAPSHOT_FILES_MAX files exist at once; askers beyond them wait until one is returned. At
   most SNAPSHOT_STREAMS_MAX askers wait or hold a loan; one more is refused.
5. A file that cannot be made (the disk is full) is an error for those who asked, and a line in the
   log.

What makes a file is `Making`: it may come from anywhere that has etcd's backend at one index.
"""

from __future__ import annotations

import os
import select
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ._disk import DiskError
from .errors import EtcdError, SnapshotFailedError, TooManyRequestsError
from .limits import SNAPSHOT_FILES_MAX, SNAPSHOT_STREAMS_MAX
from .logs import Logger

# The bounds of etcd_disk_backend_snapshot_duration_seconds.
DURATION_SECONDS = tuple(0.01 * 2**number for number in range(17))


class Handed(NamedTuple):
    """An answer to a worker with descriptors, which the worker gets copies of."""

    descriptors: Sequence[int]
    message: bytes


class Source(NamedTuple):
    """A backend file at one index: `head`, then the file's bytes from there on, up to `size`."""

    descriptor: int
    head: bytes
    size: int
    version: str  # the storage version


class Loan(NamedTuple):
    """A source for one asker, and what to hold as long as it is read; both are only lent."""

    source: Source
    holder: int


class Making(Protocol):
    """A source being made."""

    @property
    def index(self) -> int:
        """The applied index of which it is."""

    def step(self) -> bool:
        """Do a slice of the work; True if the next can be done at once. Raises DiskError."""

    def source(self) -> Source | None:
        """The source, when it is made; the caller closes its descriptor. Raises DiskError."""

    def close(self) -> None:
        """Let go of what is not made yet."""


SnapshotDone = Callable[[Loan | EtcdError], None]


class Asker(NamedTuple):
    """Who waits for a source, and since when."""

    done: SnapshotDone
    since: int


class Lent:
    """A finished source, and the reading ends of the pipes of those who hold it."""

    def __init__(self, source: Source, index: int) -> None:
        self.source = source
        self.index = index
        self.holders: list[int] = []

    def lend(self, done: SnapshotDone) -> None:
        """Give it to one more."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        self.holders.append(ours)
        try:
            done(Loan(self.source, theirs))
        finally:
            os.close(theirs)

    def prune(self) -> None:
        """Forget those who have let go."""
        poll = select.poll()
        for holder in self.holders:
            poll.register(holder, 0)
        for holder, _ in poll.poll(0):
            os.close(holder)
            self.holders.remove(holder)

    def close(self) -> None:
        """The core's part is over; workers go on reading."""
        os.close(self.source.descriptor)
        for holder in self.holders:
            os.close(holder)


class Snapshots:
    """All snapshots of one member."""

    def __init__(
        self,
        make: Callable[[], Making],
        index: Callable[[], int],
        clock: Callable[[], int],
        logger: Logger,
    ) -> None:
        """`make` begins a source of what is applied, `index`; it raises DiskError."""
        self._make = make
        self._index = index
        self._clock = clock
        self._logger = logger
        self._making: Making | None = None
        # Those who get what is being made, and those for whom it began too early.
        self._askers: list[Asker] = []
        self._later: list[Asker] = []
        # The newest last: others may still get that one.
        self._lent: list[Lent] = []
        # Every file is on loan: `tick` looks whether one came back.
        self._full = False
        self.duration_counts = [0] * (len(DURATION_SECONDS) + 1)
        self.duration_seconds = 0.0

    @property
    def under_way(self) -> int:
        """How many wait, or hold a loan."""
        lent = sum(len(each.holders) for each in self._lent)
        return len(self._askers) + len(self._later) + lent

    @property
    def files(self) -> int:
        """How many files exist."""
        return len(self._lent) + (self._making is not None)

    def open_snapshot(self, done: SnapshotDone) -> None:
        """Call `done` with a loan of the state as it is now or later, or with an error.

        What `done` gets is valid until it returns; it makes its own copies.
        """
        self._prune()
        if self.under_way >= SNAPSHOT_STREAMS_MAX:
            done(TooManyRequestsError())
            return
        index = self._index()
        asker = Asker(done, self._clock())
        if self._lent and self._lent[-1].index == index:
            self._lend([asker])
        elif self._making is not None and self._making.index == index:
            self._askers.append(asker)
        else:
            self._later.append(asker)

    def step(self) -> bool:
        """Do a slice of what is to be done; True if there is more at once."""
        if self._making is None:
            if not self._later or self._full:
                return False
            if len(self._lent) >= SNAPSHOT_FILES_MAX:
                self._full = True
                return False
            if not self._begin():
                return False
        assert self._making is not None
        try:
            more = self._making.step()
            source = None if more else self._making.source()
        except DiskError as error:
            self._fail(error)
            return bool(self._later)
        if source is not None:
            self._lent.append(Lent(source, self._making.index))
            self._making.close()
            self._making = None
            askers, self._askers = self._askers, []
            self._lend(askers)
            self._prune()
        return more or (self._making is None and bool(self._later))

    def tick(self) -> None:
        """Time went by: look whether loans are over."""
        self._prune()

    def close(self) -> None:
        """Let go of everything; who waits is told nothing."""
        if self._making is not None:
            self._making.close()
            self._making = None
        for each in self._lent:
            each.close()
        self._lent.clear()
        self._askers.clear()
        self._later.clear()

    def _begin(self) -> bool:
        self._askers, self._later = self._later, []
        try:
            self._making = self._make()
        except DiskError as error:
            self._fail(error)
            return False
        return True

    def _fail(self, error: DiskError) -> None:
        """The file can't be made: those who wait for it are told so."""
        self._logger.error("failed to make a snapshot", error=str(error))
        if self._making is not None:
            self._making.close()
            self._making = None
        askers, self._askers = self._askers, []
        for asker in askers:
            asker.done(SnapshotFailedError())

    def _lend(self, askers: Sequence[Asker]) -> None:
        """Give the newest file to those who waited for it."""
        lent = self._lent[-1]
        now = self._clock()
        for asker in askers:
            seconds = (now - asker.since) / 1000
            self.duration_counts[bisect_left(DURATION_SECONDS, seconds)] += 1
            self.duration_seconds += seconds
            lent.lend(asker.done)
        self._logger.info(
            "sending database snapshot to client",
            total_bytes=lent.source.size,
            storage_version=lent.source.version,
            consistent_index=lent.index,
            clients=len(lent.holders),
        )

    def _prune(self) -> None:
        """Close the files that nobody reads any more."""
        for lent in list(self._lent):
            lent.prune()
            if not lent.holders:
                lent.close()
                self._lent.remove(lent)
        self._full = self._full and len(self._lent) >= SNAPSHOT_FILES_MAX
