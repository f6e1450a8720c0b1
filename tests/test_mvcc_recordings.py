"""Replays what etcd 3.7.1 was asked to write; revisions and every HashKV reply must be its own."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from quorate.core._storeview import StoreView
from quorate.core.errors import EtcdError

RECORDINGS = Path(__file__).parent / "recordings"
Message = dict[str, Any]


class Replay:
    """A store that is given the recorded writes that etcd accepted."""

    def __init__(self) -> None:
        self.view = StoreView()
        self.hashes = 0
        self.refused = 0

    def put(self, asked: Message) -> None:
        key = b64decode(asked["key"])
        value, lease = b64decode(asked.get("value", "")), int(asked.get("lease", 0))
        if asked.get("ignore_value") or asked.get("ignore_lease"):
            before = self.view.get(key)
            assert before is not None
            value = before[1] if asked.get("ignore_value") else value
            lease = before[5] if asked.get("ignore_lease") else lease
        self.view.put(key, value, lease)

    def delete_range(self, asked: Message) -> int:
        end = b64decode(asked.get("range_end", ""))
        return len(self.view.delete_range(b64decode(asked["key"]), end))

    def txn(self, asked: Message, answered: Message) -> None:
        branch = "success" if answered.get("succeeded") else "failure"
        responses = answered.get("responses", [])
        for operation, response in zip(asked.get(branch, []), responses, strict=True):
            [(name, request)] = operation.items()
            reply = response[name.replace("request", "response")]
            if name == "request_put":
                self.put(request)
            elif name == "request_delete_range":
                assert self.delete_range(request) == int(reply.get("deleted", 0))
            elif name == "request_txn":
                self.txn(request, reply)

    def lease_revoke(self, asked: Message) -> None:
        for key, *_, lease in self.view.range(b"\0", b"\0"):
            if lease == int(asked["ID"]):
                self.view.delete_range(key)

    def hash_kv(self, asked: Message, answered: Message | None) -> None:
        revision = int(asked.get("revision", 0))
        if answered is None:
            with pytest.raises(EtcdError):
                self.view.hash_kv(revision)
            self.refused += 1
            return
        expected = (
            answered.get("hash", 0),
            int(answered["compact_revision"]),
            int(answered["hash_revision"]),
        )
        assert self.view.hash_kv(revision) == expected
        self.hashes += 1

    def operation(self, line: Message) -> None:
        method = line["method"].rpartition("/")[2]
        asked, answered = line["asked"], line.get("answered")
        if method == "HashKV":
            self.hash_kv(asked, answered)
        elif method == "Compact":
            self.compact(int(asked.get("revision", 0)), answered)
        elif answered is not None and method in ("Put", "DeleteRange", "Txn", "LeaseRevoke"):
            self.view.begin()
            if method == "Put":
                self.put(asked)
            elif method == "DeleteRange":
                assert self.delete_range(asked) == int(answered.get("deleted", 0))
            elif method == "Txn":
                self.txn(asked, answered)
            else:
                self.lease_revoke(asked)
            self.view.end()
        if answered is not None:
            assert int(answered["header"]["revision"]) == self.view.store.revision

    def compact(self, revision: int, answered: Message | None) -> None:
        if answered is None:
            with pytest.raises(EtcdError):
                self.view.compact(revision)
            return
        self.view.compact(revision)
        while self.view.compact_step(7):
            pass
        self.view.store.check()


@pytest.mark.parametrize("name", ["kv-1", "kv-2", "kv-3"])
def test_hashes_and_revisions_are_those_of_etcd(name: str) -> None:
    replay = Replay()
    with gzip.open(RECORDINGS / f"{name}.jsonl.gz", "rt") as file:
        for number, text in enumerate(file):
            try:
                replay.operation(json.loads(text))
            except AssertionError as error:
                error.add_note(f"operation {number} of {name}: {text[:500]}")
                raise
    replay.view.store.check()
    assert replay.hashes > 70
    assert replay.refused > 30
