"""Replies that take longer than a turn: long lists, streams of them, hashes, and the end of a
compaction.

Rules:
1. A step looks at STEP_KEYS_MAX keys or encodes one slice: some hundred microseconds at most,
   however long the list.
2. The length of a gRPC message stands before it, so a list is walked and measured whole before its
   first slice; only pointers are kept meanwhile.
3. What is encoded and not sent is at most one slice and one key-value.
"""

from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memmove

from quorate.core._bytes cimport Buffer, buffer_free
from quorate.core._errors cimport ERROR_REPLY_TOO_LARGE
from quorate.core._port cimport LongReply, Port
from quorate.core._record cimport REPLY_END, REPLY_FIRST, REPLY_LAST, REPLY_SLICE_MAX, REPLY_WHOLE
from quorate.core._reply cimport (
    TAG_STREAM_RANGE_RESPONSE, append_header, append_number, close_nested, key_value_size,
    open_nested,
)
from quorate.core._request cimport omitted
from quorate.core._selection cimport MESSAGE_BYTES_MAX, STEP_KEYS_MAX

cdef enum:
    # etcd's first chunk of a RangeStream (initialStreamChunkLimit).
    STREAM_FIRST_KEYS = 10
    # Versions hashed per step.
    STEP_HASHES_MAX = 1000


cdef class Listing(LongReply):
    """A long RangeResponse."""

    def __dealloc__(self):
        buffer_free(&self.pending)

    cdef bint step(self, Port port) except -1:
        if not self.selection.step(STEP_KEYS_MAX):
            return False
        if self.total_size == 0:
            self.total_size = self.selection.message_size(&self.header)
            if self.total_size > MESSAGE_BYTES_MAX:
                port.refuse(self.request_id, ERROR_REPLY_TOO_LARGE)
                return True
            self.selection.append_head(&self.pending, &self.header)
            self._encode()
            return self._send(port, REPLY_FIRST, self.encoded)
        self._encode()
        return self._send(port, 0, self.encoded)

    cdef int _encode(self) except -1:
        """Encode key-values until a slice is full, and the tail after the last."""
        while (self.next < self.selection.total
                and self.pending.size - self.pending_at < REPLY_SLICE_MAX):
            self.selection.append_kv(&self.pending, self.next)
            self.next += 1
        if self.next == self.selection.total and not self.encoded:
            self.selection.append_tail(&self.pending)
            self.encoded = True
        return 0

    cdef int _send(self, Port port, uint16_t flags, bint last) except -1:
        """Send what credit allows of what is pending; 1 when that was the end of the call."""
        cdef size_t size = self.pending.size - self.pending_at
        if size > REPLY_SLICE_MAX or size > self.credit:
            size = min(<size_t>REPLY_SLICE_MAX, self.credit)
            last = False
        if size == 0 and not last:
            return 0
        if last:
            flags |= REPLY_LAST | REPLY_END
        port.reply(
            self.request_id, flags, 0, self.total_size, self.pending.data + self.pending_at, size)
        self.credit -= size
        self.pending_at += size
        if self.pending_at >= REPLY_SLICE_MAX:
            memmove(
                self.pending.data, self.pending.data + self.pending_at,
                self.pending.size - self.pending_at)
            self.pending.size -= self.pending_at
            self.pending_at = 0
        return last

    cdef bint hinders(self) noexcept:
        """Whether a compaction waits for the revision that this list reads."""
        return self.selection.store.compact_revision > self.selection.revision

    cdef void finish(self) noexcept:
        self.selection.release()


cdef class Stream(Listing):
    """A RangeStream (etcd: rangeStream in server/etcdserver/v3_server.go): header, more and count
    come with the last chunk.
    """

    cdef bint step(self, Port port) except -1:
        if not self.selection.step(STEP_KEYS_MAX):
            return False
        if self.limit == 0:
            self.limit = STREAM_FIRST_KEYS
        if self.pending.size == 0 and not self.encoded:
            self._encode_chunk()
        return self._send_chunk(port)

    cdef int _encode_chunk(self) except -1:
        """Encode the next chunk as one message; the chunks grow and shrink to come near
        `chunk_bytes`.
        """
        cdef size_t nested = open_nested(&self.pending, TAG_STREAM_RANGE_RESPONSE)
        cdef size_t end = self._chunk_end()
        self.encoded = end == self.selection.total
        if self.encoded:
            self.selection.append_head(&self.pending, &self.header)
        while self.next < end:
            self.selection.append_kv(&self.pending, self.next)
            self.next += 1
        if self.encoded:
            self.selection.append_tail(&self.pending)
        close_nested(&self.pending, nested)
        if self.pending.size < self.chunk_bytes // 2:
            self.limit *= 2
        elif self.pending.size > 2 * self.chunk_bytes:
            self.limit = max(self.limit // 2, <size_t>1)
        self.chunk_size = self.pending.size
        return 0

    cdef size_t _chunk_end(self) noexcept:
        """Where the next chunk ends: after `limit` key-values, or earlier where they are large."""
        cdef size_t end = self.next
        cdef size_t size = 0
        while (end < self.selection.total and end - self.next < self.limit
                and size < 2 * self.chunk_bytes):
            size += key_value_size(self.selection.at(end), omitted(&self.selection.op))
            end += 1
        return end

    cdef int _send_chunk(self, Port port) except -1:
        """Send a slice of the chunk; 1 when the call is over."""
        cdef size_t left = self.pending.size - self.pending_at
        cdef size_t size = min(left, <size_t>REPLY_SLICE_MAX, self.credit)
        cdef uint16_t flags = REPLY_FIRST if self.pending_at == 0 else 0
        if size == 0:
            return 0
        if size == left:
            flags |= REPLY_LAST
            if self.encoded:
                flags |= REPLY_END
        port.reply(
            self.request_id, flags, 0, self.chunk_size, self.pending.data + self.pending_at, size)
        self.credit -= size
        self.pending_at += size
        if size == left:
            self.pending.size = self.pending_at = 0
        return (flags & REPLY_END) != 0


cdef class Hashing(LongReply):
    """A hash of the key space up to a revision."""

    cdef bint step(self, Port port) except -1:
        cdef Buffer out
        if self.store.hash_step(&self.state, STEP_HASHES_MAX):
            return False
        out.data = NULL
        out.size = out.capacity = 0
        try:
            append_header(&out, &self.header, self.store.revision)
            append_number(&out, 16, self.state.crc)
            if self.is_hash_kv:
                append_number(&out, 24, <uint64_t>self.state.compact_revision)
                append_number(&out, 32, <uint64_t>self.state.revision)
            port.reply(self.request_id, REPLY_WHOLE, 0, out.size, out.data, out.size)
        finally:
            buffer_free(&out)
        return True

    cdef void finish(self) noexcept:
        self.store.hash_end(&self.state)


cdef class CompactionWait(LongReply):
    """The answer to a physical compaction."""

    cdef bint step(self, Port port) except -1:
        cdef Buffer out
        if self.store.finished_revision < self.revision:
            return False
        out.data = NULL
        out.size = out.capacity = 0
        try:
            append_header(&out, &self.header, self.store.revision)
            port.reply(self.request_id, REPLY_WHOLE, 0, out.size, out.data, out.size)
        finally:
            buffer_free(&out)
        return True
