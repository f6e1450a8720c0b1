# cython: language_level=3
"""A run of raft entries in C memory: a batch costs Python one object, whatever it holds."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer

cdef enum EntryType:
    ENTRY_NORMAL = 0
    ENTRY_CONF_CHANGE = 1
    ENTRY_CONF_CHANGE_V2 = 2

cdef enum:
    # An entry in a run: u32 data size, u32 type (both little endian), then the data.
    ENTRY_HEADER_SIZE = 8
    # The slot of a Waiter whose entry the core made by itself: of leases that run out.
    NO_SLOT = 0xffffffff


cdef struct Waiter:
    uint64_t request_id     # of the asker's worker; NO_SLOT: the lease that is revoked, or 0
    uint32_t slot           # of that worker
    uint32_t generation     # of that slot: a reply to a replaced worker is dropped
    uint32_t method         # a Method of core/_record.pxd; 0 = nobody waits


cdef class Run:
    cdef readonly uint64_t first_index  # raft index of the first entry; 0 until `assign`
    cdef readonly uint64_t term         # of all its entries; 0 until `assign`
    cdef readonly uint32_t count        # entries
    cdef readonly bint has_conf_change  # such an entry stands alone in its run
    cdef readonly uint64_t cost         # bytes that its entries may take in the backend
    cdef Buffer entries                 # packed entries
    cdef Buffer waiters                 # Waiter per entry, or empty: nobody waits

    cpdef assign(self, uint64_t first_index, uint64_t term)
    cdef uint8_t *add(self, size_t size, uint32_t entry_type) except NULL nogil
    cdef int add_waiter(self, Waiter *waiter) except -1 nogil
