"""The real disk for who only looks: what is written to it is lost.

So a reader that mends what it reads can be used where nothing may change.
"""

from __future__ import annotations

import builtins
from mmap import mmap

from quorate.core._disk import OsDisk, PythonDisk

# What a reader makes anew is opened here: it keeps nothing.
NOWHERE = "/dev/null"


class Untouched(PythonDisk):
    """The contract is Disk's."""

    def __init__(self) -> None:
        self.real = OsDisk()

    def open(self, path: str, create: bool = False) -> int:
        """The file itself, or nowhere for one that is to be made."""
        return self.real.open(NOWHERE if create else path)

    def close(self, handle: int) -> None:
        """Give the handle back."""
        self.real.close(handle)

    def lock(self, handle: int, path: str = "") -> None:
        """Take the file's lock, as for writing: nobody else changes it either."""
        self.real.lock(handle, path)

    def size(self, handle: int, path: str = "") -> int:
        """The file's size."""
        return self.real.size(handle, path)

    def read(self, handle: int, size: int, offset: int, path: str = "") -> bytes:
        """Some of the file."""
        return self.real.read(handle, size, offset, path)

    def map(self, handle: int, path: str = "") -> bytes | mmap:
        """All of it."""
        return self.real.map(handle, path)

    def list(self, path: str) -> builtins.list[str] | None:
        """The names in a directory."""
        return self.real.list(path)

    def write(
        self, handle: int, data: bytes | bytearray | memoryview, offset: int, path: str = ""
    ) -> None:
        """Nothing."""

    def fill(self, handle: int, offset: int, size: int, path: str = "") -> None:
        """Nothing."""

    def datasync(self, handle: int, path: str = "") -> None:
        """Nothing."""

    def sync_directory(self, path: str) -> None:
        """Nothing."""
