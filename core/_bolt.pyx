"""Reading a bbolt file in memory: nothing is copied, and nothing is believed before it was checked.

Rules:
1. The newer of the two metas that check is the file. One that does not is told in `warning` (the
   file is then read as of the transaction before); without a good one the file is refused.
2. Every page is checked when a way through the file first comes to it: its place, its own number
   and kind, that its keys, values and the zeros behind them lie exactly where a writer puts them,
   and that its keys ascend. Each time that it is entered: that its keys lie between those that its
   parent names. So a cursor ends, and the keys it gives ascend. `to_key` sees the pages on its way
   and no others: whether the whole tree is in order is what going through it tells, or `Check`.
3. What does not check is a BoltError with page and reason. A page has no checksum: a changed byte
   of a value, or of a key that keeps its place in the order, is not seen here.
4. `Check` walks everything once: no page is used twice, and each is used or free. In a file without
   a freelist the unused pages are the free ones: who knows that there can be none looks at
   `pages_free`.
5. The memory must not change while a `Bolt` reads it. One thread at a time uses a Bolt.

It knows pages, buckets, keys and values; what they mean is not its matter.
"""

from libc.stdlib cimport calloc, free

from quorate.core._boltpage cimport (
    BUCKET_BYTES,
    COUNT_INSIDE,
    ELEMENT_BUCKET,
    ELEMENT_BYTES,
    HEADER_BYTES,
    KEY_BYTES_MAX,
    META_BYTES,
    META_MAGIC,
    META_SUMMED_BYTES,
    META_VERSION,
    NO_FREELIST,
    PAGE_BRANCH,
    PAGE_BYTES_MAX,
    PAGE_BYTES_MIN,
    PAGE_FIRST,
    PAGE_FREELIST,
    PAGE_LEAF,
    PAGE_META,
    VALUE_BYTES_MAX,
    all_zero,
    branch_child,
    branch_key,
    compare_keys,
    encode_meta_page,
    leaf_flags,
    leaf_key,
    leaf_value,
    load_meta,
    meta_sum,
    page_count,
    page_flags,
    page_id,
    page_overflow,
)
from quorate.core._bytes cimport load_le32, load_le64
from quorate.core._mapping cimport Mapping
from quorate.core.errors import Fatal

cdef Span NO_BOUND = Span(NULL, 0)


class BoltError(Fatal):
    """The file holds what no writer leaves behind: which page, and what is wrong with it."""

    def __init__(self, path, page, reason):
        super().__init__(f"{path}: page {page}: {reason}; the file is damaged")
        self.path = path
        self.page = page
        self.reason = reason


