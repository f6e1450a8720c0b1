# cython: language_level=3
"""gRPC calls on HTTP/2 streams: heads, messages, and who answers them."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from quorate.frontends._calls cimport *
from quorate.frontends._http2 cimport Http2Config
from quorate.frontends._kv cimport CheckLimits
from quorate.frontends._nghttp2 cimport nghttp2_rcbuf
from quorate.frontends._watches cimport *


cdef class Grpc(Watches):
    cdef Http2Config config
    cdef CheckLimits check_limits
    cdef readonly bint echo     # answer every hot call at once, for the bench
    cdef int64_t request_timeout    # ns
    cdef Route **routes         # by hash of the path

    cdef void _free_routes(self)

    # One connection.
    cdef bint open_peer(self, Peer *peer) noexcept nogil
    cdef void feed_peer(self, Peer *peer, const uint8_t *data, size_t size) noexcept nogil
    cdef size_t drain_peer(self, Peer *peer, uint8_t *out, size_t room) noexcept nogil
    cdef void close_peer(self, Peer *peer) noexcept nogil
    cdef void shut_down_peer(self, Peer *peer) noexcept nogil

    # A call's head.
    cdef Call *_begin(self, Peer *peer, int32_t stream_id) noexcept nogil
    cdef void _route(self, Call *call, nghttp2_rcbuf *value) noexcept nogil
    cdef void _take_header(
        self, Call *call, const uint8_t *name, size_t name_size,
        const uint8_t *value, size_t size) noexcept nogil
    cdef void _take_content_type(self, Call *call, const uint8_t *value, size_t size) noexcept nogil
    cdef void _take_timeout(self, Call *call, const uint8_t *value, size_t size) noexcept nogil
    cdef void _accept(self, Call *call) noexcept nogil
    cdef void _accept_hot(self, Call *call) noexcept nogil

    # Its messages.
    cdef void _take_data(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef bint _take_prefix(self, Call *call, const uint8_t **data, size_t *size) noexcept nogil
    cdef bint _gather(self, Call *call, const uint8_t **data, size_t *size) noexcept nogil
    cdef void _take_message(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef void _take_compressed(self, Call *call, const uint8_t *data, size_t size) noexcept with gil
    cdef void _take_plain(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef void _ask(self, Call *call, const uint8_t *data, size_t size) noexcept nogil

    # Hot calls whose client streams.
    cdef void _take_stream(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef size_t _take_requests(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef void _ask_more(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef void _go_on(self, Call *call) noexcept nogil
    cdef void _give_window(self, Call *call) noexcept nogil
    cdef void _finish_stream(self, Call *call) noexcept nogil
    cdef void _half_close(self, Call *call) noexcept nogil


cdef class Connection:
    cdef Grpc _grpc
    cdef Peer _peer
