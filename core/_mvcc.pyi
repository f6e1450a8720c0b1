from quorate.core._arena import Arena
from quorate.core._lessor import Lessor

class Store:
    revision: int
    compact_revision: int
    finished_revision: int
    arena: Arena
    lessor: Lessor
    versions: int
    key_bytes: int
    value_bytes: int
    def check(self) -> None: ...
