"""gRPC calls on HTTP/2 streams.

Rules:
1. No socket and no clock: bytes go through `feed` and `drain`, and `set_time` says what time it is.
2. A call is a C struct from a free list; a hot call meets no Python at all. The GIL is taken only to put a refusal into
   words and to unpack a compressed message.
3. A call's id is its slot and the slot's generation, so that a reply to a call that is over finds nobody.
4. A call ends once: `_end`, `_refuse` and `_cut` say how, `_send_end` sends it, and `_gone` follows when the stream is closed.
5. What the ring to the core can't take now is owed (`_owe`), never dropped; `is_full` then tells the transport to read no more.
6. Everything that waits is counted in bytes, per connection and for the worker; see core/limits.py.
7. Texts and codes of refusals are grpc-go's, in grpc-go's order of checks.
"""

import cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

from quorate.core import limits
from quorate.core._bytes cimport buffer_append, buffer_free, buffer_reserve, load_be32, store_be32
from quorate.core._errors cimport (
    ERROR_DEADLINE_EXCEEDED, ERROR_LIST_ABANDONED, ERROR_NOT_IMPLEMENTED, ERROR_TIMEOUT,
)
from quorate.core._record cimport (
    METHOD_ADMIN, METHOD_CANCEL, METHOD_PULL, REPLY_END, REPLY_FIRST, REPLY_LAST, REPLY_WINDOW, Request,
)
from quorate.frontends import services, status
from quorate.frontends._deadlines cimport SLOT_SHIFT, wheel_clear, wheel_next, wheel_pop, wheel_set
from quorate.frontends._http2 cimport (
    Handler, http2_close, http2_consume, http2_drain, http2_feed, http2_finished,
    http2_open, http2_reply, http2_reply_headers, http2_reset, http2_resume, http2_shut_down, http2_tick,
)
from quorate.frontends._kv cimport check
from quorate.frontends._metadata cimport (
    ENCODING_GZIP, ENCODING_IDENTITY, ENCODING_UNKNOWN, TRAILERS_MAX, encoding_of, is_grpc, number_text, pack,
    parse_timeout, set_pair, unpack, unpack_pairs,
)
from quorate.frontends._nghttp2 cimport *
from quorate.frontends.methods import METHODS

cdef enum:
    PREFIX_SIZE = 5
    # What a free call keeps of its buffers.
    BUFFER_KEPT_MAX = 4096
    ERRORS_MAX = 256
    ROUTES = 256
    CALLS_PER_CHUNK = 64
    COUNT_STARTED = 0
    COUNT_RECEIVED = 1
    COUNT_SENT = 2
    COUNT_HANDLED = 3
    # No call is answered within this many ns.
    TIMEOUT_MIN = 1000

cdef size_t STREAM_WINDOW_HALF = limits.STREAM_WINDOW_BYTES // 2
cdef size_t PARTIAL_MAX = limits.PARTIAL_BYTES_MAX
cdef size_t WORKER_PARTIAL_MAX = limits.WORKER_PARTIAL_BYTES_MAX
cdef size_t REPLY_MAX = limits.REPLY_BYTES_MAX
cdef size_t WORKER_REPLY_MAX = limits.WORKER_REPLY_BYTES_MAX
cdef size_t SEND_HIGH = limits.CALL_SEND_BYTES_HIGH
cdef size_t SEND_LOW = limits.CALL_SEND_BYTES_LOW
# A PutResponse with a header, as the core would answer it.
cdef bytes ECHO = bytes.fromhex("0a1a08" + "c3" * 8 + "01" + "10" + "c3" * 8 + "01" + "18052003") + b"\x00" * 2
cdef const uint8_t *ECHO_DATA = ECHO
cdef size_t ECHO_SIZE = len(ECHO)

CALL, MESSAGE, HALF_CLOSED, RESET, REPLY, HTTP1, CORRUPT, DRAINED = range(1, 9)

cdef Handler handler
handler.begin = <void *(*)(void *, Http2 *, int32_t) noexcept nogil>_on_begin
handler.header = <void (*)(void *, void *, nghttp2_rcbuf *, nghttp2_rcbuf *) noexcept nogil>_on_header
handler.headers_end = <void (*)(void *, void *) noexcept nogil>_on_headers_end
handler.data = <void (*)(void *, void *, const uint8_t *, size_t) noexcept nogil>_on_data
handler.half_close = <void (*)(void *, void *) noexcept nogil>_on_half_close
handler.close = <void (*)(void *, void *) noexcept nogil>_on_close
handler.read = <size_t (*)(void *, void *, uint8_t *, size_t, bint *) noexcept nogil>_on_read
handler.trailers = <size_t (*)(void *, void *, nghttp2_nv *) noexcept nogil>_on_trailers


cdef Call *_on_begin(Grpc grpc, Http2 *connection, int32_t stream_id) noexcept nogil:
    return grpc._begin(<Peer *>connection, stream_id)


cdef void _on_header(Grpc grpc, Call *call, nghttp2_rcbuf *name, nghttp2_rcbuf *value) noexcept nogil:
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


cdef Details *_details(Call *call) noexcept nogil:
    """What only unusual calls need, made when first asked for."""
    if call.details == NULL:
        call.details = <Details *>calloc(1, sizeof(Details))
    return call.details


