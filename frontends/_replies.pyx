"""Replies and ends of calls: slices from the core, DATA for HTTP/2, statuses, trailers.

Rules:
1. A call ends once, after the answers to all that it asked: `_end`, `_end_with`, `_refuse` and
   `_cut` say how, `_send_end` sends it, and `_gone` follows when the stream is closed.
2. A reply waits here until the client's window has room; what waits is counted in bytes, for the
   connection and for the worker, and the call that goes beyond a limit is cut.
3. The core is trusted no further than its slices add up; a call whose reply does not is cut.
4. The GIL is taken only to put a refusal into words.
"""

import cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, strlen

from quorate.core import limits
from quorate.core._bytes cimport buffer_append, buffer_free, store_be32
from quorate.core._errors cimport ERROR_DEADLINE_EXCEEDED, ERROR_LIST_ABANDONED, ERROR_TIMEOUT
from quorate.core._record cimport REPLY_END, REPLY_FIRST, REPLY_LAST, REPLY_WINDOW
from quorate.frontends import status
from quorate.frontends._deadlines cimport wheel_clear, wheel_set
from quorate.frontends._http2 cimport http2_reply, http2_reply_headers, http2_reset, http2_resume
from quorate.frontends._metadata cimport (
    TRAILERS_MAX, number_text, pack, set_pair, unpack_pairs,
)
from quorate.frontends._nghttp2 cimport NGHTTP2_ENHANCE_YOUR_CALM

cdef enum:
    ERRORS_MAX = 256
    PREFIX_SIZE = 5
    # What a call keeps of its memory when all was sent.
    REPLY_KEPT_MAX = 4096

# grpc-go's words for a message of a stream; of a unary call it says it otherwise.
cdef const char *UNREADABLE = (
    b"grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data")
cdef size_t REPLY_MAX = limits.REPLY_BYTES_MAX
cdef size_t WORKER_REPLY_MAX = limits.WORKER_REPLY_BYTES_MAX
cdef size_t SEND_HIGH = limits.CALL_SEND_BYTES_HIGH
# A stream that was held back goes on when so many of its requests are left with the core.
cdef uint32_t STREAM_LOW = limits.STREAM_REQUESTS_MAX // 2
cdef size_t SEND_LOW = limits.CALL_SEND_BYTES_LOW
cdef size_t WATCH_LOW = limits.WATCH_SEND_BYTES_LOW


