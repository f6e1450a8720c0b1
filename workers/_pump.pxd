# cython: language_level=3
"""The sockets of one worker: one epoll set, one receive buffer, one send per connection per round.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._ring cimport Doorbell
from quorate.frontends._deadlines cimport Timer
from quorate.frontends._calls cimport Peer
from quorate.frontends._grpc cimport Grpc

cdef enum SourceKind:
    SOURCE_DOORBELL = 1
    SOURCE_LISTENER = 2
    SOURCE_CLIENT = 3


cdef struct Source:
    # What an epoll event points at.
    uint32_t kind
    int fd
    Source *next                # of the listeners


cdef struct Client:
    # One socket. Until it has sent the HTTP/2 preface it has no session and nearly no memory.
    Source source               # the first member: a Source * of kind SOURCE_CLIENT is a Client *
    Peer peer
    Timer timer
    Client *next                # of all clients
    Client *previous
    int64_t progress            # ns when bytes last went out, or began to wait
    size_t unsent_at            # where in `unsent` the bytes begin that the socket did not take
    Buffer unsent
    uint32_t interest           # epoll bits that are set now
    uint32_t sniffed            # bytes of the preface seen
    bint is_open                # the session runs
    bint is_gone                # freed at the end of the round


cdef class Pump(Grpc):
    cdef readonly int fd            # the epoll set: readable when `turn` has something to do
    cdef Doorbell bell              # ours; None without a core
    cdef Doorbell core_bell
    cdef Source bell_source
    cdef Source *listeners
    cdef Client *clients
    cdef uint8_t *inbox             # limits.RECEIVE_BYTES for every socket's recv
    cdef uint8_t *outbox            # limits.SEND_BYTES_MAX and room for one frame
    cdef uint32_t clients_live
    cdef bint is_asleep             # our sleep is announced
    cdef readonly bint is_draining
    cdef int64_t accept_again       # ns until which nothing is accepted; 0 = accepting
    cdef uint64_t accepted
    cdef uint64_t dropped           # connections that misbehaved or stalled
    cdef uint64_t handed_over       # sockets that do not speak HTTP/2
    cdef uint64_t bytes_received
    cdef uint64_t bytes_sent
    cdef uint64_t rounds

    cdef void _turn(self, int linger) noexcept nogil
    cdef bint _round(self, int milliseconds) noexcept nogil
    cdef bint _has_input(self) noexcept nogil
    cdef bint _linger(self, int milliseconds) noexcept nogil
    cdef void _await_room(self) noexcept nogil
    cdef void _wake(self) noexcept nogil

    cdef bint _take_events_of(self, Source *source, uint32_t events) noexcept nogil
    cdef void _accept_all(self, Source *listener) noexcept nogil
    cdef void _listen(self, bint yes) noexcept nogil
    cdef bint _add_client(self, int fd) noexcept nogil
    cdef void _receive(self, Client *client) noexcept nogil
    cdef void _sniff(self, Client *client, size_t size) noexcept nogil
    cdef void _hand_over(self, Client *client, size_t size) noexcept nogil

    cdef void _flush_all(self) noexcept nogil
    cdef void _flush(self, Client *client) noexcept nogil
    cdef void _send_early(self, Peer *peer) noexcept nogil
    cdef bint _send_unsent(self, Client *client) noexcept nogil
    cdef void _send(self, Client *client, size_t size) noexcept nogil
    cdef void _set_interest(self, Client *client) noexcept nogil

    cdef void _check_timers(self) noexcept nogil
    cdef void _check_client(self, Client *client) noexcept nogil
    cdef void _leave(self, Client *client) noexcept nogil
    cdef void _forget(self, Client *client) noexcept nogil
