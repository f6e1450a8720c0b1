"""Records what concurrent clients ask and are told, for `tests.linearizability`."""

from __future__ import annotations

import math
import random
import threading
import time

import grpc  # type: ignore[import-untyped]
from tests.linearizability import Answer, Operation
from tests.messages import Message
from tests.wire import UNCERTAIN, Client, Refused


class Recorder:
    """Clients, a connection each, that put, get, delete, swap on few keys and note all answers."""

    def __init__(self, port: int, clients: int, keys: int, start: int, *, pace: float) -> None:
        self.history: list[Operation] = []
        self.writes: list[tuple[float, float, int]] = []
        self.keys = [b"key/%d" % number for number in range(keys)]
        self.pace = pace
        self.stopped = threading.Event()
        self.errors: list[BaseException] = []
        self._port = port
        self._lock = threading.Lock()
        self._seen: dict[bytes, bytes | None] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(start + number)))
            for number in range(clients)
        ]

    def __enter__(self) -> Recorder:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call hangs"
        if self.errors:
            raise self.errors[0]

    def _run(self, number: int, chance: random.Random) -> None:
        client, at = Client(self._port), 0
        try:
            while not self.stopped.is_set():
                at += 1
                if not self._one(client, chance, b"%d.%d" % (number, at)):
                    client.close()
                    client = self._again()
                time.sleep(self.pace * chance.random())
        except BaseException as error:
            self.errors.append(error)
        finally:
            client.close()

    def _again(self) -> Client:
        """A new connection, once the server is there."""
        while True:
            client = Client(self._port)
            try:
                client.wait_connected(0.5)
            except grpc.FutureTimeoutError:
                if not self.stopped.is_set():
                    client.close()
                    continue
            return client

    def _one(self, client: Client, chance: random.Random, value: bytes) -> bool:
        """Make and note one call; whether the connection is still good."""
        key = chance.choice(self.keys)
        kind = chance.choices(["get", "put", "swap", "delete"], [50, 30, 15, 5])[0]
        expected = self._seen.get(key)
        called = time.monotonic()
        answer: Answer | None = None
        returned = math.inf
        try:
            answer = self._call(client, kind, key, value, expected)
            returned = time.monotonic()
        except Refused as error:
            if error.code not in UNCERTAIN:
                raise
        if answer is not None or kind != "get":
            with self._lock:
                written = value if kind in {"put", "swap"} else None
                self.history.append(
                    Operation(kind, key, called, returned, written, expected, answer)
                )
                if answer is not None and kind != "get" and answer.succeeded:
                    self.writes.append((called, returned, answer.revision))
        return answer is not None

    def _call(
        self, client: Client, kind: str, key: bytes, value: bytes, expected: bytes | None
    ) -> Answer:
        if kind == "get":
            kvs = client.get(key).get("kvs", [])
            seen = kvs[0] if kvs else {}
            value_seen = self._seen[key] = seen.get("value")
            return Answer(value_seen, seen.get("mod_revision", -1), seen.get("version", -1))
        if kind == "put":
            return Answer(revision=client.put(key, value)["header"]["revision"])
        if kind == "delete":
            reply = client.delete(key)
            deleted = reply.get("deleted", 0) == 1
            return Answer(revision=reply["header"]["revision"], succeeded=deleted)
        missing: Message = {"key": key, "target": 0, "version": 0}
        same = missing if expected is None else {"key": key, "target": 3, "value": expected}
        reply = client.txn([same], [{"request_put": {"key": key, "value": value}}])
        swapped = bool(reply.get("succeeded"))
        return Answer(revision=reply["header"]["revision"], succeeded=swapped)
