# cython: language_level=3
"""An ordered tree over byte keys that counts the live ones. See `_keytree.pyx` for the rules."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from quorate.core._arena cimport Arena

cdef enum:
    TREE_FANOUT = 64            # items of a leaf (as many as bits in `live`), children of a branch
    TREE_PREFIX_MAX = 64        # bytes of a common prefix that a node remembers
    TREE_MERGE_BELOW = 16       # a node with fewer entries looks for a neighbour to join
    TREE_MERGED_MAX = 48        # entries that two joined nodes may have
    # Branches above a leaf. Neighbours hold 48 entries and more together, so a tree of this height
    # has more keys than a process can address.
    TREE_HEIGHT_MAX = 16
    SEPARATOR_KEY_AT = 4        # bytes from a separator's start to its key


cdef struct Item:
    # What the tree orders starts with the size of its key; the key's bytes stand `key_at` behind.
    uint32_t key_size


cdef struct Keys:
    # The sorted keys of a node: items of a leaf, separators of a branch.
    uint16_t count
    uint16_t prefix_size                    # all keys start with these bytes
    uint32_t key_at                         # in each item
    uint64_t[TREE_FANOUT] heads             # 8 bytes after the prefix, big endian, 0-padded
    Item *items[TREE_FANOUT]
    uint8_t[TREE_PREFIX_MAX] prefix


cdef struct Leaf:
    Keys keys
    uint64_t live                           # bit i: item i is live
    Leaf *next
    Leaf *prior


cdef struct Branch:
    # keys.items[i] separates children i and i + 1: left < separator <= right.
    Keys keys
    void *children[TREE_FANOUT]
    int64_t[TREE_FANOUT] live               # live items below each child


cdef struct Path:
    # From the root to a place in a leaf. Valid until the tree's change counter moves.
    Branch *branches[TREE_HEIGHT_MAX]      # [0] is the root
    uint32_t[TREE_HEIGHT_MAX] at            # the child taken in each
    Leaf *leaf
    uint32_t index


cdef struct Probe:
    # One of the keys that `get_each` looks for.
    const uint8_t *key
    size_t size
    void *node
    Item *item                              # the answer


cdef class KeyTree:
    cdef Arena arena
    cdef uint32_t key_at
    cdef void *root
    cdef readonly int height                # branches above each leaf
    cdef readonly uint64_t count            # items
    cdef readonly int64_t live              # live ones
    cdef readonly uint64_t changes          # goes up when an item changes its place

    # Where `key` is (True) or would be (False).
    cdef bint locate(self, Path *path, const uint8_t *key, size_t size) noexcept nogil
    cdef Item *get(self, const uint8_t *key, size_t size) noexcept nogil
    # `get` for `count` keys at a time.
    cdef void get_each(self, Probe *probes, int count) noexcept nogil
    # The first place that is not before `key`; its index may be one past the leaf's last.
    cdef Leaf *seek(self, const uint8_t *key, size_t size, uint32_t *index) noexcept nogil
    # Live keys before `key`.
    cdef int64_t rank(self, const uint8_t *key, size_t size) noexcept nogil

    # At a path of `locate`. False and nothing changed when memory is exhausted.
    cdef bint insert(self, Path *path, Item *item, bint live) noexcept nogil
    cdef void replace(self, Path *path, Item *item, bint live) noexcept nogil
    cdef void remove(self, Path *path) noexcept nogil
    cdef void add_live(self, Path *path, int64_t delta) noexcept nogil
    # On to the first place of the next leaf; False at the end.
    cdef bint next_leaf(self, Path *path) noexcept nogil

    # Private.
    cdef bint _split_and_insert(self, Path *path, Item *item, bint live) noexcept nogil
    cdef bint _take_branches(self, Branch **spare, int count) noexcept nogil
    cdef void _add_child(
        self, Path *path, int level, Item *separator, void *child, int64_t live, Branch **spare
    ) noexcept nogil
    cdef void _join_leaves(self, Path *path) noexcept nogil
    cdef void _join_branches(self, Path *path, int level) noexcept nogil
    cdef void _remove_child(self, Path *path, int level, uint32_t child) noexcept nogil
    cdef void _unlink(self, Leaf *leaf) noexcept nogil
    cdef void _lower(self) noexcept nogil
    cdef void _release_separator(self, Item *separator) noexcept nogil
    cdef tuple _check_node(self, void *node, int level, Item *low, Item *high, list leaves)
    cdef _check_keys(self, Keys *keys, Item *low, Item *high)


cdef class KeySet:
    cdef readonly Arena arena
    cdef readonly KeyTree tree


cdef uint32_t keys_search(
    const Keys *keys, const uint8_t *key, size_t size, bint *exact
) noexcept nogil
cdef int compare_keys(
    const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size
) noexcept nogil
