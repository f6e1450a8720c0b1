# cython: language_level=3
"""Keep-alives in a closed loop: one thread, no GIL, every answer checked.

Rules:
- Each stream has one request on its way and goes round its own share of the leases, whose ids are
  those that a `Load` of grants gives out.
- An answer is right when it names the lease that was asked for and the time to live that was
  granted: etcd answers 0 for a lease that it does not have.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cimport cython

from bench._histogram cimport Histogram, tally_record
from bench._keyspace cimport LEASE_FIRST
from bench._link cimport (
    CLOCK_MONOTONIC,
    CLOCK_THREAD_CPUTIME_ID,
    EPOLL_CLOEXEC,
    EPOLLOUT,
    EVENTS,
    RECEIVE_BYTES,
    SLICE,
    WINDOW,
    clock,
    close,
    epoll_create1,
    epoll_event,
    epoll_wait,
    headers_prepare,
    link_flush,
    link_free,
    link_lose,
    link_open,
    link_prepare,
    link_receive,
)
from bench._nghttp2 cimport nghttp2_session_callbacks_del
from bench._pipe cimport callbacks_prepare, fault_say, pipe_free, pipe_open, pipe_wake
from bench._protobuf cimport Field, read_field, write_tag, write_varint

from bench._link import connect
from bench.outcome import Outcome

PATH = b"/etcdserverpb.Lease/LeaseKeepAlive"


@cython.final
cdef class KeepAlives:
    """Streams of keep-alives to one server on the loopback interface."""

    def __cinit__(self):
        self.crew.epoll = -1

    def __init__(self, int port, int64_t leases, int64_t ttl, *, int64_t connections=1,
                 int64_t streams=1):
        cdef Crew *crew = &self.crew
        assert crew.epoll == -1, "KeepAlives are initialised once"
        if leases < connections * streams:
            raise ValueError("each stream needs a lease of its own")
        self.authority = b"127.0.0.1:%d" % port
        crew.leases = leases
        crew.ttl = ttl
        headers_prepare(crew.headers, PATH, self.authority)
        if not prepare_crew(crew, connections, streams):
            raise MemoryError(f"no memory for {connections} connections of {streams} streams")
        for number in range(connections):
            link_open(&crew.connections[number].link, connect(port), crew.callbacks, streams,
                      WINDOW)
        open_streams(crew)

    def __dealloc__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def run(self, *, double seconds, double warmup=0.0, double patience=20.0):
        """Work for `seconds` after `warmup`; raises RuntimeError when closed."""
        cdef Crew *crew = &self.crew
        cdef Histogram latency = Histogram()
        cdef int64_t cpu
        cdef bint more = True
        if crew.connections == NULL or self.running:
            raise RuntimeError("the keep-alives are closed or running")
        crew.tally = &latency.tally
        self.running = True
        try:
            with nogil:
                cpu = clock(CLOCK_THREAD_CPUTIME_ID)
                crew.now = clock(CLOCK_MONOTONIC)
                crew.window_start = crew.now + <int64_t>(warmup * 1e9)
                crew.end = crew.window_start + <int64_t>(seconds * 1e9)
                crew.give_up = crew.end + <int64_t>(patience * 1e9)
                crew.completed = crew.succeeded = crew.wrong = 0
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
            failed=crew.stream_count - crew.streams_left, wrong=crew.wrong,
            unfinished=crew.in_flight, problem=crew.fault.text.decode("utf-8", "replace"),
            cpu=cpu / 1e9, latency=latency, unimplemented=crew.fault.unimplemented,
        )

    def close(self):
        """Close all connections; more than once does no harm."""
        assert not self.running, "keep-alives are closed by the thread that runs them"
        free_crew(&self.crew)


# -- memory

cdef bint prepare_crew(Crew *crew, int64_t connections, int64_t streams) noexcept nogil:
    """Allocate connections and streams; False when memory or descriptors are out."""
    cdef int64_t number
    cdef Stream *stream
    crew.epoll = epoll_create1(EPOLL_CLOEXEC)
    crew.received = <uint8_t *>malloc(RECEIVE_BYTES)
    crew.streams = <Stream *>calloc(connections * streams, sizeof(Stream))
    crew.connections = <Connection *>calloc(connections, sizeof(Connection))
    if crew.epoll < 0 or not (crew.received and crew.streams and crew.connections):
        return False
    if not callbacks_prepare(&crew.callbacks):
        return False
    crew.connection_count = connections
    crew.streams_each = streams
    crew.stream_count = crew.streams_left = connections * streams
    for number in range(connections):
        crew.connections[number].streams = &crew.streams[number * streams]
        if not link_prepare(&crew.connections[number].link, crew.epoll):
            return False
    for number in range(crew.stream_count):
        stream = &crew.streams[number]
        stream.crew = crew
        stream.number = number
        stream.pipe.link = &crew.connections[number // streams].link
        stream.pipe.fault = &crew.fault
        stream.pipe.produce = next_request
        stream.pipe.consume = take_answer
        stream.pipe.ended = lose_stream
    return True


cdef void free_crew(Crew *crew) noexcept nogil:
    """Close and free everything."""
    cdef int64_t number
    if crew.connections != NULL:
        for number in range(crew.connection_count):
            link_free(&crew.connections[number].link)
    if crew.streams != NULL:
        for number in range(crew.stream_count):
            pipe_free(&crew.streams[number].pipe)
    if crew.callbacks != NULL:
        nghttp2_session_callbacks_del(crew.callbacks)
    if crew.epoll >= 0:
        close(crew.epoll)
    free(crew.connections)
    free(crew.streams)
    free(crew.received)
    memset(crew, 0, sizeof(Crew))
    crew.epoll = -2


# -- the loop

cdef void open_streams(Crew *crew) noexcept nogil:
    """Begin every stream; nothing is asked on it yet."""
    cdef int64_t number, place
    cdef Connection *connection
    for number in range(crew.connection_count):
        connection = &crew.connections[number]
        for place in range(crew.streams_each):
            if not pipe_open(&connection.streams[place].pipe, crew.headers):
                lose(crew, connection, b"the connection takes no more streams")
                break
        flush(crew, connection)


cdef void begin(Crew *crew) noexcept nogil:
    """Send the first request of every stream."""
    cdef int64_t number, place
    cdef Connection *connection
    for number in range(crew.connection_count):
        connection = &crew.connections[number]
        for place in range(crew.streams_each):
            pipe_wake(&connection.streams[place].pipe)
        flush(crew, connection)


cdef bint work_a_slice(Crew *crew) noexcept nogil:
    """Serve the connections for a while; False when the run is over."""
    cdef epoll_event[EVENTS] events
    cdef int64_t until = crew.now + SLICE
    cdef int ready, number
    while crew.now < until:
        if crew.streams_left == 0 or crew.now >= crew.give_up:
            return False
        if crew.now >= crew.end and crew.in_flight == 0:
            return False
        ready = epoll_wait(crew.epoll, events, EVENTS, <int>((until - crew.now) // 1000000) + 1)
        crew.now = clock(CLOCK_MONOTONIC)
        for number in range(ready):
            serve(crew, <Connection *>events[number].data.ptr, events[number].events)
    return True


cdef void serve(Crew *crew, Connection *connection, uint32_t events) noexcept nogil:
    """Read what came and send what follows from it."""
    cdef const char *problem = NULL
    if events & ~EPOLLOUT:
        problem = link_receive(&connection.link, crew.received, RECEIVE_BYTES, &crew.now)
    if problem == NULL:
        flush(crew, connection)
    else:
        lose(crew, connection, problem)


cdef void flush(Crew *crew, Connection *connection) noexcept nogil:
    """Send what HTTP/2 has to say, as far as the socket takes it."""
    cdef const char *problem = link_flush(&connection.link)
    if problem != NULL:
        lose(crew, connection, problem)


cdef void lose(Crew *crew, Connection *connection, const char *why) noexcept nogil:
    """Give a connection up, and its streams."""
    cdef int64_t place
    if connection.link.lost:
        return
    link_lose(&connection.link)
    fault_say(&crew.fault, why)
    for place in range(crew.streams_each):
        lose_stream(&connection.streams[place].pipe)


cdef void lose_stream(Pipe *pipe) noexcept nogil:
    """The stream is over, which nobody asked for."""
    cdef Stream *stream = <Stream *>pipe
    if pipe.stream >= 0:
        pipe.stream = -1
        stream.crew.streams_left -= 1
        if stream.busy:
            stream.busy = False
            stream.crew.in_flight -= 1
        fault_say(pipe.fault, b"the server ended a stream of keep-alives")


# -- messages

cdef size_t next_request(Pipe *pipe, uint8_t *at) noexcept nogil:
    """The LeaseKeepAliveRequest of the stream's next lease; 0 while one is on its way."""
    cdef Stream *stream = <Stream *>pipe
    cdef Crew *crew = stream.crew
    cdef int64_t own
    if stream.busy or crew.now >= crew.end:
        return 0
    own = (crew.leases - stream.number - 1) // crew.stream_count + 1
    stream.lease = LEASE_FIRST + stream.number + stream.turn * crew.stream_count
    stream.turn = (stream.turn + 1) % own
    stream.busy = True
    stream.sent = crew.now
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
        accuse(crew, b"an answer is malformed or was not asked for")
        return
    stream.busy = False
    crew.in_flight -= 1
    if lease != stream.lease:
        accuse(crew, b"the answer is about another lease")
    elif ttl != crew.ttl:
        accuse(crew, b"the answer's time to live is not what was granted")
    else:
        crew.succeeded += 1
        if crew.window_start <= crew.now < crew.end:
            crew.completed += 1
            tally_record(crew.tally, crew.now - stream.sent)
    pipe_wake(pipe)


cdef void accuse(Crew *crew, const char *problem) noexcept nogil:
    """Something came that etcd would not send."""
    crew.wrong += 1
    fault_say(&crew.fault, problem)
