# cython: language_level=3
"""The load generator: many connections and streams, one thread, no GIL, answers checked.

Rules:
- One `Load` is a set of connections with one kind of work; `run` may be called again and again on
  it. Loads in different threads run side by side: the GIL is released while they work.
- Closed loop (the default): each of connections x streams slots sends its next request when its
  last one is answered. Open loop (`rate`): requests leave at a fixed pace whatever the server does,
  and latency counts from when a request was *due*, so a server that stalls cannot hide it.
- Every run is bounded: by `seconds` or `requests`, then by `patience` seconds for those in flight.
- A lost connection fails its requests and is not opened again; without any connection the run ends.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

cimport cython

from bench._exchange cimport (
    CALL,
    DELETE,
    GET,
    GRANT,
    LIST,
    PUT,
    TXN,
    Exchange,
    exchange_begin,
    exchange_build,
    exchange_end,
    exchange_feed,
    exchange_free,
)
from bench._histogram cimport Histogram, tally_record
from bench._keyspace cimport Keyspace
from bench._link cimport (
    CLOCK_MONOTONIC,
    CLOCK_THREAD_CPUTIME_ID,
    EPOLL_CLOEXEC,
    EPOLLOUT,
    EVENTS,
    HEADERS,
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
    wait_readable,
)
from bench._moments cimport moments_answered, moments_sent
from bench._nghttp2 cimport *
from bench._pipe cimport UNIMPLEMENTED
from bench._protobuf cimport GRPC_PREFIX

from bench._link import connect
from bench.outcome import Outcome

KINDS = {
    "put": PUT,
    "get": GET,
    "list": LIST,
    "txn": TXN,
    "call": CALL,
    "grant": GRANT,
    "delete": DELETE,
}
ORDERS = {"sequential": SEQUENTIAL, "random": RANDOM, "own": OWN}
PATHS = {
    "put": "/etcdserverpb.KV/Put",
    "get": "/etcdserverpb.KV/Range",
    "list": "/etcdserverpb.KV/Range",
    "txn": "/etcdserverpb.KV/Txn",
    "grant": "/etcdserverpb.Lease/LeaseGrant",
    "delete": "/etcdserverpb.KV/DeleteRange",
}


@cython.final
cdef class Load:
    """Connections to one server on the loopback interface, with one kind of work for them."""

    def __cinit__(self):
        self.engine.epoll = -1

    def __init__(self, int port, str kind, Keyspace keyspace=None, *, int64_t connections=1,
                 int64_t streams=1, str order="random", bint serializable=False,
                 bint count_only=False, bint keys_only=False, int64_t limit=0, bint check=True,
                 bint leased=False, int window=WINDOW, uint64_t seed=1, str path="",
                 bytes message=b""):
        cdef Engine *engine = &self.engine
        assert engine.epoll == -1, "a Load is initialised once"
        if kind != "call" and keyspace is None:
            raise ValueError(f"a load of {kind} needs a keyspace")
        if kind in ("txn", "delete"):
            order = "own"
        if order == "own" and keyspace.count < connections * streams:
            raise ValueError("each stream needs a key of its own")
        self.keyspace = keyspace
        self.path = (path or PATHS[kind]).encode()
        self.authority = b"127.0.0.1:%d" % port
        self.message = message
        engine.work.kind = KINDS[kind]
        engine.work.keys = &keyspace.keys if keyspace is not None else NULL
        engine.work.check = check
        engine.work.serializable = serializable
        engine.work.count_only = count_only
        engine.work.keys_only = keys_only
        engine.work.limit = limit
        engine.work.leased = leased
        engine.work.message = self.message
        engine.work.message_size = len(message)
        engine.order = ORDERS[order]
        engine.random = seed * <uint64_t>0x9E3779B97F4A7C15ULL | 1
        headers_prepare(engine.headers, self.path, self.authority)
        if not prepare_engine(engine, connections, streams):
            raise MemoryError(f"no memory for {connections} connections of {streams} streams")
        for number in range(connections):
            link_open(&engine.connections[number].link, connect(port), engine.callbacks, streams,
                      window)
            engine.connections_left += 1
            flush(&engine.connections[number])

    def __dealloc__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def run(self, *, double seconds=0.0, double warmup=0.0, int64_t requests=0, double rate=0.0,
            double patience=20.0, int64_t first=0, int64_t ttl=0):
        """Work for `seconds` after `warmup`, or for `requests`; raises RuntimeError when closed.

        A sequential order begins with key `first`; grants give `ttl` seconds.
        """
        cdef Engine *engine = &self.engine
        cdef Histogram latency = Histogram()
        cdef int64_t cpu
        cdef bint more = True
        self.prepare(latency, seconds, warmup, requests, rate, patience)
        engine.next_key = first
        engine.work.ttl = ttl
        self.running = True
        try:
            with nogil:
                cpu = clock(CLOCK_THREAD_CPUTIME_ID)
                begin(engine)
            while more:
                with nogil:
                    more = work_a_slice(engine)
                PyErr_CheckSignals()
            cpu = clock(CLOCK_THREAD_CPUTIME_ID) - cpu
        finally:
            self.running = False
        return self.outcome(latency, cpu)

    def stop(self):
        """Let a run in another thread issue nothing more and end when all is answered."""
        self.engine.stop = True

    def close(self):
        """Close all connections; more than once does no harm."""
        assert not self.running, "a load is closed by the thread that runs it"
        free_engine(&self.engine)

    @property
    def reply(self):
        """The message that the last CALL on the first slot gave."""
        cdef Exchange *exchange = &self.engine.slots.exchange
        if exchange.carry_size < GRPC_PREFIX:
            return b""
        return exchange.carry[GRPC_PREFIX:exchange.carry_size]

    @property
    def status(self):
        """The gRPC status of the last request on the first slot; -1 when none came."""
        return self.engine.slots.exchange.status

    cdef int prepare(self, Histogram latency, double seconds, double warmup, int64_t requests,
                     double rate, double patience) except -1:
        """Write down when the next run begins, measures and ends, and forget the last one."""
        cdef Engine *engine = &self.engine
        if engine.connections == NULL or self.running:
            raise RuntimeError("the load is closed or running")
        if (seconds > 0) == (requests > 0):
            raise ValueError("give either seconds or requests")
        engine.tally = &latency.tally
        engine.now = clock(CLOCK_MONOTONIC)
        engine.window_start = engine.now + <int64_t>(warmup * 1e9)
        engine.end = engine.window_start + <int64_t>(seconds * 1e9) if seconds > 0 else 0
        engine.window_end = engine.end
        engine.give_up = (engine.end if engine.end else engine.now) + <int64_t>(patience * 1e9)
        engine.interval = 1e9 / rate if rate > 0 else 0
        engine.due = <double>engine.now
        engine.requests_left = requests if requests > 0 else <int64_t>1 << 62
        engine.first_issue = engine.last_completion = engine.now
        engine.stop = False
        engine.completed = engine.succeeded = engine.failed = engine.wrong = 0
        engine.next_key = 0
        engine.unimplemented = False
        engine.problem[0] = 0
        return 0

    cdef object outcome(self, Histogram latency, int64_t cpu):
        """What came of the run that is over; connections with requests in flight are lost."""
        cdef Engine *engine = &self.engine
        cdef int64_t unfinished = engine.in_flight + never_sent(engine)
        elapsed = measured(engine)
        abandon(engine)
        return Outcome(
            completed=engine.completed, elapsed=elapsed / 1e9, succeeded=engine.succeeded,
            failed=engine.failed, wrong=engine.wrong, unfinished=unfinished,
            problem=engine.problem.decode("utf-8", "replace"), cpu=cpu / 1e9, latency=latency,
            unimplemented=engine.unimplemented,
        )


# -- memory

cdef bint prepare_engine(Engine *engine, int64_t connections, int64_t streams) noexcept nogil:
    """Allocate slots and connections; False when memory or descriptors are out."""
    cdef int64_t number, place
    cdef Slot *slot
    engine.epoll = epoll_create1(EPOLL_CLOEXEC)
    engine.received = <uint8_t *>malloc(RECEIVE_BYTES)
    engine.slots = <Slot *>calloc(connections * streams, sizeof(Slot))
    engine.connections = <Connection *>calloc(connections, sizeof(Connection))
    if engine.epoll < 0 or not (engine.received and engine.slots and engine.connections):
        return False
    if nghttp2_session_callbacks_new(&engine.callbacks) != 0:
        return False
    nghttp2_session_callbacks_set_on_header_callback(engine.callbacks, on_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(engine.callbacks, on_data)
    nghttp2_session_callbacks_set_on_stream_close_callback(engine.callbacks, on_stream_close)
    engine.connection_count = connections
    engine.streams = streams
    engine.slot_count = connections * streams
    for number in range(connections):
        engine.connections[number].engine = engine
        engine.connections[number].slots = &engine.slots[number * streams]
        if not link_prepare(&engine.connections[number].link, engine.epoll):
            return False
    # Free slots in turn of connections, so that an open loop spreads over them.
    for place in range(engine.slot_count):
        number = place % connections
        slot = &engine.slots[number * streams + place // connections]
        slot.connection = &engine.connections[number]
        slot.number = place
        if not exchange_build(&slot.exchange, &engine.work):
            return False
        push_free(engine, slot)
    return True


cdef void free_engine(Engine *engine) noexcept nogil:
    """Close and free all that `prepare_engine` and `link_open` made."""
    cdef int64_t number
    if engine.connections != NULL:
        for number in range(engine.connection_count):
            link_free(&engine.connections[number].link)
    if engine.slots != NULL:
        for number in range(engine.slot_count):
            exchange_free(&engine.slots[number].exchange)
    if engine.callbacks != NULL:
        nghttp2_session_callbacks_del(engine.callbacks)
    if engine.epoll >= 0:
        close(engine.epoll)
    free(engine.connections)
    free(engine.slots)
    free(engine.received)
    engine.connections = NULL
    engine.slots = NULL
    engine.callbacks = NULL
    engine.received = NULL
    engine.epoll = -2
    engine.connection_count = engine.slot_count = 0


# -- time

cdef int64_t measured(Engine *engine) noexcept nogil:
    """How long the measured window was, in ns."""
    if not engine.window_end:
        return engine.last_completion - engine.first_issue
    # A window that was cut short by `stop` or by lost connections ends with its last answer.
    if engine.stop or engine.connections_left == 0:
        return min(engine.window_end, engine.last_completion) - engine.window_start
    return engine.window_end - engine.window_start


cdef int64_t never_sent(Engine *engine) noexcept nogil:
    """Requests of an open loop that were due before the end and never left."""
    cdef double last = <double>engine.end
    if engine.interval == 0 or engine.stop or not engine.end or engine.due >= last:
        return 0
    return <int64_t>((last - engine.due) / engine.interval)


# -- the loop

cdef void begin(Engine *engine) noexcept nogil:
    """Issue the first requests of a run."""
    cdef int64_t number
    if engine.interval:
        issue_due(engine)
        return
    while engine.free_first != NULL and may_issue(engine) and not is_held(engine):
        issue(engine, pop_free(engine), engine.now)
    for number in range(engine.connection_count):
        flush(&engine.connections[number])


cdef bint work_a_slice(Engine *engine) noexcept nogil:
    """Serve the connections for a while; False when the run is over."""
    cdef int64_t until = engine.now + SLICE
    cdef int64_t pause
    while engine.now < until:
        if is_over(engine):
            return False
        pause = pause_of(engine, until)
        # An open loop needs its nanoseconds; epoll_wait knows only milliseconds.
        if engine.interval:
            wait_readable(engine.epoll, pause)
            pause = 0
        turn(engine, <int>(pause // 1000000) + (pause > 0))
    return True


cdef bint is_over(Engine *engine) noexcept nogil:
    """Whether nothing is in flight or to come, or it is too late."""
    if engine.connections_left == 0 or engine.now >= engine.give_up:
        return True
    return engine.in_flight == 0 and not more_to_come(engine)


cdef int64_t pause_of(Engine *engine, int64_t until) noexcept nogil:
    """How long to wait, in ns, until then or until a request of an open loop is due."""
    cdef int64_t pause = until - engine.now
    if engine.interval and engine.free_first != NULL and may_issue_at(engine, engine.due):
        pause = min(pause, <int64_t>engine.due - engine.now)
    return max(pause, 0)


cdef void turn(Engine *engine, int milliseconds) noexcept nogil:
    """Serve what is ready within this time, and issue what is due."""
    cdef epoll_event[EVENTS] events
    cdef int number
    cdef int ready = epoll_wait(engine.epoll, events, EVENTS, milliseconds)
    engine.now = clock(CLOCK_MONOTONIC)
    for number in range(ready):
        serve(<Connection *>events[number].data.ptr, events[number].events)
    if engine.interval:
        issue_due(engine)
    elif engine.moments != NULL:
        issue_free(engine)


cdef inline bint may_issue(Engine *engine) noexcept nogil:
    """Whether a closed loop goes on."""
    return (engine.requests_left > 0 and not engine.stop
            and (engine.end == 0 or engine.now < engine.end))


cdef inline bint is_held(Engine *engine) noexcept nogil:
    """Whether a closed loop has to wait for watchers."""
    return (engine.moments != NULL and engine.moments.undelivered_max
            and engine.moments.undelivered >= engine.moments.undelivered_max)


cdef inline bint may_issue_at(Engine *engine, double due) noexcept nogil:
    """Whether an open loop has a request to send that is due then."""
    return (engine.requests_left > 0 and not engine.stop
            and (engine.end == 0 or due < <double>engine.end))


cdef bint more_to_come(Engine *engine) noexcept nogil:
    if engine.interval:
        return may_issue_at(engine, engine.due)
    return engine.free_first != NULL and may_issue(engine)


cdef void issue_due(Engine *engine) noexcept nogil:
    """Open loop: send whatever is due, as far as slots are free."""
    cdef Slot *slot
    while engine.due <= <double>engine.now and may_issue_at(engine, engine.due):
        slot = pop_free(engine)
        if slot == NULL:
            return
        issue(engine, slot, <int64_t>engine.due)
        engine.due += engine.interval
        flush(slot.connection)


cdef void issue_free(Engine *engine) noexcept nogil:
    """Closed loop that waits for watchers: send again what they have room for."""
    cdef Slot *slot
    while engine.free_first != NULL and may_issue(engine) and not is_held(engine):
        slot = pop_free(engine)
        if slot == NULL:
            return
        issue(engine, slot, engine.now)
        flush(slot.connection)


cdef void push_free(Engine *engine, Slot *slot) noexcept nogil:
    slot.next = NULL
    if engine.free_first == NULL:
        engine.free_first = slot
    else:
        engine.free_last.next = slot
    engine.free_last = slot


cdef Slot *pop_free(Engine *engine) noexcept nogil:
    """The slot that is free for longest, of a connection that lives; NULL when there is none."""
    cdef Slot *slot = engine.free_first
    while slot != NULL:
        engine.free_first = slot.next
        if not slot.connection.link.lost:
            return slot
        slot = engine.free_first
    return NULL


cdef inline int64_t choose_key(Engine *engine, Slot *slot) noexcept nogil:
    """The number of the key that the next request of this slot is about."""
    cdef int64_t keys, key, range_size
    if engine.work.keys == NULL:
        return 0
    keys = engine.work.keys.count
    if engine.order == SEQUENTIAL:
        key = engine.next_key
        engine.next_key = key + 1 if key + 1 < keys else 0
        return key
    engine.random ^= engine.random >> 12
    engine.random ^= engine.random << 25
    engine.random ^= engine.random >> 27
    key = <int64_t>((engine.random * <uint64_t>0x2545F4914F6CDD1DULL) >> 1)
    if engine.order == OWN:
        return slot.number + engine.slot_count * (key % (keys // engine.slot_count))
    if engine.work.kind != LIST:
        return key % keys
    # A whole list, and a count, begin at the first key; a page begins where a whole page is left.
    range_size = keys - engine.work.limit + 1
    return key % range_size if engine.work.limit and range_size > 0 else 0


cdef void issue(Engine *engine, Slot *slot, int64_t due) noexcept nogil:
    """Hand one request to HTTP/2; the caller flushes the connection."""
    cdef nghttp2_data_provider provider
    cdef Connection *connection = slot.connection
    engine.requests_left -= 1
    slot.due = due
    slot.busy = True
    engine.in_flight += 1
    provider.source.ptr = &slot.exchange
    provider.read_callback = read_body
    if exchange_begin(&slot.exchange, choose_key(engine, slot)):
        if engine.moments != NULL:
            moments_sent(engine.moments, slot.exchange.serial, due)
        slot.stream = nghttp2_submit_request(
            connection.link.session, NULL, engine.headers, HEADERS, &provider, slot)
    else:
        slot.stream = -1
    if slot.stream < 0:
        lose(connection, b"the connection takes no more requests")


cdef ssize_t read_body(nghttp2_session *session, int32_t stream, uint8_t *data, size_t size,
                       uint32_t *flags, nghttp2_data_source *source,
                       void *user) noexcept nogil:
    """nghttp2 wants the next bytes of a request's body."""
    cdef Exchange *exchange = <Exchange *>source.ptr
    cdef size_t left = exchange.body_size - exchange.sent
    if size >= left:
        size = left
        flags[0] |= NGHTTP2_DATA_FLAG_EOF
    memcpy(data, exchange.body + exchange.sent, size)
    exchange.sent += size
    return <ssize_t>size


