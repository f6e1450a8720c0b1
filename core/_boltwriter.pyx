"""Writing a bbolt file in one pass, or more to the end of one: pages go out in order as they fill.

Rules:
1. Buckets come in any order, each with its keys ascending, each once. What comes in another order
   is a Fatal before anything of it is written.
2. A leaf is closed by the pair that it has no more room for, and then never touched again. It may
   be larger than a page (`leaf_size`): then it takes several in a row, and fewer bytes are lost at
   page ends. Branches are gathered above the leaves, one node for each level: memory is bounded by
   the largest leaf and the piece that is written at once.
3. A small bucket lies inline in its parent, as bbolt does it; not one begun with `places`.
4. The metas are written when all else is synced, and are synced themselves: before that the file
   is no bbolt file. Both name the same tree, as in a snapshot.
5. The first failure of the disk is final. Naming the file (rename, directory sync) is the caller's.
6. The same input gives the same bytes, however it is sliced.
7. `append_to` goes on with a file: new pages come behind all that it has, and none of these is
   written again but one of the metas, the last of all. Buckets that are not begun stay as they are;
   one that is begun is written anew, or, with `extend`, goes on behind its last pair. One that is
   written anew may take over leaves that the file has (`keep_leaf`).
8. A `deferred` writer does no I/O while pairs come: `piece_waits` says when `write_piece`, which
   may be called by another thread meanwhile, has enough to do.
9. What is written, but for the metas, goes into `sums`, if there are any.
"""

from libc.string cimport memcpy, memmove, memset

from quorate.core._boltpage cimport (
    BUCKET_BYTES,
    ELEMENTS_MAX,
    ELEMENT_BUCKET,
    ELEMENT_BYTES,
    HEADER_BYTES,
    KEY_BYTES_MAX,
    NO_FREELIST,
    PAGE_BRANCH,
    PAGE_BYTES_MAX,
    PAGE_BYTES_MIN,
    PAGE_FIRST,
    PAGE_FREELIST,
    PAGE_LEAF,
    VALUE_BYTES_MAX,
    Meta,
    branch_child,
    branch_key,
    compare_keys,
    encode_branch_element,
    encode_header,
    encode_leaf_element,
    encode_meta_page,
    leaf_key,
)
from quorate.core._bolt cimport Bolt, Bucket, Cursor, Frame
from quorate.core._bytes cimport (
    buffer_append,
    buffer_free,
    buffer_reserve,
    load_le64,
    store_le64,
)
from quorate.core._disk import DiskError
from quorate.core.errors import Fatal

cdef enum:
    # Pages go out in pieces of at least this size: large enough that a call costs nothing beside
    # its bytes.
    WRITE_PIECE = 1024 * 1024
    # A deferred writer waits for the device after each of these.
    PACED_PIECE = 128 * 1024


# --- nodes ------------------------------------------------------------------------------------


cdef uint8_t *node_add(
        Node *node, uint32_t flags, Span key, uint32_t value_size,
        uint64_t child) except NULL nogil:
    cdef NodeElement element = NodeElement(child, flags, <uint32_t>key.size, value_size)
    buffer_reserve(&node.data, key.size + value_size)
    buffer_append(&node.elements, <const uint8_t *>&element, sizeof(NodeElement))
    buffer_append(&node.data, key.data, key.size)
    node.data.size += value_size
    node.count += 1
    return node.data.data + node.data.size - value_size


cdef uint64_t node_size(const Node *node) noexcept nogil:
    return HEADER_BYTES + ELEMENT_BYTES * <uint64_t>node.count + node.data.size


cdef Span node_first_key(const Node *node) noexcept nogil:
    return Span(node.data.data, (<const NodeElement *>node.elements.data).key_size)


cdef void node_encode(
        const Node *node, uint8_t *page, uint64_t id, uint32_t overflow,
        bint is_leaf) noexcept nogil:
    cdef const NodeElement *element = <const NodeElement *>node.elements.data
    cdef uint8_t *at = page + HEADER_BYTES
    # The distance from an element to its key.
    cdef uint32_t position = ELEMENT_BYTES * node.count
    cdef uint32_t _
    encode_header(page, id, PAGE_LEAF if is_leaf else PAGE_BRANCH, node.count, overflow)
    for _ in range(node.count):
        if is_leaf:
            encode_leaf_element(
                at, element.flags, position, element.key_size, element.value_size)
        else:
            encode_branch_element(at, position, element.key_size, element.child)
        position += element.key_size + element.value_size - ELEMENT_BYTES
        at += ELEMENT_BYTES
        element += 1
    if node.data.size:
        memcpy(at, node.data.data, node.data.size)


