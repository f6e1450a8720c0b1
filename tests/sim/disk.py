"""A disk in memory that fails as disks fail.

What it may do, and a server must survive:
1. A crash loses what was not synced: of the writes since the last datasync of a file nothing,
   all, a prefix cut at any byte, or any choice of 512-byte sectors is there; of the names changed
   since the last directory sync a prefix.
2. The n-th operation fails with an errno, or is the one in which the machine dies.
3. A bit flips at rest.
4. A sync takes as long as the test wants (`gate`).
A directory sync makes names durable in order, as a journal does. One random source decides all.
"""

from __future__ import annotations

import builtins
import errno
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from quorate.core._disk import DiskError, PythonDisk

SECTOR = 512


@dataclass
class File:
    """One file: what is durable, what is there, and the writes between the two."""

    durable: bytearray = field(default_factory=bytearray)
    data: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)
    holder: int | None = None  # the handle that has the lock

    def write(self, offset: int, data: bytes) -> None:
        place(self.data, offset, data)
        self.unsynced.append((offset, data))

    def sync(self) -> None:
        self.durable = bytearray(self.data)
        self.unsynced.clear()


def place(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset + len(data):
        content.extend(bytes(offset + len(data) - len(content)))
    content[offset : offset + len(data)] = data


Names = dict[str, File | None]  # path → its file, or None for a directory


class SimDisk(PythonDisk):
    """The disk; `operations` counts what was asked of it since it was made."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names: Names = {"": None, "/": None}
        self.durable_names: Names = dict(self.names)
        self.unsynced_names: list[tuple[str, Callable[[Names], None]]] = []
        self.handles: dict[int, File] = {}
        self.next_handle = 1
        self.operations = 0
        self.fail_at: int | None = None
        self.fail_errno = errno.EIO
        self.die_at: int | None = None
        self.gate: threading.Event | None = None

    # --- faults ---------------------------------------------------------------

    def step(self, operation: str, path: str = "") -> None:
        """Count an operation; raise when it is the one to fail, or when the machine is dead."""
        self.operations += 1
        if self.operations == self.fail_at:
            raise DiskError(operation, path, self.fail_errno)
        if self.die_at is not None and self.operations >= self.die_at:
            raise DiskError(operation, path, errno.EIO)

    def crash(self, how: str | None = None) -> SimDisk:
        """The disk that the next start finds; `how` is nothing, all, prefix or sectors."""
        after = SimDisk(self.rng)
        names = dict(self.durable_names)
        for _, change in self.unsynced_names[: self.rng.randint(0, len(self.unsynced_names))]:
            change(names)
        survivors = {id(file): survivor(file, how, self.rng) for file in names.values() if file}
        after.names = {path: file and survivors[id(file)] for path, file in names.items()}
        after.durable_names = dict(after.names)
        return after

    def flip(self, path: str, bit: int) -> None:
        """Flip one bit at rest."""
        file = self.file(path)
        file.data[bit // 8] ^= 1 << (bit % 8)
        file.sync()

    def copy(self) -> SimDisk:
        """Another disk with the same files, all durable and none open."""
        after = SimDisk(self.rng)
        after.names = {
            path: file and File(bytearray(file.data), bytearray(file.data))
            for path, file in self.names.items()
        }
        after.durable_names = dict(after.names)
        return after

    def file(self, path: str) -> File:
        found = self.names.get(path)
        if found is None:
            raise DiskError("find", path, errno.ENOENT)
        return found

    # --- the contract ---------------------------------------------------------

    def open(self, path: str, create: bool = False) -> int:
        self.step("open", path)
        if create and path not in self.names:
            file = File()
            self.change(os.path.dirname(path), lambda names: names.__setitem__(path, file))
        self.handles[self.next_handle] = self.file(path)
        self.next_handle += 1
        return self.next_handle - 1

    def close(self, handle: int) -> None:
        file = self.handles.pop(handle)
        if file.holder == handle:
            file.holder = None

    def lock(self, handle: int, path: str = "") -> None:
        self.step("lock", path)
        file = self.handles[handle]
        if file.holder not in (None, handle):
            raise DiskError("lock", path, errno.EAGAIN)
        file.holder = handle

    def size(self, handle: int, path: str = "") -> int:
        return len(self.handles[handle].data)

    def read(self, handle: int, size: int, offset: int, path: str = "") -> bytes:
        self.step("read", path)
        return bytes(self.handles[handle].data[offset : offset + size])

    def write(
        self, handle: int, data: bytes | bytearray | memoryview, offset: int, path: str = ""
    ) -> None:
        # The write that a machine dies in may be there in part.
        if self.die_at is not None and self.operations + 1 == self.die_at:
            self.handles[handle].write(offset, bytes(data))
        self.step("write", path)
        self.handles[handle].write(offset, bytes(data))

    def datasync(self, handle: int, path: str = "") -> None:
        self.step("datasync", path)
        if self.gate is not None:
            self.gate.wait()
        self.handles[handle].sync()

    def allocate(self, handle: int, size: int, path: str = "") -> None:
        self.step("allocate", path)
        file = self.handles[handle]
        place(file.data, len(file.data), bytes(max(0, size - len(file.data))))
        place(file.durable, len(file.durable), bytes(max(0, size - len(file.durable))))

    def cut(self, handle: int, size: int, path: str = "") -> None:
        self.step("cut", path)
        file = self.handles[handle]
        del file.data[size:]
        del file.durable[size:]
        file.unsynced = [(at, data[: max(size - at, 0)]) for at, data in file.unsynced]

    def fill(self, handle: int, offset: int, size: int, path: str = "") -> None:
        self.write(handle, bytes(size), offset)

    def rename(self, source: str, target: str) -> None:
        self.step("rename", source)
        if source not in self.names:
            raise DiskError("rename", source, errno.ENOENT)

        def move(names: Names) -> None:
            for path in [p for p in names if p == source or p.startswith(f"{source}/")]:
                names[target + path[len(source) :]] = names.pop(path)

        self.change(os.path.dirname(target), move)

    def remove(self, path: str) -> None:
        self.step("remove", path)
        self.file(path)
        self.change(os.path.dirname(path), lambda names: names.__delitem__(path))

    def descriptor(self, handle: int, path: str = "") -> int:
        self.step("open", path)
        file = os.memfd_create(os.path.basename(path))
        with open(file, "wb") as writer:
            writer.write(self.handles[handle].data)
            writer.flush()
            return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)

    def list(self, path: str) -> builtins.list[str] | None:
        if path not in self.names:
            return None
        return sorted(
            os.path.basename(name) for name in self.names if os.path.dirname(name) == path
        )

    def make_directory(self, path: str) -> None:
        self.step("make_directory", path)
        self.change(os.path.dirname(path), lambda names: names.__setitem__(path, None))

    def sync_directory(self, path: str) -> None:
        self.step("sync_directory", path)
        touching = [at for at, (where, _) in enumerate(self.unsynced_names) if where == path]
        for _ in range(touching[-1] + 1 if touching else 0):
            self.unsynced_names.pop(0)[1](self.durable_names)

    def change(self, directory: str, change: Callable[[Names], None]) -> None:
        change(self.names)
        self.unsynced_names.append((directory, change))


def survivor(file: File, how: str | None, rng: random.Random) -> File:
    """What a crash leaves of a file."""
    content = bytearray(file.durable)
    how = how or rng.choice(["nothing", "all", "prefix", "sectors"])
    written = sum(len(data) for _, data in file.unsynced)
    left = {"nothing": 0, "all": written, "prefix": rng.randint(0, written)}.get(how, written)
    for offset, data in file.unsynced:
        kept = data[:left]
        left -= len(kept)
        for sector in range(offset // SECTOR, (offset + len(kept) + SECTOR - 1) // SECTOR):
            start = max(offset, sector * SECTOR)
            end = min(offset + len(kept), (sector + 1) * SECTOR)
            if how != "sectors" or rng.random() < 0.5:
                place(content, start, kept[start - offset : end - offset])
    return File(bytearray(content), bytearray(content))
