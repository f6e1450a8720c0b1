# cython: language_level=3
"""A set of numbered keys under one prefix, and what the server acknowledged of each.

Rules:
- Key n is the prefix and n in nine digits. A value begins with n and the serial number of the
  write, so that a read proves whose value came back, and of which write.
- A deleted key is as one that was never put: while deletes run, nobody else works on the keyspace.
- Several loads may read one keyspace at once; only one at a time may write to it. The fields that
  they share only ever make a check weaker when they are late, never false.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

cimport cython


@cython.final
cdef class Keyspace:
    """Numbered keys with values of one size."""

    def __cinit__(self, bytes prefix not None, int64_t count, size_t value_size=256):
        cdef size_t place
        if not 0 < len(prefix) < PREFIX_MAX:
            raise ValueError(f"a prefix has 1 to {PREFIX_MAX - 1} bytes, not {len(prefix)}")
        if not 0 < count <= 10 ** DIGITS:
            raise ValueError(f"a keyspace has 1 to {10 ** DIGITS} keys, not {count}")
        if value_size < STAMP:
            raise ValueError(f"a value has at least {STAMP} bytes, not {value_size}")
        memcpy(self.keys.prefix, <const uint8_t *>prefix, len(prefix))
        self.keys.prefix_size = len(prefix)
        self.keys.key_size = len(prefix) + DIGITS
        self.keys.value_size = value_size
        self.keys.count = count
        self.keys.filler = <uint8_t *>malloc(value_size)
        self.keys.revisions = <int64_t *>calloc(count, sizeof(int64_t))
        self.keys.serials = <uint64_t *>calloc(count, sizeof(uint64_t))
        self.keys.versions = <uint32_t *>calloc(count, sizeof(uint32_t))
        if not (self.keys.filler and self.keys.revisions and self.keys.serials
                and self.keys.versions):
            raise MemoryError(f"no memory for a keyspace of {count} keys")
        for place in range(value_size):
            self.keys.filler[place] = <uint8_t>(33 + place * 7 % 94)

    def __dealloc__(self):
        free(self.keys.filler)
        free(self.keys.revisions)
        free(self.keys.serials)
        free(self.keys.versions)

    @property
    def prefix(self):
        """What every key begins with."""
        return self.keys.prefix[:self.keys.prefix_size]

    @property
    def prefix_end(self):
        """The end of the range that holds every key."""
        cdef size_t last = self.keys.prefix_size - 1
        return self.keys.prefix[:last] + bytes([self.keys.prefix[last] + 1])

    @property
    def count(self):
        """How many keys there are."""
        return self.keys.count

    @property
    def bytes_each(self):
        """Bytes of one key and its value."""
        return self.keys.key_size + self.keys.value_size

    @property
    def value_size(self):
        """Bytes of one value."""
        return self.keys.value_size

    @property
    def highest(self):
        """The highest revision that any write's reply showed."""
        return self.keys.highest

    @property
    def writes(self):
        """How many writes were acknowledged."""
        return self.keys.writes

    def key(self, int64_t number):
        """The key of this number."""
        return self.prefix + b"%09d" % number

    def value(self, int64_t number, uint64_t serial):
        """What write `serial` puts under this key."""
        cdef bytes value = bytes(self.keys.value_size)
        write_value(&self.keys, <uint8_t *>value, number, serial)
        return value
