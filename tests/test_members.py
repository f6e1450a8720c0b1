"""Members: ids and JSON as etcd makes them, and what every kind of committed entry does."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from quorate.core.members import (
    Member,
    Members,
    bootstrap_runs,
    cluster_id,
    initial_members,
    member_from_json,
    member_id,
)
from quorate.core.messages import (
    AlarmAction,
    AlarmMember,
    AlarmRequest,
    AlarmType,
    Attributes,
    ClusterMemberAttrSetRequest,
    ClusterVersionSetRequest,
    ConfChange,
    ConfChangeSingle,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    EntryType,
    InternalRaftRequest,
    RequestV2,
)

from .depth import depth
from .depth import seed as fresh_seed

URL = "http://127.0.0.1:52803"
ID = 9916518662318705899
NOTHING = ConfChangeV2()


def change(
    members: Members, type: int, id: int, urls: tuple[str, ...] = (), /, **more: object
) -> ConfChangeV2:
    """Apply a ConfChange with etcd's JSON as its context."""
    context = json.dumps({"id": id, "peerURLs": urls, **more}).encode()
    data = ConfChange(type=type, node_id=id, context=context).encode()
    return members.apply_conf_change(EntryType.CONF_CHANGE, data)


def one_member() -> Members:
    members = Members()
    assert change(members, ConfChangeType.ADD_NODE, 1, ("http://a",), name="a") != NOTHING
    members.check()
    return members


# --- ids and JSON: the numbers were printed by Debian's etcd 3.4.23


def test_ids_as_etcd_computes_them() -> None:
    assert member_id([URL], "tok1") == ID
    assert cluster_id([ID]) == 524811788431834350
    # etcd's own defaults: every lone etcd ever started without flags has these.
    assert f"{member_id(['http://localhost:2380'], 'etcd-cluster'):x}" == "8e9e05c52164694d"
    assert f"{cluster_id([0x8E9E05C52164694D]):x}" == "cdf818194e3a8c32"


def test_order_of_urls_and_members_does_not_matter() -> None:
    assert member_id(["http://b", "http://a"], "t") == member_id(["http://a", "http://b"], "t")
    assert cluster_id([3, 1, 2]) == cluster_id([1, 2, 3])


def test_time_of_addition_makes_another_id() -> None:
    assert member_id([URL], "t", 1700000000) == member_id([URL], "t1700000000") != ID


def test_bootstrap_entries_are_etcds() -> None:
    runs, conf_state = bootstrap_runs(initial_members({"alpha": [URL]}, "tok1"))
    context = b'{"id":9916518662318705899,"peerURLs":["http://127.0.0.1:52803"],"name":"alpha"}'
    entry = bytes.fromhex("0800100018eb99a7a0efa5a3cf8901224f") + context
    assert [run.unpack() for run in runs] == [[(EntryType.CONF_CHANGE, entry)]]
    assert all(run.has_conf_change for run in runs)
    assert conf_state == ConfState((ID,))


def test_initial_members_are_sorted_by_id() -> None:
    members = initial_members({"b": ["http://b:1", "http://a:1"], "c": ["http://c:1"]}, "t")
    assert [member.id for member in members] == sorted(member.id for member in members)
    assert {member.name: member.peer_urls for member in members}["b"] == (
        "http://a:1",
        "http://b:1",
    )


def test_json_is_gos() -> None:
    member = Member(7, ("http://a?b&c",), True, 'x<\u00e9\u2028"\\>', ("http://d",))
    assert member.to_json().decode() == (
        '{"id":7,"peerURLs":["http://a?b\\u0026c"],"isLearner":true,'
        '"name":"x\\u003c\u00e9\\u2028\\"\\\\\\u003e","clientURLs":["http://d"]}'
    )
    assert member_from_json(member.to_json()) == (member, False)
    assert Member(7).to_json() == b'{"id":7,"peerURLs":null}'


def test_lone_surrogate_is_replaced() -> None:
    member, _ = member_from_json(b'{"id":1,"peerURLs":[],"name":"\\ud800"}')
    assert member.name == "\ufffd"


# --- configuration changes


