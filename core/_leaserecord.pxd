# cython: language_level=3
"""A lease as the bucket `lease` of a backend file has it.

Key: the id, big-endian. Value: a leasepb.Lease. Keys are in order of ids as unsigned numbers.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport load_be64, store_be64
from quorate.core._lessor cimport SavedLease
from quorate.core._protobuf cimport (
    WIRE_VARINT, Reader, Span, read_tag, read_varint, skip_field,
)
from quorate.core._reply cimport write_number

cdef enum:
    LEASE_KEY = 8
    # Of the value: three numbers.
    LEASE_VALUE_MAX = 33


cdef inline uint8_t *write_lease(uint8_t *at, const SavedLease *lease) noexcept nogil:
    """Key, then value, into as many bytes as they can take; where they end."""
    store_be64(at, <uint64_t>lease.id)
    at = write_number(at + LEASE_KEY, 8, <uint64_t>lease.id)
    at = write_number(at, 16, <uint64_t>lease.ttl)
    return write_number(at, 24, <uint64_t>lease.remaining)


cdef inline const char *read_lease(Span key, Span value, SavedLease *lease) noexcept nogil:
    """NULL, or what is wrong with it."""
    cdef Reader reader = Reader(value.data, value.data + value.size)
    cdef uint64_t number
    cdef uint32_t field
    cdef int wire
    lease[0] = SavedLease(0, 0, 0)
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return b"a malformed lease"
        if wire == WIRE_VARINT and field <= 3:
            if not read_varint(&reader, &number):
                return b"a malformed lease"
            if field == 1:
                lease.id = <int64_t>number
            elif field == 2:
                lease.ttl = <int64_t>number
            else:
                lease.remaining = <int64_t>number
        elif not skip_field(&reader, field, wire):
            return b"a malformed lease"
    if key.size != LEASE_KEY or <int64_t>load_be64(key.data) != lease.id:
        return b"a lease under another's id"
    return NULL


cdef inline int compare_leases(const SavedLease *one, const SavedLease *other) noexcept nogil:
    """Below, at or above 0, as `one` comes before, with or behind `other`."""
    return (<uint64_t>one.id > <uint64_t>other.id) - (<uint64_t>one.id < <uint64_t>other.id)
