# cython: language_level=3
"""A file in memory, mapped further than it reaches today. See `_mapping.pyx`."""

from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef class Mapping:
    cdef const uint8_t *data
    cdef readonly uint64_t reach    # bytes of the file, now or later, that `data` shows
    cdef readonly str path          # for messages
    cdef object content             # of a disk that cannot map: what was read
    cdef int owner_pid
