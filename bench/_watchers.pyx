# cython: language_level=3
"""Watchers by the thousand or the million: one thread, no GIL, every event checked.

Rules:
- One `Watchers` is a set of connections with streams and watchers of one keyspace; it is ready for
  events when it is made. `run` may be called again and again. Crowds in different threads run side
  by side.
- What is checked of each event: it is of the key that is watched; its version follows the last one
  seen of that key, so nothing is missing, twice or out of order; its revision rises and is not
  above the header's; its value is byte for byte what one write put; and all watchers have seen that
  write at the same revision. A run ends when all acknowledged writes have come to everyone.
- The writer is a `Load` of puts in the same thread (then latency is known, and a closed loop can
  wait for its watchers), or somebody else, who calls `finish` when nothing more will be written.
- A crowd with a pace reads so many bytes a second from each connection, in small pieces, with small
  windows, until nothing more will be written; then it reads what is left at once.
- Of each event nothing is allocated.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

cimport cython

from bench._histogram cimport Histogram, tally_record
from bench._keyspace cimport (
    DIGITS,
    Keyspace,
    is_key,
    serial_in,
    write_number,
)
from bench._link cimport (
    CLOCK_MONOTONIC,
    CLOCK_THREAD_CPUTIME_ID,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    EPOLLOUT,
    EVENTS,
    RECEIVE_BYTES,
    SLICE,
    WINDOW,
    clock,
    close,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    headers_prepare,
    link_flush,
    link_free,
    link_lose,
    link_open,
    link_pace,
    link_prepare,
    link_receive,
    wait_readable,
)
from bench._load cimport Engine, Load, begin, is_over, pause_of, turn
from bench._moments cimport RING, Moment, moments_arrived
from bench._nghttp2 cimport nghttp2_session_callbacks_del
from bench._pipe cimport callbacks_prepare, fault_quote, fault_say, pipe_free, pipe_open
from bench._protobuf cimport Field, number_in, read_field, write_tag, write_varint

from bench._link import connect
from bench.outcome import Delivery, Outcome

cdef enum:
    # A slow reader's piece, and its windows: little enough that the server has to keep the rest.
    SLOW_BYTES = 512
    SLOW_WINDOW = 16384
    SLOW_SOCKET_BYTES = 16384

ONS = {"one key": ONE_KEY, "own key": OWN_KEY, "prefix": PREFIX}
PATH = b"/etcdserverpb.Watch/Watch"


@cython.final
cdef class Watchers:
    """Watchers of one keyspace on connections to one server on the loopback interface."""

    def __cinit__(self):
        self.crowd.epoll = -1

    def __init__(self, int port, Keyspace keyspace not None, *, int64_t connections=1,
                 int64_t streams=1, int64_t each=1, str on="one key", int64_t start_revision=0,
                 bint deletes=False, double pace=0.0, double patience=60.0):
        cdef Crowd *crowd = &self.crowd
        assert crowd.epoll == -1, "Watchers are initialised once"
        self.keyspace = keyspace
        self.authority = b"127.0.0.1:%d" % port
        crowd.keys = &keyspace.keys
        crowd.on = ONS[on]
        crowd.start_revision = start_revision
        crowd.deletes = deletes
        crowd.pace = pace
        headers_prepare(crowd.headers, PATH, self.authority)
        if not prepare_crowd(crowd, connections, streams, each):
            raise MemoryError(f"no memory for {connections * streams * each} watchers")
        for number in range(connections):
            fd = connect(port, SLOW_SOCKET_BYTES if pace else 0)
            link_open(&crowd.connections[number].link, fd, crowd.callbacks, streams,
                      SLOW_WINDOW if pace else WINDOW)
        self.wait_created(patience)

    def __dealloc__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @property
    def created(self):
        """What came of creating the watchers; each of them counts as one answer."""
        cdef Crowd *crowd = &self.crowd
        return Outcome(
            completed=crowd.created, elapsed=self.creating, succeeded=crowd.created,
            failed=crowd.stream_count - crowd.streams_left, wrong=crowd.wrong,
            unfinished=crowd.watcher_count - crowd.created,
            problem=crowd.fault.text.decode("utf-8", "replace"), cpu=0.0, latency=Histogram(),
            unimplemented=crowd.fault.unimplemented,
        )

    def run(self, Load writer=None, *, double seconds=0.0, double warmup=0.0, double rate=0.0,
            int64_t undelivered=0, double patience=20.0):
        """Take events until all that was written has come, or `patience` after the last write.

        A writer writes for `seconds` after `warmup`, at `rate` or in a closed loop in which at most
        `undelivered` writes have not come to everyone. Without one, `finish` says when all is
        written. Raises RuntimeError when closed.
        """
        cdef Crowd *crowd = &self.crowd
        cdef Engine *engine = NULL
        cdef Histogram latency = Histogram()
        cdef Histogram put_latency = Histogram()
        cdef int64_t cpu
        cdef bint more = True
        if crowd.connections == NULL or self.running:
            raise RuntimeError("the watchers are closed or running")
        crowd.tally = &latency.tally
        crowd.moments.undelivered_max = undelivered
        crowd.moments.undelivered = 0
        if writer is not None:
            writer.prepare(put_latency, seconds, warmup, 0, rate, patience)
            engine = &writer.engine
            engine.moments = &crowd.moments
        self.running = True
        try:
            with nogil:
                cpu = clock(CLOCK_THREAD_CPUTIME_ID)
                start(crowd, engine, <int64_t>(patience * 1e9))
            while more:
                with nogil:
                    more = work_a_slice(crowd, engine)
                PyErr_CheckSignals()
            cpu = clock(CLOCK_THREAD_CPUTIME_ID) - cpu
        finally:
            self.running = False
            crowd.tally = NULL
            unpace(crowd)
            crowd.finishing = False
            if engine != NULL:
                engine.moments = NULL
                epoll_ctl(crowd.epoll, EPOLL_CTL_DEL, engine.epoll, NULL)
        writes = None if writer is None else writer.outcome(put_latency, 0)
        return self.delivery(latency, cpu, writes)

    def finish(self):
        """Nothing more will be written: let a run, in whatever thread, end when all has come."""
        self.crowd.finishing = True

    def close(self):
        """Close all connections; more than once does no harm."""
        assert not self.running, "watchers are closed by the thread that runs them"
        free_crowd(&self.crowd)

    cdef int wait_created(self, double patience) except -1:
        """Open all streams and wait until the server has created all watchers."""
        cdef Crowd *crowd = &self.crowd
        cdef bint more = True
        cdef int64_t begun = clock(CLOCK_MONOTONIC)
        with nogil:
            crowd.now = begun
            crowd.give_up = crowd.now + <int64_t>(patience * 1e9)
            crowd.missing = crowd.watcher_count
            crowd.counted = True
            open_streams(crowd)
        while more and crowd.created < crowd.watcher_count:
            with nogil:
                more = work_a_slice(crowd, NULL)
            PyErr_CheckSignals()
        if crowd.created < crowd.watcher_count:
            fault_say(&crowd.fault, b"not all watchers were created in time")
        self.creating = (crowd.now - begun) / 1e9
        return 0

    cdef object delivery(self, object latency, int64_t cpu, object writes):
        """What came of the run that is over."""
        cdef Crowd *crowd = &self.crowd
        cdef int64_t end = crowd.window_end or crowd.last_event
        return Delivery(
            completed=crowd.delivered, elapsed=max(end - crowd.window_start, 0) / 1e9,
            succeeded=crowd.succeeded, failed=crowd.stream_count - crowd.streams_left,
            wrong=crowd.wrong, unfinished=max(crowd.missing, 0),
            problem=crowd.fault.text.decode("utf-8", "replace"), cpu=cpu / 1e9, latency=latency,
            unimplemented=crowd.fault.unimplemented, first_event=crowd.first_event / 1e9,
            last_event=crowd.last_event / 1e9, writes=writes,
        )


# -- memory

cdef bint prepare_crowd(Crowd *crowd, int64_t connections, int64_t streams,
                        int64_t each) noexcept nogil:
    """Allocate connections, streams and watchers; False when memory or descriptors are out."""
    cdef int64_t number
    cdef int64_t stream_count = connections * streams
    cdef Stream *stream
    crowd.epoll = epoll_create1(EPOLL_CLOEXEC)
    crowd.received = <uint8_t *>malloc(RECEIVE_BYTES)
    crowd.moments.ring = <Moment *>calloc(RING, sizeof(Moment))
    crowd.watchers = <Watcher *>calloc(stream_count * each, sizeof(Watcher))
    crowd.streams = <Stream *>calloc(stream_count, sizeof(Stream))
    crowd.connections = <Connection *>calloc(connections, sizeof(Connection))
    if crowd.epoll < 0 or not (crowd.received and crowd.moments.ring and crowd.watchers
                               and crowd.streams and crowd.connections):
        return False
    if not callbacks_prepare(&crowd.callbacks):
        return False
    crowd.connection_count = connections
    crowd.streams_each = streams
    crowd.stream_count = crowd.streams_left = stream_count
    crowd.watcher_count = stream_count * each
    crowd.moments.arrivals_each = 1 if crowd.on == OWN_KEY else crowd.watcher_count
    for number in range(connections):
        crowd.connections[number].streams = &crowd.streams[number * streams]
        if not link_prepare(&crowd.connections[number].link, crowd.epoll):
            return False
    for number in range(stream_count):
        stream = &crowd.streams[number]
        stream.crowd = crowd
        stream.watchers = &crowd.watchers[number * each]
        stream.count = each
        stream.pipe.link = &crowd.connections[number // streams].link
        stream.pipe.fault = &crowd.fault
        stream.pipe.produce = next_create
        stream.pipe.consume = take_response
        stream.pipe.ended = lose_stream
    return prepare_watchers(crowd)


cdef bint prepare_watchers(Crowd *crowd) noexcept nogil:
    """Say of each watcher what it watches and what it has seen; False when memory is out."""
    cdef int64_t number
    cdef int64_t keys = crowd.keys.count
    cdef Watcher *watcher
    if crowd.on == PREFIX:
        crowd.versions = <uint32_t *>calloc(crowd.watcher_count * keys, sizeof(uint32_t))
        if crowd.versions == NULL:
            return False
    for number in range(crowd.watcher_count):
        watcher = &crowd.watchers[number]
        watcher.revision = crowd.start_revision - 1
        if crowd.on == PREFIX:
            watcher.version = &crowd.versions[number * keys]
            if not crowd.start_revision:
                memcpy(watcher.version, crowd.keys.versions, keys * sizeof(uint32_t))
        else:
            watcher.key = number % keys if crowd.on == OWN_KEY else 0
            watcher.version = &watcher.own_version
            if not crowd.start_revision:
                watcher.own_version = crowd.keys.versions[watcher.key]
    return True


cdef void free_crowd(Crowd *crowd) noexcept nogil:
    """Close and free everything."""
    cdef int64_t number
    if crowd.connections != NULL:
        for number in range(crowd.connection_count):
            link_free(&crowd.connections[number].link)
    if crowd.streams != NULL:
        for number in range(crowd.stream_count):
            pipe_free(&crowd.streams[number].pipe)
    if crowd.callbacks != NULL:
        nghttp2_session_callbacks_del(crowd.callbacks)
    if crowd.epoll >= 0:
        close(crowd.epoll)
    free(crowd.connections)
    free(crowd.streams)
    free(crowd.watchers)
    free(crowd.versions)
    free(crowd.moments.ring)
    free(crowd.received)
    memset(crowd, 0, sizeof(Crowd))
    crowd.epoll = -2


# -- the loop

cdef void open_streams(Crowd *crowd) noexcept nogil:
    """Begin every stream; its watchers are asked for as HTTP/2 has room."""
    cdef int64_t number, place
    cdef Connection *connection
    for number in range(crowd.connection_count):
        connection = &crowd.connections[number]
        for place in range(crowd.streams_each):
            if not pipe_open(&connection.streams[place].pipe, crowd.headers):
                lose(crowd, connection, b"the connection takes no more streams")
                break
        flush(crowd, connection)


cdef void start(Crowd *crowd, Engine *writer, int64_t patience) noexcept nogil:
    """Forget the last run and begin this one."""
    cdef epoll_event event
    cdef int64_t number
    crowd.now = clock(CLOCK_MONOTONIC)
    crowd.patience = patience
    crowd.give_up = 1 << 62
    crowd.window_start = crowd.now
    crowd.window_end = 0
    crowd.counted = False
    crowd.missing = crowd.delivered = crowd.succeeded = 0
    crowd.first_event = crowd.last_event = 0
    if writer != NULL:
        crowd.window_start = writer.window_start
        crowd.window_end = writer.window_end
        event.events = EPOLLIN
        event.data.ptr = NULL
        epoll_ctl(crowd.epoll, EPOLL_CTL_ADD, writer.epoll, &event)
        begin(writer)
    if crowd.pace > 0:
        crowd.paced = True
        crowd.read_due = <double>crowd.now
        for number in range(crowd.connection_count):
            link_pace(&crowd.connections[number].link, True)


cdef bint work_a_slice(Crowd *crowd, Engine *writer) noexcept nogil:
    """Serve the connections for a while; False when the run is over."""
    cdef epoll_event[EVENTS] events
    cdef int64_t until = crowd.now + SLICE
    cdef int64_t pause
    cdef int ready, number
    while crowd.now < until:
        if writer != NULL and is_over(writer):
            crowd.finishing = True
        if crowd.finishing and not crowd.counted:
            count_missing(crowd)
        if (crowd.counted and crowd.missing <= 0) or crowd.now >= crowd.give_up:
            return False
        if crowd.streams_left == 0:
            return False
        ready = epoll_wait(crowd.epoll, events, EVENTS, 0)
        if ready == 0:
            pause = until - crowd.now
            if writer != NULL:
                pause = pause_of(writer, until)
            if crowd.paced:
                pause = max(min(pause, <int64_t>crowd.read_due - crowd.now), 0)
            wait_readable(crowd.epoll, pause)
            ready = epoll_wait(crowd.epoll, events, EVENTS, 0)
        crowd.now = clock(CLOCK_MONOTONIC)
        for number in range(ready):
            if events[number].data.ptr != NULL:
                serve(crowd, <Connection *>events[number].data.ptr, events[number].events)
        if crowd.paced:
            read_paced(crowd)
        if writer != NULL:
            turn(writer, 0)
    return True


cdef void count_missing(Crowd *crowd) noexcept nogil:
    """Nothing more will be written: how many events have to come yet."""
    cdef int64_t number, key
    cdef Watcher *watcher
    crowd.counted = True
    unpace(crowd)
    crowd.give_up = crowd.now + crowd.patience
    crowd.missing = 0
    for number in range(crowd.watcher_count):
        watcher = &crowd.watchers[number]
        if crowd.on != PREFIX:
            crowd.missing += <int64_t>crowd.keys.versions[watcher.key] - watcher.version[0]
            continue
        for key in range(crowd.keys.count):
            if crowd.deletes:
                crowd.missing += watcher.version[key] != 0
            else:
                crowd.missing += <int64_t>crowd.keys.versions[key] - watcher.version[key]


cdef void read_paced(Crowd *crowd) noexcept nogil:
    """Read one piece from each connection that is due."""
    cdef double interval = SLOW_BYTES * 1e9 / crowd.pace / crowd.connection_count
    while crowd.read_due <= <double>crowd.now:
        serve_piece(crowd, &crowd.connections[crowd.read_next], SLOW_BYTES)
        crowd.read_next = (crowd.read_next + 1) % crowd.connection_count
        crowd.read_due += interval


cdef void unpace(Crowd *crowd) noexcept nogil:
    """From now on read all that comes."""
    cdef int64_t number
    if crowd.paced:
        crowd.paced = False
        for number in range(crowd.connection_count):
            link_pace(&crowd.connections[number].link, False)


cdef inline void serve(Crowd *crowd, Connection *connection, uint32_t events) noexcept nogil:
    """Read what came and send what follows from it."""
    if events & ~EPOLLOUT:
        serve_piece(crowd, connection, RECEIVE_BYTES)
    else:
        flush(crowd, connection)


cdef void serve_piece(Crowd *crowd, Connection *connection, size_t size) noexcept nogil:
    cdef const char *problem = link_receive(&connection.link, crowd.received, size, &crowd.now)
    if problem == NULL:
        flush(crowd, connection)
    else:
        lose(crowd, connection, problem)


cdef void flush(Crowd *crowd, Connection *connection) noexcept nogil:
    """Send what HTTP/2 has to say, as far as the socket takes it."""
    cdef const char *problem = link_flush(&connection.link)
    if problem != NULL:
        lose(crowd, connection, problem)


cdef void lose(Crowd *crowd, Connection *connection, const char *why) noexcept nogil:
    """Give a connection up, and its streams."""
    cdef int64_t place
    if connection.link.lost:
        return
    link_lose(&connection.link)
    fault_say(&crowd.fault, why)
    for place in range(crowd.streams_each):
        lose_stream(&connection.streams[place].pipe)


cdef void lose_stream(Pipe *pipe) noexcept nogil:
    """The stream is over, which no watcher asked for."""
    cdef Stream *stream = <Stream *>pipe
    if pipe.stream >= 0:
        pipe.stream = -1
        stream.crowd.streams_left -= 1
        fault_say(pipe.fault, b"the server ended a watch stream")


# -- messages

cdef size_t next_create(Pipe *pipe, uint8_t *at) noexcept nogil:
    """A WatchRequest that creates the stream's next watcher; 0 when all are asked for."""
    cdef Stream *stream = <Stream *>pipe
    cdef Crowd *crowd = stream.crowd
    cdef Keys *keys = crowd.keys
    cdef uint8_t *body = at + 3
    cdef uint8_t *end
    cdef size_t size
    if stream.requested == stream.count:
        return 0
    if crowd.on == PREFIX:
        end = write_varint(write_tag(body, 1, 2), keys.prefix_size)
        memcpy(end, keys.prefix, keys.prefix_size)
        end = write_varint(write_tag(end + keys.prefix_size, 2, 2), keys.prefix_size)
        memcpy(end, keys.prefix, keys.prefix_size)
        end[keys.prefix_size - 1] += 1
        end += keys.prefix_size
    else:
        end = write_varint(write_tag(body, 1, 2), keys.key_size)
        memcpy(end, keys.prefix, keys.prefix_size)
        write_number(end + keys.prefix_size, stream.watchers[stream.requested].key)
        end += keys.key_size
    if crowd.start_revision:
        end = write_varint(write_tag(end, 3, 0), crowd.start_revision)
    stream.requested += 1
    # create_request = 1; its size is known only now, and takes one byte or two.
    size = end - body
    end = write_varint(write_tag(at, 1, 2), size)
    memmove(end, body, size)
    return end + size - at


