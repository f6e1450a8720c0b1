# cython: language_level=3
"""Lease requests as C structs: decoding, inline. Beyond its form etcd checks nothing of one before
it is proposed.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from quorate.core._errors cimport ERROR_MALFORMED, ERROR_NONE
from quorate.core._protobuf cimport (
    Reader, WIRE_VARINT, read_tag, read_varint, skip_field,
)
from quorate.core._record cimport METHOD_LEASE_GRANT, METHOD_LEASE_LEASES, METHOD_LEASE_TIME_TO_LIVE


cdef struct LeaseRequest:
    int64_t id
    int64_t ttl             # grant
    bint keys               # time to live


cdef inline bint is_lease_method(uint32_t method) noexcept nogil:
    """Whether a client's request of this method is a LeaseRequest."""
    return METHOD_LEASE_GRANT <= method <= METHOD_LEASE_LEASES


cdef inline uint16_t decode_lease(
        LeaseRequest *request, uint32_t method, const uint8_t *data, size_t size) noexcept nogil:
    """Decode the request of a lease method: ERROR_NONE or ERROR_MALFORMED."""
    cdef Reader reader
    cdef uint32_t field
    cdef int wire
    cdef uint64_t value = 0
    request.id = request.ttl = 0
    request.keys = False
    reader.at = data
    reader.end = data + size
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return ERROR_MALFORMED
        if wire != WIRE_VARINT or field > 2 or method == METHOD_LEASE_LEASES:
            if not skip_field(&reader, field, wire):
                return ERROR_MALFORMED
            continue
        if not read_varint(&reader, &value):
            return ERROR_MALFORMED
        if method == METHOD_LEASE_GRANT:
            if field == 1:
                request.ttl = <int64_t>value
            else:
                request.id = <int64_t>value
        elif field == 1:
            request.id = <int64_t>value
        elif method == METHOD_LEASE_TIME_TO_LIVE:
            request.keys = value != 0
    return ERROR_NONE
