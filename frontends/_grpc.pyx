"""gRPC calls on HTTP/2 streams: heads, messages, and who answers them.

Rules:
1. No socket and no clock: bytes go through `feed_peer` and `drain_peer`; `set_now` says the time.
2. A hot call meets no Python: its message goes from the client's DATA into the ring to the core.
3. A hot call whose client streams sends each message on like that. What finds the ring full, or
   more than STREAM_REQUESTS_MAX of its own before it, is kept, and its window is not given back:
   a client that floods waits, and nobody else does.
4. Texts and codes of refusals are grpc-go's, in grpc-go's order of checks.
"""

import cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove

from quorate.core import limits
from quorate.core._bytes cimport buffer_append, load_be32
from quorate.core._errors cimport ERROR_DEADLINE_EXCEEDED, ERROR_NOT_IMPLEMENTED, ERROR_STOPPED
from quorate.frontends import services, status
from quorate.frontends._deadlines cimport wheel_pop, wheel_set
from quorate.frontends._http2 cimport (
    Handler, http2_close, http2_consume, http2_drain, http2_feed, http2_finished, http2_open,
    http2_shut_down, http2_tick,
)
from quorate.frontends._kv cimport check
from quorate.frontends._metadata cimport (
    ENCODING_IDENTITY, ENCODING_UNKNOWN, encoding_of, is_grpc, pack, parse_timeout,
)
from quorate.frontends._nghttp2 cimport (
    nghttp2_nv, nghttp2_rcbuf, nghttp2_rcbuf_decref, nghttp2_rcbuf_get_buf, nghttp2_rcbuf_incref,
    nghttp2_vec,
)
from quorate.frontends.methods import METHODS

cdef enum:
    PREFIX_SIZE = 5
    ROUTES = 256
    # No call is answered within this many ns.
    TIMEOUT_MIN = 1000

cdef uint32_t STREAM_MAX = limits.STREAM_REQUESTS_MAX
cdef size_t STREAM_WINDOW_HALF = limits.STREAM_WINDOW_BYTES // 2
# A PutResponse with a header, as the core would answer it.
cdef bytes ECHO = bytes.fromhex("0a1808c3c3c3c3c3c3c3c30110c3c3c3c3c3c3c3c30118052003")
cdef const uint8_t *ECHO_DATA = ECHO
cdef size_t ECHO_SIZE = len(ECHO)


cdef Handler handler
handler.begin = <void *(*)(void *, Http2 *, int32_t) noexcept nogil>_on_begin
handler.header = <void (*)(
    void *, void *, nghttp2_rcbuf *, nghttp2_rcbuf *) noexcept nogil>_on_header
handler.headers_end = <void (*)(void *, void *) noexcept nogil>_on_headers_end
handler.data = <void (*)(void *, void *, const uint8_t *, size_t) noexcept nogil>_on_data
handler.half_close = <void (*)(void *, void *) noexcept nogil>_on_half_close
handler.close = <void (*)(void *, void *) noexcept nogil>_on_close
handler.read = <size_t (*)(void *, void *, uint8_t *, size_t, bint *) noexcept nogil>_on_read
handler.trailers = <size_t (*)(void *, void *, nghttp2_nv *) noexcept nogil>_on_trailers


cdef Call *_on_begin(Grpc grpc, Http2 *connection, int32_t stream_id) noexcept nogil:
    return grpc._begin(<Peer *>connection, stream_id)


cdef void _on_header(
        Grpc grpc, Call *call, nghttp2_rcbuf *name, nghttp2_rcbuf *value) noexcept nogil:
    cdef nghttp2_vec n = nghttp2_rcbuf_get_buf(name)
    cdef nghttp2_vec v = nghttp2_rcbuf_get_buf(value)
    if n.len == 5 and n.base[0] == 58:      # :path, the only pseudo header of five letters
        grpc._route(call, value)
    else:
        grpc._take_header(call, n.base, n.len, v.base, v.len)


cdef void _on_headers_end(Grpc grpc, Call *call) noexcept nogil:
    grpc._accept(call)