cdef void take_response(Pipe *pipe, const uint8_t *message, size_t size) noexcept nogil:
    """One WatchResponse; its fields come in the order of their numbers, events last."""
    cdef Stream *stream = <Stream *>pipe
    cdef Crowd *crowd = stream.crowd
    cdef const uint8_t *at = message
    cdef const uint8_t *end = message + size
    cdef int64_t revision = 0
    cdef uint64_t watch_id = 0
    cdef bint canceled = False
    cdef bint created = False
    cdef Field field
    while at < end:
        at = read_field(at, end, &field)
        if at == NULL:
            accuse(crowd, b"a watch response is malformed")
            return
        if field.number == 11 and field.wire == 2:
            if watch_id >= <uint64_t>stream.created:
                accuse(crowd, b"an event came for a watcher that was not created")
                return
            take_event(crowd, &stream.watchers[watch_id], revision, &field)
        elif field.number == 1:
            revision = number_in(&field, 3)
        elif field.number == 2:
            watch_id = field.value
        elif field.number == 3:
            created = field.value != 0
        elif field.number == 4:
            canceled = field.value != 0
        elif field.number == 6 and field.wire == 2:
            fault_quote(&crowd.fault, field.data, field.value)
    if canceled:
        accuse(crowd, b"a watcher was cancelled")
    elif created:
        if watch_id != <uint64_t>stream.created or stream.created == stream.requested:
            accuse(crowd, b"watchers of a stream are not numbered from 0")
            return
        stream.created += 1
        crowd.created += 1
        crowd.missing -= 1


