# cython: language_level=3
"""Reads one snapshot of a server's store, as `etcdctl snapshot save` does, and throws it away.

Rules:
- A snapshot is whole when the stream ended with status 0, the server said that nothing remains, and
  the last 32 bytes are the SHA-256 of those before. The digest takes time of the machine that
  is measured: who measures beside it leaves it out (`check`).
- With a pace it reads so many bytes a second, in small pieces, with small windows: what the server
  sends ahead of the reader is not more than a real slow reader's system would take.
- One `Download` is one stream on a connection of its own; `run` is called once.
"""

import hashlib

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

cimport cython

from bench._histogram cimport Histogram
from bench._link cimport (
    CLOCK_MONOTONIC,
    CLOCK_THREAD_CPUTIME_ID,
    EPOLL_CLOEXEC,
    HEADERS,
    RECEIVE_BYTES,
    SLICE,
    WINDOW,
    clock,
    close,
    epoll_create1,
    epoll_event,
    epoll_wait,
    headers_prepare,
    link_flush,
    link_free,
    link_lose,
    link_open,
    link_pace,
    link_prepare,
    link_receive,
    wait_readable,
)
from bench._nghttp2 cimport *
from bench._pipe cimport UNIMPLEMENTED, fault_quote, fault_say
from bench._protobuf cimport GRPC_PREFIX, Field, read_field, size_in_prefix

from bench._link import connect
from bench.outcome import Received

PATH = b"/etcdserverpb.Maintenance/Snapshot"


@cython.final
cdef class Download:
    """One snapshot from a server on the loopback interface."""

    def __cinit__(self):
        self.transfer.epoll = -1
        self.transfer.link.fd = -1

    def __init__(self, int port, *, double pace=0.0, bint check=True):
        cdef Transfer *transfer = &self.transfer
        assert transfer.epoll == -1, "a Download is initialised once"
        self.authority = b"127.0.0.1:%d" % port
        self.digest = hashlib.sha256() if check else None
        self.last = b""
        self.remaining = <uint64_t>-1
        transfer.pace = pace
        transfer.status = -1
        headers_prepare(transfer.headers, PATH, self.authority)
        if not prepare_transfer(transfer):
            raise MemoryError("no memory for a snapshot's stream")
        link_open(
            &transfer.link, connect(port, PACED_SOCKET_BYTES if pace else 0), transfer.callbacks,
            1, PACED_WINDOW if pace else WINDOW)

    def __dealloc__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def run(self, *, double patience=600.0, int64_t most=0):
        """Read it all, or the first `most` bytes; raises RuntimeError when closed or used before.

        What was not read to its end is `unfinished`, whoever ended it.
        """
        cdef Transfer *transfer = &self.transfer
        cdef int64_t cpu
        cdef bint more = True
        cdef const char *problem = NULL
        if transfer.epoll < 0 or transfer.began:
            raise RuntimeError("the download is closed, or was used before")
        self.running = True
        try:
            with nogil:
                cpu = clock(CLOCK_THREAD_CPUTIME_ID)
                begin(transfer, patience)
            while more and not (most and self.size >= most):
                with nogil:
                    more = work_a_slice(transfer)
                PyErr_CheckSignals()
                self.take_messages()
            cpu = clock(CLOCK_THREAD_CPUTIME_ID) - cpu
        finally:
            self.running = False
        if transfer.status == 0:
            problem = self.judge()
            if problem != NULL:
                fault_say(&transfer.fault, problem)
        return Received(
            completed=0, elapsed=(transfer.now - transfer.began) / 1e9,
            succeeded=transfer.status == 0 and problem == NULL,
            failed=transfer.status > 0 or transfer.link.lost, wrong=problem != NULL,
            unfinished=transfer.status < 0,
            problem=transfer.fault.text.decode("utf-8", "replace"), cpu=cpu / 1e9,
            latency=Histogram(), unimplemented=transfer.fault.unimplemented, size=self.size,
        )

    def stop(self):
        """Let a run in another thread end where it is."""
        self.transfer.stop = True

    def close(self):
        """Close the connection; more than once does no harm."""
        assert not self.running, "a download is closed by the thread that runs it"
        free_transfer(&self.transfer)

    # -- messages

    cdef int take_messages(self) except -1:
        """Look at all whole messages that are held."""
        cdef Transfer *transfer = &self.transfer
        cdef size_t at = 0
        cdef size_t size
        while transfer.held_size - at >= GRPC_PREFIX:
            size = size_in_prefix(transfer.held + at)
            if transfer.held[at] != 0:
                fault_say(&transfer.fault, b"a message is compressed")
                break
            if transfer.held_size - at - GRPC_PREFIX < size:
                break
            self.take_message(transfer.held + at + GRPC_PREFIX, size)
            at += GRPC_PREFIX + size
        transfer.held_size -= at
        memmove(transfer.held, transfer.held + at, transfer.held_size)
        return 0

    cdef int take_message(self, const uint8_t *at, size_t size) except -1:
        """One SnapshotResponse."""
        cdef const uint8_t *end = at + size
        cdef uint64_t remaining = 0
        cdef Field field
        while at < end:
            at = read_field(at, end, &field)
            if at == NULL:
                fault_say(&self.transfer.fault, b"a message is malformed")
                return 0
            if field.number == 2:
                remaining = field.value
            elif field.number == 3 and field.wire == 2:
                self.take_blob(field.data, field.value)
        if remaining > self.remaining:
            fault_say(&self.transfer.fault, b"more remains than before")
        self.remaining = remaining
        return 0

    cdef int take_blob(self, const uint8_t *data, size_t size) except -1:
        """A piece of the file; its last bytes may be the digest of the others."""
        cdef bytes known
        self.size += size
        if self.digest is None or size == 0:
            return 0
        known = self.last + PyBytes_FromStringAndSize(<const char *>data, size)
        self.digest.update(memoryview(known)[:-DIGEST_BYTES])
        self.last = known[-DIGEST_BYTES:]
        return 0

    cdef const char *judge(self):
        """What is wrong with a stream that ended well; NULL if nothing."""
        if self.transfer.fault.text[0]:
            return self.transfer.fault.text
        if self.transfer.held_size:
            return b"the last message is cut short"
        if self.remaining or self.size <= DIGEST_BYTES:
            return b"the snapshot is not whole"
        if self.digest is not None and self.digest.digest() != self.last:
            return b"the snapshot's digest is wrong"
        return NULL


