# cython: language_level=3
"""One HTTP/2 server connection on nghttp2: bytes in, bytes out, streams, and limits against abuse.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from quorate.frontends._nghttp2 cimport nghttp2_nv, nghttp2_rcbuf, nghttp2_session

cdef enum:
    PREFACE_SIZE = 24
    # The largest piece that one nghttp2_session_mem_send answers: a frame of 16,384 bytes, padded.
    FRAME_ROOM = 16384 + 512
    # Headers of one reply, and trailers of one reply.
    PAIRS_MAX = 40


cdef struct Http2Config:
    # Shared by all connections of a worker; see core/limits.py for what is not a flag.
    uint32_t streams_max
    int64_t keepalive_min       # ns between a client's pings
    int64_t keepalive_interval  # ns of silence before we ping
    int64_t keepalive_timeout   # ns to answer our ping


cdef struct Handler:
    # What the layer above wants to hear. `stream` is what `begin` answered; NULL: refused.
    void *(*begin)(void *owner, Http2 *connection, int32_t stream_id) noexcept nogil
    void (*header)(
        void *owner, void *stream, nghttp2_rcbuf *name, nghttp2_rcbuf *value) noexcept nogil
    void (*headers_end)(void *owner, void *stream) noexcept nogil
    void (*data)(void *owner, void *stream, const uint8_t *data, size_t size) noexcept nogil
    void (*half_close)(void *owner, void *stream) noexcept nogil
    void (*close)(void *owner, void *stream) noexcept nogil
    # `end`: trailers follow. Nothing read and not `end`: asked again after http2_resume.
    size_t (*read)(void *owner, void *stream, uint8_t *out, size_t room, bint *end) noexcept nogil
    # Writes at most PAIRS_MAX.
    size_t (*trailers)(void *owner, void *stream, nghttp2_nv *pairs) noexcept nogil


cdef struct Http2:
    nghttp2_session *session    # NULL before http2_open and after http2_close
    const Handler *handler
    const Http2Config *config
    void *owner                 # handed to every function of the handler
    int64_t now                 # ns, of the feed or tick under way
    int64_t last_read           # ns
    int64_t headers_since       # ns when the open header block began; 0 = none is open
    int64_t ping_sent           # ns of our unanswered ping; 0 = none
    int64_t last_ping           # ns of the client's last ping
    int64_t resets_since        # ns up to which the reset budget was filled
    int32_t resets_left
    uint32_t ping_strikes
    uint32_t streams            # open streams that have a handler
    uint32_t idle_frames        # in a row
    uint32_t header_bytes       # of the open block, as HTTP/2 counts
    uint32_t header_error       # what to reset the stream of the open block with; 0 = fine
    uint32_t pseudo_seen        # bits of the pseudo headers of the open block
    int32_t stream_id           # of the stream used last, to spare a look-up; 0 = none
    void *stream
    size_t consumed             # DATA bytes to be given back to the connection's window
    bint ping_forgiven          # we sent something since the client's last ping
    bint closing                # broken or refused: send what is queued, then close
    bint draining               # GOAWAY was sent: close once no stream is left


cdef bint http2_open(
    Http2 *connection, const Http2Config *config, const Handler *handler, void *owner,
    int64_t now) noexcept nogil
cdef void http2_close(Http2 *connection) noexcept nogil

cdef void http2_feed(
    Http2 *connection, const uint8_t *data, size_t size, int64_t now) noexcept nogil
cdef size_t http2_drain(Http2 *connection, uint8_t *out, size_t room) noexcept nogil
cdef bint http2_finished(Http2 *connection) noexcept nogil
cdef size_t http2_queued(Http2 *connection) noexcept nogil

cdef void http2_reply(
    Http2 *connection, int32_t stream_id, void *stream, const nghttp2_nv *pairs,
    size_t count) noexcept nogil
cdef void http2_reply_headers(
    Http2 *connection, int32_t stream_id, const nghttp2_nv *pairs, size_t count) noexcept nogil
cdef void http2_resume(Http2 *connection, int32_t stream_id) noexcept nogil
cdef void http2_reset(Http2 *connection, int32_t stream_id, uint32_t error) noexcept nogil
cdef void http2_consume(Http2 *connection, int32_t stream_id, size_t size) noexcept nogil
cdef void http2_refuse(Http2 *connection, uint32_t error, const char *reason) noexcept nogil
cdef void http2_shut_down(Http2 *connection) noexcept nogil
cdef int64_t http2_tick(Http2 *connection, int64_t now) noexcept nogil
