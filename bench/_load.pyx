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

import socket

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, strlen

cimport cython

from bench._exchange cimport (
    CALL,
    GET,
    GRPC_PREFIX,
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
from bench._nghttp2 cimport *

from bench.outcome import Outcome

cdef extern from "<errno.h>" nogil:
    int errno
    int EAGAIN
    int EINTR

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLLIN
    int EPOLLOUT
    int EPOLLERR
    int EPOLLHUP
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    int EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int milliseconds)

cdef extern from "<sys/socket.h>" nogil:
    int MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int clock, timespec *time)

cdef extern from *:
    """
    #include <poll.h>
    #include <signal.h>
    #include <time.h>
    /* Waits for the epoll set in nanoseconds, which epoll_wait cannot. */
    static inline int quorate_bench_wait(int epoll, long long nanoseconds) {
        struct pollfd set = {epoll, POLLIN, 0};
        struct timespec time = {nanoseconds / 1000000000, nanoseconds % 1000000000};
        return ppoll(&set, 1, &time, NULL);
    }
    """
    int wait_readable "quorate_bench_wait" (int epoll, long long nanoseconds) noexcept nogil

cdef enum:
    RECEIVE_BYTES = 262144      # one recv for all that a turn of the server sends
    OUT_BYTES = 131072          # room before a send
    OUT_FRAME = 32768           # more than the largest frame we send (16 KiB and its header)
    EVENTS = 64                 # connections served for each epoll_wait
    SLICE = 100000000           # ns between looks at signals and `stop`
    HEADERS = 7

# Like h2load's: flow control is not what is measured.
WINDOW = (1 << 30) - 1

KINDS = {"put": PUT, "get": GET, "list": LIST, "txn": TXN, "call": CALL}
ORDERS = {"sequential": SEQUENTIAL, "random": RANDOM, "own": OWN}
PATHS = {
    "put": "/etcdserverpb.KV/Put",
    "get": "/etcdserverpb.KV/Range",
    "list": "/etcdserverpb.KV/Range",
    "txn": "/etcdserverpb.KV/Txn",
}


