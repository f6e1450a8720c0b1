"""A WatchRequest off the wire.

As protobuf has it: of the oneof the last one counts, the same one twice is merged, and filters come
packed or one by one. Filters that etcd does not know it ignores, and so does this.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from quorate.core._protobuf cimport (
    WIRE_BYTES, WIRE_VARINT, Reader, Span, read_bytes, read_tag, read_varint, skip_field,
)
from quorate.core._record cimport (
    WATCH_FRAGMENT, WATCH_NO_DELETE, WATCH_NO_PUT, WATCH_PREVIOUS,
)


cdef bint decode_watch_request(
        WatchRequest *request, const uint8_t *data, size_t size) noexcept nogil:
    """Fill in `request`; False when the message is malformed. Spans point into the message."""
    cdef Reader reader
    cdef Span body
    cdef uint32_t field
    cdef int wire
    memset(request, 0, sizeof(WatchRequest))
    reader.at = data
    reader.end = data + size
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return False
        if wire != WIRE_BYTES or not WATCH_REQUEST_CREATE <= field <= WATCH_REQUEST_PROGRESS:
            if not skip_field(&reader, field, wire):
                return False
            continue
        if not read_bytes(&reader, &body):
            return False
        if field != request.kind:
            memset(request, 0, sizeof(WatchRequest))
            request.kind = field
        if field == WATCH_REQUEST_CREATE:
            if not _decode_create(&body, &request.create):
                return False
        elif not _decode_cancel(&body, &request.watch_id):
            return False
    return True


cdef bint _decode_cancel(const Span *body, int64_t *watch_id) noexcept nogil:
    """A WatchCancelRequest, or a progress request, which has no fields; False when malformed."""
    cdef Reader reader
    cdef uint64_t number
    cdef uint32_t field
    cdef int wire
    reader.at = body.data
    reader.end = body.data + body.size
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return False
        if field == 1 and wire == WIRE_VARINT:
            if not read_varint(&reader, &number):
                return False
            watch_id[0] = <int64_t>number
        elif not skip_field(&reader, field, wire):
            return False
    return True


cdef bint _decode_create(const Span *body, WatchCreate *create) noexcept nogil:
    """A WatchCreateRequest; False when malformed."""
    cdef Reader reader
    cdef Reader packed
    cdef Span span
    cdef uint64_t number
    cdef uint32_t field
    cdef int wire
    reader.at = body.data
    reader.end = body.data + body.size
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return False
        if wire == WIRE_BYTES and (field == 1 or field == 2):
            if not read_bytes(&reader, &create.key if field == 1 else &create.end):
                return False
        elif wire == WIRE_BYTES and field == 5:
            if not read_bytes(&reader, &span):
                return False
            packed.at = span.data
            packed.end = span.data + span.size
            while packed.at < packed.end:
                if not read_varint(&packed, &number):
                    return False
                _set_field(create, 5, number)
        elif wire == WIRE_VARINT and 3 <= field <= 8:
            if not read_varint(&reader, &number):
                return False
            _set_field(create, field, number)
        elif not skip_field(&reader, field, wire):
            return False
    return True


cdef void _set_field(WatchCreate *create, uint32_t field, uint64_t number) noexcept nogil:
    """Take a number of a WatchCreateRequest in."""
    cdef uint32_t flag = 0
    if field == 3:
        create.start_revision = <int64_t>number
    elif field == 4:
        create.notifies = number != 0
    elif field == 5:
        if <int32_t>number == 0:
            create.flags |= WATCH_NO_PUT
        elif <int32_t>number == 1:
            create.flags |= WATCH_NO_DELETE
    elif field == 7:
        create.id = <int64_t>number
    else:
        flag = WATCH_PREVIOUS if field == 6 else WATCH_FRAGMENT
        create.flags &= ~flag
        if number:
            create.flags |= flag


cdef bint is_empty_range(const Span *key, const Span *end) noexcept nogil:
    """Whether a range holds no key: not of one key alone, nor open."""
    cdef int order
    if end.size == 0 or (end.size == 1 and end.data[0] == 0):
        return False
    order = memcmp(key.data, end.data, min(key.size, end.size))
    return order > 0 or (order == 0 and key.size >= end.size)
