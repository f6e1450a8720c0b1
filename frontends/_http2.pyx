"""One HTTP/2 server connection on nghttp2.

Rules:
1. Bytes in (`http2_feed`), bytes out (`http2_drain`); no socket, no clock (the caller says what
   time it is), no gRPC.
2. All is C memory and needs no GIL. A connection costs one nghttp2 session and its caller's struct.
3. What a header block must look like is decided here, as Go's HTTP/2 decides it, because nghttp2's
   own check is stricter than etcd: it refuses calls without :authority and paths without a slash,
   which etcd answers. So nghttp2's is off.
4. Who breaks the protocol of a stream has that stream reset; who breaks a limit of the connection
   gets GOAWAY and is closed.
5. After `closing` nothing more is read. The caller drains, sends and closes.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, strlen

from quorate.core import limits
from quorate.frontends._nghttp2 cimport *

cdef enum:
    PSEUDO_PATH = 1
    PSEUDO_METHOD = 2
    PSEUDO_SCHEME = 4
    PSEUDO_AUTHORITY = 8
    PSEUDO_PROTOCOL = 16
    PSEUDO_OVER = 32            # a regular header came: no more pseudo headers

cdef extern from *:
    """
    /* 1 = may be in a header's name (RFC 9113 8.2.1: a token without upper case),
       2 = may not be in its value. */
    static const unsigned char quorate_header_bytes[256] = {
        2,2,2,2,2,2,2,2,2,0,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,
        0,1,0,1,1,1,1,1,0,0,1,1,0,1,1,0,1,1,1,1,1,1,1,1,1,1,0,0,0,0,0,0,
        0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,
        1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,0,1,0,1,2,
    };
    """
    const unsigned char[256] quorate_header_bytes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

cdef int64_t SECOND = 1_000_000_000
cdef nghttp2_session_callbacks *callbacks
cdef nghttp2_option *options
cdef uint32_t STREAM_WINDOW = limits.STREAM_WINDOW_BYTES
cdef uint32_t CONNECTION_WINDOW = limits.CONNECTION_WINDOW_BYTES
cdef uint32_t HEADER_LIST_MAX = limits.HEADER_LIST_BYTES_MAX
cdef uint32_t IDLE_FRAMES_MAX = limits.IDLE_FRAMES_MAX
cdef uint32_t PING_STRIKES_MAX = limits.PING_STRIKES_MAX
cdef int32_t RESETS_BURST = limits.RESETS_BURST
cdef int64_t NANOSECONDS_PER_RESET = SECOND // limits.RESETS_PER_SECOND
cdef int64_t HEADERS_TIMEOUT = <int64_t>(limits.FIRST_BYTES_SECONDS * SECOND)
# Without streams a client has nothing to keep alive (grpc-go: defaultPingTimeout).
cdef int64_t PING_WITHOUT_STREAMS = 2 * 3600 * SECOND


cdef bint http2_open(
        Http2 *connection, const Http2Config *config, const Handler *handler, void *owner,
        int64_t now) noexcept nogil:
    """Begin the connection, queue SETTINGS; False without memory. The preface is yet to be fed."""
    cdef nghttp2_settings_entry entries[4]
    connection.handler = handler
    connection.config = config
    connection.owner = owner
    connection.now = connection.last_read = connection.resets_since = now
    connection.resets_left = RESETS_BURST
    if nghttp2_session_server_new2(&connection.session, callbacks, connection, options) != 0:
        connection.session = NULL
        return False
    entries[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    entries[0].value = config.streams_max
    entries[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    entries[1].value = STREAM_WINDOW
    entries[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    entries[2].value = HEADER_LIST_MAX
    entries[3].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
    entries[3].value = 1
    if nghttp2_submit_settings(connection.session, NGHTTP2_FLAG_NONE, entries, 4) != 0:
        return False
    return nghttp2_session_set_local_window_size(
        connection.session, NGHTTP2_FLAG_NONE, 0, <int32_t>CONNECTION_WINDOW) == 0


cdef void http2_close(Http2 *connection) noexcept nogil:
    """Free the session. Streams that are still open are not told; the caller knows them."""
    if connection.session != NULL:
        nghttp2_session_del(connection.session)
        connection.session = NULL


cdef void http2_feed(
        Http2 *connection, const uint8_t *data, size_t size, int64_t now) noexcept nogil:
    """Take in what the client sent; `closing` says afterwards whether the connection is over."""
    if connection.closing or connection.session == NULL:
        return
    connection.now = connection.last_read = now
    # Any byte answers our ping, as grpc-go sees it.
    connection.ping_sent = 0
    if nghttp2_session_mem_recv(connection.session, data, size) < 0:
        connection.closing = True
        return
    if connection.consumed:
        nghttp2_session_consume_connection(connection.session, connection.consumed)
        connection.consumed = 0


cdef size_t http2_drain(Http2 *connection, uint8_t *out, size_t room) noexcept nogil:
    """Write what is to be sent, whole frames, while FRAME_ROOM is left; answers bytes written."""
    cdef size_t used = 0
    cdef const uint8_t *data
    cdef ssize_t size
    if connection.session == NULL:
        return 0
    while room - used >= FRAME_ROOM:
        size = nghttp2_session_mem_send(connection.session, &data)
        if size <= 0:
            if size < 0:
                connection.closing = True
            break
        memcpy(out + used, data, size)
        used += size
    return used


cdef bint http2_finished(Http2 *connection) noexcept nogil:
    """Whether the connection is over once what was drained has been sent."""
    if connection.session == NULL or connection.closing:
        return True
    if connection.draining and connection.streams == 0:
        return True
    return (not nghttp2_session_want_read(connection.session)
            and not nghttp2_session_want_write(connection.session))


cdef size_t http2_queued(Http2 *connection) noexcept nogil:
    """Frames that wait to be drained, DATA not among them."""
    return nghttp2_session_get_outbound_queue_size(connection.session)


cdef void http2_reply(
        Http2 *connection, int32_t stream_id, void *stream, const nghttp2_nv *pairs,
        size_t count) noexcept nogil:
    """Begin a reply; its body is what `handler.read` gives, then come `handler.trailers`.

    Pairs flagged so are not copied.
    """
    cdef nghttp2_data_provider provider
    provider.source.ptr = stream
    provider.read_callback = <nghttp2_data_source_read_callback>_on_read
    nghttp2_submit_response(connection.session, stream_id, pairs, count, &provider)


cdef void http2_reply_headers(
        Http2 *connection, int32_t stream_id, const nghttp2_nv *pairs, size_t count) noexcept nogil:
    """A reply of headers alone."""
    nghttp2_submit_response(connection.session, stream_id, pairs, count, NULL)


cdef void http2_resume(Http2 *connection, int32_t stream_id) noexcept nogil:
    """There is more to read of a reply that had run dry."""
    nghttp2_session_resume_data(connection.session, stream_id)


cdef ssize_t _on_read(
        nghttp2_session *session, int32_t stream_id, uint8_t *out, size_t room, uint32_t *flags,
        nghttp2_data_source *source, Http2 *connection) noexcept nogil:
    cdef bint end = False
    cdef size_t size = connection.handler.read(connection.owner, source.ptr, out, room, &end)
    cdef nghttp2_nv pairs[PAIRS_MAX]
    cdef size_t count
    if not end:
        return <ssize_t>size if size else NGHTTP2_ERR_DEFERRED
    flags[0] = NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
    count = connection.handler.trailers(connection.owner, source.ptr, pairs)
    nghttp2_submit_trailer(session, stream_id, pairs, count)
    return size


cdef void http2_reset(Http2 *connection, int32_t stream_id, uint32_t error) noexcept nogil:
    """End a stream; its `close` follows when the frame is drained."""
    nghttp2_submit_rst_stream(connection.session, NGHTTP2_FLAG_NONE, stream_id, error)


cdef void http2_consume(Http2 *connection, int32_t stream_id, size_t size) noexcept nogil:
    """Let the client send `size` more bytes on this stream."""
    nghttp2_session_consume_stream(connection.session, stream_id, size)


cdef void http2_refuse(Http2 *connection, uint32_t error, const char *reason) noexcept nogil:
    """Say GOAWAY with a reason, then close."""
    if connection.closing or connection.session == NULL:
        return
    nghttp2_submit_goaway(
        connection.session, NGHTTP2_FLAG_NONE,
        nghttp2_session_get_last_proc_stream_id(connection.session),
        error, <const uint8_t *>reason, strlen(reason))
    connection.closing = True


cdef void http2_shut_down(Http2 *connection) noexcept nogil:
    """Say GOAWAY: what is in flight ends well, what is new goes elsewhere."""
    if connection.draining or connection.closing or connection.session == NULL:
        return
    nghttp2_submit_goaway(
        connection.session, NGHTTP2_FLAG_NONE,
        nghttp2_session_get_last_proc_stream_id(connection.session),
        NGHTTP2_NO_ERROR, NULL, 0)
    connection.draining = True


cdef int64_t http2_tick(Http2 *connection, int64_t now) noexcept nogil:
    """Look after the silence: ping, or set `closing`; answers when to look again."""
    cdef const Http2Config *config = connection.config
    cdef int64_t due = connection.last_read + config.keepalive_interval
    connection.now = now
    if connection.headers_since and now >= connection.headers_since + HEADERS_TIMEOUT:
        http2_refuse(connection, NGHTTP2_ENHANCE_YOUR_CALM, b"header block took too long")
    if connection.ping_sent:
        due = connection.ping_sent + config.keepalive_timeout
        if now >= due:
            connection.closing = True
    elif now >= due:
        nghttp2_submit_ping(connection.session, NGHTTP2_FLAG_NONE, NULL)
        connection.ping_sent = now
        due = now + config.keepalive_timeout
    return due


cdef int _on_begin_frame(
        nghttp2_session *session, const nghttp2_frame_hd *hd, Http2 *connection) noexcept nogil:
    connection.idle_frames += 1
    if connection.idle_frames > IDLE_FRAMES_MAX:
        http2_refuse(connection, NGHTTP2_ENHANCE_YOUR_CALM, b"too many frames that ask for nothing")
    # A refused connection's bytes are not worth another frame.
    return NGHTTP2_ERR_CALLBACK_FAILURE if connection.closing else 0


cdef int _on_begin_headers(
        nghttp2_session *session, const nghttp2_frame *frame, Http2 *connection) noexcept nogil:
    connection.idle_frames = 0
    connection.headers_since = connection.now
    connection.header_bytes = connection.header_error = connection.pseudo_seen = 0
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    connection.stream_id = frame.hd.stream_id
    connection.stream = connection.handler.begin(connection.owner, connection, frame.hd.stream_id)
    if connection.stream == NULL:
        connection.header_error = NGHTTP2_REFUSED_STREAM
        return 0
    connection.streams += 1
    nghttp2_session_set_stream_user_data(session, frame.hd.stream_id, connection.stream)
    return 0


cdef int _on_header(
        nghttp2_session *session, const nghttp2_frame *frame, nghttp2_rcbuf *name,
        nghttp2_rcbuf *value, uint8_t flags, Http2 *connection) noexcept nogil:
    cdef nghttp2_vec n = nghttp2_rcbuf_get_buf(name)
    cdef nghttp2_vec v = nghttp2_rcbuf_get_buf(value)
    connection.header_bytes += <uint32_t>(n.len + v.len + 32)
    if connection.header_error:
        return 0
    if connection.header_bytes > HEADER_LIST_MAX:
        # grpc-go resets with this code when a list is cut at its limit.
        connection.header_error = NGHTTP2_FRAME_SIZE_ERROR
    elif not _is_well_formed(connection, n.base, n.len, v.base, v.len):
        connection.header_error = NGHTTP2_PROTOCOL_ERROR
    elif frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        connection.handler.header(connection.owner, connection.stream, name, value)
    return 0


cdef bint _is_well_formed(
        Http2 *connection, const uint8_t *name, size_t name_size, const uint8_t *value,
        size_t size) noexcept nogil:
    """What Go's HTTP/2 and grpc-go let pass (RFC 9113 8.2.1 and 8.3; gRPC A41 for `connection`)."""
    cdef size_t i
    cdef uint32_t bit
    cdef unsigned char seen = 0
    for i in range(size):
        seen |= quorate_header_bytes[value[i]]
    if seen & 2:
        return False
    if name_size and name[0] == 58:     # a colon
        bit = _pseudo_bit(name, name_size)
        if bit == 0 or connection.pseudo_seen & (bit | PSEUDO_OVER):
            return False
        connection.pseudo_seen |= bit
        return True
    connection.pseudo_seen |= PSEUDO_OVER
    seen = 1
    for i in range(name_size):
        seen &= quorate_header_bytes[name[i]]
    if seen == 0 or name_size == 0:
        return False
    return not (name_size == 10 and memcmp(name, b"connection", 10) == 0)


