from quorate.core._arena import Arena
from quorate.core._lessor import Lessor
from quorate.core._values import Values

class Store:
    revision: int
    compact_revision: int
    finished_revision: int
    saved_revision: int
    arena: Arena
    values: Values
    lessor: Lessor
    versions: int
    key_bytes: int
    value_bytes: int
    @property
    def waits_for_checkpoint(self) -> bool: ...
    @property
    def size_in_use(self) -> int: ...
    def check(self) -> None: ...
