"""Checksums of the parts of a file whose bytes never change once they are written.

Rules:
1. Parts have PART_BYTES each, from `start` on. The last one grows with the file, and its sum does.
2. Who writes the file takes what it writes into sums of its own, and they become part of the
   file's when that is durable (`add`): what a failed write leaves is in no sum.
3. What nobody took when it was written is taken by whoever reads it first.
"""

from libc.string cimport memset

from quorate.core._bytes cimport buffer_free, buffer_reserve, crc32c


cdef class FileSums:
    """What each part of one file is known to be."""

    def __init__(self, uint64_t start):
        self.start = start

    def __dealloc__(self):
        buffer_free(&self.parts)

    def begin(self, uint64_t offset):
        """Sums for what will be written from `offset` on, to be added to these."""
        cdef FileSums sums = FileSums(self.start)
        cdef PartSum part
        sums.first = (offset - self.start) // PART_BYTES
        part = self.part(sums.first)
        if part.size and part.size == (offset - self.start) % PART_BYTES:
            sums.place(sums.first)[0] = part
        return sums

    def add(self, FileSums newer not None):
        """Know what `newer` knows, too: it began with these."""
        cdef uint64_t number
        cdef PartSum part
        assert newer.start == self.start, (newer.start, self.start)
        for number in range(newer.first, newer.first + newer.parts.size // sizeof(PartSum)):
            part = newer.part(number)
            if part.size:
                self.place(number)[0] = part

    cdef PartSum part(self, uint64_t number) noexcept nogil:
        if number < self.first or number - self.first >= self.parts.size // sizeof(PartSum):
            return PartSum(0, 0)
        return (<PartSum *>self.parts.data)[number - self.first]

    cdef PartSum *place(self, uint64_t number) except NULL nogil:
        """Where the sum of a part is kept."""
        cdef size_t size = (number - self.first + 1) * sizeof(PartSum)
        if self.parts.size < size:
            buffer_reserve(&self.parts, size - self.parts.size)
            memset(self.parts.data + self.parts.size, 0, size - self.parts.size)
            self.parts.size = size
        return (<PartSum *>self.parts.data) + (number - self.first)

    cdef int take(self, uint64_t offset, const uint8_t *data, uint64_t size) except -1 nogil:
        cdef PartSum *part
        cdef uint64_t within, piece
        while size:
            part = self.place((offset - self.start) // PART_BYTES)
            within = (offset - self.start) % PART_BYTES
            piece = min(size, PART_BYTES - within)
            if part.size == within:
                part.crc = crc32c(part.crc, data, piece)
                part.size += <uint32_t>piece
            offset += piece
            data += piece
            size -= piece
        return 0
