from quorate.core._arena import Arena

class Store:
    revision: int
    compact_revision: int
    finished_revision: int
    arena: Arena
    versions: int
    key_bytes: int
    value_bytes: int
    def check(self) -> None: ...
