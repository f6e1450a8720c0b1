"""Watch streams of one worker: requests in; created, canceled, progress out; who gets events.

Rules:
1. A live watcher gets events from the event ring as the core publishes them (`_fanout.pyx`).
2. A watcher is its next revision. One that starts in the past, whose stream does not take what it
   is sent, or that an enormous revision concerns, is not live: the core reads on for it
   (METHOD_WATCH), one message at a time and only when its stream has room. It is live again when it
   has come to where this worker is. So a slow client costs SEND_HIGH bytes and a request.
3. Between events, replies and requests the order is: the ring's head is read first, then replies
   are taken, then events up to that head. The core makes events visible before the replies of the
   same turn. So when the core says that a watcher has everything up to a revision, this worker is
   not beyond it, and live watchers skip what is below their next revision: no gap, no repeat.
4. `created` is queued before its watcher exists.
5. A worker that the ring has overrun, or that begins to watch, asks the core for all events
   (METHOD_FOLLOW) and goes on in the ring where that ends.
6. A progress request is answered when all events that were published when it came are delivered,
   if all watchers of its stream are live then; otherwise it is dropped, as in etcd.
"""

import cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, strlen

from quorate.core import limits
from quorate.core._bytes cimport Buffer, buffer_append, buffer_free, buffer_reserve, store_be32
from quorate.core._errors cimport ERROR_COMPACTED
from quorate.core._eventring cimport EventRecord
from quorate.core._record cimport (
    METHOD_FOLLOW, METHOD_UNFOLLOW, METHOD_WATCH, REPLY_END, REPLY_WINDOW, CatchUpRequest,
    FollowEnd,
)
from quorate.frontends._deadlines cimport wheel_clear, wheel_set
from quorate.frontends._watchindex cimport (
    WATCHER_CANCELED, WATCHER_DEAD, WATCHER_LIVE, WATCHER_NOTIFIES, WATCHER_QUEUED, WATCHER_TOLD,
    WATCHER_WAITS, Watcher, WatchStream, subject_key,
)
from quorate.frontends._watchrequest cimport (
    WATCH_REQUEST_CANCEL, WATCH_REQUEST_CREATE, WATCH_REQUEST_PROGRESS, WatchCreate, WatchRequest,
    decode_watch_request, is_empty_range,
)

cdef enum:
    RESPONSE_CREATED = 1
    RESPONSE_CANCELED = 2
    # Copied out of the ring at once, and delivered together.
    BATCH_BYTES = 262144

cdef size_t SEND_LOW = limits.WATCH_SEND_BYTES_LOW
cdef size_t REVISION_MAX = limits.WATCH_REVISION_BYTES_MAX
cdef size_t NOTES_SOFT = limits.WATCH_NOTES_MAX // 16
cdef uint32_t WATCHERS_MAX = limits.WATCHERS_PER_CONNECTION_MAX

cdef const char *COMPACTED = b"etcdserver: mvcc: required revision has been compacted"
cdef const char *EMPTY_RANGE = b"mvcc: watcher range is empty"
cdef const char *DUPLICATE_ID = b"mvcc: duplicate watch ID provided on the WatchStream"
cdef bytes TOO_MANY_TEXT = (
    f"etcdserver: too many watchers on this connection (at most {WATCHERS_MAX})".encode())
cdef const char *TOO_MANY = TOO_MANY_TEXT


