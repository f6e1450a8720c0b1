"""The disk as the core sees it: the contract `Disk`, the real `OsDisk`, a door for simulated ones.

Rules:
1. The C-level methods (`file_*`, `path_*`) are what hot code and threads call: no GIL, no
   exception, `-errno` on failure.
2. The Python methods are the same operations for code that runs rarely; they raise `DiskError`
   and nothing else.
3. A write is whole or failed; nothing is retried except EINTR and short counts. What a failure
   means is the caller's matter.
4. `PythonDisk` turns every C-level call into the Python method of that name, so that a Python
   subclass is a disk too. It takes the GIL for each call.
5. Directories have mode 0700 and files 0600, as in etcd. All files are opened to read and write.
"""

import fcntl
import mmap
import os

from libc.errno cimport EINTR, EIO, EOPNOTSUPP, errno
from libc.stdlib cimport calloc, free
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_DIRECTORY, O_RDONLY, O_RDWR
from posix.unistd cimport close, fdatasync, fsync, lseek, SEEK_END, unlink

from quorate.core.errors import Fatal

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <stdio.h>
    #include <unistd.h>

    /* On the open file description, as etcd locks on Linux: so each keeps the other out. */
    static int lock_whole_file(int fd) {
        struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        return fcntl(fd, F_OFD_SETLK, &whole);
    }
    """
    enum:
        SEEK_HOLE
        SYNC_FILE_RANGE_WRITE
        SYNC_FILE_RANGE_WAIT_AFTER
        ENXIO
    int open(const char *path, int flags, ...)
    ssize_t pread(int fd, void *data, size_t size, int64_t offset)
    ssize_t pwrite(int fd, const void *data, size_t size, int64_t offset)
    int fallocate(int fd, int mode, int64_t offset, int64_t size)
    int ftruncate(int fd, int64_t size)
    int sync_file_range(int fd, int64_t offset, int64_t size, unsigned int flags)
    int lock_whole_file(int fd)
    int rename(const char *source, const char *target)

cdef enum:
    # Zeros go out in pieces of this size: each is on its way before the next is written, so a
    # concurrent fdatasync waits for one piece at most.
    FILL_PIECE = 128 * 1024


class DiskError(Fatal):
    """An operation of the disk failed: what, where, and the errno."""

    def __init__(self, operation, path, number):
        super().__init__(f"{operation} {path}: {os.strerror(number)} (errno {number})")
        self.operation = operation
        self.path = path
        self.errno = number


def checked(result, operation, path):
    """The result of a C-level call, or the DiskError that it stands for."""
    if result < 0:
        raise DiskError(operation, os.fsdecode(path), -result)
    return result


cdef class Disk:
    """Files and directories, by handle and path; see the module's rules."""

    cdef int64_t file_open(self, const char *path, bint create) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t file_close(self, int64_t handle) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t file_lock(self, int64_t handle) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t file_size(self, int64_t handle) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t file_read(
            self, int64_t handle, uint8_t *data, size_t size, uint64_t offset) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t file_write(
            self, int64_t handle, const uint8_t *data, size_t size, uint64_t offset) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t file_datasync(self, int64_t handle) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t file_allocate(self, int64_t handle, uint64_t size) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t file_fill(self, int64_t handle, uint64_t offset, uint64_t size) noexcept nogil:
        return -EOPNOTSUPP

    cdef void file_pace(self, int64_t handle, uint64_t offset, uint64_t size) noexcept nogil:
        pass

    cdef int64_t file_hole(self, int64_t handle, uint64_t offset) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t path_rename(self, const char *source, const char *target) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t path_remove(self, const char *path) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t path_sync_directory(self, const char *path) noexcept nogil:
        return -EOPNOTSUPP

    def open(self, path, create=False):
        """A handle on the file; with `create` it is made (mode 0600) when it is not there."""
        return checked(self.file_open(os.fsencode(path), create), "open", path)

    def close(self, handle):
        """Give the handle back; its lock goes with it."""
        checked(self.file_close(handle), "close", "")

    def lock(self, handle, path=""):
        """Take the file's exclusive lock without waiting."""
        checked(self.file_lock(handle), "lock", path)

    def lock_as_bolt(self, handle, path=""):
        """Take the lock that bbolt takes, which is of another kind, without waiting."""

    def size(self, handle, path=""):
        """The file's size in bytes."""
        return checked(self.file_size(handle), "size", path)

    def read(self, handle, size, offset, path=""):
        """Up to `size` bytes at `offset`; fewer only at the end of the file."""
        data = bytearray(size)
        cdef uint8_t[::1] view = data
        if size == 0:
            return b""
        got = checked(self.file_read(handle, &view[0], size, offset), "read", path)
        return bytes(data[:got])

    def map(self, handle, path=""):
        """All bytes of the file, to be read; a real one's are mapped."""
        return self.read(handle, self.size(handle, path), 0, path)

    def write(self, handle, const uint8_t[::1] data, offset, path=""):
        """Write all of `data` at `offset`."""
        cdef int64_t number = handle
        cdef uint64_t at = offset
        cdef int64_t result
        if data.shape[0]:
            with nogil:
                result = self.file_write(number, &data[0], data.shape[0], at)
            checked(result, "write", path)

    def datasync(self, handle, path=""):
        """Put the file's data, and the size that it needs, on the device."""
        cdef int64_t number = handle
        cdef int64_t result
        with nogil:
            result = self.file_datasync(number)
        checked(result, "fdatasync", path)

    def allocate(self, handle, size, path=""):
        """Make the file at least `size` bytes large; what was not written reads as zeros."""
        checked(self.file_allocate(handle, size), "allocate", path)

    def cut(self, handle, size, path=""):
        """Take from the file what lies beyond `size` bytes."""
        raise DiskError("cut", path, EOPNOTSUPP)

    def fill(self, handle, offset, size, path=""):
        """Write zeros and start them towards the device; `datasync` still has to follow."""
        checked(self.file_fill(handle, offset, size), "fill", path)

    def rename(self, source, target):
        """Rename a file or directory, replacing a file or an empty directory at the target."""
        checked(self.path_rename(os.fsencode(source), os.fsencode(target)), "rename", source)

    def remove(self, path):
        """Remove a file."""
        checked(self.path_remove(os.fsencode(path)), "remove", path)

    def sync_directory(self, path):
        """Make the directory's names durable."""
        cdef bytes name = os.fsencode(path)
        cdef const char *at = name
        cdef int64_t result
        with nogil:
            result = self.path_sync_directory(at)
        checked(result, "sync directory", path)

    def descriptor(self, handle, path=""):
        """A descriptor of the operating system with which the file can be read, and only that.

        Whoever asked closes it; it outlives the handle, and the file's name.
        """
        raise DiskError("open", path, EOPNOTSUPP)

    def list(self, path):
        """The names in a directory, sorted; None when there is no such directory."""
        raise DiskError("list", path, EOPNOTSUPP)

    def make_directory(self, path):
        """Make one directory (mode 0700)."""
        raise DiskError("make directory", path, EOPNOTSUPP)


