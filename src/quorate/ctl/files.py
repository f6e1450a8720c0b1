"""Files that the tools read where they lie: mapped, never written, and locked as servers lock them.

Rules:
1. What is only looked at is opened to be read: a copy on a medium that can't be written is as good
   as any.
2. A server that runs holds a lock on the last segment of its log, and etcd one on its backend file,
   too. Who changes a directory, or reads all of it, holds both while it does.
3. Texts of errors are Go's, which scripts match: `stat FILE: no such file or directory`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from quorate.core._bolt import Bolt, BoltError
from quorate.core._disk import OsDisk
from quorate.core._mapping import Mapping
from quorate.core._walread import SEGMENT_NAME, lock_segment
from quorate.core.backend import Backend

from .commandline import CommandError

# How often a lock that another process has is tried again, as bbolt does.
LOCK_RETRY_SECONDS = 0.05


def reason(error: OSError) -> str:
    """What Go says of an errno."""
    return (error.strerror or str(error)).lower()


def check_exists(path: str) -> None:
    """There is something of that name. Raises CommandError."""
    try:
        os.stat(path)
    except OSError as error:
        raise CommandError(f"stat {path}: {reason(error)}") from None


@contextmanager
def opened(path: str) -> Iterator[int]:
    """The file's descriptor, to be read. Raises CommandError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CommandError(f"open {path}: {reason(error)}") from None
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise CommandError(f"open {path}: is a directory")
        yield descriptor
    finally:
        os.close(descriptor)


def mapped(descriptor: int, path: str) -> mmap.mmap | bytes:
    """All bytes of the file. Raises CommandError."""
    try:
        if os.fstat(descriptor).st_size == 0:
            return b""
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    except OSError as error:
        raise CommandError(f"read {path}: {reason(error)}") from None


@contextmanager
def open_backend_file(path: str, seconds: float) -> Iterator[Backend]:
    """The backend file at `path`, whole or as a snapshot, while nobody writes it.

    Raises CommandError, Fatal.
    """
    check_exists(path)
    with opened(path) as descriptor:
        lock_backend(descriptor, path, seconds, fcntl.LOCK_SH)
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise BoltError(path, 0, "the file is empty")
        mapping = Mapping(OsDisk(), descriptor, path)
        yield Backend(path, Bolt.mapped(mapping, size), mapping)


@contextmanager
def locked(data_dir: str, wal_dir: str, seconds: float) -> Iterator[None]:
    """Keep servers and other tools out of a data directory. Raises CommandError, WalLockedError."""
    disk = OsDisk()
    path = os.path.join(data_dir, "member", "snap", "db")
    check_exists(path)
    segments = [name for name in disk.list(wal_dir) or () if SEGMENT_NAME.fullmatch(name)]
    with opened(path) as descriptor:
        lock_backend(descriptor, path, seconds, fcntl.LOCK_EX)
        if not segments:
            yield
            return
        last = os.path.join(wal_dir, segments[-1])
        handle = disk.open(last)
        try:
            lock_segment(disk, handle, last)
            yield
        finally:
            disk.close(handle)


def lock_backend(descriptor: int, path: str, seconds: float, kind: int) -> None:
    """Lock a backend file as bbolt does, within so many seconds; 0: however long it takes."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if seconds and time.monotonic() >= end:
                text = f"{path}: another process uses it (timeout after {seconds:g}s)"
                raise CommandError(text) from None
        except OSError as error:
            raise CommandError(f"lock {path}: {reason(error)}") from None
        threading.Event().wait(LOCK_RETRY_SECONDS)
