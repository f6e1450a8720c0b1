from typing import Literal

from bench._keyspace import Keyspace
from bench.outcome import Outcome

class Load:
    def __init__(
        self,
        port: int,
        kind: Literal["put", "get", "list", "txn", "call", "grant", "delete"],
        keyspace: Keyspace | None = None,
        *,
        connections: int = 1,
        streams: int = 1,
        order: Literal["sequential", "random", "own"] = "random",
        serializable: bool = False,
        count_only: bool = False,
        keys_only: bool = False,
        limit: int = 0,
        check: bool = True,
        leased: bool = False,
        window: int = ...,
        seed: int = 1,
        path: str = "",
        message: bytes = b"",
    ) -> None: ...
    def run(
        self,
        *,
        seconds: float = 0.0,
        warmup: float = 0.0,
        requests: int = 0,
        rate: float = 0.0,
        patience: float = 20.0,
        first: int = 0,
        ttl: int = 0,
    ) -> Outcome: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    @property
    def reply(self) -> bytes: ...
    @property
    def status(self) -> int: ...
    def __enter__(self) -> Load: ...
    def __exit__(self, *exception: object) -> None: ...
