from collections.abc import Iterator, Sequence
from typing import NamedTuple

from quorate.core._disk import Disk
from quorate.core._run import Run

class WalStatistics(NamedTuple):
    fsync_buckets: tuple[int, ...]
    fsync_count: int
    fsync_seconds: float
    fsync_last_seconds: float
    fsync_slow_count: int
    written_bytes: int

def make_directories(disk: Disk, path: str) -> None: ...

class Wal:
    disk: Disk
    directory: str
    segment_bytes: int
    node_id: int
    cluster_id: int
    last_index: int
    last_term: int
    start_term: int
    term: int
    vote: int
    commit: int
    syncing: bool
    sync_done: bool
    written_bytes: int
    torn_bytes: int
    @staticmethod
    def create(
        disk: Disk,
        directory: str,
        node_id: int,
        cluster_id: int,
        *,
        segment_bytes: int = ...,
        no_fsync: bool = False,
        ahead: bool = True,
    ) -> Wal: ...
    @staticmethod
    def open(
        disk: Disk,
        directory: str,
        snapshot_index: int = 0,
        snapshot_term: int = 0,
        *,
        segment_bytes: int = ...,
        no_fsync: bool = False,
        ahead: bool = True,
    ) -> Wal: ...
    def recover(self) -> Iterator[Run]: ...
    def append(self, run: Run | None, hard_state: Sequence[int] | None) -> None: ...
    def append_snapshot(self, index: int, term: int, conf_state: bytes = b"") -> None: ...
    def sync(self) -> None: ...
    def start_sync(self, doorbell: int) -> None: ...
    def finish_sync(self) -> None: ...
    def close(self) -> None: ...
    @property
    def hard_state(self) -> tuple[int, int, int]: ...
    @property
    def pending_bytes(self) -> int: ...
    @property
    def last_sync_seconds(self) -> float: ...
    def statistics(self) -> WalStatistics: ...
    def check(self) -> None: ...
