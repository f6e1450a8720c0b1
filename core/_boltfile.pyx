"""A bbolt file as it is on the disk, read page by page: a disk that fails is an error, no signal.

Rules:
1. The meta says which tree is read; pages that it names must not change meanwhile.
2. A cursor is `_bolt.pyx`'s and believes no more than that does. It holds the pages on its way and
   no others, and reads a page again when it comes there again.
3. The file is held open: whoever replaces it takes only its name.
"""

from cython cimport no_gc_clear
from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint8_t, uint64_t

from quorate.core._boltpage cimport (
    ELEMENT_BYTES, HEADER_BYTES, PAGE_FIRST, PAGE_LEAF, branch_child, branch_key, page_count,
    page_flags, page_overflow,
)
from quorate.core._bolt cimport Frame, fill_frame, inspect_bounds, inspect_page
from quorate.core._bytes cimport buffer_free, buffer_reserve, load_le32

from quorate.core._disk import DiskError

cdef enum:
    # A page that says it is larger is asked for more than its word before memory is given to it.
    UNSEEN_BYTES_MAX = 1024 * 1024

cdef Span NO_BOUND = Span(NULL, 0)


@no_gc_clear  # or the disk would be gone when the handle is given back to it
cdef class OpenFile:
    """A file that stays open as long as somebody has this."""

    def __cinit__(self):
        self.handle = -1

    def __init__(self, Disk disk not None, str path not None):
        """Raises DiskError."""
        assert self.handle < 0, "it is open"
        self.disk = disk
        self.path = path
        self.handle = disk.open(path)

    def __dealloc__(self):
        if self.handle >= 0:
            self.disk.file_close(self.handle)

    cdef int read(self, uint8_t *data, size_t size, uint64_t offset) except -1 nogil:
        cdef int64_t got = self.disk.file_read(self.handle, data, size, offset)
        if got < 0 or <uint64_t>got < size:
            with gil:
                raise DiskError("read", self.path, -got if got < 0 else EIO)
        return 0

    def bolt(self, uint64_t page_size, int other=-1):
        """The file as its metas say; `other` is the one that is not looked at, because it may be
        being written. Only the metas are there, no other page. Raises BoltError, DiskError.
        """
        cdef uint64_t size = self.disk.size(self.handle, self.path)
        cdef bytearray metas = bytearray(min(size, PAGE_FIRST * page_size))
        cdef uint8_t *at = <uint8_t *>metas
        self.read(at, len(metas), 0)
        if other >= 0:
            metas[other * page_size:(other + 1) * page_size] = bytes(page_size)
        return Bolt.over(at, size, self.path, metas)


cdef class FileCursor(Cursor):
    """A place in a bucket of an open file."""

    def __init__(self, OpenFile file not None, Bolt bolt not None):
        """In the bucket that holds the buckets, as `OpenFile.bolt` found it."""
        self.file = file
        self.over(bolt, bolt.root_bucket())

    def __dealloc__(self):
        cdef int depth
        for depth in range(LEVELS_MAX):
            buffer_free(&self.pages[depth])

    cdef int enter_root(self) except -1 nogil:
        """Enter the bucket's first page."""
        self.depth = -1
        if self.bucket.page.data != NULL:
            self.bolt.enter_bucket(&self.frames[0], &self.bucket)
        else:
            self.load(0, self.bucket.root, NO_BOUND, NO_BOUND)
        self.depth = 0
        return 0

    cdef int down(self) except -1 nogil:
        """Enter the child at the place in the page at `depth`."""
        cdef int depth = self.depth
        cdef Frame *parent = &self.frames[depth]
        cdef Span high = parent.high
        self.depth = -1
        if depth + 1 == LEVELS_MAX:
            return self.bolt.refuse(parent.id, b"the tree is deeper than any can be")
        if parent.index + 1 < parent.count:
            high = branch_key(parent.page, parent.index + 1)
        self.load(depth + 1, branch_child(parent.page, parent.index),
                  branch_key(parent.page, parent.index), high)
        self.depth = depth + 1
        return 0

    cdef int load(self, int depth, uint64_t id, Span low, Span high) except -1 nogil:
        """Read a page, check it, and make it the frame at `depth`."""
        cdef Buffer *page = &self.pages[depth]
        cdef const char *reason
        cdef uint64_t page_size = self.bolt.meta.page_size
        cdef uint64_t rest
        cdef uint64_t size
        if not PAGE_FIRST <= id < self.bolt.meta.high_water:
            return self.bolt.refuse(id, b"it is referred to and is no page of the file")
        page.size = 0
        buffer_reserve(page, page_size)
        self.file.read(page.data, page_size, id * page_size)
        rest = page_overflow(page.data)
        if rest >= self.bolt.meta.high_water - id:
            return self.bolt.refuse(id, b"it goes on behind the last page of the file")
        size = (rest + 1) * page_size
        if size > UNSEEN_BYTES_MAX and self.node_size(page.data, id) <= rest * page_size:
            return self.bolt.refuse(id, b"it takes more pages than its elements need")
        if rest:
            page.size = page_size
            buffer_reserve(page, rest * page_size)
            self.file.read(page.data + page_size, rest * page_size, (id + 1) * page_size)
        self.bytes_read += size
        reason = inspect_page(page.data, id, &self.bolt.meta)
        if reason == NULL:
            fill_frame(&self.frames[depth], page.data, id)
            reason = inspect_bounds(&self.frames[depth], low, high)
        if reason != NULL:
            return self.bolt.refuse(id, reason)
        return 0

    cdef uint64_t node_size(self, const uint8_t *page, uint64_t id) except? 0 nogil:
        """What the last element of a leaf says of all its size, before that is believed."""
        cdef uint8_t[ELEMENT_BYTES] last
        cdef uint64_t at = HEADER_BYTES + ELEMENT_BYTES * (<uint64_t>page_count(page) - 1)
        if page_count(page) == 0 or page_flags(page) != PAGE_LEAF:
            return 0
        self.file.read(&last[0], ELEMENT_BYTES, id * self.bolt.meta.page_size + at)
        return at + load_le32(&last[4]) + load_le32(&last[8]) + load_le32(&last[12])
