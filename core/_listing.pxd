# cython: language_level=3
"""Replies that take longer than a turn: long lists, streams of them, hashes, and the end of a
compaction.
"""

from libc.stdint cimport int64_t, uint16_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._mvcc cimport HashState, Store
from quorate.core._port cimport LongReply, Port
from quorate.core._reply cimport Header
from quorate.core._selection cimport Selection


cdef class Listing(LongReply):
    # A long RangeResponse, in slices.
    cdef Selection selection        # held
    cdef Header header
    cdef Buffer pending             # encoded and not yet sent
    cdef size_t pending_at
    cdef size_t next                # key-value to encode next
    cdef size_t total_size          # bytes of the whole message; 0 until the head is encoded
    cdef bint encoded               # the tail is encoded too

    cdef int _send(self, Port port, uint16_t flags, bint last) except -1
    cdef int _encode(self) except -1


cdef class Stream(Listing):
    # A RangeStream: chunks of about `chunk_bytes`, each a message.
    cdef size_t chunk_bytes
    cdef size_t limit               # key-values of the next chunk
    cdef size_t chunk_size          # bytes of the chunk under way; 0 = none

    cdef int _encode_chunk(self) except -1
    cdef size_t _chunk_end(self) noexcept
    cdef int _send_chunk(self, Port port) except -1


cdef class Hashing(LongReply):
    # A HashKV, or Hash.
    cdef Store store
    cdef Header header
    cdef HashState state
    cdef bint is_hash_kv


cdef class CompactionWait(LongReply):
    # A physical compaction is answered when its removal is done.
    cdef Store store
    cdef Header header
    cdef int64_t revision
