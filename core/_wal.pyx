"""The write-ahead log in etcd's format: `append` encodes, `sync` makes durable.

Rules:
1. `append` does no I/O. It encodes records behind the CRC chain and decides there where a segment
   ends: what would not fit goes to a new segment, which begins with crc, metadata and HardState.
   So a commit never allocates and never changes a file's size. Only a single record larger than a
   whole segment makes its segment grow.
2. `sync` writes all that is pending and calls fdatasync once; `start_sync` has it done by the
   log's own thread, which writes 8 bytes to the doorbell (an eventfd) when it is done;
   `finish_sync` takes the result. One sync is in flight at most; what is appended meanwhile
   gathers for the next.
3. A new segment is written and synced under its `.tmp` name, then renamed, then the directory is
   synced, and all of that after the segment before it is durable: whichever segment is last, all
   before it are whole.
4. The first failed write or sync is final: every later call raises the same DiskError. A page
   that a failed sync dropped is gone, and a second sync that succeeds says nothing about it.
5. Nothing is durable before `sync` returned or `finish_sync` did; entries of a batch come before
   its HardState, as etcd writes them.
6. The last segment's lock is the log's lock, held from `create` or `open` to `close`.
"""

import os
import threading
from typing import NamedTuple

from libc.stdio cimport snprintf
from libc.string cimport strcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport write

from quorate.core._bytes cimport buffer_append, buffer_free, buffer_reserve, load_le32
from quorate.core._disk import DiskError
from quorate.core._protobuf cimport Span, write_varint
from quorate.core._run cimport ENTRY_HEADER_SIZE
from quorate.core._segments cimport sem_destroy, sem_getvalue, sem_init, sem_post, wait_for
from quorate.core._walframe cimport (
    MESSAGE_HEADER_MAX,
    RECORD_CRC,
    RECORD_ENTRY,
    RECORD_METADATA,
    RECORD_OVERHEAD_MAX,
    RECORD_SNAPSHOT,
    RECORD_STATE,
    Triple,
    parse_triple,
    write_entry_header,
    write_record,
    write_triple,
)
from quorate.core._walread import lock_segment
from quorate.core.errors import Fatal
from quorate.core.limits import SEGMENT_BYTES

cdef enum:
    # Zeros written before the first segment is used; the rest follow ahead of the log's end.
    FIRST_FILL = 2 * 1024 * 1024
    # A segment's crc, metadata and HardState.
    HEAD_BYTES_MAX = 3 * RECORD_OVERHEAD_MAX

# etcd says `slow fdatasync` above this.
cdef double FSYNC_SLOW_SECONDS = 1.0


class WalStatistics(NamedTuple):
    """What the log did since it was opened."""

    fsync_buckets: tuple  # counts, not cumulative: up to 1 ms, 2 ms, 4 ms … 8.192 s, and above
    fsync_count: int
    fsync_seconds: float  # of all
    fsync_last_seconds: float
    fsync_slow_count: int  # longer than a second
    written_bytes: int


cdef double now() noexcept nogil:
    """Seconds of the monotonic clock."""
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec + 1e-9 * time.tv_nsec


def make_directories(disk, path):
    """Make a directory and what is missing above it, durably."""
    parent = os.path.dirname(path) or "."
    if disk.list(path) is not None:
        return
    make_directories(disk, parent)
    disk.make_directory(path)
    disk.sync_directory(parent)


