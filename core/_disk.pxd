# cython: language_level=3
"""The contract `Disk`: C-level methods that a thread calls without the GIL, and their two homes."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    PATH_BYTES_MAX = 4096


cdef class Disk:
    # A C-level method answers a result >= 0, or -errno; it never raises and never needs the GIL.
    # A handle is >= 0 and names an open file until `file_close`.
    cdef int64_t file_open(self, const char *path, bint create) noexcept nogil
    cdef int64_t file_close(self, int64_t handle) noexcept nogil
    cdef int64_t file_lock(self, int64_t handle) noexcept nogil
    cdef int64_t file_size(self, int64_t handle) noexcept nogil
    cdef int64_t file_read(
        self, int64_t handle, uint8_t *data, size_t size, uint64_t offset) noexcept nogil
    cdef int64_t file_write(
        self, int64_t handle, const uint8_t *data, size_t size, uint64_t offset) noexcept nogil
    cdef int64_t file_datasync(self, int64_t handle) noexcept nogil
    # Final size at once, reading as zeros, without writing them.
    cdef int64_t file_allocate(self, int64_t handle, uint64_t size) noexcept nogil
    # Written zeros on the device when it returns, in pieces, so that others' syncs get between.
    cdef int64_t file_fill(self, int64_t handle, uint64_t offset, uint64_t size) noexcept nogil
    # Have what was written there on the device, or on its way, before more is written: so that
    # others' syncs find a short queue. Whether it is durable is what a later datasync says.
    cdef void file_pace(self, int64_t handle, uint64_t offset, uint64_t size) noexcept nogil
    # The first offset >= `offset` that was never written (and so would allocate), at most size.
    cdef int64_t file_hole(self, int64_t handle, uint64_t offset) noexcept nogil
    cdef int64_t path_rename(self, const char *source, const char *target) noexcept nogil
    cdef int64_t path_remove(self, const char *path) noexcept nogil
    cdef int64_t path_sync_directory(self, const char *path) noexcept nogil


cdef class OsDisk(Disk):
    pass


cdef class PythonDisk(Disk):
    pass
