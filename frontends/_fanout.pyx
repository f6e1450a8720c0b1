"""Events to many: matched once per subject, put together once, copied behind a head for each.

Rules:
1. The core has encoded the events; a subject's are gathered into one block, and each of its
   watchers gets them behind a head of some bytes of its own.
2. Whole revisions are delivered, or none. A revision too large for that is left to the core, for
   all whom it concerns.
3. What a connection gets is sent while it is in the cache: with ten thousand watchers of a key,
   what one event means to all of them is far larger than that.
"""

import cython
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from quorate.core import limits
from quorate.core._bytes cimport buffer_append, buffer_free, buffer_reserve, store_be32
from quorate.core._eventring cimport (
    EVENT_DELETE, EVENT_HAS_PREVIOUS, EVENT_LAST, EventReader, EventRecord,
)
from quorate.core._protobuf cimport varint_size, write_varint
from quorate.core._record cimport WATCH_NO_DELETE, WATCH_NO_PUT, WATCH_PREVIOUS
from quorate.frontends._watchindex cimport (
    WATCHER_LIVE, WATCHER_TOLD, Subject, Watcher, WatchIndex,
)

cdef enum:
    TAG_EVENTS = 90

cdef size_t SEND_HIGH = limits.WATCH_SEND_BYTES_HIGH
cdef size_t SEND_LOW = limits.WATCH_SEND_BYTES_LOW
cdef size_t PEER_HIGH = limits.WATCH_CONNECTION_BYTES_HIGH
cdef size_t WORKER_HIGH = limits.WATCH_WORKER_BYTES_HIGH
cdef size_t NOTES_MAX = limits.WATCH_NOTES_MAX
cdef size_t MESSAGE_MAX = limits.WATCH_MESSAGE_BYTES_MAX


