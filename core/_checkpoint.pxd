# cython: language_level=3
"""A store as etcd's backend file has it, written in slices. See `_checkpoint.pyx`."""

from libc.stdint cimport int64_t, uint64_t

from quorate.core._boltwriter cimport BoltWriter
from quorate.core._bytes cimport Buffer
from quorate.core._history cimport HistoryCursor
from quorate.core._mapping cimport Mapping
from quorate.core._mvcc cimport Store
from quorate.core._version cimport Version


cdef class Checkpoint:
    cdef Store store
    cdef BoltWriter writer
    cdef readonly int64_t after             # the file had all up to this revision; 0: a whole file
    cdef readonly int64_t revision          # the store's when it began: nothing newer is written
    cdef readonly int64_t compact_revision  # what a compaction to it takes is not written; or -1
    cdef readonly uint64_t pairs            # written so far
    cdef bint done                          # all are
    cdef bint holding                       # the store keeps what is to be written
    cdef int64_t held
    cdef HistoryCursor at
    cdef Buffer scratch
    cdef size_t place_at                    # of the next pair that is looked at, in `places`

    cdef bint _map_values(self, Mapping mapping, uint64_t pairs) noexcept nogil

    cdef bint _key_step(self, uint64_t pairs) except -1
    cdef bint _is_wanted(self, const Version *version) noexcept nogil
    cdef int _write_version(self, const Version *version) except -1 nogil
