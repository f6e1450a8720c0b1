# cython: language_level=3
"""One-writer, one-reader rings in shared memory, and doorbells for those who sleep."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    # Before each record: u32 size of the record, u32 sequence; the whole is padded to 8 bytes.
    FRAME_SIZE = 8


cdef struct RingShared:
    uint64_t head           # written by the producer only: bytes ever published
    uint8_t[56] _line0
    uint64_t tail           # written by the consumer only: bytes ever released
    uint8_t[56] _line1


cdef class Doorbell:
    cdef readonly int fd            # eventfd, non-blocking; what a sleeper waits for
    # In memory shared with the ringers: 1 while the owner waits or is about to.
    cdef uint32_t *asleep

    cdef void ring(self) noexcept nogil
    cdef void announce_sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil


cdef class Ring:
    cdef RingShared *shared         # start of the mapping
    cdef uint8_t *data              # capacity bytes, mapped twice in a row: no record ever wraps
    cdef readonly uint64_t capacity     # bytes, a power of two
    cdef readonly int fd            # sealed memfd; -1 after `close`
    cdef uint64_t position          # of this side: bytes ever committed, or bytes ever popped
    cdef uint64_t other             # of the other side, as seen last
    cdef uint32_t sequence          # of the next record

    cdef int _map_piece(self, uint8_t *at, size_t size, size_t offset) except -1

    # Producer. Nothing is visible before `publish`.
    cdef uint8_t *reserve(self, size_t size) noexcept nogil
    cdef void commit(self, size_t size) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef size_t room(self) noexcept nogil

    # Consumer. The bytes stay until `release`, but the producer may change them: copy, then check.
    cdef int pop(self, const uint8_t **data, size_t *size) noexcept nogil
    cdef void release(self) noexcept nogil
    cdef bint empty(self) noexcept nogil
