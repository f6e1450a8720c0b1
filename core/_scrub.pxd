# cython: language_level=3
"""Looking through the store's memory for damage, in slices. See `_scrub.pyx` for the rules."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from quorate.core._history cimport HistoryCursor
from quorate.core._mvcc cimport Store
from quorate.core._version cimport Version


cdef enum Fault:
    FAULT_NONE = 0
    FAULT_ORDER = 1         # its revision does not follow that of the version before it
    FAULT_CHECKSUM = 2      # sizes, numbers, key, value or lease are not as they were written
    FAULT_CHAIN = 3         # the links between the versions of a key
    FAULT_TREE = 4          # the tree does not lead to the newest version of a key


cdef class Scrub:
    cdef readonly Store store
    cdef readonly uint64_t looked_at    # versions, in this pass
    cdef readonly uint64_t passes       # finished
    cdef HistoryCursor at
    # Of the version before: what comes next is after it.
    cdef int64_t revision
    cdef uint32_t sub

    cdef Fault look_at(self, Version *version) noexcept nogil