def test_add_promote_update_remove() -> None:
    members = one_member()
    added = change(members, ConfChangeType.ADD_LEARNER_NODE, 2, ("http://b",), isLearner=True)
    assert added.changes == (ConfChangeSingle(ConfChangeType.ADD_LEARNER_NODE, 2),)
    assert members.list() == [
        Member(1, ("http://a",), False, "a"),
        Member(2, ("http://b",), True),
    ]
    # etcd's update carries no isLearner and would promote in silence.
    assert change(members, ConfChangeType.UPDATE_NODE, 2, ("http://c",)) != NOTHING
    assert members.get(2) == Member(2, ("http://c",), True)
    assert change(members, ConfChangeType.ADD_NODE, 2, ("http://z",), isPromote=True) != NOTHING
    assert members.get(2) == Member(2, ("http://c",), False)
    assert change(members, ConfChangeType.REMOVE_NODE, 2) != NOTHING
    assert 2 not in members
    assert members.removed() == [2]
    members.check()


@pytest.mark.parametrize(
    ("type", "id", "urls", "more"),
    [
        (ConfChangeType.ADD_NODE, 1, ("http://x",), {}),  # is there
        (ConfChangeType.ADD_NODE, 2, ("http://a",), {}),  # URL of another
        (ConfChangeType.ADD_NODE, 3, ("http://x",), {}),  # was removed
        (ConfChangeType.ADD_LEARNER_NODE, 3, ("http://x",), {}),
        (ConfChangeType.ADD_NODE, 0, ("http://x",), {}),  # no id
        (ConfChangeType.ADD_NODE, 9, ("http://x",), {"isPromote": True}),  # is not there
        (ConfChangeType.ADD_NODE, 1, (), {"isPromote": True}),  # votes already
        (ConfChangeType.ADD_NODE, 2, ("http://x",), {"id": 5}),  # two ids
        (ConfChangeType.ADD_NODE, 2, ("http://x",), {"name": 5}),
        (ConfChangeType.ADD_NODE, 2, ("http://x",), {"isLearner": "yes"}),
        (ConfChangeType.ADD_NODE, 2, ("http://x",), {"peerURLs": "http://x"}),
        (ConfChangeType.ADD_NODE, 2, ("http://x",), {"clientURLs": [1]}),
        (ConfChangeType.UPDATE_NODE, 9, ("http://x",), {}),
        (ConfChangeType.UPDATE_NODE, 1, ("http://b",), {}),
        (ConfChangeType.REMOVE_NODE, 9, (), {}),
        (17, 1, ("http://x",), {}),  # no such type
    ],
)
def test_refused_changes_change_nothing(
    type: int, id: int, urls: tuple[str, ...], more: dict[str, object]
) -> None:
    members = one_member()
    for other, url in ((3, "http://gone"), (4, "http://b")):
        change(members, ConfChangeType.ADD_NODE, other, (url,))
    change(members, ConfChangeType.REMOVE_NODE, 3)
    before = members.list(), members.removed()
    assert change(members, type, id, urls, **more) == NOTHING
    assert (members.list(), members.removed()) == before
    members.check()


def test_last_voter_stays() -> None:
    members = one_member()
    change(members, ConfChangeType.ADD_LEARNER_NODE, 2, ("http://b",))
    assert change(members, ConfChangeType.REMOVE_NODE, 1) == NOTHING
    assert 1 in members


@pytest.mark.parametrize(
    "context", [b"", b"{", b"[]", b"\xff", b'{"id":1e400}', b'{"id":true}', b"[" * 100_000]
)
def test_broken_context_changes_nothing(context: bytes) -> None:
    members = Members()
    data = ConfChange(node_id=1, context=context).encode()
    assert members.apply_conf_change(EntryType.CONF_CHANGE, data) == NOTHING
    assert members.list() == []


def test_broken_bytes_and_the_second_form_change_nothing() -> None:
    members = one_member()
    assert members.apply_conf_change(EntryType.CONF_CHANGE, b"\x08") == NOTHING
    second = ConfChangeV2(0, (ConfChangeSingle(ConfChangeType.REMOVE_NODE, 1),)).encode()
    assert members.apply_conf_change(EntryType.CONF_CHANGE_V2, second) == NOTHING
    assert 1 in members


# --- attributes and version, new form and old


def test_attributes() -> None:
    members = one_member()
    request = ClusterMemberAttrSetRequest(1, Attributes("n", ("http://c",)))
    assert members.apply_request(InternalRaftRequest(cluster_member_attr_set=request)) == ()
    assert members.get(1) == Member(1, ("http://a",), False, "n", ("http://c",))


