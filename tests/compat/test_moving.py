"""A data directory goes from etcd to quorate and back, with everything that is in it.

`contents` is what clients can see of a store; it must be the same on both sides of every move.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import node_driver
from tests.depth import depth, seed
from tests.messages import Message
from tests.needs import need
from tests.server import Program, Server
from tests.test_scrub_files import Looking
from tests.wire import Client, Refused

from quorate.core._disk import OsDisk
from quorate.core._run import Run
from quorate.core._wal import Wal
from quorate.core.errors import CompactedError
from quorate.core.members import Cluster, Member
from quorate.core.messages import (
    ClusterVersionSetRequest,
    ConfState,
    EntryType,
    InternalRaftRequest,
    RequestHeader,
)
from quorate.core.snapfile import read_snapshot, snapshot_names, write_snapshot
from quorate.core.version import STORAGE_VERSIONS

pytestmark = pytest.mark.compat

# Snapshots come often, and old files go, as after weeks of use.
USED = ("--snapshot-count", "50", "--max-snapshots", "1", "--max-wals", "1")
KEYS = [b"k%02d" % number for number in range(40)]
LEASES = range(1000, 1010)
NOSPACE = 1


@pytest.fixture
def versions(other: Program) -> list[str]:
    """What `--storage-version` may be so that the other etcd opens the directory."""
    if other.version == (3, 6):
        return ["3.5", "3.6"]
    return list(STORAGE_VERSIONS)


@pytest.fixture
def other(program: Program, request: pytest.FixtureRequest) -> Program:
    """The etcd on the other side of a move: Debian's, unless the test asks for another."""
    if not program.is_quorate:
        pytest.skip("a move from an etcd to itself is its own matter")
    found = request.getfixturevalue(getattr(request, "param", "debian_etcd"))
    assert isinstance(found, Program)
    return found


def contents(client: Client) -> dict[str, Any]:
    """What a store holds, and some of what it held."""
    everything: dict[str, object] = {"key": b"\0", "range_end": b"\0"}
    whole = client.call("KV/Range", everything)
    revision = whole["header"]["revision"]
    found: dict[str, Any] = {"revision": revision, "now": whole.get("kvs", [])}
    compacted = client.call("Maintenance/HashKV").get("compact_revision", 0)
    found["compacted"] = compacted
    # At the compacted revision itself releases of etcd differ.
    for past in (revision - back for back in (0, 1, 7, 30, 100) if revision - back > compacted):
        found[f"at {past}"] = client.call("KV/Range", {**everything, "revision": past}).get("kvs")
        found[f"hash at {past}"] = client.call("Maintenance/HashKV", {"revision": past})["hash"]
    asked = [each["ID"] for each in client.call("Lease/LeaseLeases").get("leases", ())]
    for lease in sorted(asked):
        told = client.call("Lease/LeaseTimeToLive", {"ID": lease, "keys": True})
        found[f"lease {lease}"] = told["grantedTTL"], sorted(told.get("keys", ()))
    found["members"] = [each["ID"] for each in client.call("Cluster/MemberList")["members"]]
    alarms: Message = client.call("Maintenance/Alarm", {"action": 0})
    found["alarms"] = alarms.get("alarms", [])
    return found


def use(client: Client, chance: random.Random, calls: int) -> None:
    """Write, delete, lease and compact at random."""
    for _ in range(calls):
        key = chance.choice(KEYS)
        dice = chance.random()
        lease = chance.choice(LEASES)
        # A lease or a revision may be gone.
        with contextlib.suppress(Refused):
            if dice < 0.6:
                client.put(key, chance.randbytes(chance.choice((3, 300, 9000))))
            elif dice < 0.7:
                client.put(key, b"leased", lease=lease)
            elif dice < 0.8:
                client.delete(key, key + b"5" if chance.random() < 0.5 else b"")
            elif dice < 0.88:
                puts = [{"request_put": {"key": one, "value": b"txn"}} for one in KEYS[:3]]
                client.call("KV/Txn", {"success": puts})
            elif dice < 0.94:
                client.call("Lease/LeaseGrant", {"ID": lease, "TTL": 5000 + lease})
            elif dice < 0.97:
                client.call("Lease/LeaseRevoke", {"ID": lease})
            else:
                # Of a compaction of the newest revision etcd since 3.5 tells the one before.
                revision = client.revision() - chance.randrange(1, 40)
                client.call("KV/Compact", {"revision": revision})


