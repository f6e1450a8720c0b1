"""What a server's data directory tells from outside: how long its log is, how large its files are.

Rules:
- Only names, sizes and contents of files are looked at, and etcd's names are known: a log is
  segments `<sequence>-<first index>.wal` of one size; what waits to become one ends in `.tmp`.
- A log ends with its last byte that is not zero: etcd and quorate make segments of zeros.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEGMENT_BYTES = 64_000_000
SEGMENT_NAME = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}\.wal")
# quorate writes zeros so far ahead of the log's end in its first segment, and twice as far as the
# log has come into the next one: core/_segments.pyx.
FILL_AHEAD_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Log:
    """Where a log ends."""

    sequence: int
    """Of its last segment, from 0."""
    offset: int
    """Of its end in that."""

    @property
    def size(self) -> int:
        """All that was ever appended, whether or not it is still there.

        A segment's last bytes, which no record had room for, count with it.
        """
        return self.sequence * SEGMENT_BYTES + self.offset

    @property
    def filled(self) -> int:
        """Zeros that were written ahead of the log since its beginning, by who does so."""
        ahead = min(SEGMENT_BYTES, 2 * self.offset)
        if self.sequence == 0:
            return min(SEGMENT_BYTES, self.offset + FILL_AHEAD_BYTES) + ahead
        return (self.sequence + 1) * SEGMENT_BYTES + ahead


def find_log(data: Path) -> Log:
    """Where the log of a data directory ends. Raises FileNotFoundError when there is none."""
    found = [
        (int(match[1], 16), path)
        for path in (data / "member" / "wal").iterdir()
        if (match := SEGMENT_NAME.fullmatch(path.name))
    ]
    if not found:
        raise FileNotFoundError(f"{data}: no log")
    sequence, path = max(found)
    return Log(sequence, end_of(path))


def end_of(path: Path) -> int:
    """How many bytes there are before the zeros at a file's end."""
    with open(path, "rb") as file:
        at = file.seek(0, 2)
        while at:
            start = max(0, at - CHUNK_BYTES)
            file.seek(start)
            left = len(file.read(at - start).rstrip(b"\0"))
            if left:
                return start + left
            at = start
    return 0


def files(data: Path) -> Iterator[tuple[Path, int]]:
    """Every file and its size on the disk; one that goes meanwhile is none."""
    for path in sorted(data.rglob("*")):
        try:
            if path.is_file():
                yield path, path.stat().st_blocks * 512
        except FileNotFoundError:
            continue


def sizes(data: Path) -> dict[str, float]:
    """MiB on the disk: of the log, and of all else."""
    log = sum(size for path, size in files(data) if path.parent.name == "wal")
    return {
        "log_mib": log / 2**20,
        "files_mib": sum(size for _, size in files(data)) / 2**20 - log / 2**20,
    }


def backend_stamp(data: Path) -> tuple[int, int]:
    """Changes whenever the backend file is written; (0, 0) when there is none."""
    try:
        status = (data / "member" / "snap" / "db").stat()
    except FileNotFoundError:
        return (0, 0)
    return status.st_mtime_ns, status.st_ino


def device_bytes(directory: Path) -> int | None:
    """What was ever written to the device of a directory; None when Linux does not say."""
    device = directory.stat().st_dev
    try:
        figures = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text()
    except OSError:
        return None
    return int(figures.split()[6]) * 512


def flush(data: Path) -> None:
    """Let all that was written to the files be on the device."""
    for path, _ in files(data):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def warm(data: Path) -> None:
    """Read all files, so that the page cache holds them as far as it can."""
    for path, _ in files(data):
        with open(path, "rb") as file:
            while file.read(CHUNK_BYTES):
                pass
