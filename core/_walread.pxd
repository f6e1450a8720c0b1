# cython: language_level=3
"""Recovery: the segments of a log, read in order into runs of entries."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._disk cimport Disk
from quorate.core._run cimport Run
from quorate.core._walframe cimport EntryFields, Record

cdef enum Scan:
    SCAN_ON = 0
    SCAN_RUN_FULL = 1       # the record at `offset` needs a new run
    SCAN_OVERRIDE = 2       # the record at `offset` overrides entries from its index on
    SCAN_FILE_END = 3       # no frame at `offset`
    SCAN_BAD_FRAME = 4      # a frame at `offset` that does not check
    SCAN_REFUSED = 5        # `reason` says why
    SCAN_DISK_FAILED = 6    # `failed` holds -errno
    SCAN_RAISED = 7         # no memory


cdef class WalReader:
    cdef readonly Disk disk
    cdef readonly str directory
    cdef readonly list names            # segments to read, in order
    cdef readonly Py_ssize_t segment      # the one being read: its place in `names`
    cdef readonly uint64_t offset       # of the next frame in it
    cdef readonly uint64_t file_size
    cdef readonly uint32_t crc          # of the chain before `offset`
    cdef readonly bytes metadata        # as written; the same in every segment
    cdef readonly uint64_t term         # of the last HardState
    cdef readonly uint64_t vote
    cdef readonly uint64_t commit
    cdef readonly uint64_t last_index   # of the last entry, or of the snapshot before the first
    cdef readonly uint64_t last_term
    cdef readonly list snapshots        # (index, term) of every snapshot record
    cdef readonly uint64_t torn_bytes   # from the first to the last byte that was cut
    cdef readonly bint ended            # everything was read, judged and cut
    cdef int64_t handle                 # of the segment being read
    cdef int64_t tail_handle            # of the last segment; locked
    cdef uint64_t start_index           # entries up to here are in the snapshot
    cdef readonly uint64_t start_term
    cdef bint finds_term                # the log tells it
    cdef uint64_t records               # read from this segment
    cdef bint last_is_empty_v2          # the last entry is a ConfChangeV2 without data
    cdef Buffer window                  # bytes of the segment from `window_offset` on
    cdef uint64_t window_offset
    cdef Buffer building                # entries of the run that is being gathered
    cdef uint32_t building_count
    cdef uint64_t building_term
    cdef bint building_has_conf_change
    cdef object pending                 # runs that may still be overridden, in order
    cdef uint64_t yielded_term          # of the last entry given away
    cdef int64_t failed
    cdef const char *reason

    cdef Scan scan(self) except SCAN_RAISED nogil
    cdef Scan scan_record(self) except SCAN_RAISED nogil
    cdef Scan take_record(self, Record *record) except SCAN_RAISED nogil
    cdef Scan take_entry(self, Record *record) except SCAN_RAISED nogil
    cdef Scan place_entry(self, EntryFields *entry) except SCAN_RAISED nogil
    cdef void set_start_term(self, uint64_t term) noexcept nogil
    cdef Scan take_state(self, Record *record) noexcept nogil
    cdef Scan refuse(self, const char *reason) noexcept nogil
    cdef const uint8_t *view(self, uint64_t size) except? NULL nogil
    cdef leave_segment(self)
    cdef open_segment(self, Py_ssize_t segment)
    cdef close_run(self)
    cdef override(self)
    cdef truncate(self, uint64_t index)
    cdef end(self)
    cdef corrupt(self, reason)
    cdef contradiction(self)
    cdef bint rest_is_zero(self) except -1
    cdef bytes judge_rest(self)
    cdef cut(self, bytes torn)
