# cython: language_level=3
"""Replies and ends of calls: slices from the core, DATA for HTTP/2, statuses, trailers."""

from libc.stdint cimport uint8_t, uint32_t

from quorate.core._bytes cimport Buffer
from quorate.core._record cimport Reply
from quorate.core._ring cimport Ring
from quorate.frontends._calls cimport *
from quorate.frontends._nghttp2 cimport nghttp2_nv

cdef enum Refusal:
    # Why a call is refused, where the text needs Python.
    REFUSE_CONTENT_TYPE = 1
    REFUSE_TIMEOUT = 2
    REFUSE_METHOD = 3
    REFUSE_HOSTS = 4
    REFUSE_PATH = 5
    REFUSE_ENCODING = 6
    REFUSE_SIZE = 7
    REFUSE_FORMAT = 8
    REFUSE_INFLATED = 10


cdef struct StatusLine:
    nghttp2_nv trailers[2]  # grpc-status, grpc-message
    uint32_t code


cdef class Replies(Calls):
    cdef Ring replies
    cdef bint is_corrupt        # the reply ring lies
    cdef size_t message_max     # bytes of one gRPC message
    cdef StatusLine *lines      # by ErrorId
    cdef list _kept             # bytes objects that C structs point into

    # From the core.
    cdef uint32_t take_replies(self, uint32_t at_most) noexcept nogil
    cdef void _take_reply(self, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil
    cdef void _answered(self, Call *call) noexcept nogil
    cdef bint _is_error(self, uint32_t error) noexcept nogil
    cdef bint _take_slice(
        self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil
    cdef void _take_answer(
        self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil

    # To the client.
    cdef void _queue(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef void _queue_message(self, Call *call, const uint8_t *data, size_t size) noexcept nogil
    cdef void _resume(self, Call *call) noexcept nogil
    cdef void _begin_reply(self, Call *call) noexcept nogil
    cdef size_t _read(self, Call *call, uint8_t *out, size_t room, bint *end) noexcept nogil
    cdef bint _is_over_bytes(self, Call *call, size_t more) noexcept nogil

    # What only a Watch has; see `_watches.pyx`.
    cdef void _take_catch_up(
        self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil
    cdef void _take_follow(
        self, Call *call, const Reply *reply, const uint8_t *data, size_t size) noexcept nogil
    cdef void _drained(self, Call *call) noexcept nogil
    cdef void _forget_watches(self, Call *call) noexcept nogil

    # The end.
    cdef void _refuse(
        self, Call *call, uint32_t http_status, uint32_t code, Refusal why,
        Buffer *value) noexcept with gil
    cdef void _end_with(self, Call *call, uint32_t code, const char *text) noexcept nogil
    cdef void _end_unreadable(self, Call *call) noexcept nogil
    cdef void _end(self, Call *call, uint32_t error) noexcept nogil
    cdef void _cut(self, Call *call) noexcept nogil
    cdef void _send_end(self, Call *call) noexcept nogil
    cdef size_t _status_pairs(self, Call *call, nghttp2_nv *pairs) noexcept nogil
    cdef void expire_call(self, Call *call) noexcept nogil
    cdef void _drop_reply(self, Call *call) noexcept nogil
    cdef void _gone(self, Call *call) noexcept nogil
