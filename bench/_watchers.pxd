# cython: language_level=3
"""Watchers: connections, streams, and what each watcher must see next: the C half."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from bench._histogram cimport Tally
from bench._keyspace cimport Keys, Keyspace
from bench._moments cimport Moments
from bench._pipe cimport Pipe
from bench._pool cimport Pool

cdef enum On:
    ONE_KEY = 0         # all watchers watch key 0
    OWN_KEY = 1         # watcher n watches key n, modulo their number
    PREFIX = 2          # all watchers watch all keys


cdef struct Watcher:
    int64_t key
    int64_t revision            # of the last event
    uint32_t *version           # of the last event; by key for a prefix
    uint32_t own_version        # what `version` points to for a single key


cdef struct Stream:
    Pipe pipe                   # first: see bench/_pipe.pyx
    Crowd *crowd
    Watcher *watchers           # the crowd's of this stream
    int64_t count
    int64_t requested
    int64_t created


cdef struct Event:
    # One event as it was read; data points into the message.
    bint is_delete
    const uint8_t *key
    size_t key_size
    const uint8_t *value
    size_t value_size
    int64_t mod_revision
    uint64_t version


cdef struct Crowd:
    Pool pool                   # of Streams
    Keys *keys
    On on
    int64_t start_revision
    bint deletes                # each key is to be deleted once; otherwise only puts come
    Watcher *watchers
    int64_t watcher_count
    uint32_t *versions          # owned; of watchers of a prefix
    int64_t created
    # -- slow reading
    double pace                 # bytes a second of each connection; 0 is as fast as they come
    bint paced                  # now
    double read_due             # ns: when the next connection is read
    int64_t read_next           # its number
    # -- the plan of one run
    int64_t give_up             # ns; counted anew when the end is known
    int64_t patience            # ns
    int64_t window_start
    int64_t window_end          # ns; 0 is never
    # -- the state of one run
    bint running                # all watchers are created and a run has begun
    bint finishing              # no more will be written
    bint counted                # `missing` is known
    int64_t missing             # events that have to come yet
    int64_t first_event
    int64_t last_event
    int64_t delivered           # in the window
    int64_t succeeded
    Tally *tally
    Moments moments


cdef class Watchers:
    cdef Crowd crowd
    cdef Keyspace keyspace      # kept alive, and its arrays with it
    cdef bytes authority
    cdef double creating        # seconds that it took to create all watchers
    cdef bint running

    cdef int wait_created(self, double patience) except -1
    cdef object delivery(self, object latency, int64_t cpu, object writes)
