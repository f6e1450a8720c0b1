"""A tiny KV server over HTTP/2 that can lie, for tests of what reads its answers.

Rules: one thread for each connection; every reply is right unless `lie` names a way to be wrong;
the store is a dict, and no two requests are answered at once.
"""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Any, Self

import h2.config
import h2.connection
import h2.events

from tests.messages import decode, encode

# Every way in which it can be wrong.
LIES = (
    "revision",
    "value",
    "old value",
    "key",
    "count",
    "short list",
    "more",
    "txn",
    "status",
    "cut",
    "two messages",
    "compressed",
    "malformed",
    "silence",
    "close",
)


class FakeKV:
    """Put, Range of one key or to the end of a prefix, and Kubernetes' Txn, with linear cost."""

    def __init__(self, lie: str = "") -> None:
        assert lie in ("", *LIES)
        self.lie = lie
        self.revision = 1
        self.pairs: dict[bytes, dict[str, Any]] = {}
        self.old: dict[bytes, bytes] = {}
        self._turn = threading.RLock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(5)
        for client in self._clients:
            client.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.settimeout(5)
            self._clients.append(client)
            self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        config = h2.config.H2Configuration(client_side=False)
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        requests: dict[int, tuple[str, bytearray]] = {}
        try:
            client.sendall(connection.data_to_send())
            while data := client.recv(65536):
                with self._turn:
                    for event in connection.receive_data(data):
                        self._handle(connection, event, requests, client)
                    client.sendall(connection.data_to_send())
        except OSError:
            return

    def _handle(
        self,
        connection: h2.connection.H2Connection,
        event: h2.events.Event,
        requests: dict[int, tuple[str, bytearray]],
        client: socket.socket,
    ) -> None:
        if isinstance(event, h2.events.RequestReceived):
            named = dict(event.headers)
            requests[event.stream_id] = (named[b":path"].decode(), bytearray())
        elif isinstance(event, h2.events.DataReceived):
            requests[event.stream_id][1].extend(event.data)
        elif isinstance(event, h2.events.StreamEnded):
            path, body = requests.pop(event.stream_id)
            if self.lie == "silence":
                return
            if self.lie == "close":
                client.shutdown(socket.SHUT_RDWR)
                return
            self._reply(connection, event.stream_id, path, bytes(body[5:]))

    def _reply(
        self, connection: h2.connection.H2Connection, stream: int, path: str, message: bytes
    ) -> None:
        head = [(":status", "200"), ("content-type", "application/grpc")]
        connection.send_headers(stream, head)
        reply = getattr(self, "_" + path.rpartition("/")[2].lower())(message)
        if self.lie == "malformed":
            reply = b"\x0a\x7f" + reply[2:]
        framed = b"\x00" + len(reply).to_bytes(4, "big") + reply
        if self.lie == "compressed":
            framed = b"\x01" + framed[1:]
        elif self.lie == "cut":
            framed = framed[:-1]
        elif self.lie == "two messages":
            framed += framed
        # In pieces, so that readers meet every kind of border.
        for start in range(0, len(framed), 700):
            connection.send_data(stream, framed[start : start + 700])
        status = "8" if self.lie == "status" else "0"
        trailers = [("grpc-status", status)]
        if self.lie == "status":
            trailers.append(("grpc-message", "etcdserver: mvcc: database space exceeded"))
        connection.send_headers(stream, trailers, end_stream=True)

    def _header(self) -> dict[str, Any]:
        return {"cluster_id": 1, "member_id": 2, "revision": self.revision, "raft_term": 2}

    def _write(self, key: bytes, value: bytes) -> None:
        if self.lie != "revision":
            self.revision += 1
        pair = self.pairs.setdefault(key, {"key": key, "create_revision": self.revision})
        self.old[key] = pair.get("value", value)
        pair |= {"mod_revision": self.revision, "value": value}
        pair["version"] = pair.get("version", 0) + 1

    def _put(self, message: bytes) -> bytes:
        request = decode("PutRequest", message)
        self._write(request["key"], request["value"])
        return encode("PutResponse", {"header": self._header()})

    def _range(self, message: bytes) -> bytes:
        return encode("RangeResponse", self._ranged(decode("RangeRequest", message)))

    def _ranged(self, request: dict[str, Any]) -> dict[str, Any]:
        end = request.get("range_end") or request["key"] + b"\0"
        keys = sorted(key for key in self.pairs if request["key"] <= key < end)
        limit = request.get("limit", 0)
        shown = keys[:limit] if limit else keys
        pairs = [] if request.get("count_only") else [self._shown(key) for key in shown]
        if request.get("keys_only"):
            pairs = [{**pair, "value": b""} for pair in pairs]
        if self.lie == "short list":
            pairs = pairs[:-1]
        more = bool(limit and limit < len(keys))
        return {
            "header": self._header(),
            "kvs": pairs,
            "more": more != (self.lie == "more"),
            "count": len(keys) + (self.lie == "count"),
        }

    def _shown(self, key: bytes) -> dict[str, Any]:
        pair = dict(self.pairs[key])
        if self.lie == "value":
            pair["value"] = pair["value"][:-1] + b"?"
        elif self.lie == "old value":
            pair["value"] = self.old[key]
        elif self.lie == "key":
            pair["key"] = key[:-1] + b"x"
        return pair

    def _txn(self, message: bytes) -> bytes:
        request = decode("TxnRequest", message)
        compare = request["compare"][0]
        found = self.pairs.get(compare["key"], {}).get("mod_revision", 0)
        succeeded = found == compare.get("mod_revision", 0) and self.lie != "txn"
        if succeeded:
            put = request["success"][0]["request_put"]
            self._write(put["key"], put["value"])
            response: dict[str, Any] = {"response_put": {"header": self._header()}}
        else:
            asked = request["failure"][0]["request_range"]
            response = {"response_range": self._ranged(asked)}
        return encode(
            "TxnResponse",
            {"header": self._header(), "succeeded": succeeded, "responses": [response]},
        )