@cython.no_gc_clear
cdef class FanOut(Replies):
    """From the events of all keys to the watchers of some."""

    def __cinit__(self, *, EventReader events=None, watch_seed=None, **_):
        """`events`: the ring of all events, or Watch is not served; a `watch_seed` is for tests."""
        self.reader = events
        self.index = WatchIndex(watch_seed)

    def __dealloc__(self):
        buffer_free(&self.records)
        buffer_free(&self.found)
        buffer_free(&self.notes)
        buffer_free(&self.touched)
        buffer_free(&self.block)

    cdef void _fall_behind(self, Watcher *watcher, int64_t revision) noexcept nogil:
        """The watcher is not live any more: the core reads on for it from this revision."""

    cdef void _send_early(self, Peer *peer) noexcept nogil:
        """Send what waits for a connection, or leave it to the end of the round.

        Nothing is closed or freed by it: a delivery goes on.
        """

    cdef size_t _end_of_revision(self, size_t at) noexcept nogil:
        """Where the records of the revision end that begins here; `at` if some are missing."""
        cdef size_t end = at
        cdef const EventRecord *record
        while end + sizeof(EventRecord) <= self.records.size:
            record = <const EventRecord *>(self.records.data + end)
            if record.size > self.records.size - end:
                break
            end += record.size
            if record.flags & EVENT_LAST:
                return end
        return at

    cdef bint _note_all(self, size_t at, size_t end) except -1 nogil:
        """Note whom these records concern; False when it is too much."""
        cdef const EventRecord *record
        while at < end:
            record = <const EventRecord *>(self.records.data + at)
            self._note(record)
            if self.notes.size > NOTES_MAX * sizeof(Note):
                return False
            at += record.size
        return True

    cdef int _note(self, const EventRecord *record) except -1 nogil:
        """Note the subjects that an event concerns."""
        cdef Subject **subject
        cdef Touched *touched
        cdef Touched fresh
        cdef Note note
        cdef uint32_t place
        cdef size_t i
        self._match(record)
        subject = <Subject **>self.found.data
        for i in range(self.found.size // sizeof(Subject *)):
            if subject[i].touched == 0:
                fresh.subject = subject[i]
                fresh.first = fresh.last = fresh.count = 0
                buffer_append(&self.touched, <const uint8_t *>&fresh, sizeof(Touched))
                subject[i].touched = <uint32_t>(self.touched.size // sizeof(Touched))
            touched = <Touched *>self.touched.data + (subject[i].touched - 1)
            note.record = record
            note.next = 0
            buffer_append(&self.notes, <const uint8_t *>&note, sizeof(Note))
            place = <uint32_t>(self.notes.size // sizeof(Note))
            if touched.last:
                (<Note *>self.notes.data + (touched.last - 1)).next = place
            else:
                touched.first = place
            touched.last = place
            touched.count += 1
        return 0

    cdef int _match(self, const EventRecord *record) except -1 nogil:
        """The subjects that want this event, in `found`."""
        cdef Subject **subject
        cdef uint32_t unwanted = WATCH_NO_DELETE if record.flags & EVENT_DELETE else WATCH_NO_PUT
        cdef size_t count, i
        cdef size_t kept = 0
        self.found.size = 0
        self.index.match(
            <const uint8_t *>record + sizeof(EventRecord) + record.key_at, record.key_size,
            &self.found)
        subject = <Subject **>self.found.data
        count = self.found.size // sizeof(Subject *)
        for i in range(count):
            if not subject[i].flags & unwanted:
                subject[kept] = subject[i]
                kept += 1
        self.found.size = kept * sizeof(Subject *)
        return 0

    cdef void _forget_notes(self) noexcept nogil:
        cdef Touched *touched = <Touched *>self.touched.data
        cdef size_t i
        for i in range(self.touched.size // sizeof(Touched)):
            touched[i].subject.touched = 0
        self.touched.size = self.notes.size = 0

    cdef size_t _leave_behind(self, size_t at, size_t end) except? 1 nogil:
        """Whom these records concern gets them from the core; answers where the whole ones end."""
        cdef const EventRecord *record
        cdef Subject **subject
        cdef Watcher *watcher
        cdef size_t i
        while at + sizeof(EventRecord) <= end:
            record = <const EventRecord *>(self.records.data + at)
            if record.size > end - at:
                break
            self._match(record)
            subject = <Subject **>self.found.data
            for i in range(self.found.size // sizeof(Subject *)):
                watcher = subject[i].watchers
                while watcher != NULL:
                    if watcher.flags & WATCHER_LIVE and watcher.revision <= record.revision:
                        self._fall_behind(watcher, record.revision)
                    watcher = watcher.next_of_subject
            if record.flags & EVENT_LAST:
                self.seen = record.revision
            at += record.size
        return at

    cdef int _deliver(self, int64_t revision) except -1 nogil:
        """Send what was noted: everything up to this revision."""
        cdef Touched *touched = <Touched *>self.touched.data
        cdef size_t i
        for i in range(self.touched.size // sizeof(Touched)):
            self._deliver_to(&touched[i])
        self._forget_notes()
        self.seen = max(self.seen, revision)
        return 0

    cdef int _deliver_to(self, const Touched *touched) except -1 nogil:
        """Send one subject's events to all its live watchers."""
        cdef const Note *notes = <const Note *>self.notes.data - 1
        cdef Subject *subject = touched.subject
        cdef Watcher *watcher = subject.watchers
        cdef int64_t first = notes[touched.first].record.revision
        cdef int64_t last = notes[touched.last].record.revision
        cdef int64_t wanted
        cdef size_t skipped
        cdef bint is_whole = self._gather_block(subject, touched.first)
        while watcher != NULL:
            if watcher.flags & WATCHER_LIVE and watcher.revision <= last:
                wanted = max(first, watcher.revision)
                skipped = 0
                if wanted > first:
                    skipped = self._skip(subject, touched.first, wanted)
                if not is_whole or self._is_slow(<Call *>watcher.stream.call):
                    self._fall_behind(watcher, wanted)
                elif skipped < self.block.size:
                    self.events_sent += touched.count
                    self._send_events(
                        watcher, last, self.block.data + skipped, self.block.size - skipped)
            watcher = watcher.next_of_subject
        return 0

    cdef bint _gather_block(self, const Subject *subject, uint32_t place) except -1 nogil:
        """Put the events that begin with this note into `block`; False: the core has to do it."""
        cdef const Note *note
        cdef const EventRecord *record
        cdef const uint8_t *event
        cdef size_t size
        self.block.size = 0
        while place:
            note = <const Note *>self.notes.data + (place - 1)
            record = note.record
            if subject.flags & WATCH_PREVIOUS and not record.flags & EVENT_HAS_PREVIOUS:
                return False
            size = _size_of(subject, record)
            event = <const uint8_t *>record + sizeof(EventRecord)
            buffer_reserve(&self.block, 11 + size)
            self.block.data[self.block.size] = TAG_EVENTS
            self.block.size = write_varint(
                self.block.data + self.block.size + 1, size) - self.block.data
            # The previous key-value lies right behind the event.
            memcpy(self.block.data + self.block.size, event, size)
            self.block.size += size
            if self.block.size > MESSAGE_MAX:
                return False
            place = note.next
        return True

    cdef size_t _skip(
            self, const Subject *subject, uint32_t place, int64_t revision) noexcept nogil:
        """Bytes of the events in `block` that are older than this revision."""
        cdef const Note *note
        cdef size_t skipped = 0
        cdef size_t size
        while place:
            note = <const Note *>self.notes.data + (place - 1)
            if note.record.revision >= revision:
                break
            size = _size_of(subject, note.record)
            skipped += 1 + varint_size(size) + size
            place = note.next
        return skipped

    cdef void _send_events(
            self, Watcher *watcher, int64_t revision, const uint8_t *events,
            size_t size) noexcept nogil:
        """One message: prefix, head, events."""
        cdef Call *call = <Call *>watcher.stream.call
        cdef uint8_t[HEAD_BYTES_MAX] head
        cdef size_t head_size = self._write_head(head + 5, revision, watcher.id) - head
        head[0] = 0
        store_be32(head + 1, <uint32_t>(head_size - 5 + size))
        self._queue(call, head, head_size)
        self._queue(call, events, size)
        self._resume(call)
        if call.peer.reply_bytes >= call.peer.early:
            call.peer.early = call.peer.reply_bytes + EARLY_BYTES
            self._send_early(call.peer)
        watcher.flags |= WATCHER_TOLD
        call.route.counts[COUNT_SENT] += 1

    cdef uint8_t *_write_head(
            self, uint8_t *at, int64_t revision, int64_t watch_id) noexcept nogil:
        """The header and the watch id; answers the place behind."""
        cdef uint8_t *start = at
        at += 2
        at = _write_number(at, 8, self.reader.shared.cluster_id)
        at = _write_number(at, 16, self.reader.shared.member_id)
        at = _write_number(at, 24, <uint64_t>revision)
        at = _write_number(at, 32, self.reader.shared.raft_term)
        start[0] = 10
        start[1] = <uint8_t>(at - start - 2)
        return _write_number(at, 16, <uint64_t>watch_id)

    cdef bint _is_slow(self, const Call *call) noexcept nogil:
        """Whether the stream does not take what it is sent, or is amid a message of the core's."""
        cdef size_t limit = SEND_HIGH if self.reply_bytes <= WORKER_HIGH else SEND_LOW
        return (call.reply_left != 0 or call.reply.size - call.reply_at > limit
                or call.peer.reply_bytes > PEER_HIGH)


cdef inline size_t _size_of(const Subject *subject, const EventRecord *record) noexcept nogil:
    """Bytes of the event as this subject's watchers get it."""
    if subject.flags & WATCH_PREVIOUS:
        return record.event_size + record.previous_size
    return record.event_size
