"""An ordered tree over byte keys that counts the live ones.

A B+tree. Leaves hold pointers to items, which are owned by the caller and begin with the size of
their key; branches hold separators, which are owned by the tree.

Rules:
1. An item is live or not. Branches count the live items below each child, so that `rank`, and
   with it the count of any range, is O(log n).
2. A node keeps the bytes that all its keys begin with once, and 8 bytes after them of each key as
   one integer: a search compares integers, and looks at a key itself only where those 8 are equal.
3. All items of child i are before separator i, and not before separator i - 1. A separator is as
   short as that allows.
4. Neighbours below one branch are joined when one has fewer than TREE_MERGE_BELOW entries and
   both together no more than TREE_MERGED_MAX. No node is empty, but for a root that is a leaf.
5. A leaf filled in ascending order at the tree's end stays full; other splits leave two halves.
6. `changes` rises when an item may have moved. Replacing it, or making it live or not, moves none.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove

from quorate.core._arena cimport Arena
from quorate.core._bytes cimport load_be64

cdef extern from * nogil:
    int __builtin_popcountll(unsigned long long)
    void __builtin_prefetch(const void *)

cdef enum:
    # So much longer must a common prefix have become before a node's heads are worth reading anew.
    PREFIX_GROWTH_MIN = 4
    # Heads in a line of the processor's cache.
    LINE_HEADS = 8


cdef inline size_t smaller(size_t a, size_t b) noexcept nogil:
    return a if a < b else b


cdef inline const uint8_t *key_of(const Item *item, uint32_t key_at) noexcept nogil:
    return <const uint8_t *>item + key_at


cdef int compare_keys(
    const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size
) noexcept nogil:
    """Less than, equal to or greater than 0, as `a` is before, the same as or after `b`."""
    cdef size_t size = smaller(a_size, b_size)
    # An empty key may be NULL, which memcmp must not be given.
    cdef int order = memcmp(a, b, size) if size else 0
    if order == 0 and a_size != b_size:
        return -1 if a_size < b_size else 1
    return order


cdef inline size_t common_size(
    const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size
) noexcept nogil:
    """How many bytes two keys have in common at the start."""
    cdef size_t limit = smaller(a_size, b_size)
    cdef size_t i = 0
    while i < limit and a[i] == b[i]:
        i += 1
    return i


cdef inline uint64_t head_of(const uint8_t *key, size_t size, size_t skip) noexcept nogil:
    """The 8 bytes after `skip`, not more than `size`; bytes that are not there count as 0."""
    cdef uint64_t head = 0
    cdef size_t i
    if size - skip >= 8:
        return load_be64(key + skip)
    for i in range(skip, size):
        head = (head << 8) | key[i]
    return head << (8 * (8 - (size - skip))) if size > skip else 0


cdef void read_heads(Keys *keys, size_t prefix_size) noexcept nogil:
    """Take the first `prefix_size` bytes, which all keys have, as the prefix."""
    cdef uint32_t i
    cdef const Item *item = keys.items[0]
    keys.prefix_size = <uint16_t>prefix_size
    memcpy(keys.prefix, key_of(item, keys.key_at), prefix_size)
    for i in range(keys.count):
        item = keys.items[i]
        keys.heads[i] = head_of(key_of(item, keys.key_at), item.key_size, prefix_size)


cdef void lengthen_prefix(Keys *keys) noexcept nogil:
    """After a split: a longer common prefix makes better heads, if it is worth the reading."""
    cdef const Item *first
    cdef const Item *last
    cdef size_t size
    if keys.count < 2:
        return
    if (keys.heads[0] ^ keys.heads[keys.count - 1]) >> (64 - 8 * PREFIX_GROWTH_MIN):
        return
    first = keys.items[0]
    last = keys.items[keys.count - 1]
    size = common_size(
        key_of(first, keys.key_at), first.key_size, key_of(last, keys.key_at), last.key_size
    )
    size = smaller(size, TREE_PREFIX_MAX)
    if size >= <size_t>keys.prefix_size + PREFIX_GROWTH_MIN:
        read_heads(keys, size)


cdef uint32_t heads_search(
    const Keys *keys, const uint8_t *key, size_t size, bint *maybe
) noexcept nogil:
    """The place of the first key whose head is not before that of `key`, and whether `key` may be
    there or behind it. No key itself is looked at.
    """
    cdef size_t prefix_size = keys.prefix_size
    cdef uint64_t head
    cdef uint32_t low = 0
    cdef uint32_t span = keys.count
    cdef uint32_t half
    cdef int order
    maybe[0] = False
    if span == 0:
        return 0
    if prefix_size:
        order = memcmp(key, keys.prefix, smaller(prefix_size, size)) if size else 0
        if order < 0 or (order == 0 and size < prefix_size):
            return 0
        if order > 0:
            return span
    head = head_of(key, size, prefix_size)
    while span > 1:
        half = span // 2
        low += half if keys.heads[low + half - 1] < head else 0
        span -= half
    if keys.heads[low] < head:
        low += 1
    maybe[0] = low < keys.count and keys.heads[low] == head
    return low


cdef uint32_t keys_search(
    const Keys *keys, const uint8_t *key, size_t size, bint *exact
) noexcept nogil:
    """The place of the first key that is not before `key`, and whether it is the same."""
    cdef size_t prefix_size = keys.prefix_size
    cdef uint64_t head
    cdef bint maybe = False
    cdef uint32_t low = heads_search(keys, key, size, &maybe)
    cdef uint32_t half, high
    cdef const Item *item
    cdef int order
    exact[0] = False
    if not maybe:
        return low
    # Heads in [low, high) are the same as ours: look at the keys.
    head = keys.heads[low]
    high = low
    while high < keys.count and keys.heads[high] == head:
        high += 1
    while low < high:
        half = (low + high) // 2
        item = keys.items[half]
        order = compare_keys(
            key + prefix_size, size - prefix_size,
            key_of(item, keys.key_at) + prefix_size, item.key_size - prefix_size,
        )
        if order == 0:
            exact[0] = True
            return half
        if order < 0:
            high = half
        else:
            low = half + 1
    return low


cdef inline void keys_prefetch(const Keys *keys) noexcept nogil:
    """Have the memory that `heads_search` looks at on its way."""
    cdef int i
    __builtin_prefetch(keys.prefix)
    for i in range(TREE_FANOUT // LINE_HEADS):
        __builtin_prefetch(&keys.heads[i * LINE_HEADS])
    __builtin_prefetch(keys)


cdef void keys_insert(Keys *keys, uint32_t at, Item *item) noexcept nogil:
    """Put an item at its place; there is room."""
    cdef const uint8_t *key = key_of(item, keys.key_at)
    cdef size_t size = item.key_size
    cdef size_t common
    memmove(&keys.items[at + 1], &keys.items[at], (keys.count - at) * sizeof(Item *))
    keys.items[at] = item
    keys.count += 1
    if keys.count == 1:
        read_heads(keys, smaller(size, TREE_PREFIX_MAX))
        return
    common = common_size(keys.prefix, keys.prefix_size, key, size)
    if common < keys.prefix_size:
        read_heads(keys, common)
        return
    memmove(&keys.heads[at + 1], &keys.heads[at], (keys.count - 1 - at) * sizeof(uint64_t))
    keys.heads[at] = head_of(key, size, keys.prefix_size)


cdef void keys_remove(Keys *keys, uint32_t at) noexcept nogil:
    """Close the gap of the item at `at`."""
    keys.count -= 1
    memmove(&keys.items[at], &keys.items[at + 1], (keys.count - at) * sizeof(Item *))
    memmove(&keys.heads[at], &keys.heads[at + 1], (keys.count - at) * sizeof(uint64_t))


cdef void keys_split(Keys *keys, Keys *right, uint32_t at) noexcept nogil:
    """Move the keys from `at` on to the empty `right`."""
    right.count = <uint16_t>(keys.count - at)
    right.key_at = keys.key_at
    right.prefix_size = keys.prefix_size
    memcpy(right.prefix, keys.prefix, keys.prefix_size)
    memcpy(right.items, &keys.items[at], right.count * sizeof(Item *))
    memcpy(right.heads, &keys.heads[at], right.count * sizeof(uint64_t))
    keys.count = <uint16_t>at
    lengthen_prefix(keys)
    lengthen_prefix(right)


cdef inline uint64_t low_bits(uint32_t count) noexcept nogil:
    return (<uint64_t>1 << count) - 1 if count < 64 else ~<uint64_t>0


cdef inline int64_t live_before(const Leaf *leaf, uint32_t index) noexcept nogil:
    return __builtin_popcountll(leaf.live & low_bits(index))


cdef int64_t live_below(const Branch *branch, uint32_t children) noexcept nogil:
    """Live items below the first `children` children."""
    cdef int64_t live = 0
    cdef uint32_t i
    for i in range(children):
        live += branch.live[i]
    return live


cdef class KeyTree:
    """Pointers to items in the order of their keys."""

    def __cinit__(self, Arena arena not None, uint32_t key_at):
        cdef Leaf *leaf
        self.arena = arena
        self.key_at = key_at
        leaf = <Leaf *>arena.allocate(sizeof(Leaf))
        if leaf == NULL:
            raise MemoryError("no memory for a tree")
        leaf.keys.count = leaf.keys.prefix_size = 0
        leaf.keys.key_at = key_at
        leaf.live = 0
        leaf.next = leaf.prior = NULL
        self.root = leaf

    cdef bint locate(self, Path *path, const uint8_t *key, size_t size) noexcept nogil:
        """Where `key` is (True) or would be (False)."""
        cdef void *node = self.root
        cdef Branch *branch
        cdef uint32_t child
        cdef bint exact = False
        cdef int level
        for level in range(self.height):
            branch = <Branch *>node
            child = keys_search(&branch.keys, key, size, &exact) + exact
            path.branches[level] = branch
            path.at[level] = child
            node = branch.children[child]
        path.leaf = <Leaf *>node
        path.index = keys_search(&path.leaf.keys, key, size, &exact)
        return exact

    cdef Leaf *seek(self, const uint8_t *key, size_t size, uint32_t *index) noexcept nogil:
        """The first place that is not before `key`; its index may be one past the leaf's last."""
        cdef void *node = self.root
        cdef bint exact = False
        for _ in range(self.height):
            node = (<Branch *>node).children[
                keys_search(&(<Branch *>node).keys, key, size, &exact) + exact
            ]
        index[0] = keys_search(&(<Leaf *>node).keys, key, size, &exact)
        return <Leaf *>node

    cdef Item *get(self, const uint8_t *key, size_t size) noexcept nogil:
        """The item with this key, live or not, or NULL."""
        cdef uint32_t index
        cdef void *node = self.root
        cdef bint exact = False
        for _ in range(self.height):
            node = (<Branch *>node).children[
                keys_search(&(<Branch *>node).keys, key, size, &exact) + exact
            ]
        index = keys_search(&(<Leaf *>node).keys, key, size, &exact)
        return (<Leaf *>node).keys.items[index] if exact else NULL

    cdef void get_each(self, Probe *probes, int count) noexcept nogil:
        """`get` for some keys at a time, level by level.

        In a large tree a search waits for memory at each level. These waits pass together.
        """
        cdef Probe *probe
        cdef const Keys *keys
        cdef uint32_t index
        cdef bint found = False
        cdef int i
        for i in range(count):
            probes[i].node = self.root
        for _ in range(self.height):
            for i in range(count):
                probe = probes + i
                probe.node = (<Branch *>probe.node).children[
                    keys_search(&(<Branch *>probe.node).keys, probe.key, probe.size, &found) + found
                ]
                keys_prefetch(<const Keys *>probe.node)
        for i in range(count):
            keys = &(<Leaf *>probes[i].node).keys
            index = heads_search(keys, probes[i].key, probes[i].size, &found)
            if found:
                __builtin_prefetch(keys.items[index])
                __builtin_prefetch(key_of(keys.items[index], keys.key_at))
        for i in range(count):
            keys = &(<Leaf *>probes[i].node).keys
            index = keys_search(keys, probes[i].key, probes[i].size, &found)
            probes[i].item = keys.items[index] if found else NULL

    cdef int64_t rank(self, const uint8_t *key, size_t size) noexcept nogil:
        """Live keys before `key`. O(log n)."""
        cdef Path path
        cdef int64_t rank
        cdef int level
        self.locate(&path, key, size)
        rank = live_before(path.leaf, path.index)
        for level in range(self.height):
            rank += live_below(path.branches[level], path.at[level])
        return rank

    cdef void add_live(self, Path *path, int64_t delta) noexcept nogil:
        """Count `delta` more live items in the path's leaf, whose bits the caller changes."""
        cdef int level
        for level in range(self.height):
            path.branches[level].live[path.at[level]] += delta
        self.live += delta

    cdef bint next_leaf(self, Path *path) noexcept nogil:
        """On to the first place of the next leaf; False, and nothing changed, at the end."""
        cdef int level = self.height - 1
        cdef Branch *branch
        while level >= 0 and path.at[level] == path.branches[level].keys.count:
            level -= 1
        if level < 0:
            return False
        path.at[level] += 1
        branch = path.branches[level]
        for level in range(level + 1, self.height):
            branch = <Branch *>branch.children[path.at[level - 1]]
            path.branches[level] = branch
            path.at[level] = 0
        path.leaf = path.leaf.next
        path.index = 0
        return True

    cdef void replace(self, Path *path, Item *item, bint live) noexcept nogil:
        """Put `item` in the place of the one with the same key."""
        cdef uint64_t bit = <uint64_t>1 << path.index
        cdef bint was_live = (path.leaf.live & bit) != 0
        path.leaf.keys.items[path.index] = item
        if live != was_live:
            path.leaf.live ^= bit
            self.add_live(path, 1 if live else -1)

    cdef bint insert(self, Path *path, Item *item, bint live) noexcept nogil:
        """Add an item where `locate` did not find its key; False when memory is exhausted."""
        cdef Leaf *leaf = path.leaf
        cdef uint64_t below
        if leaf.keys.count == TREE_FANOUT:
            return self._split_and_insert(path, item, live)
        keys_insert(&leaf.keys, path.index, item)
        below = low_bits(path.index)
        leaf.live = (
            (leaf.live & below) | ((leaf.live & ~below) << 1) | (<uint64_t>live << path.index)
        )
        if live:
            self.add_live(path, 1)
        self.count += 1
        self.changes += 1
        return True

    cdef bint _split_and_insert(self, Path *path, Item *item, bint live) noexcept nogil:
        """Insert into a full leaf: all memory is taken before anything changes."""
        cdef Leaf *leaf = path.leaf
        cdef Leaf *right
        cdef Branch *spare[TREE_HEIGHT_MAX + 1]
        cdef Item *separator
        cdef const Item *before
        cdef const Item *after
        cdef uint32_t at = TREE_FANOUT // 2
        cdef size_t size
        cdef int level = self.height - 1
        cdef int spares = 0
        if path.index == TREE_FANOUT and leaf.next == NULL:
            at = TREE_FANOUT
        before = leaf.keys.items[at - 1]
        after = leaf.keys.items[at] if at < TREE_FANOUT else item
        size = 1 + common_size(
            key_of(before, self.key_at), before.key_size, key_of(after, self.key_at), after.key_size
        )
        while level >= 0 and path.branches[level].keys.count == TREE_FANOUT - 1:
            level -= 1
        spares = self.height - 1 - level + (1 if level < 0 else 0)
        right = <Leaf *>self.arena.allocate(sizeof(Leaf))
        separator = <Item *>self.arena.allocate(SEPARATOR_KEY_AT + size)
        if right == NULL or separator == NULL or not self._take_branches(spare, spares):
            if right != NULL:
                self.arena.release(right, sizeof(Leaf))
            if separator != NULL:
                self.arena.release(separator, SEPARATOR_KEY_AT + size)
            return False
        separator.key_size = <uint32_t>size
        memcpy(<uint8_t *>separator + SEPARATOR_KEY_AT, key_of(after, self.key_at), size)
        keys_split(&leaf.keys, &right.keys, at)
        right.live = leaf.live >> at if at < 64 else 0
        leaf.live &= low_bits(at)
        right.prior = leaf
        right.next = leaf.next
        if leaf.next != NULL:
            leaf.next.prior = right
        leaf.next = right
        self._add_child(path, self.height - 1, separator, right, live_before(right, 64), spare)
        # The path leads to the left half; an item of the right half gets its own.
        self.locate(path, key_of(item, self.key_at), item.key_size)
        return self.insert(path, item, live)

    cdef bint _take_branches(self, Branch **spare, int count) noexcept nogil:
        cdef int i
        for i in range(count):
            spare[i] = <Branch *>self.arena.allocate(sizeof(Branch))
            if spare[i] == NULL:
                while i:
                    i -= 1
                    self.arena.release(spare[i], sizeof(Branch))
                return False
            spare[i].keys.count = spare[i].keys.prefix_size = 0
            spare[i].keys.key_at = SEPARATOR_KEY_AT
        return True

    cdef void _add_child(
        self, Path *path, int level, Item *separator, void *child, int64_t live, Branch **spare
    ) noexcept nogil:
        """Add `child`, split off the path's node below `level`, to the branch there."""
        cdef Branch *branch
        cdef Branch *right
        cdef uint32_t at, half
        cdef size_t after
        cdef Item *middle
        if level < 0:
            branch = spare[0]
            branch.children[0] = self.root
            branch.children[1] = child
            branch.live[0] = self.live - live
            branch.live[1] = live
            keys_insert(&branch.keys, 0, separator)
            self.root = branch
            self.height += 1
            return
        branch = path.branches[level]
        at = path.at[level]
        branch.live[at] -= live
        if branch.keys.count == TREE_FANOUT - 1:
            right = spare[0]
            # Children 0..half stay, and the separator behind child half goes up.
            half = TREE_FANOUT - 2 if at == TREE_FANOUT - 1 else TREE_FANOUT // 2 - 1
            middle = branch.keys.items[half]
            keys_split(&branch.keys, &right.keys, half + 1)
            branch.keys.count -= 1
            memcpy(right.children, &branch.children[half + 1], (right.keys.count + 1) * 8)
            memcpy(right.live, &branch.live[half + 1], (right.keys.count + 1) * 8)
            # Counts above stay right: what is split off here was counted there, too.
            self._add_child(
                path, level - 1, middle, right,
                live_below(right, right.keys.count + 1) + (live if at > half else 0), spare + 1,
            )
            if at > half:
                branch = right
                at -= half + 1
        keys_insert(&branch.keys, at, separator)
        after = (branch.keys.count - at - 1) * 8
        memmove(&branch.children[at + 2], &branch.children[at + 1], after)
        memmove(&branch.live[at + 2], &branch.live[at + 1], after)
        branch.children[at + 1] = child
        branch.live[at + 1] = live

    cdef void remove(self, Path *path) noexcept nogil:
        """Take out the item at a path that `locate` found."""
        cdef Leaf *leaf = path.leaf
        cdef uint64_t below = low_bits(path.index)
        if leaf.live >> path.index & 1:
            self.add_live(path, -1)
        keys_remove(&leaf.keys, path.index)
        leaf.live = (leaf.live & below) | ((leaf.live >> 1) & ~below)
        self.count -= 1
        self.changes += 1
        if self.height and leaf.keys.count < TREE_MERGE_BELOW:
            self._join_leaves(path)

    cdef void _join_leaves(self, Path *path) noexcept nogil:
        """Join the path's leaf with a neighbour, or take it out when it is empty."""
        cdef int level = self.height - 1
        cdef Branch *branch = path.branches[level]
        cdef uint32_t at = path.at[level]
        cdef uint32_t i
        cdef Leaf *left
        cdef Leaf *right
        if at and (<Leaf *>branch.children[at - 1]).keys.count + path.leaf.keys.count <= (
                TREE_MERGED_MAX):
            at -= 1
        elif at == branch.keys.count or path.leaf.keys.count + (
                <Leaf *>branch.children[at + 1]).keys.count > TREE_MERGED_MAX:
            if path.leaf.keys.count == 0:
                self._unlink(path.leaf)
                self._remove_child(path, level, at)
            return
        left = <Leaf *>branch.children[at]
        right = <Leaf *>branch.children[at + 1]
        if right.keys.count:
            left.live |= right.live << left.keys.count
        for i in range(right.keys.count):
            keys_insert(&left.keys, left.keys.count, right.keys.items[i])
        branch.live[at] += branch.live[at + 1]
        branch.live[at + 1] = 0
        self._unlink(right)
        self._remove_child(path, level, at + 1)

    cdef void _unlink(self, Leaf *leaf) noexcept nogil:
        if leaf.prior != NULL:
            leaf.prior.next = leaf.next
        if leaf.next != NULL:
            leaf.next.prior = leaf.prior
        self.arena.release(leaf, sizeof(Leaf))

    cdef void _remove_child(self, Path *path, int level, uint32_t child) noexcept nogil:
        """Take a child that is gone, and has no live items, out of the branch at `level`."""
        cdef Branch *branch = path.branches[level]
        cdef uint32_t separator = child - 1 if child else 0
        cdef size_t after = (branch.keys.count - child) * 8
        if branch.keys.count == 0:
            # Its only child, so the branch goes, too. The root has two children at least.
            self.arena.release(branch, sizeof(Branch))
            self._remove_child(path, level - 1, path.at[level - 1])
            return
        self._release_separator(branch.keys.items[separator])
        memmove(&branch.children[child], &branch.children[child + 1], after)
        memmove(&branch.live[child], &branch.live[child + 1], after)
        keys_remove(&branch.keys, separator)
        if level == 0:
            self._lower()
        elif branch.keys.count + 1 < TREE_MERGE_BELOW:
            self._join_branches(path, level)

    cdef void _lower(self) noexcept nogil:
        """Take out roots that have one child."""
        cdef Branch *branch
        while self.height and (<Branch *>self.root).keys.count == 0:
            branch = <Branch *>self.root
            self.root = branch.children[0]
            self.height -= 1
            self.arena.release(branch, sizeof(Branch))

    cdef void _join_branches(self, Path *path, int level) noexcept nogil:
        """Join the path's branch at `level` with a neighbour, if both are small enough."""
        cdef Branch *above = path.branches[level - 1]
        cdef uint32_t at = path.at[level - 1]
        cdef uint32_t children = path.branches[level].keys.count + 1
        cdef uint32_t i, count
        cdef Branch *left
        cdef Branch *right
        cdef Item *separator
        if at and (<Branch *>above.children[at - 1]).keys.count + 1 + children <= TREE_MERGED_MAX:
            at -= 1
        elif at == above.keys.count or (
                <Branch *>above.children[at + 1]).keys.count + 1 + children > TREE_MERGED_MAX:
            return
        left = <Branch *>above.children[at]
        right = <Branch *>above.children[at + 1]
        count = left.keys.count + 1
        memcpy(&left.children[count], right.children, (right.keys.count + 1) * 8)
        memcpy(&left.live[count], right.live, (right.keys.count + 1) * 8)
        # The separator between the two comes down.
        separator = above.keys.items[at]
        keys_insert(&left.keys, left.keys.count, separator)
        for i in range(right.keys.count):
            keys_insert(&left.keys, left.keys.count, right.keys.items[i])
        above.live[at] += above.live[at + 1]
        above.live[at + 1] = 0
        above.keys.items[at] = NULL
        self.arena.release(right, sizeof(Branch))
        self._remove_child(path, level - 1, at + 1)

    cdef void _release_separator(self, Item *separator) noexcept nogil:
        if separator != NULL:
            self.arena.release(separator, SEPARATOR_KEY_AT + <size_t>separator.key_size)

    def check(self):
        """Walk it all; AssertionError when a rule is broken. Answers the blocks of memory."""
        cdef Leaf *leaf
        cdef void *node = self.root
        leaves = []
        figures = self._check_node(self.root, 0, NULL, NULL, leaves)
        blocks = figures[2]
        _check(figures[:2] == (self.count, self.live), "counts", (figures, self.count, self.live))
        for _ in range(self.height):
            node = (<Branch *>node).children[0]
        leaf = <Leaf *>node
        _check(leaf.prior == NULL, "the first leaf has one before it", 0)
        for place, address in enumerate(leaves):
            _check(<uintptr_t>leaf == address, "leaf list", place)
            _check(leaf.next == NULL or leaf.next.prior == leaf, "leaf links", place)
            leaf = leaf.next
        _check(leaf == NULL, "the last leaf has one after it", len(leaves))
        return blocks

    cdef tuple _check_node(self, void *node, int level, Item *low, Item *high, list leaves):
        """Items, live ones and blocks at and below `node`, whose keys are in [low, high)."""
        cdef Keys *keys = <Keys *>node
        cdef Branch *branch
        cdef Leaf *leaf
        cdef uint32_t i
        self._check_keys(keys, low, high)
        if level == self.height:
            leaf = <Leaf *>node
            leaves.append(<uintptr_t>leaf)
            _check(leaf.live & ~low_bits(keys.count) == 0, "live bits", leaf.live)
            _check(keys.count or self.height == 0, "an empty leaf", level)
            return keys.count, live_before(leaf, 64), 1
        branch = <Branch *>node
        _check(level or keys.count, "a root with one child", level)
        count = live = 0
        blocks = 1 + keys.count
        for i in range(keys.count + 1):
            below = self._check_node(
                branch.children[i], level + 1, keys.items[i - 1] if i else low,
                keys.items[i] if i < keys.count else high, leaves,
            )
            _check(below[1] == branch.live[i], "live below", (level, i, below, branch.live[i]))
            count, live, blocks = count + below[0], live + below[1], blocks + below[2]
        return count, live, blocks

    cdef _check_keys(self, Keys *keys, Item *low, Item *high):
        cdef const Item *item
        cdef const uint8_t *key
        cdef uint32_t i
        cdef size_t skip = keys.prefix_size
        before = low_key = item_key(low, SEPARATOR_KEY_AT)
        high_key = item_key(high, SEPARATOR_KEY_AT)
        _check(keys.count <= TREE_FANOUT and skip <= TREE_PREFIX_MAX, "sizes", keys.count)
        for i in range(keys.count):
            item = keys.items[i]
            key = key_of(item, keys.key_at)
            here = item_key(item, keys.key_at)
            if low_key is not None:
                _check(here >= low_key, "before its separator", here)
            if high_key is not None:
                _check(here < high_key, "not before its separator", here)
            if i:
                _check(before < here, "order", (before, here))
            before = here
            _check(skip <= item.key_size and memcmp(keys.prefix, key, skip) == 0, "prefix", here)
            _check(keys.heads[i] == head_of(key, item.key_size, skip), "head", here)


