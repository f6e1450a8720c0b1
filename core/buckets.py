"""The small buckets of etcd's backend file: all but `key` and `lease`, as the state has them.

Rules:
1. Bytes are etcd's own: what etcd 3.7 would have written of the same entries, so that any etcd from
   3.4 on reads it, and tools that compare hashes of whole files find them equal.
2. What an earlier owner of the data left there and this version does not know (users and roles,
   buckets and marks of a later etcd) is carried along as it was.
3. Everything is taken at once, so that it fits the index that it is written with.
4. A file that is kept for etcd 3.5 and is of a cluster of 3.4 is one of 3.4: it has no term and no
   confState. etcd 3.4 never changes the term that it finds there, and takes it into its Hash.
5. Hash is of what the file holds and what came since. So until the first checkpoint what an etcd
   wrote otherwise than this version does counts as that etcd wrote it, unless it changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ._restore import BackendError
from .apply import State, UnlikeRows
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
# Differs where a compaction is under way: that is taken as done.
_MARKS = (b"finishedCompactRev", b"scheduledCompactRev")
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
    }
    if storage_version or not is_of_3_4(members.cluster_version):
        known[b"meta"][b"term"] = term.to_bytes(8, "big")
        known[b"meta"][b"confState"] = conf_state_json(state.conf_state())
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


def is_of_3_4(cluster_version: str) -> bool:
    """Whether the oldest member of the cluster is an etcd 3.4, or older."""
    major, _, rest = cluster_version.partition(".")
    return bool(rest) and (int(major), int(rest.partition(".")[0])) < (3, 5)


def hashed_buckets(
    state: State, carried: Carried, storage_version: str = STORAGE_VERSION
) -> dict[bytes, list[Pair]]:
    """The same as Maintenance.Hash takes it: etcd leaves out what raft alone moves on."""
    compacted = state.store.compact_revision
    found = small_buckets(
        state,
        0,
        0,
        scheduled=compacted,
        finished=compacted,
        storage_version=storage_version,
        carried=carried,
    )
    found[b"meta"] = [pair for pair in found[b"meta"] if pair[0] not in _NOT_HASHED]
    for (name, key), (ours, theirs) in state.unlike_rows.items():
        rows = dict(found[name])
        if rows.pop(key, None) == ours:
            kept = () if theirs is None else ((key, theirs),)
            found[name] = sorted([*rows.items(), *kept])
    return found


def find_unlike_rows(state: State, backend: Backend, storage_version: str) -> UnlikeRows:
    """What the file says otherwise than a checkpoint of this state would, which is the file's."""
    found: dict[tuple[bytes, bytes], tuple[bytes | None, bytes | None]] = {}
    would = hashed_buckets(state, carried_buckets(backend), storage_version)
    for name, pairs in would.items():
        ours, theirs = dict(pairs), dict(backend.items(name))
        for key in sorted({*ours, *theirs}.difference(_MARKS, _NOT_HASHED)):
            if ours.get(key) != theirs.get(key):
                found[name, key] = ours.get(key), theirs.get(key)
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
