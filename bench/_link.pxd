# cython: language_level=3
"""One client's HTTP/2 connection on a socket, and what waits for many of them: the C half."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from bench._nghttp2 cimport nghttp2_nv, nghttp2_session, nghttp2_session_callbacks

cdef extern from "<errno.h>" nogil:
    int errno
    int EAGAIN
    int EINTR

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLLIN
    int EPOLLOUT
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    int EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int milliseconds)

cdef extern from "<sys/socket.h>" nogil:
    int MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int clock, timespec *time)

cdef extern from *:
    """
    #include <poll.h>
    #include <signal.h>
    #include <time.h>
    /* Waits for the epoll set in nanoseconds, which epoll_wait cannot. */
    static inline int quorate_bench_wait(int epoll, long long nanoseconds) {
        struct pollfd set = {epoll, POLLIN, 0};
        struct timespec time = {nanoseconds / 1000000000, nanoseconds % 1000000000};
        return ppoll(&set, 1, &time, NULL);
    }
    """
    int wait_readable "quorate_bench_wait" (int epoll, long long nanoseconds) noexcept nogil

cdef enum:
    RECEIVE_BYTES = 262144      # one recv for all that a turn of the server sends
    OUT_BYTES = 131072          # room before a send
    OUT_FRAME = 32768           # more than the largest frame we send (16 KiB and its header)
    EVENTS = 64                 # connections served for each epoll_wait
    SLICE = 100000000           # ns between looks at signals and `stop`
    HEADERS = 7                 # of every request
    # Like h2load's: flow control is not what is measured.
    WINDOW = (1 << 30) - 1


cdef struct Link:
    # The first member of whoever owns it, so that epoll's and nghttp2's pointers are the owner's.
    int epoll                   # not owned
    int fd                      # owned
    nghttp2_session *session    # owned
    uint8_t *out                # owned; bytes on their way to the socket
    size_t out_size
    size_t out_sent
    bint blocked                # the socket is full; EPOLLOUT is armed
    bint paced                  # epoll does not say when there is something to read
    bint lost


cdef inline int64_t clock(int which) noexcept nogil:
    """Nanoseconds of one of the system's clocks."""
    cdef timespec time
    clock_gettime(which, &time)
    return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec


cdef bint link_prepare(Link *link, int epoll) noexcept nogil
cdef int link_open(Link *link, int fd, const nghttp2_session_callbacks *callbacks, int64_t streams,
                   int window) except -1
cdef const char *link_flush(Link *link) noexcept nogil
cdef const char *link_receive(Link *link, uint8_t *buffer, size_t size,
                              int64_t *now) noexcept nogil
cdef void link_pace(Link *link, bint paced) noexcept nogil
cdef void link_lose(Link *link) noexcept nogil
cdef void link_free(Link *link) noexcept nogil
cdef void headers_prepare(nghttp2_nv *headers, bytes path, bytes authority)
