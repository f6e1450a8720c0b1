# cython: language_level=3
"""A backend file's keys and leases become a store's. See `_restore.pyx`."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from quorate.core._bolt cimport Bolt, Cursor
from quorate.core._mvcc cimport Store
from quorate.core._protobuf cimport Span


cdef struct Pair:
    # A mvccpb.KeyValue and its place in the order; the spans point into the file.
    int64_t revision
    uint32_t sub
    bint tombstone
    bint is_bump            # it holds nothing: the revision jumps here
    Span key
    Span value
    int64_t create_revision
    int64_t mod_revision
    int64_t version
    int64_t lease


# Take a mvccpb.KeyValue apart; False when it is malformed.
cdef bint read_record_key(const Span *key, Pair *pair) noexcept nogil
cdef bint read_pair(const Span *value, Pair *pair) noexcept nogil


cdef class Restore:
    cdef Store store
    cdef Bolt bolt
    cdef Cursor leases
    cdef Cursor keys
    cdef Cursor at              # the one of these that is being read
    cdef bint begun
    cdef bint in_place
    cdef readonly uint64_t pairs            # read so far
    cdef readonly uint64_t orphans          # tombstones that delete nothing

    cdef bint _take(self, uint64_t pairs) except -1 nogil
    cdef bint _more(self) except -1 nogil
    cdef int _take_lease(self) except -1 nogil
    cdef int _take_pair(self) except -1 nogil
    cdef int _put(self, const Pair *pair) except -1 nogil
    cdef int _delete(self, const Pair *pair) except -1 nogil
    cdef int _refuse(self, const char *reason) except -1 nogil
