# cython: language_level=3
"""What one watcher has missed, read off the history as finished WatchResponses."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._events cimport Events
from quorate.core._history cimport HistoryCursor
from quorate.core._mvcc cimport Store
from quorate.core._port cimport LongReply, Port
from quorate.core._record cimport CatchUpRequest
from quorate.core._reply cimport Header
from quorate.core._version cimport Version


cdef struct Place:
    # Where a walk is: in the history, or on the chain of one key's versions.
    HistoryCursor cursor
    Version *version


cdef class CatchUp(LongReply):
    cdef Events source
    cdef Store store
    cdef Header header
    cdef size_t fragment_bytes_max
    cdef CatchUpRequest asked
    cdef Buffer range               # key, then range end
    cdef bint has_begun
    cdef bint by_chain              # the key's own versions are walked, not all
    cdef bint holding               # compaction waits
    cdef int64_t held               # what the store's `hold` answered
    cdef size_t copied              # bytes that count in `source.copied`
    cdef int64_t compact_revision   # when it began: the walks must agree about what there is
    # What is measured for the message under way.
    cdef Place start
    cdef Place at
    cdef int64_t measured           # revision that the walk is in, or 0
    cdef int64_t through            # all before and of this revision is measured
    cdef size_t events
    cdef size_t events_size
    cdef bint is_fragment           # more of the revision follows in another message
    # What is sent of it.
    cdef bint sending
    cdef Place next
    cdef size_t events_left
    cdef size_t message_size
    cdef size_t message_left
    cdef Buffer out
    cdef size_t out_at

    cdef void _seek(self) noexcept
    cdef bint _by_chain(self) noexcept
    cdef Version *_walk(self, Place *place) noexcept
    cdef bint _matches(self, const Version *version) noexcept
    cdef size_t _size(self, const Version *version) noexcept
    cdef bint _measure(self) except -1
    cdef int _begin(self) except -1
    cdef bint _send(self, Port port) except -1
    cdef void _release(self) noexcept
    cdef int _fill(self, size_t until) except -1


cdef CatchUp catch_up(
    Events events, const Header *header, size_t fragment_bytes_max, uint64_t request_id,
    const CatchUpRequest *asked, const unsigned char *range, size_t range_size)