cdef uint32_t _pseudo_bit(const uint8_t *name, size_t size) noexcept nogil:
    if size == 5 and memcmp(name, b":path", 5) == 0:
        return PSEUDO_PATH
    if size == 7 and memcmp(name, b":method", 7) == 0:
        return PSEUDO_METHOD
    if size == 7 and memcmp(name, b":scheme", 7) == 0:
        return PSEUDO_SCHEME
    if size == 10 and memcmp(name, b":authority", 10) == 0:
        return PSEUDO_AUTHORITY
    if size == 9 and memcmp(name, b":protocol", 9) == 0:
        return PSEUDO_PROTOCOL
    return 0


cdef void *_stream_of(Http2 *connection, int32_t stream_id) noexcept nogil:
    if stream_id != connection.stream_id:
        connection.stream_id = stream_id
        connection.stream = nghttp2_session_get_stream_user_data(connection.session, stream_id)
    return connection.stream


cdef int _on_data(
        nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data,
        size_t size, Http2 *connection) noexcept nogil:
    cdef void *stream = _stream_of(connection, stream_id)
    connection.idle_frames = 0
    connection.consumed += size
    if stream != NULL:
        connection.handler.data(connection.owner, stream, data, size)
    return 0


cdef int _on_frame(
        nghttp2_session *session, const nghttp2_frame *frame, Http2 *connection) noexcept nogil:
    cdef void *stream
    if frame.hd.type == NGHTTP2_DATA:
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            stream = _stream_of(connection, frame.hd.stream_id)
            if stream != NULL:
                connection.handler.half_close(connection.owner, stream)
    elif frame.hd.type == NGHTTP2_HEADERS:
        _on_headers_end(connection, frame)
    elif frame.hd.type == NGHTTP2_PING and not frame.hd.flags & NGHTTP2_FLAG_ACK:
        _on_ping(connection)
    return 0


