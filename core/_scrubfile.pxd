# cython: language_level=3
"""Looking through the backend file for damage, in slices. See `_scrubfile.pyx` for the rules."""

from libc.stdint cimport int64_t, uint64_t

from quorate.core._boltfile cimport FileCursor, OpenFile
from quorate.core._bytes cimport Buffer
from quorate.core._filesums cimport FileSums
from quorate.core._history cimport HistoryCursor
from quorate.core._mvcc cimport Store
from quorate.core._restore cimport Pair
from quorate.core._version cimport Version


cdef enum FileStage:
    FILE_STAGE_NONE = 0     # between two passes
    FILE_STAGE_KEYS = 1
    FILE_STAGE_PARTS = 2


cdef class FileScrub:
    cdef readonly uint64_t passes       # finished
    cdef Store store
    cdef object checkpoints
    cdef FileStage stage
    # Of this pass: the file as one checkpoint left it.
    cdef OpenFile file
    cdef FileSums sums
    cdef uint64_t bytes_saved           # of the file that mean something
    cdef uint64_t page_size
    cdef int64_t revision               # it has all up to here
    cdef int64_t finished               # but for what a compaction to this revision took
    # The bucket `key`, beside the history.
    cdef FileCursor root                # holds the page that an inline bucket lies in
    cdef FileCursor keys                # None: there is no such bucket
    cdef bint begun
    cdef uint64_t bytes_read            # since the last look
    cdef bint has_pair                  # `pair` is the one that the cursor is at
    cdef Pair pair
    cdef HistoryCursor at
    cdef uint64_t part                  # the next to be compared
    cdef Buffer bytes

    cdef begin(self)
    cdef end(self)
    cdef leave(self)
    cdef bint key_step(self, uint64_t looks) except -1 nogil
    cdef bint next_pair(self) except -1 nogil
    cdef int take_pair(self) except -1 nogil
    cdef Version *next_version(self) noexcept nogil
    cdef int compare(self, const Version *version) except -1 nogil
    cdef int without_version(self) except -1 nogil
    cdef int without_pair(self, const Version *version) except -1 nogil
    cdef bint part_step(self, uint64_t looks) except -1 nogil
    cdef int refuse(self, const char *reason) except -1 nogil
