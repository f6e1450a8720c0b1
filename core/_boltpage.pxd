# cython: language_level=3
"""The pages of a bbolt file, inline: their layout, loads, and the encoders that writers share.

All numbers are little-endian, no address is aligned (an inline bucket's page lies anywhere in a
value). A page is a header of 16 bytes, one element of 16 bytes for each key, then keys and values
without gaps in the order of the elements: so an element's position is known before it is read.

    header   id u64, flags u16, count u16, overflow u32
    leaf     flags u32, position u32, key size u32, value size u32; the value follows its key
    branch   position u32, key size u32, page id u64
    meta     magic u32, version u32, page size u32, flags u32, root {page id u64, sequence u64},
             freelist u64, high water u64, transaction u64, FNV-1a of all that u64
    bucket   root u64, sequence u64; with root 0 its one leaf page follows

A position counts from the beginning of its element. A page of `overflow` n takes n + 1 page ids.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from quorate.core._bytes cimport load_le32, load_le64, store_le32, store_le64
from quorate.core._protobuf cimport Span

cdef extern from *:
    """
    #define QUORATE_BOLT_MAGIC 0xED0CDAEDu
    #define QUORATE_BOLT_NO_FREELIST 0xFFFFFFFFFFFFFFFFull
    #define QUORATE_FNV_START 0xCBF29CE484222325ull
    #define QUORATE_FNV_PRIME 0x100000001B3ull
    """
    const uint32_t META_MAGIC "QUORATE_BOLT_MAGIC"
    # In place of the freelist's page: who writes the file finds the free pages by looking.
    const uint64_t NO_FREELIST "QUORATE_BOLT_NO_FREELIST"
    const uint64_t FNV_START "QUORATE_FNV_START"
    const uint64_t FNV_PRIME "QUORATE_FNV_PRIME"

cdef enum:
    HEADER_BYTES = 16
    ELEMENT_BYTES = 16
    BUCKET_BYTES = 16
    META_BYTES = 64
    META_SUMMED_BYTES = 56
    META_VERSION = 2
    PAGE_BRANCH = 0x01
    PAGE_LEAF = 0x02
    PAGE_META = 0x04
    PAGE_FREELIST = 0x10
    # The flag of a leaf element whose value is a bucket.
    ELEMENT_BUCKET = 0x01
    PAGE_BYTES_MIN = 512
    PAGE_BYTES_MAX = 65536
    # The format's own limits.
    KEY_BYTES_MAX = 32768
    VALUE_BYTES_MAX = 0x7FFFFFFE
    ELEMENTS_MAX = 0xFFFE
    # A freelist's count that says: the count is the first of the numbers.
    COUNT_INSIDE = 0xFFFF
    # The first page that is no meta.
    PAGE_FIRST = 2


cdef struct Meta:
    uint32_t page_size
    uint64_t root           # page of the bucket of buckets
    uint64_t sequence       # of the bucket of buckets
    uint64_t freelist       # its page, or NO_FREELIST
    uint64_t high_water     # pages from here on were never used
    uint64_t transaction


cdef inline uint32_t load_le16(const uint8_t *at) noexcept nogil:
    return at[0] | <uint32_t>at[1] << 8


cdef inline uint64_t page_id(const uint8_t *page) noexcept nogil:
    return load_le64(page)


cdef inline uint32_t page_flags(const uint8_t *page) noexcept nogil:
    return load_le16(page + 8)


cdef inline uint32_t page_count(const uint8_t *page) noexcept nogil:
    return load_le16(page + 10)


cdef inline uint64_t page_overflow(const uint8_t *page) noexcept nogil:
    return load_le32(page + 12)


cdef inline Span branch_key(const uint8_t *page, uint32_t index) noexcept nogil:
    """The key of an element of a branch page that was checked."""
    cdef const uint8_t *element = page + HEADER_BYTES + ELEMENT_BYTES * <size_t>index
    return Span(element + load_le32(element), load_le32(element + 4))


cdef inline uint64_t branch_child(const uint8_t *page, uint32_t index) noexcept nogil:
    return load_le64(page + HEADER_BYTES + ELEMENT_BYTES * <size_t>index + 8)


cdef inline uint32_t leaf_flags(const uint8_t *page, uint32_t index) noexcept nogil:
    return load_le32(page + HEADER_BYTES + ELEMENT_BYTES * <size_t>index)


cdef inline Span leaf_key(const uint8_t *page, uint32_t index) noexcept nogil:
    """The key of an element of a leaf page that was checked."""
    cdef const uint8_t *element = page + HEADER_BYTES + ELEMENT_BYTES * <size_t>index
    return Span(element + load_le32(element + 4), load_le32(element + 8))


cdef inline Span leaf_value(const uint8_t *page, uint32_t index) noexcept nogil:
    """The value of an element of a leaf page that was checked."""
    cdef const uint8_t *element = page + HEADER_BYTES + ELEMENT_BYTES * <size_t>index
    return Span(element + load_le32(element + 4) + load_le32(element + 8), load_le32(element + 12))


cdef inline int compare_keys(Span left, Span right) noexcept nogil:
    """Below, at or above 0, as `left` is below, equal to or above `right`."""
    cdef int order = memcmp(left.data, right.data, min(left.size, right.size))
    if order:
        return order
    return (left.size > right.size) - (left.size < right.size)


cdef inline bint all_zero(const uint8_t *at, size_t size) noexcept nogil:
    return size == 0 or (at[0] == 0 and memcmp(at, at + 1, size - 1) == 0)


cdef inline uint64_t meta_sum(const uint8_t *meta) noexcept nogil:
    """FNV-1a, 64 bits, of a meta up to its sum."""
    cdef uint64_t total = FNV_START
    cdef int at
    for at in range(META_SUMMED_BYTES):
        total = (total ^ meta[at]) * FNV_PRIME
    return total


cdef inline Meta load_meta(const uint8_t *at) noexcept nogil:
    """The fields behind a meta page's header; nothing is checked."""
    return Meta(
        load_le32(at + 8), load_le64(at + 16), load_le64(at + 24), load_le64(at + 32),
        load_le64(at + 40), load_le64(at + 48))


