"""A client without a socket: frames in and out of a `Connection`; a core that is two rings.

Rules:
1. Frames are built by hand, so that a test can send what no library would.
2. The clock is a number that the test moves.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from urllib.parse import unquote

import hpack
import hyperframe.frame as frames

from quorate.core._ring import Ring
from quorate.frontends._grpc import Connection, Grpc
from tests.http2 import (
    DATA,
    HEADERS,
    PREFACE,
    SETTINGS,
    Headers,
    block,
    frame,
    grpc_headers,
)

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
SECOND = 1_000_000_000
END_STREAM, END_HEADERS = 1, 4
FIRST, LAST, END, WHOLE = 1, 2, 4, 7
PUT_REQUEST = b"\x0a\x01k\x12\x01v"
RING_BYTES = 4 * 1024 * 1024

REQUEST = struct.Struct("<QQII")
REPLY = struct.Struct("<QQHHI")


def grpc_message(message: bytes, flag: int = 0) -> bytes:
    """A message with its five-byte prefix."""
    return struct.pack("!BI", flag, len(message)) + message


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> tuple[str | None, str | None]:
        """gRPC code and text."""
        text = self.headers.get("grpc-message")
        return self.headers.get("grpc-status"), None if text is None else unquote(text)


class Client:
    """The other end of a `Connection`, which is made unless one is given."""

    def __init__(
        self, grpc: Grpc, settings: bytes = b"", connection: Connection | None = None
    ) -> None:
        self.connection = connection or Connection(grpc)
        self.answers: dict[int, Answer] = {}
        self.pings = 0
        self.server_pings = 0
        self.goaway: tuple[int, bytes] | None = None
        self.settings: dict[int, int] = {}
        self.window: dict[int, int] = {}  # bytes that WINDOW_UPDATE gave, by stream
        self.next_stream = 1
        self._decoder = hpack.Decoder()
        self._unread = b""
        self.feed(PREFACE + frame(SETTINGS, 0, 0, settings))

    def feed(self, data: bytes) -> None:
        """Send bytes and read what comes back."""
        self.connection.feed(data)
        self.read()

    def read(self) -> None:
        """Take in all that the server sends."""
        self._unread += self.connection.drain()
        while len(self._unread) >= 9:
            parsed, size = frames.Frame.parse_frame_header(memoryview(self._unread[:9]))
            if len(self._unread) < 9 + size:
                break
            parsed.parse_body(memoryview(self._unread[9 : 9 + size]))
            self._unread = self._unread[9 + size :]
            self._take(parsed)

    def _take(self, parsed: frames.Frame) -> None:
        answer = self.answers.setdefault(parsed.stream_id, Answer())
        if isinstance(parsed, frames.HeadersFrame):
            assert "END_HEADERS" in parsed.flags
            for name, value in self._decoder.decode(parsed.data):
                assert isinstance(name, str)
                assert isinstance(value, str)
                answer.headers[name] = value
            answer.ended |= "END_STREAM" in parsed.flags
        elif isinstance(parsed, frames.DataFrame):
            answer.data += parsed.data
            answer.ended |= "END_STREAM" in parsed.flags
        elif isinstance(parsed, frames.RstStreamFrame):
            answer.reset = parsed.error_code
        elif isinstance(parsed, frames.PingFrame):
            if "ACK" in parsed.flags:
                self.pings += 1
            else:
                self.server_pings += 1
        elif isinstance(parsed, frames.WindowUpdateFrame):
            given = self.window.get(parsed.stream_id, 0) + parsed.window_increment
            self.window[parsed.stream_id] = given
        elif isinstance(parsed, frames.GoAwayFrame):
            self.goaway = parsed.error_code, bytes(parsed.additional_data)
        elif isinstance(parsed, frames.SettingsFrame) and "ACK" not in parsed.flags:
            self.settings = dict(parsed.settings)
            self.connection.feed(frame(SETTINGS, 1, 0))

    def open(self, headers: Headers, end: bool = False) -> int:
        """Begin a stream; answers its number."""
        stream = self.next_stream
        self.next_stream += 2
        self.feed(frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block(headers)))
        return stream

    def data(self, stream: int, payload: bytes, end: bool = True) -> None:
        """Send DATA, cut into frames."""
        pieces = [payload[at : at + 16384] for at in range(0, len(payload), 16384)] or [b""]
        for number, piece in enumerate(pieces):
            last = end and number == len(pieces) - 1
            self.feed(frame(DATA, END_STREAM if last else 0, stream, piece))

    def call(self, payload: bytes | None = None, headers: Headers | None = None) -> Answer:
        """Make one call; `payload` is what the body holds, prefix and all."""
        stream = self.open(headers or grpc_headers(PUT))
        self.data(stream, grpc_message(PUT_REQUEST) if payload is None else payload)
        return self.answers.setdefault(stream, Answer())


class Core:
    """The other end of the rings: takes requests, gives replies."""

    def __init__(self, capacity: int = RING_BYTES, reply_capacity: int = RING_BYTES) -> None:
        self.requests = Ring(capacity)
        self.replies = Ring(reply_capacity)
        self._inbox = self.requests.other_side()
        self._outbox = self.replies.other_side()

    def take(self) -> list[tuple[int, int, int, bytes]]:
        """Requests as (id, extra, method, payload)."""
        result = []
        while (record := self._inbox.pull()) is not None:
            request_id, extra, method, reserved = REQUEST.unpack_from(record)
            assert reserved == 0
            result.append((request_id, extra, method, record[REQUEST.size :]))
        return result

    def reply(
        self,
        request_id: int,
        payload: bytes = b"",
        flags: int = WHOLE,
        error: int = 0,
        extra: int | None = None,
    ) -> bool:
        """Give one reply record."""
        size = len(payload) if extra is None else extra
        return self._outbox.push(REPLY.pack(request_id, size, flags, error, 0) + payload)
