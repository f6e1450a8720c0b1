"""The sockets of one worker.

Rules:
1. All sockets live in one epoll set. Trio waits for that one descriptor and then calls `turn`,
   which goes round until nothing moves: receive and feed, reply ring, one send per connection.
   Python runs per turn, never per request.
2. A round reads a socket at most once and sends to it at most once; requests of a round become
   visible to the core together.
3. While the request ring is full nothing is read from any socket: the kernel holds clients back.
4. A socket that takes no more bytes has at most limits.SEND_BYTES_MAX framed for it, and is read
   from no more once its replies pile up.
5. Sleep is announced before the last look at the rings, so that no doorbell is missed.
6. A socket whose first bytes are not HTTP/2's preface is given to Python with those bytes, and is
   ours no more.
"""

import cython
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close

from typing import NamedTuple

from quorate.core import limits
from quorate.core._bytes cimport buffer_append, buffer_free
from quorate.core._ring cimport Doorbell
from quorate.frontends._deadlines cimport Timer, wheel_clear, wheel_next, wheel_pop, wheel_set
from quorate.frontends._calls cimport EVENT_HTTP1, TIMER_CLIENT, TIMER_WATCH, Call, Event, Peer
from quorate.frontends._grpc cimport Grpc
from quorate.frontends._watchindex cimport WatchStream
from quorate.frontends._http2 cimport (
    FRAME_ROOM, PREFACE_SIZE, http2_finished, http2_queued, http2_tick,
)
from quorate.frontends._http2 import PREFACE
from quorate.frontends.counters import (
    RECEIVED_BYTES, SENT_BYTES, SLOW_WATCHERS, WATCHERS, WATCH_EVENTS, WATCH_STREAMS,
)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int operation, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int at_most, int milliseconds)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLEXCLUSIVE

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int poll(pollfd *waiting, unsigned long count, int milliseconds)
    short POLLIN

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/socket.h>
    static inline int quorate_accept(int fd) {
        int one = 1, client = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        /* Fails on Unix sockets, which have no delay to switch off. */
        if (client >= 0) setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        return client;
    }
    """
    int quorate_accept(int fd) nogil
    ssize_t recv(int fd, void *data, size_t size, int flags) nogil
    ssize_t send(int fd, const void *data, size_t size, int flags) nogil
    int MSG_NOSIGNAL

cdef enum:
    EVENTS_PER_ROUND = 256
    # A burst of connections must not keep those that are here waiting.
    ACCEPTS_PER_ROUND = 64
    REPLIES_PER_ROUND = 1024

cdef int64_t SECOND = 1_000_000_000
cdef size_t RECEIVE_MAX = limits.RECEIVE_BYTES
cdef size_t SEND_MAX = limits.SEND_BYTES_MAX
cdef size_t REPLY_HIGH = limits.REPLY_BYTES_HIGH
cdef size_t QUEUED_HIGH = limits.QUEUED_FRAMES_HIGH
cdef int64_t FIRST_BYTES = <int64_t>(limits.FIRST_BYTES_SECONDS * SECOND)
cdef int64_t SEND_STALL = <int64_t>(limits.SEND_STALL_SECONDS * SECOND)
cdef int64_t TURN_MAX = <int64_t>(limits.TURN_SECONDS_MAX * SECOND)
cdef int64_t ACCEPT_PAUSE = <int64_t>(limits.ACCEPT_PAUSE_SECONDS * SECOND)
# A client is looked at this often, or when its next ping is due.
cdef int64_t LOOK_AFTER = 8 * SECOND
cdef bytes PREFACE_BYTES = PREFACE
cdef const char *preface = PREFACE_BYTES


cdef int64_t _clock() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * SECOND + now.tv_nsec


class Statistics(NamedTuple):
    """Counters since the start, as frontends/counters.py names them."""

    methods: dict
    named: dict


@cython.no_gc_clear
cdef class Pump(Grpc):
    """All sockets and calls of a worker; keywords are those of `Grpc`, and the two doorbells."""

    def __cinit__(self, *, listeners=(), Doorbell bell=None, Doorbell core_bell=None, **_):
        """`listeners`: descriptors of listening sockets, used from `accept` on; not closed here."""
        cdef epoll_event event
        self.bell = Doorbell() if bell is None else bell
        self.core_bell = core_bell
        self.fd = epoll_create1(EPOLL_CLOEXEC)
        self.inbox = <uint8_t *>malloc(RECEIVE_MAX)
        self.outbox = <uint8_t *>malloc(SEND_MAX + FRAME_ROOM)
        if self.fd < 0 or self.inbox == NULL or self.outbox == NULL:
            raise MemoryError("no memory for a pump")
        self.set_now(_clock())
        self.bell_source.kind = SOURCE_DOORBELL
        self.bell_source.fd = self.bell.fd
        event.events = EPOLLIN
        event.data.ptr = &self.bell_source
        if epoll_ctl(self.fd, EPOLL_CTL_ADD, self.bell.fd, &event) != 0:
            raise OSError(errno, "a doorbell can't be waited for")
        for fd in listeners:
            self._add_listener(fd)

    def __dealloc__(self):
        cdef Source *source
        while self.clients != NULL:
            self._forget(self.clients)
        while self.listeners != NULL:
            source = self.listeners
            self.listeners = source.next
            free(source)
        free(self.inbox)
        free(self.outbox)
        if self.fd >= 0:
            close(self.fd)

    def _add_listener(self, int fd):
        cdef Source *source = <Source *>calloc(1, sizeof(Source))
        if source == NULL:
            raise MemoryError("no memory for a listener")
        source.kind = SOURCE_LISTENER
        source.fd = fd
        source.next = self.listeners
        self.listeners = source

    # --- what trio calls --------------------------------------------------------------------------

    def turn(self, double linger_seconds=0.0):
        """Go round until nothing moves and answer what Python is to do.

        After traffic it lingers for more, waiting without the GIL, because going back to trio costs
        more than a request does. Afterwards wait until `fd` is readable or `next_deadline` has
        passed, and call it again.
        """
        cdef int linger = <int>(linger_seconds * 1000.0 + 0.5)
        with nogil:
            self._turn(linger)
        return self.take_events()

    def next_deadline(self):
        """Seconds from now after which a turn is due though nothing happens; inf for never."""
        cdef int64_t due = wheel_next(self.wheel)
        if self.accept_again and (due < 0 or self.accept_again < due):
            due = self.accept_again
        return max(0.0, (due - _clock()) / 1e9) if due >= 0 else float("inf")

    def accept(self):
        """From now on take connections from the listening sockets."""
        self._listen(True)

    def drain(self):
        """Take no new connections or calls; send clients away. `idle` says when they are done."""
        cdef Client *client = self.clients
        self.close_listeners()
        self.is_draining = True
        while client != NULL:
            if client.is_open:
                self.shut_down_peer(&client.peer)
            else:
                self._leave(client)
            client = client.next

    @property
    def idle(self):
        """Whether no call is under way and nothing waits to be sent."""
        cdef Client *client = self.clients
        if self.calls_live or self.events.size or self.dirty != NULL or self.has_requests:
            return False
        while client != NULL:
            if client.unsent.size:
                return False
            client = client.next
        return True

    @property
    def clients_gone(self):
        """How many of the connections that were accepted are over."""
        return self.accepted - self.clients_live

    def adopt(self, int fd):
        """Take over a connected socket, made non-blocking by the caller; the pump closes it."""
        self.set_now(_clock())
        if not self._add_client(fd):
            raise OSError(errno, "a socket can't be waited for")

    def close_listeners(self):
        """Accept no more; the sockets themselves are the caller's."""
        cdef Source *source
        self._listen(False)
        while self.listeners != NULL:
            source = self.listeners
            self.listeners = source.next
            free(source)

    def gauges(self):
        """What is alive now, and what was counted since the start, by name."""
        return {
            **Grpc.gauges(self),
            "clients_live": self.clients_live,
            "accepted": self.accepted,
            "dropped": self.dropped,
            "handed_over": self.handed_over,
            "rounds": self.rounds,
        }

    def statistics(self):
        """What the worker's metrics need: hot calls by path, and bytes of all connections."""
        return Statistics(self.method_counts(), {
            RECEIVED_BYTES: self.bytes_received,
            SENT_BYTES: self.bytes_sent,
            WATCH_EVENTS: self.events_sent,
            WATCHERS: self.index.watcher_count,
            SLOW_WATCHERS: self.behind_count,
            WATCH_STREAMS: self.stream_count,
        })

    # --- one turn ---------------------------------------------------------------------------------

    cdef void _turn(self, int linger) noexcept nogil:
        """Rounds until nothing moves, Python has work, or time is over; then announce our sleep."""
        cdef int64_t began
        cdef bint has_moved = False
        self._wake()
        self.set_now(_clock())
        began = self.now
        while True:
            if self._round(0):
                has_moved = True
            elif self.owing != NULL:
                self._await_room()
            elif not linger or not has_moved or self.events.size or not self._linger(linger):
                break
            if self.events.size or self.now - began > TURN_MAX:
                break
        self.bell.announce_sleep()
        self.is_asleep = True
        if self.dirty != NULL or self._has_input():
            # There is more to do at once: make `fd` readable.
            self.bell.ring()

    cdef bint _round(self, int milliseconds) noexcept nogil:
        """Everything once; False when nothing moved."""
        cdef epoll_event events[EVENTS_PER_ROUND]
        cdef int count, i
        cdef uint64_t head
        cdef bint moved = self.dirty != NULL
        self.rounds += 1
        count = epoll_wait(self.fd, events, EVENTS_PER_ROUND, milliseconds)
        self.set_now(_clock())
        if self.owing != NULL:
            self.pay_owed()
        for i in range(count):
            if self._take_events_of(<Source *>events[i].data.ptr, events[i].events):
                moved = True
        head = self.watched_head()
        if self.replies is not None and self.take_replies(REPLIES_PER_ROUND):
            moved = True
        if self.take_watched(head):
            moved = True
        self._check_timers()
        self._flush_all()
        if self.publish() and self.core_bell is not None:
            self.core_bell.ring()
        return moved

    cdef bint _has_input(self) noexcept nogil:
        """Whether the core has published something that was not taken yet."""
        return (self.replies is not None and not self.replies.empty()) or self.has_watched()

    cdef bint _linger(self, int milliseconds) noexcept nogil:
        """Wait a little for more; True when something came."""
        cdef bint moved = True
        self.bell.announce_sleep()
        self.is_asleep = True
        if not self._has_input():
            moved = self._round(milliseconds)
        self._wake()
        return moved

    cdef void _await_room(self) noexcept nogil:
        """The request ring is full, sockets must wait: only the core's doorbell or 1 ms counts."""
        cdef pollfd waiting
        waiting.fd = self.bell.fd
        waiting.events = POLLIN
        self.bell.announce_sleep()
        self.is_asleep = True
        if not self._has_input():
            poll(&waiting, 1, 1)
        self._wake()

    cdef void _wake(self) noexcept nogil:
        """Take the announcement of our sleep back."""
        if self.is_asleep:
            self.is_asleep = False
            self.bell.awake()

    cdef bint _take_events_of(self, Source *source, uint32_t events) noexcept nogil:
        """What epoll says of one descriptor; False when there was nothing to do about it."""
        cdef Client *client
        if source.kind == SOURCE_DOORBELL:
            return True
        if source.kind == SOURCE_LISTENER:
            self._accept_all(source)
            return True
        client = <Client *>source
        if events & EPOLLOUT:
            self.mark_dirty(&client.peer)
        if events & (EPOLLIN | EPOLLERR | EPOLLHUP):
            if self.is_full and not events & (EPOLLERR | EPOLLHUP):
                return False
            self._receive(client)
        return True

    cdef void _accept_all(self, Source *listener) noexcept nogil:
        """Take waiting connections, the rest in the next round or by another worker."""
        cdef int _i, fd
        for _i in range(ACCEPTS_PER_ROUND):
            fd = quorate_accept(listener.fd)
            if fd >= 0:
                self.accepted += 1
                if not self._add_client(fd):
                    close(fd)
                continue
            if errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
                self._listen(False)
                self.accept_again = self.now + ACCEPT_PAUSE
            if errno != ECONNABORTED and errno != EINTR:
                return

    cdef void _listen(self, bint yes) noexcept nogil:
        """Wait for new connections, or don't."""
        cdef Source *source = self.listeners
        cdef epoll_event event
        while source != NULL:
            event.events = EPOLLIN | EPOLLEXCLUSIVE
            event.data.ptr = source
            epoll_ctl(self.fd, EPOLL_CTL_ADD if yes else EPOLL_CTL_DEL, source.fd, &event)
            source = source.next
        self.accept_again = 0

    cdef bint _add_client(self, int fd) noexcept nogil:
        """A new socket; False without memory."""
        cdef Client *client = <Client *>calloc(1, sizeof(Client))
        cdef epoll_event event
        if client == NULL:
            return False
        client.source.kind = SOURCE_CLIENT
        client.source.fd = fd
        client.peer.transport = client
        client.interest = EPOLLIN
        client.progress = self.now
        client.timer.owner = client
        client.timer.kind = TIMER_CLIENT
        event.events = EPOLLIN
        event.data.ptr = client
        if epoll_ctl(self.fd, EPOLL_CTL_ADD, fd, &event) != 0:
            free(client)
            return False
        client.next = self.clients
        if client.next != NULL:
            client.next.previous = client
        self.clients = client
        self.clients_live += 1
        wheel_set(self.wheel, &client.timer, self.now + LOOK_AFTER)
        return True

    cdef void _receive(self, Client *client) noexcept nogil:
        """One recv, and feed what came."""
        cdef ssize_t size
        if client.is_gone:
            return
        size = recv(client.source.fd, self.inbox, RECEIVE_MAX, 0)
        if size > 0:
            self.bytes_received += size
            if client.is_open:
                self.feed_peer(&client.peer, self.inbox, size)
            else:
                self._sniff(client, size)
        elif size == 0 or (errno != EAGAIN and errno != EINTR):
            self._leave(client)

    cdef void _sniff(self, Client *client, size_t size) noexcept nogil:
        """The first bytes of a socket: HTTP/2's preface, or Python's business."""
        cdef size_t known = min(size, <size_t>(PREFACE_SIZE - client.sniffed))
        if memcmp(self.inbox, preface + client.sniffed, known) != 0:
            self._hand_over(client, size)
            return
        client.sniffed += <uint32_t>known
        if client.sniffed < PREFACE_SIZE:
            return
        if self.is_draining or not self.open_peer(&client.peer):
            self._leave(client)
            return
        client.is_open = True
        self.feed_peer(&client.peer, <const uint8_t *>preface, PREFACE_SIZE)
        if size > known:
            self.feed_peer(&client.peer, self.inbox + known, size - known)

    cdef void _hand_over(self, Client *client, size_t size) noexcept nogil:
        """Give the socket to Python with all its bytes so far."""
        cdef Event *event = self._tell(EVENT_HTTP1, client.source.fd)
        if event != NULL:
            buffer_append(&event.data, <const uint8_t *>preface, client.sniffed)
            buffer_append(&event.data, self.inbox, size)
            epoll_ctl(self.fd, EPOLL_CTL_DEL, client.source.fd, NULL)
            client.source.fd = -1
            self.handed_over += 1
        self._leave(client)

    cdef void _leave(self, Client *client) noexcept nogil:
        """The socket is over; freed at the end of the round, when nothing points at it any more."""
        client.is_gone = True
        self.mark_dirty(&client.peer)

    cdef void _flush_all(self) noexcept nogil:
        """Send to every dirty connection; what becomes dirty meanwhile waits for the next round."""
        cdef Peer *peer = self.dirty
        cdef Peer *following
        self.dirty = NULL
        while peer != NULL:
            following = peer.next_dirty
            peer.is_dirty = False
            self._flush(<Client *>peer.transport)
            peer = following

    cdef void _flush(self, Client *client) noexcept nogil:
        """One send; the client may be freed by it."""
        cdef size_t size
        cdef bint has_sent_all
        if client.is_gone or not client.is_open:
            if client.is_gone:
                self._forget(client)
            return
        if client.unsent.size and not self._send_unsent(client):
            if client.is_gone:
                self._forget(client)
            else:
                # More replies may have come meanwhile: enough to stop reading.
                self._set_interest(client)
            return
        size = self.drain_peer(&client.peer, self.outbox, SEND_MAX + FRAME_ROOM)
        if size:
            self._send(client, size)
        # A full outbox means that nghttp2 has more.
        has_sent_all = client.unsent.size == 0 and size <= SEND_MAX
        if client.is_gone or (has_sent_all and http2_finished(&client.peer.http2)):
            self._forget(client)
            return
        if client.unsent.size == 0 and size > SEND_MAX:
            self.mark_dirty(&client.peer)
        self._set_interest(client)

    cdef void _send_early(self, Peer *peer) noexcept nogil:
        """One send amid a delivery; what comes of it is seen to by the round's flush."""
        cdef Client *client = <Client *>peer.transport
        cdef size_t size
        if client.is_gone or client.unsent.size:
            return
        size = self.drain_peer(peer, self.outbox, SEND_MAX + FRAME_ROOM)
        if size:
            self._send(client, size)

    cdef bint _send_unsent(self, Client *client) noexcept nogil:
        """Send what an earlier send left over; True when it is all gone."""
        cdef ssize_t sent = send(
            client.source.fd, client.unsent.data + client.unsent_at,
            client.unsent.size - client.unsent_at, MSG_NOSIGNAL)
        if sent < 0:
            client.is_gone = errno != EAGAIN and errno != EINTR
            return False
        client.progress = self.now
        client.unsent_at += sent
        self.bytes_sent += sent
        if client.unsent_at < client.unsent.size:
            return False
        buffer_free(&client.unsent)
        client.unsent_at = 0
        return True

    cdef void _send(self, Client *client, size_t size) noexcept nogil:
        """Send the outbox, and keep what the socket does not take."""
        cdef ssize_t sent = send(client.source.fd, self.outbox, size, MSG_NOSIGNAL)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                client.is_gone = True
                return
            sent = 0
        self.bytes_sent += sent
        client.progress = self.now
        if <size_t>sent < size:
            buffer_append(&client.unsent, self.outbox + sent, size - sent)

    cdef void _set_interest(self, Client *client) noexcept nogil:
        """Tell epoll what we await. Only a full socket stops reads: they bring window updates."""
        cdef uint32_t interest = EPOLLIN
        cdef size_t queued
        cdef epoll_event event
        if client.unsent.size:
            interest = EPOLLOUT
            queued = http2_queued(&client.peer.http2)
            if client.peer.reply_bytes <= REPLY_HIGH and queued <= QUEUED_HIGH:
                interest |= EPOLLIN
        if interest != client.interest:
            client.interest = interest
            event.events = interest
            event.data.ptr = client
            epoll_ctl(self.fd, EPOLL_CTL_MOD, client.source.fd, &event)

    cdef void _check_timers(self) noexcept nogil:
        """End calls whose time is over, and look after clients."""
        cdef Timer *timer = wheel_pop(self.wheel, self.now)
        while timer != NULL:
            if timer.kind == TIMER_CLIENT:
                self._check_client(<Client *>timer.owner)
            elif timer.kind == TIMER_WATCH:
                self.notify_progress(<WatchStream *>timer.owner)
            else:
                self.expire_call(<Call *>timer.owner)
            timer = wheel_pop(self.wheel, self.now)
        if self.accept_again and self.now >= self.accept_again:
            self._listen(True)

    cdef void _check_client(self, Client *client) noexcept nogil:
        """Drop a client that at first says nothing, or takes nothing; ping one silent for long."""
        cdef int64_t due = self.now + LOOK_AFTER
        cdef bint is_stuck = client.unsent.size != 0 or client.peer.reply_bytes > REPLY_HIGH
        if client.is_gone:
            return
        if not client.is_open:
            is_stuck = self.now >= client.progress + FIRST_BYTES
            due = min(due, client.progress + FIRST_BYTES)
        else:
            due = min(due, http2_tick(&client.peer.http2, self.now))
            is_stuck = is_stuck and self.now >= client.progress + SEND_STALL
            self.mark_dirty(&client.peer)
        if is_stuck:
            self.dropped += 1
            self._leave(client)
            return
        wheel_set(self.wheel, &client.timer, due)

    cdef void _forget(self, Client *client) noexcept nogil:
        """Close the socket, end its calls, free it; only at the end of a round or of the pump."""
        wheel_clear(self.wheel, &client.timer)
        if client.is_open:
            self.dropped += client.peer.http2.closing
            self.close_peer(&client.peer)
        buffer_free(&client.unsent)
        if client.source.fd >= 0:
            close(client.source.fd)
        if client.previous != NULL:
            client.previous.next = client.next
        else:
            self.clients = client.next
        if client.next != NULL:
            client.next.previous = client.previous
        self.clients_live -= 1
        free(client)