# -- the sockets

cdef void serve(Connection *connection, uint32_t events) noexcept nogil:
    """Read what came, issue what follows from it, and send."""
    cdef Engine *engine = connection.engine
    cdef const char *problem = NULL
    if events & ~EPOLLOUT:
        problem = link_receive(&connection.link, engine.received, RECEIVE_BYTES, &engine.now)
    if problem == NULL:
        flush(connection)
    else:
        lose(connection, problem)


cdef void flush(Connection *connection) noexcept nogil:
    """Send what HTTP/2 has to say, as far as the socket takes it."""
    cdef const char *problem = link_flush(&connection.link)
    if problem != NULL:
        lose(connection, problem)


cdef void lose(Connection *connection, const char *why) noexcept nogil:
    """Give a connection up: its requests failed, its slots rest."""
    cdef Engine *engine = connection.engine
    cdef int64_t place
    if connection.link.lost:
        return
    link_lose(&connection.link)
    engine.connections_left -= 1
    for place in range(engine.streams):
        if connection.slots[place].busy:
            connection.slots[place].busy = False
            engine.in_flight -= 1
            engine.failed += 1
            describe(engine, &connection.slots[place], why)


cdef void abandon(Engine *engine) noexcept nogil:
    """After a run that gave up: connections with requests in flight cannot be used again."""
    cdef int64_t number
    cdef int64_t failed = engine.failed
    for number in range(engine.slot_count):
        if engine.slots[number].busy:
            lose(engine.slots[number].connection, b"no answer in time")
    engine.failed = failed


