# cython: language_level=3
"""Where values lie that are not inside their versions. See `_values.pyx`."""

from libc.stdint cimport uint8_t, uint64_t

from quorate.core._arena cimport Arena
from quorate.core._version cimport Version

cdef enum:
    # Mapped files at a time: the newest, and older ones of which a reader's pin keeps garbage.
    MAPPINGS_MAX = 4


cdef struct MappedFile:
    const uint8_t *data
    const uint8_t *end
    uint64_t values         # that are read here


cdef class Values:
    cdef Arena arena
    cdef readonly uint64_t blocks               # values that have a block of the arena
    cdef public bint in_place                   # values that are put lie in a mapping and stay there
    cdef readonly list mappings                 # the newest file last
    cdef MappedFile[MAPPINGS_MAX] files         # the same for C

    # The versions are VERSION_OUTSIDE.
    cdef int put(self, Version *version, const uint8_t *value) except -1 nogil
    # `place` lies in a mapping. Not while a caller has the value's old address.
    cdef void move(self, Version *version, const uint8_t *place) noexcept nogil
    cdef void leave(self, Version *version) noexcept nogil
    cdef MappedFile *_file_at(self, const uint8_t *place) noexcept nogil