cdef inline void take_event(Crowd *crowd, Watcher *watcher, int64_t revision,
                            const Field *message) noexcept nogil:
    """One event for one watcher: check it against what must come next, and count it."""
    cdef Event event
    cdef const char *problem
    cdef int64_t key = watcher.key
    cdef uint32_t *version = watcher.version
    if not read_event(message, &event):
        accuse(crowd, b"an event is malformed")
        return
    if crowd.on == PREFIX:
        key = key_number(crowd.keys, event.key, event.key_size)
        version += key
    elif not is_key(crowd.keys, key, event.key, event.key_size):
        key = -1
    if key < 0:
        accuse(crowd, b"an event of a key that is not watched")
        return
    if event.mod_revision > revision:
        accuse(crowd, b"an event's revision is above the header's")
        return
    if event.is_delete != crowd.deletes:
        accuse(crowd, b"an event is of the wrong type")
        return
    if event.is_delete:
        problem = check_delete(watcher, version, &event)
    else:
        problem = check_put(crowd, watcher, key, version, &event)
    if problem != NULL:
        accuse(crowd, problem)
        return
    watcher.revision = event.mod_revision
    crowd.succeeded += 1
    crowd.missing -= 1
    if crowd.missing < 0 and crowd.counted:
        accuse(crowd, b"more events than writes")
    crowd.last_event = crowd.now
    if crowd.first_event == 0:
        crowd.first_event = crowd.now
    if crowd.now >= crowd.window_start and (not crowd.window_end or crowd.now < crowd.window_end):
        crowd.delivered += 1


