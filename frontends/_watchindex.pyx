"""Which watchers an event concerns: exact keys in a hash table, ranges in an interval tree.

Rules:
1. Watchers of the same range, filters and wish for previous values share a Subject; matching finds
   subjects, however many watchers each has.
2. A range is [key, end), or open when its end is one zero byte, as in etcd.
3. Everything is C memory. An idle watcher costs its Watcher, its share of a Subject with the key,
   and two places in tables.
4. Hashes and priorities are seeded: no client can choose keys that collide.
"""

import os

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from quorate.core._bytes cimport Buffer, buffer_append, buffer_free, load_le32, load_le64

cdef enum:
    BUCKETS_MIN = 64


cdef inline uint64_t mix(uint64_t a, uint64_t b) noexcept nogil:
    """A product's halves folded together (the step of wyhash)."""
    cdef uint64_t low = (a ^ <uint64_t>0x9e3779b97f4a7c15) * (b ^ <uint64_t>0xe7037ed1a0b428db)
    return low ^ (low >> 32)


cdef uint64_t hash_bytes(const uint8_t *data, size_t size, uint64_t seed) noexcept nogil:
    cdef uint64_t result = mix(seed, size)
    while size >= 8:
        result = mix(result, load_le64(data))
        data += 8
        size -= 8
    if size >= 4:
        result = mix(result, load_le32(data))
        data += 4
        size -= 4
    while size:
        result = mix(result, data[0])
        data += 1
        size -= 1
    return mix(result, seed)


cdef const uint8_t *subject_key(const Subject *subject) noexcept nogil:
    """The key's bytes."""
    if subject.end_size:
        return <const uint8_t *>subject + sizeof(RangeNode)
    return <const uint8_t *>subject + sizeof(Subject)


cdef const uint8_t *subject_end(const Subject *subject) noexcept nogil:
    """The bytes of the range's end."""
    return subject_key(subject) + subject.key_size


cdef inline int compare(
        const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) noexcept nogil:
    cdef int order = memcmp(a, b, min(a_size, b_size))
    return order if order else (a_size > b_size) - (a_size < b_size)


cdef inline bint is_open(const Subject *range) noexcept nogil:
    return range.end_size == 1 and subject_end(range)[0] == 0


cdef inline bint ends_after(const Subject *a, const Subject *b) noexcept nogil:
    """Whether range `a` ends after range `b`."""
    if is_open(b):
        return False
    return is_open(a) or compare(
        subject_end(a), a.end_size, subject_end(b), b.end_size) > 0


cdef int order_of(
        const Subject *range, const uint8_t *key, size_t key_size, const uint8_t *end,
        size_t end_size, uint32_t flags) noexcept nogil:
    """Where these stand relative to the node: below 0 before, 0 the same, above 0 after."""
    cdef int order = compare(key, key_size, subject_key(range), range.key_size)
    if order == 0:
        order = compare(end, end_size, subject_end(range), range.end_size)
    if order == 0:
        order = (flags > range.flags) - (flags < range.flags)
    return order


cdef void update(RangeNode *node) noexcept nogil:
    """Find out anew whose end is last."""
    node.furthest = node
    if node.left != NULL and ends_after(&node.left.furthest.subject, &node.furthest.subject):
        node.furthest = node.left.furthest
    if node.right != NULL and ends_after(&node.right.furthest.subject, &node.furthest.subject):
        node.furthest = node.right.furthest


cdef RangeNode *insert(RangeNode *root, RangeNode *node) noexcept nogil:
    """The treap with the node in it."""
    cdef RangeNode *child
    cdef Subject *new = &node.subject
    if root == NULL:
        update(node)
        return node
    if order_of(&root.subject, subject_key(new), new.key_size, subject_end(new), new.end_size,
                new.flags) < 0:
        root.left = child = insert(root.left, node)
        if child.priority > root.priority:
            root.left = child.right
            child.right = root
            update(root)
            update(child)
            return child
    else:
        root.right = child = insert(root.right, node)
        if child.priority > root.priority:
            root.right = child.left
            child.left = root
            update(root)
            update(child)
            return child
    update(root)
    return root


cdef RangeNode *merge(RangeNode *left, RangeNode *right) noexcept nogil:
    """One treap of two, all of `left` before all of `right`."""
    if left == NULL:
        return right
    if right == NULL:
        return left
    if left.priority > right.priority:
        left.right = merge(left.right, right)
        update(left)
        return left
    right.left = merge(left, right.left)
    update(right)
    return right


