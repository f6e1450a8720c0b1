# cython: language_level=3
"""Looking through the store's memory for damage, in slices. See `_scrub.pyx` for the rules."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._history cimport HistoryCursor
from quorate.core._keytree cimport Leaf
from quorate.core._mvcc cimport Store
from quorate.core._version cimport Version


cdef enum Fault:
    FAULT_NONE = 0
    FAULT_ORDER = 1         # its revision does not follow that of the version before it
    FAULT_CHECKSUM = 2      # sizes, numbers, key, value or lease are not as they were written
    FAULT_CHAIN = 3         # the links between the versions of a key
    FAULT_TREE = 4          # the tree does not lead to the newest version of a key


cdef enum MemoryStage:
    MEMORY_STAGE_NONE = 0   # between two passes
    MEMORY_STAGE_TREE = 1
    MEMORY_STAGE_HISTORY = 2


cdef class Scrub:
    cdef readonly Store store
    cdef readonly uint64_t passes       # finished
    cdef MemoryStage stage
    cdef uint32_t mark                  # VERSION_REACHED or 0: what the tree gives in this pass
    cdef int64_t reached_revision       # versions up to here were there when the pass began
    cdef Buffer key                     # of the tree: where to go on
    cdef HistoryCursor at
    # Of the version before: what comes next is after it.
    cdef int64_t revision
    cdef uint32_t sub

    cdef begin(self)
    cdef bint tree_step(self, uint64_t budget) except -1 nogil
    cdef void mark_leaf(self, const Leaf *leaf, uint32_t index) noexcept nogil
    cdef Fault history_step(self, uint64_t budget, Version **found) noexcept nogil
    cdef Fault look_at(self, const Version *version) noexcept nogil