@pytest.mark.parametrize(
    "request_",
    [ClusterMemberAttrSetRequest(1, None), ClusterMemberAttrSetRequest(9, Attributes("x"))],
)
def test_attributes_of_nobody(request_: ClusterMemberAttrSetRequest) -> None:
    members = one_member()
    before = members.list()
    members.apply_request(InternalRaftRequest(cluster_member_attr_set=request_))
    assert members.list() == before


def test_attributes_of_etcd_3_4() -> None:
    members = one_member()
    value = '{"name":"alpha","clientURLs":["http://127.0.0.1:47393"]}'
    request = RequestV2(5, "PUT", "/0/members/1/attributes", value)
    members.apply_request(InternalRaftRequest(v2=request))
    assert members.get(1) == Member(1, ("http://a",), False, "alpha", ("http://127.0.0.1:47393",))


@pytest.mark.parametrize(
    ("method", "path", "value"),
    [
        ("DELETE", "/0/version", "3.4.0"),
        ("PUT", "/1/version", "3.4.0"),
        ("PUT", "/0/version", "three"),
        ("PUT", "/0/version", ""),
        ("PUT", "/0/members/1/attributes", "{"),
        ("PUT", "/0/members/1/attributes", "[]"),
        ("PUT", "/0/members/zz/attributes", "{}"),
        ("PUT", "/0/members/11111111111111111/attributes", "{}"),
        ("PUT", "/0/members/9/attributes", "{}"),
    ],
)
def test_other_requests_of_the_v2_api_do_nothing(method: str, path: str, value: str) -> None:
    members = one_member()
    before = members.list()
    members.apply_request(InternalRaftRequest(v2=RequestV2(1, method, path, value)))
    assert (members.list(), members.cluster_version) == (before, "")


def test_cluster_version() -> None:
    members = Members()
    for version, then in (
        ("3.6.0", "3.6.0"),
        ("3.7.0", "3.7.0"),
        ("", "3.7.0"),
        ("3.7", "3.7.0"),
        ("03.7.0", "3.7.0"),
        ("3.8.0\n", "3.7.0"),
    ):
        request = ClusterVersionSetRequest(version)
        members.apply_request(InternalRaftRequest(cluster_version_set=request))
        assert members.cluster_version == then
    members.apply_request(InternalRaftRequest(v2=RequestV2(1, "PUT", "/0/version", "3.4.0")))
    assert members.cluster_version == "3.4.0"


# --- alarms


def alarm(members: Members, action: int, member: int, type: int) -> list[tuple[int, int]]:
    request = InternalRaftRequest(alarm=AlarmRequest(action, member, type))
    return [(each.member_id, each.alarm) for each in members.apply_request(request)]


def test_alarms_are_kept_per_member_and_type() -> None:
    members = Members()
    assert alarm(members, AlarmAction.ACTIVATE, 2, AlarmType.NOSPACE) == [(2, 1)]
    assert alarm(members, AlarmAction.ACTIVATE, 1, AlarmType.CORRUPT) == [(1, 2)]
    assert alarm(members, AlarmAction.ACTIVATE, 1, AlarmType.NOSPACE) == [(1, 1)]
    # Raised again it is answered again, and still one.
    assert alarm(members, AlarmAction.ACTIVATE, 1, AlarmType.NOSPACE) == [(1, 1)]
    assert alarm(members, AlarmAction.GET, 0, AlarmType.NONE) == [(1, 1), (2, 1), (1, 2)]
    assert alarm(members, AlarmAction.GET, 7, AlarmType.NOSPACE) == [(1, 1), (2, 1)]
    assert alarm(members, AlarmAction.DEACTIVATE, 1, AlarmType.NOSPACE) == [(1, 1)]
    assert members.has_alarm(AlarmType.NOSPACE)
    assert alarm(members, AlarmAction.DEACTIVATE, 1, AlarmType.NOSPACE) == []
    assert alarm(members, AlarmAction.DEACTIVATE, 2, AlarmType.NOSPACE) == [(2, 1)]
    assert not members.has_alarm(AlarmType.NOSPACE)
    assert members.alarms() == [AlarmMember(1, AlarmType.CORRUPT)]
    members.check()


