from collections.abc import Iterable

from quorate.frontends._calls import Calls

class Replies(Calls):
    def send_message(self, call_id: int, message: bytes) -> int: ...
    def finish(
        self,
        call_id: int,
        code: int,
        message: str = "",
        trailers: Iterable[tuple[str, str]] = (),
    ) -> None: ...
