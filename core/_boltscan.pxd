# cython: language_level=3
"""Going through all of a backend file: what `snapshot status` tells of it, and copying a bucket."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from quorate.core._bolt cimport Bolt, Cursor
from quorate.core._boltwriter cimport BoltWriter


cdef class Digest:
    cdef readonly Bolt bolt
    cdef readonly uint32_t hash         # CRC-32C over each bucket's name, keys and values
    cdef readonly int64_t revision      # of the last pair of the bucket `key`
    cdef readonly uint64_t pairs        # gone through so far, of all buckets
    cdef readonly set keys              # that exist at that revision
    cdef list names                     # of the buckets to come
    cdef Cursor at                      # None between two buckets
    cdef bint begun
    cdef bint of_keys

    cdef bint next_bucket(self) except -1
    cdef bint take(self, uint64_t pairs) except -1
    cdef int count_key(self) except -1


cdef class Copy:
    cdef readonly Bolt bolt
    cdef readonly BoltWriter writer
    cdef readonly uint64_t pairs        # copied so far
    cdef Cursor at
    cdef bint begun

    cdef bint take(self, uint64_t pairs) except -1 nogil
