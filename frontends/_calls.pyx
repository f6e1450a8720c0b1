"""Calls as C structs: the table of those that live, what they owe, what Python is told of them.

Rules:
1. A call is taken from a free list and goes back to it; nothing of it is a Python object.
2. A call's id is its slot and the slot's generation: a reply to a call that is over finds nobody.
3. What the ring to the core can't take now is owed (`_owe`), oldest first, and never dropped;
   `is_full` then tells the transport to read no more.
4. Python learns of calls by events, which wait in C memory until it takes them all.
5. The garbage collector must not clear the rings of this class and of those made of it: what lives
   yet is canceled through them when the object goes.
"""

import cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from quorate.core import limits
from quorate.core._bytes cimport buffer_append, buffer_free, buffer_reserve
from quorate.core._record cimport METHOD_ADMIN, METHOD_CANCEL, METHOD_PULL, Request
from quorate.frontends._deadlines cimport SLOT_SHIFT
from quorate.frontends._metadata cimport unpack

cdef enum:
    # What a free call keeps of its buffers.
    BUFFER_KEPT_MAX = 4096
    CALLS_PER_CHUNK = 64

cdef size_t PARTIAL_MAX = limits.PARTIAL_BYTES_MAX
cdef size_t WORKER_PARTIAL_MAX = limits.WORKER_PARTIAL_BYTES_MAX

CALL, MESSAGE, HALF_CLOSED, RESET, REPLY, HTTP1, CORRUPT, DRAINED = range(1, 9)


cdef Details *details_of(Call *call) noexcept nogil:
    """What only unusual calls need, made when first asked for."""
    if call.details == NULL:
        call.details = <Details *>calloc(1, sizeof(Details))
    return call.details


cdef void free_details(Call *call) noexcept nogil:
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


