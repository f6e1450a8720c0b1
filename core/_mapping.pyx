"""A file in memory: values of the store are read from it where they lie.

Rules:
1. A real file is mapped as far as it is ever to grow: what is appended later is seen without
   another call, and nothing that points into the mapping ever moves. Only bytes that the file has
   may be read; it is never cut.
2. A disk that cannot map has its content read, once: `reach` ends with it.
3. A forked child has no such mapping (MADV_DONTFORK).
"""

from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap
from posix.unistd cimport getpid

from libc.errno cimport ENOMEM, errno

from quorate.core._disk import DiskError, OsDisk

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *address, size_t size, int advice)
    int MADV_DONTFORK
    int MAP_NORESERVE


cdef class Mapping:
    """All of a file that was open when this was made; the descriptor may be closed then."""

    def __init__(self, disk, int64_t handle, str path, uint64_t reach=0):
        """Raises DiskError. `reach` counts where it is more than the file has."""
        cdef uint64_t size = disk.size(handle, path)
        cdef void *at
        cdef const uint8_t[::1] content
        assert self.data == NULL
        self.path = path
        self.owner_pid = getpid()
        if not isinstance(disk, OsDisk):
            self.content = disk.read(handle, size, 0, path)
            content = self.content
            self.reach = size
            self.data = &content[0] if size else NULL
            return
        reach = max(reach, size)
        at = mmap(NULL, reach, PROT_READ, MAP_SHARED | MAP_NORESERVE, <int>handle, 0)
        if at == MAP_FAILED and errno == ENOMEM and size:
            # The address space is limited (ulimit -v).
            reach = size
            at = mmap(NULL, reach, PROT_READ, MAP_SHARED | MAP_NORESERVE, <int>handle, 0)
        if at == MAP_FAILED:
            raise DiskError("map", path, errno)
        madvise(at, reach, MADV_DONTFORK)
        self.reach = reach
        self.data = <const uint8_t *>at
        self.is_live = True

    def close(self):
        """Unmap it now, which may take long: nobody reads it any more."""
        cdef void *at = <void *>self.data
        cdef uint64_t reach = self.reach
        self.data = NULL
        if self.is_live and at != NULL and self.owner_pid == getpid():
            with nogil:
                munmap(at, reach)

    def __dealloc__(self):
        # Not `content`: the collector may have cleared that.
        if self.data != NULL and self.is_live and self.owner_pid == getpid():
            munmap(<void *>self.data, self.reach)
