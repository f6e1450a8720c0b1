from quorate.core._mvcc import Store

class Scrub:
    store: Store
    looked_at: int
    passes: int
    def __init__(self, store: Store) -> None: ...
    @property
    def size(self) -> int: ...
    def step(self, looks: int) -> str: ...
