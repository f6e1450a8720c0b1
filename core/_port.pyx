"""One worker as the core sees it: its rings, and replies that wait for room or a slow client.

Rules:
1. The core never waits for a worker. A reply record that finds no room goes to the backlog, and
   while there is one, no more requests are taken from that worker: what a worker can pile up is
   bounded by what it has asked.
2. A long reply has at most REPLY_WINDOW bytes under way; the worker pulls more as its client reads.
   In a turn one of a worker's long replies goes one step on, and then stands behind the others: a
   turn stays short, and with it the worker's rounds, however many lists are under way.
3. A worker that breaks the format is marked `corrupt` and replaced; a record that is well-formed
   but wrong is dropped and counted.
4. Descriptors go over a socket of their own, before the answer that tells of them. Nothing is ever
   read from that socket here.
"""

import socket
from errno import EPIPE

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from quorate.core._bytes cimport (
    buffer_append, buffer_free, buffer_reserve, load_le32, store_le32,
)
from quorate.core._errors cimport ERROR_LIST_ABANDONED
from quorate.core._record cimport (
    REPLY_END, REPLY_FIRST, REPLY_LAST, REPLY_SLICE_MAX, REPLY_WHOLE, REPLY_WINDOW, Reply,
)
from quorate.core._ring cimport Doorbell, Ring


cdef class LongReply:
    """A reply that is sent in slices as its client reads."""

    cdef bint step(self, Port port) except -1:
        """Do a bounded piece of work and send at most one slice; True when the reply is complete.

        Where there is nothing to do now, `waits` is set instead.
        """
        raise AssertionError("a LongReply must say how it goes on")

    cdef bint hinders(self) noexcept:
        """Whether this reply holds up what others need; then it may not take for ever."""
        return False

    cdef int relieve(self) except -1:
        """Called now and then: let others go on, if it can be done for little."""

    cdef void finish(self) noexcept:
        """The reply is complete or its asker is gone: let go of what it held."""


cdef bint send_slice(
        LongReply reply, Port port, const Buffer *message, size_t *sent) except -1:
    """Send the next slice of a reply of one message; True when that was the last."""
    cdef size_t size = min(message.size - sent[0], <size_t>REPLY_SLICE_MAX, reply.credit)
    cdef uint16_t flags = REPLY_FIRST if sent[0] == 0 else 0
    if size == 0:
        reply.waits = True
        return False
    if sent[0] + size == message.size:
        flags |= REPLY_LAST | REPLY_END
    port.reply(reply.request_id, flags, 0, message.size, message.data + sent[0], size)
    sent[0] += size
    reply.credit -= size
    return sent[0] == message.size


cdef class Blob(LongReply):
    """A finished message that is longer than one record."""

    def __dealloc__(self):
        buffer_free(&self.message)

    cdef bint step(self, Port port) except -1:
        return send_slice(self, port, &self.message, &self.sent)


