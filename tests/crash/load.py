"""Writers that remember what they were promised, and the check that a restarted server kept it.

Rules:
1. Every key is written once, with its own value, so that what is there tells which write made it.
2. A write that was not acknowledged may be there or not; but it is there whole, or not at all.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.messages import Message
from tests.wire import UNCERTAIN, Client, Pending, Refused

GROUP = 3


class Write(NamedTuple):
    """One call: a put of one key, or a Txn that puts `GROUP` keys."""

    keys: tuple[bytes, ...]
    value: bytes

    def start(self, client: Client) -> Pending:
        """Make the call."""
        puts = [{"key": key, "value": self.value} for key in self.keys]
        if len(puts) == 1:
            return client.start("KV/Put", puts[0])
        return client.start("KV/Txn", {"success": [{"request_put": put} for put in puts]})


@dataclass
class Ledger:
    """What was asked for, and what of it was acknowledged at which revision."""

    attempted: dict[bytes, Write] = field(default_factory=dict)
    acknowledged: dict[bytes, int] = field(default_factory=dict)
    refusals: list[Refused] = field(default_factory=list)
    revision: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def attempt(self, write: Write) -> None:
        """Note a write before it is sent."""
        with self.lock:
            self.attempted |= dict.fromkeys(write.keys, write)

    def acknowledge(self, write: Write, reply: Message) -> None:
        """Note the server's promise."""
        revision = reply["header"]["revision"]
        with self.lock:
            self.acknowledged |= dict.fromkeys(write.keys, revision)
            self.revision = max(self.revision, revision)

    def refuse(self, error: Refused) -> None:
        """Note a failed call; `verify` allows only those that leave the outcome open."""
        with self.lock:
            self.refusals.append(error)

    def forget(self, client: Client) -> None:
        """Delete everything, on the server too."""
        reply = client.delete(b"\0", b"\0")
        self.revision = reply["header"]["revision"]
        self.attempted, self.acknowledged = {}, {}

    def verify(self, client: Client) -> int:
        """Compare with what is there; how many keys are. AssertionError tells the wrong key."""
        wrong = [error for error in self.refusals if error.code not in UNCERTAIN]
        assert not wrong, f"refused: {wrong[:3]}"
        reply = client.get(b"\0", b"\0")
        there = {kv["key"]: kv for kv in reply.get("kvs", [])}
        now = reply["header"]["revision"]
        assert now >= self.revision, f"revision went back: {self.revision} acknowledged, now {now}"
        for key, revision in self.acknowledged.items():
            assert key in there, f"{key!r}, acknowledged at {revision}, is lost"
            found = there[key]["mod_revision"]
            assert found == revision, f"{key!r} acknowledged at {revision}, found at {found}"
        revisions: dict[int, Write] = {}
        for key, kv in there.items():
            write = self.attempted.get(key)
            assert write is not None, f"{key!r} was never written"
            assert kv.get("value", b"") == write.value, f"{key!r} holds another value"
            assert kv["version"] == 1, f"{key!r} was written {kv['version']} times"
            assert kv["mod_revision"] <= now
            other = revisions.setdefault(kv["mod_revision"], write)
            assert other is write, f"revision {kv['mod_revision']} holds two writes"
            missing = [one for one in write.keys if one not in there]
            assert not missing, f"half of a Txn is there: {key!r} without {missing}"
        return len(there)


class Load:
    """Threads that write, each over its connection, until told to stop or the server is gone."""

    def __init__(self, port: int, ledger: Ledger, tag: str, connections: int, window: int) -> None:
        self.ledger = ledger
        self.tag = tag
        self.window = window
        self.stopped = threading.Event()
        self.broken = threading.Event()
        self.clients = [Client(port) for _ in range(connections)]
        self.threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(connections)
        ]

    def start(self) -> Load:
        """Begin to write."""
        for thread in self.threads:
            thread.start()
        return self

    def stop(self, seconds: float = 30.0) -> None:
        """Stop, wait for what is under way, and close the connections."""
        self.stopped.set()
        self.join(seconds)

    def join(self, seconds: float = 30.0) -> None:
        """Wait until every writer has ended by itself; raises AssertionError if one hangs."""
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
            assert not thread.is_alive(), "a call hangs"
        for client in self.clients:
            client.close()

    def _run(self, number: int) -> None:
        client, at = self.clients[number], 0
        while not self.stopped.is_set() and not self.broken.is_set():
            writes = [self._write(number, at + more) for more in range(self.window)]
            at += self.window
            for write in writes:
                self.ledger.attempt(write)
            calls = [(write, write.start(client)) for write in writes]
            for write, call in calls:
                self._finish(write, call)

    def _finish(self, write: Write, call: Pending) -> None:
        try:
            self.ledger.acknowledge(write, call.result())
        except Refused as error:
            self.ledger.refuse(error)
            self.broken.set()

    def _write(self, number: int, at: int) -> Write:
        name = f"{self.tag}/{number}/{at}"
        keys = [name] if at % 4 else [f"{name}/{part}" for part in range(GROUP)]
        size = 4000 if at % 64 == 1 else 40
        return Write(tuple(key.encode() for key in keys), f"{name}=".encode().ljust(size, b"."))
