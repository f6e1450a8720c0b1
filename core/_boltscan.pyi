from quorate.core._bolt import Bolt
from quorate.core._boltwriter import BoltWriter

class Digest:
    bolt: Bolt
    hash: int
    revision: int
    pairs: int
    keys: set[bytes]
    def __init__(self, bolt: Bolt) -> None: ...
    def step(self, pairs: int) -> bool: ...

class Copy:
    bolt: Bolt
    writer: BoltWriter
    pairs: int
    def __init__(self, bolt: Bolt, bucket: bytes, writer: BoltWriter) -> None: ...
    def step(self, pairs: int) -> bool: ...
