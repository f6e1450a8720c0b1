"""What a Range answers, in the plainest way that could be right: filtered, sorted, cut."""

from __future__ import annotations

from tests.messages import Message
from tests.model import Model, Version

NONE, ASCEND, DESCEND = range(3)
KEY, VERSION, CREATE, MOD, VALUE = range(5)
# Places in a Version of the model, by sort target.
PLACES = {KEY: 0, VERSION: 4, CREATE: 2, MOD: 3, VALUE: 1}


def range_reply(model: Model, asked: Message) -> Message:
    """The decoded RangeResponse, without its header; ties of a sort stand in key order."""
    revision = max(0, asked.get("revision", 0)) or model.revision
    found = model.range(asked["key"], asked.get("range_end", b""), revision)
    reply: Message = {"count": len(found)} if found else {}
    if asked.get("count_only"):
        return reply
    limit, target = asked.get("limit", 0), asked.get("sort_target", KEY)
    order = asked.get("sort_order", NONE)
    filtered = [version for version in found if passes(version, asked)]
    as_it_is = order == NONE or (target == KEY and order == ASCEND)
    filters = any(name.startswith(("min", "max")) for name in asked)
    if as_it_is and not filters and limit > 0:
        filtered = filtered[: limit + 1]
    if target != KEY or order == DESCEND:
        filtered.sort(key=lambda version: version[PLACES[target]], reverse=order == DESCEND)
    if 0 < limit < len(filtered):
        reply["more"] = True
        filtered = filtered[:limit]
    if filtered:
        reply["kvs"] = [key_value(version, asked) for version in filtered]
    return reply


def passes(version: Version, asked: Message) -> bool:
    """Whether no filter drops it."""
    _, _, created, modified, *_ = version
    bounds = (
        ("min_mod_revision", modified, 1),
        ("max_mod_revision", modified, -1),
        ("min_create_revision", created, 1),
        ("max_create_revision", created, -1),
    )
    return all(
        sign * revision >= sign * asked[name] for name, revision, sign in bounds if asked.get(name)
    )


def key_value(version: Version, asked: Message) -> Message:
    """A version as a decoded KeyValue."""
    key, value, created, modified, number, lease = version
    whole = {
        "key": key,
        "value": value,
        "create_revision": created,
        "mod_revision": modified,
        "version": number,
        "lease": lease,
    }
    if asked.get("keys_only"):
        del whole["value"]
        # etcd then reads its index alone, which knows no lease, unless it sorts by value.
        if asked.get("sort_target", KEY) != VALUE:
            del whole["lease"]
    return {name: field for name, field in whole.items() if field}
