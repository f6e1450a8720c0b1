"""When the state is written into the backend file, and what follows: shorter logs, quick starts.

Rules:
1. A checkpoint is the state after one entry, between two turns. It is written in slices: the turns
   go on, a thread writes what has gathered, at a pace that leaves the device to the log's syncs.
   Where all leases have to be looked at, that is done before the moment.
2. As a rule it goes on with the file: new versions come behind what is there, the small buckets are
   written anew, and the last thing is the other meta. A crash before leaves the file as it was. No
   page is used twice, so who reads the file of one meta is never disturbed.
3. A whole new file, renamed over the old one, is the first one, the next after a failure, and one
   that would leave more garbage than data. Only here a compaction's work is done in the file; up to
   then it names a scheduled one, which etcd, too, finishes when it starts.
4. When the file is durable, values are read from its mapping, and follow: the snapshot file for
   etcd up to 3.6, the log's record of it, and the removal of old segments and snapshot files. The
   log is kept from the checkpoint before on, so that either meta of the file, and either of the two
   newest snapshot files, finds what came after it.
5. A failure ends the checkpoint, not the server: the log still has everything.
6. While memory or the file is damaged (`damage`) no checkpoint is written and none is lent: good is
   not replaced by bad, and the log keeps what it has. While the log is damaged nothing of it is
   removed either, but a checkpoint is written at once: a start then needs only what came after it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ._bolt import Bolt
from ._boltfile import OpenFile
from ._boltwriter import BoltWriter
from ._checkpoint import Checkpoint
from ._disk import Disk, DiskError
from ._filesums import FileSums
from ._leasebucket import LeaseBucket
from ._mapping import Mapping
from ._wal import Wal
from ._walread import SEGMENT_NAME
from .apply import State
from .backend import Backend, lock_backend, map_backend
from .buckets import Carried, carried_buckets, small_buckets
from .config import Config
from .errors import Fatal
from .limits import (
    CHECKPOINT_BYTES_PER_SECOND,
    CHECKPOINT_LOG_BYTES,
    CHECKPOINT_PAUSE_SECONDS,
    CHECKPOINT_RETRY_SECONDS,
    GARBAGE_BYTES_MIN,
    LEAF_BYTES,
)
from .logs import Logger
from .members import Cluster
from .messages import ConfState
from .raft import Raft
from .snapfile import snapshot_names, write_snapshot
from .snapshots import Source
from .version import STORAGE_VERSIONS

# A stop does not wait for a whole new file that is larger.
STOP_BYTES_MAX = 256 * 1024 * 1024
# To read so few entries of the log takes no time.
STOP_ENTRIES_MIN = 100
# Pairs encoded, or values moved into the mapping, in a turn: about 100 microseconds.
PAIRS_STEP = 400
# Leases looked at in a turn, and buckets of their table: about 100 microseconds.
LEASES_STEP = 2000
# etcd removes what is named like this when it starts, and so do we.
TEMPORARY = "db.tmp.checkpoint"
NOTHING_SAVED = (1 << 63) - 1

Result = TypeVar("Result")
# Pages that are metas.
PAGE_FIRST = 2
# What a step waits for; None: for the next turn.
Steps = Generator["Future[object] | None", None, None]


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint: what the file is that the next one goes on with."""

    index: int = 0
    revision: int = 0
    finished: int = 0
    """The newest compaction whose work is done in the file; 0: none."""
    size: int = 0
    mapping: Mapping | None = None
    """Where its values are read; None when they are not."""
    can_extend: bool = False
    transaction: int = 0
    page_size: int = 0
    has_both_metas: bool = True
    file: OpenFile | None = None
    """None: it is not known what the file is."""
    sums: FileSums | None = None
    """Of the file's pages; whoever reads one first adds what is missing."""


@dataclass(frozen=True)
class Taken:
    """What a checkpoint is of, all of one moment."""

    index: int
    term: int
    conf_state: ConfState
    cluster: Cluster
    buckets: dict[bytes, list[tuple[bytes, bytes]]]


class Damaged(Fatal):
    """What a checkpoint would be made of is not as it was."""


