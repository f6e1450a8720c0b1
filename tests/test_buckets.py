"""The small buckets are etcd's to the byte, and what nobody here knows goes along."""

from __future__ import annotations

import random

import pytest

from quorate.core._bolt import Bolt
from quorate.core._boltwriter import BoltWriter
from quorate.core._mapping import Mapping
from quorate.core._restore import BackendError
from quorate.core.apply import State
from quorate.core.backend import Backend, read_alarms, read_members
from quorate.core.buckets import Pair, carried_buckets, conf_state_json, small_buckets
from quorate.core.logs import Logger
from quorate.core.members import Cluster, Member
from quorate.core.messages import AlarmMember, AlarmType, ConfState
from quorate.core.version import STORAGE_VERSION
from tests.sim.disk import SimDisk

MEMBER = Member(0x69B38AC7138DE88D, ("http://127.0.0.1:21380",), name="one", client_urls=("c",))
LEARNER = Member(2, ("http://127.0.0.1:2",), is_learner=True)
ALARM = AlarmMember(2, AlarmType.NOSPACE)


def new_state() -> State:
    state = State([], Logger((), "info"))
    state.members.restore(Cluster((MEMBER, LEARNER), (1, 0xABC), "3.7.0"), [ALARM])
    return state


def backend_of(buckets: dict[bytes, list[Pair]]) -> Backend:
    """The buckets, written and opened again."""
    disk = SimDisk(random.Random(1))
    disk.make_directory("/d")
    writer = BoltWriter(disk, "/d/db")
    for name, pairs in buckets.items():
        writer.begin(name)
        for key, value in pairs:
            writer.put(key, value)
        writer.end()
    writer.finish()
    mapping = Mapping(disk, disk.open("/d/db"), "/d/db")
    return Backend("/d/db", Bolt.mapped(mapping, mapping.reach), mapping)


def test_what_etcd_would_have_written() -> None:
    """Keys and values are those that etcd 3.4, 3.5 and 3.7 were seen to write."""
    found = small_buckets(new_state(), 9, 3, scheduled=5, finished=4)
    assert list(found) == sorted(found)
    assert found == {
        b"alarm": [(b"\x08\x02\x10\x01", b"")],
        b"auth": [(b"authRevision", bytes(7) + b"\1")],
        b"authRoles": [],
        b"authUsers": [],
        b"cluster": [(b"clusterVersion", b"3.7.0")],
        b"members": [
            (b"2", b'{"id":2,"peerURLs":["http://127.0.0.1:2"],"isLearner":true}'),
            (
                b"69b38ac7138de88d",
                b'{"id":7616583982444832909,"peerURLs":["http://127.0.0.1:21380"],'
                b'"name":"one","clientURLs":["c"]}',
            ),
        ],
        b"members_removed": [(b"1", b"removed"), (b"abc", b"removed")],
        b"meta": [
            (b"confState", b'{"voters":[7616583982444832909],"learners":[2],"auto_leave":false}'),
            (b"consistent_index", bytes(7) + b"\x09"),
            (b"finishedCompactRev", bytes(7) + b"\x04_" + bytes(8)),
            (b"scheduledCompactRev", bytes(7) + b"\x05_" + bytes(8)),
            (b"storageVersion", STORAGE_VERSION.encode()),
            (b"term", bytes(7) + b"\x03"),
        ],
    }


@pytest.mark.parametrize(
    ("cluster_version", "storage_version", "is_of_3_4"),
    [
        ("3.4.0", "", True),
        ("3.0.0", "", True),
        ("3.5.0", "", False),
        ("", "", False),
        ("3.4.0", STORAGE_VERSION, False),
    ],
)
def test_a_file_of_etcd_3_4(cluster_version: str, storage_version: str, is_of_3_4: bool) -> None:
    """It has neither term nor configuration, and nobody from 3.5 on needs them."""
    state = new_state()
    state.members.restore(Cluster((MEMBER,), (), cluster_version), [])
    rows = small_buckets(state, 9, 3, scheduled=0, finished=0, storage_version=storage_version)
    marks = [key for key, _ in rows[b"meta"] if key != b"storageVersion"]
    assert (
        marks == [b"consistent_index"]
        if is_of_3_4
        else [
            b"confState",
            b"consistent_index",
            b"term",
        ]
    )


