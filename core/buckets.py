"""The small buckets of etcd's backend file: all but `key` and `lease`, as the state has them.

Rules:
1. Bytes are etcd's own: what etcd 3.7 would have written of the same entries, so that any etcd from
   3.4 on reads it, and tools that compare hashes of whole files find them equal.
2. What an earlier owner of the data left there and this version does not know (users and roles,
   buckets and marks of a later etcd) is carried along as it was.
3. Everything is taken at once, so that it fits the index that it is written with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ._restore import BackendError
from .apply import State
from .backend import Backend
from .messages import ConfState
from .version import STORAGE_VERSION

Pair = tuple[bytes, bytes]
Carried = Mapping[bytes, Sequence[Pair]]

# The buckets that a checkpoint streams, and those that are written anew each time.
_STREAMED = (b"key", b"lease")
_WHOLE = (b"alarm", b"members", b"members_removed")
# Of the others, what is written anew.
_OWN_KEYS: Mapping[bytes, frozenset[bytes]] = {
    b"meta": frozenset(
        (
            b"confState",
            b"consistent_index",
            b"finishedCompactRev",
            b"scheduledCompactRev",
            b"storageVersion",
            b"term",
        )
    ),
    b"cluster": frozenset((b"clusterVersion",)),
}
_NOT_HASHED = (b"consistent_index", b"storageVersion", b"term")
# What etcd writes when it makes the bucket.
_AUTH_NEW = {b"authRevision": (1).to_bytes(8, "big")}


def small_buckets(
    state: State,
    index: int,
    term: int,
    *,
    scheduled: int,
    finished: int,
    storage_version: str = STORAGE_VERSION,
    carried: Carried | None = None,
) -> dict[bytes, list[Pair]]:
    """Name -> pairs in order, by name, as of the entry `index` of `term`, which is applied.

    `scheduled` and `finished` are revisions of compactions, 0 or less for none. Without a storage
    version the file is one of etcd 3.5: then etcd 3.6 opens it, too.
    """
    known = {name: dict(pairs) for name, pairs in (carried or {}).items()}
    members = state.members
    known[b"meta"] = known.get(b"meta", {}) | {
        b"consistent_index": index.to_bytes(8, "big"),
        b"term": term.to_bytes(8, "big"),
        b"confState": conf_state_json(state.conf_state()),
    }
    for name, revision in ((b"scheduled", scheduled), (b"finished", finished)):
        if revision > 0:
            known[b"meta"][name + b"CompactRev"] = revision.to_bytes(8, "big") + b"_" + bytes(8)
    if storage_version:
        known[b"meta"][b"storageVersion"] = storage_version.encode()
    known[b"members"] = {b"%x" % one.id: one.to_json() for one in members.list()}
    known[b"members_removed"] = {b"%x" % id: b"removed" for id in members.removed()}
    known.setdefault(b"cluster", {})
    if members.cluster_version:
        known[b"cluster"][b"clusterVersion"] = members.cluster_version.encode()
    known[b"alarm"] = {alarm.encode(): b"" for alarm in members.alarms()}
    known[b"auth"] = _AUTH_NEW | known.get(b"auth", {})
    for name in (b"authUsers", b"authRoles"):
        known.setdefault(name, {})
    return {name: sorted(pairs.items()) for name, pairs in sorted(known.items())}


def hashed_buckets(state: State, carried: Carried) -> dict[bytes, list[Pair]]:
    """The same as Maintenance.Hash takes it: etcd leaves out what raft alone moves on."""
    compacted = state.store.compact_revision
    found = small_buckets(state, 0, 0, scheduled=compacted, finished=compacted, carried=carried)
    found[b"meta"] = [pair for pair in found[b"meta"] if pair[0] not in _NOT_HASHED]
    return found


def carried_buckets(backend: Backend) -> Carried:
    """What `small_buckets` is to carry along from an opened file. Raises BackendError."""
    found: dict[bytes, list[Pair]] = {}
    for name in backend.bolt.buckets():
        if name in _STREAMED or name in _WHOLE:
            continue
        pairs = []
        for key, value in backend.bolt.items(name):
            if value is None:
                raise BackendError(backend.path, key, "a bucket in a bucket can't be carried along")
            if key not in _OWN_KEYS.get(name, ()):
                pairs.append((key, value))
        found[name] = pairs
    return found


def conf_state_json(state: ConfState) -> bytes:
    """etcd's JSON of a raft configuration."""
    value: dict[str, object] = {
        name: list(ids)
        for name, ids in (
            ("voters", state.voters),
            ("learners", state.learners),
            ("voters_outgoing", state.voters_outgoing),
            ("learners_next", state.learners_next),
        )
        if ids
    }
    value["auto_leave"] = state.auto_leave
    return json.dumps(value, separators=(",", ":")).encode()
