# cython: language_level=3
"""Connections with streams that stay open, all of one RPC: the C half."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from bench._link cimport HEADERS, Link
from bench._nghttp2 cimport nghttp2_nv, nghttp2_session_callbacks
from bench._pipe cimport Consume, Ended, Fault, Pipe, Produce


cdef struct Connection:
    Link link                   # first: see bench/_link.pyx
    int64_t first               # number of its first stream


cdef struct Pool:
    # The first member of whoever owns it, so that a pool's pointer is the owner's.
    nghttp2_session_callbacks *callbacks
    nghttp2_nv[HEADERS] headers
    int epoll
    uint8_t *received           # what recv fills
    Connection *connections
    int64_t connection_count
    uint8_t *streams            # structures of the owner's, with a Pipe first
    size_t stream_size
    int64_t streams_each
    int64_t stream_count
    int64_t streams_left        # not lost
    int64_t now                 # ns; when the last piece came
    int64_t wrong               # answers that etcd would not have given
    Fault fault


cdef inline Pipe *pool_pipe(const Pool *pool, int64_t number) noexcept nogil:
    """A stream by its number among all."""
    return <Pipe *>(pool.streams + number * pool.stream_size)


cdef bint pool_prepare(Pool *pool, int64_t connections, int64_t streams,
                       size_t stream_size) noexcept nogil
cdef void pool_answer(Pool *pool, Produce produce, Consume consume, Ended ended) noexcept nogil
cdef int pool_connect(Pool *pool, int port, bytes path, bytes authority, int window,
                      int socket_bytes) except -1
cdef void pool_open_streams(Pool *pool) noexcept nogil
cdef void pool_serve(Pool *pool, Connection *connection, uint32_t events) noexcept nogil
cdef void pool_receive(Pool *pool, Connection *connection, size_t size) noexcept nogil
cdef void pool_flush(Pool *pool, Connection *connection) noexcept nogil
cdef bint pool_lose_stream(Pool *pool, Pipe *pipe, const char *why) noexcept nogil
cdef void pool_accuse(Pool *pool, const char *problem) noexcept nogil
cdef void pool_free(Pool *pool) noexcept nogil