cdef const char *check_delete(const Watcher *watcher, uint32_t *version,
                              const Event *event) noexcept nogil:
    """What is wrong with a delete, or NULL; remembers it."""
    if version[0] == 0:
        return b"a key was deleted twice"
    if event.mod_revision < watcher.revision:
        return b"events are out of order"
    version[0] = 0
    return NULL


cdef const char *check_put(Crowd *crowd, const Watcher *watcher, int64_t key, uint32_t *version,
                           const Event *event) noexcept nogil:
    """What is wrong with a put, or NULL; remembers it and its latency."""
    cdef uint64_t serial
    cdef Moment *moment
    if event.version <= version[0]:
        return b"an event came twice"
    if event.version > version[0] + 1:
        return b"an event is missing"
    if event.mod_revision <= watcher.revision:
        return b"events are out of order"
    serial = serial_in(crowd.keys, key, event.value, event.value_size)
    if serial == 0:
        return b"an event's value is not what was put"
    version[0] += 1
    moment = moments_arrived(&crowd.moments, serial)
    if moment == NULL:
        return NULL
    if moment.revision == 0:
        moment.revision = event.mod_revision
    elif moment.revision != event.mod_revision:
        return b"one write has two revisions"
    if crowd.tally == NULL or moment.due == 0:
        return NULL
    if moment.due >= crowd.window_start and (not crowd.window_end
                                             or moment.due < crowd.window_end):
        tally_record(crowd.tally, crowd.now - moment.due)
    return NULL