cdef void _free_details(Call *call) noexcept nogil:
    cdef Details *details = call.details
    if details != NULL:
        buffer_free(&details.path)
        buffer_free(&details.method)
        buffer_free(&details.timeout)
        buffer_free(&details.encoding)
        buffer_free(&details.content_type)
        buffer_free(&details.headers)
        buffer_free(&details.text)
        buffer_free(&details.trailers)
        free(details)
        call.details = NULL


cdef void _empty(Buffer *buffer) noexcept nogil:
    """Keep a small buffer for the next call, give a large one back."""
    buffer.size = 0
    if buffer.capacity > BUFFER_KEPT_MAX:
        buffer_free(buffer)


cdef uint32_t _hash(const uint8_t *data, size_t size) noexcept nogil:
    cdef uint32_t result = 2166136261u
    cdef size_t i
    for i in range(size):
        result = (result ^ data[i]) * 16777619u
    return result % ROUTES


cdef class Grpc:
    """The calls of all connections of one worker."""

    def __cinit__(
            self, *, Ring requests=None, Ring replies=None, served=(),
            size_t request_bytes_max=limits.REQUEST_BYTES_MAX_DEFAULT,
            uint32_t txn_ops_max=limits.TXN_OPS_MAX_DEFAULT,
            uint32_t streams_max=limits.STREAMS_MAX,
            double keepalive_min=limits.KEEPALIVE_MIN_SECONDS_DEFAULT,
            double keepalive_interval=limits.KEEPALIVE_INTERVAL_SECONDS_DEFAULT,
            double keepalive_timeout=limits.KEEPALIVE_TIMEOUT_SECONDS_DEFAULT,
            double request_timeout=limits.REQUEST_SECONDS_DEFAULT,
            uint32_t calls_max=limits.CALLS_MAX, bint echo=False, **_):
        """The paths in `served` are Python's; the hot ones are the core's; times are in seconds; a subclass may have more."""
        self._kept = []
        self.requests = requests
        self.replies = replies
        self.echo = echo
        self.check_limits.request_bytes_max = request_bytes_max
        self.check_limits.txn_ops_max = txn_ops_max
        self.message_max = request_bytes_max + limits.GRPC_OVERHEAD_BYTES
        self.config.streams_max = min(streams_max, <uint32_t>limits.STREAMS_MAX)
        self.config.keepalive_min = <int64_t>(keepalive_min * 1e9)
        self.config.keepalive_interval = <int64_t>(keepalive_interval * 1e9)
        self.config.keepalive_timeout = <int64_t>(keepalive_timeout * 1e9)
        self.request_timeout = <int64_t>(request_timeout * 1e9)
        self.calls_max = calls_max
        self.wheel = <Wheel *>calloc(1, sizeof(Wheel))
        self.routes = <Route **>calloc(ROUTES, sizeof(Route *))
        self.lines = <StatusLine *>calloc(ERRORS_MAX, sizeof(StatusLine))
        if self.wheel == NULL or self.routes == NULL or self.lines == NULL:
            raise MemoryError("no memory for a worker's tables")
        for number, (code, text) in status.lines().items():
            self._add_line(number, code, text)
        for path in METHODS:
            if path in services.HOT:
                self._add_route(path, ROUTE_HOT, services.HOT[path].method, services.HOT[path].timed)
            elif path not in served:
                self._add_route(path, ROUTE_ABSENT, 0, False)
        for path in served:
            self._add_route(path, ROUTE_SERVED, 0, False)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.table_size):
            buffer_free(&self.table[i].message)
            buffer_free(&self.table[i].reply)
            _free_details(self.table[i])
        for i in range(0, self.table_size, CALLS_PER_CHUNK):
            free(self.table[i])
        free(self.table)
        free(self.wheel)
        free(self.lines)
        self._free_routes()
        for i in range(<uint32_t>(self.events.size // sizeof(Event))):
            buffer_free(&(<Event *>self.events.data)[i].data)
            buffer_free(&(<Event *>self.events.data)[i].headers)
        buffer_free(&self.events)

    cdef void _free_routes(self):
        cdef Route *route
        cdef Route *following
        cdef int i
        for i in range(ROUTES if self.routes != NULL else 0):
            route = self.routes[i]
            while route != NULL:
                following = route.next
                free(route)
                route = following
        free(self.routes)

    def _add_line(self, uint32_t number, uint32_t code, bytes text):
        """Prepare the trailers of an error id; the text is encoded."""
        assert number < ERRORS_MAX, number
        cdef const char *value = text
        cdef const char *code_value = number_text(code)
        self._kept.append(text)
        self.lines[number].code = code
        set_pair(&self.lines[number].trailers[0], b"grpc-status", 11, code_value, strlen(code_value))
        set_pair(&self.lines[number].trailers[1], b"grpc-message", 12, value, len(text))

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

    # --- one connection ---------------------------------------------------------------------------

    cdef bint open_peer(self, Peer *peer) noexcept nogil:
        """Begin a connection in zeroed memory; False without memory."""
        return http2_open(&peer.http2, &self.config, &handler, <void *>self, self.now)

    cdef void feed_peer(self, Peer *peer, const uint8_t *data, size_t size) noexcept nogil:
        """Take in what the client sent."""
        http2_feed(&peer.http2, data, size, self.now)
        self.mark_dirty(peer)

    cdef size_t drain_peer(self, Peer *peer, uint8_t *out, size_t room) noexcept nogil:
        """Write what is to be sent; answers how much was written."""
        return http2_drain(&peer.http2, out, room)

    cdef void close_peer(self, Peer *peer) noexcept nogil:
        """End all calls of a connection and free its session. The caller takes it off the dirty list before."""
        while peer.calls != NULL:
            self._gone(peer.calls)
        if peer.path != NULL:
            nghttp2_rcbuf_decref(peer.path)
            peer.path = NULL
        http2_close(&peer.http2)

    cdef void mark_dirty(self, Peer *peer) noexcept nogil:
        """Have the connection drained at the end of this round."""
        if not peer.is_dirty:
            peer.is_dirty = True
            peer.next_dirty = self.dirty
            self.dirty = peer

    cdef Peer *pop_dirty(self) noexcept nogil:
        """A connection to be drained, or NULL."""
        cdef Peer *peer = self.dirty
        if peer != NULL:
            self.dirty = peer.next_dirty
            peer.is_dirty = False
        return peer

    cdef void set_now(self, int64_t now) noexcept nogil:
        """Say what time it is, in ns of a monotonic clock."""
        self.now = now
        if self.wheel.count == 0:
            self.wheel.tick = now >> SLOT_SHIFT

    # --- a call's head ----------------------------------------------------------------------------

    cdef Call *_new_call(self) noexcept nogil:
        """A zeroed call with an id of its own, NULL when there are too many."""
        cdef Call *call
        cdef Call *chunk
        cdef Call **table
        cdef uint32_t i
        if self.calls_live >= self.calls_max:
            return NULL
        if self.free_calls == NULL:
            chunk = <Call *>calloc(CALLS_PER_CHUNK, sizeof(Call))
            table = <Call **>realloc(self.table, (self.table_size + CALLS_PER_CHUNK) * sizeof(Call *))
            if table != NULL:
                self.table = table
            if chunk == NULL or table == NULL:
                free(chunk)
                return NULL
            for i in range(CALLS_PER_CHUNK):
                table[self.table_size + i] = &chunk[i]
                chunk[i].id = self.table_size + i + (<uint64_t>1 << 32)
                chunk[i].next = self.free_calls
                self.free_calls = &chunk[i]
            self.table_size += CALLS_PER_CHUNK
        call = self.free_calls
        self.free_calls = call.next
        call.next = NULL
        call.timer.owner = call
        self.calls_live += 1
        return call

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
        """Look the path up; the one seen last on this connection is recognised by its place in HPACK's table."""
        cdef Peer *peer = call.peer
        cdef Route *route
        cdef nghttp2_vec path
        if value == peer.path:
            call.route = peer.route
            return
        path = nghttp2_rcbuf_get_buf(value)
        route = self.routes[_hash(path.base, path.len)]
        while route != NULL and (route.size != path.len or memcmp(route.path, path.base, path.len) != 0):
            route = route.next
        call.route = route
        if route == NULL:
            buffer_append(&_details(call).path, path.base, path.len)
            return
        nghttp2_rcbuf_incref(value)
        if peer.path != NULL:
            nghttp2_rcbuf_decref(peer.path)
        peer.path = value
        peer.route = route

    cdef void _take_header(
            self, Call *call, const uint8_t *name, size_t name_size, const uint8_t *value, size_t size) noexcept nogil:
        """One header that is not :path; pseudo headers come before all others."""
        if name[0] == 58:
            if name_size == 7 and memcmp(name, b":method", 7) == 0:
                if size == 4 and memcmp(value, b"POST", 4) == 0:
                    call.flags |= CALL_POST
                else:
                    buffer_append(&_details(call).method, value, size)
            return
        if name_size == 12 and memcmp(name, b"content-type", 12) == 0:
            self._take_content_type(call, value, size)
        elif name_size == 12 and memcmp(name, b"grpc-timeout", 12) == 0:
            self._take_timeout(call, value, size)
        elif name_size == 13 and memcmp(name, b"grpc-encoding", 13) == 0:
            call.encoding = encoding_of(value, size)
            if call.encoding == ENCODING_UNKNOWN:
                _details(call).encoding.size = 0
                buffer_append(&_details(call).encoding, value, size)
        elif name_size == 4 and memcmp(name, b"host", 4) == 0:
            call.host_count += 1
        if call.route != NULL and call.route.kind == ROUTE_SERVED:
            pack(&_details(call).headers, name, name_size, value, size)

    cdef void _take_content_type(self, Call *call, const uint8_t *value, size_t size) noexcept nogil:
        """Note the content type, to be echoed as grpc-go does: `;x` comes back as `+x`."""
        cdef Buffer *asked
        if size == 16 and is_grpc(value, size):
            call.flags |= CALL_GRPC
            return
        asked = &_details(call).content_type
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
            _details(call).timeout.size = 0
            buffer_append(&_details(call).timeout, value, size)
            call.flags |= CALL_BAD_TIMEOUT

    cdef void _accept(self, Call *call) noexcept nogil:
        """All headers are in: judge them in grpc-go's order."""
        if call.host_count > 1:
            self._refuse(call, 400, 13, REFUSE_HOSTS, NULL)
        elif not call.flags & CALL_GRPC:
            self._refuse(call, 415, 3, REFUSE_CONTENT_TYPE, &_details(call).content_type)
        elif call.flags & CALL_BAD_TIMEOUT:
            self._refuse(call, 400, 13, REFUSE_TIMEOUT, &_details(call).timeout)
        elif not call.flags & CALL_POST:
            self._refuse(call, 405, 13, REFUSE_METHOD, &_details(call).method)
        elif call.route == NULL:
            self._refuse(call, 200, 12, REFUSE_PATH, &_details(call).path)
        elif call.route.kind == ROUTE_ABSENT:
            self._end(call, ERROR_NOT_IMPLEMENTED)
        elif call.encoding == ENCODING_UNKNOWN:
            self._refuse(call, 200, 12, REFUSE_ENCODING, &_details(call).encoding)
        elif call.route.kind == ROUTE_HOT:
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

    # --- its messages -----------------------------------------------------------------------------

    cdef void _take_data(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        """Bytes of messages, in any pieces."""
        cdef const uint8_t *message
        cdef uint32_t message_size
        if call.flags & CALL_DEAF:
            # The window of a call that has its answer is not given back.
            return
        call.unconsumed += size
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

    cdef bint _set_partial(self, Call *call, size_t size) noexcept nogil:
        """Count the call's incoming bytes; False when that is more than the connection or the worker may hold."""
        cdef Peer *peer = call.peer
        if size > call.partial and (
                peer.partial_bytes + size - call.partial > PARTIAL_MAX
                or self.partial_bytes + size - call.partial > WORKER_PARTIAL_MAX):
            return False
        peer.partial_bytes += size - call.partial
        self.partial_bytes += size - call.partial
        call.partial = size
        return True

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

    cdef void _take_compressed(self, Call *call, const uint8_t *data, size_t size) noexcept with gil:
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
        if call.route.kind == ROUTE_HOT:
            error = 0 if self.echo else check(call.route.method, data, size, &self.check_limits)
            call.flags |= CALL_DEAF
            call.route.counts[COUNT_RECEIVED] += 1
            if error:
                self._end(call, error)
            else:
                self._ask(call, data, size)
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
        if self.owing == NULL and self._push(call, call.route.method, 0, data, size):
            call.message.size = 0
            self._set_partial(call, 0)
            return
        if data != call.message.data:
            call.message.size = 0
            buffer_append(&call.message, data, size)
        self._owe(call, OWES_REQUEST)

    cdef void _half_close(self, Call *call) noexcept nogil:
        """The client has sent its last."""
        call.flags |= CALL_HALF_CLOSED
        if call.flags & CALL_ENDED or call.route == NULL:
            return
        if call.flags & CALL_ANNOUNCED and (call.flags & CALL_DEAF or call.prefix_size < PREFIX_SIZE):
            self._tell(EVENT_HALF_CLOSED, call.id)
        elif not call.flags & CALL_DEAF:
            if call.flags & CALL_ANNOUNCED:
                self._tell(EVENT_RESET, call.id)
            # Go's reader has met the end of the stream between messages, or within one.
            self._end_with(call, 2, b"EOF" if call.prefix_size < PREFIX_SIZE else b"unexpected EOF")

    # --- its reply --------------------------------------------------------------------------------

    cdef uint32_t take_replies(self, uint32_t at_most) noexcept nogil:
        """Give the core's replies to their calls; answers how many there were."""
        cdef const uint8_t *data
        cdef size_t size
        cdef Reply reply
        cdef uint32_t count = 0
        cdef int got = 0
        while count < at_most:
            got = self.replies.pop(&data, &size)
            if got <= 0:
                break
            count += 1
            if size < sizeof(Reply):
                self.replies_wrong += 1
                continue
            memcpy(&reply, data, sizeof(Reply))
            self._take_reply(&reply, data + sizeof(Reply), size - sizeof(Reply))
        if got < 0 and not self.is_corrupt:
            self.is_corrupt = True
            self._tell(EVENT_CORRUPT, 0)
        if count:
            self.replies.release()
        return count

    cdef void _take_reply(self, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
        cdef Call *call = self._call_of(reply.request_id)
        if call == NULL or not call.flags & CALL_ASKED:
            # The call is over: canceled, timed out, or its client is gone.
            if <uint32_t>reply.request_id >= self.table_size:
                self.replies_wrong += 1
            else:
                self.replies_late += 1
            return
        if call.flags & CALL_ASK:
            self._take_answer(call, reply, data, size)
            return
        if reply.flags & REPLY_END:
            call.flags &= ~<uint32_t>CALL_ASKED
        if (size or reply.flags & (REPLY_FIRST | REPLY_LAST)) and not self._take_slice(call, reply, data, size):
            return
        if reply.flags & REPLY_END:
            if reply.error >= ERRORS_MAX or self.lines[reply.error].trailers[0].name == NULL or call.reply_left:
                self.replies_wrong += 1
                self._cut(call)
                return
            self._end(call, reply.error)

    cdef bint _take_slice(self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
        """Queue a slice of a reply; False when the call is over because of it."""
        cdef uint8_t[8] prefix
        if reply.flags & REPLY_FIRST:
            if call.reply_left or reply.extra > 0x7fffffff or size > reply.extra:
                self.replies_wrong += 1
                self._cut(call)
                return False
            call.reply_left = reply.extra
        if size > call.reply_left or ((reply.flags & REPLY_LAST) != 0) != (size == call.reply_left):
            self.replies_wrong += 1
            self._cut(call)
            return False
        if self._is_over_bytes(call, size):
            self.calls_cut += 1
            self._cut(call)
            return False
        if reply.flags & REPLY_FIRST:
            prefix[0] = 0
            store_be32(&prefix[1], <uint32_t>reply.extra)
            self._queue(call, prefix, PREFIX_SIZE)
            call.taken -= PREFIX_SIZE
        call.reply_left -= size
        if call.reply_left == 0:
            call.route.counts[COUNT_SENT] += 1
        self._queue(call, data, size)
        self._resume(call)
        if call.flags & CALL_TIMEOUT_IS_OURS and not reply.flags & REPLY_END:
            # From now on the client's reading decides how long it takes.
            call.flags &= ~<uint32_t>CALL_TIMEOUT_IS_OURS
            wheel_clear(self.wheel, &call.timer)
            if call.deadline:
                wheel_set(self.wheel, &call.timer, call.deadline)
        return True

    cdef void _take_answer(self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
        """A slice of the answer to Python's own question; Python takes it at once, so more may come."""
        cdef Event *event = self._tell(EVENT_REPLY, call.id)
        if event != NULL:
            event.flags = reply.flags
            event.error = reply.error
            buffer_append(&event.data, data, size)
        if reply.flags & REPLY_END:
            call.flags &= ~<uint32_t>CALL_ASKED
            self._release(call)
            return
        call.taken += size
        if call.taken >= REPLY_WINDOW // 2:
            self._owe(call, OWES_PULL)

    cdef void _queue(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        """Add bytes to what is to be sent."""
        if call.reply_at and call.reply_at * 2 >= call.reply.size:
            call.reply.size -= call.reply_at
            memmove(call.reply.data, call.reply.data + call.reply_at, call.reply.size)
            call.reply_at = 0
        buffer_append(&call.reply, data, size)
        call.peer.reply_bytes += size
        self.reply_bytes += size

    cdef void _queue_message(self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        cdef uint8_t[8] prefix
        prefix[0] = 0
        store_be32(&prefix[1], <uint32_t>size)
        self._queue(call, prefix, PREFIX_SIZE)
        self._queue(call, data, size)
        self._resume(call)

    cdef void _resume(self, Call *call) noexcept nogil:
        """Have nghttp2 look at what is queued: begin the reply, or wake it up."""
        if not call.flags & CALL_BEGUN:
            self._begin_reply(call)
        elif call.flags & CALL_DEFERRED:
            call.flags &= ~<uint32_t>CALL_DEFERRED
            http2_resume(&call.peer.http2, call.stream_id)
        self.mark_dirty(call.peer)

    cdef void _begin_reply(self, Call *call) noexcept nogil:
        cdef nghttp2_nv pairs[2]
        call.flags |= CALL_BEGUN
        _head_pairs(call, pairs)
        http2_reply(&call.peer.http2, call.stream_id, call, pairs, 2)

    cdef size_t _read(self, Call *call, uint8_t *out, size_t room, bint *end) noexcept nogil:
        """Hand over what waits; the client's window has room for it."""
        cdef size_t size = min(room, call.reply.size - call.reply_at)
        memcpy(out, call.reply.data + call.reply_at, size)
        call.reply_at += size
        call.peer.reply_bytes -= size
        self.reply_bytes -= size
        if call.flags & CALL_ASKED:
            call.taken += size
            if call.taken >= REPLY_WINDOW // 2:
                self._owe(call, OWES_PULL)
        if call.flags & CALL_PATIENCE and call.reply.size - call.reply_at <= SEND_LOW:
            call.flags &= ~<uint32_t>CALL_PATIENCE
            self._tell(EVENT_DRAINED, call.id)
        if call.reply_at < call.reply.size:
            return size
        call.reply.size = call.reply_at = 0
        if call.flags & CALL_ENDED:
            end[0] = True
        elif size == 0:
            call.flags |= CALL_DEFERRED
        return size

    cdef bint _is_over_bytes(self, Call *call, size_t more) noexcept nogil:
        """Whether a reply would pile up too high: for the connection, or for the worker if it holds its share."""
        cdef size_t held = call.peer.reply_bytes + more
        return held > REPLY_MAX or (self.reply_bytes + more > WORKER_REPLY_MAX and held > REPLY_MAX // 32)

    # --- its end ----------------------------------------------------------------------------------

    cdef void _refuse(
            self, Call *call, uint32_t http_status, uint32_t code, Refusal why, Buffer *value) noexcept with gil:
        """End a call that is not right, with a text that Python puts together."""
        cdef bytes argument = value.data[:value.size] if value != NULL and value.size else b""
        cdef bytes text = status.encode(self._words(why, argument, call.message_size, call.prefix[0]))
        self.calls_refused += 1
        call.http_status = http_status
        if why == REFUSE_CONTENT_TYPE:
            call.flags |= CALL_PLAIN_TYPE
        self._end_with(call, code, text)

    def _words(self, int why, bytes value, uint32_t size, uint32_t payload_format):
        """grpc-go's words for a refusal."""
        if why == REFUSE_CONTENT_TYPE:
            return f"invalid gRPC request content-type {status.quote(value)}"
        if why == REFUSE_TIMEOUT:
            return status.timeout_text(value)
        if why == REFUSE_METHOD:
            return f"Received a HEADERS frame with :method {status.quote(value)} which should be POST"
        if why == REFUSE_HOSTS:
            return "num values of :authority: 1, num values of host: 2, both must only have 1 value as per HTTP/2 spec"
        if why == REFUSE_PATH:
            return status.path_text(value)
        if why == REFUSE_ENCODING:
            return f"grpc: Decompressor is not installed for grpc-encoding {status.quote(value)}"
        if why == REFUSE_SIZE:
            return f"grpc: received message larger than max ({size} vs. {self.message_max})"
        if why == REFUSE_INFLATED:
            return f"grpc: received message after decompression larger than max {self.message_max}"
        assert why == REFUSE_FORMAT, why
        return f"grpc: received unexpected payload format {payload_format}"

    cdef void _end_with(self, Call *call, uint32_t code, const char *text) noexcept nogil:
        """End the call with a code and an encoded text of its own."""
        cdef Details *details = _details(call)
        details.text.size = 0
        buffer_append(&details.text, <const uint8_t *>text, strlen(text))
        call.code = code
        self._end(call, 0)

    cdef void _end(self, Call *call, uint32_t error) noexcept nogil:
        """End the call with an ErrorId, or 0; what is queued is sent before."""
        if call.flags & CALL_ENDED:
            return
        call.flags |= CALL_ENDED | CALL_DEAF
        call.error = error
        if call.flags & CALL_COUNTED:
            call.route.counts[COUNT_HANDLED + (call.code or self.lines[error].code)] += 1
        wheel_clear(self.wheel, &call.timer)
        self._set_partial(call, 0)
        self._send_end(call)

    cdef void _cut(self, Call *call) noexcept nogil:
        """End a call that takes too much, or whose reply is broken: with a status if nothing was sent yet."""
        self._cancel(call)
        self._drop_reply(call)
        if not call.flags & CALL_ENDED and call.flags & CALL_ANNOUNCED:
            self._tell(EVENT_RESET, call.id)
        if not call.flags & (CALL_BEGUN | CALL_ENDED):
            self._end(call, ERROR_LIST_ABANDONED)
            return
        call.flags |= CALL_ENDED | CALL_DEAF
        wheel_clear(self.wheel, &call.timer)
        http2_reset(&call.peer.http2, call.stream_id, NGHTTP2_ENHANCE_YOUR_CALM)
        self.mark_dirty(call.peer)

    cdef void _send_end(self, Call *call) noexcept nogil:
        """Trailers after what was sent, or headers alone when nothing was."""
        cdef nghttp2_nv pairs[TRAILERS_MAX + 4]
        if call.flags & CALL_BEGUN:
            self._resume(call)
            return
        _head_pairs(call, pairs)
        http2_reply_headers(
            &call.peer.http2, call.stream_id, pairs, 2 + self._status_pairs(call, pairs + 2))
        self.mark_dirty(call.peer)

    cdef size_t _status_pairs(self, Call *call, nghttp2_nv *pairs) noexcept nogil:
        """The trailers of a call that has ended; answers how many."""
        cdef Details *details = call.details
        cdef const char *code
        if details == NULL or (call.code == 0 and details.text.size == 0 and details.trailers.size == 0):
            pairs[0] = self.lines[call.error].trailers[0]
            pairs[1] = self.lines[call.error].trailers[1]
            return 2
        if call.code == 0 and details.text.size == 0:
            pairs[0] = self.lines[call.error].trailers[0]
            pairs[1] = self.lines[call.error].trailers[1]
        else:
            code = number_text(call.code)
            set_pair(&pairs[0], b"grpc-status", 11, code, strlen(code))
            set_pair(&pairs[1], b"grpc-message", 12, details.text.data, details.text.size)
        return 2 + unpack_pairs(&details.trailers, pairs + 2, TRAILERS_MAX)

    cdef void expire_call(self, Call *call) noexcept nogil:
        """The call's deadline has passed."""
        cdef uint32_t error = ERROR_TIMEOUT if call.flags & CALL_TIMEOUT_IS_OURS else ERROR_DEADLINE_EXCEEDED
        if call.flags & CALL_ENDED:
            return
        self.calls_expired += 1
        if call.flags & CALL_BEGUN and (call.reply_left or call.reply_at < call.reply.size):
            # Half a message is under way: trailers would lie about it.
            self._cut(call)
            return
        self._cancel(call)
        self._end(call, error)

    cdef void _drop_reply(self, Call *call) noexcept nogil:
        """Forget what was not sent."""
        cdef size_t left = call.reply.size - call.reply_at
        call.peer.reply_bytes -= left
        self.reply_bytes -= left
        call.reply.size = call.reply_at = 0

    cdef void _gone(self, Call *call) noexcept nogil:
        """The stream is closed, or the connection is."""
        cdef Peer *peer = call.peer
        if call.flags & CALL_ANNOUNCED and not call.flags & CALL_ENDED:
            self._tell(EVENT_RESET, call.id)
        if call.flags & CALL_ASKED:
            self.calls_canceled += 1
            self._cancel(call)
        if call.flags & CALL_COUNTED and not call.flags & CALL_ENDED:
            call.route.counts[COUNT_HANDLED + 1] += 1
        self._drop_reply(call)
        self._set_partial(call, 0)
        wheel_clear(self.wheel, &call.timer)
        if call.previous != NULL:
            call.previous.next = call.next
        else:
            peer.calls = call.next
        if call.next != NULL:
            call.next.previous = call.previous
        call.peer = NULL
        self._release(call)

    cdef void _release(self, Call *call) noexcept nogil:
        """Back to the free list with a new generation; a call that owes a CANCEL waits until it is paid."""
        cdef Buffer message = call.message
        cdef Buffer reply = call.reply
        cdef uint64_t following = call.id + (<uint64_t>1 << 32)
        if call.owes & OWES_CANCEL:
            return
        self._forgive(call)
        _free_details(call)
        _empty(&message)
        _empty(&reply)
        memset(call, 0, sizeof(Call))
        call.message = message
        call.reply = reply
        call.id = following
        call.next = self.free_calls
        self.free_calls = call
        self.calls_live -= 1

    # --- what goes to the core --------------------------------------------------------------------

    cdef bint _push(self, Call *call, uint32_t method, uint64_t extra, const uint8_t *data, size_t size) noexcept nogil:
        """One request record; False when the ring is full."""
        cdef uint8_t *at = self.requests.reserve(sizeof(Request) + size)
        cdef Request *request = <Request *>at
        if at == NULL:
            self.is_full = True
            return False
        request.request_id = call.id
        request.extra = extra
        request.method = method
        request.reserved = 0
        memcpy(at + sizeof(Request), data, size)
        self.requests.commit(sizeof(Request) + size)
        self.has_requests = True
        return True

    cdef void _owe(self, Call *call, uint32_t what) noexcept nogil:
        """Note what the ring is to get; paid at once if it can be."""
        cdef bint is_new = call.owes == 0
        call.owes |= what
        if not is_new or (self.owing == NULL and self._pay(call)):
            return
        call.previous_owing = self.owing_last
        call.next_owing = NULL
        if self.owing_last != NULL:
            self.owing_last.next_owing = call
        else:
            self.owing = call
        self.owing_last = call
        call.flags |= CALL_LISTED
        self.is_full = True

    cdef void _forgive(self, Call *call) noexcept nogil:
        """Nothing is owed any more."""
        call.owes = 0
        if not call.flags & CALL_LISTED:
            return
        call.flags &= ~<uint32_t>CALL_LISTED
        if call.previous_owing != NULL:
            call.previous_owing.next_owing = call.next_owing
        else:
            self.owing = call.next_owing
        if call.next_owing != NULL:
            call.next_owing.previous_owing = call.previous_owing
        else:
            self.owing_last = call.previous_owing

    cdef bint _pay(self, Call *call) noexcept nogil:
        """Push what the call owes; False when the ring is full again."""
        if call.owes & OWES_REQUEST:
            if not self._push(
                    call, METHOD_ADMIN if call.flags & CALL_ASK else call.route.method, call.admin_call,
                    call.message.data, call.message.size):
                return False
            call.owes &= ~<uint32_t>OWES_REQUEST
            call.message.size = 0
            if call.peer != NULL:
                self._set_partial(call, 0)
        if call.owes & OWES_PULL:
            if not self._push(call, METHOD_PULL, <uint64_t>call.taken, NULL, 0):
                return False
            call.taken = 0
            call.owes &= ~<uint32_t>OWES_PULL
        if call.owes & OWES_CANCEL:
            if not self._push(call, METHOD_CANCEL, 0, NULL, 0):
                return False
            call.owes &= ~<uint32_t>OWES_CANCEL
        return True

    cdef bint pay_owed(self) noexcept nogil:
        """Push what is owed, the oldest first; True when nothing is owed any more."""
        cdef Call *call
        self.is_full = False
        while self.owing != NULL:
            call = self.owing
            if not self._pay(call):
                return False
            self._forgive(call)
            if call.peer == NULL and not call.flags & CALL_ASKED:
                self._release(call)
        return True

    cdef void _cancel(self, Call *call) noexcept nogil:
        """The core's answer is not wanted any more."""
        if not call.flags & CALL_ASKED:
            return
        call.flags &= ~<uint32_t>CALL_ASKED
        if call.owes & OWES_REQUEST:
            self._forgive(call)
            call.message.size = 0
            return
        call.owes &= ~<uint32_t>OWES_PULL
        self._owe(call, OWES_CANCEL)

    cdef bint publish(self) noexcept nogil:
        """Let the core see what was pushed; True when there was something, and the doorbell is to be rung."""
        if not self.has_requests:
            return False
        self.requests.publish()
        self.has_requests = False
        return True

    # --- what goes to Python ----------------------------------------------------------------------

    cdef Event *_tell(self, EventKind kind, uint64_t call_id) noexcept nogil:
        """Queue an event for Python; NULL without memory."""
        cdef Event *event
        buffer_reserve(&self.events, sizeof(Event))
        if self.events.capacity - self.events.size < sizeof(Event):
            return NULL
        event = <Event *>(self.events.data + self.events.size)
        self.events.size += sizeof(Event)
        memset(event, 0, sizeof(Event))
        event.kind = kind
        event.id = call_id
        return event

    cdef void _announce(self, Call *call) noexcept nogil:
        """Tell Python of a call, once."""
        cdef Event *event = self._tell(EVENT_CALL, call.id)
        call.flags |= CALL_ANNOUNCED
        if event != NULL:
            event.path = call.route.path
            event.headers = _details(call).headers
            memset(&call.details.headers, 0, sizeof(Buffer))

    cdef Call *_call_of(self, uint64_t call_id) noexcept nogil:
        """The living call of this id, or NULL."""
        cdef uint32_t slot = <uint32_t>call_id
        if slot >= self.table_size or self.table[slot].id != call_id:
            return NULL
        return self.table[slot]

    cpdef list take_events(self):
        """What happened since the last time, as tuples that begin with their kind."""
        cdef size_t count = self.events.size // sizeof(Event)
        cdef Event *events = <Event *>self.events.data
        cdef size_t i
        cdef list result = []
        for i in range(count):
            result.append(_event_tuple(&events[i]))
            buffer_free(&events[i].data)
            buffer_free(&events[i].headers)
        self.events.size = 0
        return result

    def send_message(self, uint64_t call_id, bytes message):
        """Send one message on a call; answers the bytes that wait for the client, -1 when the call is over.

        Above limits.CALL_SEND_BYTES_HIGH a patient sender waits for the call's DRAINED event.
        """
        cdef Call *call = self._call_of(call_id)
        cdef const uint8_t *data = message
        if call == NULL or call.peer == NULL or call.flags & CALL_ENDED or not call.flags & CALL_ANNOUNCED:
            return -1
        if self._is_over_bytes(call, len(message)):
            self.calls_cut += 1
            self._cut(call)
            return -1
        self._queue_message(call, data, len(message))
        waiting = call.reply.size - call.reply_at
        if waiting > SEND_HIGH:
            call.flags |= CALL_PATIENCE
        return waiting

    def finish(self, uint64_t call_id, uint32_t code, str message="", trailers=()):
        """End a call that Python answers; nothing happens when it is over already."""
        cdef Call *call = self._call_of(call_id)
        cdef bytes text = status.encode(message)
        cdef bytes name, value
        if call == NULL or call.peer == NULL or call.flags & CALL_ENDED or not call.flags & CALL_ANNOUNCED:
            return
        assert len(trailers) <= TRAILERS_MAX, len(trailers)
        for key, content in trailers:
            name = key.encode()
            value = content.encode("utf-8", "surrogateescape")
            pack(&_details(call).trailers, name, len(name), value, len(value))
        self._end_with(call, code, text)

    def ask(self, uint64_t admin_call, bytes payload=b""):
        """Ask the core something of Python's own; the answer comes as REPLY events with the id given here."""
        cdef Call *call = self._new_call()
        cdef const uint8_t *data = payload
        if call == NULL:
            raise MemoryError(f"{self.calls_live} calls are alive: no room for a question")
        call.flags = CALL_ASK | CALL_ASKED | CALL_DEAF
        call.admin_call = admin_call
        buffer_append(&call.message, data, len(payload))
        self._owe(call, OWES_REQUEST)
        return call.id

    def cancel_ask(self, uint64_t ask_id):
        """Take a question back; its answer, if one comes, is dropped."""
        cdef Call *call = self._call_of(ask_id)
        if call == NULL or not call.flags & CALL_ASK:
            return
        self._cancel(call)
        self._release(call)

    def method_counts(self):
        """Per hot path: calls started, messages in and out, and calls ended by code."""
        cdef Route *route
        cdef int slot
        result = {}
        for slot in range(ROUTES):
            route = self.routes[slot]
            while route != NULL:
                if route.kind == ROUTE_HOT:
                    result[route.path.decode()] = list(route.counts)
                route = route.next
        return result

    def gauges(self):
        """What is alive now, and what was counted since the start, by name."""
        return {
            "calls_live": self.calls_live,
            "calls_begun": self.calls_begun,
            "calls_refused": self.calls_refused,
            "calls_expired": self.calls_expired,
            "calls_canceled": self.calls_canceled,
            "calls_cut": self.calls_cut,
            "replies_late": self.replies_late,
            "replies_wrong": self.replies_wrong,
            "partial_bytes": self.partial_bytes,
            "reply_bytes": self.reply_bytes,
        }

    def next_deadline(self):
        """When to come back at the latest, in ns of the clock of `set_time`; -1 for never."""
        return wheel_next(self.wheel)

    def set_time(self, int64_t now):
        """Say what time it is, and end the calls whose time is over; for connections without a pump."""
        cdef Timer *timer
        self.set_now(now)
        timer = wheel_pop(self.wheel, now)
        while timer != NULL:
            self.expire_call(<Call *>timer.owner)
            timer = wheel_pop(self.wheel, now)

    def deliver(self):
        """Publish requests and take replies once; for connections without a pump."""
        self.publish()
        if self.replies is not None:
            self.take_replies(0xffffffff)
        self.pay_owed()
        self.publish()


cdef tuple _event_tuple(const Event *event):
    data = event.data.data[:event.data.size] if event.data.size else b""
    if event.kind == EVENT_CALL:
        return event.kind, event.id, event.path.decode(), unpack(&event.headers)
    if event.kind == EVENT_MESSAGE or event.kind == EVENT_HTTP1:
        return event.kind, event.id, data
    if event.kind == EVENT_REPLY:
        return event.kind, event.id, event.flags, event.error, data
    if event.kind == EVENT_CORRUPT:
        return (event.kind,)
    return event.kind, event.id


cdef void _head_pairs(Call *call, nghttp2_nv *pairs) noexcept nogil:
    """The two headers that every reply begins with."""
    cdef const char *code = b"200"
    if call.http_status == 400:
        code = b"400"
    elif call.http_status == 405:
        code = b"405"
    elif call.http_status == 415:
        code = b"415"
    set_pair(&pairs[0], b":status", 7, code, 3)
    if call.details == NULL or call.details.content_type.size == 0 or call.flags & CALL_PLAIN_TYPE:
        set_pair(&pairs[1], b"content-type", 12, b"application/grpc", 16)
    else:
        set_pair(
            &pairs[1], b"content-type", 12, call.details.content_type.data, call.details.content_type.size)


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
        http2_shut_down(&self._peer.http2)

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
