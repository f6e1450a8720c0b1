from typing import Any

CALL: int
MESSAGE: int
HALF_CLOSED: int
RESET: int
REPLY: int
HTTP1: int
CORRUPT: int
DRAINED: int

class Calls:
    def take_events(self) -> list[tuple[Any, ...]]: ...
    def ask(self, admin_call: int, payload: bytes = b"") -> int: ...
    def cancel_ask(self, ask_id: int) -> None: ...
    def gauges(self) -> dict[str, int]: ...