def purge(data: Path) -> int:
    """Remove the segments that the newest snapshot makes superfluous, as etcd does now and then."""
    newest = max((data / "member" / "snap").glob("*.snap")).stem
    index = int(newest.split("-")[1], 16)
    segments = sorted((data / "member" / "wal").glob("*.wal"))
    old = [one for one in segments if int(one.stem.split("-")[1], 16) <= index][:-1]
    for segment in old:
        segment.unlink()
    return len(old)


def end(server: Server, chance: random.Random) -> None:
    """End it in order, or not."""
    if chance.random() < 0.5:
        server.kill()
    else:
        server.stop()


def seen(server: Server) -> dict[str, Any]:
    """The contents of a server that runs."""
    with Client(server.port) as client:
        return contents(client)


@pytest.fixture
def sides(
    program: Program, other: Program, versions: list[str], tmp_path: Path
) -> Iterator[tuple[Server, Server]]:
    """quorate and etcd with one data directory, neither of which runs."""
    flags = (*USED, "--storage-version", versions[-1])
    with (
        Server(other, tmp_path / "etcd", *USED) as theirs,
        Server(program, tmp_path / "quorate", *flags) as ours,
    ):
        ours.data = theirs.data
        yield ours, theirs


@pytest.mark.parametrize("other", ["debian_etcd", "newer_etcd"][: depth(1, 2)], indirect=True)
@pytest.mark.parametrize("number", range(depth(1, 5)))
def test_there_and_back(number: int, sides: tuple[Server, Server], versions: list[str]) -> None:
    """Moves of a directory in use, half of them after kill -9."""
    chance = random.Random(seed() + number)
    ours, theirs = sides
    before: dict[str, Any] = {}
    for move in range(depth(5, 20)):
        server = (theirs, ours)[move % 2]
        ours.flags = (*USED, "--storage-version", chance.choice(versions))
        server.start()
        found = seen(server)
        if before:
            assert found == before, f"seed {seed() + number}, move {move} to {server.program}"
        with Client(server.port) as client:
            use(client, chance, 100)
            before = contents(client)
        end(server, chance)


@pytest.mark.parametrize("number", range(depth(1, 5)))
def test_nothing_that_etcd_leaves_is_called_damage(
    number: int, sides: tuple[Server, Server], versions: list[str]
) -> None:
    """The background check before, during and after our own work on a directory of etcd's."""
    chance = random.Random(seed() + number)
    _, theirs = sides
    for _ in range(depth(3, 10)):
        with Client(theirs.start().port) as client:
            use(client, chance, 150)
            if chance.random() < 0.5:
                client.call("Maintenance/Defragment")
        end(theirs, chance)
        member = node_driver.Member(
            OsDisk(),
            data_dir=str(theirs.data),
            segment_bytes=1 << 20,
            snapshot_count=chance.choice((20, 1000)),
            storage_version=versions[-1],
        )
        looking = Looking(member)
        for looks in (1, 10, 1000):
            passes = min(looker.passes for looker in looking.lookers) + 2
            while min(looker.passes for looker in looking.lookers) < passes:
                assert looking.step(looks) == "", f"seed {seed() + number}"
                if looks > 1 and chance.random() < 0.3:
                    member.put(chance.choice(KEYS), chance.randbytes(chance.choice((3, 300, 9000))))
                if chance.random() < 0.02 and member.revision > 50:
                    asked = {"revision": member.revision - chance.randrange(20)}
                    with contextlib.suppress(CompactedError):
                        member.call("KV/Compact", asked)
                member.now += 500
        member.node.close()


def test_a_log_that_begins_late(sides: tuple[Server, Server]) -> None:
    """etcd has dropped the first of its log's segments: what was in them is in the backend file."""
    chance = random.Random(seed())
    ours, theirs = sides
    with Client(theirs.start().port) as client:
        use(client, chance, 100)
        for _ in range(70):
            client.put(b"large", chance.randbytes(1_000_000))
        use(client, chance, 100)
        before = contents(client)
    theirs.stop()
    assert purge(theirs.data) > 0
    assert seen(ours.start()) == before
    with Client(ours.port) as client:
        use(client, chance, 100)
        before = contents(client)
    ours.kill()
    assert seen(theirs.start()) == before


