# cython: language_level=3
"""Calls as C structs: the table of those that live, what they owe the core, what Python is told."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._ring cimport Ring
from quorate.frontends._deadlines cimport Timer, Wheel
from quorate.frontends._http2 cimport Http2
from quorate.frontends._nghttp2 cimport nghttp2_rcbuf

cdef enum TimerKind:
    TIMER_CALL = 0
    TIMER_CLIENT = 1        # the transport's own
    TIMER_WATCH = 2         # progress notifications of a WatchStream

cdef enum RouteKind:
    ROUTE_HOT = 1           # the core answers
    ROUTE_SERVED = 2        # Python answers
    ROUTE_ABSENT = 3        # etcd has it, we do not yet
    ROUTE_WATCH = 4         # the worker itself answers, with what the core tells all workers

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
    CALL_TIMEOUT_IS_OURS = 4096     # the timer set is etcd's request timeout
    CALL_HAS_TIMEOUT = 8192         # the client sent grpc-timeout
    CALL_BAD_TIMEOUT = 16384
    CALL_PLAIN_TYPE = 32768         # answer with content-type application/grpc, whatever was asked
    CALL_COUNTED = 131072           # in the counters of its hot path
    CALL_FOLLOWS = 524288           # our own question to the core for all events
    CALL_LAST = 262144              # a stream of requests is over; it ends with its last answer
    CALL_LISTED = 65536             # in the list of calls that owe the ring something

cdef enum Owed:
    OWES_REQUEST = 1        # the ring was full
    OWES_PULL = 2
    OWES_CANCEL = 4
    OWES_STREAM = 8         # the ring was full, and `message` holds requests of a stream

cdef enum:
    # Of a hot path, in the order of frontends/counters.py; from the last on one per gRPC code.
    COUNT_STARTED = 0
    COUNT_RECEIVED = 1
    COUNT_SENT = 2
    COUNT_HANDLED = 3
    COUNTS = 20

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
    uint64_t counts[COUNTS]     # of a hot one: frontends/counters.py METHOD_FIELDS
    Route *next             # of the same hash


cdef struct Peer:
    # One connection; the transport's struct embeds it.
    Http2 http2             # the first member: an Http2 * of ours is a Peer *
    void *transport         # whoever embeds this, for the pump
    Call *calls             # its calls, linked by `next`
    nghttp2_rcbuf *path     # the :path seen last, and held
    Route *route            # what it means
    size_t partial_bytes    # of messages that are not whole yet
    size_t reply_bytes      # of replies that are not framed yet
    size_t early            # when there are so many, some are sent amid a delivery
    uint32_t watchers
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
    uint64_t extra          # of the request to the core
    void *watch             # WatchStream of a Watch that has had watchers
    Buffer *owed            # the request that is owed, if it is not `message`
    Buffer message          # what is coming in, or an owed request; of a hot stream what waits
    Buffer reply            # what is to be sent as DATA
    int32_t stream_id
    uint32_t flags          # CallFlag
    uint32_t owes           # Owed
    uint32_t method         # of the request to the core
    uint32_t message_size   # of the message that is coming in, without its prefix
    uint32_t prefix_size    # bytes of `prefix` that are in
    uint32_t encoding
    uint32_t host_count
    uint32_t code           # gRPC code of the end, with `details.text`; or
    uint32_t error          # ErrorId of the end, when `code` is 0
    uint32_t http_status    # of an answer without a message
    uint32_t pending        # requests of a stream that the core has not answered
    uint8_t prefix[8]


cdef struct Event:
    uint32_t kind
    uint32_t flags
    uint32_t error
    uint64_t id
    const char *path        # of EVENT_CALL
    Buffer data             # owned
    Buffer headers          # owned; packed


cdef Details *details_of(Call *call) noexcept nogil
cdef void free_details(Call *call) noexcept nogil


cdef class Calls:
    cdef Ring requests          # None: nothing is asked of the core
    cdef Wheel *wheel           # deadlines of calls, and timers of the transport
    cdef int64_t now            # ns
    cdef bint is_full           # the request ring was full: read no more from sockets
    cdef bint has_requests      # committed to the ring and not published
    cdef Peer *dirty            # peers that have something to send
    cdef size_t partial_bytes   # of all peers
    cdef size_t reply_bytes
    cdef Buffer events          # Event
    cdef Call **table
    cdef uint32_t table_size
    cdef uint32_t calls_max
    cdef uint32_t calls_live
    cdef Call *free_calls
    cdef Call *owing            # the oldest that owes the ring something
    cdef Call *owing_last
    cdef uint64_t calls_begun
    cdef uint64_t calls_refused
    cdef uint64_t calls_expired
    cdef uint64_t calls_canceled
    cdef uint64_t calls_cut     # by a limit of bytes, or for a broken reply
    cdef uint64_t replies_late
    cdef uint64_t replies_wrong

    cdef void set_now(self, int64_t now) noexcept nogil
    cdef void mark_dirty(self, Peer *peer) noexcept nogil

    # The table.
    cdef Call *_new_call(self) noexcept nogil
    cdef Call *_call_of(self, uint64_t call_id) noexcept nogil
    cdef void _release(self, Call *call) noexcept nogil
    cdef bint _set_partial(self, Call *call, size_t size) noexcept nogil

    # What goes to the core.
    cdef bint _push(
        self, Call *call, uint32_t method, uint64_t extra, const uint8_t *data, size_t
        size) noexcept nogil
    cdef void _owe(self, Call *call, uint32_t what) noexcept nogil
    cdef void _list(self, Call *call) noexcept nogil
    cdef void _go_on(self, Call *call) noexcept nogil
    cdef void _forgive(self, Call *call) noexcept nogil
    cdef bint _pay(self, Call *call) noexcept nogil
    cdef bint pay_owed(self) noexcept nogil
    cdef void _cancel(self, Call *call) noexcept nogil
    cdef bint publish(self) noexcept nogil

    # What goes to Python.
    cdef Event *_tell(self, EventKind kind, uint64_t call_id) noexcept nogil
    cdef void _announce(self, Call *call) noexcept nogil
    cpdef list take_events(self)
