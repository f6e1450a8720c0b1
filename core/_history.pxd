# cython: language_level=3
"""All versions in order of revision, and the sweep that takes some out. See `_history.pyx`."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from quorate.core._arena cimport Arena
from quorate.core._version cimport Version

cdef enum:
    # Versions in one part, so that a part fills a block of the arena.
    HISTORY_PART_SLOTS = 2044


cdef struct HistoryPart:
    uint32_t begin          # slots before this one are used up by the sweep
    uint32_t end            # slots from here on are not filled yet
    Version *slots[HISTORY_PART_SLOTS]


cdef struct HistoryCursor:
    # The next version wanted is the first that is not before (revision, sub).
    int64_t revision
    uint32_t sub
    uint32_t slot           # its slot, valid while the history's change counter is `changes`
    size_t part
    uint64_t changes


cdef class History:
    cdef Arena arena
    cdef HistoryPart **parts        # in the process's heap; none is empty but the one a sweep fills
    cdef size_t part_count
    cdef size_t part_capacity
    cdef readonly uint64_t count    # versions
    cdef uint64_t changes           # goes up when versions move
    cdef bint sweeping
    cdef size_t sweep_part          # that the sweep fills; it reads the one after it

    # False and nothing changed when memory is exhausted.
    cdef bint reserve(self) noexcept nogil                      # room for one `append`
    cdef void append(self, Version *version) noexcept nogil
    cdef Version *last(self) noexcept nogil
    cdef void seek(self, HistoryCursor *cursor, int64_t revision, uint32_t sub) noexcept nogil
    cdef Version *next(self, HistoryCursor *cursor) noexcept nogil

    # A sweep goes over the versions from the oldest on: peek, reserve and keep, or drop, and so on.
    cdef bint sweep_begin(self) noexcept nogil                  # False: no memory, try later
    cdef Version *sweep_peek(self) noexcept nogil               # NULL at the end
    cdef bint sweep_reserve(self) noexcept nogil                # False: no memory, try later
    cdef void sweep_keep(self) noexcept nogil
    cdef void sweep_drop(self) noexcept nogil
    cdef void sweep_end(self) noexcept nogil

    # Private.
    cdef HistoryPart *_insert_part(self, size_t at) noexcept nogil
    cdef void _remove_part(self, size_t at) noexcept nogil
    cdef void _swept(self) noexcept nogil
