# cython: language_level=3
"""The load generator: connections, streams and time; nghttp2 does HTTP/2."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from bench._exchange cimport Exchange, Work
from bench._histogram cimport Histogram, Tally
from bench._keyspace cimport Keyspace
from bench._link cimport Link
from bench._moments cimport Moments
from bench._nghttp2 cimport nghttp2_nv, nghttp2_session_callbacks

cdef enum Order:
    SEQUENTIAL = 0      # 0, 1, 2 ...: to fill a keyspace
    RANDOM = 1          # any key
    OWN = 2             # any of the keys that belong to this slot alone


cdef struct Slot:
    # Room for one request in flight.
    Exchange exchange
    Connection *connection
    int64_t number              # of this slot among all
    int32_t stream
    bint busy
    int64_t due                 # ns: when the request was to be sent
    Slot *next                  # in the queue of free slots


cdef struct Connection:
    Link link                   # first: see bench/_link.pyx
    Engine *engine
    Slot *slot                  # the one that callbacks asked for last
    Slot *slots                 # the engine's slots of this connection


cdef struct Engine:
    Work work
    nghttp2_session_callbacks *callbacks
    nghttp2_nv[8] headers
    int epoll
    Connection *connections
    int64_t connection_count
    int64_t connections_left    # not lost
    Slot *slots
    int64_t slot_count
    int64_t streams             # slots of one connection
    Slot *free_first
    Slot *free_last
    uint8_t *received           # what recv fills
    # -- the plan of one run
    Order order
    int64_t end                 # ns: nothing is issued from here on; 0 is never
    int64_t give_up             # ns: the run ends, whatever is in flight
    int64_t window_start        # ns: what completes (open loop: is due) from here on is measured
    int64_t window_end          # ns; 0 is never
    double interval             # ns between requests of an open loop; 0 is a closed loop
    double due                  # ns: when the next request of an open loop is to leave
    int64_t requests_left
    bint stop
    # -- the state of one run
    int64_t now                 # ns
    int64_t next_key
    uint64_t random
    int64_t in_flight
    int64_t first_issue
    int64_t last_completion
    int64_t completed
    int64_t succeeded
    int64_t failed
    int64_t wrong
    bint unimplemented          # a request was answered with that status
    char[256] problem
    Tally *tally
    Moments *moments            # not owned; NULL unless watchers count what this load writes


cdef class Load:
    cdef Engine engine
    cdef Keyspace keyspace      # kept alive, and its arrays with it
    cdef bytes path
    cdef bytes authority
    cdef bytes message
    cdef bint running

    cdef int prepare(self, Histogram latency, double seconds, double warmup, int64_t requests,
                     double rate, double patience) except -1
    cdef object outcome(self, Histogram latency, int64_t cpu)


# For whoever runs a prepared load inside a loop of its own.
cdef void begin(Engine *engine) noexcept nogil
cdef bint is_over(Engine *engine) noexcept nogil
cdef int64_t pause_of(Engine *engine, int64_t until) noexcept nogil
cdef void turn(Engine *engine, int milliseconds) noexcept nogil