def test_a_restored_snapshot(sides: tuple[Server, Server], tmp_path: Path) -> None:
    """`etcdctl snapshot restore` makes a directory whose log says nothing of the keys."""
    ours, theirs = sides
    with Client(theirs.start().port) as client:
        use(client, random.Random(seed()), 200)
        before = contents(client)
    saved, restored = tmp_path / "saved", tmp_path / "restored"
    etcdctl = need("etcdctl")
    restorer = need("etcdutl") if theirs.program.version >= (3, 6) else etcdctl
    for words in (
        (etcdctl, f"--endpoints=127.0.0.1:{theirs.port}", "snapshot", "save", saved),
        (restorer, "snapshot", "restore", saved, "--data-dir", restored),
    ):
        environment = {"ETCDCTL_API": "3"}
        subprocess.run(words, env=environment, check=True, capture_output=True, timeout=60)
    ours.data = restored
    found = seen(ours.start())
    del found["members"], before["members"]
    assert found == before


def test_members_in_a_snapshot_file_of_ours(sides: tuple[Server, Server]) -> None:
    """etcd up to 3.5 knows its members from there; what it writes next holds the same."""
    _, theirs = sides
    if theirs.program.version >= (3, 6):
        pytest.skip("this etcd has its members in the backend file")
    with Client(theirs.start().port) as client:
        use(client, random.Random(seed()), 100)
    theirs.stop()
    disk, snap = OsDisk(), str(theirs.data / "member" / "snap")
    *old, (index, term, name) = snapshot_names(disk, snap)
    [member] = read_snapshot(disk, snap, name).members
    learner = Member(0xABC, ("http://127.0.0.1:9",), is_learner=True, name="<other>")
    version = f"{theirs.program.version[0]}.{theirs.program.version[1]}.0"
    cluster = Cluster((learner, member), (0x11, 0x222), version)
    for _, _, each in [*old, (index, term, name)]:
        disk.remove(f"{snap}/{each}")
    write_snapshot(disk, snap, index, term, cluster, ConfState((member.id,), (learner.id,)))
    with Client(theirs.start().port) as client:
        members = client.call("Cluster/MemberList")["members"]
        assert [(each["ID"], each["name"]) for each in members] == [
            (learner.id, "<other>"),
            (member.id, "one"),
        ]
        for _ in range(120):
            client.put(b"k")
    theirs.stop()
    _, _, newest = snapshot_names(disk, snap)[-1]
    assert newest != name
    assert read_snapshot(disk, snap, newest) == cluster


def test_rescue(sides: tuple[Server, Server]) -> None:
    """A log on which etcd ends at every start, for it holds what etcd cannot apply (T49)."""
    ours, theirs = sides
    with Client(theirs.start().port) as client:
        use(client, random.Random(seed()), 100)
        client.put(KEYS[1], b"kept")
        before = contents(client)
        deadly = [
            {"request_delete_range": {"key": KEYS[0], "range_end": b"\0"}},
            {"request_put": {"key": KEYS[1], "ignore_value": True}},
        ]
        with pytest.raises(Refused):
            client.call("KV/Txn", {"success": deadly})
    assert theirs.wait() != 0
    theirs.close()
    theirs.launch()
    assert theirs.wait() != 0, "etcd can apply it"
    theirs.close()
    found = seen(ours.start())
    assert found == before
    with Client(ours.port) as client:
        assert client.put(b"alive")["header"]["revision"] == before["revision"] + 1
        # Behind the next checkpoint etcd reads nothing of that log.
        use(client, random.Random(seed()), 120)
        before = contents(client)
    ours.stop()
    assert any(line.get("msg") == "saved a checkpoint" for line in ours.logged())
    assert seen(theirs.start()) == before


