"""Replies that outlast a turn: long lists, streams of them, hashes, and the end of a compaction.

Rules:
1. A step looks at STEP_KEYS_MAX keys or encodes one slice: some hundred microseconds at most,
   however long the list.
2. A gRPC message's length stands before it: a list is walked and measured before its first slice.
3. Nothing is encoded ahead: a slice is made when it can be sent, of parts of large values.
"""

from libc.stdint cimport uint16_t, uint64_t

from quorate.core._bytes cimport Buffer, buffer_free, buffer_reserve
from quorate.core._errors cimport ERROR_REPLY_TOO_LARGE
from quorate.core._port cimport LongReply, Port
from quorate.core._protobuf cimport write_varint
from quorate.core._record cimport REPLY_END, REPLY_FIRST, REPLY_LAST, REPLY_SLICE_MAX, REPLY_WHOLE
from quorate.core._reply cimport (
    TAG_STREAM_RANGE_RESPONSE, append_header, append_number,
)
from quorate.core._selection cimport MESSAGE_BYTES_MAX, STEP_KEYS_MAX

cdef enum:
    # Bytes of a message before and after its key-values, at most.
    ENDS_SIZE_MAX = 128
    # etcd's first chunk of a RangeStream (initialStreamChunkLimit).
    STREAM_FIRST_KEYS = 10
    # Versions hashed per step.
    STEP_HASHES_MAX = 1000


# The slice under way; no turn encodes two at once.
cdef Buffer scratch


cdef class Listing(LongReply):
    """A long RangeResponse."""

    cdef bint step(self, Port port) except -1:
        cdef size_t room = min(<size_t>REPLY_SLICE_MAX, self.credit)
        cdef uint16_t flags = 0
        if not self.selection.step(STEP_KEYS_MAX):
            return False
        if room < ENDS_SIZE_MAX:
            self.waits = True
            return False
        scratch.size = 0
        if self.message_size == 0:
            self.message_size = self.selection.message_size(&self.header)
            if self.message_size > MESSAGE_BYTES_MAX:
                port.refuse(self.request_id, ERROR_REPLY_TOO_LARGE)
                return True
            self.selection.append_head(&scratch, &self.header)
            flags = REPLY_FIRST
        self.selection.append_some(&scratch, self.selection.total, room)
        if self.selection.appended == self.selection.total:
            self.selection.append_tail(&scratch)
            flags |= REPLY_LAST | REPLY_END
        return self._send(port, flags)

    cdef bint _send(self, Port port, uint16_t flags) except -1:
        """Send the slice; whether it was the call's last."""
        port.reply(self.request_id, flags, 0, self.message_size, scratch.data, scratch.size)
        self.credit -= min(self.credit, scratch.size)
        return (flags & REPLY_END) != 0

    cdef bint hinders(self) noexcept:
        """Whether a compaction waits for the revision that this list reads."""
        return self.selection.store.compact_revision > self.selection.revision

    cdef void finish(self) noexcept:
        self.selection.release()


cdef class Stream(Listing):
    """A RangeStream (etcd: rangeStream in server/etcdserver/v3_server.go): header, more and count
    come with the last chunk.

    A sort target with order NONE sorts ascending here, too. etcd sorts each chunk by itself and
    goes on after its last key, so that beyond ten keys its answer repeats some and lacks others.
    """

    cdef bint step(self, Port port) except -1:
        cdef size_t room = min(<size_t>REPLY_SLICE_MAX, self.credit)
        cdef uint16_t flags = 0
        if not self.selection.step(STEP_KEYS_MAX):
            return False
        if room < ENDS_SIZE_MAX:
            self.waits = True
            return False
        scratch.size = 0
        if self.message_size == 0:
            self._begin_chunk()
            flags = REPLY_FIRST
        self.selection.append_some(&scratch, self.chunk_end, room)
        if self.selection.appended == self.chunk_end:
            flags |= REPLY_LAST
            if self.chunk_end == self.selection.total:
                self.selection.append_tail(&scratch)
                flags |= REPLY_END
        self._send(port, flags)
        if flags & REPLY_LAST:
            self.message_size = 0
        return (flags & REPLY_END) != 0

    cdef int _begin_chunk(self) except -1:
        """Begin the next message; chunks grow and shrink to come near `chunk_bytes`."""
        cdef Selection selection = self.selection
        cdef size_t kvs_size = 0
        cdef size_t size
        cdef size_t gap
        self.limit = self.limit or STREAM_FIRST_KEYS
        self.chunk_end = selection.appended + selection.look_ahead(
            self.limit, 2 * self.chunk_bytes, &kvs_size)
        size = kvs_size
        if self.chunk_end == selection.total:
            # The message's size is the whole reply's less what went before.
            size = selection.message_size(&self.header) - selection.kvs_size + kvs_size
        buffer_reserve(&scratch, ENDS_SIZE_MAX)
        scratch.data[0] = TAG_STREAM_RANGE_RESPONSE
        gap = write_varint(scratch.data + 1, size) - scratch.data
        scratch.size = gap
        self.message_size = gap + size
        if self.chunk_end == selection.total:
            selection.append_head(&scratch, &self.header)
        if kvs_size < self.chunk_bytes // 2:
            self.limit *= 2
        elif kvs_size > 2 * self.chunk_bytes:
            self.limit = max(self.limit // 2, <size_t>1)
        return 0


cdef class Hashing(LongReply):
    """A HashKV."""

    cdef bint step(self, Port port) except -1:
        cdef Buffer out
        if self.store.hash_step(&self.state, STEP_HASHES_MAX):
            return False
        out.data = NULL
        out.size = out.capacity = 0
        try:
            append_header(&out, &self.header, self.store.revision)
            append_number(&out, 16, self.state.crc)
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
            self.waits = True
            return False
        out.data = NULL
        out.size = out.capacity = 0
        try:
            append_header(&out, &self.header, self.store.revision)
            port.reply(self.request_id, REPLY_WHOLE, 0, out.size, out.data, out.size)
        finally:
            buffer_free(&out)
        return True