@cython.final
cdef class Load:
    """Connections to one server on the loopback interface, with one kind of work for them."""

    def __cinit__(self):
        self.engine.epoll = -1

    def __init__(self, int port, str kind, Keyspace keyspace=None, *, int64_t connections=1,
                 int64_t streams=1, str order="random", bint serializable=False,
                 bint count_only=False, bint keys_only=False, int64_t limit=0, bint check=True,
                 int window=WINDOW, uint64_t seed=1, str path="", bytes message=b""):
        cdef Engine *engine = &self.engine
        assert engine.epoll == -1, "a Load is initialised once"
        if kind != "call" and keyspace is None:
            raise ValueError(f"a load of {kind} needs a keyspace")
        if kind == "txn":
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
        engine.work.message = self.message
        engine.work.message_size = len(message)
        engine.order = ORDERS[order]
        engine.random = seed * <uint64_t>0x9E3779B97F4A7C15ULL | 1
        prepare_headers(engine, self.path, self.authority)
        if not prepare_engine(engine, connections, streams):
            raise MemoryError(f"no memory for {connections} connections of {streams} streams")
        for number in range(connections):
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.open_connection(&engine.connections[number], client.detach(), window)

    def __dealloc__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def run(self, *, double seconds=0.0, double warmup=0.0, int64_t requests=0, double rate=0.0,
            double patience=20.0):
        """Work for `seconds` after `warmup`, or for `requests`; raises RuntimeError when closed."""
        cdef Engine *engine = &self.engine
        cdef Histogram latency = Histogram()
        cdef int64_t cpu, unfinished
        cdef bint more = True
        if engine.connections == NULL or self.running:
            raise RuntimeError("the load is closed or running")
        if (seconds > 0) == (requests > 0):
            raise ValueError("give either seconds or requests")
        self.running = True
        engine.tally = &latency.tally
        try:
            with nogil:
                cpu = clock(CLOCK_THREAD_CPUTIME_ID)
                self.plan(seconds, warmup, requests, rate, patience)
                begin(engine)
            while more:
                with nogil:
                    more = work_a_slice(engine)
                PyErr_CheckSignals()
            cpu = clock(CLOCK_THREAD_CPUTIME_ID) - cpu
        finally:
            self.running = False
        unfinished = engine.in_flight + never_sent(engine)
        elapsed = measured(engine)
        abandon(engine)
        return Outcome(
            completed=engine.completed, elapsed=elapsed / 1e9, succeeded=engine.succeeded,
            failed=engine.failed, wrong=engine.wrong, unfinished=unfinished,
            problem=engine.problem.decode("utf-8", "replace"), cpu=cpu / 1e9, latency=latency,
        )

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

    cdef void plan(self, double seconds, double warmup, int64_t requests, double rate,
                   double patience) noexcept nogil:
        """Write down when this run begins, measures and ends, and forget the last one."""
        cdef Engine *engine = &self.engine
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
        engine.problem[0] = 0

    cdef int open_connection(self, Connection *connection, int fd, int window) except -1:
        """Make the HTTP/2 session of a connected socket and send its preface."""
        cdef nghttp2_option *option
        cdef nghttp2_settings_entry[2] settings
        cdef epoll_event event
        connection.fd = fd
        settings[0].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
        settings[0].value = 0
        settings[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        settings[1].value = <uint32_t>window
        if nghttp2_option_new(&option) != 0:
            raise MemoryError("no memory for an HTTP/2 session")
        # gRPC's replies are valid HTTP/2 messages; checking them again is not what is measured.
        nghttp2_option_set_no_http_messaging(option, 1)
        nghttp2_option_set_peer_max_concurrent_streams(option, <uint32_t>self.engine.streams)
        made = nghttp2_session_client_new2(
            &connection.session, self.engine.callbacks, connection, option)
        nghttp2_option_del(option)
        if made != 0:
            raise MemoryError("no memory for an HTTP/2 session")
        nghttp2_submit_settings(connection.session, NGHTTP2_FLAG_NONE, settings, 2)
        nghttp2_session_set_local_window_size(connection.session, NGHTTP2_FLAG_NONE, 0, window)
        event.events = EPOLLIN
        event.data.ptr = connection
        if epoll_ctl(self.engine.epoll, EPOLL_CTL_ADD, fd, &event) != 0:
            raise OSError(errno, "epoll_ctl")
        connection.lost = False
        self.engine.connections_left += 1
        flush(connection)
        return 0


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
        engine.connections[number].fd = -1
        engine.connections[number].lost = True
        engine.connections[number].slots = &engine.slots[number * streams]
        engine.connections[number].out = <uint8_t *>malloc(OUT_BYTES)
        if engine.connections[number].out == NULL:
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
    """Close and free all that `prepare_engine` and `open_connection` made."""
    cdef int64_t number
    cdef Connection *connection
    if engine.connections != NULL:
        for number in range(engine.connection_count):
            connection = &engine.connections[number]
            if connection.session != NULL:
                nghttp2_session_del(connection.session)
            if connection.fd >= 0:
                close(connection.fd)
            free(connection.out)
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


cdef void prepare_headers(Engine *engine, bytes path, bytes authority):
    """The header list of every request; `path` and `authority` must outlive the engine."""
    set_header(&engine.headers[0], b":method", b"POST")
    set_header(&engine.headers[1], b":scheme", b"http")
    set_header(&engine.headers[2], b":path", path)
    set_header(&engine.headers[3], b":authority", authority)
    set_header(&engine.headers[4], b"content-type", b"application/grpc")
    set_header(&engine.headers[5], b"te", b"trailers")
    set_header(&engine.headers[6], b"user-agent", b"quorate-bench")


cdef void set_header(nghttp2_nv *header, const char *name, const char *value) noexcept:
    header.name = <uint8_t *>name
    header.namelen = strlen(name)
    header.value = <uint8_t *>value
    header.valuelen = strlen(value)
    header.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE


# -- time

cdef inline int64_t clock(int which) noexcept nogil:
    cdef timespec time
    clock_gettime(which, &time)
    return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec


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
    while engine.free_first != NULL and may_issue(engine):
        issue(engine, pop_free(engine), engine.now)
    for number in range(engine.connection_count):
        flush(&engine.connections[number])


cdef bint work_a_slice(Engine *engine) noexcept nogil:
    """Serve the connections for a while; False when the run is over."""
    cdef epoll_event[EVENTS] events
    cdef int64_t until = engine.now + SLICE
    cdef int64_t pause
    cdef int ready, number
    while engine.now < until:
        if engine.connections_left == 0 or engine.now >= engine.give_up:
            return False
        if engine.in_flight == 0 and not more_to_come(engine):
            return False
        pause = until - engine.now
        if engine.interval and engine.free_first != NULL and may_issue_at(engine, engine.due):
            pause = min(pause, max(<int64_t>engine.due - engine.now, 0))
        if engine.interval:
            wait_readable(engine.epoll, pause)
            ready = epoll_wait(engine.epoll, events, EVENTS, 0)
        else:
            ready = epoll_wait(engine.epoll, events, EVENTS, <int>(pause // 1000000) + 1)
        engine.now = clock(CLOCK_MONOTONIC)
        for number in range(ready):
            serve(<Connection *>events[number].data.ptr, events[number].events)
        if engine.interval:
            issue_due(engine)
    return True


cdef inline bint may_issue(Engine *engine) noexcept nogil:
    """Whether a closed loop goes on."""
    return (engine.requests_left > 0 and not engine.stop
            and (engine.end == 0 or engine.now < engine.end))


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
        if not slot.connection.lost:
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
        slot.stream = nghttp2_submit_request(
            connection.session, NULL, engine.headers, HEADERS, &provider, slot)
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
    cdef ssize_t size = RECEIVE_BYTES
    while size == RECEIVE_BYTES and not connection.lost and events & ~EPOLLOUT:
        size = recv(connection.fd, engine.received, RECEIVE_BYTES, 0)
        if size < 0 and (errno == EAGAIN or errno == EINTR):
            break
        if size <= 0:
            lose(connection, b"the server closed the connection")
            return
        engine.now = clock(CLOCK_MONOTONIC)
        if nghttp2_session_mem_recv(connection.session, engine.received, size) != size:
            lose(connection, b"the server broke HTTP/2")
    flush(connection)
    if not connection.lost and not nghttp2_session_want_read(connection.session):
        lose(connection, b"the server ended the connection")


cdef void flush(Connection *connection) noexcept nogil:
    """Send what HTTP/2 has to say, as far as the socket takes it."""
    cdef const uint8_t *data
    cdef ssize_t size = 1
    while not connection.lost:
        while size > 0 and connection.out_size < OUT_BYTES - OUT_FRAME:
            size = nghttp2_session_mem_send(connection.session, &data)
            if size < 0:
                lose(connection, b"HTTP/2 has no memory")
                return
            memcpy(connection.out + connection.out_size, data, size)
            connection.out_size += size
        if connection.out_size == 0 or not drain(connection):
            return
        size = 1


cdef bint drain(Connection *connection) noexcept nogil:
    """Send the out buffer; False when the socket is full or the connection is lost."""
    cdef ssize_t sent
    while connection.out_sent < connection.out_size:
        sent = send(connection.fd, connection.out + connection.out_sent,
                    connection.out_size - connection.out_sent, MSG_NOSIGNAL)
        if sent < 0 and errno == EINTR:
            continue
        if sent < 0:
            if errno == EAGAIN:
                want_writable(connection, True)
            else:
                lose(connection, b"the server reset the connection")
            return False
        connection.out_sent += sent
    connection.out_size = connection.out_sent = 0
    want_writable(connection, False)
    return True


cdef void want_writable(Connection *connection, bint wanted) noexcept nogil:
    cdef epoll_event event
    if connection.blocked == wanted:
        return
    connection.blocked = wanted
    event.events = EPOLLIN | EPOLLOUT if wanted else EPOLLIN
    event.data.ptr = connection
    epoll_ctl(connection.engine.epoll, EPOLL_CTL_MOD, connection.fd, &event)


cdef void lose(Connection *connection, const char *why) noexcept nogil:
    """Give a connection up: its requests failed, its slots rest."""
    cdef Engine *engine = connection.engine
    cdef int64_t place
    if connection.lost:
        return
    connection.lost = True
    engine.connections_left -= 1
    epoll_ctl(engine.epoll, EPOLL_CTL_DEL, connection.fd, NULL)
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
        connection.slot = <Slot *>nghttp2_session_get_stream_user_data(connection.session, stream)
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
        describe(engine, slot, b"the request failed")
    else:
        problem = exchange_end(&slot.exchange)
        if problem != NULL:
            engine.wrong += 1
            describe(engine, slot, problem)
        else:
            engine.succeeded += 1
            count(engine, slot)
    if engine.interval == 0 and may_issue(engine):
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
