# cython: language_level=3
"""Connections with streams that stay open, all of one RPC, served by one thread.

Rules:
- The owner has the Pool as its first member, and gives its streams' size: each is a structure of
  the owner's with a Pipe first.
- A connection that fails is given up with its streams; the first problem is kept in words. The
  owner goes on with the others, and ends when `streams_left` says so.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from bench._link cimport (
    CLOCK_MONOTONIC,
    EPOLL_CLOEXEC,
    EPOLLOUT,
    RECEIVE_BYTES,
    clock,
    close,
    epoll_create1,
    headers_prepare,
    link_flush,
    link_free,
    link_lose,
    link_open,
    link_prepare,
    link_receive,
)
from bench._nghttp2 cimport nghttp2_session_callbacks_del
from bench._pipe cimport callbacks_prepare, fault_say, pipe_free, pipe_open

from bench._link import connect


cdef bint pool_prepare(Pool *pool, int64_t connections, int64_t streams,
                       size_t stream_size) noexcept nogil:
    """Allocate connections and streams; False when memory or descriptors are out."""
    cdef int64_t number
    pool.epoll = epoll_create1(EPOLL_CLOEXEC)
    pool.received = <uint8_t *>malloc(RECEIVE_BYTES)
    pool.streams = <uint8_t *>calloc(connections * streams, stream_size)
    pool.connections = <Connection *>calloc(connections, sizeof(Connection))
    if pool.epoll < 0 or not (pool.received and pool.streams and pool.connections):
        return False
    if not callbacks_prepare(&pool.callbacks):
        return False
    pool.connection_count = connections
    pool.stream_size = stream_size
    pool.streams_each = streams
    pool.stream_count = pool.streams_left = connections * streams
    for number in range(connections):
        pool.connections[number].first = number * streams
        if not link_prepare(&pool.connections[number].link, pool.epoll):
            return False
    return True


cdef void pool_answer(Pool *pool, Produce produce, Consume consume, Ended ended) noexcept nogil:
    """Say what makes messages, takes them, and learns of a stream's end."""
    cdef int64_t number
    cdef Pipe *pipe
    for number in range(pool.stream_count):
        pipe = pool_pipe(pool, number)
        pipe.link = &pool.connections[number // pool.streams_each].link
        pipe.fault = &pool.fault
        pipe.produce = produce
        pipe.consume = consume
        pipe.ended = ended


cdef int pool_connect(Pool *pool, int port, bytes path, bytes authority, int window,
                      int socket_bytes) except -1:
    """Connect; `path` and `authority` must outlive the pool. Raises OSError."""
    headers_prepare(pool.headers, path, authority)
    for number in range(pool.connection_count):
        link_open(&pool.connections[number].link, connect(port, socket_bytes), pool.callbacks,
                  pool.streams_each, window)
    return 0


cdef void pool_open_streams(Pool *pool) noexcept nogil:
    """Begin every stream; its messages are asked for as HTTP/2 has room."""
    cdef int64_t number, place
    cdef Connection *connection
    pool.now = clock(CLOCK_MONOTONIC)
    for number in range(pool.connection_count):
        connection = &pool.connections[number]
        for place in range(pool.streams_each):
            if not pipe_open(pool_pipe(pool, connection.first + place), pool.headers):
                lose(pool, connection, b"the connection takes no more streams")
                break
        pool_flush(pool, connection)


cdef void pool_serve(Pool *pool, Connection *connection, uint32_t events) noexcept nogil:
    """Read what came and send what follows from it."""
    if events & ~EPOLLOUT:
        pool_receive(pool, connection, RECEIVE_BYTES)
    else:
        pool_flush(pool, connection)


cdef void pool_receive(Pool *pool, Connection *connection, size_t size) noexcept nogil:
    """Read what came in pieces of at most this size, once if paced, and send what follows."""
    cdef const char *problem = link_receive(&connection.link, pool.received, size, &pool.now)
    if problem == NULL:
        pool_flush(pool, connection)
    else:
        lose(pool, connection, problem)


cdef void pool_flush(Pool *pool, Connection *connection) noexcept nogil:
    """Send what HTTP/2 has to say, as far as the socket takes it."""
    cdef const char *problem = link_flush(&connection.link)
    if problem != NULL:
        lose(pool, connection, problem)


cdef void lose(Pool *pool, Connection *connection, const char *why) noexcept nogil:
    """Give a connection up, and its streams."""
    cdef int64_t place
    cdef Pipe *pipe
    if connection.link.lost:
        return
    link_lose(&connection.link)
    fault_say(&pool.fault, why)
    for place in range(pool.streams_each):
        pipe = pool_pipe(pool, connection.first + place)
        pipe.ended(pipe)


cdef bint pool_lose_stream(Pool *pool, Pipe *pipe, const char *why) noexcept nogil:
    """The stream is over, which nobody asked for; False when that was known."""
    if pipe.stream < 0:
        return False
    pipe.stream = -1
    pool.streams_left -= 1
    fault_say(&pool.fault, why)
    return True


cdef void pool_accuse(Pool *pool, const char *problem) noexcept nogil:
    """Something came that etcd would not send."""
    pool.wrong += 1
    fault_say(&pool.fault, problem)


cdef void pool_free(Pool *pool) noexcept nogil:
    """Close and free everything but the owner's own; more than once does no harm."""
    cdef int64_t number
    if pool.connections != NULL:
        for number in range(pool.connection_count):
            link_free(&pool.connections[number].link)
    if pool.streams != NULL:
        for number in range(pool.stream_count):
            pipe_free(pool_pipe(pool, number))
    if pool.callbacks != NULL:
        nghttp2_session_callbacks_del(pool.callbacks)
    if pool.epoll >= 0:
        close(pool.epoll)
    free(pool.connections)
    free(pool.streams)
    free(pool.received)
    memset(pool, 0, sizeof(Pool))
    pool.epoll = -2
