# cython: language_level=3
"""One client's HTTP/2 connection: nghttp2 speaks the protocol, this moves bytes and waits.

Rules:
- A link's owner holds it as its first member: the pointer that nghttp2's callbacks and epoll give
  back is the owner's.
- What fails answers why, in words, or NULL when nothing did; the owner decides what is lost by it
  and calls `link_lose`, after which no function here touches the socket again.
- A paced link is read only when its owner says so: this is how a reader is slow on purpose.
"""

import socket

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

from bench._nghttp2 cimport *


def connect(int port, int receive_bytes=0):
    """A socket's descriptor, connected to the loopback interface, with this much room to receive.

    Raises OSError.
    """
    client = socket.socket()
    try:
        if receive_bytes:
            # Before the connection is made: the window that is agreed on then follows from it.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        client.close()
        raise
    return client.detach()


cdef bint link_prepare(Link *link, int epoll) noexcept nogil:
    """Memory for a link that is not open yet; False when there is none."""
    link.epoll = epoll
    link.fd = -1
    link.session = NULL
    link.lost = True
    link.out = <uint8_t *>malloc(OUT_BYTES)
    return link.out != NULL


cdef int link_open(Link *link, int fd, const nghttp2_session_callbacks *callbacks, int64_t streams,
                   int window) except -1:
    """Make the HTTP/2 session of a connected socket; the owner's next flush sends its preface."""
    cdef nghttp2_option *option
    cdef nghttp2_settings_entry[2] settings
    cdef epoll_event event
    link.fd = fd
    settings[0].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
    settings[0].value = 0
    settings[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    settings[1].value = <uint32_t>window
    if nghttp2_option_new(&option) != 0:
        raise MemoryError("no memory for an HTTP/2 session")
    # gRPC's replies are valid HTTP/2 messages; checking them again is not what is measured.
    nghttp2_option_set_no_http_messaging(option, 1)
    nghttp2_option_set_peer_max_concurrent_streams(option, <uint32_t>streams)
    made = nghttp2_session_client_new2(&link.session, callbacks, link, option)
    nghttp2_option_del(option)
    if made != 0:
        raise MemoryError("no memory for an HTTP/2 session")
    nghttp2_submit_settings(link.session, NGHTTP2_FLAG_NONE, settings, 2)
    nghttp2_session_set_local_window_size(link.session, NGHTTP2_FLAG_NONE, 0, window)
    event.events = EPOLLIN
    event.data.ptr = link
    if epoll_ctl(link.epoll, EPOLL_CTL_ADD, fd, &event) != 0:
        raise OSError(errno, "epoll_ctl")
    link.lost = link.blocked = link.paced = False
    return 0


cdef const char *link_flush(Link *link) noexcept nogil:
    """Send what HTTP/2 has to say, as far as the socket takes it."""
    cdef const uint8_t *data
    cdef const char *problem
    cdef ssize_t size = 1
    while not link.lost:
        while size > 0 and link.out_size < OUT_BYTES - OUT_FRAME:
            size = nghttp2_session_mem_send(link.session, &data)
            if size < 0:
                return b"HTTP/2 has no memory"
            if size > 0:
                memcpy(link.out + link.out_size, data, size)
                link.out_size += size
        if link.out_size == 0:
            return NULL
        problem = drain(link)
        if problem != NULL or link.blocked:
            return problem
        size = 1
    return NULL


cdef const char *drain(Link *link) noexcept nogil:
    """Send the out buffer; afterwards it is empty or the link is blocked."""
    cdef ssize_t sent
    while link.out_sent < link.out_size:
        sent = send(link.fd, link.out + link.out_sent, link.out_size - link.out_sent, MSG_NOSIGNAL)
        if sent < 0 and errno == EINTR:
            continue
        if sent < 0 and errno == EAGAIN:
            want(link, True)
            return NULL
        if sent < 0:
            return b"the server reset the connection"
        link.out_sent += sent
    link.out_size = link.out_sent = 0
    want(link, False)
    return NULL


cdef void want(Link *link, bint blocked) noexcept nogil:
    """Ask epoll for room in the socket, or no longer."""
    if link.blocked != blocked:
        link.blocked = blocked
        ask(link)


cdef void link_pace(Link *link, bint paced) noexcept nogil:
    """From now on epoll does not say that there is something to read; or it does again."""
    if link.paced != paced and not link.lost:
        link.paced = paced
        ask(link)


cdef void ask(Link *link) noexcept nogil:
    cdef epoll_event event
    event.events = (0 if link.paced else EPOLLIN) | (EPOLLOUT if link.blocked else 0)
    event.data.ptr = link
    epoll_ctl(link.epoll, EPOLL_CTL_MOD, link.fd, &event)


cdef const char *link_receive(Link *link, uint8_t *buffer, size_t size,
                              int64_t *now) noexcept nogil:
    """Read what came, `size` bytes at a time, once if paced; `now` is when a piece was there."""
    cdef ssize_t got = size
    while got == <ssize_t>size and not link.lost:
        got = recv(link.fd, buffer, size, 0)
        if got < 0 and (errno == EAGAIN or errno == EINTR):
            break
        if got <= 0:
            return b"the server closed the connection"
        now[0] = clock(CLOCK_MONOTONIC)
        if nghttp2_session_mem_recv(link.session, buffer, got) != got:
            return b"the server broke HTTP/2"
        if link.paced:
            break
    if not link.lost and not nghttp2_session_want_read(link.session):
        return b"the server ended the connection"
    return NULL


cdef void link_lose(Link *link) noexcept nogil:
    """Give the link up."""
    if not link.lost:
        link.lost = True
        epoll_ctl(link.epoll, EPOLL_CTL_DEL, link.fd, NULL)


cdef void link_free(Link *link) noexcept nogil:
    """Close and free all that the link owns."""
    if link.session != NULL:
        nghttp2_session_del(link.session)
    if link.fd >= 0:
        close(link.fd)
    free(link.out)
    link.session = NULL
    link.out = NULL
    link.fd = -1


cdef void headers_prepare(nghttp2_nv *headers, bytes path, bytes authority):
    """The header list of every request; `path` and `authority` must outlive it."""
    set_header(&headers[0], b":method", b"POST")
    set_header(&headers[1], b":scheme", b"http")
    set_header(&headers[2], b":path", path)
    set_header(&headers[3], b":authority", authority)
    set_header(&headers[4], b"content-type", b"application/grpc")
    set_header(&headers[5], b"te", b"trailers")
    set_header(&headers[6], b"user-agent", b"quorate-bench")


cdef void set_header(nghttp2_nv *header, const char *name, const char *value) noexcept:
    header.name = <uint8_t *>name
    header.namelen = strlen(name)
    header.value = <uint8_t *>value
    header.valuelen = strlen(value)
    header.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
