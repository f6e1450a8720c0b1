# cython: language_level=3
"""Checksums of the parts of a file whose bytes never change. See `_filesums.pyx`."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer

cdef enum:
    # Bytes of a part: what is read at once to compare it.
    PART_BYTES = 64 * 1024


cdef struct PartSum:
    uint32_t crc
    uint32_t size           # bytes from the part's beginning that `crc` is of; 0: it is not known


cdef class FileSums:
    cdef readonly uint64_t start        # of the first part; what comes before it may change
    cdef uint64_t first                 # the first part in `parts`
    cdef Buffer parts                   # PartSum each

    # The sum of a part; of size 0 when none is known.
    cdef PartSum part(self, uint64_t number) noexcept nogil
    # Take the next bytes: those before them were taken, or their parts stay unknown.
    cdef int take(self, uint64_t offset, const uint8_t *data, uint64_t size) except -1 nogil

    cdef PartSum *place(self, uint64_t number) except NULL nogil
