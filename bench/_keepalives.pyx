# cython: language_level=3
"""Keep-alives in a closed loop: one thread, no GIL, every answer checked.

Rules:
- Each stream has one request on its way and goes round its own share of the leases, whose ids are
  those that a `Load` of grants gives out.
- An answer is right when it names the lease that was asked for and the time to live that was
  granted: etcd answers 0 for a lease that it does not have.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t

cimport cython

from bench._histogram cimport Histogram, tally_record
from bench._keyspace cimport LEASE_FIRST
from bench._link cimport (
    CLOCK_MONOTONIC,
    CLOCK_THREAD_CPUTIME_ID,
    EVENTS,
    SLICE,
    WINDOW,
    clock,
    epoll_event,
    epoll_wait,
)
from bench._pipe cimport pipe_wake
from bench._pool cimport (
    Connection,
    Pool,
    pool_accuse,
    pool_answer,
    pool_connect,
    pool_flush,
    pool_free,
    pool_lose_stream,
    pool_open_streams,
    pool_pipe,
    pool_prepare,
    pool_serve,
)
from bench._protobuf cimport Field, read_field, write_tag, write_varint

from bench.outcome import Outcome

PATH = b"/etcdserverpb.Lease/LeaseKeepAlive"


@cython.final
cdef class KeepAlives:
    """Streams of keep-alives to one server on the loopback interface."""

    def __cinit__(self):
        self.crew.pool.epoll = -1

    def __init__(self, int port, int64_t leases, int64_t ttl, *, int64_t connections=1,
                 int64_t streams=1):
        cdef Crew *crew = &self.crew
        assert crew.pool.epoll == -1, "KeepAlives are initialised once"
        if leases < connections * streams:
            raise ValueError("each stream needs a lease of its own")
        self.authority = b"127.0.0.1:%d" % port
        crew.leases = leases
        crew.ttl = ttl
        if not prepare_crew(crew, connections, streams):
            raise MemoryError(f"no memory for {connections} connections of {streams} streams")
        pool_connect(&crew.pool, port, PATH, self.authority, WINDOW, 0)
        pool_open_streams(&crew.pool)

    def __dealloc__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def run(self, *, double seconds, double warmup=0.0, double patience=20.0):
        """Work for `seconds` after `warmup`; raises RuntimeError when closed."""
        cdef Crew *crew = &self.crew
        cdef Pool *pool = &crew.pool
        cdef Histogram latency = Histogram()
        cdef int64_t cpu
        cdef bint more = True
        if crew.pool.connections == NULL or self.running:
            raise RuntimeError("the keep-alives are closed or running")
        crew.tally = &latency.tally
        self.running = True
        try:
            with nogil:
                cpu = clock(CLOCK_THREAD_CPUTIME_ID)
                crew.pool.now = clock(CLOCK_MONOTONIC)
                crew.window_start = crew.pool.now + <int64_t>(warmup * 1e9)
                crew.end = crew.window_start + <int64_t>(seconds * 1e9)
                crew.give_up = crew.end + <int64_t>(patience * 1e9)
                crew.completed = crew.succeeded = crew.pool.wrong = 0
                begin(crew)
            while more:
                with nogil:
                    more = work_a_slice(crew)
                PyErr_CheckSignals()
            cpu = clock(CLOCK_THREAD_CPUTIME_ID) - cpu
        finally:
            self.running = False
        return Outcome(
            completed=crew.completed, elapsed=seconds, succeeded=crew.succeeded,
            failed=pool.stream_count - pool.streams_left, wrong=pool.wrong,
            unfinished=crew.in_flight, problem=pool.fault.text.decode("utf-8", "replace"),
            cpu=cpu / 1e9, latency=latency, unimplemented=pool.fault.unimplemented,
        )

    def close(self):
        """Close all connections; more than once does no harm."""
        assert not self.running, "keep-alives are closed by the thread that runs them"
        pool_free(&self.crew.pool)


# -- memory

cdef bint prepare_crew(Crew *crew, int64_t connections, int64_t streams) noexcept nogil:
    """Allocate connections and streams; False when memory or descriptors are out."""
    cdef int64_t number
    cdef Stream *stream
    if not pool_prepare(&crew.pool, connections, streams, sizeof(Stream)):
        return False
    pool_answer(&crew.pool, next_request, take_answer, lose_stream)
    for number in range(crew.pool.stream_count):
        stream = <Stream *>pool_pipe(&crew.pool, number)
        stream.crew = crew
        stream.number = number
    return True


# -- the loop

cdef void begin(Crew *crew) noexcept nogil:
    """Send the first request of every stream."""
    cdef int64_t number
    for number in range(crew.pool.stream_count):
        pipe_wake(pool_pipe(&crew.pool, number))
    for number in range(crew.pool.connection_count):
        pool_flush(&crew.pool, &crew.pool.connections[number])


cdef bint work_a_slice(Crew *crew) noexcept nogil:
    """Serve the connections for a while; False when the run is over."""
    cdef epoll_event[EVENTS] events
    cdef Pool *pool = &crew.pool
    cdef int64_t until = pool.now + SLICE
    cdef int ready, number
    while pool.now < until:
        if pool.streams_left == 0 or pool.now >= crew.give_up:
            return False
        if pool.now >= crew.end and crew.in_flight == 0:
            return False
        ready = epoll_wait(pool.epoll, events, EVENTS, <int>((until - pool.now) // 1000000) + 1)
        pool.now = clock(CLOCK_MONOTONIC)
        for number in range(ready):
            pool_serve(pool, <Connection *>events[number].data.ptr, events[number].events)
    return True


cdef void lose_stream(Pipe *pipe) noexcept nogil:
    """The stream is over, which nobody asked for."""
    cdef Stream *stream = <Stream *>pipe
    cdef Crew *crew = stream.crew
    if pool_lose_stream(&crew.pool, pipe, b"the server ended a stream of keep-alives"):
        crew.in_flight -= stream.busy
        stream.busy = False


# -- messages

cdef size_t next_request(Pipe *pipe, uint8_t *at) noexcept nogil:
    """The LeaseKeepAliveRequest of the stream's next lease; 0 while one is on its way."""
    cdef Stream *stream = <Stream *>pipe
    cdef Crew *crew = stream.crew
    cdef int64_t own
    if stream.busy or crew.pool.now >= crew.end:
        return 0
    own = (crew.leases - stream.number - 1) // crew.pool.stream_count + 1
    stream.lease = LEASE_FIRST + stream.number + stream.turn * crew.pool.stream_count
    stream.turn = (stream.turn + 1) % own
    stream.busy = True
    stream.sent = crew.pool.now
    crew.in_flight += 1
    return write_varint(write_tag(at, 1, 0), stream.lease) - at


cdef void take_answer(Pipe *pipe, const uint8_t *message, size_t size) noexcept nogil:
    """One LeaseKeepAliveResponse: judge it and send the next request."""
    cdef Stream *stream = <Stream *>pipe
    cdef Crew *crew = stream.crew
    cdef const uint8_t *at = message
    cdef const uint8_t *end = message + size
    cdef int64_t lease = 0
    cdef int64_t ttl = 0
    cdef Field field
    while at < end:
        at = read_field(at, end, &field)
        if at == NULL:
            break
        if field.number == 2:
            lease = <int64_t>field.value
        elif field.number == 3:
            ttl = <int64_t>field.value
    if at == NULL or not stream.busy:
        pool_accuse(&crew.pool, b"an answer is malformed or was not asked for")
        return
    stream.busy = False
    crew.in_flight -= 1
    if lease != stream.lease:
        pool_accuse(&crew.pool, b"the answer is about another lease")
    elif ttl != crew.ttl:
        pool_accuse(&crew.pool, b"the answer's time to live is not what was granted")
    else:
        crew.succeeded += 1
        if crew.window_start <= crew.pool.now < crew.end:
            crew.completed += 1
            tally_record(crew.tally, crew.pool.now - stream.sent)
    pipe_wake(pipe)
