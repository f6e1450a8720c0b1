# cython: language_level=3
"""The hash of a whole backend file, answered in slices. See `_wholehash.pyx`."""

from libc.stdint cimport int64_t, uint32_t

from quorate.core._history cimport HistoryCursor
from quorate.core._mvcc cimport Store
from quorate.core._port cimport LongReply
from quorate.core._reply cimport Header
from quorate.core._version cimport Version


cdef class WholeHash(LongReply):
    cdef Store store
    cdef Header header
    cdef HistoryCursor at
    cdef int64_t revision           # what is newer came after this began
    cdef int64_t compact_revision   # the compaction that is taken as done
    cdef int64_t held
    cdef bint holding
    cdef uint32_t crc               # of the buckets up to `at`
    cdef bytes rest                 # of the buckets behind `key`

    cdef int begin(self, dict buckets) except -1
    cdef bytes _leases(self)
    cdef bint _is_wanted(self, const Version *version) noexcept nogil
