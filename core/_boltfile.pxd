# cython: language_level=3
"""A bucket of a bbolt file that is read, not mapped. See `_boltfile.pyx`."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from quorate.core._bolt cimport LEVELS_MAX, Bolt, Cursor
from quorate.core._bytes cimport Buffer
from quorate.core._disk cimport Disk
from quorate.core._protobuf cimport Span


cdef class OpenFile:
    cdef readonly Disk disk
    cdef readonly str path          # for messages
    cdef readonly int64_t handle

    # All of `size` bytes. Raises DiskError.
    cdef int read(self, uint8_t *data, size_t size, uint64_t offset) except -1 nogil


cdef class FileCursor(Cursor):
    cdef OpenFile file
    cdef Buffer[LEVELS_MAX] pages   # the page of the frame at each depth
    cdef uint64_t bytes_read

    cdef int load(self, int depth, uint64_t id, Span low, Span high) except -1 nogil
    cdef uint64_t node_size(self, const uint8_t *page, uint64_t id) except? 0 nogil
