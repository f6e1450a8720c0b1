# cython: language_level=3
"""Protocol-buffer primitives, inline: a bounds-checked reader and a writer into reserved memory.

The reader accepts exactly what Go's protobuf accepts: varints of at most 10 bytes, field numbers
1..2**29-1, wire types 0, 1, 2, 5 and balanced groups; everything else makes it answer False, and
the caller refuses the message. A known field with another wire type than expected is skipped like
an unknown one.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    WIRE_VARINT = 0
    WIRE_FIXED64 = 1
    WIRE_BYTES = 2
    WIRE_GROUP = 3
    WIRE_GROUP_END = 4
    WIRE_FIXED32 = 5
    # Go's protobuf gives up at this nesting of groups and messages.
    PROTOBUF_DEPTH_MAX = 10000
    # Of nested groups inside an unknown field we walk no more; nobody sends any.
    GROUP_DEPTH_MAX = 100


cdef struct Reader:
    const uint8_t *at       # next byte to read
    const uint8_t *end      # one past the last byte


cdef struct Span:
    const uint8_t *data     # not owned; may be NULL when size is 0
    size_t size


cdef inline bint read_varint(Reader *reader, uint64_t *value) noexcept nogil:
    """One varint of at most ten bytes; False when cut or too large for 64 bits."""
    cdef uint64_t result = 0
    cdef int shift = 0
    cdef uint8_t byte
    while reader.at < reader.end:
        byte = reader.at[0]
        reader.at += 1
        if shift == 63 and byte > 1:
            return False
        result |= <uint64_t>(byte & 0x7f) << shift
        if byte < 0x80:
            value[0] = result
            return True
        shift += 7
        if shift > 63:
            return False
    return False


cdef inline bint read_tag(Reader *reader, uint32_t *field, int *wire) noexcept nogil:
    """One field tag; False when cut or when the field number is not a legal one."""
    cdef uint64_t tag = 0
    if not read_varint(reader, &tag):
        return False
    wire[0] = tag & 7
    tag >>= 3
    if tag == 0 or tag > 0x1fffffff:
        return False
    field[0] = <uint32_t>tag
    return True


cdef inline bint read_bytes(Reader *reader, Span *span) noexcept nogil:
    """One length-delimited value, not copied; False when the length lies."""
    cdef uint64_t size = 0
    if not read_varint(reader, &size) or size > <uint64_t>(reader.end - reader.at):
        return False
    span.data = reader.at
    span.size = size
    reader.at += size
    return True


cdef inline bint skip_field(Reader *reader, uint32_t field, int wire) noexcept nogil:
    """Pass over the value of a field that is not wanted, groups included; False when malformed."""
    cdef uint32_t[GROUP_DEPTH_MAX] groups
    cdef int depth = 0
    cdef uint64_t ignored = 0
    cdef Span span
    while True:
        if wire == WIRE_VARINT:
            if not read_varint(reader, &ignored):
                return False
        elif wire == WIRE_BYTES:
            if not read_bytes(reader, &span):
                return False
        elif wire == WIRE_FIXED64 or wire == WIRE_FIXED32:
            ignored = 8 if wire == WIRE_FIXED64 else 4
            if ignored > <uint64_t>(reader.end - reader.at):
                return False
            reader.at += ignored
        elif wire == WIRE_GROUP:
            if depth == GROUP_DEPTH_MAX:
                return False
            groups[depth] = field
            depth += 1
        elif wire == WIRE_GROUP_END:
            if depth == 0 or groups[depth - 1] != field:
                return False
            depth -= 1
        else:
            return False
        if depth == 0:
            return True
        if not read_tag(reader, &field, &wire):
            return False


cdef inline int varint_size(uint64_t value) noexcept nogil:
    """How many bytes `value` takes as a varint: 1 to 10."""
    cdef int size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


cdef inline uint8_t *write_varint(uint8_t *at, uint64_t value) noexcept nogil:
    """Write a varint (at most 10 bytes) and answer the place after it."""
    while value >= 0x80:
        at[0] = <uint8_t>(value | 0x80)
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1
