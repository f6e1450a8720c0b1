"""The base of the generated service bases: grpclib's contract without grpclib's transport.

A service maps paths to grpclib `Handler`s (`__mapping__`); a handler uses nothing of its stream but
`recv_message`, `send_message` and iteration, so that any transport with these, on any event loop,
can carry it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpclib.const import Handler
    from grpclib.server import Stream


class ServiceBase:
    """A service: subclasses override the methods that they serve."""

    def __mapping__(self) -> dict[str, Handler]:
        """The handler of each path."""
        raise AssertionError(f"{type(self).__name__} is not a generated service")

    async def _call_rpc_handler_server_stream(
        self,
        handler: Callable[[Any], AsyncIterator[Any]],
        stream: Stream[Any, Any],
        request: Any,
    ) -> None:
        """Send what a server-streaming method yields, and close it when the call ends early."""
        replies = handler(request)
        try:
            async for reply in replies:
                await stream.send_message(reply)
        finally:
            await replies.aclose()  # type: ignore[attr-defined]