class Demand:
    """A snapshot that a client asked for: the file, once it has all that was applied then."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._wanted = checkpoints.state.applied
        self._failures = checkpoints.failures

    @property
    def index(self) -> int:
        """Of the checkpoint that it gets, or would if that began now."""
        begun = self._checkpoints.begun_index
        return begun if begun >= self._wanted else self._checkpoints.state.applied

    def step(self) -> bool:
        """The turn writes checkpoints by itself; here it is told that one is wanted."""
        checkpoints = self._checkpoints
        checkpoints.wanted_index = max(checkpoints.wanted_index, self._wanted)
        return False

    def source(self) -> Source | None:
        """The file, when it is there; the caller closes its descriptor. Raises DiskError."""
        checkpoints = self._checkpoints
        if checkpoints.damage:
            raise DiskError("check", checkpoints.path, errno.EUCLEAN)
        if checkpoints.saved.index >= self._wanted:
            return checkpoints.lend()
        if checkpoints.failures != self._failures:
            raise checkpoints.failure
        return None

    def close(self) -> None:
        """A checkpoint is never in vain."""


class Inline(Executor):
    """Does everything at once, in the caller's thread."""

    def submit(
        self, work: Callable[..., Result], /, *args: object, **kwargs: object
    ) -> Future[Result]:
        """The work's result, or failure."""
        future: Future[Result] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as failure:
            future.set_exception(failure)
        return future


