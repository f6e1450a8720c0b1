# cython: language_level=3
"""Which watchers an event concerns: exact keys in a hash table, ranges in an interval tree."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.frontends._deadlines cimport Timer

cdef enum WatcherFlag:
    WATCHER_LIVE = 1        # gets events as they come; any other is behind
    WATCHER_NOTIFIES = 2    # asked for progress notifications
    WATCHER_TOLD = 4        # got events since the last of these
    WATCHER_CANCELED = 8    # its end is told once the core's answer has come
    WATCHER_WAITS = 16      # asked to begin at a revision that was to come
    WATCHER_QUEUED = 64     # waits for the core to read on for it
    WATCHER_DEAD = 32       # was overtaken by compaction; its id is in use until it is canceled


cdef struct Subject:
    # All watchers of the same range that want the same of it: what they are sent is encoded once.
    # The bytes of key and range end follow, after RangeNode's fields if it is a range.
    Subject *next           # of the same hash; unused for a range
    Watcher *watchers
    uint32_t touched        # 1 + place among those that a batch of events concerns, or 0
    uint32_t hash
    uint32_t key_size
    uint32_t end_size
    uint32_t flags          # WatchFlag of core/_record.pxd


cdef struct RangeNode:
    # A treap ordered by key, end and flags; `furthest` is the node below here whose end is last.
    Subject subject         # the first member
    RangeNode *left
    RangeNode *right
    RangeNode *furthest
    uint64_t priority


cdef struct Watcher:
    Subject *subject
    WatchStream *stream
    Watcher *next_of_subject
    Watcher *previous_of_subject
    Watcher *next_of_stream
    Watcher *previous_of_stream
    Watcher *next_of_id     # of the same hash of stream and id
    Watcher *next_behind    # in its stream's queue
    Watcher *previous_behind
    int64_t id
    int64_t revision        # of the first event that it may get
    uint32_t flags          # WatcherFlag


cdef struct WatchStream:
    # One call of Watch.
    void *call
    Watcher *watchers
    Watcher *behind         # the queue of those that catch up
    Watcher *behind_last
    Watcher *asked          # whom the core is being asked for
    WatchStream *next_waiting
    Timer timer             # of progress notifications
    Buffer request          # to the core
    Buffer held             # responses that wait for the end of a message of the core's
    int64_t next_id
    int64_t latest_start    # no watcher waits for a later revision to begin with
    int64_t progress        # revision at which a progress request came; 0 = none did
    bint is_start_gone      # `latest_start` may be too late: some that waited wait no more
    uint32_t watcher_count
    uint32_t live_count
    uint32_t dead_count


cdef const uint8_t *subject_key(const Subject *subject) noexcept nogil
cdef const uint8_t *subject_end(const Subject *subject) noexcept nogil


cdef class WatchIndex:
    cdef Subject **subjects         # of single keys, by hash
    cdef uint64_t subjects_mask
    cdef uint64_t subject_count     # of single keys
    cdef RangeNode *root
    cdef Watcher **watchers         # by hash of stream and id
    cdef uint64_t watchers_mask
    cdef readonly uint64_t watcher_count
    cdef uint64_t seed              # of hashes
    cdef uint64_t state             # of priorities
    cdef WatchStream loner          # for tests

    cdef Watcher *add(
        self, WatchStream *stream, int64_t id, const uint8_t *key, size_t key_size,
        const uint8_t *end, size_t end_size, uint32_t flags) noexcept nogil
    cdef void remove(self, Watcher *watcher) noexcept nogil
    cdef Watcher *find(self, const WatchStream *stream, int64_t id) noexcept nogil
    cdef bint match(self, const uint8_t *key, size_t size, Buffer *out) except -1 nogil

    cdef Subject *_subject(
        self, const uint8_t *key, size_t key_size, const uint8_t *end, size_t end_size,
        uint32_t flags) noexcept nogil
    cdef uint64_t _slot_of(self, const WatchStream *stream, int64_t id) noexcept nogil
    cdef void _drop(self, Subject *subject) noexcept nogil
    cdef bint _grow(self) noexcept nogil
    cdef uint64_t random(self) noexcept nogil
