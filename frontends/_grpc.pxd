# cython: language_level=3
"""gRPC calls on HTTP/2 streams: paths, message framing, deadlines, statuses, and the rings to the core."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._record cimport Reply
from quorate.core._ring cimport Ring
from quorate.frontends._deadlines cimport Timer, Wheel
from quorate.frontends._http2 cimport Http2, Http2Config
from quorate.frontends._kv cimport CheckLimits
from quorate.frontends._nghttp2 cimport nghttp2_nv, nghttp2_rcbuf

cdef enum TimerKind:
    TIMER_CALL = 0
    TIMER_CLIENT = 1        # the transport's own

cdef enum RouteKind:
    ROUTE_HOT = 1           # the core answers
    ROUTE_SERVED = 2        # Python answers
    ROUTE_ABSENT = 3        # etcd has it, we do not yet

cdef enum CallFlag:
    CALL_HALF_CLOSED = 1    # the client sent END_STREAM
    CALL_BEGUN = 2          # response headers are submitted
    CALL_DEFERRED = 4       # nghttp2 waits for more of the reply
    CALL_DEAF = 8           # nothing more of the client's is wanted
    CALL_ASKED = 16         # the core has the request and owes us an END
    CALL_ENDED = 32         # the status is known
    CALL_ANNOUNCED = 64     # Python knows the call
    CALL_PATIENCE = 128     # `send_message` asked Python to wait
    CALL_ASK = 256          # Python's own question to the core: no stream
    CALL_POST = 512         # :method was POST
    CALL_GRPC = 1024        # content-type was right
    CALL_COMPRESSED = 2048  # of the message that is coming in
    CALL_TIMEOUT_IS_OURS = 4096     # the timer set is etcd's request timeout
    CALL_HAS_TIMEOUT = 8192         # the client sent grpc-timeout
    CALL_BAD_TIMEOUT = 16384
    CALL_PLAIN_TYPE = 32768         # answer with content-type application/grpc, whatever was asked
    CALL_COUNTED = 131072           # in the counters of its hot path
    CALL_LISTED = 65536             # in the list of calls that owe the ring something

cdef enum Owed:
    OWES_REQUEST = 1        # the ring was full
    OWES_PULL = 2
    OWES_CANCEL = 4

cdef enum Refusal:
    # Why a call is refused, where the text needs Python.
    REFUSE_NOTHING = 0
    REFUSE_CONTENT_TYPE = 1
    REFUSE_TIMEOUT = 2
    REFUSE_METHOD = 3
    REFUSE_HOSTS = 4
    REFUSE_PATH = 5
    REFUSE_ENCODING = 6
    REFUSE_SIZE = 7
    REFUSE_FORMAT = 8
    REFUSE_GZIP = 9
    REFUSE_INFLATED = 10

cdef enum EventKind:
    EVENT_CALL = 1
    EVENT_MESSAGE = 2
    EVENT_HALF_CLOSED = 3
    EVENT_RESET = 4
    EVENT_REPLY = 5
    EVENT_HTTP1 = 6
    EVENT_CORRUPT = 7
    EVENT_DRAINED = 8


cdef struct Route:
    const char *path        # of a bytes object that Grpc keeps
    size_t size
    uint32_t kind
    uint32_t method         # of a hot one
    bint is_timed
    bint client_streams
    uint64_t counts[20]     # of a hot one: frontends/counters.py METHOD_FIELDS
    Route *next             # of the same hash


cdef struct StatusLine:
    nghttp2_nv trailers[2]  # grpc-status, grpc-message
    uint32_t code


cdef struct Peer:
    # One connection; the transport's struct embeds it.
    Http2 http2             # the first member: an Http2 * of ours is a Peer *
    void *transport         # whoever embeds this, for the pump
    Call *calls             # its calls, linked by `next`
    nghttp2_rcbuf *path     # the :path seen last, and held
    Route *route            # what it means
    size_t partial_bytes    # of messages that are not whole yet
    size_t reply_bytes      # of replies that are not framed yet
    Peer *next_dirty
    bint is_dirty           # has something to send


cdef struct Details:
    # What only unusual calls need: those that Python answers, and those that are refused.
    Buffer path             # of a call that leads nowhere
    Buffer method           # :method, when it is not POST
    Buffer timeout          # grpc-timeout, when it is malformed
    Buffer encoding         # grpc-encoding, when it is unknown
    Buffer content_type     # as asked, when it is not application/grpc alone
    Buffer headers          # packed, of calls that Python answers
    Buffer text             # grpc-message of an end with a text of its own, encoded
    Buffer trailers         # packed, of an end that Python made


cdef struct Call:
    Peer *peer              # NULL: an ask, gone, or free
    Call *next              # of the same peer, or of the free list
    Call *previous
    Call *next_owing        # of the calls that owe the ring something
    Call *previous_owing
    uint64_t id             # slot in the table, generation << 32
    Route *route            # NULL: leads nowhere
    Details *details        # NULL for most
    Timer timer
    int64_t deadline        # the client's, ns; 0 = none
    int64_t taken           # bytes the client took of the core's reply since the last PULL
    uint64_t reply_left     # bytes that the core still owes of the message under way
    size_t reply_at         # where in `reply` the unsent bytes begin
    size_t unconsumed       # received bytes that the stream's window has not got back
    size_t partial          # of `message`, as counted for the limits
    uint64_t admin_call     # of an ask
    Buffer message          # the message that is coming in, or an owed request
    Buffer reply            # what is to be sent as DATA
    int32_t stream_id
    uint32_t flags          # CallFlag
    uint32_t owes           # Owed
    uint32_t message_size   # of the message that is coming in, without its prefix
    uint32_t prefix_size    # bytes of `prefix` that are in
    uint32_t encoding
    uint32_t host_count
    uint32_t code           # gRPC code of the end, with `details.text`; or
    uint32_t error          # ErrorId of the end, when `code` is 0
    uint32_t http_status    # of an answer without a message
    uint8_t prefix[8]


cdef struct Event:
    uint32_t kind
    uint32_t flags
    uint32_t error
    uint64_t id
    const char *path        # of EVENT_CALL
    Buffer data             # owned
    Buffer headers          # owned; packed


cdef class Grpc:
    cdef Http2Config config
    cdef CheckLimits check_limits
    cdef Wheel *wheel
    cdef Ring requests          # None: nothing is asked of the core
    cdef Ring replies
    cdef readonly bint echo     # answer every hot call at once, for the bench
    cdef bint is_full           # the request ring was full: read no more from sockets
    cdef bint has_requests      # committed to the ring and not published
    cdef bint is_corrupt        # the reply ring lies
    cdef Peer *dirty            # peers that have something to send
    cdef int64_t now            # ns
    cdef int64_t request_timeout
    cdef size_t message_max     # of one gRPC message
    cdef size_t partial_bytes
    cdef size_t reply_bytes
    cdef Buffer events          # Event
    cdef Call **table
    cdef uint32_t table_size
    cdef uint32_t calls_max
    cdef uint32_t calls_live
    cdef Call *free_calls
    cdef Call *owing
    cdef Call *owing_last
    cdef Route **routes         # by the low bits of the path's hash
    cdef StatusLine *lines
    cdef list _kept             # bytes objects that C structs point into
    cdef uint64_t calls_begun
    cdef uint64_t calls_refused
    cdef uint64_t calls_expired
    cdef uint64_t calls_canceled
    cdef uint64_t calls_cut     # by a limit of bytes
    cdef uint64_t replies_late
    cdef uint64_t replies_wrong

    # One connection.
    cdef void _free_routes(self)
    cdef bint open_peer(self, Peer *peer) noexcept nogil
    cdef void feed_peer(self, Peer *peer, const uint8_t *data, size_t size) noexcept nogil
    cdef size_t drain_peer(self, Peer *peer, uint8_t *out, size_t room) noexcept nogil
    cdef void close_peer(self, Peer *peer) noexcept nogil
    cdef void mark_dirty(self, Peer *peer) noexcept nogil
    cdef Peer *pop_dirty(self) noexcept nogil
    cdef void set_now(self, int64_t now) noexcept nogil

    # The core.
    cdef uint32_t take_replies(self, uint32_t at_most) noexcept nogil
    cdef bint pay_owed(self) noexcept nogil
    cdef bint publish(self) noexcept nogil
    cdef void expire_call(self, Call *call) noexcept nogil

    # A call's head.
    cdef Call *_begin(self, Peer *peer, int32_t stream_id) noexcept nogil
    cdef void _take_header(
        self, Call *call, const uint8_t *name, size_t name_size, const uint8_t *value, size_t size) noexcept nogil
    cdef void _route(self, Call *call, nghttp2_rcbuf *value) noexcept nogil
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
    cdef void _half_close(self, Call *call) noexcept nogil
    cdef bint _set_partial(self, Call *call, size_t size) noexcept nogil

    # Its reply.
    cdef void _take_reply(self, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil
    cdef bint _take_slice(self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil
    cdef void _take_answer(self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil
    cdef void _queue(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef void _queue_message(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef void _resume(self, Call *call) noexcept nogil
    cdef void _begin_reply(self, Call *call) noexcept nogil
    cdef size_t _read(self, Call *call, uint8_t *out, size_t room, bint *end) noexcept nogil
    cdef bint _is_over_bytes(self, Call *call, size_t more) noexcept nogil

    # Its end.
    cdef void _refuse(self, Call *call, uint32_t http_status, uint32_t code, Refusal why, Buffer *value) noexcept with gil
    cdef void _end_with(self, Call *call, uint32_t code, const char *text) noexcept nogil
    cdef void _end(self, Call *call, uint32_t error) noexcept nogil
    cdef void _cut(self, Call *call) noexcept nogil
    cdef void _send_end(self, Call *call) noexcept nogil
    cdef size_t _status_pairs(self, Call *call, nghttp2_nv *pairs) noexcept nogil
    cdef void _drop_reply(self, Call *call) noexcept nogil
    cdef void _gone(self, Call *call) noexcept nogil
    cdef void _release(self, Call *call) noexcept nogil

    # What goes to the core.
    cdef bint _push(self, Call *call, uint32_t method, uint64_t extra, const uint8_t *data, size_t size) noexcept nogil
    cdef void _owe(self, Call *call, uint32_t what) noexcept nogil
    cdef void _forgive(self, Call *call) noexcept nogil
    cdef bint _pay(self, Call *call) noexcept nogil
    cdef void _cancel(self, Call *call) noexcept nogil

    # What goes to Python.
    cdef Event *_tell(self, EventKind kind, uint64_t call_id) noexcept nogil
    cdef void _announce(self, Call *call) noexcept nogil
    cdef Call *_call_of(self, uint64_t call_id) noexcept nogil
    cdef Call *_new_call(self) noexcept nogil
    cpdef list take_events(self)


cdef class Connection:
    cdef Grpc _grpc
    cdef Peer _peer
