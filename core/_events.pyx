"""What was written, as events: into the event ring, and for workers that fell behind it.

Rules:
1. An event is a version. The history is in their order, so events are read off it and never kept
   elsewhere: neither a slow worker nor a watcher of the past holds memory here.
2. Each turn's events are encoded once, for all workers, before the turn's replies become visible:
   who got an answer finds all its events, and the revision, in the ring.
3. Nothing is encoded while no worker follows. A worker follows (METHOD_FOLLOW) from a revision on:
   it gets what the ring does not have yet, or no more, as a long reply, whose end tells where the
   ring goes on.
4. The previous key-value of an event is what was there one revision before (etcd: a Range at
   mod_revision - 1): none for a creation, none if that revision is compacted. It is encoded only
   while a worker has a watcher that asked for it.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from quorate.core._bytes cimport Buffer, buffer_append, buffer_free, buffer_reserve
from quorate.core._errors cimport ERROR_COMPACTED
from quorate.core._eventring cimport (
    EVENT_DELETE, EVENT_HAS_PREVIOUS, EVENT_LAST, EventRecord, EventRing,
)
from quorate.core._mvcc cimport Store
from quorate.core._port cimport Port
from quorate.core._protobuf cimport varint_size
from quorate.core._record cimport (
    FollowEnd, REPLY_END, REPLY_FIRST, REPLY_LAST, REPLY_SLICE_MAX,
)
from quorate.core._reply cimport OMIT_NOTHING, append_key_value, key_value_size
from quorate.core._version cimport Version, version_is_tombstone, version_key_size

cdef enum:
    TAG_EVENT_KV = 18
    TAG_EVENT_PREVIOUS = 26
    # Written to the ring at once, and in one message of a Follow, about.
    CHUNK_BYTES = 49152


cdef size_t event_size(const Version *version) noexcept nogil:
    """Bytes of a version as mvccpb.Event, without the previous key-value."""
    cdef size_t size = key_value_size(version, OMIT_NOTHING)
    return (2 if version_is_tombstone(version) else 0) + 1 + varint_size(size) + size


cdef Version *event_previous(const Version *version, int64_t compact_revision) noexcept nogil:
    """What an event shows as the previous version, or NULL; see rule 4."""
    cdef Version *previous = version.previous
    if version.create_revision == version.mod_revision:
        return NULL
    if version.mod_revision <= compact_revision:
        return NULL
    while previous != NULL and previous.mod_revision == version.mod_revision:
        previous = previous.previous
    if previous == NULL or version_is_tombstone(previous):
        return NULL
    return previous


cdef size_t previous_size(const Version *previous) noexcept nogil:
    """Bytes of the field `prev_kv`; 0 for NULL."""
    if previous == NULL:
        return 0
    cdef size_t size = key_value_size(previous, OMIT_NOTHING)
    return 1 + varint_size(size) + size


cdef int append_event(Buffer *out, const Version *version) except -1 nogil:
    """Append a version as mvccpb.Event, without the previous key-value."""
    if version_is_tombstone(version):
        buffer_append(out, <const uint8_t *>b"\x08\x01", 2)
    return append_key_value(out, TAG_EVENT_KV, version, OMIT_NOTHING)


cdef int append_previous(Buffer *out, const Version *previous) except -1 nogil:
    """Append the field `prev_kv`, nothing for NULL."""
    if previous == NULL:
        return 0
    return append_key_value(out, TAG_EVENT_PREVIOUS, previous, OMIT_NOTHING)


cdef int append_record(
        Buffer *out, Store store, const Version *version, bint with_previous) except -1 nogil:
    """Append a record of the event ring; answers where it begins, by way of its own size."""
    cdef size_t start = out.size
    cdef size_t size
    cdef EventRecord *record
    cdef Version *previous = NULL
    buffer_reserve(out, sizeof(EventRecord) + 8)
    memset(out.data + start, 0, sizeof(EventRecord))
    out.size += sizeof(EventRecord)
    append_event(out, version)
    size = out.size - start - sizeof(EventRecord)
    if with_previous:
        previous = event_previous(version, store.compact_revision)
        append_previous(out, previous)
    record = <EventRecord *>(out.data + start)
    record.event_size = <uint32_t>size
    record.previous_size = <uint32_t>(out.size - start - sizeof(EventRecord) - size)
    record.revision = version.mod_revision
    record.key_size = <uint32_t>version_key_size(version)
    size = key_value_size(version, OMIT_NOTHING)
    record.key_at = 1 + varint_size(size) + 1 + varint_size(record.key_size)
    if version_is_tombstone(version):
        record.flags |= EVENT_DELETE
        record.key_at += 2
    if with_previous:
        record.flags |= EVENT_HAS_PREVIOUS
    while (out.size - start) & 7:
        buffer_append(out, <const uint8_t *>b"\0", 1)
    (<EventRecord *>(out.data + start)).size = <uint32_t>(out.size - start)
    return 0


cdef class Events:
    """The event ring's writer."""

    def __cinit__(self, Store store, EventRing ring, list ports):
        self.store = store
        self.ring = ring
        self.ports = ports

    def __dealloc__(self):
        buffer_free(&self.records)

    def publish(self):
        """Make this turn's events visible and wake who follows; before the replies go out."""
        cdef Port port
        cdef bint follows = False
        cdef bint previous = False
        for port in self.ports:
            if port is not None and port.follows:
                follows = True
                previous = previous or port.wants_previous
        if follows and self.ring.shared.revision != self.store.revision:
            self._write(previous)
            self.ring.publish(self.store.revision)
            for port in self.ports:
                if port is not None and port.follows:
                    port.bell.ring()
        else:
            self.ring.publish(self.store.revision)
        self.writing = follows

    cdef int _write(self, bint previous) except -1:
        cdef Version *version = self.store.history_next(&self.cursor)
        cdef Version *following
        cdef size_t start
        self.records.size = 0
        while version != NULL:
            following = self.store.history_next(&self.cursor)
            start = self.records.size
            append_record(&self.records, self.store, version, previous)
            if following == NULL or following.mod_revision != version.mod_revision:
                (<EventRecord *>(self.records.data + start)).flags |= EVENT_LAST
            if self.records.size >= CHUNK_BYTES:
                self.ring.write(self.records.data, self.records.size)
                self.records.size = 0
            version = following
        self.ring.write(self.records.data, self.records.size)
        if self.records.capacity > 16 * CHUNK_BYTES:
            buffer_free(&self.records)
        return 0

    cdef int follow(
            self, Port port, uint64_t request_id, int64_t revision, bint previous) except -1:
        """A worker wants all events from `revision` on."""
        cdef Follow follow = Follow()
        follow.request_id = request_id
        follow.events = self
        follow.revision = revision
        follow.previous = previous
        port.wants_previous = previous
        self.store.history_seek(&follow.cursor, revision, 0)
        return port.start(follow)


