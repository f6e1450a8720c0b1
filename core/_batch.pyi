from collections.abc import Callable

from quorate.core._apply import Applier
from quorate.core._eventring import EventRing
from quorate.core._events import Events
from quorate.core._port import Port
from quorate.core._run import Run

class Reads:
    count: int

class Batch:
    taken: int
    events: Events
    writes: int
    buckets: Callable[[], dict[bytes, list[tuple[bytes, bytes]]]]
    quota_bytes: int
    refused_cost: int
    run: Run | None
    reads: Reads | None
    asked: list[tuple[Port, int, int, bytes]]
    def __init__(
        self,
        ports: list[Port | None],
        applier: Applier,
        request_bytes_max: int,
        txn_ops_max: int,
        event_ring: EventRing | None = None,
    ) -> None: ...
    def drain(self) -> bool: ...
    def expire(self, budget: int) -> bool: ...
    def seed_leases(self, start: int) -> None: ...
    def waiting(self) -> bool: ...
    def propose(self, encode: Callable[[int], bytes], late: bool = False) -> int: ...
    def refuse_run(self, run: Run, error: int) -> None: ...
    def serve(self, reads: Reads) -> None: ...
    def refuse(self, reads: Reads, error: int) -> None: ...
