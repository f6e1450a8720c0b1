# cython: language_level=3
"""Looking through the log for damage, in slices. See `_scrublog.pyx` for the rules."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._boltfile cimport OpenFile
from quorate.core._bytes cimport Buffer
from quorate.core._wal cimport Place, Wal
from quorate.core._walframe cimport Record


cdef class LogScrub:
    cdef readonly uint64_t passes       # finished
    cdef Wal wal
    cdef const uint8_t *metadata        # the log's own, which lives as long
    cdef size_t metadata_size
    cdef Place end                      # of this pass: what was synced when it began
    cdef Place at                       # the next record
    cdef uint64_t pass_bytes            # of the newest pass
    cdef OpenFile file                  # the segment; None between two passes
    cdef uint64_t limit                 # its records end here at the latest
    cdef uint64_t records               # looked at in it
    cdef bint is_chained                # `at.crc` is that of the segment before
    cdef uint64_t last_index            # of the last entry; 0: not known
    cdef uint64_t last_term
    cdef uint64_t commit                # of the last HardState; 0: not known
    cdef Buffer window                  # its bytes from `window_offset` on
    cdef uint64_t window_offset

    cdef begin(self)
    cdef forget(self)
    cdef finish(self)
    cdef bint open_segment(self, uint64_t sequence) except -1
    cdef bint take(self, uint64_t looks) except -1 nogil
    cdef const uint8_t *view(self, uint64_t size) except? NULL nogil
    cdef const char *inspect(self, Record *record) noexcept nogil
    cdef const char *inspect_entry(self, Record *record) noexcept nogil
    cdef const char *inspect_other(self, Record *record) noexcept nogil
    cdef int refuse(self, const char *reason) except -1 nogil
