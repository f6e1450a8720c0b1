"""Whether two servers' replies say the same, field by field.

Rules:
1. `cluster_id`, `member_id` and `raft_term` of headers are left out, and the remaining `TTL` of a
   lease unless it is -1. Nothing else is.
2. Where a sort has ties, any order of the ties is right; where a limit cuts a group of ties, any of
   them may be the ones shown.
3. Leases are listed in the order in which they run out, which depends on the machine's speed, and
   etcd tells the keys of a lease in any order: any order is right.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from tests.messages import Message

IDENTITIES = ("cluster_id", "member_id", "raft_term")
SORT_FIELDS = {1: "version", 2: "create_revision", 3: "mod_revision", 4: "value"}
SORT_BY_VALUE = 4
NO_LEASE = -1
OPS = ("range", "put", "delete_range", "txn")


def plain(name: str, reply: Any) -> Any:
    """The reply to RPC `name` (`KV/Range`) without what differs from server to server."""
    if isinstance(reply, list):
        return [plain(name, one) for one in reply]
    if not isinstance(reply, dict):
        return reply
    left_out = {"TTL"} if name == "Lease/LeaseTimeToLive" else set()
    return {
        key: {k: v for k, v in value.items() if k not in IDENTITIES}
        if key == "header"
        else plain(name, value)
        for key, value in reply.items()
        if key not in left_out or value == NO_LEASE
    }


def difference(name: str, request: Message, left: Message, right: Message) -> str:
    """The first place where two plain replies differ; empty when they say the same."""
    if name == "KV/Range":
        return _range(request, left, right)
    if name == "KV/Txn":
        return _txn(request, left, right)
    if name == "Lease/LeaseLeases":
        left, right = _by_id(left), _by_id(right)
    if name == "Lease/LeaseTimeToLive":
        left, right = (one | {"keys": sorted(one.get("keys", []))} for one in (left, right))
    return _equal(left, right)


def _equal(left: Message, right: Message) -> str:
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            return f"{key}: {left.get(key)!r} or {right.get(key)!r}"
    return ""


def _range(request: Message, left: Message, right: Message) -> str:
    one, two = left.get("kvs", []), right.get("kvs", [])
    rest = _equal(_without(left, "kvs"), _without(right, "kvs"))
    target = request.get("sort_target", 0)
    if rest or len(one) != len(two) or target not in SORT_FIELDS:
        return rest or _equal({"kvs": one}, {"kvs": two})
    # A limit with order NONE cuts in key order, before the sort.
    cut = bool(left.get("more")) and request.get("sort_order", 0) != 0
    if request.get("keys_only") and target == SORT_BY_VALUE:
        return "" if cut else _equal({"kvs": _by_key(one)}, {"kvs": _by_key(two)})
    return _tied(SORT_FIELDS[target], one, two, cut)


def _tied(field: str, one: list[Message], two: list[Message], cut: bool) -> str:
    """The difference of two sorted lists, group of ties by group of ties."""
    groups, others = (
        [(value, _by_key(list(group))) for value, group in groupby(kvs, lambda kv: kv.get(field))]
        for kvs in (one, two)
    )
    for at, (group, other) in enumerate(zip(groups, others, strict=False)):
        shown_in_part = cut and at == len(groups) - 1
        same = group[0] == other[0] and len(group[1]) == len(other[1])
        if not same or (not shown_in_part and group != other):
            return f"group {at} by {field}: {group!r} or {other!r}"
    return "" if len(groups) == len(others) else f"groups by {field}: {one!r} or {two!r}"


def _txn(request: Message, left: Message, right: Message) -> str:
    rest = _equal(_without(left, "responses"), _without(right, "responses"))
    one, two = left.get("responses", []), right.get("responses", [])
    if rest or len(one) != len(two):
        return rest or f"{len(one)} or {len(two)} responses"
    branch = request.get("success" if left.get("succeeded") else "failure", [])
    for at, (op, this, that) in enumerate(zip(branch, one, two, strict=True)):
        found = _op(op, this, that)
        if found:
            return f"responses[{at}].{found}"
    return ""


def _op(op: Message, left: Message, right: Message) -> str:
    for kind in OPS:
        if f"request_{kind}" in op:
            names = {"range": "KV/Range", "txn": "KV/Txn"}
            asked, key = op[f"request_{kind}"], f"response_{kind}"
            if key not in left or key not in right:
                return f"{key}: {left!r} or {right!r}"
            return difference(names.get(kind, kind), asked, left[key], right[key])
    return _equal(left, right)


def _without(message: Message, key: str) -> Message:
    return {k: v for k, v in message.items() if k != key}


def _by_id(reply: Message) -> Message:
    return reply | {"leases": sorted(one.get("ID", 0) for one in reply.get("leases", []))}


def _by_key(kvs: list[Message]) -> list[Message]:
    return sorted(kvs, key=lambda kv: bytes(kv.get("key", b"")))
