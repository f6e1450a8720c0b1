"""Memory for the store: blocks of many sizes in mapped chunks that no fork copies.

Rules:
1. Chunks are anonymous mappings of 4 MiB marked MADV_DONTFORK: a worker that is forked from the
   core gets neither the data nor the cost of copying its page tables. In a child the arena must
   not be used.
2. A chunk is divided into spans of whole pages. A span holds blocks of one size class, or one
   large block. What no chunk can hold has a mapping of its own.
3. A block has no head of its own: its span is found through its address, and who gives it back
   says its size.
4. Free pages are used again first. More than IDLE_BYTES_MAX of them go back to the operating
   system at once: a page fault is little beside the requests that fill the page. An empty chunk is
   unmapped when there is another empty one. Of each size class one empty span may stay, so that a
   block taken and given back in turn costs nothing.
5. Rounding: 8 bytes up to 1 KiB, then at most 1/n of a block that is cut n times from a span of
   64 KiB, n >= 4, and whole pages above.
6. No block moves. Nothing here is thread safe.
7. AddressSanitizer is told what is no block, or none any more: it knows nothing of mappings.

Chunks do not ask for huge pages: a random read would be a third faster, but the first touch of
each stalls the caller for as long as a thousand small faults take (6 ms in a virtual machine).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)
from posix.unistd cimport getpid

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *address, size_t size, int advice)
    int MADV_DONTFORK
    int MADV_DONTNEED
    int MADV_HUGEPAGE

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #define quorate_forbid(at, size) __asan_poison_memory_region(at, size)
    #define quorate_allow(at, size) __asan_unpoison_memory_region(at, size)
    #else
    #define quorate_forbid(at, size) ((void)(at), (void)(size))
    #define quorate_allow(at, size) ((void)(at), (void)(size))
    #endif
    """
    void quorate_forbid(const void *at, size_t size) noexcept nogil
    void quorate_allow(const void *at, size_t size) noexcept nogil

cdef enum:
    SMALL_CLASSES = SMALL_SIZE_MAX // BLOCK_GRAIN
    SPAN_BODY = SPAN_PAGES * PAGE_SIZE - sizeof(Span)
    BLOCK_SIZE_MAX = SPAN_BODY // SPAN_BLOCKS_MIN // BLOCK_GRAIN * BLOCK_GRAIN
    LARGE_SIZE_MAX = (CHUNK_PAGES - 1) * PAGE_SIZE - sizeof(Span)


cdef inline Chunk *chunk_of(const void *address) noexcept nogil:
    return <Chunk *>(<uintptr_t>address & ~<uintptr_t>(CHUNK_SIZE - 1))