def test_an_alarm_moves_too(sides: tuple[Server, Server]) -> None:
    ours, theirs = sides
    with Client(theirs.start().port) as client:
        member = client.call("Cluster/MemberList")["members"][0]["ID"]
        own = {"action": 1, "memberID": member, "alarm": NOSPACE}
        raised = {**own, "memberID": 77}
        client.call("Maintenance/Alarm", own)
        client.call("Maintenance/Alarm", raised)
    theirs.stop()
    # With an alarm a server is not healthy. Its own one is cleared, for there is room.
    with Client(ours.launch().port) as client:
        client.wait_connected()
        assert contents(client)["alarms"] == [{"memberID": 77, "alarm": NOSPACE}]
        with pytest.raises(Refused, match="database space exceeded"):
            client.put(b"k")
        client.call("Maintenance/Alarm", {**raised, "action": 2})
        client.put(b"k")


def test_a_directory_that_quorate_began(sides: tuple[Server, Server], versions: list[str]) -> None:
    """No etcd has said yet what the cluster's version is: the first one does."""
    ours, theirs = sides
    before: dict[str, Any] = {}
    for version in versions:
        ours.flags = (*USED, "--storage-version", version)
        with Client(ours.start().port) as client:
            use(client, random.Random(seed()), 120)
            before = contents(client)
        ours.stop()
        assert seen(theirs.start()) == before
        theirs.stop()


@pytest.mark.parametrize("other", ["newer_etcd"], indirect=True)
def test_down_to_an_older_etcd(sides: tuple[Server, Server], other: Program) -> None:
    """etcd refuses a newer cluster's directory; a start of quorate makes it one that it opens."""
    ours, theirs = sides
    version = f"{other.version[0]}.{other.version[1]}"
    if version == "3.7":
        pytest.skip("there is nothing newer to come down from")
    with Client(theirs.start().port) as client:
        use(client, random.Random(seed()), 60)
        before = contents(client)
    theirs.stop()
    append_entry(
        theirs.data,
        InternalRaftRequest(
            header=RequestHeader(id=1), cluster_version_set=ClusterVersionSetRequest("3.7.0")
        ),
    )
    theirs.launch()
    assert theirs.wait() != 0, "it takes a newer cluster's directory"
    theirs.close()
    ours.flags = (*USED, "--storage-version", "3.7")
    assert seen(ours.start()) == before
    with Client(ours.port) as client:
        use(client, random.Random(seed()), 120)
        before = contents(client)
    ours.stop()
    theirs.launch()
    assert theirs.wait() != 0, "it takes a newer cluster's directory"
    theirs.close()
    ours.flags = (*USED, "--storage-version", version)
    ours.start()
    ours.stop()
    assert seen(theirs.start()) == before


def append_entry(data: Path, request: InternalRaftRequest) -> None:
    """Add a committed entry to the log of a member that is stopped."""
    disk, path = OsDisk(), str(data / "member" / "wal")
    wal = Wal.open(disk, path, ahead=False)
    for _ in wal.recover():
        pass
    run = Run.of([(EntryType.NORMAL, request.encode())])
    run.assign(wal.last_index + 1, wal.hard_state[0])
    wal.append(run, None)
    wal.append(None, (*wal.hard_state[:2], run.last_index))
    wal.sync()
    wal.close()


def test_users_are_refused_and_nothing_is_touched(sides: tuple[Server, Server]) -> None:
    ours, theirs = sides
    port = theirs.start().port
    for words in (["user", "add", "root:root"], ["auth", "enable"]):
        subprocess.run(
            [need("etcdctl"), f"--endpoints=127.0.0.1:{port}", *words],
            env={"ETCDCTL_API": "3"},
            check=True,
            capture_output=True,
            timeout=60,
        )
    theirs.stop()
    files = {path: path.read_bytes() for path in theirs.data.rglob("*") if path.is_file()}
    ours.launch()
    assert ours.wait() != 0
    assert "authentication is enabled" in ours.tail()
    assert files == {path: path.read_bytes() for path in theirs.data.rglob("*") if path.is_file()}


def test_a_file_without_its_log(sides: tuple[Server, Server]) -> None:
    ours, theirs = sides
    with Client(theirs.start().port) as client:
        client.put(b"k")
    theirs.signal(signal.SIGTERM)
    theirs.wait()
    theirs.close()
    for segment in (theirs.data / "member" / "wal").iterdir():
        segment.unlink()
    ours.launch()
    assert ours.wait() != 0
    assert "whose log is missing" in ours.tail()
