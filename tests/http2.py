"""A raw HTTP/2 client for calls that no gRPC library would make: h2 for what is right, hyperframe
for what is not.

Rules:
1. Headers go out as they are given, in any case and order, checked by nobody.
2. `Raw` never answers by itself for the caller's streams: it acknowledges SETTINGS and PING, and
   gives window back only while `credit` is true.
3. Every wait has an end: a server that stays silent gives an `Answer` whose `end` is `nothing`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ANSWER_SECONDS = 10.0
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)

Headers = list[tuple[str, str | bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def block(headers: Headers) -> bytes:
    """A header block that no dynamic table is needed for."""
    pairs = [
        (name.encode(), value if isinstance(value, bytes) else value.encode(), True)
        for name, value in headers
    ]
    return bytes(Encoder().encode(pairs, huffman=False))


def grpc_headers(path: str, **replace: str | bytes | None) -> Headers:
    """A gRPC request's headers; `replace` changes one (`content_type=…`) or, if None, drops it."""
    headers: dict[str, str | bytes | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "127.0.0.1",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    for name, value in replace.items():
        key = name.replace("_", "-")
        headers[":" + key if ":" + key in headers else key] = value
    return [(name, value) for name, value in headers.items() if value is not None]


def prefixed(message: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message: flag, length (a lie if asked), bytes."""
    return struct.pack("!BI", flag, len(message) if length is None else length) + message


@dataclass
class Answer:
    """What came back on one stream.

    `end` is `stream ended`, `RST_STREAM n`, `GOAWAY n`, `closed` or `nothing`.
    """

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    end: str = "nothing"

    @property
    def status(self) -> int:
        """grpc-status, or -1."""
        return int(self.headers.get("grpc-status", "-1"))

    @property
    def text(self) -> str:
        """grpc-message, percent-decoded."""
        return unquote(self.headers.get("grpc-message", ""))


class Raw:
    """One HTTP/2 connection, prior knowledge, over a socket of its own."""

    def __init__(self, port: int, *, window: int = 1 << 20, credit: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.credit = credit
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.closed = False
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        # A value that is only assigned would not be sent before the first ones are acknowledged.
        first = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=first)
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def flush(self) -> None:
        """Send what h2 has for the peer."""
        self.send(self.h2.data_to_send())

    def send(self, data: bytes) -> None:
        """Send bytes as they are; a closed connection is noted, not raised."""
        try:
            self.socket.sendall(data)
        except OSError:
            self.closed = True

    def open(self, headers: Headers, *, end: bool = False) -> int:
        """Send HEADERS on a new stream and return its number."""
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, headers, end_stream=end)
        self.flush()
        return stream

    def body(self, stream: int, data: bytes, *, end: bool = True, seconds: float = 3.0) -> None:
        """Send DATA, as the peer's window lets it."""
        stop = time.monotonic() + seconds
        while data and not self.over(stream) and time.monotonic() < stop:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room > 0:
                self.h2.send_data(stream, data[:room])
                data = data[room:]
                self.flush()
            else:
                self.receive(0.2)
        if end and not self.over(stream):
            self.h2.end_stream(stream)
            self.flush()

    def over(self, stream: int) -> bool:
        """Whether that stream has its answer, or the connection is gone."""
        return self.closed or self.answers[stream].end != "nothing"

    def receive(self, seconds: float = ANSWER_SECONDS) -> bool:
        """Take in one piece of what the peer sent; False when nothing came in time."""
        if self.closed:
            return False
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            self._ended("closed")
            self.closed = True
            return False
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise AssertionError(f"the server broke HTTP/2: {error!r}") from error
        for event in events:
            self._take(event)
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self.flush()
        return True

    def wait(self, stream: int, seconds: float = ANSWER_SECONDS) -> Answer:
        """The stream's answer, once it ended or the time is over."""
        stop = time.monotonic() + seconds
        while not self.over(stream):
            left = stop - time.monotonic()
            if left <= 0 or not self.receive(left):
                break
        return self.answers[stream]

    def ask(
        self, headers: Headers, data: bytes = b"", *, seconds: float = ANSWER_SECONDS
    ) -> Answer:
        """A request with headers and a body, and its answer."""
        stream = self.open(headers)
        self.body(stream, data)
        return self.wait(stream, seconds)

    def call(self, path: str, message: bytes = b"", **replace: str | bytes | None) -> Answer:
        """An ordinary gRPC call with some header replaced."""
        return self.ask(grpc_headers(path, **replace), prefixed(message))

    def wait_for(self, condition: Callable[[], object], seconds: float = ANSWER_SECONDS) -> None:
        """Take in what comes until that is so."""
        stop = time.monotonic() + seconds
        while not condition():
            left = stop - time.monotonic()
            assert left > 0, f"not within {seconds} s: {condition}"
            self.receive(left)

    def reset(self, stream: int) -> None:
        """Send RST_STREAM with CANCEL."""
        self.h2.reset_stream(stream, 8)
        self.flush()

    def drain(self, seconds: float) -> None:
        """Take in all that comes within that time."""
        stop = time.monotonic() + seconds
        while not self.closed and (left := stop - time.monotonic()) > 0:
            self.receive(left)

    def _ended(self, end: str, streams: Iterable[int] | None = None) -> None:
        for stream in self.answers if streams is None else streams:
            if self.answers[stream].end == "nothing":
                self.answers[stream].end = end

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            pairs = [(bytes(name), bytes(value)) for name, value in event.headers]
            self.answers[event.stream_id].headers |= {
                name.decode(): value.decode("latin-1") for name, value in pairs
            }
        elif isinstance(event, h2.events.DataReceived):
            self.answers[event.stream_id].data += event.data
            if self.credit and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._ended("stream ended", [event.stream_id])
        elif isinstance(event, h2.events.StreamReset):
            self._ended(f"RST_STREAM {int(event.error_code or 0)}", [event.stream_id])
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code or 0)
            late = [stream for stream in self.answers if stream > (event.last_stream_id or 0)]
            self._ended(f"GOAWAY {self.goaway}", late)
