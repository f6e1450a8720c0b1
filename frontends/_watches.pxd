# cython: language_level=3
"""Watch streams of one worker: requests in; created, canceled, progress and events out."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._eventring cimport EventReader, EventRecord
from quorate.core._record cimport Reply
from quorate.frontends._fanout cimport *
from quorate.frontends._watchindex cimport Subject, Watcher, WatchIndex, WatchStream
from quorate.frontends._watchrequest cimport WatchCreate


cdef class Watches(FanOut):
    cdef int64_t progress_interval  # ns
    cdef int64_t giant              # a revision too large to be gathered here, or 0
    cdef uint64_t follow_id         # of the call that asks for all events, or 0
    cdef bint follows               # the ring goes on where `seen` ends
    cdef WatchStream *waiting       # streams with a progress request
    cdef uint64_t stream_count
    cdef uint64_t behind_count      # watchers that are not live

    # What clients ask.
    cdef void _take_watch_request(
        self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef WatchStream *_stream_of(self, Call *call) noexcept nogil
    cdef void _create(self, Call *call, WatchCreate *asked) noexcept nogil
    cdef int64_t _choose_id(self, WatchStream *stream) noexcept nogil
    cdef void _cancel_watcher(self, Call *call, int64_t watch_id) noexcept nogil
    cdef void _ask_progress(self, Call *call) noexcept nogil
    cdef bint _respond(
        self, Call *call, int64_t revision, int64_t watch_id, uint32_t what,
        int64_t compact_revision, const char *reason) noexcept nogil

    # Who catches up.
    cdef void _fall_behind(self, Watcher *watcher, int64_t revision) noexcept nogil
    cdef void _unqueue(self, Watcher *watcher) noexcept nogil
    cdef void _ask_for_next(self, WatchStream *stream) noexcept nogil
    cdef void _take_catch_up(
        self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil
    cdef void _remove(self, Watcher *watcher) noexcept nogil

    # The events of all keys.
    cdef void _follow(self, int64_t revision) noexcept nogil
    cdef void _unfollow(self) noexcept nogil
    cdef void _take_follow(
        self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil
    cdef void _lose(self, int64_t compact_revision) noexcept nogil
    cdef bint has_watched(self) noexcept nogil
    cdef uint64_t watched_head(self) noexcept nogil
    cdef bint take_watched(self, uint64_t head) except -1 nogil
    cdef int _deliver_records(self) except -1 nogil

    # Progress.
    cdef void _tell_progress(self) noexcept nogil
    cdef bint _has_started(self, WatchStream *stream) noexcept nogil
    cdef void _set_notification(self, WatchStream *stream) noexcept nogil
    cdef void notify_progress(self, WatchStream *stream) noexcept nogil
