"""The event ring: what the core has written of every revision, for all workers to read.

Rules:
1. One writer, any number of readers, and the writer waits for none: it overwrites what is a ring
   old. A reader copies, then looks whether what it copied was overwritten meanwhile; if so it is
   told that it was overrun, and asks the core for the rest (a METHOD_FOLLOW).
2. Records become visible with `publish`, and only then the revision whose events they are: who
   reads the revision first and the head after it, sees all its events.
3. Readers map it read-only. The memfd is sealed: no process can map it writable once the core has.
4. The data is mapped twice in a row, so that every record is one piece of memory.
"""

import os

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE,
    PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.unistd cimport close, ftruncate

from quorate.core._atomic cimport (
    quorate_fence_loads, quorate_fence_stores, quorate_load, quorate_load_signed, quorate_store,
    quorate_store_signed,
)
from quorate.core._bytes cimport Buffer, buffer_reserve

cdef extern from *:
    """
    #include <fcntl.h>
    #ifndef F_SEAL_FUTURE_WRITE
    #define F_SEAL_FUTURE_WRITE 0x0010      /* Linux 5.1 */
    #endif
    """
    int fcntl(int fd, int command, ...) nogil
    int F_ADD_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE

cdef enum:
    HEADER_SIZE = 4096


cdef void *map_twice(int fd, uint64_t capacity, int protection) except NULL:
    """The header page, and behind it the data twice."""
    cdef size_t size = HEADER_SIZE + 2 * capacity
    cdef uint8_t *base = <uint8_t *>mmap(
        NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef void *got
    if base == <uint8_t *>MAP_FAILED:
        raise MemoryError("no address space for the event ring")
    got = mmap(base, HEADER_SIZE + capacity, protection, MAP_SHARED | MAP_FIXED, fd, 0)
    if got != MAP_FAILED:
        got = mmap(
            base + HEADER_SIZE + capacity, capacity, protection, MAP_SHARED | MAP_FIXED, fd,
            HEADER_SIZE)
    if got == MAP_FAILED:
        munmap(base, size)
        raise MemoryError("the event ring could not be mapped")
    return base


cdef class EventRing:
    """The core's side."""

    def __cinit__(self, uint64_t capacity):
        assert capacity >= HEADER_SIZE and capacity & (capacity - 1) == 0, capacity
        self.capacity = capacity
        self.fd = os.memfd_create("quorate-events", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        if ftruncate(self.fd, HEADER_SIZE + capacity) != 0:
            raise MemoryError(f"no shared memory for an event ring of {capacity} bytes")
        self.shared = <EventShared *>map_twice(self.fd, capacity, PROT_READ | PROT_WRITE)
        self.data = <uint8_t *>self.shared + HEADER_SIZE
        fcntl(self.fd, F_ADD_SEALS,
              F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)

    def __dealloc__(self):
        self.close()

    def close(self):
        """Let go of it: in a process that was forked, and only reads."""
        if self.shared != NULL:
            munmap(self.shared, HEADER_SIZE + 2 * self.capacity)
            self.shared = NULL
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    def identify(self, uint64_t cluster_id, uint64_t member_id, uint64_t raft_term):
        """Tell what response headers show besides the revision."""
        self.shared.cluster_id = cluster_id
        self.shared.member_id = member_id
        self.shared.raft_term = raft_term

    cdef void write(self, const uint8_t *records, size_t size) noexcept nogil:
        """Append whole records, not visible yet; at most a ring's worth at once."""
        quorate_store(&self.shared.writing, self.position + size)
        # Whoever reads any of these bytes sees that they were about to be written.
        quorate_fence_stores()
        memcpy(self.data + (self.position & (self.capacity - 1)), records, size)
        self.position += size

    cdef void publish(self, int64_t revision) noexcept nogil:
        """Make what was written visible, and the revision up to which it goes."""
        quorate_store(&self.shared.head, self.position)
        quorate_store_signed(&self.shared.revision, revision)

    # --- for tests ---

    def append(self, bytes records, int64_t revision):
        """`write` and `publish`."""
        self.write(records, len(records))
        self.publish(revision)


cdef class EventReader:
    """A worker's side; it starts at the head."""

    def __cinit__(self, EventRing ring not None):
        self.capacity = ring.capacity
        self.shared = <EventShared *>map_twice(ring.fd, ring.capacity, PROT_READ)
        self.data = <uint8_t *>self.shared + HEADER_SIZE
        self.position = self.head()

    def __dealloc__(self):
        if self.shared != NULL:
            munmap(self.shared, HEADER_SIZE + 2 * self.capacity)

    cdef uint64_t head(self) noexcept nogil:
        """Bytes ever published."""
        return quorate_load(&self.shared.head)

    cdef int64_t revision(self) noexcept nogil:
        """The store's revision; all its events lie before a `head` asked for after this."""
        return quorate_load_signed(&self.shared.revision)

    cdef bint copy(self, Buffer *out, uint64_t head, size_t bytes_max) except -1 nogil:
        """Append the next whole records before `head`, about `bytes_max` bytes; False: overrun.

        A record that is longer than `bytes_max` comes alone. Raises MemoryError.
        """
        cdef uint64_t ready = head - self.position
        cdef size_t size = 0
        cdef const uint8_t *at = self.data + (self.position & (self.capacity - 1))
        cdef uint32_t record
        if ready == 0 or ready > self.capacity:
            return ready == 0
        while size < ready and size < bytes_max:
            record = (<const EventRecord *>(at + size)).size
            if record < sizeof(EventRecord) or record > ready - size:
                return False    # it is being overwritten
            if size and size + record > bytes_max:
                break
            size += record
        buffer_reserve(out, size)
        memcpy(out.data + out.size, at, size)
        quorate_fence_loads()
        if quorate_load(&self.shared.writing) - self.position > self.capacity:
            return False
        out.size += size
        self.position += size
        return True

    # --- for tests ---

    def read(self, size_t bytes_max=1 << 30):
        """`copy` up to the head: bytes, or None when overrun."""
        cdef Buffer out
        out.data = NULL
        out.size = out.capacity = 0
        if not self.copy(&out, self.head(), bytes_max):
            return None
        return out.data[:out.size]

    @property
    def seen(self):
        """`revision`, for tests."""
        return self.revision()