cdef void _on_headers_end(Http2 *connection, const nghttp2_frame *frame) noexcept nogil:
    cdef void *stream = _stream_of(connection, frame.hd.stream_id)
    cdef bint end = frame.hd.flags & NGHTTP2_FLAG_END_STREAM
    connection.headers_since = 0
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST and not end and not connection.header_error:
        # Trailers end their stream.
        connection.header_error = NGHTTP2_PROTOCOL_ERROR
    if connection.header_error:
        http2_reset(connection, frame.hd.stream_id, connection.header_error)
        return
    if stream == NULL:
        return
    if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        connection.handler.headers_end(connection.owner, stream)
    if end:
        connection.handler.half_close(connection.owner, stream)


cdef void _on_ping(Http2 *connection) noexcept nogil:
    """Judge a client's ping as grpc-go does; nghttp2 has answered it."""
    cdef int64_t pause = connection.config.keepalive_min
    cdef bint is_early
    if connection.streams == 0:
        pause = PING_WITHOUT_STREAMS
    is_early = connection.last_ping != 0 and connection.now < connection.last_ping + pause
    connection.last_ping = connection.now
    if connection.ping_forgiven:
        connection.ping_forgiven = False
        connection.ping_strikes = 0
        return
    if is_early:
        connection.ping_strikes += 1
    if connection.ping_strikes > PING_STRIKES_MAX:
        http2_refuse(connection, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_pings")


cdef int _on_frame_sent(
        nghttp2_session *session, const nghttp2_frame *frame, Http2 *connection) noexcept nogil:
    if frame.hd.type == NGHTTP2_HEADERS or frame.hd.type == NGHTTP2_DATA:
        connection.ping_forgiven = True
        connection.idle_frames = 0
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM and not nghttp2_session_get_stream_remote_close(
                session, frame.hd.stream_id):
            # The client has its answer and need not finish its side (RFC 9113 8.1). Not before the
            # answer is out: nghttp2 would drop it for the reset.
            http2_reset(connection, frame.hd.stream_id, NGHTTP2_NO_ERROR)
    return 0


cdef int _on_stream_close(
        nghttp2_session *session, int32_t stream_id, uint32_t error,
        Http2 *connection) noexcept nogil:
    cdef void *stream = _stream_of(connection, stream_id)
    connection.stream_id = 0
    connection.stream = NULL
    if error != NGHTTP2_NO_ERROR:
        _count_reset(connection)
    if stream != NULL:
        connection.streams -= 1
        connection.handler.close(connection.owner, stream)
    return 0


cdef void _count_reset(Http2 *connection) noexcept nogil:
    """Resets by either side cost us a stream for nothing: rapid reset, and its server-made twin."""
    cdef int64_t more
    if connection.resets_left <= 0:
        more = (connection.now - connection.resets_since) // NANOSECONDS_PER_RESET
        connection.resets_left = <int32_t>min(more, <int64_t>RESETS_BURST)
        connection.resets_since = connection.now
        if connection.resets_left <= 0:
            http2_refuse(connection, NGHTTP2_ENHANCE_YOUR_CALM, b"too many resets")
            return
    connection.resets_left -= 1


cdef int _prepare() except -1:
    """Make the callbacks and options that all connections share."""
    global callbacks, options
    if nghttp2_session_callbacks_new(&callbacks) != 0 or nghttp2_option_new(&options) != 0:
        raise MemoryError("no memory for nghttp2")
    nghttp2_session_callbacks_set_on_begin_frame_callback(
        callbacks, <nghttp2_on_begin_frame_callback>_on_begin_frame)
    nghttp2_session_callbacks_set_on_begin_headers_callback(
        callbacks, <nghttp2_on_begin_headers_callback>_on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback2(
        callbacks, <nghttp2_on_header_callback2>_on_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
        callbacks, <nghttp2_on_data_chunk_recv_callback>_on_data)
    nghttp2_session_callbacks_set_on_frame_recv_callback(
        callbacks, <nghttp2_on_frame_recv_callback>_on_frame)
    nghttp2_session_callbacks_set_on_frame_send_callback(
        callbacks, <nghttp2_on_frame_send_callback>_on_frame_sent)
    nghttp2_session_callbacks_set_on_stream_close_callback(
        callbacks, <nghttp2_on_stream_close_callback>_on_stream_close)
    nghttp2_option_set_no_auto_window_update(options, 1)
    nghttp2_option_set_no_http_messaging(options, 1)
    nghttp2_option_set_no_closed_streams(options, 1)
    nghttp2_option_set_max_outbound_ack(options, limits.ACKNOWLEDGEMENTS_MAX)
    nghttp2_option_set_max_settings(options, limits.SETTINGS_ENTRIES_MAX)
    nghttp2_option_set_max_continuations(options, limits.CONTINUATIONS_MAX)
    nghttp2_option_set_stream_reset_rate_limit(
        options, limits.RESETS_BURST, limits.RESETS_PER_SECOND)
    return 0


_prepare()