@cython.no_gc_clear
cdef class Watches(FanOut):
    """The watch streams of all connections of one worker."""

    def __cinit__(
            self, *, double watch_progress_interval=limits.WATCH_PROGRESS_SECONDS_DEFAULT, **_):
        """`watch_progress_interval`: seconds."""
        self.progress_interval = <int64_t>(watch_progress_interval * 1e9)

    # --- what clients ask ------------------------------------------------------------------------

    cdef void _take_watch_request(
            self, Call *call, const uint8_t *data, size_t size) noexcept nogil:
        cdef WatchRequest request
        if not decode_watch_request(&request, data, size):
            self._end_unreadable(call)
        elif request.kind == WATCH_REQUEST_CREATE:
            self._create(call, &request.create)
        elif request.kind == WATCH_REQUEST_CANCEL:
            self._cancel_watcher(call, request.watch_id)
        elif request.kind == WATCH_REQUEST_PROGRESS:
            self._ask_progress(call)

    cdef WatchStream *_stream_of(self, Call *call) noexcept nogil:
        """The call's stream, made when first asked for; NULL without memory."""
        cdef WatchStream *stream = <WatchStream *>call.watch
        if stream == NULL:
            stream = <WatchStream *>calloc(1, sizeof(WatchStream))
            if stream != NULL:
                stream.call = call
                stream.timer.owner = stream
                stream.timer.kind = TIMER_WATCH
                call.watch = stream
                call.owed = &stream.request
                call.method = METHOD_WATCH
                self.stream_count += 1
        return stream

    cdef void _create(self, Call *call, WatchCreate *asked) noexcept nogil:
        cdef WatchStream *stream = self._stream_of(call)
        cdef Watcher *watcher
        cdef int64_t revision = self.reader.revision()
        cdef int64_t watch_id
        cdef const char *reason = NULL
        if stream == NULL:
            self._cut(call)
            return
        if asked.key.size == 0:
            # The smallest key.
            asked.key.data = <const uint8_t *>b"\0"
            asked.key.size = 1
        watch_id = asked.id
        if asked.start_revision < 0:
            reason = COMPACTED
        elif is_empty_range(&asked.key, &asked.end):
            reason = EMPTY_RANGE
        elif watch_id and self.index.find(stream, watch_id) != NULL:
            reason = DUPLICATE_ID
        elif call.peer.watchers >= WATCHERS_MAX:
            reason = TOO_MANY
        if reason != NULL:
            self._respond(call, revision, -1, RESPONSE_CREATED | RESPONSE_CANCELED, 0, reason)
            return
        if watch_id == 0:
            watch_id = self._choose_id(stream)
        if not self._respond(call, revision, watch_id, RESPONSE_CREATED, 0, NULL):
            return
        watcher = self.index.add(
            stream, watch_id, asked.key.data, asked.key.size, asked.end.data, asked.end.size,
            asked.flags)
        if watcher == NULL:
            self._cut(call)
            return
        call.peer.watchers += 1
        if asked.notifies:
            watcher.flags |= WATCHER_NOTIFIES
            if not stream.timer.is_set:
                self._set_notification(stream)
        if not self.follows and self.follow_id == 0:
            self.seen = revision
            self._follow(revision + 1)
        if 0 < asked.start_revision <= revision:
            self.behind_count += 1
            self._fall_behind(watcher, asked.start_revision)
        else:
            watcher.revision = max(revision + 1, asked.start_revision)
            watcher.flags |= WATCHER_LIVE
            stream.live_count += 1
            if asked.start_revision:
                watcher.flags |= WATCHER_WAITS
                stream.latest_start = max(stream.latest_start, asked.start_revision)

    cdef int64_t _choose_id(self, WatchStream *stream) noexcept nogil:
        """The next id from 0 up that is free."""
        while self.index.find(stream, stream.next_id) != NULL:
            stream.next_id += 1
        stream.next_id += 1
        return stream.next_id - 1

    cdef void _cancel_watcher(self, Call *call, int64_t watch_id) noexcept nogil:
        """End a watcher; of an id that is not there nothing is said."""
        cdef WatchStream *stream = <WatchStream *>call.watch
        cdef Watcher *watcher = NULL
        if stream != NULL:
            watcher = self.index.find(stream, watch_id)
        if watcher == NULL or watcher.flags & WATCHER_CANCELED:
            return
        if stream.asked == watcher:
            # The core's answer is under way; what it says comes before the end.
            watcher.flags |= WATCHER_CANCELED
            return
        self._remove(watcher)
        self._respond(call, self.reader.revision(), watch_id, RESPONSE_CANCELED, 0, NULL)

    cdef void _ask_progress(self, Call *call) noexcept nogil:
        cdef WatchStream *stream = <WatchStream *>call.watch
        if stream == NULL or stream.watcher_count == 0:
            return
        if stream.progress == 0:
            stream.next_waiting = self.waiting
            self.waiting = stream
        stream.progress = self.reader.revision()

    cdef bint _respond(
            self, Call *call, int64_t revision, int64_t watch_id, uint32_t what,
            int64_t compact_revision, const char *reason) noexcept nogil:
        """Send a WatchResponse without events; False when the call is over because of it."""
        cdef uint8_t[HEAD_BYTES_MAX + 128] message
        cdef uint8_t *at = self._write_head(message, revision, watch_id)
        cdef Buffer *held
        cdef size_t size
        at = _write_number(at, 24, (what & RESPONSE_CREATED) != 0)
        at = _write_number(at, 32, (what & RESPONSE_CANCELED) != 0)
        at = _write_number(at, 40, <uint64_t>compact_revision)
        if reason != NULL:
            size = min(strlen(reason), <size_t>120)
            at[0] = 50
            at[1] = <uint8_t>size
            memcpy(at + 2, reason, size)
            at += 2 + size
        size = at - message
        held = &(<WatchStream *>call.watch).held
        if self._is_over_bytes(call, held.size + size):
            self.calls_cut += 1
            self._cut(call)
            return False
        call.route.counts[COUNT_SENT] += 1
        if call.reply_left:
            buffer_reserve(held, 5 + size)
            held.data[held.size] = 0
            store_be32(held.data + held.size + 1, <uint32_t>size)
            held.size += 5
            buffer_append(held, message, size)
        else:
            self._queue_message(call, message, size)
        return True

    # --- who catches up --------------------------------------------------------------------------

    cdef void _fall_behind(self, Watcher *watcher, int64_t revision) noexcept nogil:
        """From this revision on the core reads for it."""
        cdef WatchStream *stream = watcher.stream
        if watcher.flags & WATCHER_LIVE:
            watcher.flags &= ~<uint32_t>WATCHER_LIVE
            stream.live_count -= 1
            self.behind_count += 1
        if watcher.flags & WATCHER_WAITS:
            watcher.flags &= ~<uint32_t>WATCHER_WAITS
            stream.is_start_gone = True
        watcher.flags |= WATCHER_QUEUED
        watcher.revision = revision
        watcher.next_behind = NULL
        watcher.previous_behind = stream.behind_last
        if stream.behind_last != NULL:
            stream.behind_last.next_behind = watcher
        else:
            stream.behind = watcher
        stream.behind_last = watcher
        self._ask_for_next(stream)

    cdef void _ask_for_next(self, WatchStream *stream) noexcept nogil:
        """Have the core read on for the first who is behind, once the stream has room."""
        cdef Call *call = <Call *>stream.call
        cdef Watcher *watcher = stream.behind
        cdef CatchUpRequest request
        if watcher == NULL or stream.asked != NULL or call.flags & CALL_ENDED:
            return
        if call.reply.size - call.reply_at > SEND_LOW:
            return      # `_drained` comes back here
        self._unqueue(watcher)
        stream.asked = watcher
        request.watch_id = watcher.id
        request.revision = watcher.revision
        request.flags = watcher.subject.flags
        request.key_size = watcher.subject.key_size
        stream.request.size = 0
        buffer_append(&stream.request, <const uint8_t *>&request, sizeof(request))
        buffer_append(
            &stream.request, subject_key(watcher.subject),
            watcher.subject.key_size + watcher.subject.end_size)
        call.flags |= CALL_ASKED
        call.taken = 0
        self._owe(call, OWES_REQUEST)

    cdef void _unqueue(self, Watcher *watcher) noexcept nogil:
        """Take a watcher out of the queue of those that catch up."""
        cdef WatchStream *stream = watcher.stream
        watcher.flags &= ~<uint32_t>WATCHER_QUEUED
        if watcher.previous_behind != NULL:
            watcher.previous_behind.next_behind = watcher.next_behind
        else:
            stream.behind = watcher.next_behind
        if watcher.next_behind != NULL:
            watcher.next_behind.previous_behind = watcher.previous_behind
        else:
            stream.behind_last = watcher.previous_behind

    cdef void _drained(self, Call *call) noexcept nogil:
        """The client took nearly everything."""
        self._ask_for_next(<WatchStream *>call.watch)

    cdef void _take_catch_up(
            self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
        """A piece of what the core has read for a watcher."""
        cdef WatchStream *stream = <WatchStream *>call.watch
        cdef Watcher *watcher = stream.asked
        cdef int64_t watch_id = watcher.id
        if not reply.flags & REPLY_END:
            watcher.flags |= WATCHER_TOLD
            if self._take_slice(call, reply, data, size) and stream.held.size:
                if call.reply_left == 0:
                    self._queue(call, stream.held.data, stream.held.size)
                    buffer_free(&stream.held)
            return
        if reply.error and reply.error != ERROR_COMPACTED or call.reply_left:
            self._cut(call)
            return
        call.flags &= ~<uint32_t>CALL_ASKED
        stream.asked = NULL
        if watcher.flags & WATCHER_CANCELED:
            self._remove(watcher)
            self._respond(call, self.reader.revision(), watch_id, RESPONSE_CANCELED, 0, NULL)
        elif reply.error:
            watcher.flags |= WATCHER_DEAD
            stream.dead_count += 1
            self.behind_count -= 1
            self._respond(
                call, self.reader.revision(), watch_id, RESPONSE_CANCELED, <int64_t>reply.extra,
                NULL)
        else:
            watcher.revision = <int64_t>reply.extra + 1
            # What has gone by of a giant is in no batch any more.
            if <int64_t>reply.extra >= max(self.seen, self.giant):
                watcher.flags |= WATCHER_LIVE
                stream.live_count += 1
                self.behind_count -= 1
            else:
                self._fall_behind(watcher, watcher.revision)
        if not call.flags & CALL_ENDED:
            self._ask_for_next(stream)

    cdef void _remove(self, Watcher *watcher) noexcept nogil:
        """Forget a watcher that the core is not being asked for."""
        cdef WatchStream *stream = watcher.stream
        if watcher.flags & WATCHER_WAITS:
            stream.is_start_gone = True
        if watcher.flags & WATCHER_LIVE:
            stream.live_count -= 1
        elif watcher.flags & WATCHER_DEAD:
            stream.dead_count -= 1
        else:
            self.behind_count -= 1
        if watcher.flags & WATCHER_QUEUED:
            self._unqueue(watcher)
        (<Call *>stream.call).peer.watchers -= 1
        self.index.remove(watcher)
        if self.index.watcher_count == 0:
            self._unfollow()

    cdef void _forget_watches(self, Call *call) noexcept nogil:
        """The call is over: so are its watchers."""
        cdef WatchStream *stream = <WatchStream *>call.watch
        cdef WatchStream **place = &self.waiting
        if stream == NULL:
            return
        if call.flags & CALL_ASKED:
            self._cancel(call)
        call.watch = NULL
        call.owed = NULL
        while stream.watchers != NULL:
            self._remove(stream.watchers)
        if stream.progress:
            while place[0] != stream:
                place = &place[0].next_waiting
            place[0] = stream.next_waiting
        wheel_clear(self.wheel, &stream.timer)
        buffer_free(&stream.request)
        buffer_free(&stream.held)
        free(stream)
        self.stream_count -= 1

    # --- the events of all keys ------------------------------------------------------------------

    cdef void _follow(self, int64_t revision) noexcept nogil:
        """Ask the core for all events from `revision` on."""
        cdef Call *call = self._new_call()
        cdef uint8_t previous = 0
        self.follows = False
        self.giant = 0
        self.records.size = 0
        self.follow_id = 0
        if call == NULL:
            return      # no call is left for us: `take_watched` tries again
        call.flags = CALL_FOLLOWS | CALL_ASKED | CALL_DEAF
        call.method = METHOD_FOLLOW
        call.extra = <uint64_t>revision
        buffer_append(&call.message, &previous, 1)
        self.follow_id = call.id
        self._owe(call, OWES_REQUEST)

    cdef void _unfollow(self) noexcept nogil:
        """Nobody watches any more."""
        cdef Call *call = self._call_of(self.follow_id)
        if call != NULL and call.flags & CALL_FOLLOWS:
            self._cancel(call)
            self._release(call)
        if not self.follows and self.follow_id == 0:
            return
        self.follow_id = 0
        self.follows = False
        self.records.size = 0
        call = self._new_call()
        if call == NULL:
            return      # the core goes on ringing
        call.flags = CALL_FOLLOWS | CALL_DEAF
        call.method = METHOD_UNFOLLOW
        self._owe(call, OWES_REQUEST)
        if call.owes == 0:
            self._release(call)

    cdef void _take_follow(
            self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil:
        """A piece of all events, or their end."""
        cdef FollowEnd end
        if reply.flags & REPLY_END:
            call.flags &= ~<uint32_t>CALL_ASKED
            self._release(call)
            self.follow_id = 0
            if reply.error or size != sizeof(FollowEnd):
                self._lose(<int64_t>reply.extra)
                return
            memcpy(&end, data, sizeof(FollowEnd))
            self.seen = end.revision
            self.reader.position = end.position
            self.follows = True
            return
        buffer_append(&self.records, data, size)
        self._deliver_records()
        call.taken += size
        if call.taken >= REPLY_WINDOW // 2:
            self._owe(call, OWES_PULL)

    cdef void _lose(self, int64_t compact_revision) noexcept nogil:
        """Compaction took events that were not delivered: every watcher asks for itself."""
        cdef Watcher *watcher
        cdef uint64_t i
        cdef int64_t missed = self.seen + 1
        for i in range(self.index.watchers_mask + 1):
            watcher = self.index.watchers[i]
            while watcher != NULL:
                if watcher.flags & WATCHER_LIVE and watcher.revision < compact_revision:
                    self._fall_behind(watcher, max(watcher.revision, missed))
                watcher = watcher.next_of_id
        self.seen = compact_revision - 1
        self._follow(compact_revision)

    cdef bint has_watched(self) noexcept nogil:
        """Whether `take_watched` has something to do."""
        if self.reader is None or self.index.watcher_count == 0:
            return False
        return self.follows and self.reader.position != self.reader.head()

    cdef uint64_t watched_head(self) noexcept nogil:
        """Up to where events are to be taken once replies were; see rule 3."""
        return self.reader.head() if self.reader is not None else 0

    cdef bint take_watched(self, uint64_t head) except -1 nogil:
        """Deliver events up to this head of the ring, a batch of them; True when there were any."""
        cdef bint moved = False
        if self.index.watcher_count == 0:
            return False
        if not self.follows and self.follow_id == 0:
            self._follow(self.seen + 1)
        if self.follows and self.reader.position != head:
            moved = True
            if not self.reader.copy(&self.records, head, BATCH_BYTES):
                self._follow(self.seen + 1)
            else:
                self._deliver_records()
        if self.waiting != NULL:
            self._tell_progress()
        return moved

    cdef int _deliver_records(self) except -1 nogil:
        """Deliver the whole revisions of `records`; the rest stays for later."""
        cdef size_t begin = 0           # of the first revision not delivered
        cdef size_t at = 0              # of the first revision not noted
        cdef size_t end = self._end_of_revision(0)
        cdef int64_t revision = self.seen
        while end != at:
            if self.notes.size > NOTES_SOFT * sizeof(Note):
                self._deliver(revision)
                begin = at
            revision = (<const EventRecord *>(self.records.data + at)).revision
            if revision == self.giant or not self._note_all(at, end):
                self._forget_notes()
                self._leave_behind(begin, end)
                self.giant = 0
                begin = end
            at = end
            end = self._end_of_revision(at)
        self._deliver(revision)
        self.records.size -= at
        if at and self.records.size:
            memmove(self.records.data, self.records.data + at, self.records.size)
        if self.records.size > REVISION_MAX or (self.records.size and self.giant):
            # More of this revision is to come; nobody gets it from here.
            at = self._leave_behind(0, self.records.size)
            if at:
                self.giant = (<const EventRecord *>self.records.data).revision
                self.records.size -= at
                memmove(self.records.data, self.records.data + at, self.records.size)
        elif self.records.size == 0 and self.records.capacity > 4 * BATCH_BYTES:
            buffer_free(&self.records)
        return 0

    # --- progress --------------------------------------------------------------------------------

    cdef void _tell_progress(self) noexcept nogil:
        """Answer the progress requests whose revision was delivered."""
        cdef WatchStream **place = &self.waiting
        cdef WatchStream *stream
        while place[0] != NULL:
            stream = place[0]
            if not self.follows or self.seen < stream.progress:
                place = &stream.next_waiting
                continue
            place[0] = stream.next_waiting
            stream.progress = 0
            if (stream.live_count and self._has_started(stream)
                    and stream.live_count + stream.dead_count == stream.watcher_count):
                self._respond(<Call *>stream.call, self.seen, -1, 0, 0, NULL)

    cdef bint _has_started(self, WatchStream *stream) noexcept nogil:
        """Whether no watcher of the stream waits for a later revision to begin with."""
        cdef Watcher *watcher = stream.watchers
        if stream.latest_start <= self.seen or not stream.is_start_gone:
            return stream.latest_start <= self.seen
        stream.latest_start = 0
        stream.is_start_gone = False
        while watcher != NULL:
            if watcher.flags & WATCHER_WAITS:
                stream.latest_start = max(stream.latest_start, watcher.revision)
            watcher = watcher.next_of_stream
        return stream.latest_start <= self.seen

    cdef void _set_notification(self, WatchStream *stream) noexcept nogil:
        """Wait for the interval, and up to a tenth more so that streams do not go in step."""
        cdef uint64_t jitter = self.index.random() % (<uint64_t>self.progress_interval // 10 + 1)
        wheel_set(
            self.wheel, &stream.timer, self.now + self.progress_interval + <int64_t>jitter)

    cdef void notify_progress(self, WatchStream *stream) noexcept nogil:
        """The interval is over: tell the watchers that asked for it and got nothing meanwhile."""
        cdef Watcher *watcher = stream.watchers
        cdef Call *call = <Call *>stream.call
        cdef bint anybody = False
        while watcher != NULL and not call.flags & CALL_ENDED:
            if watcher.flags & WATCHER_NOTIFIES:
                anybody = True
                if (watcher.flags & WATCHER_LIVE and not watcher.flags & WATCHER_TOLD
                        and not call.reply_left and watcher.revision <= self.seen + (
                            0 if watcher.flags & WATCHER_WAITS else 1)):
                    if not self._respond(call, self.seen, watcher.id, 0, 0, NULL):
                        return
                watcher.flags &= ~<uint32_t>WATCHER_TOLD
            watcher = watcher.next_of_stream
        if anybody:
            self._set_notification(stream)
