# cython: language_level=3
"""A gRPC stream that stays open, with messages both ways, as Watch and LeaseKeepAlive are.

Rules:
- Messages to send are made when HTTP/2 has room for them (`produce`), so a million of them wait
  nowhere. A pipe that had none is asked again only after `pipe_wake`.
- Messages that came are given whole (`consume`), from the receive buffer when they lie there in one
  piece; only what is cut by its end is copied.
- Nothing here allocates for each message; the carry grows to the largest one.
"""

from libc.stdio cimport snprintf
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from bench._link cimport HEADERS
from bench._nghttp2 cimport *
from bench._protobuf cimport GRPC_PREFIX, size_in_prefix, write_prefix


cdef bint callbacks_prepare(nghttp2_session_callbacks **callbacks) noexcept nogil:
    """The callbacks of sessions whose streams are all pipes; False when memory is out."""
    if nghttp2_session_callbacks_new(callbacks) != 0:
        return False
    nghttp2_session_callbacks_set_on_header_callback(callbacks[0], on_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks[0], on_data)
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks[0], on_frame)
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks[0], on_stream_close)
    return True


cdef bint pipe_open(Pipe *pipe, nghttp2_nv *headers) noexcept nogil:
    """Begin the stream; the caller flushes the link. False when the link takes no more streams."""
    cdef nghttp2_data_provider provider
    provider.source.ptr = pipe
    provider.read_callback = read_messages
    pipe.deferred = False
    pipe.stream = nghttp2_submit_request(pipe.link.session, NULL, headers, HEADERS, &provider, pipe)
    return pipe.stream >= 0


cdef void pipe_wake(Pipe *pipe) noexcept nogil:
    """There is something to send again; the caller flushes the link."""
    if pipe.deferred:
        pipe.deferred = False
        nghttp2_session_resume_data(pipe.link.session, pipe.stream)


cdef void pipe_free(Pipe *pipe) noexcept nogil:
    """Give back what the pipe owns."""
    free(pipe.carry)
    pipe.carry = NULL


cdef void fault_say(Fault *fault, const char *what) noexcept nogil:
    """Keep the first problem in words."""
    if fault.text[0] == 0:
        snprintf(fault.text, FAULT_BYTES, b"%s", what)


cdef void fault_quote(Fault *fault, const uint8_t *text, size_t size) noexcept nogil:
    """Keep the server's own words when they are the first problem."""
    if fault.text[0] == 0:
        snprintf(fault.text, FAULT_BYTES, b"%.*s", <int>size, text)


# -- what nghttp2 calls

cdef ssize_t read_messages(nghttp2_session *session, int32_t stream, uint8_t *data, size_t size,
                           uint32_t *flags, nghttp2_data_source *source,
                           void *user) noexcept nogil:
    """HTTP/2 has room: as many messages as there are and as it takes."""
    cdef Pipe *pipe = <Pipe *>source.ptr
    cdef size_t filled = 0
    cdef size_t piece
    while filled < size:
        if pipe.out_sent == pipe.out_size:
            piece = pipe.produce(pipe, pipe.out + GRPC_PREFIX)
            if piece == 0:
                break
            write_prefix(pipe.out, piece)
            pipe.out_size = GRPC_PREFIX + piece
            pipe.out_sent = 0
        piece = min(size - filled, pipe.out_size - pipe.out_sent)
        memcpy(data + filled, pipe.out + pipe.out_sent, piece)
        pipe.out_sent += piece
        filled += piece
    if filled == 0:
        pipe.deferred = True
        return NGHTTP2_ERR_DEFERRED
    return <ssize_t>filled


cdef int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                   size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                   void *user) noexcept nogil:
    """One header or trailer came: on a stream that stays open any gRPC status is bad news."""
    cdef Pipe *pipe
    if not name_size == 11 and not name_size == 12:
        return 0
    pipe = <Pipe *>nghttp2_session_get_stream_user_data(session, stream_of(frame))
    if pipe == NULL:
        return 0
    if name_size == 11 and memcmp(name, b"grpc-status", 11) == 0:
        if value_size == 2 and value[0] == 49 and value[1] == 48 + UNIMPLEMENTED - 10:
            pipe.fault.unimplemented = True
    elif name_size == 12 and value_size and memcmp(name, b"grpc-message", 12) == 0:
        fault_quote(pipe.fault, value, value_size)
    return 0


cdef int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data,
                 size_t size, void *user) noexcept nogil:
    """A piece of what the server says came."""
    cdef Pipe *pipe = <Pipe *>nghttp2_session_get_stream_user_data(session, stream)
    if pipe != NULL and not feed(pipe, data, size):
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_frame(nghttp2_session *session, const nghttp2_frame *frame,
                  void *user) noexcept nogil:
    """A frame is whole: it may be the server's last one of a stream that we would keep open."""
    cdef Pipe *pipe
    if ends_stream(frame):
        pipe = <Pipe *>nghttp2_session_get_stream_user_data(session, stream_of(frame))
        if pipe != NULL:
            pipe.ended(pipe)
    return 0


cdef int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t error,
                         void *user) noexcept nogil:
    """The stream is over, by a reset if its end was not seen before."""
    cdef Pipe *pipe = <Pipe *>nghttp2_session_get_stream_user_data(session, stream)
    if pipe != NULL:
        pipe.ended(pipe)
    return 0


# -- messages

cdef bint feed(Pipe *pipe, const uint8_t *data, size_t size) noexcept nogil:
    """Give all whole messages to `consume` and keep the rest; False when it cannot be read."""
    cdef size_t wanted, piece
    while size:
        if pipe.carry_size == 0 and data[0] != 0:
            fault_say(pipe.fault, b"a message is compressed")
            return False
        if pipe.carry_size == 0:
            piece = take_whole(pipe, data, size)
            if piece == 0:
                return keep(pipe, data, size)
        else:
            wanted = GRPC_PREFIX
            if pipe.carry_size >= GRPC_PREFIX:
                wanted += size_in_prefix(pipe.carry)
            piece = min(wanted - pipe.carry_size, size)
            if not keep(pipe, data, piece):
                return False
            if take_whole(pipe, pipe.carry, pipe.carry_size):
                pipe.carry_size = 0
        data += piece
        size -= piece
    return True


cdef inline size_t take_whole(Pipe *pipe, const uint8_t *data, size_t size) noexcept nogil:
    """Consume the first message if it is whole; its bytes with the prefix, or 0."""
    cdef size_t wanted
    if size < GRPC_PREFIX:
        return 0
    wanted = size_in_prefix(data)
    if size - GRPC_PREFIX < wanted:
        return 0
    pipe.consume(pipe, data + GRPC_PREFIX, wanted)
    return GRPC_PREFIX + wanted


cdef bint keep(Pipe *pipe, const uint8_t *data, size_t size) noexcept nogil:
    """Append to the carry; False when memory is out."""
    cdef size_t wanted = pipe.carry_size + size
    cdef size_t capacity = pipe.carry_capacity or 512
    cdef uint8_t *grown
    if wanted > pipe.carry_capacity:
        while capacity < wanted:
            capacity *= 2
        grown = <uint8_t *>realloc(pipe.carry, capacity)
        if grown == NULL:
            fault_say(pipe.fault, b"no memory for a message")
            return False
        pipe.carry = grown
        pipe.carry_capacity = capacity
    memcpy(pipe.carry + pipe.carry_size, data, size)
    pipe.carry_size = wanted
    return True
