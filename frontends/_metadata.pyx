"""gRPC's own headers, as grpc-go reads and writes them.

Rules:
1. Nothing here knows a stream or a call; everything but `unpack` needs no GIL.
2. Name/value pairs made here point into their caller's memory, which must outlive their use:
   nghttp2 does not copy them.
3. Packed metadata is, per pair: u32 size of the name, u32 size of the value, name, value.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp

from quorate.core._bytes cimport buffer_append, load_le32
from quorate.frontends._nghttp2 cimport NGHTTP2_NV_FLAG_NO_COPY_NAME, NGHTTP2_NV_FLAG_NO_COPY_VALUE

cdef const char **NUMBERS = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
]


cdef bint parse_timeout(const uint8_t *text, size_t size, int64_t *nanoseconds) noexcept nogil:
    """`grpc-timeout` in nanoseconds, held to what 63 bits take; False when grpc-go would refuse it.
    """
    cdef int64_t unit, number = 0
    cdef size_t i
    if size < 2 or size > 9:
        return False
    unit = _unit(text[size - 1])
    if unit == 0:
        return False
    for i in range(size - 1):
        if text[i] < 48 or text[i] > 57:
            return False
        number = number * 10 + (text[i] - 48)
    # A century is for ever, and keeps sums of times within 63 bits.
    nanoseconds[0] = min(number, <int64_t>3_153_600_000_000_000_000 // unit) * unit
    return True


cdef int64_t _unit(uint8_t letter) noexcept nogil:
    if letter == 110:       # n
        return 1
    if letter == 117:       # u
        return 1_000
    if letter == 109:       # m
        return 1_000_000
    if letter == 83:        # S
        return 1_000_000_000
    if letter == 77:        # M
        return 60_000_000_000
    return 3_600_000_000_000 if letter == 72 else 0     # H


cdef bint is_grpc(const uint8_t *value, size_t size) noexcept nogil:
    """Whether a content type is application/grpc, alone or with `+` or `;` after it."""
    if size < 16 or memcmp(value, b"application/grpc", 16) != 0:
        return False
    return size == 16 or value[16] == 43 or value[16] == 59


cdef uint32_t encoding_of(const uint8_t *value, size_t size) noexcept nogil:
    """The Encoding of a `grpc-encoding`."""
    if size == 0 or (size == 8 and memcmp(value, b"identity", 8) == 0):
        return ENCODING_IDENTITY
    if size == 4 and memcmp(value, b"gzip", 4) == 0:
        return ENCODING_GZIP
    return ENCODING_UNKNOWN


cdef void set_pair(
        nghttp2_nv *pair, const char *name, size_t name_size, const void *value,
        size_t size) noexcept nogil:
    """Fill a pair that nghttp2 is not to copy."""
    pair.name = <uint8_t *>name
    pair.namelen = name_size
    pair.value = <uint8_t *>value
    pair.valuelen = size
    pair.flags = <uint8_t>(NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE)


cdef const char *number_text(uint32_t number) noexcept nogil:
    """A gRPC code as a static string; what is no code is 2, unknown."""
    return NUMBERS[number] if number <= 16 else NUMBERS[2]


cdef void pack(
        Buffer *buffer, const uint8_t *name, size_t name_size, const uint8_t *value,
        size_t size) noexcept nogil:
    """Append one pair."""
    cdef uint32_t[2] sizes
    sizes[0] = <uint32_t>name_size
    sizes[1] = <uint32_t>size
    buffer_append(buffer, <const uint8_t *>sizes, sizeof(sizes))
    buffer_append(buffer, name, name_size)
    buffer_append(buffer, value, size)


cdef size_t unpack_pairs(const Buffer *buffer, nghttp2_nv *pairs, size_t at_most) noexcept nogil:
    """The packed pairs in nghttp2's form, pointing into `buffer`; answers how many."""
    cdef size_t at = 0, count = 0
    cdef size_t name_size, size
    while at < buffer.size and count < at_most:
        name_size = load_le32(buffer.data + at)
        size = load_le32(buffer.data + at + 4)
        at += 8
        set_pair(
            &pairs[count], <const char *>buffer.data + at, name_size,
            buffer.data + at + name_size, size)
        at += name_size + size
        count += 1
    return count


cdef list unpack(const Buffer *buffer):
    """The packed pairs as strings; bytes that are not UTF-8 survive as surrogates."""
    cdef size_t at = 0
    cdef size_t name_size, size
    result = []
    while at < buffer.size:
        name_size = load_le32(buffer.data + at)
        size = load_le32(buffer.data + at + 4)
        at += 8
        name = buffer.data[at:at + name_size].decode("utf-8", "surrogateescape")
        at += name_size
        result.append((name, buffer.data[at:at + size].decode("utf-8", "surrogateescape")))
        at += size
    return result
