"""A client's connection: gRPC calls over HTTP/2 frames, and how well it takes what it is sent.

Rules:
1. Bytes are taken by `receive`, never by themselves; each goes into the trace.
2. A client that is `stingy` reads and gives no window back; one that is deaf is not asked to read.
3. A call ends once: by its status, or, when the connection is gone, with the code LOST.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import hyperframe.frame as frames

from quorate.frontends._grpc import Connection
from tests.connections import Client, grpc_message
from tests.http2 import PING, RST_STREAM, WINDOW, frame, grpc_headers
from tests.messages import Message, decode, encode, method
from tests.sim.worker import Link

LOST = -1
OK, CANCEL = 0, 8
PREFIX_BYTES = 5
SETTINGS_WINDOW = 4


class Refusal(NamedTuple):
    """How a call ended that was not answered."""

    code: int
    text: str


Done = Callable[[Message | Refusal], None]


@dataclass
class Call:
    """A call under way."""

    reply: str  # the name of its messages
    message: Callable[[Message], None]
    end: Callable[[Refusal], None]
    data: bytearray = field(default_factory=bytearray)

    def take(self, data: bytes) -> None:
        """Bytes of messages, in any pieces."""
        self.data += data
        while len(self.data) >= PREFIX_BYTES:
            flag, size = struct.unpack_from("!BI", self.data)
            assert flag == 0, flag
            if len(self.data) < PREFIX_BYTES + size:
                return
            message = bytes(self.data[PREFIX_BYTES : PREFIX_BYTES + size])
            del self.data[: PREFIX_BYTES + size]
            self.message(decode(self.reply, message))


class Peer(Client):
    """One connection."""

    def __init__(self, link: Link, trace: Callable[[bytes], None], window: int) -> None:
        self.link = link
        self.calls: dict[int, Call] = {}
        self.stingy = False
        self.over = False
        self._owed: dict[int, int] = {}
        self._trace = trace
        settings = struct.pack("!HI", SETTINGS_WINDOW, window)
        super().__init__(link.pump, settings, cast(Connection, link))

    @property
    def gone(self) -> bool:
        """Whether the server's end is closed, and all that it sent was read."""
        return self.link.server_gone and not self.link.to_client

    def read(self) -> None:
        """Sending does not read; see rule 1."""

    def receive(self) -> bool:
        """Take in what is there; whether anything was."""
        data = self.link.drain()
        if data:
            self._trace(data)
            self._unread += data
            super().read()
            if not self.stingy:
                self.pay()
        if self.gone or self.goaway is not None:
            self.lose()
        return bool(data)

    def pay(self) -> None:
        """Give the window back."""
        owed, self._owed = self._owed, {}
        if owed:
            owed[0] = sum(owed.values())
        for stream, size in owed.items():
            if stream == 0 or stream in self.calls:
                self.feed(frame(WINDOW, 0, stream, size.to_bytes(4, "big")))

    def lose(self) -> None:
        """The connection is over."""
        self.over = True
        self.link.close()
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.end(Refusal(LOST, "connection lost"))

    # --- calls

    def ask(self, name: str, message: Message, done: Done) -> None:
        """A unary call."""
        answers: list[Message] = []

        def end(how: Refusal) -> None:
            assert how.code != OK or len(answers) == 1, (name, answers)
            done(how if how.code != OK else answers[0])

        rpc = method(name)
        number = self.begin(name, answers.append, end)
        self.data(number, grpc_message(encode(rpc.request, message)), end=True)

    def begin(
        self, name: str, message: Callable[[Message], None], end: Callable[[Refusal], None]
    ) -> int:
        """Begin a call; answers its stream."""
        rpc = method(name)
        number = self.open(grpc_headers(rpc.path))
        self.calls[number] = Call(rpc.reply, message, end)
        return number

    def send(self, number: int, message: bytes) -> None:
        """One more message of a call that streams."""
        if number in self.calls:
            self.data(number, grpc_message(message), end=False)

    def half_close(self, number: int) -> None:
        """The last message of a call was sent."""
        if number in self.calls:
            self.data(number, b"", end=True)

    def reset(self, number: int) -> None:
        """Take a call back."""
        call = self.calls.pop(number, None)
        if call is not None:
            self.feed(frame(RST_STREAM, 0, number, CANCEL.to_bytes(4, "big")))
            call.end(Refusal(LOST, "taken back"))

    # --- frames

    def _take(self, parsed: frames.Frame) -> None:
        if isinstance(parsed, frames.PingFrame) and "ACK" not in parsed.flags:
            self.feed(frame(PING, 1, 0, parsed.opaque_data))
        if not isinstance(parsed, frames.DataFrame):
            super()._take(parsed)
        elif parsed.data:
            self._owed[parsed.stream_id] = self._owed.get(parsed.stream_id, 0) + len(parsed.data)
            if parsed.stream_id in self.calls:
                self.calls[parsed.stream_id].take(parsed.data)
        answer = self.answers.get(parsed.stream_id)
        if answer is None or not (answer.ended or answer.reset is not None):
            return
        call = self.calls.pop(parsed.stream_id, None)
        if call is not None:
            code, text = answer.status
            # What is reset without a status may have happened.
            call.end(Refusal(LOST if code is None else int(code), text or ""))
        del self.answers[parsed.stream_id]
