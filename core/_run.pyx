"""A run of raft entries in C memory.

Rules:
1. One client request is one entry, as in etcd; a run is what one turn gathered, and all that raft,
   the log and the store see of it per batch.
2. A run is filled (`add`), given its place in the log (`assign`), and immutable from then on.
3. All entries of a run have the same term and consecutive indexes.
4. Waiters belong to the run: whoever drops the run without applying it answers them.
"""

from libc.string cimport memcpy

from quorate.core._bytes cimport buffer_append, buffer_free, buffer_reserve, load_le32, store_le32


cdef class Run:
    """Consecutive raft entries of one term."""

    def __dealloc__(self):
        buffer_free(&self.entries)
        buffer_free(&self.waiters)

    @staticmethod
    def of(entries):
        """A run of the given (type, data) pairs, in order; nobody waits for them."""
        cdef Run run = Run()
        cdef bytes data
        for entry_type, data in entries:
            at = run.add(len(data), entry_type)
            memcpy(at, <const uint8_t *>data, len(data))
        return run

    cpdef assign(self, uint64_t first_index, uint64_t term):
        """Give the run its place in the log, once or again after it was dropped and proposed anew.
        """
        assert first_index > 0 and term > 0, (first_index, term)
        self.first_index = first_index
        self.term = term

    cdef uint8_t *add(self, size_t size, uint32_t entry_type) except NULL nogil:
        """Append an entry of `size` data bytes and answer where to write them."""
        cdef uint8_t *at
        buffer_reserve(&self.entries, ENTRY_HEADER_SIZE + size)
        at = self.entries.data + self.entries.size
        store_le32(at, <uint32_t>size)
        store_le32(at + 4, entry_type)
        self.entries.size += ENTRY_HEADER_SIZE + size
        self.count += 1
        if entry_type != ENTRY_NORMAL:
            self.has_conf_change = True
        return at + ENTRY_HEADER_SIZE

    cdef int add_waiter(self, Waiter *waiter) except -1 nogil:
        """Say who waits for the entry added last; either every entry of a run has one or none has.
        """
        return buffer_append(&self.waiters, <const uint8_t *>waiter, sizeof(Waiter))

    @property
    def last_index(self):
        """The raft index of the last entry."""
        return self.first_index + self.count - 1

    @property
    def size(self):
        """Bytes of the packed entries."""
        return self.entries.size

    def unpack(self):
        """The entries as a list of (type, data), for tests and entries that Python handles."""
        result = []
        cdef size_t at = 0
        cdef size_t size
        while at < self.entries.size:
            size = load_le32(self.entries.data + at)
            entry_type = load_le32(self.entries.data + at + 4)
            at += ENTRY_HEADER_SIZE
            result.append((entry_type, self.entries.data[at:at + size]))
            at += size
        return result

    def __repr__(self):
        return f"<Run {self.first_index}..{self.last_index} term {self.term}, {self.size} bytes>"
