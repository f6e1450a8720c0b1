"""The state as a backend file of its own, without a name, made in slices while the server goes on.

Rules:
1. It is the state at one applied index, whatever comes later: small buckets are copied when it
   begins, the rest is a checkpoint.
2. The thread that serves never waits for this file's disk: what is to be written goes to a thread,
   at most COPY_BYTES_WAITING_MAX and a piece at a time. While so much waits, no slice is made.
3. The name is gone before the first byte is written, so that nothing is left however this ends. A
   process that dies between the two leaves an empty `db.tmp.*`; `remove_leftovers` removes those.
4. The file is synced though nobody will read it after a crash: the sync says whether what will be
   read is what was written. A disk that is full or fails ends the copy, not the process: nothing
   else hangs on this file.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading

from ._boltwriter import BoltWriter
from ._checkpoint import Checkpoint
from ._disk import Disk, DiskError, PythonDisk
from .apply import State
from .buckets import Carried, small_buckets
from .limits import COPY_BYTES_WAITING_MAX
from .snapshots import Source
from .version import STORAGE_VERSION

TEMPORARY = "db.tmp."
# A slice: below 100 microseconds of pairs of usual size. A pair is never split: so many are taken
# at once, and where they are large only one.
STEP_PAIRS = 8
STEP_ROUNDS = 24
STEP_BYTES = 64 * 1024
# As large as etcd's own after years of use; fewer bytes are lost at page ends.
LEAF_BYTES = 64 * 1024
# So much is written before it is waited for: else the log's syncs wait behind all of the file.
SYNC_BYTES = 8 * 1024 * 1024


def remove_leftovers(disk: Disk, directory: str) -> None:
    """Remove what a copy, or a defragmentation of etcd, left when its process died."""
    for name in disk.list(directory) or ():
        if name.startswith(TEMPORARY):
            disk.remove(f"{directory}/{name}")


class Spool(PythonDisk):
    """One file of `disk` without a name: writes are taken at once, and made by a thread."""

    def __init__(self, disk: Disk, bell: int) -> None:
        self.disk = disk
        self.failure: DiskError | None = None
        # All is written and synced, or failed.
        self.closed = False
        # The descriptor to read the whole file with, until it is taken.
        self._readers: list[int] = []
        self._bell = bell
        self._pieces: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        # The first is only written by the caller's thread, the second only by the other.
        self._taken = self._written = 0
        self._abandoned = False

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        return self._taken - self._written

    def open(self, path: str, create: bool = False) -> int:
        """Make the file, and take its name away."""
        assert create, path
        handle = self.disk.open(path, create=True)
        try:
            self.disk.remove(path)
        except BaseException:
            self.disk.close(handle)
            raise
        # The thread may end after all else, so it has a bell of its own.
        arguments = (handle, path, os.dup(self._bell))
        threading.Thread(target=self._write_all, args=arguments, name="copy", daemon=True).start()
        return handle

    def size(self, handle: int, path: str = "") -> int:
        """What was taken."""
        return self._taken

    def write(
        self, handle: int, data: bytes | bytearray | memoryview, offset: int, path: str = ""
    ) -> None:
        """Take a piece. Raises DiskError for one that was taken before."""
        if self.failure is not None:
            raise self.failure
        self._taken += len(data)
        self._pieces.put((offset, bytes(data)))

    def datasync(self, handle: int, path: str = "") -> None:
        """Nothing: all is synced once, behind the last piece."""

    def close(self, handle: int) -> None:
        """No more pieces come: the thread syncs, and ends."""
        self._pieces.put(None)

    def abandon(self) -> None:
        """Write nothing more; nobody will read the file."""
        self._abandoned = True
        self._drop_reader()

    def take_reader(self) -> int:
        """The descriptor to read the file with, for the caller to close; it is there once."""
        return self._readers.pop()

    def _drop_reader(self) -> None:
        # Both threads may come here at once: one of them gets it.
        with contextlib.suppress(IndexError):
            os.close(self._readers.pop())

    def _write_all(self, handle: int, path: str, bell: int) -> None:
        """In the thread: write what comes, then sync; ring the bell after each step."""
        synced = 0
        while (piece := self._pieces.get()) is not None:
            offset, data = piece
            if self.failure is None and not self._abandoned:
                try:
                    self.disk.write(handle, data, offset, path)
                    if self._written - synced >= SYNC_BYTES:
                        synced = self._written
                        self.disk.datasync(handle, path)
                except DiskError as error:
                    self.failure = error
            self._written += len(data)
            os.eventfd_write(bell, 1)
        try:
            if self.failure is None and not self._abandoned:
                self.disk.datasync(handle, path)
                self._readers.append(self.disk.descriptor(handle, path))
                if self._abandoned:
                    self._drop_reader()
        except DiskError as error:
            self.failure = error
        self.disk.close(handle)
        self.closed = True
        os.eventfd_write(bell, 1)
        os.close(bell)


class BackendCopy:
    """A copy being made in `directory`; what is to be written of the state is fixed by now."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        state: State,
        term: int,
        bell: int,
        carried: Carried | None = None,
    ) -> None:
        """`term` is of the last entry applied; `bell` is rung when a slice may be due.

        Raises DiskError.
        """
        self.index = state.applied
        self._size = 0
        self._spool = Spool(disk, bell)
        self._writer = BoltWriter(self._spool, f"{directory}/{TEMPORARY}copy", leaf_size=LEAF_BYTES)
        compacted = state.store.compact_revision
        self._buckets = small_buckets(
            state, self.index, term, scheduled=compacted, finished=compacted, carried=carried
        )
        self._checkpoint = Checkpoint(state.store, self._writer)
        self._closed = False
        # Of the next step.
        self._pairs = STEP_PAIRS

    @property
    def pages(self) -> int:
        """Of the file, so far."""
        return self._writer.pages

    @property
    def waiting(self) -> int:
        """Bytes that are made and not written yet."""
        return self._spool.waiting

    @property
    def made(self) -> bool:
        """Whether the thread is done."""
        return self._spool.closed

    def step(self) -> bool:
        """Make a slice; True when the next one can be made at once. Raises DiskError."""
        spool = self._spool
        if spool.failure is not None:
            raise spool.failure
        if self._writer.finished or self.waiting > COPY_BYTES_WAITING_MAX:
            return False
        pages = self.pages
        for _ in range(STEP_ROUNDS):
            if not self._checkpoint.step(self._pairs):
                self._finish()
                return False
            if (self.pages - pages) * self._writer.page_size >= STEP_BYTES:
                self._pairs = 1
                break
            self._pairs = STEP_PAIRS
        return True

    def _finish(self) -> None:
        for name, pairs in self._buckets.items():
            self._writer.begin(name)
            for key, value in pairs:
                self._writer.put(key, value)
            self._writer.end()
        self._size = self._writer.finish()

    def source(self) -> Source | None:
        """The whole file, once, when it is made; the caller closes its descriptor.

        Raises DiskError.
        """
        if not self.made:
            return None
        if self._spool.failure is not None:
            raise self._spool.failure
        return Source(self._spool.take_reader(), b"", self._size, STORAGE_VERSION)

    def close(self) -> None:
        """Give up what is not made yet; the thread ends behind the piece that it writes."""
        if self._closed:
            return
        self._closed = True
        self._checkpoint.close()
        self._spool.abandon()
        self._writer.close()
