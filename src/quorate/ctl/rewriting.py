"""`defrag`: the backend file of a server that does not run, written again without what is dead.

Rules:
1. The new file is made beside the old one under a name that every etcd deletes when it starts,
   synced, and renamed: there is the one file or the other.
2. Nobody else has the directory meanwhile: a server that runs is found by its locks.
"""

from __future__ import annotations

import os

from quorate.core._bolt import Bolt
from quorate.core._boltscan import Copy
from quorate.core._boltwriter import BoltWriter
from quorate.core._disk import Disk, OsDisk
from quorate.core.errors import Fatal
from quorate.core.logs import Logger

from .commandline import Call, CommandError
from .files import locked, mapped, opened
from .printing import human_bytes
from .progress import Advance, nobody, progress

TEMPORARY = "db.tmp.defrag"
# Pairs copied between two looks at the bar.
PIECE_PAIRS = 10_000


def defrag_command(call: Call) -> None:
    """`defrag`. Raises CommandError."""
    data_dir = call.text("data-dir")
    snap = os.path.join(data_dir, "member", "snap")
    path = os.path.join(snap, "db")
    try:
        wal_dir = os.path.join(data_dir, "member", "wal")
        with locked(data_dir, wal_dir, call.number("timeout")), opened(path) as descriptor:
            bolt = Bolt(mapped(descriptor, path), path)
            with progress("defragmenting", bolt.high_water * bolt.page_size) as advance:
                size = defragment(OsDisk(), snap, bolt, advance)
            before = bolt.high_water * bolt.page_size
    except (CommandError, Fatal) as error:
        text = f"Failed to defragment etcd data[{data_dir}] ({error})"
        raise CommandError(text) from None
    Logger(form="console").info(
        "finished defragmenting directory",
        path=path,
        size=human_bytes(size),
        size_before=human_bytes(before),
    )


def defragment(disk: Disk, snap: str, bolt: Bolt, advance: Advance = nobody) -> int:
    """Put a file of the same pairs in the place of `db`; its size. Raises Fatal."""
    temporary = f"{snap}/{TEMPORARY}"
    if TEMPORARY in (disk.list(snap) or ()):
        disk.remove(temporary)
    writer = BoltWriter(disk, temporary, page_size=bolt.page_size)
    try:
        for name in bolt.buckets():
            writer.begin(name, bolt.sequence(name))
            copy = Copy(bolt, name, writer)
            while copy.step(PIECE_PAIRS):
                advance(writer.pages * writer.page_size)
            writer.end()
        size = writer.finish()
    finally:
        writer.close()
    disk.rename(temporary, f"{snap}/db")
    disk.sync_directory(snap)
    return size
