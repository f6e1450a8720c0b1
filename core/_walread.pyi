from collections.abc import Iterator
from re import Pattern

from quorate.core._disk import Disk
from quorate.core._run import Run
from quorate.core.errors import Fatal

class WalCorruptError(Fatal):
    path: str
    offset: int
    reason: str
    def __init__(self, path: str, offset: int, reason: str) -> None: ...

class WalLockedError(Fatal):
    def __init__(self, path: str) -> None: ...

SEGMENT_NAME: Pattern[str]

def segment_names(disk: Disk, directory: str, start_index: int = 0) -> list[str]: ...
def lock_segment(disk: Disk, handle: int, path: str) -> None: ...

class WalReader(Iterator[Run]):
    disk: Disk
    directory: str
    names: list[str]
    segment: int
    offset: int
    file_size: int
    crc: int
    metadata: bytes
    term: int
    vote: int
    commit: int
    last_index: int
    start_term: int
    last_term: int
    snapshots: list[tuple[int, int]]
    torn_bytes: int
    ended: bool
    def __init__(self, disk: Disk, directory: str, start_index: int, start_term: int) -> None: ...
    def __iter__(self) -> WalReader: ...
    def __next__(self) -> Run: ...
    @property
    def path(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    def detach(self) -> int: ...
    def close(self) -> None: ...