cdef class OsDisk(Disk):
    """The operating system's files; a handle is a file descriptor."""

    cdef int64_t file_open(self, const char *path, bint create) noexcept nogil:
        cdef int fd = open(path, O_RDWR | O_CLOEXEC | (O_CREAT if create else 0), 0o600)
        return fd if fd >= 0 else -errno

    cdef int64_t file_close(self, int64_t handle) noexcept nogil:
        return 0 if close(<int>handle) == 0 else -errno

    cdef int64_t file_lock(self, int64_t handle) noexcept nogil:
        return 0 if lock_whole_file(<int>handle) == 0 else -errno

    cdef int64_t file_size(self, int64_t handle) noexcept nogil:
        cdef int64_t size = lseek(<int>handle, 0, SEEK_END)
        return size if size >= 0 else -errno

    cdef int64_t file_read(
            self, int64_t handle, uint8_t *data, size_t size, uint64_t offset) noexcept nogil:
        cdef size_t done = 0
        cdef ssize_t count
        while done < size:
            count = pread(<int>handle, data + done, size - done, offset + done)
            if count == 0:
                break
            if count > 0:
                done += count
            elif errno != EINTR:
                return -errno
        return done

    cdef int64_t file_write(
            self, int64_t handle, const uint8_t *data, size_t size, uint64_t offset) noexcept nogil:
        cdef size_t done = 0
        cdef ssize_t count
        while done < size:
            count = pwrite(<int>handle, data + done, size - done, offset + done)
            if count > 0:
                done += count
            elif count == 0:
                return -EIO
            elif errno != EINTR:
                return -errno
        return size

    cdef int64_t file_datasync(self, int64_t handle) noexcept nogil:
        # Not even EINTR is retried: after a failed sync nobody knows what the page cache dropped.
        return 0 if fdatasync(<int>handle) == 0 else -errno

    cdef int64_t file_allocate(self, int64_t handle, uint64_t size) noexcept nogil:
        cdef int64_t now = self.file_size(handle)
        if now < 0 or <uint64_t>now >= size:
            return now if now < 0 else 0
        if fallocate(<int>handle, 0, 0, size) == 0:
            return 0
        # A file system without fallocate: the zeros that follow allocate instead.
        if errno == EOPNOTSUPP and ftruncate(<int>handle, size) == 0:
            return 0
        return -errno

    cdef int64_t file_fill(self, int64_t handle, uint64_t offset, uint64_t size) noexcept nogil:
        cdef uint8_t *zeros = <uint8_t *>calloc(1, FILL_PIECE)
        cdef uint64_t piece
        cdef int64_t result = 0 if zeros != NULL else -EIO
        while size and result >= 0:
            piece = min(size, <uint64_t>FILL_PIECE)
            result = self.file_write(handle, zeros, piece, offset)
            self.file_pace(handle, offset, piece)
            offset += piece
            size -= piece
        free(zeros)
        return result if result < 0 else 0

    cdef void file_pace(self, int64_t handle, uint64_t offset, uint64_t size) noexcept nogil:
        sync_file_range(
            <int>handle, offset, size, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER)

    cdef int64_t file_hole(self, int64_t handle, uint64_t offset) noexcept nogil:
        cdef int64_t hole = lseek(<int>handle, offset, SEEK_HOLE)
        if hole < 0 and errno == ENXIO:
            return self.file_size(handle)
        return hole if hole >= 0 else -errno

    cdef int64_t path_rename(self, const char *source, const char *target) noexcept nogil:
        return 0 if rename(source, target) == 0 else -errno

    cdef int64_t path_remove(self, const char *path) noexcept nogil:
        return 0 if unlink(path) == 0 else -errno

    cdef int64_t path_sync_directory(self, const char *path) noexcept nogil:
        cdef int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        cdef int64_t result
        if fd < 0:
            return -errno
        result = 0 if fsync(fd) == 0 else -errno
        close(fd)
        return result

    def cut(self, handle, size, path=""):
        """Take from the file what lies beyond `size` bytes."""
        try:
            if os.fstat(handle).st_size > size:
                os.truncate(handle, size)
        except OSError as error:
            raise DiskError("cut", path, error.errno) from None

    def descriptor(self, handle, path=""):
        """A descriptor of the operating system with which the file can be read, and only that."""
        try:
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DiskError("open", path, error.errno) from None

    def list(self, path):
        """The names in a directory, sorted; None when there is no such directory."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskError("list", path, error.errno) from None

    def map(self, handle, path=""):
        """All bytes of the file, to be read; it must not shrink while they are used."""
        try:
            return mmap.mmap(handle, 0, prot=mmap.PROT_READ)
        except OSError as error:
            raise DiskError("map", path, error.errno) from None

    def lock_as_bolt(self, handle, path=""):
        """Take the lock that bbolt takes, which is of another kind, without waiting."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DiskError("lock", path, error.errno) from None

    def make_directory(self, path):
        """Make one directory (mode 0700)."""
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            raise DiskError("make directory", path, error.errno) from None