cdef bint read_event(const Field *message, Event *event) noexcept nogil:
    """Take an Event apart; False when it is malformed."""
    cdef const uint8_t *at = message.data
    cdef const uint8_t *end = message.data + message.value
    cdef Field field
    memset(event, 0, sizeof(Event))
    event.key = event.value = at
    while at < end:
        at = read_field(at, end, &field)
        if at == NULL:
            return False
        if field.number == 1:
            event.is_delete = field.value != 0
        elif field.number == 2 and field.wire == 2 and not read_key_value(&field, event):
            return False
    return True


cdef bint read_key_value(const Field *message, Event *event) noexcept nogil:
    """Take the KeyValue of an event apart; False when it is malformed."""
    cdef const uint8_t *at = message.data
    cdef const uint8_t *end = message.data + message.value
    cdef Field field
    while at < end:
        at = read_field(at, end, &field)
        if at == NULL:
            return False
        if field.number == 1 and field.wire == 2:
            event.key = field.data
            event.key_size = field.value
        elif field.number == 3:
            event.mod_revision = <int64_t>field.value
        elif field.number == 4:
            event.version = field.value
        elif field.number == 5 and field.wire == 2:
            event.value = field.data
            event.value_size = field.value
    return True


cdef int64_t key_number(const Keys *keys, const uint8_t *key, size_t size) noexcept nogil:
    """The number of a key; -1 when it is none of the keyspace."""
    cdef int64_t number = 0
    cdef size_t place
    if size != keys.key_size:
        return -1
    for place in range(size - DIGITS, size):
        number = number * 10 + key[place] - 48
    return number if 0 <= number < keys.count and is_key(keys, number, key, size) else -1


cdef void accuse(Crowd *crowd, const char *problem) noexcept nogil:
    """Something came that etcd would not send."""
    crowd.wrong += 1
    fault_say(&crowd.fault, problem)
