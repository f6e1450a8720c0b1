from quorate.core._bolt import Bolt
from quorate.core._disk import Disk
from quorate.core._filesums import FileSums

class BoltWriter:
    disk: Disk
    path: str
    page_size: int
    transaction: int
    pages: int
    finished: bool
    sums: FileSums | None
    def __init__(
        self,
        disk: Disk,
        path: str,
        *,
        page_size: int = 4096,
        leaf_size: int = 0,
        fill_percent: int = 100,
        transaction: int = 2,
        freelist: bool = False,
        deferred: bool = False,
    ) -> None: ...
    @staticmethod
    def append_to(
        disk: Disk, bolt: Bolt, *, leaf_size: int = 0, deferred: bool = False
    ) -> BoltWriter: ...
    def begin(
        self, name: bytes, sequence: int = 0, *, places: bool = False, leaf_size: int = 0
    ) -> None: ...
    def extend(self, name: bytes, *, places: bool = False) -> None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def end(self) -> None: ...
    def finish(self) -> int: ...
    def close(self) -> None: ...
    @property
    def piece_waits(self) -> bool: ...
    def write_piece(self) -> None: ...
    def take_places(self) -> list[int]: ...