cdef void node_drop(Node *node, uint32_t kept) noexcept nogil:
    cdef NodeElement *elements = <NodeElement *>node.elements.data
    cdef size_t size = 0
    if kept:
        elements[0] = elements[node.count - 1]
        size = elements[0].key_size + elements[0].value_size
        memmove(node.data.data, node.data.data + node.data.size - size, size)
    node.elements.size = kept * sizeof(NodeElement)
    node.data.size = size
    node.count = kept


cdef void node_free(Node *node) noexcept nogil:
    buffer_free(&node.elements)
    buffer_free(&node.data)
    node.count = 0


# --- the file ---------------------------------------------------------------------------------


cdef class BoltWriter:
    """A file being written; see the module's rules."""

    def __cinit__(self):
        self.handle = -1

    def __init__(
            self, Disk disk, str path, *, uint64_t page_size=4096, uint64_t leaf_size=0,
            uint64_t fill_percent=100, uint64_t transaction=2, bint freelist=False,
            bint deferred=False):
        assert self.handle < 0 and not self.finished, "a writer writes one file"
        if (not PAGE_BYTES_MIN <= page_size <= PAGE_BYTES_MAX or page_size & (page_size - 1)
                or not 10 <= fill_percent <= 100 or not transaction or leaf_size >> 31):
            raise Fatal(
                f"{path}: no bbolt file has pages of {page_size} bytes, leaves of {leaf_size}, "
                f"{fill_percent} % full, and the transaction {transaction}")
        self.disk = disk
        self.path = path
        self.page_size = page_size
        self.transaction = transaction
        self.with_freelist = freelist
        self.deferred = deferred
        # Not less than what may lie inline, so that the first leaf can tell.
        self.leaf_size_max = max(
            max(leaf_size, page_size) * fill_percent // 100, page_size // 4)
        self.leaf_size = self.leaf_size_max
        self.pages = PAGE_FIRST
        self.out_offset = PAGE_FIRST * page_size
        self.values = {}
        self.kept = {}
        self.handle = disk.open(path, create=True)
        try:
            if disk.size(self.handle, path):
                raise Fatal(f"{path}: a fresh file is to be written, and this one is not empty")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def append_to(disk, Bolt bolt not None, *, uint64_t leaf_size=0, bint deferred=False):
        """Go on with the file that `bolt` has read: its next transaction."""
        cdef BoltWriter writer = BoltWriter.__new__(BoltWriter)
        cdef Cursor cursor = Cursor(bolt)
        cdef bint found = cursor.to_first()
        writer.disk = disk
        writer.path = bolt.path
        writer.bolt = bolt
        writer.page_size = bolt.meta.page_size
        writer.transaction = bolt.meta.transaction + 1
        writer.deferred = deferred
        writer.leaf_size = writer.leaf_size_max = max(leaf_size, writer.page_size)
        writer.pages = bolt.meta.high_water
        writer.out_offset = writer.pages * writer.page_size
        writer.values = {}
        writer.kept = {}
        while found:
            writer.kept[cursor.key.data[:cursor.key.size]] = (
                cursor.value.data[:cursor.value.size])
            found = cursor.to_next()
        writer.handle = disk.open(bolt.path)
        return writer

    def __dealloc__(self):
        cdef int level
        node_free(&self.leaf)
        for level in range(BRANCH_LEVELS_MAX):
            node_free(&self.branches[level])
        buffer_free(&self.out)
        buffer_free(&self.places)
        buffer_free(&self.last_key)

    def close(self):
        """Give the file back; what was not finished is no bbolt file."""
        cdef int64_t handle = self.handle
        self.handle = -1
        if handle >= 0:
            self.disk.close(handle)

    # --- buckets ------------------------------------------------------------------------------

    def begin(
            self, bytes name, uint64_t sequence=0, *, bint places=False, uint64_t leaf_size=0):
        """Begin a bucket; with `places` it is told where each pair lies. It may have leaves of
        another size than the others.
        """
        if self.bucket is not None or name in self.values or self.handle < 0:
            raise Fatal(f"{self.path}: bucket {name!r} can't begin: {self.bucket!r} is open, or "
                        "the file is closed, or it was there before")
        if not 1 <= len(name) <= KEY_BYTES_MAX:
            raise Fatal(f"{self.path}: no bucket has a name of {len(name)} bytes")
        self.bucket = name
        self.sequence = sequence
        self.wants_places = places
        self.leaf_size = max(leaf_size, self.page_size) if leaf_size else self.leaf_size_max
        self.last_key.size = 0
        if places:
            self.places.size = 0

    def extend(self, bytes name, *, bint places=False):
        """Begin a bucket behind what the file has of it: it has pages there.

        The branches on its right edge are written anew, its leaves stay.
        """
        cdef Bucket bucket
        cdef Cursor cursor = Cursor.__new__(Cursor)
        cdef Frame *frame
        cdef int level
        cdef uint32_t i
        if self.bolt is None or not self.bolt.has_pages(name):
            raise Fatal(f"{self.path}: bucket {name!r} can't be gone on with")
        self.bolt.find_bucket(Span(<const uint8_t *>name, len(name)), &bucket)
        self.begin(name, bucket.sequence, places=places)
        cursor.over(self.bolt, bucket)
        cursor.to_last()
        buffer_append(&self.last_key, cursor.key.data, cursor.key.size)
        for level in range(cursor.depth):
            frame = &cursor.frames[cursor.depth - 1 - level]
            # The last child of an upper branch is one of those that are written anew.
            for i in range(frame.count - (1 if level else 0)):
                node_add(&self.branches[level], 0, branch_key(frame.page, i), 0,
                         branch_child(frame.page, i))
        if cursor.depth == 0:
            node_add(
                &self.branches[0], 0, leaf_key(cursor.frames[0].page, 0), 0, bucket.root)
        self.levels = max(cursor.depth, 1)
        self.extending = True

    def put(self, bytes key, bytes value):
        """Append a pair to the open bucket; its key is above all before it."""
        if self.bucket is None:
            raise Fatal(f"{self.path}: key {key!r} has no bucket")
        self.push(Span(<const uint8_t *>key, len(key)), Span(<const uint8_t *>value, len(value)))

    cdef int push(self, Span key, Span value) except -1 nogil:
        cdef uint8_t *place
        if value.size > VALUE_BYTES_MAX:
            with gil:
                raise Fatal(f"{self.path}: no value has {value.size} bytes")
        place = self.reserve(key, <uint32_t>value.size)
        if value.size:
            memcpy(place, value.data, value.size)
        return 0

    cdef uint8_t *reserve(self, Span key, uint32_t value_size) except NULL nogil:
        cdef Span last = Span(self.last_key.data, self.last_key.size)
        if (self.failed or not 1 <= key.size <= KEY_BYTES_MAX or value_size > VALUE_BYTES_MAX
                or (last.size and compare_keys(last, key) >= 0)):
            with gil:
                raise Fatal(
                    f"{self.path}: a key of {key.size} and value of {value_size} bytes can't be "
                    f"written after key {last.data[:last.size]!r}, or a write failed before")
        self.last_key.size = 0
        buffer_append(&self.last_key, key.data, key.size)
        return self.add(0, key, value_size)

    cdef int keep_leaf(self, Span key, uint64_t page) except -1 nogil:
        cdef Span last = Span(self.last_key.data, self.last_key.size)
        if last.size and compare_keys(last, key) >= 0:
            with gil:
                raise Fatal(f"{self.path}: page {page} can't come after {last.data[:last.size]!r}")
        if self.leaf.count:
            self.close_leaf()
        self.last_key.size = 0
        buffer_append(&self.last_key, key.data, key.size)
        return self.add_child(0, key, page)

    def end(self):
        """End the open bucket."""
        if self.bucket is None or self.failed:
            raise Fatal(f"{self.path}: no bucket is open, or a write failed before")
        if self.extending and self.leaf.count == 0:
            # Nothing came: what the file has of it stays.
            self.drop_branches()
            self.extending = False
            self.bucket = None
            return
        value = None if self.wants_places else self.inline_value()
        if value is None:
            value = self.end_tree().to_bytes(8, "little") + self.sequence.to_bytes(8, "little")
        self.values[self.bucket] = value
        self.extending = False
        self.bucket = None

    cdef void drop_branches(self) noexcept nogil:
        """Forget the open branches."""
        cdef int level
        for level in range(self.levels):
            node_drop(&self.branches[level], 0)
        self.levels = 0

    cdef bytes inline_value(self):
        """The open bucket as a value that holds its page; None when that would be too large."""
        cdef bytearray value
        cdef uint8_t *at
        if self.levels or node_size(&self.leaf) > self.page_size // 4:
            return None
        value = bytearray(BUCKET_BYTES + node_size(&self.leaf))
        at = <uint8_t *>value
        store_le64(at + 8, self.sequence)
        node_encode(&self.leaf, at + BUCKET_BYTES, 0, 0, True)
        node_drop(&self.leaf, 0)
        return bytes(value)

    def take_places(self):
        """The file offsets of the pairs whose leaves were closed since the last call."""
        cdef size_t at
        offsets = [load_le64(self.places.data + at) for at in range(0, self.places.size, 8)]
        self.places.size = 0
        return offsets

    def finish(self):
        """Write what is left, sync it, write and sync the metas, close; the file's size."""
        cdef Span key
        cdef uint8_t *place
        cdef uint64_t root
        cdef uint64_t freelist = NO_FREELIST
        if self.bucket is not None or self.handle < 0 or self.failed:
            raise Fatal(f"{self.path}: it can't be finished: bucket {self.bucket!r} is open, or "
                        "the file is closed, or a write failed before")
        self.wants_places = False
        self.leaf_size = self.leaf_size_max
        for name, value in sorted({**self.kept, **self.values}.items()):
            key = Span(<const uint8_t *>(<bytes>name), len(name))
            place = self.add(ELEMENT_BUCKET, key, len(value))
            memcpy(place, <const uint8_t *>(<bytes>value), len(value))
        root = self.end_tree()
        if self.with_freelist:
            freelist = self.pages
            buffer_reserve(&self.out, self.page_size)
            memset(self.out.data + self.out.size, 0, self.page_size)
            encode_header(self.out.data + self.out.size, freelist, PAGE_FREELIST, 0, 0)
            self.out.size += self.page_size
            self.pages += 1
        with nogil:
            self.flush()
        self.sync()
        self.write_metas(root, freelist)
        self.sync()
        self.finished = True
        self.close()
        return self.pages * self.page_size

    @property
    def piece_waits(self):
        """Whether `write_piece` has enough to do."""
        return self.out.size >= WRITE_PIECE

    def write_piece(self):
        """Write the pages that have gathered, at a pace that leaves room for others' syncs."""
        with nogil:
            self.flush()

    cdef int maybe_flush(self) except -1 nogil:
        return self.flush() if self.out.size >= WRITE_PIECE else 0

    # --- the tree of one bucket ---------------------------------------------------------------

    cdef uint8_t *add(self, uint32_t flags, Span key, uint64_t value_size) except NULL nogil:
        """Append an element to the open leaf, after closing it when that is full."""
        cdef uint64_t size = node_size(&self.leaf) + ELEMENT_BYTES + key.size + value_size
        if self.leaf.count and (size > self.leaf_size or self.leaf.count == ELEMENTS_MAX):
            self.close_leaf()
        return node_add(&self.leaf, flags, key, <uint32_t>value_size, 0)

    cdef int close_leaf(self) except -1 nogil:
        """Give the open leaf its page, and its parent an element."""
        cdef uint64_t id = self.write_node(&self.leaf, True)
        self.add_child(0, node_first_key(&self.leaf), id)
        node_drop(&self.leaf, 0)
        return 0

    cdef int add_child(self, int level, Span key, uint64_t child) except -1 nogil:
        """Append a child to the open branch of a level, after closing that when it is full.

        The last child of a full branch stays for the next one, which so never has only one.
        """
        cdef Node *node = &self.branches[level]
        cdef Node rest
        cdef uint64_t size = node_size(node) + ELEMENT_BYTES + key.size
        cdef uint64_t id
        if level == self.levels:
            self.levels += 1
        if node.count > 2 and (size > self.page_size or node.count == ELEMENTS_MAX):
            # The node but its last element, over the same memory.
            rest = node[0]
            rest.count -= 1
            rest.data.size -= (<NodeElement *>node.elements.data)[rest.count].key_size
            id = self.write_node(&rest, False)
            self.add_child(level + 1, node_first_key(node), id)
            node_drop(node, 1)
        node_add(node, 0, key, 0, child)
        return 0

    cdef uint64_t end_tree(self) except 0 nogil:
        """Give all open nodes their pages; the page of the root."""
        cdef uint64_t id
        cdef int level = 0
        if self.levels == 0:
            id = self.write_node(&self.leaf, True)
            node_drop(&self.leaf, 0)
            return id
        if self.leaf.count:
            self.close_leaf()
        if self.levels == 1 and self.branches[0].count == 1:
            # All that is left is a leaf that was there before.
            id = (<const NodeElement *>self.branches[0].elements.data).child
            self.drop_branches()
            return id
        while True:
            id = self.write_node(&self.branches[level], False)
            if level + 1 < self.levels:
                self.add_child(level + 1, node_first_key(&self.branches[level]), id)
            node_drop(&self.branches[level], 0)
            level += 1
            if level == self.levels:
                break
        self.levels = 0
        return id

    # --- output -------------------------------------------------------------------------------

    cdef uint64_t write_node(self, Node *node, bint is_leaf) except 0 nogil:
        """Put a node behind what was written; its page."""
        cdef uint64_t id = self.pages
        cdef uint64_t size = node_size(node)
        cdef uint64_t count = (size + self.page_size - 1) // self.page_size
        cdef uint8_t *page
        buffer_reserve(&self.out, count * self.page_size)
        page = self.out.data + self.out.size
        node_encode(node, page, id, <uint32_t>(count - 1), is_leaf)
        memset(page + size, 0, count * self.page_size - size)
        if is_leaf and self.wants_places:
            self.note_places(id * self.page_size)
        self.out.size += count * self.page_size
        self.pages += count
        if not self.deferred:
            self.maybe_flush()
        return id

    cdef int note_places(self, uint64_t offset) except -1 nogil:
        """Tell where the pairs of the open leaf lie: its page lies at `offset`."""
        cdef const NodeElement *element = <const NodeElement *>self.leaf.elements.data
        cdef uint64_t at = offset + HEADER_BYTES + ELEMENT_BYTES * <uint64_t>self.leaf.count
        cdef uint32_t _
        buffer_reserve(&self.places, 8 * <size_t>self.leaf.count)
        for _ in range(self.leaf.count):
            store_le64(self.places.data + self.places.size, at)
            self.places.size += 8
            at += element.key_size + element.value_size
            element += 1
        return 0

    cdef int flush(self) except -1 nogil:
        """Write the pages that have gathered."""
        cdef int64_t result
        cdef size_t piece
        cdef size_t at = 0
        if self.out.size == 0:
            return 0
        if self.failed or self.handle < 0:
            with gil:
                raise Fatal(f"{self.path}: a write failed before, or the file is closed")
        while at < self.out.size:
            piece = self.out.size - at
            if self.deferred:
                piece = min(piece, <size_t>PACED_PIECE)
            result = self.disk.file_write(
                self.handle, self.out.data + at, piece, self.out_offset + at)
            if result < 0:
                self.failed = True
                with gil:
                    raise DiskError("write", self.path, -result)
            if self.deferred:
                self.disk.file_pace(self.handle, self.out_offset + at, piece)
            at += piece
        if self.sums is not None and self.out_offset >= self.sums.start:
            self.sums.take(self.out_offset, self.out.data, self.out.size)
        self.out_offset += self.out.size
        self.out.size = 0
        return 0

    cdef int write_metas(self, uint64_t root, uint64_t freelist) except -1:
        cdef Meta meta = Meta(
            <uint32_t>self.page_size, root, 0, freelist, self.pages, self.transaction)
        cdef Meta before = meta
        cdef bytearray pages = bytearray(PAGE_FIRST * self.page_size)
        cdef uint8_t *at = <uint8_t *>pages
        if self.bolt is not None:
            # The other meta still names what was there before.
            encode_meta_page(at, &meta)
            self.out_offset = (meta.transaction & 1) * self.page_size
            buffer_append(&self.out, at, self.page_size)
            with nogil:
                return self.flush()
        before.transaction -= 1
        encode_meta_page(at + (meta.transaction & 1) * self.page_size, &meta)
        encode_meta_page(at + (before.transaction & 1) * self.page_size, &before)
        self.out_offset = 0
        buffer_append(&self.out, at, PAGE_FIRST * self.page_size)
        return self.flush()

    cdef int sync(self) except -1:
        cdef int64_t result
        with nogil:
            result = self.disk.file_datasync(self.handle)
        if result < 0:
            self.failed = True
            raise DiskError("fdatasync", self.path, -result)
        return 0
