# cython: language_level=3
"""The event ring: what the core has written of every revision, for all workers to read."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer

cdef enum EventFlag:
    EVENT_DELETE = 1
    EVENT_LAST = 2          # of its revision
    EVENT_HAS_PREVIOUS = 4  # the previous key-value is here, unless there is none


cdef struct EventRecord:
    # What stands before the encoded event; the whole record is padded to 8 bytes. Then come
    # `event_size` bytes of mvccpb.Event without its `prev_kv`, and `previous_size` bytes of that
    # field, to be appended for those who asked for it.
    uint32_t size           # of the record, padding included
    uint32_t flags          # EventFlag
    int64_t revision
    uint32_t key_at         # where in the event's bytes the key stands
    uint32_t key_size
    uint32_t event_size
    uint32_t previous_size


cdef struct EventShared:
    # The first page of the mapping; everything is written by the core alone.
    uint64_t head           # bytes ever published
    uint64_t writing        # bytes ever begun: what is a ring behind this may be overwritten
    int64_t revision        # the store's, once all its events are published
    uint64_t cluster_id
    uint64_t member_id
    uint64_t raft_term


cdef class EventRing:
    cdef EventShared *shared
    cdef uint8_t *data              # capacity bytes, mapped twice in a row
    cdef readonly uint64_t capacity
    cdef readonly int fd
    cdef uint64_t position          # bytes ever written

    cdef void write(self, const uint8_t *records, size_t size) noexcept nogil
    cdef void publish(self, int64_t revision) noexcept nogil


cdef class EventReader:
    cdef EventShared *shared
    cdef const uint8_t *data
    cdef uint64_t capacity
    cdef uint64_t position          # bytes ever read

    cdef uint64_t head(self) noexcept nogil
    cdef int64_t revision(self) noexcept nogil
    cdef bint copy(self, Buffer *out, uint64_t head, size_t bytes_max) except -1 nogil
