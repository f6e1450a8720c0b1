# cython: language_level=3
"""The write-ahead log: append to memory, then one write and one fdatasync for all of it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._disk cimport PATH_BYTES_MAX, Disk
from quorate.core._run cimport Run
from quorate.core._segments cimport Segments, sem_t
from quorate.core._walframe cimport RecordType
from quorate.core._walread cimport WalReader

cdef enum:
    # Prometheus' exponential buckets from 1 ms by 2, fourteen of them, and one for what is above.
    FSYNC_BUCKETS = 15


cdef struct Piece:
    uint64_t offset         # in its segment
    size_t start            # in the batch's bytes
    uint64_t file_size      # the segment's size must be at least this
    uint64_t sequence       # of its segment
    uint64_t index          # in that segment's name
    bint cut                # it begins that segment


cdef struct Batch:
    Buffer bytes            # encoded records
    Buffer pieces           # Piece, in the order of writing


cdef struct Place:
    # Between two records; everything before it is in the chain.
    uint64_t sequence       # of the segment
    uint64_t offset
    uint32_t crc


cdef struct FsyncTimes:
    uint64_t[FSYNC_BUCKETS] buckets
    uint64_t count
    uint64_t slow           # took longer than FSYNC_SLOW_SECONDS
    double seconds          # of all
    double last_seconds


cdef class Wal:
    cdef readonly Disk disk
    cdef readonly str directory
    cdef readonly uint64_t segment_bytes
    cdef readonly uint64_t node_id
    cdef readonly uint64_t cluster_id
    cdef readonly uint64_t last_index   # of the last entry appended
    cdef readonly uint64_t last_term
    cdef readonly uint64_t start_term   # of the entry up to which `recover` skipped
    cdef readonly uint64_t term         # of the last HardState appended
    cdef readonly uint64_t vote
    cdef readonly uint64_t commit
    cdef readonly bint syncing          # from start_sync to finish_sync
    cdef readonly uint64_t written_bytes
    cdef readonly uint64_t torn_bytes   # that `recover` cut from the log's end
    cdef bint no_fsync
    cdef bint ahead                     # segments are made by their own thread
    cdef readonly bytes metadata        # as every segment has it
    cdef bytes directory_bytes
    cdef const char *directory_path     # into `directory_bytes`
    cdef WalReader reader               # until the log was read to its end
    cdef Segments segments
    # Where the next record goes, as if everything appended were written.
    cdef uint64_t sequence
    cdef uint64_t name_index
    cdef uint64_t offset
    cdef uint64_t head_end              # where the segment's head ends
    cdef uint64_t file_size
    cdef uint32_t crc
    # Up to where all is on the disk, and will be when the sync in flight is done.
    cdef Place synced
    cdef Place in_flight
    # What is appended and not written: one batch is filled while the other is in flight.
    cdef Batch[2] batches
    cdef int filling
    # The file: only touched by whoever flushes.
    cdef int64_t handle
    cdef char[PATH_BYTES_MAX] path      # of the segment or directory of the running operation
    cdef const char *operation          # the running one; when it fails it stays
    cdef int64_t failed                 # -errno of the failure that ended this log, or 0
    cdef FsyncTimes times
    # The sync thread.
    cdef object thread
    cdef sem_t work
    cdef sem_t done
    cdef int doorbell
    cdef bint stopping

    cpdef append(self, Run run, hard_state)
    cdef append_run(self, Run run)
    cdef append_state(self, hard_state)
    cdef int record(
        self, RecordType record_type, const uint8_t *header, size_t header_size,
        const uint8_t *payload, size_t size) except -1
    cdef int room(self, uint64_t bytes) except -1
    cdef cut(self)
    cdef int begin_piece(self, bint cut) except -1
    cdef begin(self, int64_t handle, uint64_t filled)
    cdef raise_failure(self)
    cdef Place place(self) noexcept

    cdef int64_t flush(self, Batch *batch) noexcept nogil
    cdef int64_t flush_piece(self, Batch *batch, Piece *piece, size_t size) noexcept nogil
    cdef int64_t flush_cut(self, Batch *batch, Piece *piece, size_t size) noexcept nogil
    cdef int64_t datasync(self, int64_t handle) noexcept nogil
    cdef void segment_path(self, char *path, uint64_t sequence, uint64_t index) noexcept nogil
    cdef void loop(self) noexcept nogil
