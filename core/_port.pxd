# cython: language_level=3
"""One worker as the core sees it: its rings, and replies that wait for room or a slow client."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._ring cimport Doorbell, Ring


cdef class LongReply:
    # A reply that is sent in slices as its client reads.
    cdef uint64_t request_id
    cdef size_t credit          # bytes that may still be sent before the worker pulls more
    cdef uint32_t age           # milliseconds since it began
    cdef bint waits             # set by a step that found nothing to do

    cdef bint step(self, Port port) except -1
    cdef bint hinders(self) noexcept
    cdef int relieve(self) except -1
    cdef void finish(self) noexcept


cdef class Blob(LongReply):
    # A finished message that is longer than one record.
    cdef Buffer message         # owned
    cdef size_t sent


cdef class Port:
    cdef readonly Ring requests     # this side consumes
    cdef readonly Ring replies      # this side produces
    cdef readonly Doorbell bell     # the worker's
    cdef readonly uint32_t slot
    cdef readonly uint32_t generation
    cdef readonly bint corrupt      # the worker wrote nonsense into its ring: it must be replaced
    cdef public uint64_t dropped    # records that did not check
    cdef Buffer backlog             # reply records that found no room: u32 size, then the record
    cdef size_t backlog_at          # the first of them not yet pushed
    cdef dict long_replies          # request id -> LongReply
    cdef bint pushed                # something was committed since the last flush
    cdef bint follows               # the worker reads the event ring
    cdef bint wants_previous        # and has a watcher that asked for previous key-values
    cdef public object channel      # socket over which the worker gets descriptors, or None

    cdef int reply(self, uint64_t request_id, uint16_t flags, uint16_t error, uint64_t extra,
                   const uint8_t *data, size_t size) except -1
    cdef int reply_message(self, uint64_t request_id, const uint8_t *data, size_t size) except -1
    cdef int refuse(self, uint64_t request_id, uint16_t error) except -1
    cdef int start(self, LongReply reply) except -1
    cdef void pull(self, uint64_t request_id, uint64_t credit)
    cdef void cancel(self, uint64_t request_id)
    cdef bint blocked(self) noexcept
    cdef int _push_backlog(self) noexcept


cdef bint send_slice(
    LongReply reply, Port port, const Buffer *message, size_t *sent) except -1