@cython.no_gc_clear
cdef class Replies(Calls):
    """What the calls of one worker are answered."""

    def __cinit__(
            self, *, Ring replies=None,
            size_t request_bytes_max=limits.REQUEST_BYTES_MAX_DEFAULT, **_):
        """`replies` is the ring from the core."""
        self._kept = []
        self.replies = replies
        self.message_max = request_bytes_max + limits.GRPC_OVERHEAD_BYTES
        self.lines = <StatusLine *>calloc(ERRORS_MAX, sizeof(StatusLine))
        if self.lines == NULL:
            raise MemoryError("no memory for the status lines")
        for number, (code, text) in status.lines().items():
            self._add_line(number, code, text)

    def __dealloc__(self):
        free(self.lines)

    def _add_line(self, uint32_t number, uint32_t code, bytes text):
        """Prepare the trailers of an error id; the text is encoded."""
        assert number < ERRORS_MAX, number
        cdef const char *value = text
        cdef const char *code_value = number_text(code)
        self._kept.append(text)
        self.lines[number].code = code
        cdef StatusLine *line = &self.lines[number]
        set_pair(&line.trailers[0], b"grpc-status", 11, code_value, strlen(code_value))
        set_pair(&line.trailers[1], b"grpc-message", 12, value, len(text))

    # --- from the core ---------------------------------------------------------------------------

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

    cdef void _take_reply(
            self, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
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
        if call.flags & CALL_FOLLOWS:
            self._take_follow(call, reply, data, size)
            return
        if call.watch != NULL:
            self._take_catch_up(call, reply, data, size)
            return
        if reply.flags & REPLY_END:
            call.flags &= ~<uint32_t>CALL_ASKED
        if size or reply.flags & (REPLY_FIRST | REPLY_LAST):
            if not self._take_slice(call, reply, data, size):
                return
        if call.pending and reply.flags & REPLY_LAST:
            self._answered(call)
        if reply.flags & REPLY_END:
            if not self._is_error(reply.error) or call.reply_left:
                self.replies_wrong += 1
                self._cut(call)
                return
            self._end(call, reply.error)

    cdef void _answered(self, Call *call) noexcept nogil:
        """The core answered one request of a stream: there is room for more, or that was all."""
        call.pending -= 1
        if call.pending == 0:
            call.flags &= ~<uint32_t>CALL_ASKED
        if call.message.size and not call.owes & OWES_STREAM and call.pending <= STREAM_LOW:
            self._go_on(call)
        if call.pending == 0 and call.flags & CALL_LAST:
            self._end(call, call.error)

    cdef bint _is_error(self, uint32_t error) noexcept nogil:
        """Whether this is an ErrorId, or 0."""
        return error < ERRORS_MAX and self.lines[error].trailers[0].name != NULL

    cdef bint _take_slice(
            self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
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

    cdef void _take_answer(
            self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
        """A slice of the answer to Python's question; taken at once, so that more may come."""
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

    # --- to the client ---------------------------------------------------------------------------

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
        if size:
            memcpy(out, call.reply.data + call.reply_at, size)
        call.reply_at += size
        call.peer.reply_bytes -= size
        self.reply_bytes -= size
        if call.flags & CALL_ASKED and (call.watch != NULL or not call.route.client_streams):
            call.taken += size
            if call.taken >= REPLY_WINDOW // 2:
                self._owe(call, OWES_PULL)
        if call.flags & CALL_PATIENCE and call.reply.size - call.reply_at <= SEND_LOW:
            call.flags &= ~<uint32_t>CALL_PATIENCE
            self._tell(EVENT_DRAINED, call.id)
        if call.watch != NULL and call.reply.size - call.reply_at <= WATCH_LOW:
            self._drained(call)
        if call.reply_at < call.reply.size:
            return size
        call.reply.size = call.reply_at = 0
        if call.reply.capacity > REPLY_KEPT_MAX:
            buffer_free(&call.reply)
        if call.flags & CALL_ENDED:
            end[0] = True
        elif size == 0:
            call.flags |= CALL_DEFERRED
        return size

    cdef bint _is_over_bytes(self, Call *call, size_t more) noexcept nogil:
        """Whether too much would wait: for the connection, or the worker if it holds its share."""
        cdef size_t held = call.peer.reply_bytes + more
        if held > REPLY_MAX:
            return True
        return self.reply_bytes + more > WORKER_REPLY_MAX and held > REPLY_MAX // 32

    cdef void _take_catch_up(
            self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
        """A piece of what the core has read for a watcher."""

    cdef void _take_follow(
            self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
        """A piece of what the event ring does not have."""

    cdef void _drained(self, Call *call) noexcept nogil:
        """Nearly all that waited for the client of a Watch is gone."""

    cdef void _forget_watches(self, Call *call) noexcept nogil:
        """A Watch is over."""

    # --- the end ---------------------------------------------------------------------------------

    cdef void _refuse(
            self, Call *call, uint32_t http_status, uint32_t code, Refusal why,
            Buffer *value) noexcept with gil:
        """End a call that is not right, with a text that Python puts together."""
        cdef bytes argument = value.data[:value.size] if value != NULL and value.size else b""
        words = self._words(why, argument, call.message_size, call.prefix[0])
        cdef bytes text = status.encode(words)
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
            method = status.quote(value)
            return f"Received a HEADERS frame with :method {method} which should be POST"
        if why == REFUSE_HOSTS:
            return (
                "num values of :authority: 1, num values of host: 2, "
                "both must only have 1 value as per HTTP/2 spec"
            )
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
        cdef Details *details = details_of(call)
        details.text.size = 0
        buffer_append(&details.text, <const uint8_t *>text, strlen(text))
        call.code = code
        self._end(call, 0)

    cdef void _end_unreadable(self, Call *call) noexcept nogil:
        """A message of a client that streams is none."""
        self._end_with(call, 13, UNREADABLE)

    cdef void _end(self, Call *call, uint32_t error) noexcept nogil:
        """End the call with an ErrorId, or 0; what is queued is sent before."""
        if call.flags & CALL_ENDED:
            return
        if call.pending and call.flags & CALL_ASKED:
            # What was asked before is answered before.
            if not call.flags & CALL_LAST:
                call.flags |= CALL_LAST | CALL_DEAF
                call.error = error
            return
        call.flags |= CALL_ENDED | CALL_DEAF
        call.error = error
        if call.watch != NULL:
            self._forget_watches(call)
        if call.flags & CALL_COUNTED:
            call.route.counts[COUNT_HANDLED + (call.code or self.lines[error].code)] += 1
        wheel_clear(self.wheel, &call.timer)
        self._set_partial(call, 0)
        self._send_end(call)

    cdef void _cut(self, Call *call) noexcept nogil:
        """End a call that takes too much or has a broken reply: by status if nothing was sent."""
        self._cancel(call)
        self._drop_reply(call)
        if call.watch != NULL:
            self._forget_watches(call)
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
        if details == NULL or (call.code == 0 and details.text.size == 0):
            pairs[0] = self.lines[call.error].trailers[0]
            pairs[1] = self.lines[call.error].trailers[1]
        else:
            code = number_text(call.code)
            set_pair(&pairs[0], b"grpc-status", 11, code, strlen(code))
            set_pair(&pairs[1], b"grpc-message", 12, details.text.data, details.text.size)
        if details == NULL:
            return 2
        return 2 + unpack_pairs(&details.trailers, pairs + 2, TRAILERS_MAX)

    cdef void expire_call(self, Call *call) noexcept nogil:
        """The call's deadline has passed."""
        cdef uint32_t error = ERROR_DEADLINE_EXCEEDED
        if call.flags & CALL_TIMEOUT_IS_OURS:
            error = ERROR_TIMEOUT
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
        if call.watch != NULL:
            self._forget_watches(call)
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

    # --- what Python sends -----------------------------------------------------------------------

    def send_message(self, uint64_t call_id, bytes message):
        """Send one message on a call; answers how many bytes wait for the client.

        -1 means that the call is over. Above limits.CALL_SEND_BYTES_HIGH a patient sender waits for
        the call's DRAINED event.
        """
        cdef Call *call = self._call_of(call_id)
        cdef const uint8_t *data = message
        if not _is_pythons(call):
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
        if not _is_pythons(call):
            return
        assert len(trailers) <= TRAILERS_MAX, len(trailers)
        for key, content in trailers:
            name = key.encode()
            value = content.encode("utf-8", "surrogateescape")
            pack(&details_of(call).trailers, name, len(name), value, len(value))
        self._end_with(call, code, text)


cdef bint _is_pythons(const Call *call) noexcept nogil:
    """Whether Python knows the call and has not ended it."""
    if call == NULL or call.peer == NULL:
        return False
    return call.flags & CALL_ANNOUNCED and not call.flags & CALL_ENDED


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
            &pairs[1], b"content-type", 12, call.details.content_type.data,
            call.details.content_type.size)