cdef class Bolt:
    """A file that somebody mapped or read; see the module's rules."""

    def __init__(self, const uint8_t[::1] data, str path=""):
        if data.shape[0] == 0:
            raise BoltError(path, 0, "the file is empty")
        self.take(&data[0], data.shape[0], path, data)

    def __dealloc__(self):
        free(self.checked)

    @staticmethod
    def mapped(Mapping mapping not None, uint64_t size):
        """The first `size` bytes of a mapping. Raises BoltError."""
        if size == 0 or size > mapping.reach:
            raise BoltError(mapping.path, 0, f"the file has {size} bytes")
        return Bolt.over(mapping.data, size, mapping.path, mapping)

    @staticmethod
    cdef Bolt over(const uint8_t *data, uint64_t size, str path, object owner):
        cdef Bolt bolt = Bolt.__new__(Bolt)
        bolt.take(data, size, path, owner)
        return bolt

    cdef int take(self, const uint8_t *data, uint64_t size, str path, object owner) except -1:
        """Read the metas of the file that lies at `data`."""
        self.data = data
        self.size = size
        self.path = path
        self.owner = owner
        self.load_metas()
        free(self.checked)
        self.checked = <uint8_t *>calloc(1, self.meta.high_water // 8 + 1)
        if self.checked == NULL:
            raise MemoryError(f"no memory for the pages of {path}")
        return 0

    cdef int refuse(self, uint64_t page, const char *reason) except -1 nogil:
        with gil:
            raise BoltError(self.path, page, reason.decode())

    # --- metas --------------------------------------------------------------------------------

    cdef int load_metas(self) except -1:
        """Choose the meta that counts; sets `warning` when there is only one."""
        cdef Meta first
        cdef Meta second
        cdef uint64_t page_size = PAGE_BYTES_MIN
        cdef const char *first_reason = self.inspect_meta(0, 0, &first)
        cdef const char *second_reason = b"it is nowhere"
        if first_reason == NULL:
            second_reason = self.inspect_meta(1, first.page_size, &second)
        else:
            # Where the second one lies follows from the page size, which only it knows.
            while page_size <= PAGE_BYTES_MAX and second_reason != NULL:
                second_reason = self.inspect_meta(1, page_size, &second)
                page_size *= 2
        if first_reason != NULL and second_reason != NULL:
            raise BoltError(
                self.path, 0, f"{first_reason.decode()}, and the other meta is bad, too")
        if second_reason != NULL or (
                first_reason == NULL and first.transaction > second.transaction):
            self.meta = first
        else:
            self.meta = second
        if first_reason != NULL:
            self.warn(0, first_reason)
        if second_reason != NULL:
            self.warn(1, second_reason)
        return 0

    cdef warn(self, int page, const char *reason):
        self.warning = (
            f"{self.path}: meta page {page}: {reason.decode()}; the file is read as of transaction "
            f"{self.meta.transaction}")

    cdef const char *inspect_meta(
            self, uint64_t id, uint64_t page_size, Meta *meta) noexcept nogil:
        """Load a meta page; NULL, or why it is none. The first one needs no page size."""
        cdef const uint8_t *page = self.data + id * page_size
        cdef const uint8_t *at = page + HEADER_BYTES
        if self.size < id * page_size + HEADER_BYTES + META_BYTES:
            return b"the file ends before its meta does"
        if load_le32(at) != META_MAGIC:
            return b"it has not the mark of a bbolt file"
        if load_le32(at + 4) != META_VERSION:
            return b"its version is not 2"
        if load_le64(at + META_SUMMED_BYTES) != meta_sum(at):
            return b"its checksum is wrong"
        if page_id(page) != id or page_flags(page) != PAGE_META:
            return b"its header is not a meta's"
        meta[0] = load_meta(at)
        if (meta.page_size < PAGE_BYTES_MIN or meta.page_size > PAGE_BYTES_MAX
                or meta.page_size & (meta.page_size - 1)):
            return b"its page size is none"
        if id and meta.page_size != page_size:
            return b"its page size is not where it lies"
        if meta.high_water > self.size // meta.page_size:
            return b"the file is shorter than it says"
        if not PAGE_FIRST <= meta.root < meta.high_water:
            return b"its root is no page of the file"
        if meta.freelist != NO_FREELIST and not PAGE_FIRST <= meta.freelist < meta.high_water:
            return b"its freelist is no page of the file"
        return NULL

    # --- pages --------------------------------------------------------------------------------

    cdef int check_page(self, uint64_t id) except -1 nogil:
        """Check a branch or leaf page in itself, once."""
        cdef const char *reason
        if not PAGE_FIRST <= id < self.meta.high_water:
            return self.refuse(id, b"it is referred to and is no page of the file")
        if self.checked[id >> 3] & 1 << (id & 7):
            return 0
        reason = inspect_page(self.data + id * self.meta.page_size, id, &self.meta)
        if reason != NULL:
            return self.refuse(id, reason)
        self.checked[id >> 3] |= 1 << (id & 7)
        return 0

    cdef int enter(self, Frame *frame, uint64_t id, Span low, Span high) except -1 nogil:
        """Check a page and make a frame of it; its keys are at least `low` and below `high`."""
        cdef const char *reason
        self.check_page(id)
        fill_frame(frame, self.data + id * self.meta.page_size, id)
        reason = inspect_bounds(frame, low, high)
        if reason != NULL:
            return self.refuse(id, reason)
        return 0

    cdef int enter_child(self, Frame *frame, Frame *parent) except -1 nogil:
        """Enter the page that the parent's element at `index` refers to."""
        cdef Span high = parent.high
        if parent.index + 1 < parent.count:
            high = branch_key(parent.page, parent.index + 1)
        return self.enter(frame, branch_child(parent.page, parent.index),
                          branch_key(parent.page, parent.index), high)

    cdef int enter_bucket(self, Frame *frame, Bucket *bucket) except -1 nogil:
        """Enter a bucket's first page."""
        cdef const char *reason
        cdef uint64_t end = 0
        if bucket.page.data == NULL:
            return self.enter(frame, bucket.root, NO_BOUND, NO_BOUND)
        if (page_id(bucket.page.data) or page_flags(bucket.page.data) != PAGE_LEAF
                or page_overflow(bucket.page.data)):
            return self.refuse(bucket.holder, b"the page of an inline bucket is no leaf")
        reason = inspect_elements(bucket.page.data, bucket.page.size, &end)
        if reason == NULL and end != bucket.page.size:
            reason = b"there is something behind the last element of an inline bucket"
        if reason != NULL:
            return self.refuse(bucket.holder, reason)
        fill_frame(frame, bucket.page.data, 0)
        frame.high = NO_BOUND
        return 0

    # --- buckets ------------------------------------------------------------------------------

    cdef Bucket root_bucket(self) noexcept nogil:
        return Bucket(self.meta.root, self.meta.sequence, NO_BOUND, 0)

    cdef int decode_bucket(self, uint64_t page, Span value, Bucket *bucket) except -1 nogil:
        if value.size < BUCKET_BYTES:
            return self.refuse(page, b"the value of a bucket is too short")
        bucket[0] = Bucket(load_le64(value.data), load_le64(value.data + 8), NO_BOUND, page)
        if bucket.root == 0:
            if value.size < BUCKET_BYTES + HEADER_BYTES:
                return self.refuse(page, b"the value of an inline bucket is too short")
            bucket.page = Span(value.data + BUCKET_BYTES, value.size - BUCKET_BYTES)
        elif value.size != BUCKET_BYTES:
            return self.refuse(page, b"the value of a bucket is too long")
        return 0

    cdef bint find_bucket(self, Span name, Bucket *bucket) except -1:
        cdef Cursor cursor = Cursor.__new__(Cursor)
        cursor.over(self, self.root_bucket())
        return cursor.find_nested(name, bucket)

    # --- for Python ---------------------------------------------------------------------------

    @property
    def page_size(self):
        """Bytes of a page."""
        return self.meta.page_size

    @property
    def transaction(self):
        """The number of the transaction that the file is read as of."""
        return self.meta.transaction

    @property
    def high_water(self):
        """Pages from this one on were never used."""
        return self.meta.high_water

    @property
    def freelist(self):
        """The page of the freelist; None when the file has none."""
        return None if self.meta.freelist == NO_FREELIST else self.meta.freelist

    def buckets(self):
        """The names of the buckets, ascending."""
        cdef Cursor cursor = Cursor(self)
        cdef list names = []
        cdef bint found = cursor.to_first()
        while found:
            if not cursor.is_bucket:
                self.refuse(cursor.frames[cursor.depth].id, b"a key lies outside of all buckets")
            names.append(to_bytes(cursor.key))
            found = cursor.to_next()
        return names

    def metas(self):
        """Two meta pages of a file of its own that is what the meta that counts names, as bbolt
        makes them for a copy: this one, and the same as the transaction before.
        """
        cdef Meta meta = self.meta
        cdef bytearray pages = bytearray(PAGE_FIRST * meta.page_size)
        cdef uint8_t *at = <uint8_t *>pages
        encode_meta_page(at + (meta.transaction & 1) * meta.page_size, &meta)
        meta.transaction -= 1
        encode_meta_page(at + (meta.transaction & 1) * meta.page_size, &meta)
        return bytes(pages)

    def has_pages(self, bytes bucket):
        """Whether there is such a bucket, with pages of its own and something in them."""
        cdef Bucket found
        cdef Cursor cursor
        if not self.find_bucket(span_of(bucket), &found) or found.root == 0:
            return False
        cursor = Cursor.__new__(Cursor)
        cursor.over(self, found)
        return bool(cursor.to_last())

    def sequence(self, bytes bucket):
        """The number that a bucket carries."""
        return Cursor(self, bucket).sequence

    def cursor(self, bytes bucket):
        """A cursor over a bucket; raises KeyError."""
        return Cursor(self, bucket)

    def items(self, bytes bucket):
        """Every key and value of a bucket, ascending; a nested bucket's value is None."""
        cdef Cursor cursor = Cursor(self, bucket)
        cdef bint found = cursor.to_first()
        while found:
            yield cursor.item()
            found = cursor.to_next()

    def get(self, bytes bucket, bytes key):
        """A key's value, or None."""
        item = Cursor(self, bucket).seek(key)
        return item[1] if item is not None and item[0] == key else None

    def count(self, bytes bucket):
        """The elements of a bucket, and the bytes of their keys and values."""
        cdef Cursor cursor = Cursor(self, bucket)
        cdef uint64_t elements = 0
        cdef uint64_t total = 0
        cdef bint found
        with nogil:
            found = cursor.to_first()
            while found:
                elements += 1
                total += cursor.key.size + cursor.value.size
                found = cursor.to_next()
        return elements, total

    def check(self):
        """Walk the whole file; what was counted, or a BoltError."""
        cdef Check check = Check(self)
        with nogil:
            while not check.step(1024):
                pass
        return check


cdef const char *inspect_page(
        const uint8_t *page, uint64_t id, const Meta *meta) noexcept nogil:
    """NULL, or why the page can't be this branch or leaf of the file; all of it is in memory."""
    cdef const char *reason
    cdef uint64_t end = 0
    cdef uint64_t overflow = page_overflow(page)
    if page_id(page) != id:
        return b"it has the number of another page"
    if page_flags(page) != PAGE_BRANCH and page_flags(page) != PAGE_LEAF:
        return b"it is neither a branch nor a leaf"
    if overflow >= meta.high_water - id:
        return b"it goes on behind the last page of the file"
    reason = inspect_elements(page, (overflow + 1) * meta.page_size, &end)
    if reason != NULL:
        return reason
    if overflow * meta.page_size > end:
        return b"it takes more pages than its elements need"
    if not all_zero(page + end, (overflow + 1) * meta.page_size - end):
        return b"there is something behind its last element"
    return NULL


cdef const char *inspect_bounds(Frame *frame, Span low, Span high) noexcept nogil:
    """NULL, or why the keys are not at least `low` and below `high`, which the frame gets."""
    frame.high = high
    if low.data != NULL:
        if frame.count == 0:
            return b"it is empty and is not the root of a bucket"
        if compare_keys(frame_key(frame, 0), low) < 0:
            return b"its first key is below the one that its parent names"
    if high.data != NULL and compare_keys(frame_key(frame, frame.count - 1), high) >= 0:
        return b"its last key is not below the next one of its parent"
    return NULL


cdef const char *inspect_elements(
        const uint8_t *page, uint64_t span, uint64_t *end) noexcept nogil:
    """NULL and where the last element ends in a page of `span` bytes, or why that can't be one."""
    cdef bint is_leaf = page_flags(page) == PAGE_LEAF
    cdef uint32_t count = page_count(page)
    cdef uint64_t at = HEADER_BYTES + <uint64_t>ELEMENT_BYTES * count
    cdef uint64_t offset = HEADER_BYTES
    cdef const uint8_t *element = page + HEADER_BYTES
    cdef uint64_t value_size = 0
    cdef Span key
    cdef Span before = NO_BOUND
    cdef uint32_t index
    if at > span:
        return b"it has more elements than room"
    if count == 0 and not is_leaf:
        return b"it is a branch without elements"
    for index in range(count):
        if is_leaf:
            if load_le32(element) & ~<uint32_t>ELEMENT_BUCKET:
                return b"an element has unknown flags"
            value_size = load_le32(element + 12)
            element += 4
        if offset + load_le32(element) != at:
            return b"an element lies where no writer puts it"
        key = Span(page + at, load_le32(element + 4))
        if key.size == 0 or key.size > KEY_BYTES_MAX or value_size > VALUE_BYTES_MAX:
            return b"the size of a key or value is impossible"
        if key.size + value_size > span - at:
            return b"a key or value goes beyond the page"
        if index and compare_keys(before, key) >= 0:
            return b"its keys do not ascend"
        before = key
        at += key.size + value_size
        offset += ELEMENT_BYTES
        element = page + offset
    end[0] = at
    return NULL


cdef void fill_frame(Frame *frame, const uint8_t *page, uint64_t id) noexcept nogil:
    frame.page = page
    frame.id = id
    frame.count = page_count(page)
    frame.index = 0
    frame.is_leaf = page_flags(page) == PAGE_LEAF


cdef Span frame_key(Frame *frame, uint32_t index) noexcept nogil:
    if frame.is_leaf:
        return leaf_key(frame.page, index)
    return branch_key(frame.page, index)


cdef bytes to_bytes(Span span):
    return span.data[:span.size]


cdef Span span_of(bytes data):
    return Span(<const uint8_t *>data, len(data))


cdef class Cursor:
    """A place in a bucket. Moving costs no allocation and needs no GIL."""

    def __init__(self, Bolt bolt, *path):
        cdef Bucket bucket = bolt.root_bucket()
        self.over(bolt, bucket)
        for name in path:
            if not self.find_nested(span_of(name), &bucket):
                raise KeyError(name)
            self.over(bolt, bucket)

    cdef void over(self, Bolt bolt, Bucket bucket) noexcept:
        self.bolt = bolt
        self.bucket = bucket
        self.depth = -1

    cdef bint find_nested(self, Span name, Bucket *bucket) except -1 nogil:
        """The bucket of that name in this one."""
        if not self.to_key(name) or compare_keys(self.key, name) != 0:
            return False
        if not self.is_bucket:
            self.bolt.refuse(self.page(), b"a key lies where a bucket should be")
        self.bolt.decode_bucket(self.page(), self.value, bucket)
        return True

    cdef uint64_t page(self) noexcept nogil:
        """The page that the cursor is on, for messages."""
        return self.frames[self.depth].id or self.bucket.holder

    cdef bint to_first(self) except -1 nogil:
        self.enter_root()
        self.descend(False)
        return self.settle()

    cdef bint to_last(self) except -1 nogil:
        self.enter_root()
        self.frames[0].index = self.frames[0].count - 1 if self.frames[0].count else 0
        self.descend(True)
        return self.settle()

    cdef bint to_next(self) except -1 nogil:
        if self.depth < 0:
            return False
        self.frames[self.depth].index += 1
        if self.frames[self.depth].index < self.frames[self.depth].count:
            return self.settle()
        while self.depth > 0:
            self.depth -= 1
            self.frames[self.depth].index += 1
            if self.frames[self.depth].index < self.frames[self.depth].count:
                self.descend(False)
                return self.settle()
        self.depth = -1
        return False

    cdef bint to_previous(self) except -1 nogil:
        while self.depth >= 0:
            if self.frames[self.depth].index:
                self.frames[self.depth].index -= 1
                self.descend(True)
                return self.settle()
            self.depth -= 1
        return False

    cdef bint to_key(self, Span key) except -1 nogil:
        cdef Frame *frame
        self.enter_root()
        while True:
            frame = &self.frames[self.depth]
            frame.index = lower_bound(frame, key)
            if frame.is_leaf:
                break
            # The child that may hold the key begins at or before it; the first one begins the way.
            if frame.index and (frame.index == frame.count or compare_keys(
                    branch_key(frame.page, frame.index), key) != 0):
                frame.index -= 1
            self.down()
        if frame.index < frame.count:
            return self.settle()
        if frame.count == 0:
            self.depth = -1
            return False
        frame.index -= 1
        return self.to_next()

    cdef int enter_root(self) except -1 nogil:
        """Enter the bucket's first page. Until a page has checked, the cursor is nowhere."""
        self.depth = -1
        self.bolt.enter_bucket(&self.frames[0], &self.bucket)
        self.depth = 0
        return 0

    cdef int down(self) except -1 nogil:
        """Enter the child at the place in the page at `depth`."""
        cdef int depth = self.depth
        cdef Frame *frame = &self.frames[depth]
        self.depth = -1
        if depth + 1 == LEVELS_MAX:
            return self.bolt.refuse(frame.id, b"the tree is deeper than any can be")
        self.bolt.enter_child(&self.frames[depth + 1], frame)
        self.depth = depth + 1
        return 0

    cdef int descend(self, bint to_last) except -1 nogil:
        """Go down to a leaf from the place in the page at `depth`."""
        while not self.frames[self.depth].is_leaf:
            self.down()
            if to_last:
                self.frames[self.depth].index = self.frames[self.depth].count - 1
        return 0

    cdef bint settle(self) noexcept nogil:
        """Show the element that the leaf is at; only a bucket's root has none."""
        cdef Frame *leaf = &self.frames[self.depth]
        if leaf.count == 0:
            self.depth = -1
            return False
        self.key = leaf_key(leaf.page, leaf.index)
        self.value = leaf_value(leaf.page, leaf.index)
        self.is_bucket = leaf_flags(leaf.page, leaf.index) & ELEMENT_BUCKET
        return True

    # --- for Python ---------------------------------------------------------------------------

    @property
    def sequence(self):
        """The number that the bucket carries."""
        return self.bucket.sequence

    cdef item(self):
        return to_bytes(self.key), None if self.is_bucket else to_bytes(self.value)

    def first(self):
        """Go to the first key; None when the bucket is empty."""
        return self.item() if self.to_first() else None

    def last(self):
        """Go to the last key."""
        return self.item() if self.to_last() else None

    def next(self):
        """Go to the next key; None after the last one."""
        return self.item() if self.to_next() else None

    def previous(self):
        """Go to the key before; None before the first one."""
        return self.item() if self.to_previous() else None

    def seek(self, bytes key):
        """Go to the first key that is not below `key`."""
        return self.item() if self.to_key(span_of(key)) else None


cdef uint32_t lower_bound(Frame *frame, Span key) noexcept nogil:
    """The first element of a page whose key is not below `key`."""
    cdef uint32_t low = 0
    cdef uint32_t high = frame.count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if compare_keys(frame_key(frame, middle), key) < 0:
            low = middle + 1
        else:
            high = middle
    return low


cdef class Check:
    """The walk through a whole file, in steps; see the module's rule 4."""

    def __init__(self, Bolt bolt):
        assert self.reached == NULL
        self.bolt = bolt
        self.depth = -1
        self.nested_from = LEVELS_MAX
        self.reached = <uint8_t *>calloc(1, bolt.meta.high_water // 8 + 1)
        if self.reached == NULL:
            raise MemoryError(f"no memory to check {bolt.path}")
        self.mark(0, PAGE_FIRST)

    def __dealloc__(self):
        free(self.reached)

    def run(self, uint64_t pages):
        """Walk up to `pages` pages on; True when the file was walked and is consistent."""
        cdef bint done
        with nogil:
            done = self.step(pages)
        return done

    cdef bint step(self, uint64_t pages) except -1 nogil:
        cdef Bucket root
        cdef uint64_t stop = self.pages_reached + pages
        if self.pages_reached == PAGE_FIRST:
            root = self.bolt.root_bucket()
            self.bolt.enter_bucket(&self.frames[0], &root)
            self.push()
        while self.depth >= 0 and self.pages_reached < stop:
            self.walk()
        if self.depth < 0 and not self.done:
            self.finish()
        return self.done

    cdef int walk(self) except -1 nogil:
        """Go on in the page at `depth`: into its next child, or back to its parent."""
        cdef Frame *frame = &self.frames[self.depth]
        if frame.index == frame.count:
            self.depth -= 1
            if self.depth < self.nested_from:
                self.nested_from = LEVELS_MAX
            return 0
        if frame.is_leaf:
            return self.walk_leaf(frame)
        if self.depth + 1 == LEVELS_MAX:
            return self.bolt.refuse(frame.id, b"the tree is deeper than any can be")
        self.bolt.enter_child(&self.frames[self.depth + 1], frame)
        frame.index += 1
        return self.push()

    cdef int walk_leaf(self, Frame *frame) except -1 nogil:
        """Count a leaf's elements up to the next bucket, and enter that."""
        while frame.index < frame.count:
            frame.index += 1
            if leaf_flags(frame.page, frame.index - 1) & ELEMENT_BUCKET:
                return self.enter_nested(frame, frame.index - 1)
            if self.depth < self.nested_from:
                return self.bolt.refuse(frame.id, b"a key lies outside of all buckets")
            self.pairs += 1
        return 0

    cdef int enter_nested(self, Frame *frame, uint32_t index) except -1 nogil:
        """Enter the bucket in a leaf's element."""
        cdef Bucket bucket
        cdef Frame inner
        cdef uint32_t at
        self.buckets += 1
        self.bolt.decode_bucket(frame.id, leaf_value(frame.page, index), &bucket)
        if bucket.page.data != NULL:
            self.bolt.enter_bucket(&inner, &bucket)
            for at in range(inner.count):
                if leaf_flags(inner.page, at) & ELEMENT_BUCKET:
                    return self.bolt.refuse(frame.id, b"a bucket lies in an inline bucket")
            self.pairs += inner.count
            return 0
        if self.depth + 1 == LEVELS_MAX:
            return self.bolt.refuse(frame.id, b"the tree is deeper than any can be")
        self.bolt.enter_bucket(&self.frames[self.depth + 1], &bucket)
        if self.nested_from == LEVELS_MAX:
            self.nested_from = self.depth + 1
        return self.push()

    cdef int push(self) except -1 nogil:
        """Count the page that was entered behind the one at `depth`."""
        cdef Frame *frame = &self.frames[self.depth + 1]
        self.depth += 1
        return self.mark(frame.id, page_overflow(frame.page) + 1)

    cdef int mark(self, uint64_t first, uint64_t count) except -1 nogil:
        """These pages are used: by nobody else."""
        cdef uint64_t id
        for id in range(first, first + count):
            if self.reached[id >> 3] & 1 << (id & 7):
                return self.bolt.refuse(id, b"it is used twice")
            self.reached[id >> 3] |= 1 << (id & 7)
        self.pages_reached += count
        return 0

    cdef int finish(self) except -1 nogil:
        """Judge the pages that nobody uses."""
        cdef uint64_t unused
        cdef uint64_t id
        if self.bolt.meta.freelist != NO_FREELIST:
            self.walk_freelist()
        unused = self.bolt.meta.high_water - self.pages_reached - self.pages_free
        if self.bolt.meta.freelist == NO_FREELIST:
            self.pages_free = unused
        elif unused:
            for id in range(self.bolt.meta.high_water):
                if not self.reached[id >> 3] & 1 << (id & 7):
                    return self.bolt.refuse(id, b"it is neither used nor free")
        self.done = True
        return 0

    cdef int walk_freelist(self) except -1 nogil:
        """Mark what the freelist says is free."""
        cdef uint64_t list_id = self.bolt.meta.freelist
        cdef uint64_t page_size = self.bolt.meta.page_size
        cdef const uint8_t *page = self.bolt.data + list_id * page_size
        cdef const uint8_t *ids = page + HEADER_BYTES
        cdef uint64_t overflow = page_overflow(page)
        cdef uint64_t count = page_count(page)
        cdef uint64_t before = 0
        cdef uint64_t used
        cdef uint64_t id
        cdef uint64_t at
        if page_id(page) != list_id or page_flags(page) != PAGE_FREELIST:
            return self.bolt.refuse(list_id, b"it is no freelist")
        if overflow >= self.bolt.meta.high_water - list_id:
            return self.bolt.refuse(list_id, b"it goes on behind the last page of the file")
        if count == COUNT_INSIDE:
            count = load_le64(ids)
            ids += 8
        if count > ((overflow + 1) * page_size - <uint64_t>(ids - page)) // 8:
            return self.bolt.refuse(list_id, b"it has more elements than room")
        self.mark(list_id, overflow + 1)
        used = self.pages_reached
        for at in range(count):
            id = load_le64(ids + 8 * at)
            if not PAGE_FIRST <= id < self.bolt.meta.high_water or id <= before:
                return self.bolt.refuse(list_id, b"its page numbers are no ascending ones")
            self.mark(id, 1)
            before = id
        self.pages_free = count
        self.pages_reached = used
        return 0
