"""etcd's snapshot files `<term>-<index>.snap`: who the members were at an index.

Rules:
1. Up to 3.5 etcd keeps its members in a tree of names that the v2 API served, not in the backend
   file; a snapshot file has that tree, as JSON, and the raft configuration.
2. A file is believed when its checksum is right and its name says what it holds.
3. A file is written under a name that every etcd deletes when it starts, synced, and renamed: what
   has a snapshot's name is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ._disk import Disk
from ._restore import checksum
from .errors import Fatal, MalformedError
from .members import Cluster, go_json, member_attributes, member_from_attributes
from .messages import ConfState, SnapshotMetadata
from .protobuf import Encoded, Field, Kind

NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.snap")
TEMPORARY = "db.tmp.snap"
_MEMBER_NAME = re.compile(r"[0-9a-f]{1,16}")
# Of etcd's tree: what it says of itself, and how many events of the v2 API it has room for.
_TREE_VERSION = 2
_EVENTS = 1000
_COUNTERS = (
    *("getsSuccess", "getsFail", "setsSuccess", "setsFail", "deleteSuccess", "deleteFail"),
    *("updateSuccess", "updateFail", "createSuccess", "createFail", "compareAndSwapSuccess"),
    *("compareAndSwapFail", "compareAndDeleteSuccess", "compareAndDeleteFail", "expireCount"),
    "watchers",
)


class SnapshotError(Fatal):
    """A snapshot file that cannot be used: which, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}; the snapshot file is refused")


@dataclass(frozen=True, slots=True)
class _File(Encoded):
    """What a file holds (snappb.Snapshot)."""

    FIELDS: ClassVar = (Field(1, "crc", Kind.ALWAYS), Field(2, "data", Kind.BYTES))

    crc: int = 0
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class _Snapshot(Encoded):
    """What that is (raftpb.Snapshot)."""

    FIELDS: ClassVar = (
        Field(1, "data", Kind.BYTES),
        Field(2, "metadata", Kind.OPTIONAL, SnapshotMetadata),
    )

    data: bytes = b""
    metadata: SnapshotMetadata | None = None


def snapshot_names(disk: Disk, directory: str) -> list[tuple[int, int, str]]:
    """(index, term, name) of the snapshot files, the oldest first."""
    found = [NAME.fullmatch(name) for name in disk.list(directory) or ()]
    return sorted((int(each[2], 16), int(each[1], 16), each[0]) for each in found if each)


def read_snapshot(disk: Disk, directory: str, name: str) -> Cluster:
    """The members as entries up to its index left them. Raises SnapshotError, DiskError."""
    path = f"{directory}/{name}"
    handle = disk.open(path)
    try:
        content = disk.read(handle, disk.size(handle, path), 0, path)
    finally:
        disk.close(handle)
    try:
        file = _File.decode(content)
        if not file.data or checksum(file.data) != file.crc:
            raise SnapshotError(path, "its checksum is wrong")
        snapshot = _Snapshot.decode(file.data)
    except MalformedError:
        raise SnapshotError(path, "it is malformed") from None
    match = NAME.fullmatch(name)
    assert match, name
    term, index = int(match[1], 16), int(match[2], 16)
    found = snapshot.metadata or SnapshotMetadata()
    if (found.term, found.index) != (term, index):
        raise SnapshotError(path, f"it is of term {found.term} and index {found.index}")
    try:
        return _cluster_of(json.loads(snapshot.data))
    except (ValueError, KeyError, TypeError, RecursionError, MalformedError):
        raise SnapshotError(path, "its members are malformed") from None


def _cluster_of(tree: Mapping[str, object]) -> Cluster:
    """What the tree says below /0. Raises ValueError, KeyError, TypeError, MalformedError."""
    cluster = _children(_children(tree["Root"])["0"])
    members = []
    for name, node in _children(cluster.get("members", {})).items():
        values = {key: _value(leaf) for key, leaf in _children(node).items()}
        if _MEMBER_NAME.fullmatch(name) is None:
            raise ValueError(name)
        members.append(
            member_from_attributes(
                int(name, 16), values["raftAttributes"], values.get("attributes", "{}")
            )
        )
    members.sort(key=lambda member: member.id)
    removed = sorted(int(name, 16) for name in _children(cluster.get("removed_members", {})))
    version = _value(cluster["version"]) if "version" in cluster else ""
    return Cluster(tuple(members), tuple(removed), version)


