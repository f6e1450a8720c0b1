from collections.abc import Iterable
from typing import Any, NamedTuple

from quorate.core._ring import Doorbell, Ring
from quorate.frontends._grpc import Grpc

class Statistics(NamedTuple):
    methods: dict[str, list[int]]
    named: dict[str, int]

class Pump(Grpc):
    fd: int
    is_draining: bool
    def __init__(
        self,
        *,
        listeners: Iterable[int] = (),
        bell: Doorbell | None = None,
        core_bell: Doorbell | None = None,
        requests: Ring | None = None,
        replies: Ring | None = None,
        served: Iterable[str] = (),
        **options: Any,
    ) -> None: ...
    @property
    def idle(self) -> bool: ...
    @property
    def clients_gone(self) -> int: ...
    def turn(self, linger_seconds: float = 0.0) -> list[tuple[Any, ...]]: ...
    def next_deadline(self) -> float: ...
    def accept(self) -> None: ...
    def drain(self) -> None: ...
    def adopt(self, fd: int) -> None: ...
    def close_listeners(self) -> None: ...
    def statistics(self) -> Statistics: ...