cdef void _on_data(Grpc grpc, Call *call, const uint8_t *data, size_t size) noexcept nogil:
    grpc._take_data(call, data, size)


cdef void _on_half_close(Grpc grpc, Call *call) noexcept nogil:
    grpc._half_close(call)


cdef void _on_close(Grpc grpc, Call *call) noexcept nogil:
    grpc._gone(call)


cdef size_t _on_read(Grpc grpc, Call *call, uint8_t *out, size_t room, bint *end) noexcept nogil:
    return grpc._read(call, out, room, end)


cdef size_t _on_trailers(Grpc grpc, Call *call, nghttp2_nv *pairs) noexcept nogil:
    return grpc._status_pairs(call, pairs)


@cython.no_gc_clear
cdef class Grpc(Watches):
    """The calls of all connections of one worker."""

    def __cinit__(
            self, *, served=(),
            size_t request_bytes_max=limits.REQUEST_BYTES_MAX_DEFAULT,
            uint32_t txn_ops_max=limits.TXN_OPS_MAX_DEFAULT,
            uint32_t streams_max=limits.STREAMS_MAX,
            double keepalive_min=limits.KEEPALIVE_MIN_SECONDS_DEFAULT,
            double keepalive_interval=limits.KEEPALIVE_INTERVAL_SECONDS_DEFAULT,
            double keepalive_timeout=limits.KEEPALIVE_TIMEOUT_SECONDS_DEFAULT,
            double request_timeout=limits.REQUEST_SECONDS_DEFAULT,
            bint echo=False, **_):
        """The paths in `served` are Python's; the hot ones are the core's; times are in seconds."""
        self.echo = echo
        self.check_limits.request_bytes_max = request_bytes_max
        self.check_limits.txn_ops_max = txn_ops_max
        self.config.streams_max = min(streams_max, <uint32_t>limits.STREAMS_MAX)
        self.config.keepalive_min = <int64_t>(keepalive_min * 1e9)
        self.config.keepalive_interval = <int64_t>(keepalive_interval * 1e9)
        self.config.keepalive_timeout = <int64_t>(keepalive_timeout * 1e9)
        self.request_timeout = <int64_t>(request_timeout * 1e9)
        self.routes = <Route **>calloc(ROUTES, sizeof(Route *))
        if self.routes == NULL:
            raise MemoryError("no memory for the routes")
        for path in METHODS:
            if path in services.HOT:
                hot = services.HOT[path]
                self._add_route(path, ROUTE_HOT, hot.method, hot.timed)
            elif path == services.WATCH and self.reader is not None:
                self._add_route(path, ROUTE_WATCH, 0, False)
            elif path not in served:
                self._add_route(path, ROUTE_ABSENT, 0, False)
        for path in served:
            self._add_route(path, ROUTE_SERVED, 0, False)

    def __dealloc__(self):
        if self.routes != NULL:
            self._free_routes()

    cdef void _free_routes(self):
        cdef Route *route
        cdef Route *following
        cdef int i
        for i in range(ROUTES):
            route = self.routes[i]
            while route != NULL:
                following = route.next
                free(route)
                route = following
        free(self.routes)

    def _add_route(self, str path, uint32_t kind, uint32_t method, bint is_timed):
        """Enter a path into the table."""
        cdef bytes name = path.encode()
        cdef Route *route = <Route *>calloc(1, sizeof(Route))
        cdef uint32_t slot = _hash(name, len(name))
        if route == NULL:
            raise MemoryError("no memory for a route")
        self._kept.append(name)
        route.path = name
        route.size = len(name)
        route.kind = kind
        route.method = method
        route.is_timed = is_timed
        route.client_streams = services.client_streams(path)
        route.next = self.routes[slot]
        self.routes[slot] = route

    # --- one connection --------------------------------------------------------------------------

    cdef bint open_peer(self, Peer *peer) noexcept nogil:
        """Begin a connection in zeroed memory; False without memory."""
        return http2_open(&peer.http2, &self.config, &handler, <void *>self, self.now)

    cdef void feed_peer(self, Peer *peer, const uint8_t *data, size_t size) noexcept nogil:
        """Take in what the client sent."""
        http2_feed(&peer.http2, data, size, self.now)
        self.mark_dirty(peer)

    cdef size_t drain_peer(self, Peer *peer, uint8_t *out, size_t room) noexcept nogil:
        """Write what is to be sent; answers how much was written."""
        cdef size_t size = http2_drain(&peer.http2, out, room)
        peer.early = peer.reply_bytes + EARLY_BYTES
        return size

    cdef void close_peer(self, Peer *peer) noexcept nogil:
        """End a connection's calls, free its session; the caller took it off the dirty list."""
        while peer.calls != NULL:
            self._gone(peer.calls)
        if peer.path != NULL:
            nghttp2_rcbuf_decref(peer.path)
            peer.path = NULL
        http2_close(&peer.http2)

    cdef void shut_down_peer(self, Peer *peer) noexcept nogil:
        """The server stops: no new calls; those in flight end, streams once what the core was asked
        for them is answered. What they hold back is not asked any more.
        """
        cdef Call *call = peer.calls
        cdef Call *following
        while call != NULL:
            following = call.next
            if call.route != NULL and call.route.kind == ROUTE_WATCH:
                self._end(call, ERROR_STOPPED)
            elif call.route != NULL and call.route.kind == ROUTE_HOT and call.route.client_streams:
                call.message.size = 0
                self._set_partial(call, 0)
                self._end(call, ERROR_STOPPED)
            call = following
        http2_shut_down(&peer.http2)
        self.mark_dirty(peer)

    # --- a call's head ---------------------------------------------------------------------------

    cdef Call *_begin(self, Peer *peer, int32_t stream_id) noexcept nogil:
        """A header block begins a call; NULL refuses the stream."""
        cdef Call *call = self._new_call()
        if call == NULL:
            self.calls_refused += 1
            return NULL
        call.peer = peer
        call.stream_id = stream_id
        call.next = peer.calls
        if call.next != NULL:
            call.next.previous = call
        peer.calls = call
        self.calls_begun += 1
        return call

    cdef void _route(self, Call *call, nghttp2_rcbuf *value) noexcept nogil:
        """Look the path up; this connection's last one is known by its place in HPACK's table."""
        cdef Peer *peer = call.peer
        cdef Route *route
        cdef nghttp2_vec path
        if value == peer.path:
            call.route = peer.route
            return
        path = nghttp2_rcbuf_get_buf(value)
        route = self.routes[_hash(path.base, path.len)]
        while route != NULL:
            if route.size == path.len and memcmp(route.path, path.base, path.len) == 0:
                break
            route = route.next
        call.route = route
        if route == NULL:
            buffer_append(&details_of(call).path, path.base, path.len)
            return
        nghttp2_rcbuf_incref(value)
        if peer.path != NULL:
            nghttp2_rcbuf_decref(peer.path)
        peer.path = value
        peer.route = route

    cdef void _take_header(
            self, Call *call, const uint8_t *name, size_t name_size,
            const uint8_t *value, size_t size) noexcept nogil:
        """One header that is not :path; pseudo headers come before all others."""
        if name[0] == 58:
            if name_size == 7 and memcmp(name, b":method", 7) == 0:
                if size == 4 and memcmp(value, b"POST", 4) == 0:
                    call.flags |= CALL_POST
                else:
                    buffer_append(&details_of(call).method, value, size)
            return
        if name_size == 12 and memcmp(name, b"content-type", 12) == 0:
            self._take_content_type(call, value, size)
        elif name_size == 12 and memcmp(name, b"grpc-timeout", 12) == 0:
            self._take_timeout(call, value, size)
        elif name_size == 13 and memcmp(name, b"grpc-encoding", 13) == 0:
            call.encoding = encoding_of(value, size)
            if call.encoding == ENCODING_UNKNOWN:
                details_of(call).encoding.size = 0
                buffer_append(&details_of(call).encoding, value, size)
        elif name_size == 4 and memcmp(name, b"host", 4) == 0:
            call.host_count += 1
        if call.route != NULL and call.route.kind == ROUTE_SERVED:
            pack(&details_of(call).headers, name, name_size, value, size)

    cdef void _take_content_type(
            self, Call *call, const uint8_t *value, size_t size) noexcept nogil:
        """Note the content type, to be echoed as grpc-go does: `;x` comes back as `+x`."""
        cdef Buffer *asked
        if size == 16 and is_grpc(value, size):
            call.flags |= CALL_GRPC
            return
        asked = &details_of(call).content_type
        if call.flags & CALL_GRPC:
            return
        asked.size = 0
        buffer_append(asked, value, size)
        if is_grpc(value, size):
            call.flags |= CALL_GRPC
            asked.data[16] = 43
            if size == 17:
                asked.size = 16

    cdef void _take_timeout(self, Call *call, const uint8_t *value, size_t size) noexcept nogil:
        """Note the client's timeout; `_accept` makes a deadline of it."""
        call.flags |= CALL_HAS_TIMEOUT
        if not parse_timeout(value, size, &call.deadline):
            details_of(call).timeout.size = 0
            buffer_append(&details_of(call).timeout, value, size)
            call.flags |= CALL_BAD_TIMEOUT

    cdef void _accept(self, Call *call) noexcept nogil:
        """All headers are in: judge them in grpc-go's order."""
        if call.host_count > 1:
            self._refuse(call, 400, 13, REFUSE_HOSTS, NULL)
        elif not call.flags & CALL_GRPC:
            self._refuse(call, 415, 3, REFUSE_CONTENT_TYPE, &details_of(call).content_type)
        elif call.flags & CALL_BAD_TIMEOUT:
            self._refuse(call, 400, 13, REFUSE_TIMEOUT, &details_of(call).timeout)
        elif not call.flags & CALL_POST:
            self._refuse(call, 405, 13, REFUSE_METHOD, &details_of(call).method)
        elif call.route == NULL:
            self._refuse(call, 200, 12, REFUSE_PATH, &details_of(call).path)
        elif call.route.kind == ROUTE_ABSENT:
            self._end(call, ERROR_NOT_IMPLEMENTED)
        elif call.encoding == ENCODING_UNKNOWN:
            self._refuse(call, 200, 12, REFUSE_ENCODING, &details_of(call).encoding)
        elif call.route.kind == ROUTE_HOT or call.route.kind == ROUTE_WATCH:
            self._accept_hot(call)
        elif call.route.client_streams:
            self._announce(call)

    cdef void _accept_hot(self, Call *call) noexcept nogil:
        call.route.counts[COUNT_STARTED] += 1
        call.flags |= CALL_COUNTED
        if not call.flags & CALL_HAS_TIMEOUT:
            return
        if call.deadline < TIMEOUT_MIN:
            self.calls_expired += 1
            self._end(call, ERROR_DEADLINE_EXCEEDED)
            return
        call.deadline += self.now
        wheel_set(self.wheel, &call.timer, call.deadline)

    # --- its messages ----------------------------------------------------------------------------

    cdef void _take_data(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        """Bytes of messages, in any pieces."""
        cdef const uint8_t *message
        cdef uint32_t message_size
        if call.flags & CALL_DEAF:
            # The window of a call that has its answer is not given back.
            return
        call.unconsumed += size
        if call.route.kind == ROUTE_HOT and call.route.client_streams:
            self._take_stream(call, data, size)
            return
        while True:
            if call.prefix_size < PREFIX_SIZE and not self._take_prefix(call, &data, &size):
                break
            message_size = call.message_size
            if call.message.size == 0 and size >= message_size:
                message = data
                data += message_size
                size -= message_size
            elif self._gather(call, &data, &size):
                message = call.message.data
            else:
                break
            call.prefix_size = 0
            self._take_message(call, message, message_size)
            if call.flags & CALL_DEAF:
                return
            call.message.size = 0
            self._set_partial(call, 0)
        if call.unconsumed >= STREAM_WINDOW_HALF and not call.flags & CALL_DEAF:
            http2_consume(&call.peer.http2, call.stream_id, call.unconsumed)
            call.unconsumed = 0

    cdef bint _take_prefix(self, Call *call, const uint8_t **data, size_t *size) noexcept nogil:
        """The five bytes before a message; False when they are not whole or say too much."""
        cdef uint32_t more = <uint32_t>min(<size_t>(PREFIX_SIZE - call.prefix_size), size[0])
        memcpy(&call.prefix[call.prefix_size], data[0], more)
        call.prefix_size += more
        data[0] += more
        size[0] -= more
        if call.prefix_size < PREFIX_SIZE:
            return False
        call.message_size = load_be32(&call.prefix[1])
        if call.message_size > self.message_max:
            self._refuse(call, 200, 8, REFUSE_SIZE, NULL)
            return False
        return True

    cdef bint _gather(self, Call *call, const uint8_t **data, size_t *size) noexcept nogil:
        """Keep a piece of a message; True when it is whole."""
        cdef size_t more = min(<size_t>call.message_size - call.message.size, size[0])
        if not self._set_partial(call, call.message.size + more):
            self.calls_cut += 1
            self._cut(call)
            return False
        buffer_append(&call.message, data[0], more)
        data[0] += more
        size[0] -= more
        return call.message.size == call.message_size

    cdef void _take_message(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        """A whole message: unpack it if need be."""
        if call.prefix[0] == 0:
            self._take_plain(call, data, size)
        elif call.prefix[0] > 1:
            self._refuse(call, 200, 13, REFUSE_FORMAT, NULL)
        elif call.encoding == ENCODING_IDENTITY:
            self._end_with(call, 13, b"grpc: compressed flag set with identity or empty encoding")
        else:
            self._take_compressed(call, data, size)

    cdef void _take_compressed(
            self, Call *call, const uint8_t *data, size_t size) noexcept with gil:
        cdef bytes plain, text
        cdef const uint8_t *plain_data
        try:
            plain = status.inflate(data[:size], self.message_max)
        except OverflowError:
            self._refuse(call, 200, 8, REFUSE_INFLATED, NULL)
            return
        except ValueError as error:
            text = f"grpc: failed to decompress the message: {error}".encode()
            self._end_with(call, 13, text)
            return
        plain_data = plain
        self._take_plain(call, plain_data, len(plain))

    cdef void _take_plain(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        """A message that means something: to the core or to Python."""
        cdef uint16_t error
        cdef Event *event
        if call.route.kind == ROUTE_HOT and call.route.client_streams:
            self._ask_more(call, data, size)
            return
        if call.route.kind == ROUTE_HOT:
            error = 0 if self.echo else check(call.route.method, data, size, &self.check_limits)
            call.flags |= CALL_DEAF
            call.route.counts[COUNT_RECEIVED] += 1
            if error:
                self._end(call, error)
            else:
                self._ask(call, data, size)
            return
        if call.route.kind == ROUTE_WATCH:
            call.route.counts[COUNT_RECEIVED] += 1
            self._take_watch_request(call, data, size)
            return
        if not call.flags & CALL_ANNOUNCED:
            self._announce(call)
        if not call.route.client_streams:
            call.flags |= CALL_DEAF
        event = self._tell(EVENT_MESSAGE, call.id)
        if event != NULL:
            buffer_append(&event.data, data, size)

    cdef void _ask(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        """Ask the core, now or as soon as the ring has room, and watch the time."""
        cdef int64_t limit = self.now + self.request_timeout
        if self.echo:
            self._queue_message(call, ECHO_DATA, ECHO_SIZE)
            self._end(call, 0)
            return
        if call.route.is_timed and (call.deadline == 0 or limit < call.deadline):
            call.flags |= CALL_TIMEOUT_IS_OURS
            wheel_set(self.wheel, &call.timer, limit)
        call.flags |= CALL_ASKED
        call.method = call.route.method
        if self.owing == NULL and self._push(call, call.method, 0, data, size):
            call.message.size = 0
            self._set_partial(call, 0)
            return
        if data != call.message.data:
            call.message.size = 0
            buffer_append(&call.message, data, size)
        self._owe(call, OWES_REQUEST)

    # --- hot calls whose client streams ----------------------------------------------------------

    cdef void _take_stream(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        """Bytes of requests: whole ones go to the core while it may have more, the rest is kept."""
        cdef size_t taken = 0
        if call.message.size == 0:
            taken = self._take_requests(call, data, size)
        if call.flags & CALL_DEAF:
            return
        if taken < size:
            if not self._set_partial(call, call.message.size + size - taken):
                self.calls_cut += 1
                self._cut(call)
                return
            buffer_append(&call.message, data + taken, size - taken)
            if taken == 0 and not call.owes & OWES_STREAM:
                self._go_on(call)
                return
        self._give_window(call)

    cdef size_t _take_requests(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        """Send whole requests on; answers the bytes of those that went."""
        cdef size_t taken = 0
        while size - taken >= PREFIX_SIZE and call.pending < STREAM_MAX:
            memcpy(&call.prefix[0], data + taken, PREFIX_SIZE)
            call.message_size = load_be32(&call.prefix[1])
            if call.message_size > self.message_max:
                self._refuse(call, 200, 8, REFUSE_SIZE, NULL)
                break
            if size - taken - PREFIX_SIZE < call.message_size:
                break
            self._take_message(call, data + taken + PREFIX_SIZE, call.message_size)
            if call.flags & CALL_DEAF or call.owes & OWES_STREAM:
                break
            taken += PREFIX_SIZE + call.message_size
        return taken

    cdef void _ask_more(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        """One request of a stream: to the core, or back to where it came from until there is room.
        """
        if self.echo:
            self._queue_message(call, ECHO_DATA, ECHO_SIZE)
        elif check(call.route.method, data, size, &self.check_limits):
            self._end_unreadable(call)
            return
        elif self.owing == NULL or self.owing == call:
            if not self._push(call, call.route.method, 0, data, size):
                call.owes |= OWES_STREAM
        else:
            call.owes |= OWES_STREAM
        if call.owes & OWES_STREAM:
            if not call.flags & CALL_LISTED:
                self._list(call)
            return
        call.route.counts[COUNT_RECEIVED] += 1
        if not self.echo:
            call.flags |= CALL_ASKED
            call.pending += 1

    cdef void _go_on(self, Call *call) noexcept nogil:
        """Take what is kept, as far as there is room."""
        cdef size_t taken = self._take_requests(call, call.message.data, call.message.size)
        if call.flags & CALL_DEAF:
            call.message.size = 0
            self._set_partial(call, 0)
            return
        call.message.size -= taken
        memmove(call.message.data, call.message.data + taken, call.message.size)
        self._set_partial(call, call.message.size)
        self._give_window(call)
        if call.flags & CALL_HALF_CLOSED:
            self._finish_stream(call)

    cdef void _give_window(self, Call *call) noexcept nogil:
        """Let the client send more, but for what waits here."""
        cdef size_t waiting = 0
        if call.owes & OWES_STREAM or call.pending >= STREAM_MAX:
            waiting = min(call.message.size, call.unconsumed)
        if call.unconsumed - waiting >= STREAM_WINDOW_HALF and not call.flags & CALL_DEAF:
            http2_consume(&call.peer.http2, call.stream_id, call.unconsumed - waiting)
            call.unconsumed = waiting
            self.mark_dirty(call.peer)

    cdef void _finish_stream(self, Call *call) noexcept nogil:
        """The client has sent its last: the call ends with its last answer."""
        if call.message.size == 0:
            self._end(call, 0)
        elif not call.owes & OWES_STREAM and call.pending < STREAM_MAX:
            self._end_with(call, 13, b"unexpected EOF")

    cdef void _half_close(self, Call *call) noexcept nogil:
        """The client has sent its last."""
        call.flags |= CALL_HALF_CLOSED
        if call.flags & CALL_ENDED or call.route == NULL:
            return
        if call.route.kind == ROUTE_HOT and call.route.client_streams:
            if not call.flags & CALL_DEAF:
                self._finish_stream(call)
            return
        cdef bint is_between = call.prefix_size < PREFIX_SIZE
        if call.route.kind == ROUTE_WATCH and is_between:
            return      # a Watch goes on without its client's further requests
        if call.flags & CALL_ANNOUNCED and (call.flags & CALL_DEAF or is_between):
            self._tell(EVENT_HALF_CLOSED, call.id)
        elif not call.flags & CALL_DEAF:
            if call.flags & CALL_ANNOUNCED:
                self._tell(EVENT_RESET, call.id)
            # Go's reader has met the end of the stream between messages, or within one; a handler
            # that reads a stream is told otherwise.
            self._end_with(
                call, 13 if call.route.kind == ROUTE_WATCH else 2,
                b"EOF" if is_between else b"unexpected EOF")

    # --- for Python ------------------------------------------------------------------------------

    def method_counts(self):
        """Per hot path: calls started, messages in and out, and calls ended by code."""
        cdef Route *route
        cdef int slot
        result = {}
        for slot in range(ROUTES):
            route = self.routes[slot]
            while route != NULL:
                if route.kind == ROUTE_HOT or route.kind == ROUTE_WATCH:
                    result[route.path.decode()] = list(route.counts)
                route = route.next
        return result

    def set_time(self, int64_t now):
        """Say what time it is and end calls whose time is over; for connections without a pump."""
        cdef Timer *timer
        self.set_now(now)
        timer = wheel_pop(self.wheel, now)
        while timer != NULL:
            if timer.kind == TIMER_WATCH:
                self.notify_progress(<WatchStream *>timer.owner)
            else:
                self.expire_call(<Call *>timer.owner)
            timer = wheel_pop(self.wheel, now)

    def deliver(self):
        """Publish requests and take replies once; for connections without a pump.

        Answers whether anything moved.
        """
        cdef uint64_t head = self.watched_head()
        cdef bint moved = self.publish()
        if self.replies is not None and self.take_replies(0xffffffff):
            moved = True
        if self.take_watched(head):
            moved = True
        self.pay_owed()
        return self.publish() or moved


cdef uint32_t _hash(const uint8_t *data, size_t size) noexcept nogil:
    cdef uint32_t result = 2166136261u
    cdef size_t i
    for i in range(size):
        result = (result ^ data[i]) * 16777619u
    return result % ROUTES


@cython.no_gc_clear
cdef class Connection:
    """One connection without a socket: for transports of Python, and for tests."""

    def __cinit__(self, Grpc grpc):
        self._grpc = grpc
        if not grpc.open_peer(&self._peer):
            raise MemoryError("no memory for a connection")

    def __dealloc__(self):
        self.close()

    def feed(self, bytes data):
        """Take in what the client sent; False when the connection is over once `drain` was sent."""
        cdef const uint8_t *at = data
        self._grpc.feed_peer(&self._peer, at, len(data))
        return not self._peer.http2.closing

    def drain(self, size_t size_max=1 << 20):
        """What is to be sent, whole frames."""
        cdef bytearray out = bytearray(size_max)
        cdef uint8_t *at = <uint8_t *><char *>out
        return bytes(out[:self._grpc.drain_peer(&self._peer, at, size_max)])

    def tick(self):
        """Look after silence; answers when to come back, in ns."""
        return http2_tick(&self._peer.http2, self._grpc.now)

    def shut_down(self):
        """Take no new calls; `finished` once those in flight have ended."""
        self._grpc.shut_down_peer(&self._peer)

    @property
    def finished(self):
        """Whether the connection is over once what was drained has been sent."""
        return http2_finished(&self._peer.http2)

    def close(self):
        """End all calls and free the session; safe to repeat."""
        cdef Peer *peer = self._grpc.dirty
        cdef Peer *previous = NULL
        while peer != NULL:
            if peer == &self._peer:
                if previous == NULL:
                    self._grpc.dirty = peer.next_dirty
                else:
                    previous.next_dirty = peer.next_dirty
            previous = peer
            peer = peer.next_dirty
        self._peer.is_dirty = False
        self._grpc.close_peer(&self._peer)
