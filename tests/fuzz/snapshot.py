"""The target `snapshot`: a `.snap` file; its mutator changes the members and corrects the sum."""

from __future__ import annotations

import json
import random
from typing import Any

from quorate.core._restore import checksum
from quorate.core.members import Cluster
from quorate.core.snapfile import SnapshotError, read_snapshot
from tests.fuzz.mutations import havoc, number
from tests.sim.disk import File, SimDisk
from tests.walmodel import decode_fields, varint

TERM, INDEX = 2, 9
DIRECTORY = "/d"
NAME = f"{TERM:016x}-{INDEX:016x}.snap"
DEEP = "what is deep"
MALFORMED = (IndexError, KeyError, TypeError, ValueError, RecursionError)


def seeds() -> dict[str, bytes]:
    """The members of a cluster, one without any, and one whose tree is small."""
    member = node(
        raftAttributes=leaf('{"peerURLs":["http://127.0.0.1:1"]}'),
        attributes=leaf('{"name":"one","clientURLs":["http://c"]}'),
    )
    bare = node(raftAttributes=leaf('{"peerURLs":["http://d"],"isLearner":true}'))
    full = node(
        members=node(**{"7": member, "8e9e05c52164694d": bare}),
        removed_members=node(ff=leaf("removed")),
        version=leaf("3.4.0"),
    )
    trees = {"members": {"0": full, "1": node()}, "bare": {"0": node()}, "empty": {}}
    return {
        name: encode(json.dumps({"Root": {"Children": tree}}).encode())
        for name, tree in trees.items()
    }


def leaf(value: str) -> dict[str, Any]:
    return {"Value": value, "Children": None}


def node(**children: object) -> dict[str, Any]:
    return {"Value": "", "Children": children}


def field(at: int, data: bytes) -> bytes:
    return bytes((8 * at + 2,)) + varint(len(data)) + data


def encode(tree: bytes, metadata: bytes | None = None) -> bytes:
    """A file with this JSON and the right sum."""
    if metadata is None:
        metadata = b"\x0a\x00\x10" + varint(INDEX) + b"\x18" + varint(TERM)
    return encode_file(field(1, tree) + field(2, metadata))


def encode_file(snapshot: bytes) -> bytes:
    return b"\x08" + varint(checksum(snapshot)) + field(2, snapshot)


def run(data: bytes) -> bool:
    """Read it: members that make sense, or a SnapshotError."""
    disk = SimDisk(random.Random(1))
    disk.make_directory(DIRECTORY)
    disk.names[f"{DIRECTORY}/{NAME}"] = File(bytearray(data), bytearray(data))
    try:
        cluster = read_snapshot(disk, DIRECTORY, NAME)
    except SnapshotError:
        return False
    finally:
        assert not disk.handles, "the file is still open"
    assert isinstance(cluster, Cluster)
    for member in cluster.members:
        assert 0 <= member.id < 1 << 64
        assert all(isinstance(url, str) for url in (*member.peer_urls, *member.client_urls))
        assert isinstance(member.name, str)
    assert all(0 <= removed < 1 << 64 for removed in cluster.removed)
    # Everything goes into messages: it must be text that can be.
    for text in (*(url for member in cluster.members for url in member.peer_urls), cluster.version):
        text.encode()
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change a place of the tree, a byte of it, or the metadata; then make the file again."""
    try:
        snapshot = decode_fields(data)[2]
        assert isinstance(snapshot, bytes)
        fields = decode_fields(snapshot)
        tree, metadata = fields[1], fields[2]
        assert isinstance(tree, bytes)
        assert isinstance(metadata, bytes)
    except (*MALFORMED, AssertionError):
        return havoc(data, rng)
    choice = rng.randrange(8)
    if choice == 0:
        return havoc(data, rng)
    if choice == 1:
        return encode_file(havoc(snapshot, rng))
    if choice == 2:
        return encode(tree, havoc(metadata, rng))
    if choice == 3:
        return encode(havoc(tree, rng))
    try:
        parsed = json.loads(tree)
    except MALFORMED:
        return encode(havoc(tree, rng))
    text = json.dumps(changed(parsed, rng))
    # More than any parser's stack holds.
    deep = "[" * rng.choice((1, 900, 9000))
    return encode(text.replace(f'"{DEEP}"', deep + "]" * rng.choice((0, len(deep)))).encode())


def changed(value: Any, rng: random.Random) -> Any:
    """The same with something below it replaced, renamed or taken away."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        choice = rng.randrange(6)
        rest = {name: below for name, below in value.items() if name != key}
        if choice == 0:
            return rest
        if choice == 1:
            return rest | {some_name(rng): value[key]}
        return value | {key: changed(value[key], rng)}
    if isinstance(value, str) and rng.random() < 0.5:
        return havoc(value.encode("utf-8", "surrogatepass"), rng).decode("latin-1")
    return rng.choice((None, True, 1.5, number(rng), "", "x", "\ud800", [], {}, DEEP, node()))


def some_name(rng: random.Random) -> str:
    return rng.choice(("0", "members", "removed_members", "version", "ff", "F", "", f"{9:017x}"))
