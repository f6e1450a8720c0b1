# cython: language_level=3
"""A gRPC stream that stays open, with messages both ways: the C half."""

from libc.stdint cimport int32_t, uint8_t

from bench._link cimport Link
from bench._nghttp2 cimport nghttp2_nv, nghttp2_session_callbacks

cdef enum:
    MESSAGE_BYTES = 224         # room for one message that we send: a watch of a prefix is 140
    FAULT_BYTES = 256
    UNIMPLEMENTED = 12          # the gRPC status of a method that a server does not have


cdef struct Fault:
    # What went wrong first on any of many pipes, in words.
    char[FAULT_BYTES] text
    bint unimplemented


# Writes the next message without its prefix and answers its size; 0 when there is none now.
ctypedef size_t (*Produce)(Pipe *pipe, uint8_t *at) noexcept nogil
# One whole message came; it is gone when this returns.
ctypedef void (*Consume)(Pipe *pipe, const uint8_t *message, size_t size) noexcept nogil
# The server ended the stream; this may be said twice.
ctypedef void (*Ended)(Pipe *pipe) noexcept nogil


cdef struct Pipe:
    # The first member of whoever owns it, so that a pipe's pointer is the owner's.
    Link *link                  # not owned
    Fault *fault                # not owned
    Produce produce
    Consume consume
    Ended ended
    int32_t stream
    bint deferred               # HTTP/2 waits for `pipe_wake` before it asks for bytes again
    uint8_t[MESSAGE_BYTES] out  # the message on its way, prefix included
    size_t out_size
    size_t out_sent
    uint8_t *carry              # owned; the beginning of a message that is not whole yet
    size_t carry_size
    size_t carry_capacity


cdef bint callbacks_prepare(nghttp2_session_callbacks **callbacks) noexcept nogil
cdef bint pipe_open(Pipe *pipe, nghttp2_nv *headers) noexcept nogil
cdef void pipe_wake(Pipe *pipe) noexcept nogil
cdef void pipe_free(Pipe *pipe) noexcept nogil
cdef void fault_say(Fault *fault, const char *what) noexcept nogil
cdef void fault_quote(Fault *fault, const uint8_t *text, size_t size) noexcept nogil
