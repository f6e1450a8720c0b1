# cython: language_level=3
"""What a Range selects: walked, filtered, sorted and measured in bounded steps."""

from libc.stdint cimport int64_t, uint16_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._mvcc cimport Cursor, Store
from quorate.core._reply cimport Header
from quorate.core._request cimport Op
from quorate.core._version cimport Version

cdef enum SelectionPhase:
    PHASE_WALK = 0          # measure, or collect to sort, in key order
    PHASE_COUNT = 1         # only count the rest of the range
    PHASE_SORT = 2
    PHASE_MEASURE = 3       # add up the bytes of what was sorted and cut
    PHASE_READY = 4

cdef enum:
    # Keys that one step looks at: below 100 microseconds also where each key is a cache miss.
    STEP_KEYS_MAX = 1000
    # Longest message that gRPC lets a server send (etcd: math.MaxInt32).
    MESSAGE_BYTES_MAX = 2147483647


cdef class Selection:
    cdef Store store
    # Its spans point into `bounds`, or into the request while it is not held.
    cdef Op op
    cdef Buffer bounds              # own copy of key and range end, made by `hold`
    cdef Cursor cursor
    cdef SelectionPhase phase
    cdef bint held                  # the revision is pinned: the selection outlives this turn
    cdef bint own_writes            # within a write transaction: reads see its writes
    cdef int64_t header_revision    # of the response
    cdef int64_t revision           # that is read; 0 = newest with the open transaction's writes
    cdef bint sorts                 # the reply is in another order than that of keys
    cdef Buffer chosen              # Version *, when sorting
    cdef Buffer spare               # Version *, the other half of the merge sort
    cdef size_t run                 # merge sort: length of the sorted runs
    cdef size_t merged              # merge sort: versions merged in this pass
    cdef size_t left                # merge sort: next of the left run
    cdef size_t right               # merge sort: next of the right run
    cdef size_t measured            # of `chosen`
    cdef size_t kvs_size            # bytes of their fields in the reply
    cdef size_t total               # key-values in the reply
    cdef size_t appended            # of them
    cdef Version *current           # the next one, when a part of it is appended already
    cdef size_t current_sent        # bytes of that part
    cdef int64_t count              # keys of the range, whatever was left out
    # The walk counts, because the tree cannot tell for this revision.
    cdef bint counts
    cdef bint more                  # the limit cut the reply

    cdef uint16_t begin(self, Store store, const Op *op, bint own_writes) except? 0xffff
    cdef bint step(self, size_t keys) except -1
    cdef int hold(self) except -1
    cdef void release(self) noexcept
    cdef size_t message_size(self, const Header *header) noexcept
    cdef int append_head(self, Buffer *out, const Header *header) except -1
    cdef int append_some(self, Buffer *out, size_t stop, size_t size_max) except -1
    cdef Version *_next(self) noexcept
    cdef size_t look_ahead(self, size_t keys, size_t size_max, size_t *size) noexcept
    cdef int append_tail(self, Buffer *out) except -1
    cdef int append_all(self, Buffer *out, const Header *header) except -1

    cdef void _rewind(self) noexcept
    cdef bint _walk(self, size_t keys) except -1
    cdef int _take(self, const Version *version) except -1
    cdef bint _count_rest(self, size_t keys) except -1
    cdef void _collected(self) noexcept
    cdef int _sort(self, size_t keys) except -1
    cdef size_t _merge(self, size_t keys) noexcept
    cdef void _cut(self) noexcept
    cdef void _measure(self, size_t keys) noexcept
