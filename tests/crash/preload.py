"""Libraries that are preloaded into a server, and the words in shared memory that steer them.

etcd calls the kernel without the C library: nothing can be preloaded into it.
"""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from tests.needs import need

WORD = struct.Struct("=q")


def build(source: str, folder: Path) -> Path:
    """Compile a file beside this one; the library."""
    library = (folder / source).with_suffix(".so")
    path = Path(__file__).with_name(source)
    command = [need("cc"), "-O1", "-shared", "-fPIC", "-o", str(library), str(path), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Words:
    """The words that a preloaded library reads in the server."""

    def __init__(self, path: Path, *words: int) -> None:
        self.path = path
        path.write_bytes(b"".join(map(WORD.pack, words)))

    def __setitem__(self, word: int, value: int) -> None:
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), WORD.pack(value), word * WORD.size)

    def __getitem__(self, word: int) -> int:
        number: int = WORD.unpack_from(self.path.read_bytes(), word * WORD.size)[0]
        return number
