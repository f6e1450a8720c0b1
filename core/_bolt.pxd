# cython: language_level=3
"""A bbolt file in memory: its metas, cursors over its buckets, and the check of the whole."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from quorate.core._boltpage cimport Meta
from quorate.core._protobuf cimport Span

cdef enum:
    # Levels of pages, nested buckets included. Pages have two keys at least where it matters:
    # 64 levels are more than any file can fill.
    LEVELS_MAX = 64


cdef struct Bucket:
    uint64_t root           # page; 0 when the bucket is inline
    uint64_t sequence
    Span page               # the inline page; NULL when there is none
    uint64_t holder         # the page that holds an inline bucket


cdef struct Frame:
    # A page on the way from the root: checked, and its keys are below `high`.
    const uint8_t *page
    uint64_t id             # 0 for an inline page
    uint32_t count
    uint32_t index          # the element that the way goes through
    bint is_leaf
    Span high               # data NULL: no bound


# For readers that load pages by themselves; see the definitions.
cdef const char *inspect_page(
    const uint8_t *page, uint64_t id, const Meta *meta) noexcept nogil
cdef const char *inspect_bounds(Frame *frame, Span low, Span high) noexcept nogil
cdef void fill_frame(Frame *frame, const uint8_t *page, uint64_t id) noexcept nogil


cdef class Bolt:
    cdef readonly str path          # for messages
    cdef readonly str warning       # what is wrong with one of the metas; None: both are good
    cdef object owner               # keeps the memory alive
    cdef const uint8_t *data
    cdef uint64_t size
    cdef Meta meta                  # the one that counts
    cdef uint8_t *checked           # a bit for each page whose elements were checked

    # Take what somebody mapped; `owner` keeps it alive. Raises BoltError.
    @staticmethod
    cdef Bolt over(const uint8_t *data, uint64_t size, str path, object owner)
    # True and the bucket, or False when there is none of that name.
    cdef bint find_bucket(self, Span name, Bucket *bucket) except -1
    # The bucket that holds the buckets.
    cdef Bucket root_bucket(self) noexcept nogil
    # The bucket in an element's value on `page`.
    cdef int decode_bucket(self, uint64_t page, Span value, Bucket *bucket) except -1 nogil
    # Raises BoltError.
    cdef int refuse(self, uint64_t page, const char *reason) except -1 nogil

    cdef int take(self, const uint8_t *data, uint64_t size, str path, object owner) except -1
    cdef int load_metas(self) except -1
    cdef warn(self, int page, const char *reason)
    cdef const char *inspect_meta(
        self, uint64_t id, uint64_t page_size, Meta *meta) noexcept nogil
    cdef int enter(self, Frame *frame, uint64_t id, Span low, Span high) except -1 nogil
    cdef int enter_child(self, Frame *frame, Frame *parent) except -1 nogil
    cdef int enter_bucket(self, Frame *frame, Bucket *bucket) except -1 nogil
    cdef int check_page(self, uint64_t id) except -1 nogil


cdef class Cursor:
    cdef readonly Bolt bolt
    # Where the cursor is, valid after a method answered True and as long as the memory is.
    cdef Span key
    cdef Span value
    cdef bint is_bucket             # the value is a bucket
    cdef Bucket bucket
    cdef int depth                  # of the leaf in `frames`; -1 when the cursor is nowhere
    cdef Frame[LEVELS_MAX] frames

    # Stand before the first element of a bucket.
    cdef void over(self, Bolt bolt, Bucket bucket) noexcept
    # Each answers whether there is such an element; without one the cursor is nowhere.
    cdef bint to_first(self) except -1 nogil
    cdef bint to_last(self) except -1 nogil
    cdef bint to_next(self) except -1 nogil
    cdef bint to_previous(self) except -1 nogil
    # The first element whose key is not below `key`.
    cdef bint to_key(self, Span key) except -1 nogil

    # True and the bucket of that name in this bucket, or False.
    cdef bint find_nested(self, Span name, Bucket *bucket) except -1 nogil

    cdef item(self)
    cdef uint64_t page(self) noexcept nogil
    cdef int enter_root(self) except -1 nogil
    cdef int down(self) except -1 nogil
    cdef int descend(self, bint to_last) except -1 nogil
    cdef bint settle(self) noexcept nogil


cdef class Check:
    cdef readonly Bolt bolt
    cdef readonly bint done
    cdef readonly uint64_t buckets
    cdef readonly uint64_t pairs
    cdef readonly uint64_t pages_reached    # with the metas and the freelist
    cdef readonly uint64_t pages_free
    cdef uint8_t *reached                   # a bit for each page
    cdef int depth                          # of the page being walked
    cdef int nested_from                    # frames before this are the bucket of buckets
    cdef Frame[LEVELS_MAX] frames

    # Walk up to `pages` pages on; True when everything was walked and is consistent.
    cdef bint step(self, uint64_t pages) except -1 nogil

    cdef int walk(self) except -1 nogil
    cdef int walk_leaf(self, Frame *frame) except -1 nogil
    cdef int push(self) except -1 nogil
    cdef int enter_nested(self, Frame *frame, uint32_t index) except -1 nogil
    cdef int mark(self, uint64_t first, uint64_t count) except -1 nogil
    cdef int walk_freelist(self) except -1 nogil
    cdef int finish(self) except -1 nogil
