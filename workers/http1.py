"""HTTP/1.1 on the client port: h11 on a socket that the pump handed over.

Rules:
1. A connection costs one task and has a deadline for whatever it does: to send a request, to take
   an answer, to be idle. Their number is bounded; one too many is told 503 and closed.
2. Garbage gets Go's short 400 and the connection is closed; bodies are read to be thrown away, up
   to a bound.
3. Nothing that a client sends raises out of `serve`.
"""

from __future__ import annotations

import traceback
from email.utils import formatdate
from typing import Protocol

import h11
import trio

from quorate.core.limits import (
    HTTP1_BODY_BYTES_MAX,
    HTTP1_CONNECTIONS_MAX,
    HTTP1_HEADER_BYTES_MAX,
    HTTP1_IDLE_SECONDS_MAX,
    HTTP1_REQUEST_SECONDS_MAX,
)
from quorate.core.logs import Logger
from quorate.frontends.health import CORS, Response

RECEIVE_BYTES = 4096
CHUNK_BYTES = 16 * 1024


class Answers(Protocol):
    """Who knows the pages."""

    async def answer(self, method: str, target: str) -> Response:
        """The answer to a request line."""


class Http1:
    """All HTTP/1.1 connections of one worker."""

    def __init__(self, pages: Answers, logger: Logger) -> None:
        self._pages = pages
        self._logger = logger
        self._connections = 0
        self._draining = False
        self._answers_due = 0

    @property
    def answers_due(self) -> int:
        """How many requests are being answered."""
        return self._answers_due

    async def answer(self, method: str, target: str) -> Response:
        """The answer to a request line."""
        self._answers_due += 1
        try:
            return await self._pages.answer(method, target)
        finally:
            self._answers_due -= 1

    def drain(self) -> None:
        """From now on every answer is its connection's last."""
        self._draining = True

    async def serve(self, stream: trio.abc.Stream, first_bytes: bytes) -> None:
        """Serve a connection until it ends; `first_bytes` were read from it already."""
        self._connections += 1
        try:
            connection = Connection(stream, self)
            with trio.move_on_after(HTTP1_IDLE_SECONDS_MAX) as scope:
                if self._connections > HTTP1_CONNECTIONS_MAX:
                    await connection.refuse(503, "Service Unavailable")
                    return
                if first_bytes:  # none would mean the end
                    connection.receive(first_bytes)
                while await connection.exchange(scope) and not self._draining:
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:
            error = traceback.format_exc()
            self._logger.error("an HTTP/1.1 connection failed", error=error)
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)


class Connection:
    """One connection: requests in, answers out, one after another."""

    def __init__(self, stream: trio.abc.Stream, pages: Answers) -> None:
        self._stream = stream
        self._pages = pages
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HTTP1_HEADER_BYTES_MAX)

    def receive(self, data: bytes) -> None:
        """Bytes came in; none is the end."""
        self._h11.receive_data(data)

    async def exchange(self, scope: trio.CancelScope) -> bool:
        """One request and its answer; False when the connection is to be closed."""
        try:
            request = await self._request(scope)
            if request is None:
                return False
            method = request.method.decode("ascii")
            response = await self._pages.answer(method, request.target.decode("ascii", "replace"))
            scope.deadline = trio.current_time() + HTTP1_REQUEST_SECONDS_MAX
            await self._respond(method, response)
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            if status == 431:
                await self.refuse(431, "Request Header Fields Too Large")
            elif status == 413:
                await self.refuse(413, "Request Entity Too Large")
            else:
                await self.refuse(400, "Bad Request")
            return False
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        scope.deadline = trio.current_time() + HTTP1_IDLE_SECONDS_MAX
        return True

    async def _request(self, scope: trio.CancelScope) -> h11.Request | None:
        """The next request, its body read; None when there is no more."""
        request: h11.Request | None = None
        body_bytes = 0
        started = False
        while True:
            if not started and self._h11.trailing_data[0]:
                # The clock of a request starts with its first byte: a trickle does not stop it.
                started = True
                scope.deadline = trio.current_time() + HTTP1_REQUEST_SECONDS_MAX
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                if self._h11.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                self._h11.receive_data(bytes(await self._stream.receive_some(RECEIVE_BYTES)))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body_bytes += len(event.data)
                if body_bytes > HTTP1_BODY_BYTES_MAX:
                    raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
            elif isinstance(event, h11.EndOfMessage):
                return request
            else:
                return None

    async def _respond(self, method: str, response: Response) -> None:
        headers = [*CORS, *response.headers, ("date", formatdate(usegmt=True))]
        chunked = len(response.body) > CHUNK_BYTES
        if not chunked:
            headers.append(("content-length", str(len(response.body))))
        await self._send(h11.Response(status_code=response.status, headers=headers))
        if method != "HEAD":
            for start in range(0, len(response.body), CHUNK_BYTES):
                data = response.body[start : start + CHUNK_BYTES]
                await self._send(h11.Data(data=data))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            await self._stream.send_all(data)

    async def refuse(self, status: int, reason: str) -> None:
        """Go's answer to what is no request; the connection is closed after it."""
        text = f"{status} {reason}"
        answer = (
            f"HTTP/1.1 {text}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Connection: close\r\n\r\n{text}"
        )
        await self._stream.send_all(answer.encode())