# -- what nghttp2 calls

cdef inline Slot *slot_of(Connection *connection, int32_t stream) noexcept nogil:
    """The slot of a stream; frames of one stream come in a row, so the last one is kept at hand."""
    if connection.slot == NULL or connection.slot.stream != stream or not connection.slot.busy:
        connection.slot = <Slot *>nghttp2_session_get_stream_user_data(
            connection.link.session, stream)
    return connection.slot


cdef int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                   size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                   void *user) noexcept nogil:
    """One header or trailer came: the gRPC status and its message are what we want."""
    cdef Connection *connection = <Connection *>user
    cdef Slot *slot
    cdef size_t place
    if name_size == 11 and memcmp(name, b"grpc-status", 11) == 0:
        slot = slot_of(connection, stream_of(frame))
        if slot == NULL:
            return 0
        slot.exchange.status = 0
        for place in range(value_size):
            slot.exchange.status = slot.exchange.status * 10 + value[place] - 48
    elif name_size == 12 and value_size and memcmp(name, b"grpc-message", 12) == 0:
        slot = slot_of(connection, stream_of(frame))
        if slot != NULL:
            describe_text(connection.engine, slot, value, value_size)
    return 0


cdef int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data,
                 size_t size, void *user) noexcept nogil:
    """A piece of a reply came."""
    cdef Slot *slot = slot_of(<Connection *>user, stream)
    if slot != NULL and not exchange_feed(&slot.exchange, data, size):
        slot.exchange.problem = b"no memory for the reply"
    return 0