cdef class Follow(LongReply):
    """All events from a revision on, up to where the ring goes on."""

    def __dealloc__(self):
        buffer_free(&self.records)

    cdef bint step(self, Port port) except -1:
        cdef size_t size
        cdef uint16_t flags = 0
        if self.records.size == self.sent:
            if self.revision < self.events.store.compact_revision:
                port.reply(
                    self.request_id, REPLY_END, ERROR_COMPACTED,
                    <uint64_t>self.events.store.compact_revision, NULL, 0)
                return True
            if not self._fill():
                return self._join(port)
        size = min(self.records.size - self.sent, <size_t>REPLY_SLICE_MAX, self.credit)
        if size == 0:
            self.waits = True
            return False
        if self.sent == 0:
            flags |= REPLY_FIRST
        if self.sent + size == self.records.size:
            flags |= REPLY_LAST
        port.reply(
            self.request_id, flags, 0, self.records.size, self.records.data + self.sent, size)
        self.sent += size
        self.credit -= size
        return False

    cdef bint _fill(self) except -1:
        """Encode the next message; False when there is nothing more."""
        cdef Store store = self.events.store
        cdef HistoryCursor ahead
        cdef Version *version
        cdef Version *following
        cdef size_t start
        self.records.size = self.sent = 0
        while self.records.size < CHUNK_BYTES:
            version = store.history_next(&self.cursor)
            if version == NULL:
                break
            ahead = self.cursor
            following = store.history_next(&ahead)
            start = self.records.size
            append_record(&self.records, store, version, self.previous)
            self.revision = version.mod_revision
            if following == NULL or following.mod_revision != version.mod_revision:
                (<EventRecord *>(self.records.data + start)).flags |= EVENT_LAST
                self.revision += 1
        return self.records.size != 0

    cdef bint _join(self, Port port) except -1:
        """There is nothing more: from here on the ring has it."""
        cdef FollowEnd end
        cdef Events events = self.events
        if not events.writing:
            events.store.history_seek(&events.cursor, events.store.revision + 1, 0)
            events.writing = True
        port.follows = True
        end.revision = events.store.revision
        end.position = events.ring.position
        port.reply(
            self.request_id, REPLY_FIRST | REPLY_LAST | REPLY_END, 0, sizeof(end),
            <const uint8_t *>&end, sizeof(end))
        return True