cdef inline void encode_header(
        uint8_t *page, uint64_t id, uint32_t flags, uint32_t count,
        uint32_t overflow) noexcept nogil:
    store_le64(page, id)
    store_le32(page + 8, flags | count << 16)
    store_le32(page + 12, overflow)


cdef inline void encode_leaf_element(
        uint8_t *element, uint32_t flags, uint32_t position, uint32_t key_size,
        uint32_t value_size) noexcept nogil:
    store_le32(element, flags)
    store_le32(element + 4, position)
    store_le32(element + 8, key_size)
    store_le32(element + 12, value_size)


cdef inline void encode_branch_element(
        uint8_t *element, uint32_t position, uint32_t key_size, uint64_t child) noexcept nogil:
    store_le32(element, position)
    store_le32(element + 4, key_size)
    store_le64(element + 8, child)


cdef inline void encode_meta_page(uint8_t *page, const Meta *meta) noexcept nogil:
    """A whole page of `meta.page_size` bytes: the one that the transaction's number names."""
    cdef uint8_t *at = page + HEADER_BYTES
    memset(page, 0, meta.page_size)
    encode_header(page, meta.transaction & 1, PAGE_META, 0, 0)
    store_le32(at, META_MAGIC)
    store_le32(at + 4, META_VERSION)
    store_le32(at + 8, meta.page_size)
    store_le64(at + 16, meta.root)
    store_le64(at + 24, meta.sequence)
    store_le64(at + 32, meta.freelist)
    store_le64(at + 40, meta.high_water)
    store_le64(at + 48, meta.transaction)
    store_le64(at + META_SUMMED_BYTES, meta_sum(at))