def test_a_new_cluster_says_nothing_of_what_has_not_happened() -> None:
    found = small_buckets(
        State([], Logger((), "info")), 1, 1, scheduled=-1, finished=0, storage_version=""
    )
    assert [key for key, _ in found[b"meta"]] == [b"confState", b"consistent_index", b"term"]
    assert [name for name, pairs in found.items() if pairs] == [b"auth", b"meta"]
    assert len(found) == 8


def test_they_are_read_as_they_were_written() -> None:
    state = new_state()
    backend = backend_of(small_buckets(state, 9, 3, scheduled=5, finished=4))
    assert backend.index == 9
    assert backend.has_members
    assert backend.revision(b"scheduledCompactRev") == 5
    assert backend.revision(b"finishedCompactRev") == 4
    assert read_alarms(backend) == [ALARM]
    again = read_members(backend)
    assert sorted(again.members, key=lambda one: one.id) == state.members.list()
    assert sorted(again.removed) == state.members.removed()
    assert again.version == "3.7.0"


def test_what_is_not_known_is_carried_along() -> None:
    """Also through two moves, and what is known is not taken from the old file."""
    strange = {
        b"auth": [(b"authEnabled", b"\0"), (b"authRevision", bytes(7) + b"\x08")],
        b"authUsers": [(b"root", b"user")],
        b"authRoles": [(b"root", b"role")],
        b"cluster": [(b"clusterVersion", b"3.4.0"), (b"downgrade", b"{}")],
        b"alarm": [(b"\x08\x07\x10\x02", b"")],
        b"members": [(b"7", b"{}")],
        b"key": [(b"k", b"v")],
        b"later": [(b"one", b""), (b"two", b"2")],
        b"meta": [(b"later", b"mark"), (b"finishedCompactRev", b"old"), (b"term", b"old")],
    }
    buckets = {name: sorted(strange[name]) for name in sorted(strange)}
    for _ in range(2):
        carried = carried_buckets(backend_of(buckets))
        assert set(carried) == set(strange) - {b"alarm", b"members", b"key"}
        buckets = small_buckets(new_state(), 9, 3, scheduled=0, finished=0, carried=carried)
    for name in (b"auth", b"authUsers", b"authRoles", b"later"):
        assert buckets[name] == strange[name]
    assert buckets[b"cluster"] == [(b"clusterVersion", b"3.7.0"), (b"downgrade", b"{}")]
    assert dict(buckets[b"meta"])[b"later"] == b"mark"
    assert dict(buckets[b"meta"])[b"term"] == bytes(7) + b"\x03"
    assert b"finishedCompactRev" not in dict(buckets[b"meta"])
    assert b"key" not in buckets
    assert buckets[b"alarm"] == [(ALARM.encode(), b"")]
    assert len(buckets[b"members"]) == 2


def test_a_bucket_in_a_bucket_is_refused() -> None:
    """A root tree is a bucket whose values are buckets: no etcd writes one below another."""
    backend = backend_of({b"meta": []})

    class Nested:
        def buckets(self) -> list[bytes]:
            return [b"later"]

        def items(self, name: bytes) -> list[tuple[bytes, bytes | None]]:
            return [(b"inner", None)]

    nested = Backend(backend.path, Nested(), backend.mapping)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="bucket in a bucket"):
        carried_buckets(nested)


def test_the_configuration_in_json() -> None:
    """In the order and with the omissions of raft's own."""
    assert conf_state_json(ConfState()) == b'{"auto_leave":false}'
    joint = ConfState((1,), (2,), (3, 4), (5,), auto_leave=True)
    assert conf_state_json(joint) == (
        b'{"voters":[1],"learners":[2],"voters_outgoing":[3,4],"learners_next":[5],'
        b'"auto_leave":true}'
    )
