# cython: language_level=3
"""What was written, as events: into the event ring, and for workers that fell behind it."""

from libc.stdint cimport int64_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._eventring cimport EventRing
from quorate.core._history cimport HistoryCursor
from quorate.core._mvcc cimport Store
from quorate.core._port cimport LongReply, Port
from quorate.core._version cimport Version


cdef size_t event_size(const Version *version) noexcept nogil
cdef Version *event_previous(const Version *version, int64_t compact_revision) noexcept nogil
cdef size_t previous_size(const Version *previous) noexcept nogil
cdef int append_event(Buffer *out, const Version *version) except -1 nogil
cdef int append_previous(Buffer *out, const Version *previous) except -1 nogil


cdef class Events:
    cdef Store store
    cdef readonly EventRing ring
    cdef list ports                 # slot -> Port or None
    cdef HistoryCursor cursor       # of the first version that is not in the ring
    cdef bint writing               # somebody follows
    cdef readonly size_t copied         # bytes of messages that compaction does not wait for
    cdef readonly uint64_t caught_up    # events sent to watchers that were behind
    cdef Buffer records             # scratch

    cdef int follow(self, Port port, uint64_t request_id, int64_t revision, bint previous) except -1
    cdef int _write(self, bint previous) except -1


cdef class Follow(LongReply):
    # All events from a revision on, up to where the ring goes on.
    cdef Events events
    cdef HistoryCursor cursor
    cdef int64_t revision           # of the next event
    cdef bint previous
    cdef Buffer records             # the message under way
    cdef size_t sent
    cdef bint has_begun

    cdef bint _fill(self) except -1
    cdef bint _join(self, Port port) except -1
