# cython: language_level=3
"""gRPC's own headers: timeouts, content types, encodings, packed metadata, pairs without copies."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from quorate.core._bytes cimport Buffer
from quorate.frontends._nghttp2 cimport nghttp2_nv

cdef enum:
    # Trailers of one call that a Python handler may add.
    TRAILERS_MAX = 32

cdef enum Encoding:
    ENCODING_IDENTITY = 0
    ENCODING_GZIP = 1
    ENCODING_UNKNOWN = 2


cdef bint parse_timeout(const uint8_t *text, size_t size, int64_t *nanoseconds) noexcept nogil
cdef bint is_grpc(const uint8_t *value, size_t size) noexcept nogil
cdef uint32_t encoding_of(const uint8_t *value, size_t size) noexcept nogil

cdef void set_pair(
    nghttp2_nv *pair, const char *name, size_t name_size, const void *value,
    size_t size) noexcept nogil
cdef const char *number_text(uint32_t number) noexcept nogil

cdef void pack(
    Buffer *buffer, const uint8_t *name, size_t name_size, const uint8_t *value,
    size_t size) noexcept nogil
cdef size_t unpack_pairs(const Buffer *buffer, nghttp2_nv *pairs, size_t at_most) noexcept nogil
cdef list unpack(const Buffer *buffer)
