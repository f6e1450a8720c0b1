"""Where values lie that are not inside their versions: in a block of the arena until a file has
them, and then in the mapping of that file, as page cache that can be dropped and read again.

Rules:
1. A value moves only by `move`, between two turns, when nobody has its address; its version stays
   where it is.
2. A mapping stays as long as one value is read from it: after a file was replaced, garbage that
   readers still need may lie in the one before.
"""

from libc.stdint cimport uint8_t
from libc.stdlib cimport abort
from libc.string cimport memcpy

from quorate.core._mapping cimport Mapping
from quorate.core._version cimport VERSION_MAPPED, version_place


cdef class Values:
    """The larger values of a store."""

    def __cinit__(self, Arena arena not None):
        self.arena = arena
        self.mappings = []

    def add_mapping(self, Mapping mapping not None):
        """Let values be read from a file; False while too many older ones are still in use."""
        cdef size_t count = len(self.mappings)
        if count == MAPPINGS_MAX:
            return False
        self.files[count] = MappedFile(mapping.data, mapping.data + mapping.reach, 0)
        self.mappings.append(mapping)
        return True

    def drop_mappings(self):
        """Let go of the files that no value is read from any more, but for the newest; which."""
        cdef size_t kept = 0
        cdef size_t count = len(self.mappings)
        cdef size_t number
        dropped = []
        for number in range(count):
            if self.files[number].values or number + 1 == count:
                self.files[kept] = self.files[number]
                self.mappings[kept] = self.mappings[number]
                kept += 1
            else:
                dropped.append(self.mappings[number])
        del self.mappings[kept:]
        return dropped

    cdef int put(self, Version *version, const uint8_t *value) except -1 nogil:
        """Give a new version's value its place."""
        cdef uint8_t *block
        if self.in_place:
            version.flags |= VERSION_MAPPED
            version_place(version)[0] = value
            self._file_at(value).values += 1
            return 0
        block = <uint8_t *>self.arena.allocate(version.value_size)
        if block == NULL:
            with gil:
                raise MemoryError(f"no memory for a value of {version.value_size} bytes")
        memcpy(block, value, version.value_size)
        version_place(version)[0] = block
        self.blocks += 1
        return 0

    cdef void move(self, Version *version, const uint8_t *place) noexcept nogil:
        """Read the value from a mapping from now on."""
        self.leave(version)
        version.flags |= VERSION_MAPPED
        version_place(version)[0] = place
        self._file_at(place).values += 1

    cdef void leave(self, Version *version) noexcept nogil:
        """Give the value's place back."""
        if version.flags & VERSION_MAPPED:
            self._file_at(version_place(version)[0]).values -= 1
        else:
            self.arena.release(<void *>version_place(version)[0], version.value_size)
            self.blocks -= 1

    cdef MappedFile *_file_at(self, const uint8_t *place) noexcept nogil:
        """The mapped file that a place lies in."""
        cdef int number = 0
        while not self.files[number].data <= place < self.files[number].end:
            number += 1
            if number == MAPPINGS_MAX:
                abort()
        return &self.files[number]
