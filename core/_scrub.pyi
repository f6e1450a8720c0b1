from quorate.core._mvcc import Store

class Scrub:
    store: Store
    looked_at: int
    passes: int
    def __init__(self, store: Store) -> None: ...
    def step(self, budget: int) -> str: ...
