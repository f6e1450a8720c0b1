from collections.abc import Callable

from quorate.core._lessor import Lessor
from quorate.core._mvcc import Store
from quorate.core._port import Port
from quorate.core._run import Run

class Applier:
    store: Store
    no_space: bool
    corrupt: bool
    promised: int
    applied: int
    restored: int
    lessor: Lessor
    def __init__(
        self,
        store: Store,
        ports: list[Port | None],
        others: Callable[[int, int, bytes], None],
    ) -> None: ...
    def identify(self, cluster_id: int, member_id: int) -> None: ...
    def set_time(self, milliseconds: int) -> None: ...
    def figures(self) -> tuple[int, int, int]: ...
    def set_term(self, term: int) -> None: ...
    def resume(self, index: int, restored: int) -> None: ...
    def apply(self, run: Run) -> None: ...
    def compact_step(self, budget: int) -> bool: ...
