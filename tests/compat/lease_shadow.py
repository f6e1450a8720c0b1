"""Replays a recorded history on a server that has no leases yet, and loses no KV operation by it.

The recording itself says at each moment which leases exist, and which branch of a Txn ran; so this
shadow knows which key hangs on which lease, and turns each call into its like without leases:

1. a put with a lease that exists loses the lease; with one that does not exist it stays as it is,
   and fails alike;
2. a compare of leases becomes one that is always true or always false, as the shadow knows it to be
   (all compares of a Txn, the nested ones too, look at the state before it);
3. a revoke becomes one Txn that deletes the lease's keys: one revision, as in etcd;
4. the other lease calls are left out.

What is lost: the lease field of the pairs in replies, and HashKV's `hash` once a lease was dropped,
since the hash covers it. The class goes when the server has leases: `test_recordings` then uses the
calls as recorded by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tests.compat.recordings import Step
from tests.messages import Message

TARGET_LEASE = 4
TARGET_VERSION = 0
GREATER, LESS = 1, 2
RELATIONS: dict[int, Callable[[int, int], bool]] = {
    0: operator.eq,
    GREATER: operator.gt,
    LESS: operator.lt,
    3: operator.ne,
}


def in_range(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether a key is in etcd's range: one key, from `start` on, or up to `end`."""
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


def any_relation(stored: int, wanted: int) -> bool:
    """An unknown relation always holds."""
    return True


class LeaseShadow:
    """Which leases exist, and which live key hangs on which."""

    def __init__(self) -> None:
        self.leases: set[int] = set()
        self.keys: dict[bytes, int] = {}
        self.dropped = False

    def call(self, step: Step) -> tuple[str, Message] | None:
        """The call to make instead of the recorded one; None for none."""
        if step.name == "KV/Put":
            return step.name, self._put(step.request)
        if step.name == "KV/Txn":
            return step.name, self._txn(step.request)
        if step.name == "Lease/LeaseRevoke" and step.reply is not None:
            keys = [key for key, lease in self.keys.items() if lease == step.request.get("ID", 0)]
            ops = [{"request_delete_range": {"key": key}} for key in sorted(keys)]
            return ("KV/Txn", {"success": ops}) if ops else None
        return None if step.name.startswith("Lease/") else (step.name, step.request)

    def expected(self, step: Step) -> Message:
        """The recorded reply as it is without leases."""
        assert step.reply is not None
        reply: Message = _without_leases(step.reply)
        if step.name == "Maintenance/HashKV" and self.dropped:
            reply.pop("hash")
        return reply

    def follow(self, step: Step) -> None:
        """Do to the shadow what the recorded call did."""
        if step.reply is None:
            return
        if step.name == "Lease/LeaseGrant":
            self.leases.add(step.reply.get("ID", 0))
        elif step.name == "Lease/LeaseRevoke":
            lease = step.request.get("ID", 0)
            self.leases.discard(lease)
            self.keys = {key: held for key, held in self.keys.items() if held != lease}
        elif step.name == "KV/Put":
            self._follow_put(step.request)
        elif step.name == "KV/DeleteRange":
            self._follow_delete(step.request)
        elif step.name == "KV/Txn":
            self._follow_txn(step.request, step.reply)

    def _put(self, put: Message) -> Message:
        # With ignore_lease a lease is an error by itself, and stays.
        if put.get("lease", 0) in self.leases and not put.get("ignore_lease"):
            return {key: value for key, value in put.items() if key != "lease"}
        return put

    def _txn(self, txn: Message) -> Message:
        rewritten = dict(txn)
        rewritten["compare"] = [self._compare(one) for one in txn.get("compare", [])]
        for branch in ("success", "failure"):
            rewritten[branch] = [self._op(op) for op in txn.get(branch, [])]
        return rewritten

    def _op(self, op: Message) -> Message:
        if "request_put" in op:
            return {"request_put": self._put(op["request_put"])}
        if "request_txn" in op:
            return {"request_txn": self._txn(op["request_txn"])}
        return op

    def _compare(self, compare: Message) -> Message:
        if compare.get("target", 0) != TARGET_LEASE:
            return compare
        start, end = compare.get("key", b""), compare.get("range_end", b"")
        held = [lease for key, lease in self.keys.items() if in_range(key, start, end)]
        relation = RELATIONS.get(compare.get("result", 0), any_relation)
        wanted = compare.get("lease", 0)
        true = all(relation(lease, wanted) for lease in held or [0])
        # No version is below zero, and that of a missing key is zero.
        result, version = (GREATER, -1) if true else (LESS, 0)
        rewritten = {"result": result, "target": TARGET_VERSION, "version": version, "key": start}
        return rewritten | ({"range_end": end} if end else {})

    def _follow_put(self, put: Message) -> None:
        key = put.get("key", b"")
        lease = self.keys.get(key, 0) if put.get("ignore_lease") else put.get("lease", 0)
        self.keys[key] = lease
        self.dropped = self.dropped or lease != 0

    def _follow_delete(self, delete: Message) -> None:
        start, end = delete.get("key", b""), delete.get("range_end", b"")
        self.keys = {k: lease for k, lease in self.keys.items() if not in_range(k, start, end)}

    def _follow_txn(self, txn: Message, reply: Message) -> None:
        ops = txn.get("success" if reply.get("succeeded") else "failure", [])
        for op, response in zip(ops, reply.get("responses", []), strict=True):
            if "request_put" in op:
                self._follow_put(op["request_put"])
            elif "request_delete_range" in op:
                self._follow_delete(op["request_delete_range"])
            elif "request_txn" in op:
                self._follow_txn(op["request_txn"], response["response_txn"])


def _without_leases(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_leases(one) for one in value]
    if isinstance(value, dict):
        return {key: _without_leases(one) for key, one in value.items() if key != "lease"}
    return value
