"""One-writer, one-reader rings in shared memory, and doorbells for those who sleep.

Rules:
1. A ring is made by the core before the fork that hands it on, in a sealed memfd without a name,
   and has one producer process and one consumer process.
2. Neither side ever reads its own counter back from shared memory, and what it reads of the other
   side's is checked against its own before use. A lie makes `pop` answer -1 or `reserve` answer
   NULL, never a wild access.
3. The data is mapped twice in a row, so that every record is one piece of memory.
4. A producer makes its records visible with one `publish` per batch and then rings the doorbell;
   the doorbell costs a system call only while its owner sleeps. Who is about to sleep says so first
   and looks once more (store, fence, load on both sides, as in Dekker's algorithm), so that no
   wake-up is ever lost.

A hostile neighbour can still clear a sleeper's flag and so delay it; the core's tick bounds that.
"""

import os

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE,
    PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.unistd cimport close, ftruncate, read, write

from quorate.core._atomic cimport (
    quorate_exchange, quorate_fence, quorate_load, quorate_store,
)
from quorate.core._bytes cimport load_le32, store_le32

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initial, int flags)
    int EFD_NONBLOCK, EFD_CLOEXEC

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int command, ...)
    int F_ADD_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int milliseconds)
    int POLLIN

cdef enum:
    # Of a ring's mapping: the counters stand on a page of their own before the data.
    HEADER_SIZE = 4096
    # Of a doorbell's page: the command, in u32 after `asleep`, on a cache line of its own.
    COMMAND_PLACE = 16