cdef RangeNode *take_out(RangeNode *root, const RangeNode *node) noexcept nogil:
    """The treap without the node, which is in it."""
    cdef const Subject *gone = &node.subject
    if root == node:
        return merge(root.left, root.right)
    if order_of(&root.subject, subject_key(gone), gone.key_size, subject_end(gone), gone.end_size,
                gone.flags) < 0:
        root.left = take_out(root.left, node)
    else:
        root.right = take_out(root.right, node)
    update(root)
    return root


cdef int stab(
        RangeNode *node, const uint8_t *key, size_t size, Buffer *out) except -1 nogil:
    """Append all ranges that hold the key."""
    cdef const Subject *furthest
    cdef Subject *found
    while node != NULL:
        furthest = &node.furthest.subject
        if not is_open(furthest) and compare(
                key, size, subject_end(furthest), furthest.end_size) >= 0:
            return 0    # all that is below ends before the key
        stab(node.left, key, size, out)
        found = &node.subject
        if compare(subject_key(found), found.key_size, key, size) > 0:
            return 0    # this and all to the right begin after it
        if is_open(found) or compare(key, size, subject_end(found), found.end_size) < 0:
            buffer_append(out, <const uint8_t *>&found, sizeof(Subject *))
        node = node.right
    return 0


cdef void free_ranges(RangeNode *node) noexcept nogil:
    if node != NULL:
        free_ranges(node.left)
        free_ranges(node.right)
        free(node)


