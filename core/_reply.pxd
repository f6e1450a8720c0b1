# cython: language_level=3
"""The protobuf encoding of replies, inline: headers, key-values and nested messages into a buffer.

As protobuf wants it, zeros and empty bytes are left out.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memmove

from quorate.core._bytes cimport Buffer, buffer_append, buffer_reserve
from quorate.core._protobuf cimport varint_size, write_varint
from quorate.core._version cimport (
    Version, version_key, version_key_size, version_lease, version_value, version_value_size,
)

cdef enum:
    # Tags are `field << 3 | wire type`; all of ours are below 128.
    TAG_HEADER = 10                 # field 1 of every response
    TAG_RANGE_KVS = 18
    TAG_RANGE_MORE = 24
    TAG_RANGE_COUNT = 32
    TAG_PUT_PREV_KV = 18
    TAG_DELETE_DELETED = 16
    TAG_DELETE_PREV_KVS = 26
    TAG_TXN_SUCCEEDED = 16
    TAG_TXN_RESPONSES = 26
    TAG_STREAM_RANGE_RESPONSE = 10
    # Bytes kept free for the size of a nested message whose size is not known yet.
    NESTED_SIZE_MAX = 5
    # Which parts of a key-value a reply leaves out.
    OMIT_NOTHING = 0
    OMIT_VALUE = 1
    OMIT_LEASE = 2
    # Above this a value may be sent in parts.
    VALUE_CUT_MIN = 65536
    # Tags and varints around a key and a value, at most.
    KEY_VALUE_OVERHEAD_MAX = 64


cdef struct Header:
    # What every response header tells besides the revision.
    uint64_t cluster_id
    uint64_t member_id
    uint64_t raft_term


cdef inline uint8_t *write_number(uint8_t *at, uint8_t tag, uint64_t value) noexcept nogil:
    """A varint field, nothing when it is zero."""
    if value:
        at[0] = tag
        at = write_varint(at + 1, value)
    return at


cdef inline size_t number_size(uint64_t value) noexcept nogil:
    """Bytes of a varint field."""
    return 1 + varint_size(value) if value else 0


cdef inline int append_number(Buffer *out, uint8_t tag, uint64_t value) except -1 nogil:
    """Append a varint field, nothing when it is zero."""
    buffer_reserve(out, 11)
    out.size = write_number(out.data + out.size, tag, value) - out.data
    return 0


cdef inline int append_header(Buffer *out, const Header *header, int64_t revision) except -1 nogil:
    """Append the response header; NULL = within a Txn, where it tells the revision alone."""
    cdef uint8_t *start
    cdef uint8_t *at
    buffer_reserve(out, 2 + 44)
    start = out.data + out.size
    at = start + 2
    if header != NULL:
        at = write_number(at, 8, header.cluster_id)
        at = write_number(at, 16, header.member_id)
    at = write_number(at, 24, <uint64_t>revision)
    if header != NULL:
        at = write_number(at, 32, header.raft_term)
    start[0] = TAG_HEADER
    start[1] = <uint8_t>(at - start - 2)
    out.size = at - out.data
    return 0


cdef inline size_t key_value_size(const Version *version, int omit) noexcept nogil:
    """Bytes of a version as mvccpb.KeyValue; none for the one without a key (core/_restore.pyx)."""
    cdef size_t key = version_key_size(version)
    cdef size_t value = 0 if omit & OMIT_VALUE else version_value_size(version)
    cdef size_t size = (number_size(version.create_revision) + number_size(version.mod_revision)
                        + number_size(version.version))
    if key == 0:
        return 0
    if not omit & OMIT_LEASE:
        size += number_size(<uint64_t>version_lease(version))
    size += 1 + varint_size(key) + key
    if value:
        size += 1 + varint_size(value) + value
    return size


cdef inline int append_key_value(
        Buffer *out, uint8_t tag, const Version *version, int omit) except -1 nogil:
    """Append a version as a field that holds a mvccpb.KeyValue."""
    append_key_value_head(out, tag, version, omit)
    if not omit & OMIT_VALUE:
        buffer_append(out, version_value(version), version_value_size(version))
    if not omit & OMIT_LEASE:
        append_number(out, 48, <uint64_t>version_lease(version))
    return 0


cdef inline int append_key_value_head(
        Buffer *out, uint8_t tag, const Version *version, int omit) except -1 nogil:
    """Append what of that field comes before the value's bytes."""
    cdef size_t size = key_value_size(version, omit)
    cdef size_t key = version_key_size(version)
    cdef size_t value = 0 if omit & OMIT_VALUE else version_value_size(version)
    cdef uint8_t *at
    # The room is for all of the field, so that what comes after the head moves nothing.
    buffer_reserve(out, size + KEY_VALUE_OVERHEAD_MAX if size < VALUE_CUT_MIN
                   else key + KEY_VALUE_OVERHEAD_MAX)
    at = out.data + out.size
    at[0] = tag
    at = write_varint(at + 1, size)
    if key == 0:
        out.size = at - out.data
        return 0
    at[0] = 10
    at = write_varint(at + 1, key)
    memcpy(at, version_key(version), key)
    at += key
    at = write_number(at, 16, <uint64_t>version.create_revision)
    at = write_number(at, 24, <uint64_t>version.mod_revision)
    at = write_number(at, 32, <uint64_t>version.version)
    if value:
        at[0] = 42
        at = write_varint(at + 1, value)
    out.size = at - out.data
    return 0


cdef inline size_t append_key_value_part(
        Buffer *out, uint8_t tag, const Version *version, int omit, size_t start,
        size_t size_max) except? 0 nogil:
    """Append at most `size_max` bytes of that field from its byte `start` on; answers how many."""
    cdef size_t began = out.size
    cdef size_t head, value, tail
    cdef size_t end = start + size_max
    append_key_value_head(out, tag, version, omit)
    head = out.size - began
    value = 0 if omit & OMIT_VALUE else version_value_size(version)
    if end > head and start < head + value:
        tail = max(start, head) - head
        buffer_append(out, version_value(version) + tail, min(end - head, value) - tail)
    if end > head + value and not omit & OMIT_LEASE:
        append_number(out, 48, <uint64_t>version_lease(version))
    if start:
        # Drop what was sent before: of the head, and of the few bytes after the value.
        tail = min(start, head)
        if start > head + value:
            tail += start - head - value
        memmove(out.data + began, out.data + began + tail, out.size - began - tail)
        out.size -= tail
    out.size = min(out.size, began + size_max)
    return out.size - began


cdef inline size_t open_nested(Buffer *out, uint8_t tag) except 0 nogil:
    """Begin a nested message of a size not yet known; answers where it starts, for `close_nested`.
    """
    buffer_reserve(out, 1 + NESTED_SIZE_MAX)
    out.data[out.size] = tag
    out.size += 1 + NESTED_SIZE_MAX
    return out.size


cdef inline void close_nested(Buffer *out, size_t start) noexcept nogil:
    """Write the size of a nested message and close the gap that was left for it."""
    cdef size_t size = out.size - start
    cdef uint8_t *at = write_varint(out.data + start - NESTED_SIZE_MAX, size)
    memmove(at, out.data + start, size)
    out.size = (at - out.data) + size
