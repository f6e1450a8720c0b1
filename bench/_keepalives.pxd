# cython: language_level=3
"""Keep-alives of many leases over streams that stay open: the C half."""

from libc.stdint cimport int64_t, uint8_t

from bench._histogram cimport Tally
from bench._link cimport HEADERS, Link
from bench._nghttp2 cimport nghttp2_nv, nghttp2_session_callbacks
from bench._pipe cimport Fault, Pipe


cdef struct Stream:
    Pipe pipe                   # first: see bench/_pipe.pyx
    Crew *crew
    int64_t number              # of this stream among all
    int64_t turn                # which of its leases is next
    int64_t lease               # that was sent and not answered; 0 for none
    int64_t sent                # ns
    bint busy                   # a request is on its way


cdef struct Connection:
    Link link                   # first: see bench/_link.pyx
    Stream *streams             # the crew's of this connection


cdef struct Crew:
    int64_t leases
    int64_t ttl                 # seconds that each answer has to give
    nghttp2_session_callbacks *callbacks
    nghttp2_nv[HEADERS] headers
    int epoll
    Connection *connections
    int64_t connection_count
    int64_t streams_each
    Stream *streams
    int64_t stream_count
    int64_t streams_left        # not lost
    uint8_t *received           # what recv fills
    # -- one run
    int64_t window_start        # ns
    int64_t end                 # ns: nothing is sent from here on
    int64_t give_up             # ns
    int64_t now                 # ns
    int64_t in_flight
    int64_t completed
    int64_t succeeded
    int64_t wrong
    Fault fault
    Tally *tally


cdef class KeepAlives:
    cdef Crew crew
    cdef bytes authority
    cdef bint running
