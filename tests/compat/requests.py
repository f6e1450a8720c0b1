"""Random requests to every RPC: valid ones, nearly valid ones, and bytes that were valid once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from tests.compat.sequences import Sequence, ends_etcd
from tests.messages import FIELDS, METHODS, Field, Message, Method, encode, varint

NUMBERS = [0, 1, 2, 3, 5, 9, 127, 128, 255, 999, 1 << 31, (1 << 31) - 1, 1 << 32]
NUMBERS += [(1 << 63) - 1, -1, -2, -(1 << 31), -(1 << 63), 9_000_000_000, 9_000_000_001]
TEXTS = ["", "a", "root", "role", "\0", "é", "3.6.0", "3.7.1", "0.0", "99999.1", "x" * 300]
TEXTS += ["http://127.0.0.1", "://", "%", "simple.1"]
BYTES = [b"", b"\0", b"a", b"k1", b"p/", b"\xff", b"\xff\xff", b"\xc3\x28", b"lock", b"x" * 300]
NESTING_MAX = 5
# A member that is added to one that runs alone takes its quorum away: only addresses that can't be
# ones are sent.
BAD_URLS = ["", "://", "%", "127.0.0.1:1", "ftp://x:1"]


class Call(NamedTuple):
    """One request: the RPC, the bytes, and the dict that they came from, if they are whole."""

    method: Method
    data: bytes
    message: Message | None


class Requests:
    """An endless row of requests; a seed repeats it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sequence = Sequence(seed, unknown_enums=True)
        self.methods = list(METHODS.values())
        self.good: dict[str, Callable[[], Message]] = {
            "RangeRequest": self.sequence.range,
            "PutRequest": self.sequence.put,
            "DeleteRangeRequest": self.sequence.delete,
            "TxnRequest": self.sequence.txn,
        }

    def next(self) -> Call:
        """The next request."""
        while True:
            rpc = self.random.choice(self.methods)
            message = self.message(rpc.request)
            if rpc.path.endswith(("MemberAdd", "MemberUpdate")):
                message["peerURLs"] = [self.random.choice(BAD_URLS)]
            data = encode(rpc.request, message)
            # What adds members is never sent damaged: it might be mended into an address.
            if self.random.random() < 0.3 and "Member" not in rpc.path:
                return Call(rpc, self.damaged(data), None)
            return Call(rpc, data, message)

    def message(self, name: str, level: int = 0) -> Message:
        """A message of that name: sensible by half, any fields otherwise."""
        if name in self.good and self.random.random() < 0.5:
            return self.good[name]()
        message: Message = {}
        for field in FIELDS[name]:
            if self.random.random() < 0.5:
                count = self.random.randrange(4) if field.repeated else 1
                values = [self.value(field, level) for _ in range(count)]
                message[field.name] = values if field.repeated else values[0]
        return message

    def value(self, field: Field, level: int) -> object:
        """A value of that field's kind, at the edges more often than not."""
        pick = self.random.choice
        if field.kind == "bool":
            return self.random.random() < 0.5
        if field.kind == "enum":
            return pick([0, 1, 2, 3, 4, 5, 9, -1, (1 << 31) - 1])
        if field.kind in {"i64", "u64", "u32"}:
            near = self.sequence.revision + self.random.randrange(-3, 3)
            return pick([*NUMBERS, near, near, self.random.getrandbits(63)])
        if field.kind == "bytes":
            return pick([*BYTES, self.random.randbytes(self.random.randrange(40))])
        if field.kind == "string":
            return pick(TEXTS)
        return self.message(field.kind, level + 1) if level < NESTING_MAX else {}

    def damaged(self, data: bytes) -> bytes:
        """The bytes with something wrong."""
        kind = self.random.randrange(6)
        at = self.random.randrange(len(data) + 1)
        if kind == 0:
            return data[:at]
        if kind == 1 and data:
            at %= len(data)
            return data[:at] + bytes([data[at] ^ 1 << self.random.randrange(8)]) + data[at + 1 :]
        if kind == 2:
            return data[:at] + self.random.randbytes(self.random.randrange(1, 9)) + data[at:]
        if kind == 3:
            return data + varint(self.random.randrange(1 << 20) << 3 | self.random.randrange(8))
        if kind == 4:
            return data[:at] + data[:at] + data[at:]
        return self.random.randbytes(self.random.randrange(60))


def ends_any_etcd(call: Call) -> bool:
    """Whether the request may be one of those that end a real etcd, so that it is not sent to one.

    T49, T50, sort targets that etcd 3.4 does not know, and damaged bytes that may hold any of them.
    These tests found more in 3.4.23: a RoleGrantPermission without `perm` dereferences nothing in
    apply; an Alarm that activates alarm NONE of member 0 writes an empty key, which is fatal; some
    membership changes keep it from starting again. So all of Auth, Cluster and Alarm is left out.
    """
    if "/etcdserverpb.Auth/" in call.method.path or "/etcdserverpb.Cluster/" in call.method.path:
        return not call.method.path.endswith(("List", "Get", "Status"))
    if call.method.request == "AlarmRequest":
        return call.message is None or call.message.get("action", 0) != 0
    if call.message is None:
        return call.method.request in {"TxnRequest", "RangeRequest"}
    if call.method.request == "TxnRequest":
        text = repr(call.message)
        return ends_etcd(call.message) or "sort_target" in text or "'request_" not in text
    return call.message.get("sort_target", 0) not in range(5)
