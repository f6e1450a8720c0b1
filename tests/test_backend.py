"""The state from a backend file: what it becomes, and what is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quorate.core._boltwriter import BoltWriter
from quorate.core._disk import OsDisk
from quorate.core._restore import checksum
from quorate.core._storeview import StoreView
from quorate.core.apply import State
from quorate.core.backend import Start, find_start, open_backend, restore
from quorate.core.errors import Fatal
from quorate.core.logs import Logger
from quorate.core.members import Cluster, Member
from quorate.core.messages import AlarmMember, AlarmType
from tests import walmodel
from tests.messages import encode

MEMBER = {"id": 7, "peerURLs": ["http://127.0.0.1:1"], "name": "one", "clientURLs": ["http://c"]}
Buckets = Mapping[bytes, Mapping[bytes, bytes]]


def revision(main: int, sub: int = 0, *, tombstone: bool = False) -> bytes:
    return struct.pack(">q", main) + b"_" + struct.pack(">q", sub) + b"t" * tombstone


def pair(key: bytes, main: int, value: bytes = b"v", **fields: int) -> bytes:
    numbers = {"create_revision": main, "mod_revision": main, "version": 1} | fields
    return encode("KeyValue", {"key": key, "value": value, **numbers})


def lease(number: int, ttl: int, remaining: int = 0) -> bytes:
    numbers = enumerate((number, ttl, remaining), 1)
    return b"".join(
        bytes([at << 3]) + walmodel.varint(value & (1 << 64) - 1) for at, value in numbers if value
    )


def marks(index: int = 9, **more: bytes) -> dict[bytes, bytes]:
    found = {b"consistent_index": index.to_bytes(8, "big")}
    return found | {name.encode(): value for name, value in more.items()}


@dataclass
class Directory:
    """`member/snap` and `member/wal` of a directory on the real disk."""

    path: Path
    disk: OsDisk = field(default_factory=OsDisk)

    @property
    def snap(self) -> str:
        return str(self.path / "snap")

    @property
    def wal(self) -> str:
        return str(self.path / "wal")

    def write(self, buckets: Buckets) -> Directory:
        writer = BoltWriter(self.disk, f"{self.snap}/db")
        for name, pairs in buckets.items():
            writer.begin(name)
            for key, value in sorted(pairs.items()):
                writer.put(key, value)
            writer.end()
        writer.finish()
        writer.close()
        return self

    def snapshot(self, term: int, index: int, tree: object, *, lie: int = 0, rot: int = 0) -> Path:
        """A snapshot file; with `lie` of an index that its name denies, with `rot` damaged."""
        metadata = b"\x0a\x00\x10" + walmodel.varint(index + lie) + b"\x18" + walmodel.varint(term)
        data = json.dumps(tree).encode()
        whole = b"\x0a" + walmodel.varint(len(data)) + data
        whole += b"\x12" + walmodel.varint(len(metadata)) + metadata
        file = b"\x08" + walmodel.varint(checksum(whole) ^ rot)
        path = Path(self.snap) / f"{term:016x}-{index:016x}.snap"
        path.write_bytes(file + b"\x12" + walmodel.varint(len(whole)) + whole)
        return path

    def load(self) -> State:
        backend = open_backend(self.disk, self.snap)
        assert backend is not None
        state = State([], Logger(()))
        restore(backend, find_start(backend, self.disk, self.snap, self.wal), state, Logger(()))
        state.store.check()
        return state


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    (tmp_path / "snap").mkdir()
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / f"{0:016x}-{0:016x}.wal").touch()
    return Directory(tmp_path)


def test_everything_in_a_file(directory: Directory) -> None:
    keys = {
        revision(2): pair(b"a", 2),
        revision(3): pair(b"b", 3, b"leased", lease=5),
        revision(3, 1): pair(b"c", 3),
        revision(4): pair(b"a", 4, b"w", create_revision=2, version=2),
        revision(5, tombstone=True): encode("KeyValue", {"key": b"c"}),
    }
    state = directory.write(
        {
            b"key": keys,
            b"lease": {struct.pack(">q", 5): lease(5, 100, 60)},
            b"alarm": {b"\x08\x07\x10\x01": b""},
            b"meta": marks(finishedCompactRev=revision(2), scheduledCompactRev=revision(3)),
            b"members": {b"7": b"not believed: no storage version"},
        }
    ).load()
    view = StoreView(state.store)
    assert (state.applied, state.applier.restored) == (0, 9)
    assert (state.store.revision, state.store.compact_revision) == (5, 3)
    assert view.get(b"a", 0) == (b"a", b"w", 2, 4, 2, 0)
    assert view.get(b"a", 3) == (b"a", b"v", 2, 2, 1, 0)
    assert view.get(b"b", 0) == (b"b", b"leased", 3, 3, 1, 5)
    assert view.get(b"c", 0) is None
    assert view.get(b"c", 4) == (b"c", b"v", 3, 3, 1, 0)
    assert state.members.alarms() == [AlarmMember(7, AlarmType.NOSPACE)]
    assert state.applier.no_space
    assert state.members.list() == []


def test_members_of_a_file_with_a_storage_version(directory: Directory) -> None:
    state = directory.write(
        {
            b"meta": marks(storageVersion=b"3.6.0"),
            b"members": {b"7": json.dumps(MEMBER).encode()},
            b"members_removed": {b"ff": b"removed"},
            b"cluster": {b"clusterVersion": b"3.6.0"},
        }
    ).load()
    assert (state.applied, state.applier.restored) == (9, 9)
    assert state.members.list() == [
        Member(7, ("http://127.0.0.1:1",), name="one", client_urls=("http://c",))
    ]
    assert state.members.removed() == [255]
    assert state.members.cluster_version == "3.6.0"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ({"storageVersion": b"3.6.0", "term": bytes(7) + b"\2"}, "3.6.0"),
        ({"term": bytes(7) + b"\2"}, "3.5.0"),
        ({"term": bytes(8)}, ""),
        ({}, ""),
    ],
)
def test_the_storage_version_is_what_etcd_tells(
    directory: Directory, said: dict[str, bytes], version: str
) -> None:
    directory.write({b"meta": marks(9, **said)})
    backend = open_backend(directory.disk, directory.snap)
    assert backend is not None
    assert backend.storage_version == version


def test_a_tombstone_of_what_is_compacted_is_kept(directory: Directory) -> None:
    """A watch from its revision on has to hear of it (#19179)."""
    keys = {
        revision(5, tombstone=True): encode("KeyValue", {"key": b"gone"}),
        revision(6): pair(b"a", 6),
        revision(7): pair(b"gone", 7),
        revision(8, tombstone=True): encode("KeyValue", {"key": b"gone"}),
    }
    state = directory.write({b"key": keys, b"meta": marks(finishedCompactRev=revision(5))}).load()
    assert state.store.versions == 4
    assert StoreView(state.store).get(b"gone", 7) == (b"gone", b"v", 7, 7, 1, 0)
    assert StoreView(state.store).get(b"gone", 0) is None


def test_the_books_have_the_numbers_of_the_file(directory: Directory) -> None:
    """A key that was put often before a compaction takes more bytes than a new one.

    Counted with the numbers of a new one, and taken away with its own, it left the size below 0.
    """
    keys = {
        revision(300): pair(b"a", 300, create_revision=2, version=200),
        # Near half a page, from where on a value takes whole ones.
        **{
            revision(main): pair(
                b"%d" % main, main, b"x" * (1590 + main), create_revision=2, version=9**9
            )
            for main in range(400, 440)
        },
    }
    marks_of_it = marks(finishedCompactRev=revision(300))
    state = directory.write({b"key": keys, b"meta": marks_of_it}).load()
    assert StoreView(state.store).get(b"a", 0) == (b"a", b"v", 2, 300, 200, 0)


def test_no_file_or_an_empty_one(directory: Directory) -> None:
    assert open_backend(directory.disk, directory.snap) is None
    (Path(directory.snap) / "db").touch()
    assert open_backend(directory.disk, directory.snap) is None
    directory.write({b"key": {}, b"meta": {}})
    assert open_backend(directory.disk, directory.snap) is None
    assert find_start(None, directory.disk, directory.snap, directory.wal) == Start()


KEY = revision(2)
REFUSED: dict[str, tuple[Buckets, str]] = {
    "keys without an index": ({b"key": {KEY: pair(b"a", 2)}}, "no index of the log"),
    "a short index": ({b"meta": {b"consistent_index": b"9"}}, "eight bytes"),
    "a newer storage": ({b"meta": marks(storageVersion=b"3.8.0")}, "'3.8.0'"),
    "an odd storage": ({b"meta": marks(storageVersion=b"new")}, "'new'"),
    "users": ({b"meta": marks(), b"auth": {b"authEnabled": b"\1"}}, "authentication is enabled"),
    "no revision": ({b"meta": marks(), b"key": {b"a" * 17: pair(b"a", 2)}}, "no revision"),
    "a long revision": ({b"meta": marks(), b"key": {KEY + b"x": pair(b"a", 2)}}, "no revision"),
    "revision 0": ({b"meta": marks(), b"key": {revision(0): pair(b"a", 0)}}, "no revision"),
    "a negative one": ({b"meta": marks(), b"key": {revision(-1): pair(b"a", 2)}}, "no revision"),
    "a huge sub": (
        {b"meta": marks(), b"key": {revision(2, 1 << 32): pair(b"a", 2)}},
        "no revision",
    ),
    "a malformed pair": ({b"meta": marks(), b"key": {KEY: b"\x0a\x05a"}}, "malformed key-value"),
    "a key of nothing": ({b"meta": marks(), b"key": {KEY: pair(b"", 2)}}, "malformed key-value"),
    "another's": ({b"meta": marks(), b"key": {KEY: pair(b"a", 3)}}, "another's revision"),
    "never created": ({b"meta": marks(), b"key": {KEY: pair(b"a", 2, version=0)}}, "never created"),
    "created later": (
        {b"meta": marks(), b"key": {KEY: pair(b"a", 2, create_revision=3)}},
        "never created",
    ),
    "a revision twice": (
        {b"meta": marks(), b"key": {KEY: pair(b"a", 2), KEY + b"t": pair(b"b", 2)}},
        "comes twice",
    ),
    "a malformed lease": ({b"meta": marks(), b"lease": {bytes(8): b"\x08"}}, "malformed lease"),
    "another's lease": ({b"meta": marks(), b"lease": {bytes(8): lease(5, 9)}}, "another's id"),
    "lease 0": ({b"meta": marks(), b"lease": {bytes(8): b""}}, "can't be"),
    "an odd mark": ({b"meta": marks(finishedCompactRev=b"9")}, "no revision"),
    "a malformed alarm": ({b"meta": marks(), b"alarm": {b"\x08": b""}}, "malformed alarm"),
    "a malformed member": (
        {b"meta": marks(storageVersion=b"3.6.0"), b"members": {b"7": b"{"}},
        "malformed member",
    ),
    "another's member": (
        {b"meta": marks(storageVersion=b"3.6.0"), b"members": {b"8": json.dumps(MEMBER).encode()}},
        "another's id",
    ),
    "no member's id": (
        {b"meta": marks(storageVersion=b"3.6.0"), b"members_removed": {b"X": b""}},
        "no member's id",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_is_refused_with_its_place(name: str, directory: Directory) -> None:
    buckets, reason = REFUSED[name]
    directory.write(buckets)
    with pytest.raises(Fatal, match=reason):
        directory.load()


# --- members from a snapshot file


def leaf(value: str) -> dict[str, object]:
    return {"Value": value, "Children": None}


def node(**children: object) -> dict[str, object]:
    return {"Value": "", "Children": children}


def tree(**below: object) -> object:
    return {"Root": {"Children": {"0": node(**below), "1": node()}}}


def good_tree() -> object:
    member = node(
        raftAttributes=leaf(json.dumps({"peerURLs": MEMBER["peerURLs"]})),
        attributes=leaf(json.dumps({"name": "one", "clientURLs": ["http://c"]})),
    )
    bare = node(raftAttributes=leaf('{"peerURLs":["http://d"],"isLearner":true}'))
    return tree(
        members=node(**{"7": member, "8": bare}),
        removed_members=node(ff=leaf("removed")),
        version=leaf("3.4.0"),
    )


def begin_at(directory: Directory, index: int) -> None:
    """The log's first segment begins with this entry."""
    [segment] = Path(directory.wal).iterdir()
    segment.rename(segment.with_name(f"{3:016x}-{index:016x}.wal"))


def test_members_of_a_snapshot_file(directory: Directory) -> None:
    begin_at(directory, 4)
    directory.snapshot(2, 3, "too old")
    directory.snapshot(2, 5, good_tree())
    directory.snapshot(2, 8, "newer than needed")
    directory.snapshot(2, 11, "newer than the backend file")
    state = directory.write({b"meta": marks()}).load()
    assert (state.applied, state.applier.restored) == (5, 9)
    assert [(member.id, member.is_learner) for member in state.members.list()] == [
        (7, False),
        (8, True),
    ]
    assert state.members.list()[0].client_urls == ("http://c",)
    assert state.members.removed() == [255]
    assert state.members.cluster_version == "3.4.0"


def test_a_log_that_begins_late_needs_a_snapshot(directory: Directory) -> None:
    begin_at(directory, 4)
    directory.write({b"meta": marks()})
    with pytest.raises(Fatal, match="no snapshot of an entry between 4 and 9"):
        directory.load()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda directory: directory.snapshot(2, 5, good_tree(), rot=1), "checksum"),
        (lambda directory: directory.snapshot(2, 5, good_tree(), lie=1), "index 6"),
        (lambda directory: directory.snapshot(2, 5, []), "members are malformed"),
        (lambda directory: directory.snapshot(2, 5, tree(members=3)), "members are malformed"),
        # JSON can name half a character, which no message can carry.
        (
            lambda directory: directory.snapshot(2, 5, tree(version=leaf("\ud800"))),
            "members are malformed",
        ),
        (
            lambda directory: directory.snapshot(2, 5, tree(members=node(x=node()))),
            "members are malformed",
        ),
        (lambda directory: directory.snapshot(2, 5, good_tree()).write_bytes(b""), "checksum"),
        (lambda directory: directory.snapshot(2, 5, good_tree()).write_bytes(b"\x12"), "malformed"),
    ],
)
def test_a_snapshot_file_that_is_wrong_is_refused(
    spoil: Callable[[Directory], object], reason: str, directory: Directory
) -> None:
    begin_at(directory, 4)
    spoil(directory)
    directory.write({b"meta": marks()})
    with pytest.raises(Fatal, match=reason):
        directory.load()


def test_a_newer_file_that_an_older_tool_restored(directory: Directory) -> None:
    """Its members are of the cluster that was saved; other snapshots are no such sign."""
    mark = (2).to_bytes(8, "big")
    meta = marks(storageVersion=b"3.7.0", term=mark)
    directory.write({b"meta": meta, b"members": {b"7": b"{}"}})
    directory.snapshot(2, 8, good_tree())
    backend = open_backend(directory.disk, directory.snap)
    where = directory.disk, directory.snap, directory.wal
    with pytest.raises(Fatal, match="another's id"):
        find_start(backend, *where)
    directory.snapshot(1, 9, good_tree())
    assert find_start(backend, *where) == Start()
    begin_at(directory, 4)
    assert find_start(backend, *where).index == 8


def test_a_start_without_a_term_lets_the_log_tell_it(directory: Directory) -> None:
    directory.write({b"meta": marks(storageVersion=b"3.7.0")})
    backend = open_backend(directory.disk, directory.snap)
    start = find_start(backend, directory.disk, directory.snap, directory.wal)
    assert start == Start(9, 0, Cluster())