# -- memory

cdef bint prepare_transfer(Transfer *transfer) noexcept nogil:
    """Allocate all that a transfer owns; False when memory or descriptors are out."""
    transfer.epoll = epoll_create1(EPOLL_CLOEXEC)
    transfer.received = <uint8_t *>malloc(RECEIVE_BYTES)
    if transfer.epoll < 0 or transfer.received == NULL:
        return False
    if nghttp2_session_callbacks_new(&transfer.callbacks) != 0:
        return False
    nghttp2_session_callbacks_set_on_header_callback(transfer.callbacks, on_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(transfer.callbacks, on_data)
    nghttp2_session_callbacks_set_on_stream_close_callback(transfer.callbacks, on_stream_close)
    return link_prepare(&transfer.link, transfer.epoll)


cdef void free_transfer(Transfer *transfer) noexcept nogil:
    link_free(&transfer.link)
    if transfer.callbacks != NULL:
        nghttp2_session_callbacks_del(transfer.callbacks)
    if transfer.epoll >= 0:
        close(transfer.epoll)
    free(transfer.received)
    free(transfer.held)
    transfer.callbacks = NULL
    transfer.received = transfer.held = NULL
    transfer.epoll = -2


# -- the loop

cdef void begin(Transfer *transfer, double patience) noexcept nogil:
    """Send the request."""
    cdef nghttp2_data_provider provider
    transfer.now = transfer.began = clock(CLOCK_MONOTONIC)
    transfer.give_up = transfer.began + <int64_t>(patience * 1e9)
    provider.source.ptr = transfer
    provider.read_callback = read_body
    transfer.stream = nghttp2_submit_request(
        transfer.link.session, NULL, transfer.headers, HEADERS, &provider, transfer)
    if transfer.pace > 0:
        link_pace(&transfer.link, True)
    flush(transfer)


cdef bint work_a_slice(Transfer *transfer) noexcept nogil:
    """Read until there is enough to look at; False when the transfer is over."""
    cdef epoll_event event
    cdef int64_t until = clock(CLOCK_MONOTONIC) + SLICE
    while transfer.now < until and transfer.held_size < HELD_BYTES:
        if transfer.ended or transfer.stop or transfer.link.lost:
            return False
        if transfer.now >= transfer.give_up:
            fault_say(&transfer.fault, b"no whole snapshot in time")
            return False
        if transfer.pace > 0:
            receive_paced(transfer, until)
        elif epoll_wait(transfer.epoll, &event, 1, <int>(SLICE // 1000000)) > 0:
            receive(transfer, RECEIVE_BYTES)
        transfer.now = clock(CLOCK_MONOTONIC)
    return True


cdef void receive_paced(Transfer *transfer, int64_t until) noexcept nogil:
    """Wait for the next piece's time, and read it."""
    cdef int64_t due = transfer.began + <int64_t>(
        transfer.received_bytes * 1e9 / transfer.pace)
    if due > transfer.now:
        # The descriptor is quiet about what is to be read: this is a sleep.
        wait_readable(transfer.epoll, min(due, until) - transfer.now)
        transfer.now = clock(CLOCK_MONOTONIC)
    if due <= transfer.now:
        receive(transfer, PACED_BYTES)
        # An idle server is not asked again and again, nor is what it did not send made good.
        transfer.received_bytes = max(
            transfer.received_bytes + PACED_BYTES,
            <int64_t>((transfer.now - transfer.began) * transfer.pace / 1e9) - PACED_BYTES)


cdef void receive(Transfer *transfer, size_t size) noexcept nogil:
    """Read what came and say what follows from it."""
    cdef const char *problem = link_receive(
        &transfer.link, transfer.received, size, &transfer.now)
    if problem == NULL:
        flush(transfer)
    elif not transfer.ended:
        fault_say(&transfer.fault, problem)
        link_lose(&transfer.link)


cdef void flush(Transfer *transfer) noexcept nogil:
    """Send what HTTP/2 has to say, as far as the socket takes it."""
    cdef const char *problem = link_flush(&transfer.link)
    if problem != NULL:
        fault_say(&transfer.fault, problem)
        link_lose(&transfer.link)


# -- what nghttp2 calls

cdef ssize_t read_body(nghttp2_session *session, int32_t stream, uint8_t *data, size_t size,
                       uint32_t *flags, nghttp2_data_source *source,
                       void *user) noexcept nogil:
    """The request: an empty message behind its prefix."""
    memset(data, 0, GRPC_PREFIX)
    flags[0] |= NGHTTP2_DATA_FLAG_EOF
    return GRPC_PREFIX


cdef int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                   size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                   void *user) noexcept nogil:
    """One header or trailer came: the gRPC status and its message are what we want."""
    cdef Transfer *transfer = <Transfer *>user
    cdef size_t place
    if name_size == 11 and memcmp(name, b"grpc-status", 11) == 0:
        transfer.status = 0
        for place in range(value_size):
            transfer.status = transfer.status * 10 + value[place] - 48
        transfer.fault.unimplemented = transfer.status == UNIMPLEMENTED
    elif name_size == 12 and value_size and memcmp(name, b"grpc-message", 12) == 0:
        fault_quote(&transfer.fault, value, value_size)
    return 0


cdef int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data,
                 size_t size, void *user) noexcept nogil:
    """A piece of what the server says came: it is looked at later."""
    cdef Transfer *transfer = <Transfer *>user
    cdef size_t capacity = max(transfer.held_capacity, <size_t>HELD_BYTES)
    cdef uint8_t *grown
    while capacity < transfer.held_size + size:
        capacity *= 2
    if capacity > transfer.held_capacity:
        grown = <uint8_t *>realloc(transfer.held, capacity)
        if grown == NULL:
            fault_say(&transfer.fault, b"no memory for a message")
            return NGHTTP2_ERR_CALLBACK_FAILURE
        transfer.held = grown
        transfer.held_capacity = capacity
    memcpy(transfer.held + transfer.held_size, data, size)
    transfer.held_size += size
    return 0


cdef int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t error,
                         void *user) noexcept nogil:
    """The stream is over."""
    cdef Transfer *transfer = <Transfer *>user
    transfer.ended = True
    if error or transfer.status < 0:
        transfer.status = -1
        fault_say(&transfer.fault, b"the server ended the stream without a status")
        link_lose(&transfer.link)
    return 0