cdef class Wal:
    """One member's log; made by `create` or `open`, never by itself."""

    def __cinit__(
            self, Disk disk, str directory, uint64_t segment_bytes, bint no_fsync, bint ahead):
        assert len(directory) < PATH_BYTES_MAX - 64
        self.disk = disk
        self.directory = directory
        self.directory_bytes = os.fsencode(directory)
        self.directory_path = self.directory_bytes
        self.segment_bytes = segment_bytes
        self.no_fsync = no_fsync
        self.ahead = ahead
        self.handle = -1
        sem_init(&self.work, 0, 0)
        sem_init(&self.done, 0, 0)

    def __dealloc__(self):
        for batch in range(2):
            buffer_free(&self.batches[batch].bytes)
            buffer_free(&self.batches[batch].pieces)
        sem_destroy(&self.work)
        sem_destroy(&self.done)

    @staticmethod
    def create(disk, directory, node_id, cluster_id, *,
               segment_bytes=SEGMENT_BYTES, no_fsync=False, ahead=True):
        """A new, durable log of crc, metadata and the empty snapshot; there must be none yet.

        It is made as `<directory>.tmp` and renamed, over an empty directory if there is one: there
        is a whole log or none.
        """
        cdef Wal wal = Wal(disk, directory, segment_bytes, no_fsync, ahead)
        cdef uint8_t[MESSAGE_HEADER_MAX] message
        cdef size_t size = write_triple(message, node_id, cluster_id, 0, 2)
        if disk.list(directory):
            raise Fatal(f"{directory}: no place for a new log: the directory is not empty")
        wal.node_id = node_id
        wal.cluster_id = cluster_id
        wal.metadata = message[:size]
        temporary = f"{directory}.tmp"
        make_directories(disk, temporary)
        for name in disk.list(temporary):
            disk.remove(f"{temporary}/{name}")
        wal.begin_piece(False)
        wal.record(RECORD_CRC, NULL, 0, NULL, 0)
        wal.record(RECORD_METADATA, message, size, NULL, 0)
        wal.record(RECORD_SNAPSHOT, message, write_triple(message, 0, 0, 0, 2), NULL, 0)
        wal.head_end = wal.offset
        path = f"{temporary}/{0:016x}-{0:016x}.wal"
        handle = disk.open(path, True)
        try:
            lock_segment(disk, handle, path)
            disk.allocate(handle, max(segment_bytes, wal.offset), path)
            disk.fill(handle, 0, min(FIRST_FILL, segment_bytes), path)
            disk.write(handle, wal.batches[0].bytes.data[:wal.offset], 0, path)
            disk.datasync(handle, path)
            disk.sync_directory(temporary)
            disk.rename(temporary, directory)
            disk.sync_directory(os.path.dirname(directory) or ".")
        except BaseException:
            disk.close(handle)
            raise
        wal.batches[0].bytes.size = wal.batches[0].pieces.size = 0
        wal.file_size = max(segment_bytes, wal.offset)
        wal.begin(handle, min(FIRST_FILL, segment_bytes))
        return wal

    @staticmethod
    def open(disk, directory, snapshot_index=0, snapshot_term=0, *,
             segment_bytes=SEGMENT_BYTES, no_fsync=False, ahead=True):
        """The log in `directory`, locked, to be read by `recover` before anything is appended.

        Skips entries up to `snapshot_index`; without a term, the log tells it. Raises
        WalLockedError, WalCorruptError, DiskError.
        """
        cdef Wal wal = Wal(disk, directory, segment_bytes, no_fsync, ahead)
        wal.reader = WalReader(disk, directory, snapshot_index, snapshot_term)
        return wal

    def recover(self):
        """Yield the log's runs (rules: core/_walread.pyx); then the log can be appended to.

        While it runs, `commit` is what is known to be committed so far; a yielded run is either
        committed wholly or not at all.
        """
        cdef Triple ids
        cdef Run run
        cdef WalReader reader = self.reader
        cdef int64_t hole
        cdef int64_t handle
        for run in reader:
            self.term, self.vote, self.commit = reader.term, reader.vote, reader.commit
            yield run
        self.term, self.vote, self.commit = reader.term, reader.vote, reader.commit
        self.start_term = reader.start_term
        self.last_index = reader.last_index
        self.last_term = reader.last_term
        self.metadata = reader.metadata
        parse_triple(Span(self.metadata, len(self.metadata)), 2, &ids)
        self.node_id = ids.first
        self.cluster_id = ids.second
        self.sequence = reader.sequence
        self.name_index = int(reader.names[reader.segment][17:33], 16)
        self.offset = reader.offset
        self.crc = reader.crc
        self.torn_bytes = reader.torn_bytes
        self.file_size = max(reader.file_size, self.segment_bytes)
        handle = reader.detach()
        self.reader = None
        try:
            self.disk.allocate(handle, self.file_size, reader.path)
            hole = self.disk.file_hole(handle, self.offset)
            self.begin(handle, self.offset if hole < 0 else hole)
        except BaseException:
            self.disk.close(handle)
            raise

    cdef begin(self, int64_t handle, uint64_t filled):
        """Take over the segment to append to, whose bytes are written up to `filled`."""
        self.handle = handle
        self.synced = self.place()
        self.segments = Segments(self.disk, self.directory, self.segment_bytes)
        if self.ahead:
            self.segments.start(handle, max(filled, self.offset), self.file_size)

    def close(self):
        """Wait for the sync in flight, end the threads, unlock; what is pending is dropped."""
        if self.syncing:
            with nogil:
                wait_for(&self.done)
            self.syncing = False
        if self.thread is not None:
            self.stopping = True
            sem_post(&self.work)
            self.thread.join()
            self.thread = None
        if self.segments is not None:
            self.segments.stop()
            self.segments = None
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        if self.handle >= 0:
            self.disk.file_close(self.handle)
        self.handle = -1

    # --- append: memory only ------------------------------------------------------------------

    cpdef append(self, Run run, hard_state):
        """Add a run and a (term, vote, commit), or one and None, to what the next sync writes.

        A run follows the last entry, or overrides entries that are not committed.
        """
        self.raise_failure()
        if self.segments is None:
            raise Fatal(f"{self.directory}: the log is not open for appending")
        if run is not None:
            self.append_run(run)
        if hard_state is not None:
            self.append_state(hard_state)

    def append_snapshot(self, index, term, bytes conf_state=b""):
        """Add the record of a snapshot whose file is durable, with its raftpb.ConfState if any."""
        cdef uint8_t[MESSAGE_HEADER_MAX] message
        cdef uint8_t *end = message + write_triple(message, index, term, 0, 2)
        self.raise_failure()
        if conf_state:
            end[0] = 0x1a
            end = write_varint(end + 1, len(conf_state))
        self.room(RECORD_OVERHEAD_MAX + len(conf_state))
        self.record(RECORD_SNAPSHOT, message, end - message, conf_state, len(conf_state))
        if index > self.last_index:
            # A leader sent it: the log goes on behind it.
            self.last_index, self.last_term = index, term

    cdef append_run(self, Run run):
        cdef uint8_t[MESSAGE_HEADER_MAX] message
        cdef const uint8_t *at = run.entries.data
        cdef uint64_t index = run.first_index
        cdef uint64_t last = run.first_index + run.count
        # The run and the HardState that follows it.
        cdef uint64_t bound = run.entries.size + (run.count + 1) * RECORD_OVERHEAD_MAX
        cdef uint32_t size
        if not self.commit < index <= self.last_index + 1 or (
                index > self.last_index and run.term < self.last_term):
            raise Fatal(
                f"{run!r} can't follow entry {self.last_index} of term {self.last_term} "
                f"in the log, with {self.commit} committed")
        # All of it in one segment when one can hold it: then its sync is one write.
        if bound + HEAD_BYTES_MAX <= self.segment_bytes:
            self.room(bound)
        while index < last:
            size = load_le32(at)
            self.room(RECORD_OVERHEAD_MAX + size)
            self.record(
                RECORD_ENTRY, message,
                write_entry_header(message, load_le32(at + 4), run.term, index, size),
                at + ENTRY_HEADER_SIZE, size)
            self.last_index = index
            at += ENTRY_HEADER_SIZE + size
            index += 1
        self.last_term = run.term

    cdef append_state(self, hard_state):
        cdef uint8_t[MESSAGE_HEADER_MAX] message
        cdef uint64_t term, vote, commit
        term, vote, commit = hard_state
        if term < max(self.term, self.last_term) or not self.commit <= commit <= self.last_index:
            raise Fatal(
                f"hard state {(term, vote, commit)} can't follow "
                f"{(self.term, self.vote, self.commit)} in the log, whose last entry is "
                f"{self.last_index} of term {self.last_term}")
        self.room(RECORD_OVERHEAD_MAX)
        self.record(RECORD_STATE, message, write_triple(message, term, vote, commit, 3), NULL, 0)
        self.term, self.vote, self.commit = term, vote, commit

    cdef int record(
            self, RecordType record_type, const uint8_t *header, size_t header_size,
            const uint8_t *payload, size_t size) except -1:
        """Encode one record behind the last."""
        cdef Buffer *bytes = &self.batches[self.filling].bytes
        cdef size_t wrote
        if self.batches[self.filling].pieces.size == 0:
            self.begin_piece(False)
        buffer_reserve(bytes, RECORD_OVERHEAD_MAX + header_size + size)
        wrote = write_record(
            bytes.data + bytes.size, &self.crc, record_type, header, header_size, payload, size)
        bytes.size += wrote
        self.offset += wrote
        return 0

    cdef int room(self, uint64_t bytes) except -1:
        """Make sure that `bytes` more fit: begin a new segment, or let an empty one grow."""
        cdef Piece *last
        if self.offset + bytes <= self.file_size:
            return 0
        if self.offset > self.head_end:
            self.cut()
        if self.offset + bytes > self.file_size:
            self.file_size = self.offset + bytes
            if self.batches[self.filling].pieces.size == 0:
                self.begin_piece(False)
            last = <Piece *>(self.batches[self.filling].pieces.data
                             + self.batches[self.filling].pieces.size) - 1
            last.file_size = self.file_size
        return 0

    cdef cut(self):
        """Begin the next segment with its head."""
        cdef uint8_t[MESSAGE_HEADER_MAX] message
        self.sequence += 1
        self.name_index = self.last_index + 1
        self.offset = 0
        self.file_size = self.segment_bytes
        self.begin_piece(True)
        self.record(RECORD_CRC, NULL, 0, NULL, 0)
        self.record(RECORD_METADATA, self.metadata, len(self.metadata), NULL, 0)
        if self.term:
            self.record(
                RECORD_STATE, message,
                write_triple(message, self.term, self.vote, self.commit, 3), NULL, 0)
        self.head_end = self.offset

    cdef int begin_piece(self, bint cut) except -1:
        """What is encoded from here on goes to one place of one segment."""
        cdef Batch *batch = &self.batches[self.filling]
        cdef Piece piece = Piece(
            self.offset, batch.bytes.size, self.file_size if cut else 0, self.sequence,
            self.name_index, cut)
        return buffer_append(&batch.pieces, <const uint8_t *>&piece, sizeof(Piece))

    # --- sync ---------------------------------------------------------------------------------

    def sync(self):
        """Make all that was appended durable, in this thread; raises DiskError, then always."""
        assert not self.syncing, "a sync is in flight"
        self.raise_failure()
        with nogil:
            self.flush(&self.batches[self.filling])
        self.raise_failure()
        self.synced = self.place()

    def start_sync(self, int doorbell):
        """Have the log's thread make all that was appended durable and ring the doorbell."""
        assert not self.syncing, "a sync is in flight"
        self.raise_failure()
        if self.thread is None:
            self.thread = threading.Thread(target=self.run, name="wal-sync", daemon=True)
            self.thread.start()
        self.doorbell = doorbell
        self.syncing = True
        self.in_flight = self.place()
        self.filling ^= 1
        sem_post(&self.work)

    @property
    def sync_done(self):
        """Whether `finish_sync` would not wait."""
        cdef int done = 0
        sem_getvalue(&self.done, &done)
        return done > 0

    def finish_sync(self):
        """Take the result of the sync in flight, waiting for it if need be; raises DiskError."""
        assert self.syncing, "no sync is in flight"
        with nogil:
            wait_for(&self.done)
        self.syncing = False
        self.raise_failure()
        self.synced = self.in_flight

    def run(self):
        """The sync thread's body; the GIL is not needed until it ends."""
        with nogil:
            self.loop()

    cdef void loop(self) noexcept nogil:
        """Flush the batch that is not being filled, each time there is work."""
        cdef uint64_t one = 1
        while True:
            wait_for(&self.work)
            if self.stopping:
                return
            self.flush(&self.batches[self.filling ^ 1])
            sem_post(&self.done)
            write(self.doorbell, &one, sizeof(one))

    cdef raise_failure(self):
        """Raise the failure that ended this log, if one did."""
        if self.failed < 0:
            raise DiskError(
                self.operation.decode(), os.fsdecode(<bytes>self.path), -self.failed)

    cdef int64_t flush(self, Batch *batch) noexcept nogil:
        """Write a batch and sync once (and once per segment that it begins), then empty it."""
        cdef Piece *piece = <Piece *>batch.pieces.data
        cdef Piece *end = <Piece *>(batch.pieces.data + batch.pieces.size)
        cdef int64_t result = 0
        cdef size_t size
        cdef bint unsynced = False
        while piece < end and result >= 0:
            size = (piece[1].start if piece + 1 < end else batch.bytes.size) - piece.start
            if piece.cut:
                if unsynced:
                    result = self.datasync(self.handle)
                if result >= 0:
                    result = self.flush_cut(batch, piece, size)
            else:
                result = self.flush_piece(batch, piece, size)
            unsynced = not piece.cut
            piece += 1
        if unsynced and result >= 0:
            result = self.datasync(self.handle)
        if result < 0:
            self.failed = result
            return result
        self.written_bytes += batch.bytes.size
        batch.bytes.size = batch.pieces.size = 0
        return 0

    cdef int64_t flush_piece(self, Batch *batch, Piece *piece, size_t size) noexcept nogil:
        """Write a piece behind the segment's end."""
        cdef int64_t result
        self.segment_path(self.path, piece.sequence, piece.index)
        if piece.file_size:
            self.operation = "allocate"
            result = self.disk.file_allocate(self.handle, piece.file_size)
            if result < 0:
                return result
        self.segments.before_write(piece.offset + size)
        self.operation = "write"
        return self.disk.file_write(
            self.handle, batch.bytes.data + piece.start, size, piece.offset)

    cdef int64_t flush_cut(self, Batch *batch, Piece *piece, size_t size) noexcept nogil:
        """Make a new segment that begins with this piece, durably, and leave the old one."""
        cdef char[PATH_BYTES_MAX] name
        cdef int64_t handle
        cdef int64_t result
        self.operation = "make the next segment"
        handle = self.segments.take(self.path)
        if handle < 0:
            return handle
        result = self.disk.file_allocate(handle, piece.file_size)
        if result >= 0:
            self.operation = "write"
            result = self.disk.file_write(handle, batch.bytes.data + piece.start, size, 0)
        if result >= 0:
            result = self.datasync(handle)
        if result >= 0:
            self.operation = "rename"
            self.segment_path(name, piece.sequence, piece.index)
            result = self.disk.path_rename(self.path, name)
        if result >= 0:
            self.operation = "sync directory"
            strcpy(self.path, self.directory_path)
            if not self.no_fsync:
                result = self.disk.path_sync_directory(self.path)
        if result < 0:
            self.disk.file_close(handle)
            return result
        self.segments.leave_active()
        self.disk.file_close(self.handle)
        self.handle = handle
        return 0

    cdef int64_t datasync(self, int64_t handle) noexcept nogil:
        """One timed fdatasync."""
        cdef double started = now()
        cdef double bound = 0.001
        cdef double seconds
        cdef int64_t result
        cdef int bucket = 0
        self.operation = "fdatasync"
        if self.no_fsync:
            return 0
        result = self.disk.file_datasync(handle)
        seconds = now() - started
        while bucket < FSYNC_BUCKETS - 1 and seconds > bound:
            bound *= 2
            bucket += 1
        self.times.buckets[bucket] += 1
        self.times.count += 1
        self.times.slow += seconds > FSYNC_SLOW_SECONDS
        self.times.seconds += seconds
        self.times.last_seconds = seconds
        return result

    cdef void segment_path(self, char *path, uint64_t sequence, uint64_t index) noexcept nogil:
        snprintf(path, PATH_BYTES_MAX, "%s/%016lx-%016lx.wal",
                 self.directory_path, sequence, index)

    cdef Place place(self) noexcept:
        """Behind all that was appended."""
        return Place(self.sequence, self.offset, self.crc)

    # --- questions ----------------------------------------------------------------------------

    @property
    def hard_state(self):
        """(term, vote, commit) as last appended or recovered."""
        return self.term, self.vote, self.commit

    @property
    def pending_bytes(self):
        """Bytes appended that no started sync has taken."""
        return self.batches[self.filling].bytes.size

    @property
    def last_sync_seconds(self):
        """How long the last sync took; that before while one is in flight."""
        return self.times.last_seconds

    def statistics(self):
        """The numbers behind the metrics; exact while no sync is in flight."""
        return WalStatistics(
            tuple([self.times.buckets[bucket] for bucket in range(FSYNC_BUCKETS)]),
            self.times.count, self.times.seconds, self.times.last_seconds, self.times.slow,
            self.written_bytes)

    def check(self):
        """Assert every invariant of the log's position and its pending records."""
        cdef Batch *batch = &self.batches[self.filling]
        cdef Piece *piece = <Piece *>batch.pieces.data
        cdef size_t count = batch.pieces.size // sizeof(Piece)
        assert self.offset % 8 == 0 and self.offset <= self.file_size, (self.offset, self.file_size)
        assert self.head_end <= self.offset, (self.head_end, self.offset)
        assert self.commit <= self.last_index, (self.commit, self.last_index)
        assert (count == 0) == (batch.bytes.size == 0), (count, batch.bytes.size)
        if count:
            assert piece[0].start == 0, piece[0].start
            size = batch.bytes.size - piece[count - 1].start
            assert piece[count - 1].offset + size == self.offset, self.offset
            assert piece[count - 1].sequence == self.sequence, self.sequence
        for at in range(1, count):
            assert piece[at].cut and piece[at].offset == 0, at
            assert piece[at].sequence == piece[at - 1].sequence + 1, at
            assert piece[at].start > piece[at - 1].start, at