cdef class WatchIndex:
    """All watchers of one worker."""

    def __cinit__(self, seed=None):
        self.seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed
        self.state = self.seed | 1
        self.subjects_mask = self.watchers_mask = BUCKETS_MIN - 1
        self.subjects = <Subject **>calloc(BUCKETS_MIN, sizeof(Subject *))
        self.watchers = <Watcher **>calloc(BUCKETS_MIN, sizeof(Watcher *))
        if self.subjects == NULL or self.watchers == NULL:
            raise MemoryError("no memory for watchers")

    def __dealloc__(self):
        cdef Watcher *watcher
        cdef Watcher *following
        cdef Subject *subject
        cdef Subject *next_subject
        cdef uint64_t i
        for i in range(self.watchers_mask + 1 if self.watchers != NULL else 0):
            watcher = self.watchers[i]
            while watcher != NULL:
                following = watcher.next_of_id
                free(watcher)
                watcher = following
        for i in range(self.subjects_mask + 1 if self.subjects != NULL else 0):
            subject = self.subjects[i]
            while subject != NULL:
                next_subject = subject.next
                free(subject)
                subject = next_subject
        free_ranges(self.root)
        free(self.watchers)
        free(self.subjects)

    cdef Watcher *add(
            self, WatchStream *stream, int64_t id, const uint8_t *key, size_t key_size,
            const uint8_t *end, size_t end_size, uint32_t flags) noexcept nogil:
        """A new watcher, all its other fields zero; NULL without memory."""
        cdef Watcher *watcher
        cdef Subject *subject
        cdef uint64_t slot
        if not self._grow():
            return NULL
        subject = self._subject(key, key_size, end, end_size, flags)
        if subject == NULL:
            return NULL
        watcher = <Watcher *>calloc(1, sizeof(Watcher))
        if watcher == NULL:
            if subject.watchers == NULL:
                self._drop(subject)
            return NULL
        watcher.subject = subject
        watcher.stream = stream
        watcher.id = id
        watcher.next_of_subject = subject.watchers
        if subject.watchers != NULL:
            subject.watchers.previous_of_subject = watcher
        subject.watchers = watcher
        watcher.next_of_stream = stream.watchers
        if stream.watchers != NULL:
            stream.watchers.previous_of_stream = watcher
        stream.watchers = watcher
        stream.watcher_count += 1
        slot = self._slot_of(stream, id)
        watcher.next_of_id = self.watchers[slot]
        self.watchers[slot] = watcher
        self.watcher_count += 1
        return watcher

    cdef void remove(self, Watcher *watcher) noexcept nogil:
        """Take a watcher out and free it."""
        cdef Watcher **place = &self.watchers[self._slot_of(watcher.stream, watcher.id)]
        while place[0] != watcher:
            place = &place[0].next_of_id
        place[0] = watcher.next_of_id
        if watcher.next_of_stream != NULL:
            watcher.next_of_stream.previous_of_stream = watcher.previous_of_stream
        if watcher.previous_of_stream != NULL:
            watcher.previous_of_stream.next_of_stream = watcher.next_of_stream
        else:
            watcher.stream.watchers = watcher.next_of_stream
        if watcher.next_of_subject != NULL:
            watcher.next_of_subject.previous_of_subject = watcher.previous_of_subject
        if watcher.previous_of_subject != NULL:
            watcher.previous_of_subject.next_of_subject = watcher.next_of_subject
        else:
            watcher.subject.watchers = watcher.next_of_subject
        if watcher.subject.watchers == NULL:
            self._drop(watcher.subject)
        watcher.stream.watcher_count -= 1
        self.watcher_count -= 1
        free(watcher)

    cdef Watcher *find(self, const WatchStream *stream, int64_t id) noexcept nogil:
        """The stream's watcher of this id, or NULL."""
        cdef Watcher *watcher = self.watchers[self._slot_of(stream, id)]
        while watcher != NULL and (watcher.id != id or watcher.stream != stream):
            watcher = watcher.next_of_id
        return watcher

    cdef bint match(self, const uint8_t *key, size_t size, Buffer *out) except -1 nogil:
        """Append every Subject * that the key concerns. Raises MemoryError."""
        cdef uint32_t hash = <uint32_t>hash_bytes(key, size, self.seed)
        cdef Subject *subject = self.subjects[hash & self.subjects_mask]
        while subject != NULL:
            if (subject.hash == hash and subject.key_size == size
                    and memcmp(subject_key(subject), key, size) == 0):
                buffer_append(out, <const uint8_t *>&subject, sizeof(Subject *))
            subject = subject.next
        stab(self.root, key, size, out)
        return True

    cdef Subject *_subject(
            self, const uint8_t *key, size_t key_size, const uint8_t *end, size_t end_size,
            uint32_t flags) noexcept nogil:
        """The subject of these, made if need be; NULL without memory."""
        cdef Subject *subject
        cdef RangeNode *node
        cdef int order
        cdef uint32_t hash = 0
        if end_size == 0:
            hash = <uint32_t>hash_bytes(key, key_size, self.seed)
            subject = self.subjects[hash & self.subjects_mask]
            while subject != NULL:
                if (subject.hash == hash and subject.key_size == key_size
                        and subject.flags == flags
                        and memcmp(subject_key(subject), key, key_size) == 0):
                    return subject
                subject = subject.next
            subject = <Subject *>malloc(sizeof(Subject) + key_size)
        else:
            node = self.root
            while node != NULL:
                order = order_of(&node.subject, key, key_size, end, end_size, flags)
                if order == 0:
                    return &node.subject
                node = node.left if order < 0 else node.right
            subject = <Subject *>malloc(sizeof(RangeNode) + key_size + end_size)
        if subject == NULL:
            return NULL
        subject.watchers = NULL
        subject.touched = 0
        subject.hash = hash
        subject.key_size = <uint32_t>key_size
        subject.end_size = <uint32_t>end_size
        subject.flags = flags
        memcpy(<uint8_t *>subject_key(subject), key, key_size)
        if end_size == 0:
            subject.next = self.subjects[hash & self.subjects_mask]
            self.subjects[hash & self.subjects_mask] = subject
            self.subject_count += 1
        else:
            memcpy(<uint8_t *>subject_end(subject), end, end_size)
            subject.next = NULL
            node = <RangeNode *>subject
            node.left = node.right = NULL
            node.priority = self.random()
            self.root = insert(self.root, node)
        return subject

    cdef void _drop(self, Subject *subject) noexcept nogil:
        """Nobody watches this any more."""
        cdef Subject **place
        if subject.end_size:
            self.root = take_out(self.root, <RangeNode *>subject)
        else:
            place = &self.subjects[subject.hash & self.subjects_mask]
            while place[0] != subject:
                place = &place[0].next
            place[0] = subject.next
            self.subject_count -= 1
        free(subject)

    cdef uint64_t _slot_of(self, const WatchStream *stream, int64_t id) noexcept nogil:
        return mix(<uint64_t>stream ^ self.seed, <uint64_t>id) & self.watchers_mask

    cdef bint _grow(self) noexcept nogil:
        """Keep both tables at most full; False without memory."""
        cdef Watcher **watchers
        cdef Watcher *watcher
        cdef Subject **subjects
        cdef Subject *subject
        cdef uint64_t i, mask
        if self.watcher_count > self.watchers_mask:
            mask = 2 * self.watchers_mask + 1
            watchers = <Watcher **>calloc(mask + 1, sizeof(Watcher *))
            if watchers == NULL:
                return False
            i = self.watchers_mask
            self.watchers_mask = mask
            for i in range(i + 1):
                while self.watchers[i] != NULL:
                    watcher = self.watchers[i]
                    self.watchers[i] = watcher.next_of_id
                    mask = self._slot_of(watcher.stream, watcher.id)
                    watcher.next_of_id = watchers[mask]
                    watchers[mask] = watcher
            free(self.watchers)
            self.watchers = watchers
        if self.subject_count > self.subjects_mask:
            mask = 2 * self.subjects_mask + 1
            subjects = <Subject **>calloc(mask + 1, sizeof(Subject *))
            if subjects == NULL:
                return False
            for i in range(self.subjects_mask + 1):
                while self.subjects[i] != NULL:
                    subject = self.subjects[i]
                    self.subjects[i] = subject.next
                    subject.next = subjects[subject.hash & mask]
                    subjects[subject.hash & mask] = subject
            free(self.subjects)
            self.subjects = subjects
            self.subjects_mask = mask
        return True

    cdef uint64_t random(self) noexcept nogil:
        """The next number of xorshift64*."""
        self.state ^= self.state >> 12
        self.state ^= self.state << 25
        self.state ^= self.state >> 27
        return self.state * <uint64_t>0x2545f4914f6cdd1d

    # --- for tests: watchers of one stream -------------------------------------------------------

    def watch(self, int64_t id, bytes key, bytes end=b"", uint32_t flags=0):
        """Add a watcher."""
        if self.add(&self.loner, id, key, len(key), end, len(end), flags) == NULL:
            raise MemoryError("no memory for a watcher")

    def unwatch(self, int64_t id):
        """Remove a watcher; False when there is none of this id."""
        cdef Watcher *watcher = self.find(&self.loner, id)
        if watcher != NULL:
            self.remove(watcher)
        return watcher != NULL

    def concerned(self, bytes key):
        """The ids of all watchers that the key concerns, sorted."""
        cdef Buffer found
        cdef Subject **subject
        cdef Watcher *watcher
        cdef size_t i
        ids = []
        found.data = NULL
        found.size = found.capacity = 0
        self.match(key, len(key), &found)
        subject = <Subject **>found.data
        for i in range(found.size // sizeof(Subject *)):
            watcher = subject[i].watchers
            while watcher != NULL:
                ids.append(watcher.id)
                watcher = watcher.next_of_subject
        buffer_free(&found)
        return sorted(ids)

    def check(self):
        """Walk everything; AssertionError when an invariant is broken. Answers the subjects."""
        cdef uint64_t i
        cdef Watcher *watcher
        cdef Subject *subject
        count = subjects = 0
        for i in range(self.watchers_mask + 1):
            watcher = self.watchers[i]
            while watcher != NULL:
                count += 1
                _check(self._slot_of(watcher.stream, watcher.id) == i, "a watcher's slot")
                if watcher.next_of_subject != NULL:
                    _check(watcher.next_of_subject.previous_of_subject == watcher, "links")
                watcher = watcher.next_of_id
        _check(count == self.watcher_count, f"{count} watchers, not {self.watcher_count}")
        for i in range(self.subjects_mask + 1):
            subject = self.subjects[i]
            while subject != NULL:
                subjects += 1
                _check(subject.watchers != NULL, "a subject without watchers")
                subject = subject.next
        _check(subjects == self.subject_count, f"{subjects} keys, not {self.subject_count}")
        return subjects + check_ranges(self.root)


cdef check_ranges(RangeNode *node):
    """Check the treap below; answers how many ranges it has."""
    cdef RangeNode *furthest
    cdef RangeNode *below
    if node == NULL:
        return 0
    furthest = node.furthest
    _check(node.subject.watchers != NULL, "a range without watchers")
    for order in (-1, 1):
        below = node.left if order < 0 else node.right
        if below == NULL:
            continue
        _check(below.priority <= node.priority, "the treap's heap order")
        _check(0 < order * order_of(
            &node.subject, subject_key(&below.subject), below.subject.key_size,
            subject_end(&below.subject), below.subject.end_size, below.subject.flags
        ), "the treap's key order")
    update(node)
    _check(not ends_after(&node.furthest.subject, &furthest.subject), "the furthest end")
    return 1 + check_ranges(node.left) + check_ranges(node.right)


cdef _check(bint holds, str what):
    """An `assert` that release builds keep."""
    if not holds:
        raise AssertionError(f"watchers: {what}")