cdef int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t error,
                         void *user) noexcept nogil:
    """One request is over: judge and count it; in a closed loop send the next one."""
    cdef Connection *connection = <Connection *>user
    cdef Engine *engine = connection.engine
    cdef Slot *slot = slot_of(connection, stream)
    cdef const char *problem
    if slot == NULL or not slot.busy:
        return 0
    slot.busy = False
    engine.in_flight -= 1
    engine.last_completion = engine.now
    if error or slot.exchange.status != 0:
        engine.failed += 1
        if slot.exchange.status == UNIMPLEMENTED:
            engine.unimplemented = True
        describe(engine, slot, b"the request failed")
    else:
        problem = exchange_end(&slot.exchange)
        if engine.moments != NULL and not moments_answered(
                engine.moments, slot.exchange.serial, slot.exchange.revision):
            problem = b"one write has two revisions"
        if problem != NULL:
            engine.wrong += 1
            describe(engine, slot, problem)
        else:
            engine.succeeded += 1
            count(engine, slot)
    if engine.interval == 0 and may_issue(engine) and not is_held(engine):
        issue(engine, slot, engine.now)
    else:
        push_free(engine, slot)
    return 0


cdef inline void count(Engine *engine, Slot *slot) noexcept nogil:
    """A right answer: record its latency when it belongs to the window."""
    cdef int64_t moment = slot.due if engine.interval else engine.now
    if moment < engine.window_start or (engine.window_end and moment >= engine.window_end):
        return
    engine.completed += 1
    tally_record(engine.tally, engine.now - slot.due)


cdef void describe(Engine *engine, Slot *slot, const char *what) noexcept nogil:
    """Keep the first problem of a run in words."""
    if engine.problem[0] == 0:
        snprintf(engine.problem, sizeof(engine.problem), b"%s (key %lld, status %d)", what,
                 <long long>slot.exchange.key, slot.exchange.status)


cdef void describe_text(Engine *engine, Slot *slot, const uint8_t *text,
                        size_t size) noexcept nogil:
    """Keep the server's own words when they are the first problem."""
    if engine.problem[0] == 0:
        snprintf(engine.problem, sizeof(engine.problem), b"%.*s (key %lld)", <int>size, text,
                 <long long>slot.exchange.key)