@pytest.mark.parametrize(
    ("action", "type"),
    [(9, 1), (9, 0), (AlarmAction.ACTIVATE, 0), (AlarmAction.DEACTIVATE, 0), (3, 9)],
)
def test_alarm_requests_that_mean_nothing(action: int, type: int) -> None:
    members = Members()
    alarm(members, AlarmAction.ACTIVATE, 1, AlarmType.NOSPACE)
    assert alarm(members, action, 1, type) == []
    assert members.alarms() == [AlarmMember(1, AlarmType.NOSPACE)]
    members.check()


def test_alarm_of_a_type_to_come_is_kept_as_etcd_keeps_it() -> None:
    members = Members()
    assert alarm(members, AlarmAction.ACTIVATE, 1, 9) == [(1, 9)]
    assert alarm(members, AlarmAction.DEACTIVATE, 1, 9) == [(1, 9)]


def test_apply_never_raises() -> None:
    seed = fresh_seed()
    print(f"QUORATE_SEED={seed}")
    chance = random.Random(seed)
    members, twin = Members(), Members()
    for _ in range(depth(3000, 300000)):
        id = chance.randrange(6)
        kind = chance.randrange(3)
        if kind == 0:
            action, type = chance.randrange(5), chance.randrange(4)
            request = InternalRaftRequest(alarm=AlarmRequest(action, id, type))
            assert members.apply_request(request) == twin.apply_request(request), seed
            continue
        if kind == 1:
            context = Member(id, (f"http://{chance.randrange(8)}",)).to_json()
            if chance.random() < 0.2:
                context = context[: chance.randrange(len(context))]
        else:
            context = json.dumps(
                {
                    "id": id,
                    "peerURLs": chance.choice([None, ["http://1"], ["x", "y"], [1], 5]),
                    "isPromote": chance.choice([True, False, None]),
                }
            ).encode()
        data = ConfChange(0, chance.randrange(5), id, context).encode()
        answer = members.apply_conf_change(chance.randrange(3), data)
        twin.apply_conf_change(EntryType.CONF_CHANGE, b"\x08")
        if answer != NOTHING:
            assert twin.apply_conf_change(EntryType.CONF_CHANGE, data) == answer, seed
        members.check()
    assert members.list() == twin.list(), f"seed {seed}"
    assert members.alarms() == twin.alarms(), f"seed {seed}"


# --- the real etcd


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.compat
@pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian's etcd-server)")
@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcdctl (Debian's etcd-client)")
def test_real_etcd_has_the_same_ids_and_first_entry(tmp_path: Path) -> None:
    client, first, second = free_ports(3)
    # Not in sorted order, and with what JSON escapes.
    urls = [f"http://127.0.0.1:{port}" for port in sorted((first, second), reverse=True)]
    name, token, endpoint = "a<&>ø", "tok-7", f"http://127.0.0.1:{client}"
    command = ["etcd", "--name", name, "--data-dir", str(tmp_path / "d")]
    command += ["--initial-cluster-token", token, "--logger", "zap", "--log-outputs", "/dev/null"]
    command += ["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint]
    command += ["--listen-peer-urls", ",".join(urls)]
    command += ["--initial-advertise-peer-urls", ",".join(urls)]
    command += ["--initial-cluster", ",".join(f"{name}={url}" for url in urls)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        listed = member_list(endpoint)
    finally:
        server.terminate()
        server.wait(10)
    (member,) = initial_members({name: urls}, token)
    assert listed["header"]["cluster_id"] == cluster_id([member.id])
    assert listed["header"]["member_id"] == member.id
    assert [each["ID"] for each in listed["members"]] == [member.id]
    ((run,), _) = bootstrap_runs([member])
    (wal,) = (tmp_path / "d" / "member" / "wal").glob("*-*.wal")
    assert run.unpack()[0][1] in wal.read_bytes()


def member_list(endpoint: str) -> Any:
    """What etcdctl says as soon as the server answers."""
    command = ["etcdctl", "--endpoints", endpoint, "member", "list", "-w", "json"]
    deadline = time.monotonic() + 20
    while True:
        done = subprocess.run(
            command, env={"ETCDCTL_API": "3"}, capture_output=True, timeout=20, check=False
        )
        if done.returncode == 0:
            return json.loads(done.stdout)
        assert time.monotonic() < deadline, done.stderr