class Checkpoints:
    """Writes the checkpoints of one member, one at a time."""

    def __init__(
        self,
        config: Config,
        disk: Disk,
        state: State,
        raft: Raft,
        wal: Wal,
        backend: Backend | None,
        lock: int,
        logger: Logger,
        clock: Callable[[], int],
        threads: Executor,
        doorbell: int,
    ) -> None:
        self.config = config
        self.disk = disk
        self.state = state
        self.raft = raft
        self.wal = wal
        self.logger = logger
        self.clock = clock
        self.threads = threads
        self.doorbell = doorbell
        self.directory = os.path.join(config.data_dir, "member", "snap")
        self.path = f"{self.directory}/db"
        self.carried: Carried = {}
        self.saved = Saved()
        # Where the log may be cut: the checkpoint before, once a sync came after its record.
        self._recorded = (0, 0)
        self._log_bytes = 0  # written when the last one began
        # Milliseconds of the clock: not before, whatever is due; and not for a few entries alone.
        self._retry_at = 0
        self._rest_until = 0
        # A client wants a checkpoint of this index or a later one; and of which the newest is.
        self.wanted_index = 0
        self.begun_index = 0
        self.failures = 0
        self.failure = DiskError("write", self.path, errno.EIO)
        # As etcd tells it of the file; before there is one, of the one that will be.
        self.storage_version = f"{config.storage_version}.0"
        # What was found to be damaged, and whether the log was; see rule 6.
        self.damage = ""
        self._keeps_log = False
        self._steps: Steps | None = None
        self._future: Future[object] | None = None
        # On the backend file, as bbolt's; -1: there is none yet.
        self._lock = lock
        if backend is not None:
            self.carried = carried_buckets(backend)
            self._take_over(backend)
        self.set_saved_revision()

    def _take_over(self, backend: Backend) -> None:
        """Go on with the file that the state was restored from."""
        self.storage_version = backend.storage_version
        self.saved = Saved(
            backend.index,
            self.state.store.saved_revision,
            backend.revision(b"finishedCompactRev"),
            backend.size,
            backend.mapping,
            backend.bolt.warning is None and backend.bolt.has_pages(b"key"),
            backend.bolt.transaction,
            backend.bolt.page_size,
            backend.bolt.warning is None,
            OpenFile(self.disk, self.path),
            FileSums(PAGE_FIRST * backend.bolt.page_size),
        )

    def set_saved_revision(self) -> None:
        """What a compaction must not remove is what a file that is gone on with still lacks."""
        store = self.state.store
        store.saved_revision = self.saved.revision if self.saved.can_extend else NOTHING_SAVED

    @property
    def is_writing(self) -> bool:
        """Whether one is under way."""
        return self._steps is not None

    # --- damage

    def stop(self, damage: str) -> None:
        """Memory or file is damaged: write no checkpoint, and give up the one under way."""
        self.damage = damage
        self._keeps_log = True

    def replace_log(self, _: str) -> None:
        """The log is damaged: have the file hold all that it does, and leave it as it is."""
        self.wanted_index = self.state.applied
        self._keeps_log = True

    def go_on(self) -> None:
        """Whoever looks after the server says that it is in order again."""
        self.damage = ""
        self._keeps_log = False

    # --- turns

    def step(self, now: int) -> bool:
        """Do a slice of what is to be done, `now`; True when there is more to do at once."""
        if self._steps is None:
            if self.damage or self.state.applier.applied == self.saved.index:
                return False
            if not self.is_due(now):
                return False
            self._steps = self._guarded(now)
        elif self.damage and self._future is None:
            # Not while the last page or the name is on its way: then it is finished.
            with contextlib.suppress(StopIteration):
                self._steps.throw(Damaged(self.damage))
            self._steps = None
            return False
        if self._future is not None and not self._future.done():
            return False
        try:
            self._future = next(self._steps)
        except StopIteration:
            # A compaction may have waited for this.
            self._steps = self._future = None
        return self._future is None

    def is_due(self, now: int) -> bool:
        """Whether to begin one; some entry is not in the file."""
        entries = self.state.applied - self.saved.index
        if self.wanted_index > self.saved.index:
            return True
        if now < self._retry_at:
            return False
        if self.state.store.waits_for_checkpoint:
            return True
        if self.wal.written_bytes - self._log_bytes >= CHECKPOINT_LOG_BYTES:
            return True
        return entries >= self.config.snapshot_count and now >= self._rest_until

    def finish(self) -> None:
        """End the one under way, and write a last one, at once: the server stops."""
        if self.wants_whole() and self.state.store.size_in_use > STOP_BYTES_MAX:
            self.close()
            return
        while self._steps is not None:
            self._step_now()
        is_wanted = self.wanted_index > self.saved.index
        entries = self.state.applied - self.saved.index
        if not self.damage and (is_wanted or entries > STOP_ENTRIES_MIN):
            self._steps = self._guarded(self.clock())
            while self._steps is not None:
                self._step_now()
        self.close()

    def _step_now(self) -> None:
        if self._future is not None:
            self._future.exception()
        self.step(self.clock())

    def close(self) -> None:
        """Give up the one under way, and the file's lock."""
        if self._future is not None:
            self._future.exception()
        if self._steps is not None:
            self._steps.close()
        self._steps = self._future = None
        if self._lock >= 0:
            self.disk.close(self._lock)
        self._lock = -1

    def _guarded(self, now: int) -> Steps:
        """One checkpoint; see rule 5."""
        logged = self.wal.written_bytes - self._log_bytes
        self._log_bytes += logged
        self._rest_until = now + int(CHECKPOINT_PAUSE_SECONDS * 1000)
        whole = self.wants_whole()
        size = 0 if whole else self.saved.size
        leases = LeaseBucket(self.state.store.lessor, whole=whole)
        try:
            while leases.step(LEASES_STEP):
                yield None
            leases.take()
            finished = self.state.store.compact_revision if whole else self.saved.finished
            taken = self._take(finished)
            yield from self._write(whole, finished, taken, leases)
        except Fatal as failure:
            self.logger.error("failed to write a checkpoint", error=str(failure))
            self._discard()
            # What was noted of leases went with it.
            self.state.store.lessor.forget_changes()
            if whole or not isinstance(failure, Damaged):
                # Nobody knows what the page cache has dropped of it: rule 3.
                self.saved = Saved(index=self.saved.index)
                self.set_saved_revision()
            self.wanted_index = 0
            self.failures += 1
            if isinstance(failure, DiskError):
                self.failure = failure
            self._retry_at = self.clock() + int(CHECKPOINT_RETRY_SECONDS * 1000)
            return
        finally:
            leases.close()
        # What is as much as the log had comes as often as that does.
        rest = (self.saved.size - size - logged) * 1000 // CHECKPOINT_BYTES_PER_SECOND
        self._rest_until = max(self._rest_until, self.clock() + rest)
        try:
            yield from self._follow(taken)
        except Fatal as failure:
            # The file is good, the log still has everything, and the next checkpoint tries again.
            self.logger.error("failed to release what a checkpoint replaced", error=str(failure))

    def _discard(self) -> None:
        """Give back the room of what was written in vain: the disk may be full, and the log has to
        go on.
        """
        with contextlib.suppress(Fatal):
            self.disk.remove(f"{self.directory}/{TEMPORARY}")
        with contextlib.suppress(Fatal):
            handle = self.disk.open(self.path)
            try:
                # What a meta names stays, also if nobody knows whether that meta is durable.
                bolt = Bolt(self.disk.map(handle, self.path), self.path)
                self.disk.cut(handle, bolt.high_water * bolt.page_size, self.path)
            finally:
                self.disk.close(handle)

    def _run(self, work: Callable[[], object]) -> Steps:
        """Have a thread do it, and wait. Raises what it raises."""
        future = self.threads.submit(work)
        future.add_done_callback(self._ring)
        while not future.done():
            yield future
        future.result()

    def _ring(self, _: Future[object]) -> None:
        if self.doorbell >= 0:
            os.eventfd_write(self.doorbell, 1)

    # --- one checkpoint

    def _write(self, whole: bool, finished: int, taken: Taken, leases: LeaseBucket) -> Steps:
        """The file, and its values read from there."""
        self.begun_index = taken.index
        writer = self._open_writer(whole)
        file, sums = self.saved.file, self.saved.sums
        if whole or sums is None:
            sums = FileSums(PAGE_FIRST * writer.page_size)
        written = writer.sums = sums.begin(writer.pages * writer.page_size)
        try:
            after = 0 if whole else self.saved.revision
            pairs = Checkpoint(self.state.store, writer, after=after)
            try:
                yield from self._write_file(writer, pairs, taken, leases)
                mapping = self.saved.mapping
                if whole:
                    yield from self._run(self._publish)
                    mapping = self._map()
                    file = OpenFile(self.disk, self.path)
                sums.add(written)
                self.storage_version = f"{self.config.storage_version}.0"
                self.saved = Saved(
                    taken.index,
                    pairs.revision,
                    finished,
                    writer.pages * writer.page_size,
                    mapping,
                    not whole or pairs.pairs > 0,
                    writer.transaction,
                    writer.page_size,
                    True,
                    file,
                    sums,
                )
                self.state.unlike_rows = {}
                if mapping is not None and shows(mapping, self.saved.size, whole):
                    while pairs.map_step(mapping, PAIRS_STEP):
                        yield None
            finally:
                pairs.close()
        finally:
            writer.close()
        # Not before: what is to be moved into the mapping must not be removed by a compaction.
        self.set_saved_revision()
        dropped = self.state.store.values.drop_mappings()
        yield from self._run(partial(unmap, dropped))
        self.logger.info(
            "saved a checkpoint",
            index=taken.index,
            revision=pairs.revision,
            pairs=pairs.pairs,
            leases=leases.written,
            bytes=self.saved.size,
            whole=whole,
        )

    def _write_file(
        self, writer: BoltWriter, pairs: Checkpoint, taken: Taken, leases: LeaseBucket
    ) -> Steps:
        """All of the file, durably."""
        while pairs.step(PAIRS_STEP):
            if writer.piece_waits:
                yield from self._run(writer.write_piece)
            else:
                yield None
        yield from self._run(partial(leases.write, writer))
        for name, bucket in taken.buckets.items():
            writer.begin(name)
            for key, value in bucket:
                writer.put(key, value)
            writer.end()
        yield from self._run(writer.finish)

    def wants_whole(self) -> bool:
        """Whether the next checkpoint is a new file: rule 3."""
        size = self.saved.size
        if not self.saved.can_extend:
            return True
        garbage = size - self.state.store.size_in_use
        return garbage > max(size // 2, GARBAGE_BYTES_MIN)

    def _take(self, finished: int) -> Taken:
        """Everything of this moment but keys and leases."""
        state = self.state
        index = state.applied
        term = self.raft.log.term(index)
        members = state.members
        return Taken(
            index,
            term,
            state.conf_state(),
            Cluster(tuple(members.list()), tuple(members.removed()), members.cluster_version),
            small_buckets(
                state,
                index,
                term,
                scheduled=state.store.compact_revision,
                finished=finished,
                storage_version=STORAGE_VERSIONS[self.config.storage_version],
                carried=self.carried,
            ),
        )

    def _open_writer(self, whole: bool) -> BoltWriter:
        if whole:
            path = f"{self.directory}/{TEMPORARY}"
            if TEMPORARY in (self.disk.list(self.directory) or ()):
                self.disk.remove(path)
            return BoltWriter(self.disk, path, leaf_size=LEAF_BYTES, deferred=True)
        handle = self.disk.open(self.path)
        try:
            bolt = Bolt(self.disk.map(handle, self.path), self.path)
        finally:
            self.disk.close(handle)
        return BoltWriter.append_to(self.disk, bolt, leaf_size=LEAF_BYTES, deferred=True)

    def _publish(self) -> None:
        """The new file gets its name, durably."""
        self.disk.rename(f"{self.directory}/{TEMPORARY}", self.path)
        self.disk.sync_directory(self.directory)
        lock = lock_backend(self.disk, self.directory)
        if self._lock >= 0:
            self.disk.close(self._lock)
        self._lock = lock

    def _map(self) -> Mapping | None:
        """Map the new file; None when readers still need too many old ones."""
        handle = self.disk.open(self.path)
        try:
            mapping = map_backend(self.disk, handle, self.path)
        finally:
            self.disk.close(handle)
        return mapping if self.state.store.values.add_mapping(mapping) else None

    # --- snapshots

    def demand(self) -> Demand:
        """A snapshot of what is applied now, or later."""
        return Demand(self)

    def lend(self) -> Source:
        """The file as the newest checkpoint left it: nothing of that changes any more."""
        handle = self.disk.open(self.path)
        try:
            bolt = Bolt(self.disk.map(handle, self.path), self.path)
            descriptor = self.disk.descriptor(handle, self.path)
        finally:
            self.disk.close(handle)
        version = STORAGE_VERSIONS[self.config.storage_version]
        return Source(descriptor, bolt.metas(), bolt.high_water * bolt.page_size, version)

    # --- what follows

    def _follow(self, taken: Taken) -> Steps:
        """The snapshot file, the log's record, and an end to what nobody needs any more."""
        write = partial(
            write_snapshot,
            self.disk,
            self.directory,
            taken.index,
            taken.term,
            taken.cluster,
            taken.conf_state,
        )
        yield from self._run(write)
        wal = self.wal
        if wal.commit < taken.index:
            wal.append(None, (wal.term, wal.vote, taken.index))
        wal.append_snapshot(taken.index, taken.term, taken.conf_state.encode())
        before, syncs = self._recorded
        self._recorded = (taken.index, wal.statistics().fsync_count)
        if syncs < self._recorded[1] and not self._keeps_log:
            yield from self._run(partial(self._purge, before))

    def _purge(self, index: int) -> None:
        """Remove old segments, of entries up to `index` only, and old snapshot files."""
        config = self.config
        names = sorted(filter(SEGMENT_NAME.fullmatch, self.disk.list(config.wal_path) or ()))
        needed = sum(int(name[17:33], 16) <= index for name in names) - 1
        for name in names[: max(min(needed, len(names) - config.max_wals), 0)]:
            if config.max_wals:
                self.disk.remove(f"{config.wal_path}/{name}")
        snapshots = snapshot_names(self.disk, self.directory)
        if config.max_snapshots:
            for _, _, name in snapshots[: -config.max_snapshots]:
                self.disk.remove(f"{self.directory}/{name}")


def shows(mapping: Mapping, size: int, whole: bool) -> bool:
    """Whether the mapping has what was just written."""
    return size <= mapping.reach and (whole or mapping.is_live)


def unmap(mappings: Iterable[Mapping]) -> None:
    """Give the memory of many pages back, which takes long."""
    for mapping in mappings:
        mapping.close()