cdef inline uint32_t page_of(const void *address) noexcept nogil:
    return <uint32_t>((<uintptr_t>address & (CHUNK_SIZE - 1)) // PAGE_SIZE)


cdef inline Span *span_of(const void *block) noexcept nogil:
    cdef Chunk *chunk = chunk_of(block)
    return <Span *>(<uint8_t *>chunk + <size_t>chunk.owner[page_of(block)] * PAGE_SIZE)


cdef inline uint32_t class_of(size_t size) noexcept nogil:
    """The size class of blocks of `size` bytes, a multiple of the grain and not too large."""
    if size <= SMALL_SIZE_MAX:
        return <uint32_t>(size // BLOCK_GRAIN - 1)
    return <uint32_t>(SMALL_CLASSES + SPAN_BLOCKS_CUT - SPAN_BODY // size)


cdef inline uint32_t class_block_size(uint32_t size_class) noexcept nogil:
    if size_class < SMALL_CLASSES:
        return (size_class + 1) * BLOCK_GRAIN
    return <uint32_t>(
        SPAN_BODY // (SPAN_BLOCKS_CUT - (size_class - SMALL_CLASSES)) // BLOCK_GRAIN * BLOCK_GRAIN
    )


cdef inline size_t round_up(size_t size, size_t unit) noexcept nogil:
    return (size + unit - 1) // unit * unit


cdef class Arena:
    """Blocks of memory that only this process sees."""

    def __cinit__(self):
        self.owner_pid = getpid()

    def __dealloc__(self):
        cdef size_t i
        # A child that was forked from the owner has these mappings no more, and others may stand
        # in their place.
        if self.owner_pid == getpid():
            while self.huge != NULL:
                self._release_huge(self.huge + 1)
            for i in range(self.chunk_count):
                quorate_allow(self.chunks[i].chunk, CHUNK_SIZE)
                munmap(self.chunks[i].chunk, CHUNK_SIZE)
        free(self.chunks)

    cdef void *allocate(self, size_t size) noexcept nogil:
        """A block of at least `size` bytes with any content, or NULL when memory is exhausted."""
        cdef uint32_t size_class
        cdef Span *span
        cdef void *block
        cdef size_t asked = size
        size = round_up(size or 1, BLOCK_GRAIN)
        if size > LARGE_SIZE_MAX:
            return self._allocate_huge(size)
        if size > BLOCK_SIZE_MAX:
            span = self._new_span(<uint32_t>(round_up(size + sizeof(Span), PAGE_SIZE) // PAGE_SIZE))
            if span == NULL:
                return NULL
            span.size_class = CLASSES
            span.block_size = span.pages * PAGE_SIZE - <uint32_t>sizeof(Span)
            span.capacity = span.fresh = 1
            block = span + 1
        else:
            size_class = class_of(size)
            span = self.partial[size_class]
            if span == NULL:
                span = self._new_span(SPAN_PAGES)
                if span == NULL:
                    return NULL
                span.size_class = size_class
                span.block_size = class_block_size(size_class)
                span.capacity = SPAN_BODY // span.block_size
                quorate_forbid(span + 1, SPAN_BODY)
                self.partial[size_class] = span
            block = span.freed
            if block != NULL:
                span.freed = (<void **>block)[0]
            else:
                block = <uint8_t *>(span + 1) + <size_t>span.fresh * span.block_size
                span.fresh += 1
            quorate_forbid(block, size)
            quorate_allow(block, asked)
            if span.used + 1 == span.capacity:
                self.partial[size_class] = span.next
                if span.next != NULL:
                    span.next.prior = NULL
                span.next = NULL
        span.used += 1
        self.used_bytes += span.block_size
        self.blocks += 1
        return block

    cdef void release(self, void *block, size_t size) noexcept nogil:
        """Take a block back; `size` is what `allocate` was asked for."""
        cdef Span *span
        cdef Span *first
        if size > LARGE_SIZE_MAX:
            self._release_huge(block)
            return
        span = span_of(block)
        self.used_bytes -= span.block_size
        self.blocks -= 1
        if span.size_class == CLASSES:
            self._release_span(span)
            return
        quorate_forbid(block, span.block_size)
        quorate_allow(block, sizeof(void *))
        (<void **>block)[0] = span.freed
        span.freed = block
        first = self.partial[span.size_class]
        if span.used == span.capacity:
            span.prior = NULL
            span.next = first
            if first != NULL:
                first.prior = span
            self.partial[span.size_class] = first = span
        span.used -= 1
        if span.used == 0 and (first != span or span.next != NULL):
            if span.prior != NULL:
                span.prior.next = span.next
            else:
                self.partial[span.size_class] = span.next
            if span.next != NULL:
                span.next.prior = span.prior
            self._release_span(span)

    cdef void *_allocate_huge(self, size_t size) noexcept nogil:
        cdef size_t mapped = round_up(size + sizeof(Huge), PAGE_SIZE)
        cdef void *at
        cdef Huge *huge
        if mapped < size:
            return NULL
        at = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if at == MAP_FAILED:
            return NULL
        madvise(at, mapped, MADV_DONTFORK)
        huge = <Huge *>at
        huge.mapped = mapped
        huge.prior = NULL
        huge.next = self.huge
        if self.huge != NULL:
            self.huge.prior = huge
        self.huge = huge
        self.mapped_bytes += mapped
        self.span_bytes += mapped
        self.used_bytes += mapped
        self.blocks += 1
        return huge + 1

    cdef void _release_huge(self, void *block) noexcept nogil:
        cdef Huge *huge = <Huge *>block - 1
        cdef size_t mapped = huge.mapped
        if huge.prior != NULL:
            huge.prior.next = huge.next
        else:
            self.huge = huge.next
        if huge.next != NULL:
            huge.next.prior = huge.prior
        self.mapped_bytes -= mapped
        self.span_bytes -= mapped
        self.used_bytes -= mapped
        self.blocks -= 1
        munmap(huge, mapped)

    cdef Span *_new_span(self, uint32_t pages) noexcept nogil:
        """The first run of `pages` free pages; the span's links and counters are zero."""
        cdef size_t slot
        cdef uint32_t page, run, longest, i
        cdef Chunk *chunk
        cdef Span *span
        for slot in range(self.chunk_count + 1):
            if slot == self.chunk_count and not self._map_chunk():
                return NULL
            if self.chunks[slot].run_max < pages:
                continue
            chunk = self.chunks[slot].chunk
            run = longest = 0
            for page in range(<uint32_t>1, <uint32_t>CHUNK_PAGES):
                run = run + 1 if chunk.owner[page] == 0 else 0
                if run > longest:
                    longest = run
                if run == pages:
                    break
            if run != pages:
                self.chunks[slot].run_max = longest
                continue
            if self.chunks[slot].pages_free == CHUNK_PAGES - 1:
                self.empty_chunks -= 1
            page = page + 1 - pages
            for i in range(page, page + pages):
                self.idle_bytes -= PAGE_SIZE * chunk.idle[i]
                chunk.idle[i] = 0
                chunk.owner[i] = <uint16_t>page
            self.chunks[slot].pages_free -= pages
            self.span_bytes += pages * PAGE_SIZE
            span = <Span *>(<uint8_t *>chunk + <size_t>page * PAGE_SIZE)
            memset(span, 0, sizeof(Span))
            span.pages = pages
            return span
        return NULL

    cdef void _release_span(self, Span *span) noexcept nogil:
        """Give the pages back to the chunk, and to the operating system if enough are idle."""
        cdef Chunk *chunk = chunk_of(span)
        cdef ChunkEntry *entry = &self.chunks[chunk.slot]
        cdef uint32_t page = page_of(span)
        cdef uint32_t pages = span.pages
        cdef size_t size = <size_t>pages * PAGE_SIZE
        self.span_bytes -= size
        quorate_allow(span, size)
        memset(&chunk.owner[page], 0, pages * sizeof(uint16_t))
        if self.idle_bytes + size <= IDLE_BYTES_MAX:
            memset(&chunk.idle[page], 1, pages)
            self.idle_bytes += size
        else:
            madvise(span, size, MADV_DONTNEED)
        entry.pages_free += pages
        entry.run_max = entry.pages_free
        if entry.pages_free == CHUNK_PAGES - 1:
            self.empty_chunks += 1
            if self.empty_chunks > 1:
                self._unmap_chunk(chunk)

    cdef bint _map_chunk(self) noexcept nogil:
        """Add an empty chunk to the end of the table; False when memory is exhausted."""
        cdef void *table
        cdef uint8_t *at
        cdef size_t before
        cdef Chunk *chunk
        if self.chunk_count == self.chunk_capacity:
            table = realloc(self.chunks, (self.chunk_capacity * 2 + 16) * sizeof(ChunkEntry))
            if table == NULL:
                return False
            self.chunks = <ChunkEntry *>table
            self.chunk_capacity = self.chunk_capacity * 2 + 16
        # Twice the size has an aligned chunk inside; what is before and after it is given back.
        at = <uint8_t *>mmap(
            NULL, 2 * CHUNK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
        )
        if at == MAP_FAILED:
            return False
        before = (CHUNK_SIZE - (<uintptr_t>at & (CHUNK_SIZE - 1))) & (CHUNK_SIZE - 1)
        if before:
            munmap(at, before)
        munmap(at + before + CHUNK_SIZE, CHUNK_SIZE - before)
        chunk = <Chunk *>(at + before)
        madvise(chunk, CHUNK_SIZE, MADV_DONTFORK)
        chunk.slot = <uint32_t>self.chunk_count
        self.chunks[self.chunk_count].chunk = chunk
        self.chunks[self.chunk_count].pages_free = CHUNK_PAGES - 1
        self.chunks[self.chunk_count].run_max = CHUNK_PAGES - 1
        self.chunk_count += 1
        self.empty_chunks += 1
        self.mapped_bytes += CHUNK_SIZE
        self.span_bytes += PAGE_SIZE
        return True

    cdef void _unmap_chunk(self, Chunk *chunk) noexcept nogil:
        cdef uint32_t slot = chunk.slot
        cdef uint32_t page
        for page in range(<uint32_t>CHUNK_PAGES):
            self.idle_bytes -= PAGE_SIZE * chunk.idle[page]
        self.chunk_count -= 1
        self.chunks[slot] = self.chunks[self.chunk_count]
        self.chunks[slot].chunk.slot = slot
        self.empty_chunks -= 1
        self.mapped_bytes -= CHUNK_SIZE
        self.span_bytes -= PAGE_SIZE
        munmap(chunk, CHUNK_SIZE)

    def check(self):
        """Walk all chunks, spans and lists; AssertionError when the books are wrong."""
        cdef Huge *huge = self.huge
        cdef Span *span
        cdef size_t slot
        spans, used, blocks, mapped, listed, idle = 0, 0, 0, 0, 0, 0
        while huge != NULL:
            mapped, blocks = mapped + huge.mapped, blocks + 1
            spans, used = spans + huge.mapped, used + huge.mapped
            huge = huge.next
        for slot in range(self.chunk_count):
            assert self.chunks[slot].chunk.slot == slot, slot
            figures = self._check_chunk(&self.chunks[slot])
            spans, used, blocks = spans + figures[0], used + figures[1], blocks + figures[2]
            mapped, listed = mapped + CHUNK_SIZE, listed + figures[3]
            idle += figures[4]
        for size_class in range(CLASSES):
            span = self.partial[size_class]
            _check(span == NULL or span.prior == NULL, "first span of a list", size_class)
            while span != NULL:
                listed -= 1
                _check(<int>span.size_class == size_class, "class of a span", size_class)
                _check(span.used < span.capacity, "a listed span is full", size_class)
                _check(span.next == NULL or span.next.prior == span, "links", size_class)
                span = span.next
        found = (mapped, spans, used, blocks, 0, idle)
        books = (
            self.mapped_bytes, self.span_bytes, self.used_bytes, self.blocks, listed,
            self.idle_bytes,
        )
        _check(found == books, "books", (found, books))

    cdef tuple _check_chunk(self, ChunkEntry *entry):
        cdef Chunk *chunk = entry.chunk
        cdef uint32_t page = 1
        cdef Span *span
        cdef void *freed
        spans, used, blocks, unused, listed, run, longest = PAGE_SIZE, 0, 0, 0, 0, 0, 0
        idle = 0
        while page < CHUNK_PAGES:
            if chunk.owner[page] == 0:
                unused, run, page = unused + 1, run + 1, page + 1
                longest = max(run, longest)
                idle += PAGE_SIZE * chunk.idle[page - 1]
                continue
            span, run = <Span *>(<uint8_t *>chunk + <size_t>page * PAGE_SIZE), 0
            for i in range(page, page + span.pages):
                _check(chunk.owner[i] == page, "owner of a page", (i, chunk.owner[i], page))
                _check(chunk.idle[i] == 0, "a used page is idle", i)
            free_blocks, freed = 0, span.freed
            while freed != NULL:
                _check(span_of(freed) == span, "a freed block of another span", page)
                free_blocks, freed = free_blocks + 1, (<void **>freed)[0]
            _check(span.used + free_blocks == span.fresh <= span.capacity, "blocks", page)
            spans += span.pages * PAGE_SIZE
            used += span.used * span.block_size
            blocks += span.used
            listed += span.used < span.capacity
            page += span.pages
        _check(unused == entry.pages_free, "free pages", (unused, entry.pages_free))
        _check(longest <= entry.run_max, "longest run", (longest, entry.run_max))
        return spans, used, blocks, listed, idle


cdef _check(bint holds, what, where):
    """An `assert` that release builds keep."""
    if not holds:
        raise AssertionError(f"arena: {what}: {where}")


cdef class Blocks:
    """Blocks of an arena by number, for tests: filled, and compared when given back."""

    def __init__(self):
        self.arena = Arena()
        self.held = {}

    def take(self, size_t size):
        """A new block of `size` bytes; answers its number. Raises MemoryError."""
        cdef uint8_t *block = <uint8_t *>self.arena.allocate(size)
        if block == NULL:
            raise MemoryError(f"no memory for a block of {size} bytes")
        self.serial += 1
        memset(block, self.serial & 0xff, size)
        self.held[self.serial] = (<uintptr_t>block, size)
        return self.serial

    def give(self, int number):
        """Give block `number` back; AssertionError when its bytes changed."""
        cdef uintptr_t address
        cdef size_t size, i
        address, size = self.held.pop(number)
        for i in range(size):
            if (<uint8_t *>address)[i] != (number & 0xff):
                raise AssertionError(f"block {number}: byte {i} of {size} changed")
        self.arena.release(<void *>address, size)

    def addresses(self):
        """(address, size) of all blocks held."""
        return sorted(self.held.values())
