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
from libc.stdlib cimport calloc, free
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
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    EVENTS,
    SLICE,
    WINDOW,
    clock,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    link_pace,
    wait_readable,
)
from bench._load cimport Engine, Load, begin, is_over, pause_of, turn
from bench._moments cimport RING, Moment, moments_arrived
from bench._pipe cimport fault_quote, fault_say
from bench._pool cimport (
    Connection,
    Pool,
    pool_accuse,
    pool_answer,
    pool_connect,
    pool_free,
    pool_lose_stream,
    pool_open_streams,
    pool_pipe,
    pool_prepare,
    pool_receive,
    pool_serve,
)
from bench._protobuf cimport Field, number_in, read_field, write_tag, write_varint

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
        self.crowd.pool.epoll = -1

    def __init__(self, int port, Keyspace keyspace not None, *, int64_t connections=1,
                 int64_t streams=1, int64_t each=1, str on="one key", int64_t start_revision=0,
                 bint deletes=False, double pace=0.0, double patience=60.0):
        cdef Crowd *crowd = &self.crowd
        assert crowd.pool.epoll == -1, "Watchers are initialised once"
        self.keyspace = keyspace
        self.authority = b"127.0.0.1:%d" % port
        crowd.keys = &keyspace.keys
        crowd.on = ONS[on]
        crowd.start_revision = start_revision
        crowd.deletes = deletes
        crowd.pace = pace
        if not prepare_crowd(crowd, connections, streams, each):
            raise MemoryError(f"no memory for {connections * streams * each} watchers")
        pool_connect(&crowd.pool, port, PATH, self.authority, SLOW_WINDOW if pace else WINDOW,
                     SLOW_SOCKET_BYTES if pace else 0)
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
            failed=crowd.pool.stream_count - crowd.pool.streams_left, wrong=crowd.pool.wrong,
            unfinished=crowd.watcher_count - crowd.created,
            problem=crowd.pool.fault.text.decode("utf-8", "replace"), cpu=0.0, latency=Histogram(),
            unimplemented=crowd.pool.fault.unimplemented,
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
        if crowd.pool.connections == NULL or self.running:
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
                epoll_ctl(crowd.pool.epoll, EPOLL_CTL_DEL, engine.epoll, NULL)
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
            crowd.give_up = begun + <int64_t>(patience * 1e9)
            pool_open_streams(&crowd.pool)
        while more and crowd.created < crowd.watcher_count:
            with nogil:
                more = work_a_slice(crowd, NULL)
            PyErr_CheckSignals()
        if crowd.created < crowd.watcher_count:
            fault_say(&crowd.pool.fault, b"not all watchers were created in time")
        self.creating = (crowd.pool.now - begun) / 1e9
        return 0

    cdef object delivery(self, object latency, int64_t cpu, object writes):
        """What came of the run that is over."""
        cdef Crowd *crowd = &self.crowd
        cdef Pool *pool = &crowd.pool
        cdef int64_t end = crowd.window_end or crowd.last_event
        return Delivery(
            completed=crowd.delivered, elapsed=max(end - crowd.window_start, 0) / 1e9,
            succeeded=crowd.succeeded, failed=pool.stream_count - pool.streams_left,
            wrong=pool.wrong, unfinished=max(crowd.missing, 0),
            problem=pool.fault.text.decode("utf-8", "replace"), cpu=cpu / 1e9, latency=latency,
            unimplemented=pool.fault.unimplemented, first_event=crowd.first_event / 1e9,
            last_event=crowd.last_event / 1e9, writes=writes,
        )


# -- memory

cdef bint prepare_crowd(Crowd *crowd, int64_t connections, int64_t streams,
                        int64_t each) noexcept nogil:
    """Allocate connections, streams and watchers; False when memory or descriptors are out."""
    cdef int64_t number
    cdef int64_t count = connections * streams * each
    cdef Stream *stream
    if not pool_prepare(&crowd.pool, connections, streams, sizeof(Stream)):
        return False
    pool_answer(&crowd.pool, next_create, take_response, lose_stream)
    crowd.moments.ring = <Moment *>calloc(RING, sizeof(Moment))
    crowd.watchers = <Watcher *>calloc(count, sizeof(Watcher))
    if crowd.moments.ring == NULL or crowd.watchers == NULL:
        return False
    crowd.watcher_count = count
    crowd.moments.arrivals_each = 1 if crowd.on == OWN_KEY else count
    for number in range(crowd.pool.stream_count):
        stream = <Stream *>pool_pipe(&crowd.pool, number)
        stream.crowd = crowd
        stream.watchers = &crowd.watchers[number * each]
        stream.count = each
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
    pool_free(&crowd.pool)
    free(crowd.watchers)
    free(crowd.versions)
    free(crowd.moments.ring)
    crowd.watchers = NULL
    crowd.versions = NULL
    crowd.moments.ring = NULL


# -- the loop

