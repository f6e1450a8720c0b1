# cython: language_level=3
"""Byte primitives, inline: loads, stores, CRC-32C and a growable buffer.

Nothing here allocates except `buffer_reserve`, nothing needs the GIL, and nothing knows a format.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint32_t load_le32(const uint8_t *p) { uint32_t x; memcpy(&x, p, 4); return x; }
    static inline uint64_t load_le64(const uint8_t *p) { uint64_t x; memcpy(&x, p, 8); return x; }
    static inline void store_le32(uint8_t *p, uint32_t x) { memcpy(p, &x, 4); }
    static inline void store_le64(uint8_t *p, uint64_t x) { memcpy(p, &x, 8); }
    static inline uint32_t load_be32(const uint8_t *p) { return __builtin_bswap32(load_le32(p)); }
    static inline uint64_t load_be64(const uint8_t *p) { return __builtin_bswap64(load_le64(p)); }
    static inline void store_be32(uint8_t *p, uint32_t x) { store_le32(p, __builtin_bswap32(x)); }
    static inline void store_be64(uint8_t *p, uint64_t x) { store_le64(p, __builtin_bswap64(x)); }
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "quorate needs a little-endian machine"
    #endif

    /* CRC-32C (Castagnoli, reflected), as Go's crc32.Update(crc, castagnoli, data). */
    static uint32_t quorate_crc_table[256];
    static inline uint32_t crc32c_portable(uint32_t crc, const uint8_t *p, size_t n) {
        if (!quorate_crc_table[1]) {
            for (uint32_t i = 256; i-- > 0;) {
                uint32_t x = i;
                for (int k = 0; k < 8; k++) x = (x >> 1) ^ (0x82F63B78u & (0u - (x & 1)));
                quorate_crc_table[i] = x;
            }
        }
        crc = ~crc;
        while (n--) crc = quorate_crc_table[(crc ^ *p++) & 0xff] ^ (crc >> 8);
        return ~crc;
    }
    #if defined(__x86_64__)
    __attribute__((target("sse4.2")))
    static inline uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p, size_t n) {
        uint64_t c = (uint32_t)~crc;
        for (; n >= 8; n -= 8, p += 8) c = __builtin_ia32_crc32di(c, load_le64(p));
        for (; n; n--, p++) c = __builtin_ia32_crc32qi((uint32_t)c, *p);
        return ~(uint32_t)c;
    }
    static inline uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
        if (__builtin_cpu_supports("sse4.2")) return crc32c_sse42(crc, p, n);
        return crc32c_portable(crc, p, n);
    }
    #else
    static inline uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
        return crc32c_portable(crc, p, n);
    }
    #endif
    """
    uint32_t load_le32(const uint8_t *p) noexcept nogil
    uint64_t load_le64(const uint8_t *p) noexcept nogil
    uint32_t load_be32(const uint8_t *p) noexcept nogil
    uint64_t load_be64(const uint8_t *p) noexcept nogil
    void store_le32(uint8_t *p, uint32_t x) noexcept nogil
    void store_le64(uint8_t *p, uint64_t x) noexcept nogil
    void store_be32(uint8_t *p, uint32_t x) noexcept nogil
    void store_be64(uint8_t *p, uint64_t x) noexcept nogil
    uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) noexcept nogil


cdef struct Buffer:
    uint8_t *data       # owned; NULL while nothing was ever reserved
    size_t size         # bytes in use
    size_t capacity     # bytes allocated


cdef inline int buffer_reserve(Buffer *buffer, size_t more) except -1 nogil:
    """Make room for `more` bytes after `size`; raises MemoryError."""
    cdef size_t wanted = buffer.size + more
    cdef size_t capacity = buffer.capacity or 256
    cdef uint8_t *data
    if wanted <= buffer.capacity:
        return 0
    while capacity < wanted:
        capacity *= 2
    data = <uint8_t *>realloc(buffer.data, capacity)
    if data == NULL:
        with gil:
            raise MemoryError(f"no memory for a buffer of {capacity} bytes")
    buffer.data = data
    buffer.capacity = capacity
    return 0


cdef inline int buffer_append(Buffer *buffer, const uint8_t *data, size_t size) except -1 nogil:
    """Copy `size` bytes to the end; raises MemoryError."""
    buffer_reserve(buffer, size)
    if size:
        memcpy(buffer.data + buffer.size, data, size)
    buffer.size += size
    return 0


cdef inline void buffer_free(Buffer *buffer) noexcept nogil:
    """Give the memory back and leave an empty buffer."""
    free(buffer.data)
    buffer.data = NULL
    buffer.size = buffer.capacity = 0
