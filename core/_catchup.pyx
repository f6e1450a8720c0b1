"""What one watcher has missed, read off the history as finished WatchResponses.

Rules:
1. One request gets one message, or its fragments: whole revisions, about CHUNK_BYTES of them, and
   the revision through which nothing is missing now. Whoever is further behind asks again, so a
   watcher half a million revisions behind is one short step among others at a time.
2. A message's size is known before its first byte: the walk is made twice, to measure and to send.
   If that takes more than one step, compaction waits meanwhile, as it does for a hash. When it is
   a slow client that both wait for, what is left of the message is copied (`relieve`).
3. A revision is never split, however large, unless its watcher asked for fragments.
4. A watcher of one key walks that key's own versions, unless they are very many.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp

from quorate.core import limits
from quorate.core._bytes cimport buffer_append, buffer_free, buffer_reserve
from quorate.core._errors cimport ERROR_COMPACTED
from quorate.core._events cimport (
    Events, append_event, append_previous, event_previous, event_size, previous_size,
)
from quorate.core._keytree cimport compare_keys
from quorate.core._mvcc cimport Store
from quorate.core._port cimport Port
from quorate.core._protobuf cimport varint_size, write_varint
from quorate.core._record cimport (
    REPLY_END, REPLY_FIRST, REPLY_LAST, REPLY_SLICE_MAX, WATCH_FRAGMENT, WATCH_NO_DELETE,
    WATCH_NO_PUT, WATCH_PREVIOUS, CatchUpRequest,
)
from quorate.core._reply cimport Header, append_header, append_number
from quorate.core._version cimport Version, version_is_tombstone, version_key, version_key_size

cdef enum:
    TAG_WATCH_ID = 16
    TAG_FRAGMENT = 56
    TAG_EVENTS = 90
    # A message ends with the first revision that makes it as long as this: it fits one record.
    CHUNK_BYTES = 32768
    # Versions looked at in one step: about 100 microseconds.
    STEP_VERSIONS_MAX = 2000
    # Steps back along a key's versions before the whole history is walked instead.
    CHAIN_STEPS_MAX = 256


cdef size_t COPY_MAX = limits.CATCH_UP_COPY_BYTES_MAX
cdef size_t COPIES_MAX = limits.CATCH_UP_COPIES_BYTES_MAX


cdef CatchUp catch_up(
        Events events, const Header *header, size_t fragment_bytes_max, uint64_t request_id,
        const CatchUpRequest *asked, const unsigned char *range, size_t range_size):
    """The long reply to a METHOD_WATCH; `range` is the key and the range's end."""
    cdef CatchUp reply = CatchUp()
    cdef Store store = events.store
    reply.source = events
    reply.store = store
    reply.header = header[0]
    reply.fragment_bytes_max = fragment_bytes_max
    reply.request_id = request_id
    reply.asked = asked[0]
    buffer_append(&reply.range, range, range_size)
    return reply


