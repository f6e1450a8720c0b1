from collections.abc import Iterable
from typing import Any

from quorate.core._eventring import EventReader
from quorate.core._ring import Ring
from quorate.frontends._watches import Watches

class Grpc(Watches):
    echo: bool
    def __init__(
        self,
        *,
        requests: Ring | None = None,
        replies: Ring | None = None,
        events: EventReader | None = None,
        watch_progress_interval: float = ...,
        watch_seed: int | None = None,
        served: Iterable[str] = (),
        request_bytes_max: int = ...,
        txn_ops_max: int = ...,
        streams_max: int = ...,
        keepalive_min: float = ...,
        keepalive_interval: float = ...,
        keepalive_timeout: float = ...,
        request_timeout: float = ...,
        calls_max: int = ...,
        echo: bool = False,
        **_: Any,
    ) -> None: ...
    def method_counts(self) -> dict[str, list[int]]: ...
    def set_time(self, now: int) -> None: ...
    def deliver(self) -> bool: ...

class Connection:
    finished: bool
    def __init__(self, grpc: Grpc) -> None: ...
    def feed(self, data: bytes) -> bool: ...
    def drain(self, size_max: int = ...) -> bytes: ...
    def tick(self) -> int: ...
    def shut_down(self) -> None: ...
    def close(self) -> None: ...
