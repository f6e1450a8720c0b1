from quorate.core._boltwriter import BoltWriter
from quorate.core._mvcc import Store

class Checkpoint:
    revision: int
    compact_revision: int
    pairs: int
    def __init__(self, store: Store, writer: BoltWriter) -> None: ...
    def step(self, pairs: int) -> bool: ...
    def close(self) -> None: ...
