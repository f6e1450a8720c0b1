# cython: language_level=3
"""Memory for the store: blocks of many sizes in mapped chunks. See `_arena.pyx`."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    CHUNK_SIZE = 4194304        # bytes; mapped at a multiple of itself: an address tells its chunk
    PAGE_SIZE = 4096            # bytes
    CHUNK_PAGES = 1024          # the first holds the chunk's head
    BLOCK_GRAIN = 8             # bytes; sizes and addresses of blocks are multiples
    SMALL_SIZE_MAX = 1024       # bytes; up to here there is a class for every multiple of the grain
    SPAN_PAGES = 16             # pages of a span that is cut into blocks
    SPAN_BLOCKS_MIN = 4         # a span holds at least so many; larger blocks get their own span
    SPAN_BLOCKS_CUT = 63        # blocks in a span of the first class above SMALL_SIZE_MAX
    IDLE_BYTES_MAX = 4194304    # free pages that stay in memory
    CLASSES = 188               # 128 small ones, then spans cut into 63, 62 ... 4 equal blocks


cdef struct Span:
    # The head of consecutive pages that hold blocks of one class, or one large block.
    Span *next                  # in the list of the class's spans that have a free block
    Span *prior
    void *freed                 # list of blocks given back
    uint32_t block_size         # bytes
    uint32_t capacity           # blocks
    uint32_t used               # blocks given out
    uint32_t fresh              # blocks from this one on were never given out
    uint32_t pages
    uint32_t size_class         # CLASSES = one large block


cdef struct Chunk:
    uint32_t slot               # in the arena's table
    uint32_t reserved
    uint16_t[CHUNK_PAGES] owner     # for each page the first page of its span; 0 = free
    uint8_t[CHUNK_PAGES] idle       # 1 = free, but still in memory


cdef struct ChunkEntry:
    Chunk *chunk
    uint32_t pages_free
    uint32_t run_max            # no run of free pages is longer than this


cdef struct Huge:
    # The head of a block that no chunk can hold; it has its own mapping.
    Huge *next
    Huge *prior
    size_t mapped


cdef class Arena:
    cdef readonly uint64_t mapped_bytes     # of all chunks and huge blocks
    cdef readonly uint64_t span_bytes       # of all spans, huge blocks and heads
    cdef readonly uint64_t idle_bytes       # of free pages that are still in memory
    cdef readonly uint64_t used_bytes       # of all blocks given out, rounded to their class
    cdef readonly uint64_t blocks           # given out
    cdef Span *partial[CLASSES]            # per class: spans that have a free block
    cdef ChunkEntry *chunks                 # in the process's heap
    cdef size_t chunk_count
    cdef size_t chunk_capacity
    cdef size_t empty_chunks
    cdef Huge *huge
    cdef int owner_pid                      # a forked child has this object, but not the memory

    # Sizes in bytes; a block is given back with the size it was asked for.
    cdef void *allocate(self, size_t size) noexcept nogil       # NULL when memory is exhausted
    cdef void release(self, void *block, size_t size) noexcept nogil

    # Private.
    cdef void *_allocate_huge(self, size_t size) noexcept nogil
    cdef void _release_huge(self, void *block) noexcept nogil
    cdef Span *_new_span(self, uint32_t pages) noexcept nogil
    cdef void _release_span(self, Span *span) noexcept nogil
    cdef bint _map_chunk(self) noexcept nogil
    cdef void _unmap_chunk(self, Chunk *chunk) noexcept nogil
    cdef tuple _check_chunk(self, ChunkEntry *entry)


cdef class Blocks:
    cdef readonly Arena arena
    cdef dict held              # number -> (address, size)
    cdef int serial             # of the newest block
