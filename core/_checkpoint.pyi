from quorate.core._boltwriter import BoltWriter
from quorate.core._mapping import Mapping
from quorate.core._mvcc import Store

class Checkpoint:
    revision: int
    compact_revision: int
    pairs: int
    versions: int
    after: int
    def __init__(
        self, store: Store, writer: BoltWriter, *, after: int = 0, leases: bool = True
    ) -> None: ...
    def step(self, pairs: int) -> bool: ...
    def map_step(self, mapping: Mapping, pairs: int) -> bool: ...
    def close(self) -> None: ...