@cython.no_gc_clear
cdef class Calls:
    """The calls of one worker, of all connections."""

    def __cinit__(self, *, Ring requests=None, uint32_t calls_max=limits.CALLS_MAX, **_):
        """`requests` is the ring to the core; without one nothing is asked of it."""
        self.requests = requests
        self.calls_max = calls_max
        self.wheel = <Wheel *>calloc(1, sizeof(Wheel))
        if self.wheel == NULL:
            raise MemoryError("no memory for a wheel")

    def __dealloc__(self):
        cdef Event *events = <Event *>self.events.data
        cdef size_t i
        for i in range(self.table_size):
            buffer_free(&self.table[i].message)
            buffer_free(&self.table[i].reply)
            free_details(self.table[i])
        for i in range(0, self.table_size, CALLS_PER_CHUNK):
            free(self.table[i])
        free(self.table)
        free(self.wheel)
        for i in range(self.events.size // sizeof(Event)):
            buffer_free(&events[i].data)
            buffer_free(&events[i].headers)
        buffer_free(&self.events)

    cdef void set_now(self, int64_t now) noexcept nogil:
        """Say what time it is, in ns of a monotonic clock."""
        self.now = now
        if self.wheel.count == 0:
            self.wheel.tick = now >> SLOT_SHIFT

    cdef void mark_dirty(self, Peer *peer) noexcept nogil:
        """Have the connection drained at the end of this round."""
        if not peer.is_dirty:
            peer.is_dirty = True
            peer.next_dirty = self.dirty
            self.dirty = peer

    # --- the table -------------------------------------------------------------------------------

    cdef Call *_new_call(self) noexcept nogil:
        """A zeroed call with an id of its own, NULL when there are too many."""
        cdef Call *call
        cdef Call *chunk
        cdef Call **table
        cdef int i
        if self.calls_live >= self.calls_max:
            return NULL
        if self.free_calls == NULL:
            chunk = <Call *>calloc(CALLS_PER_CHUNK, sizeof(Call))
            table = <Call **>realloc(
                self.table, (self.table_size + CALLS_PER_CHUNK) * sizeof(Call *))
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

    cdef Call *_call_of(self, uint64_t call_id) noexcept nogil:
        """The living call of this id, or NULL."""
        cdef uint32_t slot = <uint32_t>call_id
        if slot >= self.table_size or self.table[slot].id != call_id:
            return NULL
        return self.table[slot]

    cdef void _release(self, Call *call) noexcept nogil:
        """To the free list with a new generation; one that owes a CANCEL waits until it is paid."""
        cdef Buffer message = call.message
        cdef Buffer reply = call.reply
        cdef uint64_t following = call.id + (<uint64_t>1 << 32)
        if call.owes & OWES_CANCEL:
            return
        self._forgive(call)
        free_details(call)
        _empty(&message)
        _empty(&reply)
        memset(call, 0, sizeof(Call))
        call.message = message
        call.reply = reply
        call.id = following
        call.next = self.free_calls
        self.free_calls = call
        self.calls_live -= 1

    cdef bint _set_partial(self, Call *call, size_t size) noexcept nogil:
        """Count the call's incoming bytes; False when connection or worker may not hold as many."""
        cdef Peer *peer = call.peer
        if size > call.partial and (
                peer.partial_bytes + size - call.partial > PARTIAL_MAX
                or self.partial_bytes + size - call.partial > WORKER_PARTIAL_MAX):
            return False
        peer.partial_bytes += size - call.partial
        self.partial_bytes += size - call.partial
        call.partial = size
        return True

    # --- what goes to the core -------------------------------------------------------------------

    cdef bint _push(
            self, Call *call, uint32_t method, uint64_t extra, const uint8_t *data, size_t
            size) noexcept nogil:
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
        if size:
            memcpy(at + sizeof(Request), data, size)
        self.requests.commit(sizeof(Request) + size)
        self.has_requests = True
        return True

    cdef void _owe(self, Call *call, uint32_t what) noexcept nogil:
        """Note what the ring is to get; paid at once if it can be."""
        call.owes |= what
        # `_cancel` may have left a call in the list that owed nothing any more.
        if call.flags & CALL_LISTED or (self.owing == NULL and self._pay(call)):
            return
        self._list(call)

    cdef void _list(self, Call *call) noexcept nogil:
        """Have the call come when there is room in the ring again."""
        call.previous_owing = self.owing_last
        call.next_owing = NULL
        if self.owing_last != NULL:
            self.owing_last.next_owing = call
        else:
            self.owing = call
        self.owing_last = call
        call.flags |= CALL_LISTED
        self.is_full = True

    cdef void _go_on(self, Call *call) noexcept nogil:
        """Take what a hot stream holds back, as far as there is room; `_grpc.pyx` knows how."""

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
        cdef Buffer *request = call.owed if call.owed != NULL else &call.message
        if call.owes & OWES_REQUEST:
            if not self._push(call, call.method, call.extra, request.data, request.size):
                return False
            call.owes &= ~<uint32_t>OWES_REQUEST
            request.size = 0
            if call.peer != NULL and call.owed == NULL:
                self._set_partial(call, 0)
        if call.owes & OWES_STREAM:
            call.owes &= ~<uint32_t>OWES_STREAM
            self._go_on(call)
            if call.owes & OWES_STREAM:
                return False
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
            if call.owed == NULL:
                call.message.size = 0
            return
        call.owes &= ~<uint32_t>(OWES_PULL | OWES_STREAM)
        self._owe(call, OWES_CANCEL)

    cdef bint publish(self) noexcept nogil:
        """Let the core see what was pushed; True when something was: then ring the doorbell."""
        if not self.has_requests:
            return False
        self.requests.publish()
        self.has_requests = False
        return True

    def ask(self, uint64_t admin_call, bytes payload=b""):
        """Ask the core something of Python's; answers the id with which its REPLY events come."""
        cdef Call *call = self._new_call()
        cdef const uint8_t *data = payload
        if call == NULL:
            raise MemoryError(f"{self.calls_live} calls are alive: no room for a question")
        call.flags = CALL_ASK | CALL_ASKED | CALL_DEAF
        call.method = METHOD_ADMIN
        call.extra = admin_call
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

    # --- what goes to Python ---------------------------------------------------------------------

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
            event.headers = details_of(call).headers
            memset(&call.details.headers, 0, sizeof(Buffer))

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


cdef void _empty(Buffer *buffer) noexcept nogil:
    """Keep a small buffer for the next call, give a large one back."""
    buffer.size = 0
    if buffer.capacity > BUFFER_KEPT_MAX:
        buffer_free(buffer)
