"""Random KV and Lease calls that a seed repeats: valid, nearly valid, and some that must fail.

A `Sequence` knows the revision and the compacted revision that its own calls led to, so that most
revisions it asks for exist, and some are just past either end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.messages import Message

KEYS = [
    b"\0",
    b"a",
    b"a\0",
    b"ab",
    b"abc",
    b"b",
    b"ba",
    b"k1",
    b"k10",
    b"k2",
    b"p/",
    b"p/x",
    b"p/y",
]
KEYS += [b"p/y/z", b"p0", b"\xff", b"\xff\xff"]
UNKNOWN_LEASE = 999
LEASES = [1, 2, 3, -4, 1 << 62]
# None runs out while a sequence lasts.
TTLS = [60, 300, 5000, 9_000_000_000, 9_000_000_001, 1 << 62]
TXN_OPS_MAX = 128


def prefix_end(key: bytes) -> bytes:
    """The range_end of all keys that begin with `key`."""
    head = key.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b"\0"


class Sequence:
    """An endless row of calls; tell it with `seen` what each led to."""

    def __init__(self, seed: int, *, unknown_enums: bool = False) -> None:
        self.random = random.Random(seed)
        self.revision = 1
        self.compacted = 0
        self.unknown_enums = unknown_enums

    def __iter__(self) -> Iterator[tuple[str, Message]]:
        while True:
            yield self.call()

    def call(self) -> tuple[str, Message]:
        """The next call."""
        kind = self.random.random()
        if kind < 0.28:
            return "KV/Put", self.put()
        if kind < 0.36:
            return self.lease()
        if kind < 0.55:
            return "KV/Range", self.range()
        if kind < 0.66:
            return "KV/DeleteRange", self.delete()
        if kind < 0.92:
            return "KV/Txn", self.safe_txn()
        if kind < 0.96:
            # While a compaction that nobody waits for runs, 3.4 has passing hashes; and a first
            # compaction to revision 0 leaves 3.7 a remembered hash that 3.4 does not have.
            return "KV/Compact", {"revision": self.near() or 1, "physical": True}
        return "Maintenance/HashKV", self.maybe(0.5, revision=self.near())

    def seen(self, name: str, request: Message, reply: Message | None) -> None:
        """Take in what a call led to."""
        if reply is not None:
            self.revision = reply["header"]["revision"]
            if name == "KV/Compact":
                self.compacted = request.get("revision", 0)

    def maybe(self, chance: float, **fields: object) -> Message:
        """Those fields, each with that chance."""
        return {key: value for key, value in fields.items() if self.random.random() < chance}

    def key(self) -> bytes:
        """A key of the pool; now and then the empty one."""
        return b"" if self.random.random() < 0.02 else self.random.choice(KEYS)

    def value(self) -> bytes:
        """A short value of any bytes."""
        return self.random.randbytes(self.random.choice([0, 1, 2, 3, 12]))

    def near(self) -> int:
        """A revision: mostly one that can be read."""
        kind = self.random.random()
        if kind < 0.8:
            return self.random.randint(max(self.compacted, 1), max(self.revision, 1))
        return self.random.choice([-1, 0, 1, self.compacted - 1, self.revision + 1, 1 << 40])

    def span(self) -> Message:
        """A key and perhaps a range_end of any kind."""
        start = self.key()
        kind = self.random.random()
        if kind < 0.4:
            return {"key": start}
        if kind < 0.6:
            return {"key": start, "range_end": prefix_end(start) if start else b"\0"}
        if kind < 0.8:
            return {"key": start, "range_end": self.random.choice(KEYS)}
        return {"key": self.random.choice([start, b"\0"]), "range_end": b"\0"}

    def lease(self) -> tuple[str, Message]:
        """A call about leases."""
        kind, lease = self.random.random(), self.random.choice([*LEASES, UNKNOWN_LEASE])
        if kind < 0.40:
            # An id of 0 is chosen by the server, and another one by each.
            granted = lease if lease != UNKNOWN_LEASE else 1
            return "Lease/LeaseGrant", {"ID": granted, "TTL": self.random.choice(TTLS)}
        if kind < 0.55:
            return "Lease/LeaseRevoke", {"ID": self.random.choice([lease, 0])}
        if kind < 0.90:
            return "Lease/LeaseTimeToLive", {"ID": lease} | self.maybe(0.7, keys=True)
        return "Lease/LeaseLeases", {}

    def put(self) -> Message:
        """A PutRequest."""
        fields = {"key": self.key()} | self.maybe(0.85, value=self.value())
        fields |= self.maybe(0.3, prev_kv=True) | self.maybe(0.04, lease=UNKNOWN_LEASE)
        fields |= self.maybe(0.25, lease=self.random.choice(LEASES))
        ignore = self.maybe(0.05, ignore_value=True) | self.maybe(0.05, ignore_lease=True)
        if "ignore_value" in ignore and self.random.random() < 0.7:
            fields.pop("value", None)
        return fields | ignore

    def range(self) -> Message:
        """A RangeRequest."""
        fields = self.span() | self.maybe(0.25, limit=self.random.choice([-1, 0, 1, 2, 5]))
        fields |= self.maybe(0.3, revision=self.near())
        fields |= self.maybe(0.25, sort_order=self.random.randrange(3))
        fields |= self.maybe(0.25, sort_target=self.random.randrange(5))
        fields |= self.maybe(0.15, keys_only=True, count_only=True, serializable=True)
        for limit in ("min_mod", "max_mod", "min_create", "max_create"):
            fields |= self.maybe(0.08, **{f"{limit}_revision": self.near()})
        if self.unknown_enums and self.random.random() < 0.02:
            fields[self.random.choice(["sort_order", "sort_target"])] = 9
        return fields

    def delete(self) -> Message:
        """A DeleteRangeRequest."""
        return self.span() | self.maybe(0.4, prev_kv=True)

    def compare(self) -> Message:
        """A Compare; sometimes the value given is not the target's."""
        target = self.random.randrange(5)
        number = self.random.choice([0, 0, 1, 2, 3, self.near()])
        values: dict[int, Message] = {
            0: {"version": number},
            1: {"create_revision": number},
            2: {"mod_revision": number},
            3: {"value": self.value()},
            4: {"lease": self.random.choice([0, 0, UNKNOWN_LEASE, *LEASES])},
        }
        given = values[target if self.random.random() < 0.95 else self.random.randrange(5)]
        where = self.span() if self.random.random() < 0.2 else {"key": self.key()}
        return where | {"target": target, "result": self.random.randrange(4)} | given

    def txn(self, level: int = 0) -> Message:
        """A TxnRequest, nested up to three levels."""
        long = self.random.random() < 0.01
        fields: Message = {"compare": [self.compare() for _ in range(self.random.randrange(3))]}
        for branch in ("success", "failure"):
            count = self.random.randrange(TXN_OPS_MAX - 2, TXN_OPS_MAX + 3) if long else 0
            ops = [{"request_put": {"key": b"n%d" % at}} for at in range(count)]
            fields[branch] = ops or [
                self.op(level + 1) for _ in range(self.random.choice([0, 1, 1, 2, 3, 4]))
            ]
        return fields

    def op(self, level: int) -> Message:
        """A RequestOp."""
        kind = self.random.random()
        if kind < 0.40:
            return {"request_range": self.range()}
        if kind < 0.65:
            return {"request_put": self.put()}
        if kind < 0.80 or level > 3:
            return {"request_delete_range": self.delete()}
        return {"request_txn": self.txn(level)} if kind < 0.99 else {}

    def safe_txn(self) -> Message:
        """A TxnRequest that ends no etcd."""
        while ends_etcd(txn := self.txn()):
            pass
        return txn


def ends_etcd(txn: Message) -> bool:
    """Whether a Txn may panic any etcd: a from-key delete, and a put that ignores a field (T49)."""
    ops = list(all_ops(txn))
    deletes = any(op.get("request_delete_range", {}).get("range_end") == b"\0" for op in ops)
    puts = [op.get("request_put", {}) for op in ops]
    return deletes and any(put.get("ignore_value") or put.get("ignore_lease") for put in puts)


def all_ops(txn: Message) -> Iterator[Message]:
    """Every op of a Txn, of both branches and all levels."""
    for branch in ("success", "failure"):
        for op in txn.get(branch, []):
            yield op
            if "request_txn" in op:
                yield from all_ops(op["request_txn"])