cdef int64_t failure(object error) noexcept:
    """What a Python disk's exception means at C level; anything without an errno is EIO."""
    number = getattr(error, "errno", None)
    return -number if isinstance(number, int) and number > 0 else -EIO


cdef class PythonDisk(Disk):
    """A disk written in Python: the subclass overrides every Python method."""

    cdef int64_t file_open(self, const char *path, bint create) noexcept nogil:
        with gil:
            try:
                return self.open(os.fsdecode(<bytes>path), create)
            except Exception as error:
                return failure(error)

    cdef int64_t file_close(self, int64_t handle) noexcept nogil:
        with gil:
            try:
                self.close(handle)
                return 0
            except Exception as error:
                return failure(error)

    cdef int64_t file_lock(self, int64_t handle) noexcept nogil:
        with gil:
            try:
                self.lock(handle)
                return 0
            except Exception as error:
                return failure(error)

    cdef int64_t file_size(self, int64_t handle) noexcept nogil:
        with gil:
            try:
                return self.size(handle)
            except Exception as error:
                return failure(error)

    cdef int64_t file_read(
            self, int64_t handle, uint8_t *data, size_t size, uint64_t offset) noexcept nogil:
        cdef const uint8_t[::1] view
        with gil:
            try:
                got = self.read(handle, size, offset)
                if len(got):
                    view = got
                    (<uint8_t[:size]>data)[:len(got)] = view
                return len(got)
            except Exception as error:
                return failure(error)

    cdef int64_t file_write(
            self, int64_t handle, const uint8_t *data, size_t size, uint64_t offset) noexcept nogil:
        with gil:
            try:
                self.write(handle, data[:size], offset)
                return size
            except Exception as error:
                return failure(error)

    cdef int64_t file_datasync(self, int64_t handle) noexcept nogil:
        with gil:
            try:
                self.datasync(handle)
                return 0
            except Exception as error:
                return failure(error)

    cdef int64_t file_allocate(self, int64_t handle, uint64_t size) noexcept nogil:
        with gil:
            try:
                self.allocate(handle, size)
                return 0
            except Exception as error:
                return failure(error)

    cdef int64_t file_fill(self, int64_t handle, uint64_t offset, uint64_t size) noexcept nogil:
        with gil:
            try:
                self.fill(handle, offset, size)
                return 0
            except Exception as error:
                return failure(error)

    cdef int64_t file_hole(self, int64_t handle, uint64_t offset) noexcept nogil:
        return self.file_size(handle)

    cdef int64_t path_rename(self, const char *source, const char *target) noexcept nogil:
        with gil:
            try:
                self.rename(os.fsdecode(<bytes>source), os.fsdecode(<bytes>target))
                return 0
            except Exception as error:
                return failure(error)

    cdef int64_t path_remove(self, const char *path) noexcept nogil:
        with gil:
            try:
                self.remove(os.fsdecode(<bytes>path))
                return 0
            except Exception as error:
                return failure(error)

    cdef int64_t path_sync_directory(self, const char *path) noexcept nogil:
        with gil:
            try:
                self.sync_directory(os.fsdecode(<bytes>path))
                return 0
            except Exception as error:
                return failure(error)
