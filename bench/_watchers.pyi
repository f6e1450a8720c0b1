from typing import Literal

from bench._keyspace import Keyspace
from bench._load import Load
from bench.outcome import Delivery, Outcome

class Watchers:
    def __init__(
        self,
        port: int,
        keyspace: Keyspace,
        *,
        connections: int = 1,
        streams: int = 1,
        each: int = 1,
        on: Literal["one key", "own key", "prefix"] = "one key",
        start_revision: int = 0,
        deletes: bool = False,
        pace: float = 0.0,
        patience: float = 60.0,
    ) -> None: ...
    def run(
        self,
        writer: Load | None = None,
        *,
        seconds: float = 0.0,
        warmup: float = 0.0,
        rate: float = 0.0,
        undelivered: int = 0,
        patience: float = 20.0,
    ) -> Delivery: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...
    @property
    def created(self) -> Outcome: ...
    def __enter__(self) -> Watchers: ...
    def __exit__(self, *exception: object) -> None: ...
