# cython: language_level=3
"""Pages of a bbolt file being made: a node of elements, and the writer of a fresh file."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bolt cimport Bolt
from quorate.core._bytes cimport Buffer
from quorate.core._disk cimport Disk
from quorate.core._filesums cimport FileSums
from quorate.core._protobuf cimport Span

cdef enum:
    # Levels of branches over the leaves of one bucket. A branch has two children at least, so
    # page numbers end before this does.
    BRANCH_LEVELS_MAX = 64


cdef struct NodeElement:
    uint64_t child          # page; of a branch only
    uint32_t flags          # of a leaf only
    uint32_t key_size
    uint32_t value_size     # 0 in a branch


cdef struct Node:
    # A leaf or branch before it has its place: what it takes as a page is known at any time.
    Buffer elements         # NodeElement each
    Buffer data             # keys and values, in the order of the elements
    uint32_t count


# Append an element; where its `value_size` bytes of value have to be written, before the next one.
cdef uint8_t *node_add(
    Node *node, uint32_t flags, Span key, uint32_t value_size, uint64_t child) except NULL nogil
# Bytes of the page, without what fills its last one.
cdef uint64_t node_size(const Node *node) noexcept nogil
# The key of the first element, valid until the node changes.
cdef Span node_first_key(const Node *node) noexcept nogil
# Write the node as a page of node_size bytes.
cdef void node_encode(
    const Node *node, uint8_t *page, uint64_t id, uint32_t overflow, bint is_leaf) noexcept nogil
# Forget all elements but the last `kept` (0 or 1).
cdef void node_drop(Node *node, uint32_t kept) noexcept nogil
cdef void node_free(Node *node) noexcept nogil


cdef class BoltWriter:
    cdef readonly Disk disk
    cdef readonly str path
    cdef readonly uint64_t page_size
    cdef readonly uint64_t transaction
    cdef readonly uint64_t pages        # that have their place; the next page's number
    cdef readonly bint finished
    # File offsets, u64 each, of the pairs of the bucket that was begun with `places`, in order: of
    # the key, which its value follows. They come when the leaf is closed.
    cdef Buffer places
    cdef int64_t handle                 # -1 when it is closed
    cdef uint64_t leaf_size_max
    cdef uint64_t leaf_size             # the same of the open bucket
    cdef bint with_freelist
    cdef bint failed                    # a write failed: nothing more is written
    cdef Buffer out                     # pages not written yet, from `out_offset` on
    cdef uint64_t out_offset
    cdef Node leaf                      # the open one
    cdef Node[BRANCH_LEVELS_MAX] branches
    cdef int levels                     # of `branches` in use
    cdef Buffer last_key                # of the open bucket; empty before the first key
    cdef bytes bucket                   # the open one, or None
    cdef bint extending                 # it goes on behind what the file has
    cdef uint64_t sequence
    cdef bint wants_places
    cdef dict values                    # name of each ended bucket → its value
    cdef dict kept                      # the same of what the file had
    cdef Bolt bolt                      # the file that is gone on with, or None
    cdef bint deferred                  # `write_piece` writes, and nobody else before `finish`
    cdef public FileSums sums           # of what is written; None: nobody wants them

    # Append a pair to the open bucket; where its value has to be written, before the next call.
    cdef uint8_t *reserve(self, Span key, uint32_t value_size) except NULL nogil
    # Take over a leaf that the file has: all its keys are at least `key` and above those before.
    cdef int keep_leaf(self, Span key, uint64_t page) except -1 nogil
    # Write what has gathered, if that is enough; in whatever thread puts the pairs.
    cdef int maybe_flush(self) except -1 nogil
    cdef int push(self, Span key, Span value) except -1 nogil

    cdef uint8_t *add(self, uint32_t flags, Span key, uint64_t value_size) except NULL nogil
    cdef int close_leaf(self) except -1 nogil
    cdef int add_child(self, int level, Span key, uint64_t child) except -1 nogil
    cdef uint64_t end_tree(self) except 0 nogil
    cdef uint64_t write_node(self, Node *node, bint is_leaf) except 0 nogil
    cdef int note_places(self, uint64_t offset) except -1 nogil
    cdef int flush(self) except -1 nogil
    cdef int write_metas(self, uint64_t root, uint64_t freelist) except -1
    cdef int sync(self) except -1
    cdef bytes inline_value(self)
    cdef void drop_branches(self) noexcept nogil
