# cython: language_level=3
"""Keep-alives of many leases over streams that stay open: the C half."""

from libc.stdint cimport int64_t, uint8_t

from bench._histogram cimport Tally
from bench._pipe cimport Pipe
from bench._pool cimport Pool


cdef struct Stream:
    Pipe pipe                   # first: see bench/_pipe.pyx
    Crew *crew
    int64_t number              # of this stream among all
    int64_t turn                # which of its leases is next
    int64_t lease               # that was sent and not answered; 0 for none
    int64_t sent                # ns
    bint busy                   # a request is on its way


cdef struct Crew:
    Pool pool                   # of Streams
    int64_t leases
    int64_t ttl                 # seconds that each answer has to give
    # -- one run
    int64_t window_start        # ns
    int64_t end                 # ns: nothing is sent from here on
    int64_t give_up             # ns
    int64_t in_flight
    int64_t completed
    int64_t succeeded
    Tally *tally


cdef class KeepAlives:
    cdef Crew crew
    cdef bytes authority
    cdef bint running
