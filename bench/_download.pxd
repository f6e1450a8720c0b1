# cython: language_level=3
"""One Maintenance.Snapshot stream, read as fast as it comes or at a pace: the C half."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from bench._link cimport HEADERS, Link
from bench._nghttp2 cimport nghttp2_nv, nghttp2_session_callbacks
from bench._pipe cimport Fault

cdef enum:
    HELD_BYTES = 1 << 20        # looked at together: the GIL is taken once for so many
    DIGEST_BYTES = 32           # the SHA-256 behind the last byte of the file
    PACED_BYTES = 16384         # read at once by a slow reader
    PACED_WINDOW = 65536        # HTTP/2's own default: what a slow reader lets the server send
    PACED_SOCKET_BYTES = 65536


cdef struct Transfer:
    Link link                   # first: see bench/_link.pyx
    nghttp2_nv[HEADERS] headers
    nghttp2_session_callbacks *callbacks    # owned
    int epoll                   # owned; -2 when closed
    int32_t stream
    uint8_t *received           # owned; what recv fills
    uint8_t *held               # owned; what came of messages that were not looked at yet
    size_t held_size
    size_t held_capacity
    int status                  # grpc-status; -1 until it came
    bint ended                  # the stream is closed
    bint stop
    double pace                 # bytes a second; 0 is as fast as they come
    int64_t received_bytes      # that the socket gave
    int64_t began               # ns
    int64_t give_up             # ns
    int64_t now                 # ns
    Fault fault


cdef class Download:
    cdef Transfer transfer
    cdef bytes authority
    cdef object digest          # hashlib's, of all but the last bytes; None when nobody looks
    cdef bytes last             # the last bytes that came: at most DIGEST_BYTES
    cdef uint64_t remaining     # what the server said is to come
    cdef readonly int64_t size  # bytes of the file so far, digest included
    cdef bint running

    cdef int take_messages(self) except -1
    cdef int take_message(self, const uint8_t *at, size_t size) except -1
    cdef int take_blob(self, const uint8_t *data, size_t size) except -1
    cdef const char *judge(self)