cdef void start(Crowd *crowd, Engine *writer, int64_t patience) noexcept nogil:
    """Forget the last run and begin this one."""
    cdef epoll_event event
    cdef int64_t number
    crowd.pool.now = clock(CLOCK_MONOTONIC)
    crowd.running = True
    crowd.patience = patience
    crowd.give_up = 1 << 62
    crowd.window_start = crowd.pool.now
    crowd.window_end = 0
    crowd.counted = False
    crowd.missing = crowd.delivered = crowd.succeeded = 0
    crowd.first_event = crowd.last_event = 0
    if writer != NULL:
        crowd.window_start = writer.window_start
        crowd.window_end = writer.window_end
        event.events = EPOLLIN
        event.data.ptr = NULL
        epoll_ctl(crowd.pool.epoll, EPOLL_CTL_ADD, writer.epoll, &event)
        begin(writer)
    if crowd.pace > 0:
        crowd.paced = True
        crowd.read_due = <double>crowd.pool.now
        for number in range(crowd.pool.connection_count):
            link_pace(&crowd.pool.connections[number].link, True)


cdef bint work_a_slice(Crowd *crowd, Engine *writer) noexcept nogil:
    """Serve the connections for a while; False when the run is over, or all are created."""
    cdef epoll_event[EVENTS] events
    cdef int64_t until = crowd.pool.now + SLICE
    cdef int64_t pause
    cdef int ready, number
    while crowd.pool.now < until:
        if writer != NULL and is_over(writer):
            crowd.finishing = True
        if crowd.finishing and not crowd.counted:
            count_missing(crowd)
        if (crowd.counted and crowd.missing <= 0) or crowd.pool.now >= crowd.give_up:
            return False
        if not crowd.running and crowd.created == crowd.watcher_count:
            return False
        if crowd.pool.streams_left == 0:
            return False
        ready = epoll_wait(crowd.pool.epoll, events, EVENTS, 0)
        if ready == 0:
            pause = until - crowd.pool.now
            if writer != NULL:
                pause = pause_of(writer, until)
            if crowd.paced:
                pause = max(min(pause, <int64_t>crowd.read_due - crowd.pool.now), 0)
            wait_readable(crowd.pool.epoll, pause)
            ready = epoll_wait(crowd.pool.epoll, events, EVENTS, 0)
        crowd.pool.now = clock(CLOCK_MONOTONIC)
        for number in range(ready):
            if events[number].data.ptr != NULL:
                pool_serve(&crowd.pool, <Connection *>events[number].data.ptr,
                           events[number].events)
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
    crowd.give_up = crowd.pool.now + crowd.patience
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
    cdef double interval = SLOW_BYTES * 1e9 / crowd.pace / crowd.pool.connection_count
    while crowd.read_due <= <double>crowd.pool.now:
        pool_receive(&crowd.pool, &crowd.pool.connections[crowd.read_next], SLOW_BYTES)
        crowd.read_next = (crowd.read_next + 1) % crowd.pool.connection_count
        crowd.read_due += interval


cdef void unpace(Crowd *crowd) noexcept nogil:
    """From now on read all that comes."""
    cdef int64_t number
    if crowd.paced:
        crowd.paced = False
        for number in range(crowd.pool.connection_count):
            link_pace(&crowd.pool.connections[number].link, False)


cdef void lose_stream(Pipe *pipe) noexcept nogil:
    """The stream is over, which no watcher asked for."""
    pool_lose_stream(&(<Stream *>pipe).crowd.pool, pipe, b"the server ended a watch stream")


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
            pool_accuse(&crowd.pool, b"a watch response is malformed")
            return
        if field.number == 11 and field.wire == 2:
            if watch_id >= <uint64_t>stream.created:
                pool_accuse(&crowd.pool, b"an event came for a watcher that was not created")
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
            fault_quote(&crowd.pool.fault, field.data, field.value)
    if canceled:
        pool_accuse(&crowd.pool, b"a watcher was cancelled")
    elif created:
        if watch_id != <uint64_t>stream.created or stream.created == stream.requested:
            pool_accuse(&crowd.pool, b"watchers of a stream are not numbered from 0")
            return
        stream.created += 1
        crowd.created += 1


cdef inline void take_event(Crowd *crowd, Watcher *watcher, int64_t revision,
                            const Field *message) noexcept nogil:
    """One event for one watcher: check it against what must come next, and count it."""
    cdef Event event
    cdef const char *problem
    cdef int64_t key = watcher.key
    cdef uint32_t *version = watcher.version
    if not read_event(message, &event):
        pool_accuse(&crowd.pool, b"an event is malformed")
        return
    if crowd.on == PREFIX:
        key = key_number(crowd.keys, event.key, event.key_size)
        version += key
    elif not is_key(crowd.keys, key, event.key, event.key_size):
        key = -1
    if key < 0:
        pool_accuse(&crowd.pool, b"an event of a key that is not watched")
        return
    if event.mod_revision > revision:
        pool_accuse(&crowd.pool, b"an event's revision is above the header's")
        return
    if event.is_delete != crowd.deletes:
        pool_accuse(&crowd.pool, b"an event is of the wrong type")
        return
    if event.is_delete:
        problem = check_delete(watcher, version, &event)
    else:
        problem = check_put(crowd, watcher, key, version, &event)
    if problem != NULL:
        pool_accuse(&crowd.pool, problem)
        return
    watcher.revision = event.mod_revision
    crowd.succeeded += 1
    crowd.missing -= 1
    if crowd.missing < 0 and crowd.counted:
        pool_accuse(&crowd.pool, b"more events than writes")
    crowd.last_event = crowd.pool.now
    if crowd.first_event == 0:
        crowd.first_event = crowd.pool.now
    if crowd.pool.now >= crowd.window_start and (
            not crowd.window_end or crowd.pool.now < crowd.window_end):
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
        tally_record(crowd.tally, crowd.pool.now - moment.due)
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