cdef item_key(const Item *item, uint32_t key_at):
    """The key as bytes; None for no item."""
    return None if item == NULL else key_of(item, key_at)[:item.key_size]


cdef _check(bint holds, what, where):
    """An `assert` that release builds keep."""
    if not holds:
        raise AssertionError(f"tree: {what}: {where!r}")


cdef class KeySet:
    """Keys in a tree, for tests."""

    def __init__(self):
        self.arena = Arena()
        self.tree = KeyTree(self.arena, SEPARATOR_KEY_AT)

    def put(self, const uint8_t[::1] key, bint live):
        """Add the key, or make it live or not; answers whether it was there."""
        cdef Path path
        cdef Item *item
        cdef size_t size = SEPARATOR_KEY_AT + key.shape[0]
        cdef const uint8_t *data = &key[0] if key.shape[0] else NULL
        found = self.tree.locate(&path, data, key.shape[0])
        item = <Item *>self.arena.allocate(size)
        if item == NULL:
            raise MemoryError("no memory for a key")
        item.key_size = <uint32_t>key.shape[0]
        if key.shape[0]:
            memcpy(<uint8_t *>item + SEPARATOR_KEY_AT, data, key.shape[0])
        if found:
            self.arena.release(path.leaf.keys.items[path.index], size)
            self.tree.replace(&path, item, live)
        elif not self.tree.insert(&path, item, live):
            raise MemoryError("no memory for a node")
        return found

    def remove(self, const uint8_t[::1] key):
        """Take the key out; answers whether it was there."""
        cdef Path path
        cdef Item *item
        if not self.tree.locate(&path, &key[0] if key.shape[0] else NULL, key.shape[0]):
            return False
        item = path.leaf.keys.items[path.index]
        self.tree.remove(&path)
        self.arena.release(item, SEPARATOR_KEY_AT + item.key_size)
        return True

    def get(self, const uint8_t[::1] key):
        """The key as the tree holds it, or None."""
        return item_key(
            self.tree.get(&key[0] if key.shape[0] else NULL, key.shape[0]), SEPARATOR_KEY_AT
        )

    def get_each(self, list keys):
        """`get` for all of them, looked for together."""
        cdef Probe *probes = <Probe *>malloc((len(keys) or 1) * sizeof(Probe))
        cdef const uint8_t[::1] key
        cdef int i
        if probes == NULL:
            raise MemoryError
        try:
            for i in range(len(keys)):
                key = keys[i]
                probes[i].key = &key[0] if key.shape[0] else NULL
                probes[i].size = key.shape[0]
            self.tree.get_each(probes, len(keys))
            return [item_key(probes[i].item, SEPARATOR_KEY_AT) for i in range(len(keys))]
        finally:
            free(probes)

    def rank(self, const uint8_t[::1] key):
        """Live keys before `key`."""
        return self.tree.rank(&key[0] if key.shape[0] else NULL, key.shape[0])

    def walk(self, const uint8_t[::1] key):
        """(key, live) of all from `key` on."""
        cdef uint32_t index = 0
        cdef Leaf *leaf = self.tree.seek(&key[0] if key.shape[0] else NULL, key.shape[0], &index)
        found = []
        while leaf != NULL:
            for place in range(index, leaf.keys.count):
                here = item_key(leaf.keys.items[place], SEPARATOR_KEY_AT)
                found.append((here, bool(leaf.live >> <uint32_t>place & 1)))
            leaf, index = leaf.next, 0
        return found

    def leaf_sizes(self, const uint8_t[::1] key):
        """Items of each leaf from the one with `key` on, as a path goes through them."""
        cdef Path path
        self.tree.locate(&path, &key[0] if key.shape[0] else NULL, key.shape[0])
        sizes = [path.leaf.keys.count]
        while self.tree.next_leaf(&path):
            sizes.append(path.leaf.keys.count)
        return sizes
