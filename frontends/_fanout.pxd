# cython: language_level=3
"""Events to many: matched once per subject, put together once, copied behind a head for each."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._eventring cimport EventReader, EventRecord
from quorate.core._protobuf cimport write_varint
from quorate.frontends._replies cimport *
from quorate.frontends._watchindex cimport Subject, Watcher, WatchIndex

cdef enum:
    # Tag, size, four numbers; the watch id; and what else is a number.
    HEAD_BYTES_MAX = 96
    # Sent to a connection amid a delivery: a good part of a core's second-level cache.
    EARLY_BYTES = 65536


cdef struct Note:
    # One event that concerns a subject.
    const EventRecord *record
    uint32_t next           # 1 + place of the subject's next one, or 0


cdef struct Touched:
    # A subject that a batch of events concerns.
    Subject *subject
    uint32_t count
    uint32_t first          # 1 + place of its first Note
    uint32_t last


cdef class FanOut(Replies):
    cdef EventReader reader         # None: nothing can be watched
    cdef WatchIndex index
    cdef int64_t seen               # all events up to this revision were delivered
    cdef Buffer records             # of the ring, not delivered yet
    cdef Buffer found               # Subject *
    cdef Buffer notes               # Note
    cdef Buffer touched             # Touched
    cdef Buffer block               # the encoded events of one subject
    cdef uint64_t events_sent

    cdef void _fall_behind(self, Watcher *watcher, int64_t revision) noexcept nogil
    cdef void _send_early(self, Peer *peer) noexcept nogil
    cdef size_t _end_of_revision(self, size_t at) noexcept nogil
    cdef bint _note_all(self, size_t at, size_t end) except -1 nogil
    cdef int _note(self, const EventRecord *record) except -1 nogil
    cdef int _match(self, const EventRecord *record) except -1 nogil
    cdef void _forget_notes(self) noexcept nogil
    cdef size_t _leave_behind(self, size_t at, size_t end) except? 1 nogil
    cdef int _deliver(self, int64_t revision) except -1 nogil
    cdef int _deliver_to(self, const Touched *touched) except -1 nogil
    cdef bint _gather_block(self, const Subject *subject, uint32_t place) except -1 nogil
    cdef size_t _skip(
        self, const Subject *subject, uint32_t place, int64_t revision) noexcept nogil
    cdef void _send_events(
        self, Watcher *watcher, int64_t revision, const uint8_t *events,
        size_t size) noexcept nogil
    cdef uint8_t *_write_head(
        self, uint8_t *at, int64_t revision, int64_t watch_id) noexcept nogil
    cdef bint _is_slow(self, const Call *call) noexcept nogil


cdef inline uint8_t *_write_number(uint8_t *at, uint8_t tag, uint64_t value) noexcept nogil:
    if value:
        at[0] = tag
        at = write_varint(at + 1, value)
    return at