def _children(node: object) -> Mapping[str, object]:
    """What is below a name of the tree."""
    if not isinstance(node, Mapping):
        raise TypeError
    found = node.get("Children") or {}
    if not isinstance(found, Mapping):
        raise TypeError
    return found


def _value(node: object) -> str:
    """What a name without others below it holds."""
    if not isinstance(node, Mapping) or not isinstance(node["Value"], str):
        raise TypeError
    return node["Value"]


def write_snapshot(
    disk: Disk, directory: str, index: int, term: int, cluster: Cluster, conf_state: ConfState
) -> None:
    """Write the file of this index, durable when this returns. Raises DiskError."""
    data = _Snapshot(encode_tree(cluster), SnapshotMetadata(conf_state, index, term)).encode()
    content = _File(checksum(data), data).encode()
    temporary = f"{directory}/{TEMPORARY}"
    if TEMPORARY in (disk.list(directory) or ()):
        disk.remove(temporary)
    handle = disk.open(temporary, create=True)
    try:
        disk.write(handle, content, 0, temporary)
        disk.datasync(handle, temporary)
    finally:
        disk.close(handle)
    disk.rename(temporary, f"{directory}/{term:016x}-{index:016x}.snap")
    disk.sync_directory(directory)


def encode_tree(cluster: Cluster) -> bytes:
    """The tree that says this of members, as etcd up to 3.5 writes it.

    Its events are those of watchers of the v2 API, of whom there are none.
    """
    tree = _Tree()
    for member in sorted(cluster.members, key=lambda member: member.id):
        raft, published = member_attributes(member)
        tree.put(f"0/members/{member.id:x}/raftAttributes", raft)
        if published:
            tree.put(f"0/members/{member.id:x}/attributes", published)
    for id in sorted(cluster.removed):
        tree.put(f"0/removed_members/{id:x}", "")
    if cluster.version:
        tree.put("0/version", cluster.version)
    queue = {"Events": [None] * _EVENTS, "Size": 0, "Front": 0, "Back": 0, "Capacity": _EVENTS}
    value = {
        "Root": _in_order(tree.root),
        "WatcherHub": {"EventHistory": {"Queue": queue, "StartIndex": 0, "LastIndex": 0}},
        "CurrentIndex": tree.index,
        "Stats": dict.fromkeys(_COUNTERS, 0),
        "CurrentVersion": _TREE_VERSION,
    }
    return go_json(value).encode()


class _Tree:
    """The tree while it is made: each value put into it counts."""

    def __init__(self) -> None:
        self.index = 0
        # What the v2 API's users wrote is below /1: nothing.
        self.root = _node("/", 0, {"0": _node("/0", 0, {}), "1": _node("/1", 0, {})})

    def put(self, path: str, value: str) -> None:
        """Add a value, and the names above it that are missing."""
        self.index += 1
        at, place = self.root, ""
        *above, last = path.split("/")
        for name in above:
            place += f"/{name}"
            at = at["Children"].setdefault(name, _node(place, self.index, {}))
        at["Children"][last] = _node(f"{place}/{last}", self.index, None, value)


def _in_order(node: dict[str, Any]) -> dict[str, Any]:
    """The same with its names ascending, as Go writes them."""
    children = node["Children"]
    if children is None:
        return node
    return {**node, "Children": {name: _in_order(children[name]) for name in sorted(children)}}


def _node(
    path: str, index: int, children: dict[str, Any] | None, value: str = ""
) -> dict[str, Any]:
    """A name of the tree."""
    return {
        "Path": path,
        "CreatedIndex": index,
        "ModifiedIndex": index,
        "ExpireTime": "0001-01-01T00:00:00Z",
        "Value": value,
        "Children": children,
    }
