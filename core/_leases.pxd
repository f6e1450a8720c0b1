# cython: language_level=3
"""Replies of the Lease API: short ones appended to a buffer, long ones in slices."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._lessor cimport Lessor
from quorate.core._mvcc cimport Store
from quorate.core._port cimport LongReply, Port
from quorate.core._reply cimport Header

cdef enum:
    # A lease with at most so many keys tells them in the same turn.
    SHORT_KEYS_MAX = 256
    # A request of InternalRaftRequest, a lease id and a number: bytes at most.
    LEASE_ENTRY_MAX = 32


# Requests of entries; `out` has room for LEASE_ENTRY_MAX. Each answers how many bytes it wrote.
cdef size_t write_grant(uint8_t *out, int64_t lease_id, int64_t ttl) noexcept nogil
cdef size_t write_revoke(uint8_t *out, int64_t lease_id) noexcept nogil
cdef size_t write_checkpoint(uint8_t *out, int64_t lease_id, int64_t remaining) noexcept nogil

# Finished messages.
cdef int append_granted(
    Buffer *out, const Header *header, int64_t revision, int64_t lease_id, int64_t ttl) except -1
cdef int append_kept_alive(
    Buffer *out, const Header *header, int64_t revision, int64_t lease_id, int64_t ttl) except -1
cdef int append_time_to_live(
    Buffer *out, const Header *header, Store store, int64_t lease_id, bint keys) except -1


cdef class LeaseReply(LongReply):
    # A reply that needs memory, of which all such replies share one budget.
    cdef Store store
    cdef Header header
    cdef size_t budget          # bytes taken of it
    cdef bint is_waiting

    cdef bint _take_budget(self, size_t size) noexcept


cdef class LeaseKeys(LeaseReply):
    # A LeaseTimeToLiveResponse with many keys.
    cdef int64_t lease_id
    cdef Buffer message
    cdef size_t sent

    cdef bint step(self, Port port) except -1


cdef class LeaseList(LeaseReply):
    # A LeaseLeasesResponse.
    cdef Buffer rows            # LeaseRow, a heap: what runs out first is first
    cdef size_t count           # rows in it
    cdef size_t unsorted        # rows before this one are no heap yet
    cdef size_t message_size
    cdef int64_t revision
    cdef bint began             # rows are collected
    cdef bint sent_first

    cdef bint step(self, Port port) except -1
    cdef int _collect(self) except -1
    cdef int _append_some(self, size_t room) except -1
    cdef void _sift_down(self, size_t at) noexcept nogil