cdef class CatchUp(LongReply):
    """The next events of one watcher."""

    def __dealloc__(self):
        buffer_free(&self.range)
        buffer_free(&self.out)

    cdef void _seek(self) noexcept:
        """Go to the first version wanted."""
        self.by_chain = self.range.size == self.asked.key_size and self._by_chain()
        if not self.by_chain:
            self.store.history_seek(&self.start.cursor, self.asked.revision, 0)
        self.at = self.start
        self.compact_revision = self.store.compact_revision
        self.has_begun = True

    cdef bint _by_chain(self) noexcept:
        """Find the first version wanted on the key's own chain; False when it is far back."""
        cdef Version *version = <Version *>self.store.tree.get(
            self.range.data, self.asked.key_size)
        cdef int steps = 0
        self.start.version = NULL
        while version != NULL and version.mod_revision >= self.asked.revision:
            if steps == CHAIN_STEPS_MAX:
                return False
            steps += 1
            self.start.version = version
            version = version.previous
        return True

    cdef Version *_walk(self, Place *place) noexcept:
        """The version at the place, which goes on behind it; NULL at the end."""
        cdef Version *version = place.version
        if not self.by_chain:
            return self.store.history_next(&place.cursor)
        if version != NULL:
            place.version = version.newer
        return version

    cdef bint _matches(self, const Version *version) noexcept:
        cdef const uint8_t *key = version_key(version)
        cdef size_t size = version_key_size(version)
        cdef const uint8_t *end = self.range.data + self.asked.key_size
        cdef size_t end_size = self.range.size - self.asked.key_size
        if self.asked.flags & (WATCH_NO_DELETE if version_is_tombstone(version) else WATCH_NO_PUT):
            return False
        if end_size == 0:
            return size == self.asked.key_size and memcmp(key, self.range.data, size) == 0
        if compare_keys(key, size, self.range.data, self.asked.key_size) < 0:
            return False
        if end_size == 1 and end[0] == 0:
            return True
        return compare_keys(key, size, end, end_size) < 0

    cdef size_t _size(self, const Version *version) noexcept:
        """Bytes of the event's field."""
        cdef size_t size = event_size(version)
        if self.asked.flags & WATCH_PREVIOUS:
            size += previous_size(event_previous(version, self.compact_revision))
        return 1 + varint_size(size) + size

    cdef bint step(self, Port port) except -1:
        if not self.sending:
            if not self.holding and self.asked.revision < self.store.compact_revision:
                port.reply(
                    self.request_id, REPLY_END, ERROR_COMPACTED,
                    <uint64_t>self.store.compact_revision, NULL, 0)
                return True
            if not self.has_begun:
                self._seek()
            if not self._measure():
                self._hold()
                return False
            if self.events:
                self._begin()
        if self.sending:
            if not self._send(port):
                if self.events_left or self.is_fragment:
                    self._hold()
                return False
            if self.is_fragment:
                self.start = self.at
                self._hold()
                return False
        port.reply(self.request_id, REPLY_END, 0, <uint64_t>self.through, NULL, 0)
        return True

    cdef bint _measure(self) except -1:
        """Go on until a message is full or nothing is left; False when the step is used up."""
        cdef Place before
        cdef Version *version
        cdef size_t size
        cdef int steps = 0
        if self.is_fragment:
            self.is_fragment = False
            self.events = self.events_size = 0
        while True:
            before = self.at
            version = self._walk(&self.at)
            if version == NULL:
                self.through = self.store.revision
                return True
            if version.mod_revision != self.measured and self.measured:
                self.through = self.measured
                if self.events_size >= CHUNK_BYTES or steps >= STEP_VERSIONS_MAX:
                    self.at = before
                    return True
            if steps >= STEP_VERSIONS_MAX:
                self.at = before
                return False
            steps += 1
            self.measured = version.mod_revision
            if not self._matches(version):
                continue
            size = self._size(version)
            if (self.asked.flags & WATCH_FRAGMENT and self.events
                    and self.events_size + size > self.fragment_bytes_max):
                self.at = before
                self.is_fragment = True
                return True
            self.events += 1
            self.events_size += size

    cdef int _begin(self) except -1:
        """Begin the message that is measured."""
        self.out.size = self.out_at = 0
        append_header(
            &self.out, &self.header, self.measured if self.is_fragment else self.through)
        append_number(&self.out, TAG_WATCH_ID, <uint64_t>self.asked.watch_id)
        append_number(&self.out, TAG_FRAGMENT, self.is_fragment)
        self.message_size = self.message_left = self.out.size + self.events_size
        self.events_left = self.events
        self.next = self.start
        self.sending = True
        self.source.caught_up += self.events
        return 0

    cdef bint _send(self, Port port) except -1:
        """Send at most one slice; True when the message is whole."""
        cdef uint16_t flags = 0
        cdef size_t size
        if self.message_left == self.message_size:
            flags = REPLY_FIRST
        self._fill(REPLY_SLICE_MAX)
        size = min(self.out.size - self.out_at, <size_t>REPLY_SLICE_MAX, self.credit)
        if size == 0:
            self.waits = True
            return False
        if size == self.message_left:
            flags |= REPLY_LAST
        port.reply(
            self.request_id, flags, 0, self.message_size, self.out.data + self.out_at, size)
        self.out_at += size
        self.credit -= size
        self.message_left -= size
        self.sending = self.message_left != 0
        return not self.sending

    cdef int _fill(self, size_t until) except -1:
        """Encode events until so many bytes wait."""
        cdef Version *version
        cdef Version *previous
        cdef size_t size
        if self.out_at == self.out.size:
            self.out.size = self.out_at = 0
        while self.events_left and self.out.size - self.out_at < until:
            version = self._walk(&self.next)
            if version == NULL:
                raise AssertionError(f"{self.events_left} events of {self.events} are gone")
            if not self._matches(version):
                continue
            previous = NULL
            size = event_size(version)
            if self.asked.flags & WATCH_PREVIOUS:
                previous = event_previous(version, self.compact_revision)
                size += previous_size(previous)
            buffer_reserve(&self.out, 11)
            self.out.data[self.out.size] = TAG_EVENTS
            self.out.size = write_varint(
                self.out.data + self.out.size + 1, size) - self.out.data
            append_event(&self.out, version)
            append_previous(&self.out, previous)
            self.events_left -= 1
        return 0

    def _hold(self):
        """It takes another step: what was measured must stay."""
        if not self.holding:
            self.holding = True
            self.held = self.store.hold()

    cdef bint hinders(self) noexcept:
        return self.holding

    cdef int relieve(self) except -1:
        """Compaction waits: copy what is left of the message if there is memory for it."""
        cdef size_t size = self.message_left
        if (not self.holding or not self.sending or self.is_fragment
                or self.store.finished_revision == self.store.compact_revision
                or size > COPY_MAX or self.source.copied + size > COPIES_MAX):
            return 0
        self.copied = size
        self.source.copied += size
        self._fill(size)
        self._release()
        return 0

    cdef void _release(self) noexcept:
        if self.holding:
            self.holding = False
            self.store.release_hold(self.held)

    cdef void finish(self) noexcept:
        self._release()
        self.source.copied -= self.copied
        self.copied = 0
