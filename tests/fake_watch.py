"""FakeKV with Watch and Lease, which can lie about these too, for tests of what reads its events.

Rules: events leave with the put that makes them, before anything else happens, and those of the
past with the answer that a watcher is created; one lock makes every request and its events one
turn; streams are cut into pieces that respect no message's border.
"""

from __future__ import annotations

import socket
from typing import Any

import h2.config
import h2.connection
import h2.events

from tests.fake_kv import FakeKV
from tests.messages import decode, encode

# Every way in which its watches can be wrong ...
WATCH_LIES = (
    "missing",
    "twice",
    "order",
    "late",
    "value",
    "key",
    "type",
    "header",
    "revision",
    "disagree",
    "watch id",
    "unknown watcher",
    "cancel",
    "malformed",
    "compressed",
    "end",
    "silence",
    "no watch",
)
# ... and its leases.
LEASE_LIES = ("lease", "ttl", "no lease")
PIECE = 7


class FakeWatch(FakeKV):
    """Watches from now on; grants and keep-alives; deletes of everything on demand."""

    def __init__(self, lie: str = "") -> None:
        assert lie in ("", *WATCH_LIES, *LEASE_LIES)
        self._watches: list[dict[str, Any]] = []
        self._past: list[dict[str, Any]] = []
        self._held: list[dict[str, Any]] = []
        self._ttls: dict[int, int] = {}
        self.events = 0
        super().__init__()
        self.watch_lie = lie

    def delete_all(self, times: int = 1) -> None:
        """One delete of every key, at one revision."""
        with self._turn:
            self.revision += 1
            for _ in range(times):
                for key in list(self.pairs):
                    pair = {"key": key, "mod_revision": self.revision}
                    self._publish({"type": 1, "kv": pair})

    def _handle(
        self,
        connection: h2.connection.H2Connection,
        event: h2.events.Event,
        requests: dict[int, tuple[str, bytearray]],
        client: socket.socket,
    ) -> None:
        super()._handle(connection, event, requests, client)
        stream = getattr(event, "stream_id", 0)
        path, body = requests.get(stream, ("", bytearray()))
        method = path.rpartition("/")[2]
        if method not in ("Watch", "LeaseKeepAlive"):
            return
        if isinstance(event, h2.events.RequestReceived):
            head = [(":status", "200"), ("content-type", "application/grpc")]
            if self.watch_lie == {"Watch": "no watch", "LeaseKeepAlive": "no lease"}[method]:
                head += [("grpc-status", "12"), ("grpc-message", "unknown service")]
                connection.send_headers(stream, head, end_stream=True)
            else:
                connection.send_headers(stream, head)
        elif isinstance(event, h2.events.DataReceived):
            while len(body) >= 5 and len(body) >= 5 + (size := int.from_bytes(body[1:5], "big")):
                message = bytes(body[5 : 5 + size])
                del body[: 5 + size]
                if method == "Watch":
                    self._create(connection, client, stream, message)
                elif self.watch_lie != "no lease":
                    self._say(connection, stream, self._keep_alive(message))

    def _say(self, connection: h2.connection.H2Connection, stream: int, message: bytes) -> None:
        if self.watch_lie == "malformed":
            message = b"\x0a\x7f" + message[2:]
        flag = b"\x01" if self.watch_lie == "compressed" else b"\x00"
        framed = flag + len(message).to_bytes(4, "big") + message
        for start in range(0, len(framed), PIECE):
            connection.send_data(stream, framed[start : start + PIECE])

    def _create(
        self,
        connection: h2.connection.H2Connection,
        client: socket.socket,
        stream: int,
        message: bytes,
    ) -> None:
        if self.watch_lie == "no watch":
            return
        asked = decode("WatchRequest", message)["create_request"]
        mates = [each for each in self._watches if each["on"] == (connection, stream)]
        watch_id = len(mates) + 3 * (self.watch_lie == "watch id")
        end = asked.get("range_end") or asked["key"] + b"\0"
        watch = {"on": (connection, stream), "client": client, "id": watch_id}
        watch |= {"key": asked["key"], "end": end}
        self._watches.append(watch)
        created = {"header": self._header(), "watch_id": watch_id, "created": True}
        self._say(connection, stream, encode("WatchResponse", created))
        for event in self._past if asked.get("start_revision") else ():
            if event["kv"]["mod_revision"] >= asked["start_revision"]:
                self._send(watch, event)

    def _write(self, key: bytes, value: bytes) -> None:
        super()._write(key, value)
        pair = dict(self.pairs[key])
        lie = self.watch_lie
        if lie == "value":
            pair["value"] = value[:-1] + b"?"
        elif lie == "key":
            pair["key"] = key[:-1] + b"x"
        elif lie == "revision":
            pair["mod_revision"] -= 1
        self._publish({"type": int(lie == "type"), "kv": pair})

    def _publish(self, event: dict[str, Any]) -> None:
        self.events += 1
        self._past.append(event)
        lie = self.watch_lie
        if lie == "silence" or (lie == "missing" and self.events % 2 == 0):
            return
        if lie == "order" and self.events % 2:
            self._held.append(event)
            return
        # Late is what comes in order after others of the same watcher: here, of another key.
        if lie == "late" and self.events == 1:
            self._held.append(event)
            return
        send = [event, *self._held]
        self._held.clear()
        for each in send + (send if lie == "twice" else []):
            for watch in self._watches:
                if watch["key"] <= each["kv"]["key"] < watch["end"] or lie == "key":
                    self._send(watch, each)

    def _send(self, watch: dict[str, Any], event: dict[str, Any]) -> None:
        connection, stream = watch["on"]
        header = self._header()
        response = {"header": header, "watch_id": watch["id"], "events": [event]}
        if self.watch_lie == "header":
            header["revision"] -= 1
        elif self.watch_lie == "disagree" and watch is self._watches[-1]:
            pair = {**event["kv"], "mod_revision": event["kv"]["mod_revision"] - 1}
            response["events"] = [{**event, "kv": pair}]
        elif self.watch_lie == "unknown watcher":
            response["watch_id"] += 100
        elif self.watch_lie == "cancel":
            response |= {"canceled": True, "cancel_reason": "because", "events": []}
        try:
            if self.watch_lie == "end":
                connection.send_headers(stream, [("grpc-status", "0")], end_stream=True)
            else:
                self._say(connection, stream, encode("WatchResponse", response))
            watch["client"].sendall(connection.data_to_send())
        except (OSError, h2.exceptions.ProtocolError):
            # The client has gone, or the stream has ended, as it was meant to.
            return

    def _leasegrant(self, message: bytes) -> bytes:
        asked = decode("LeaseGrantRequest", message)
        self._ttls[asked["ID"]] = asked["TTL"]
        return encode("LeaseGrantResponse", {"header": self._header(), **self._lease(asked["ID"])})

    def _keep_alive(self, message: bytes) -> bytes:
        lease = decode("LeaseKeepAliveRequest", message)["ID"]
        return encode("LeaseKeepAliveResponse", {"header": self._header(), **self._lease(lease)})

    def _lease(self, lease: int) -> dict[str, int]:
        return {
            "ID": lease + (self.watch_lie == "lease"),
            "TTL": self._ttls.get(lease, 0) + (self.watch_lie == "ttl"),
        }
