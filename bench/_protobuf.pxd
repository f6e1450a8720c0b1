# cython: language_level=3
"""As much of protobuf as the load generator reads and writes, inline: numbers and bytes."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    GRPC_PREFIX = 5             # bytes before each gRPC message: compressed flag and length


cdef struct Field:
    uint32_t number
    int wire                    # 0 varint, 2 bytes; nothing else comes from etcd's API
    uint64_t value              # the varint, or the size of the bytes
    const uint8_t *data         # the bytes


cdef inline void write_prefix(uint8_t *at, size_t size) noexcept nogil:
    """The gRPC prefix of a message of `size` bytes."""
    at[0] = 0
    at[1] = <uint8_t>(size >> 24)
    at[2] = <uint8_t>(size >> 16)
    at[3] = <uint8_t>(size >> 8)
    at[4] = <uint8_t>size


cdef inline size_t size_in_prefix(const uint8_t *at) noexcept nogil:
    """How many bytes follow this gRPC prefix."""
    return <size_t>at[1] << 24 | <size_t>at[2] << 16 | <size_t>at[3] << 8 | at[4]


cdef inline uint8_t *write_varint(uint8_t *at, uint64_t value) noexcept nogil:
    """The place after the varint."""
    while value >= 0x80:
        at[0] = <uint8_t>(value | 0x80)
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    """How many bytes the varint takes."""
    cdef size_t size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


cdef inline uint8_t *write_tag(uint8_t *at, uint32_t number, int wire) noexcept nogil:
    """The place after the tag of a field."""
    return write_varint(at, number << 3 | wire)


cdef inline const uint8_t *read_varint(const uint8_t *at, const uint8_t *end,
                                       uint64_t *value) noexcept nogil:
    """The place after the varint, or NULL when it is not whole."""
    cdef int shift = 0
    value[0] = 0
    while at < end and shift < 64:
        value[0] |= <uint64_t>(at[0] & 0x7f) << shift
        if at[0] < 0x80:
            return at + 1
        at += 1
        shift += 7
    return NULL


cdef inline const uint8_t *read_field(const uint8_t *at, const uint8_t *end,
                                      Field *field) noexcept nogil:
    """The place after the field, or NULL when it is not whole or of another wire type."""
    cdef uint64_t tag
    at = read_varint(at, end, &tag)
    if at == NULL:
        return NULL
    field.number = <uint32_t>(tag >> 3)
    field.wire = tag & 7
    field.data = NULL
    if field.wire != 0 and field.wire != 2:
        return NULL
    at = read_varint(at, end, &field.value)
    if at == NULL or field.wire == 0:
        return at
    field.data = at
    return at + field.value if field.value <= <uint64_t>(end - at) else NULL


cdef inline int64_t number_in(const Field *message, uint32_t number) noexcept nogil:
    """The varint field `number` of a message, 0 when it is not there."""
    cdef const uint8_t *at = message.data
    cdef const uint8_t *end = message.data + message.value
    cdef int64_t found = 0
    cdef Field field
    if message.wire != 2:
        return 0
    while at != NULL and at < end:
        at = read_field(at, end, &field)
        if at != NULL and field.number == number and field.wire == 0:
            found = <int64_t>field.value
    return found
