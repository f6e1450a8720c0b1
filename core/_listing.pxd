# cython: language_level=3
"""Replies that outlast a turn: long lists, streams of them, hashes, and the end of a compaction."""

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
    cdef size_t message_size        # bytes of the message under way; 0 before it begins

    cdef bint _send(self, Port port, uint16_t flags) except -1


cdef class Stream(Listing):
    # A RangeStream: chunks of about `chunk_bytes`, each a message.
    cdef size_t chunk_bytes
    cdef size_t limit               # key-values of the next chunk
    cdef size_t chunk_end           # the chunk under way ends before this key-value

    cdef int _begin_chunk(self) except -1


cdef class Hashing(LongReply):
    # A HashKV.
    cdef Store store
    cdef Header header
    cdef HashState state


cdef class CompactionWait(LongReply):
    # A physical compaction is answered when its removal is done.
    cdef Store store
    cdef Header header
    cdef int64_t revision