cdef class Port:
    """The core's end of one worker's rings."""

    def __cinit__(
            self, Ring requests, Ring replies, Doorbell bell, uint32_t slot, uint32_t generation):
        self.requests = requests
        self.replies = replies
        self.bell = bell
        self.slot = slot
        self.generation = generation
        self.long_replies = {}

    def __dealloc__(self):
        buffer_free(&self.backlog)

    cdef int reply(self, uint64_t request_id, uint16_t flags, uint16_t error, uint64_t extra,
                   const uint8_t *data, size_t size) except -1:
        """Send one reply record. Raises MemoryError."""
        cdef Reply reply
        cdef uint8_t *at = NULL
        cdef size_t record = sizeof(Reply) + size
        if self.backlog.size == 0:
            at = self.replies.reserve(record)
        if at == NULL:
            buffer_reserve(&self.backlog, 4 + record)
            store_le32(self.backlog.data + self.backlog.size, <uint32_t>record)
            at = self.backlog.data + self.backlog.size + 4
            self.backlog.size += 4 + record
            record = 0
        reply.request_id = request_id
        reply.extra = extra
        reply.flags = flags
        reply.error = error
        reply.reserved = 0
        # In the backlog records stand at any address.
        memcpy(at, &reply, sizeof(Reply))
        if size:
            memcpy(at + sizeof(Reply), data, size)
        if record:
            self.replies.commit(record)
            self.pushed = True
        return 0

    cdef int reply_message(self, uint64_t request_id, const uint8_t *data, size_t size) except -1:
        """Send a finished message, in slices when it is long. Raises MemoryError."""
        cdef Blob blob
        if size <= REPLY_SLICE_MAX:
            return self.reply(request_id, REPLY_WHOLE, 0, size, data, size)
        blob = Blob()
        blob.request_id = request_id
        buffer_append(&blob.message, data, size)
        return self.start(blob)

    cdef int refuse(self, uint64_t request_id, uint16_t error) except -1:
        """Answer with an error."""
        return self.reply(request_id, REPLY_END, error, 0, NULL, 0)

    cdef int start(self, LongReply reply) except -1:
        """Begin a long reply; dropped if its request id is in use, which is the worker's fault."""
        reply.credit = REPLY_WINDOW
        if reply.request_id in self.long_replies:
            self.dropped += 1
            reply.finish()
            return 0
        self.long_replies[reply.request_id] = reply
        return 0

    cdef void pull(self, uint64_t request_id, uint64_t credit):
        """The worker took `credit` more bytes of a long reply."""
        cdef LongReply reply = self.long_replies.get(request_id)
        if reply is not None:
            reply.credit = min(
                reply.credit + min(credit, <uint64_t>REPLY_WINDOW), <uint64_t>REPLY_WINDOW)
            reply.waits = False

    cdef void cancel(self, uint64_t request_id):
        """The asker is gone."""
        cdef LongReply reply = self.long_replies.pop(request_id, None)
        if reply is not None:
            reply.finish()

    cdef bint blocked(self) noexcept:
        """Whether this worker leaves replies lying, so that nothing more is taken from it."""
        return self.backlog.size != 0

    @property
    def waits_for_room(self):
        """Whether replies wait for room in the ring; the worker rings for requests alone."""
        return self.blocked()

    def step(self):
        """Carry on the first long reply that does not wait; True while one could go on at once."""
        cdef LongReply reply
        if not self.long_replies or self.blocked():
            return False
        for reply in list(self.long_replies.values()):
            reply.waits = False
            if reply.step(self):
                del self.long_replies[reply.request_id]
                reply.finish()
                break
            if not reply.waits:
                del self.long_replies[reply.request_id]
                self.long_replies[reply.request_id] = reply
                break
        for reply in self.long_replies.values():
            if not reply.waits:
                return not self.blocked()
        return False

    def tick(self, uint32_t milliseconds, uint32_t milliseconds_max):
        """Time went by: give up the replies that hinder others and are older than the limit. Raises
        MemoryError.
        """
        cdef LongReply reply
        for reply in list(self.long_replies.values()):
            reply.age += milliseconds
            reply.relieve()
            if reply.age > milliseconds_max and reply.hinders():
                self.refuse(reply.request_id, ERROR_LIST_ABANDONED)
                self.cancel(reply.request_id)

    def flush(self):
        """Make this turn's replies visible and wake the worker."""
        if self.backlog.size:
            self._push_backlog()
        if self.pushed:
            self.pushed = False
            self.replies.publish()
            self.bell.ring()

    cdef int _push_backlog(self) noexcept:
        cdef uint8_t *at
        cdef size_t size
        while self.backlog_at < self.backlog.size:
            size = load_le32(self.backlog.data + self.backlog_at)
            at = self.replies.reserve(size)
            if at == NULL:
                return 0
            memcpy(at, self.backlog.data + self.backlog_at + 4, size)
            self.replies.commit(size)
            self.pushed = True
            self.backlog_at += 4 + size
        buffer_free(&self.backlog)
        self.backlog_at = 0
        return 0

    def close(self):
        """The worker is gone: drop what was under way."""
        cdef LongReply reply
        for reply in self.long_replies.values():
            reply.finish()
        self.long_replies.clear()
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def answer(self, uint64_t request_id, bytes message):
        """Send a finished message from Python."""
        self.reply_message(request_id, <const uint8_t *>message, len(message))

    def answer_error(self, uint64_t request_id, uint16_t error):
        """Answer with an error from Python."""
        self.refuse(request_id, error)

    def hand_over(self, uint64_t request_id, list descriptors, bytes message):
        """Answer with descriptors, of which the caller keeps his own, and a message.

        Raises OSError when the worker takes none, or there is no worker any more.
        """
        if self.channel is None:
            raise BrokenPipeError(EPIPE, "the worker is gone")
        socket.send_fds(self.channel, [request_id.to_bytes(8, "little")], descriptors)
        self.answer(request_id, message)
