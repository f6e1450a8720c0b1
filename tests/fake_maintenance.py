"""A tiny KV server that has DeleteRange and Maintenance.Snapshot, too, and can lie about them."""

from __future__ import annotations

import hashlib
from typing import Any

import h2.connection

from tests.fake_kv import FakeKV
from tests.messages import decode, encode

SNAPSHOT_LIES = (
    "digest",
    "short",
    "more remains",
    "something remains",
    "no status",
    "bad status",
    "malformed",
    "compressed",
    "cut",
    "reset",
    "no snapshot",
)
DELETE_LIES = ("deleted nothing", "old revision")


class FakeMaintenance(FakeKV):
    """Sends `file` in pieces of `piece` bytes, and its digest in one more."""

    def __init__(self, lie: str = "", file: bytes = bytes(range(250)) * 100) -> None:
        assert lie in ("", *SNAPSHOT_LIES, *DELETE_LIES)
        super().__init__()
        self.other_lie = lie
        self.file = file
        self.piece = 8000

    def _reply(
        self, connection: h2.connection.H2Connection, stream: int, path: str, message: bytes
    ) -> None:
        if not path.endswith("/Snapshot"):
            super()._reply(connection, stream, path, message)
            return
        assert message == b""
        head = [(":status", "200"), ("content-type", "application/grpc")]
        lie = self.other_lie
        if lie == "no snapshot":
            trailers = [("grpc-status", "12"), ("grpc-message", "unknown service")]
            connection.send_headers(stream, [*head, *trailers], end_stream=True)
            return
        connection.send_headers(stream, head)
        framed = b"".join(self._messages())
        if lie == "cut":
            framed = framed[:-1]
        for start in range(0, len(framed), 7000):
            connection.send_data(stream, framed[start : start + 7000])
        if lie == "reset":
            connection.reset_stream(stream, error_code=2)
        elif lie == "no status":
            connection.end_stream(stream)
        else:
            status = "13" if lie == "bad status" else "0"
            connection.send_headers(stream, [("grpc-status", status)], end_stream=True)

    def _messages(self) -> list[bytes]:
        """The stream's messages, each with its prefix."""
        lie = self.other_lie
        sent = hashlib.sha256(self.file).digest()
        if lie == "digest":
            sent = sent[:-1] + bytes([sent[-1] ^ 1])
        content = self.file + sent
        remaining = len(content)
        messages = []
        for start in range(0, len(content), self.piece):
            blob = content[start : start + self.piece]
            remaining -= len(blob)
            told = remaining
            if lie == "more remains" and start == self.piece:
                told = len(content) + 1
            elif lie == "something remains" and remaining == 0:
                told = 1
            reply = encode("SnapshotResponse", {"remaining_bytes": told, "blob": blob})
            if lie == "malformed" and start == self.piece:
                reply = reply[:-1]
            flag = b"\1" if lie == "compressed" and start == self.piece else b"\0"
            messages.append(flag + len(reply).to_bytes(4, "big") + reply)
        return messages[:-1] if lie == "short" else messages

    def _deleterange(self, message: bytes) -> bytes:
        request: dict[str, Any] = decode("DeleteRangeRequest", message)
        found = self.pairs.pop(request["key"], None) is not None
        if found and self.other_lie != "old revision":
            self.revision += 1
        deleted = 0 if self.other_lie == "deleted nothing" else int(found)
        return encode("DeleteRangeResponse", {"header": self._header(), "deleted": deleted})