cdef class Doorbell:
    """Wakes one sleeping process; its ringers are the processes that share memory with it."""

    def __cinit__(self):
        cdef void *page
        self.fd = -1
        page = mmap(NULL, HEADER_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        if page == MAP_FAILED:
            raise MemoryError("no memory for a doorbell")
        self.asleep = <uint32_t *>page
        self.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.fd < 0:
            raise OSError("eventfd failed")

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        if self.asleep != NULL:
            munmap(self.asleep, HEADER_SIZE)

    cdef void ring(self) noexcept nogil:
        """Wake the owner if it sleeps; call it after `publish`."""
        cdef uint64_t one = 1
        quorate_fence()
        if self.asleep[0] and quorate_exchange(self.asleep, 0):
            write(self.fd, &one, sizeof(one))

    cdef void announce_sleep(self) noexcept nogil:
        """Say "I sleep"; then look at every ring once more before waiting for `fd`."""
        quorate_exchange(self.asleep, 1)
        quorate_fence()

    cdef void awake(self) noexcept nogil:
        """Take the announcement back and empty `fd`, which not only ringers may have written."""
        cdef uint64_t count
        quorate_exchange(self.asleep, 0)
        read(self.fd, &count, sizeof(count))

    def wake(self):
        """Ring from Python."""
        self.ring()

    def sleep(self):
        """Announce sleep from Python."""
        self.announce_sleep()

    def wait(self, int milliseconds):
        """Wait for a ring without the GIL; False when the time was up. The sleep stays announced.
        """
        cdef pollfd waited
        cdef int got
        waited.fd = self.fd
        waited.events = POLLIN
        with nogil:
            got = poll(&waited, 1, milliseconds)
        return got > 0

    def rise(self):
        """Wake up from Python: take the announcement back and empty `fd`."""
        self.awake()

    @property
    def command(self):
        """What the core wants of the bell's owner: a number that the two agree on, 0 at first."""
        return self.asleep[COMMAND_PLACE]

    @command.setter
    def command(self, uint32_t command):
        cdef uint64_t one = 1
        self.asleep[COMMAND_PLACE] = command
        write(self.fd, &one, sizeof(one))


cdef class Ring:
    """A queue of records from one process to another."""

    def __cinit__(self, uint64_t capacity, Ring other_side=None):
        assert capacity >= HEADER_SIZE and capacity & (capacity - 1) == 0, capacity
        self.capacity = capacity
        if other_side is not None:
            self.fd = os.dup(other_side.fd)
        else:
            self.fd = os.memfd_create("quorate-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            if ftruncate(self.fd, HEADER_SIZE + capacity) != 0:
                raise MemoryError(f"no shared memory for a ring of {capacity} bytes")
            fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
        self._map()

    def other_side(self):
        """The same ring for the other role in this process; a forked one just uses its copy."""
        return Ring(self.capacity, self)

    def _map(self):
        cdef uint8_t *base
        cdef size_t size = HEADER_SIZE + 2 * self.capacity
        base = <uint8_t *>mmap(
            NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if base == <uint8_t *>MAP_FAILED:
            raise MemoryError("no address space for a ring")
        self.shared = <RingShared *>base
        self.data = base + HEADER_SIZE
        self._map_piece(base, HEADER_SIZE + self.capacity, 0)
        self._map_piece(self.data + self.capacity, self.capacity, HEADER_SIZE)

    cdef int _map_piece(self, uint8_t *at, size_t size, size_t offset) except -1:
        cdef void *got = mmap(
            at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, self.fd, offset)
        if got == MAP_FAILED:
            raise MemoryError("a ring could not be mapped")
        return 0

    def __dealloc__(self):
        if self.shared != NULL:
            munmap(self.shared, HEADER_SIZE + 2 * self.capacity)
        if self.fd >= 0:
            close(self.fd)

    # --- producer ---

    cdef size_t room(self) noexcept nogil:
        """The largest record that `reserve` would grant now."""
        cdef uint64_t free
        self.other = quorate_load(&self.shared.tail)
        if self.position - self.other > self.capacity:
            # A tail ahead of us, or more than a ring behind, is a lie: its consumer gets no more.
            self.other = self.position - self.capacity
        free = self.capacity - (self.position - self.other)
        return free - FRAME_SIZE if free > FRAME_SIZE else 0

    cdef uint8_t *reserve(self, size_t size) noexcept nogil:
        """Room for a record of `size` bytes; NULL: none now. `commit` before the next `reserve`."""
        cdef uint64_t need = FRAME_SIZE + ((size + 7) & ~<size_t>7)
        if need > self.capacity - (self.position - self.other):
            self.room()
            if need > self.capacity - (self.position - self.other):
                return NULL
        return self.data + (self.position & (self.capacity - 1)) + FRAME_SIZE

    cdef void commit(self, size_t size) noexcept nogil:
        """The record reserved last is complete and `size` bytes long (at most what was reserved).
        """
        cdef uint8_t *at = self.data + (self.position & (self.capacity - 1))
        store_le32(at, <uint32_t>size)
        store_le32(at + 4, self.sequence)
        self.sequence += 1
        self.position += FRAME_SIZE + ((size + 7) & ~<size_t>7)

    cdef void publish(self) noexcept nogil:
        """Make all committed records visible."""
        quorate_store(&self.shared.head, self.position)

    # --- consumer ---

    cdef int pop(self, const uint8_t **data, size_t *size) noexcept nogil:
        """The next record: 1 and where it lies, 0 for none, -1 when the producer wrote nonsense."""
        cdef uint64_t ready = self.other - self.position
        cdef const uint8_t *at
        cdef uint64_t length
        if ready == 0:
            self.other = quorate_load(&self.shared.head)
            ready = self.other - self.position
            if ready == 0:
                return 0
        at = self.data + (self.position & (self.capacity - 1))
        length = load_le32(at)
        if (ready > self.capacity or ready < FRAME_SIZE or load_le32(at + 4) != self.sequence
                or FRAME_SIZE + ((length + 7) & ~<uint64_t>7) > ready):
            return -1
        data[0] = at + FRAME_SIZE
        size[0] = length
        self.sequence += 1
        self.position += FRAME_SIZE + ((length + 7) & ~<uint64_t>7)
        return 1

    cdef void release(self) noexcept nogil:
        """Everything popped so far may be overwritten."""
        quorate_store(&self.shared.tail, self.position)

    cdef bint empty(self) noexcept nogil:
        """Whether nothing waits to be popped."""
        return self.other == self.position and quorate_load(&self.shared.head) == self.position

    # --- for tests and slow paths ---

    def push(self, bytes record):
        """Push and publish one record; False when there is no room."""
        cdef const uint8_t[::1] view = record
        cdef uint8_t *at = self.reserve(len(record))
        if at == NULL:
            return False
        for i in range(len(record)):
            at[i] = view[i]
        self.commit(len(record))
        self.publish()
        return True

    def pull(self):
        """Pop and release one record, or None. Raises ValueError when the ring is corrupt."""
        cdef const uint8_t *data = NULL
        cdef size_t size = 0
        cdef int got = self.pop(&data, &size)
        if got < 0:
            raise ValueError("the ring is corrupt")
        if got == 0:
            return None
        record = data[:size]
        self.release()
        return record

    def poke(self, uint64_t offset, bytes data):
        """Overwrite shared bytes, counters included, as a hostile neighbour would; for tests."""
        cdef Py_ssize_t i
        assert offset + len(data) <= HEADER_SIZE + self.capacity
        for i in range(len(data)):
            (<uint8_t *>self.shared)[offset + <uint64_t>i] = data[i]

    def check(self):
        """Raise AssertionError unless every invariant of this side holds."""
        assert self.position % 8 == 0, self.position
        assert self.shared.head % 8 == 0 and self.shared.tail % 8 == 0
        assert self.shared.tail <= self.shared.head <= self.shared.tail + self.capacity
