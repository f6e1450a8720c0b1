# cython: language_level=3
"""A WatchRequest off the wire."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from quorate.core._protobuf cimport Span

cdef enum WatchRequestKind:
    # The fields of the oneof; 0: none is set.
    WATCH_REQUEST_CREATE = 1
    WATCH_REQUEST_CANCEL = 2
    WATCH_REQUEST_PROGRESS = 3


cdef struct WatchCreate:
    # A WatchCreateRequest.
    Span key
    Span end
    int64_t start_revision
    int64_t id
    uint32_t flags          # WatchFlag
    bint notifies


cdef struct WatchRequest:
    uint32_t kind
    WatchCreate create
    int64_t watch_id        # to cancel


cdef bint decode_watch_request(
    WatchRequest *request, const uint8_t *data, size_t size) noexcept nogil
cdef bint is_empty_range(const Span *key, const Span *end) noexcept nogil
