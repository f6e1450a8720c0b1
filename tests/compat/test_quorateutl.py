"""`quorateutl` beside etcd's own tools, on files of etcd and of quorate, and what starts from them.

`QUORATE_ETCDUTL` names another etcdutl than that of etcd 3.5.1: those of 3.6 and 3.7 do more.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests import walmodel
from tests.depth import seed
from tests.needs import need, need_newer
from tests.server import Program, Server
from tests.test_restore import FILE
from tests.wire import Client, Refused

from quorate.ctl import quorateutl

from .test_moving import KEYS, USED, contents, use

pytestmark = pytest.mark.compat

FORMS = ("simple", "fields", "json", "table")
# How etcd's tools drew tables before 3.7.
OLD_LINES = str.maketrans("─│┌┬┐├┼┤└┴┘", "-|+++++++++")
TOO_NEW = ("--rev", "1000000")
Done = subprocess.CompletedProcess[str]


def run(*words: object, name: str = "") -> Done:
    """quorateutl, or the program of that name."""
    start = [name] if name else [sys.executable, "-m", "quorate.ctl.quorateutl"]
    return subprocess.run(
        [*start, *map(str, words)],
        env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def utl(*words: object) -> str:
    """What quorateutl answers when it can do that."""
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def etcdctl() -> str:
    return need("etcdctl")


@pytest.fixture
def etcdutl() -> str:
    return need_newer("etcdutl")


@pytest.fixture
def hashing_etcdutl(etcdutl: str) -> str:
    if "hashkv" not in run("help", name=etcdutl).stdout:
        pytest.skip("hashkv came with 3.6")
    return etcdutl


@pytest.fixture
def used(debian_etcd: Program, tmp_path: Path) -> Iterator[Server]:
    """An etcd that was used, and runs."""
    with Server(debian_etcd, tmp_path / "etcd", *USED) as server:
        with Client(server.start().port) as client:
            use(client, random.Random(seed()), 300)
            client.put(b"last")
        yield server


def save(server: Server, path: Path) -> Path:
    """A snapshot of what the server has."""
    done = run(f"--endpoints=127.0.0.1:{server.port}", "snapshot", "save", path, name="etcdctl")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def saved(used: Server, tmp_path: Path, etcdctl: str) -> Path:
    return save(used, tmp_path / "saved")


def seen(server: Server) -> dict[str, Any]:
    """What a server holds, but for its members."""
    with Client(server.port) as client:
        found = contents(client)
    del found["members"]
    return found


def flags_of(*servers: Server) -> tuple[str, ...]:
    """What a restore needs to know of the first of these members."""
    urls = [f"http://127.0.0.1:{server.peer_port}" for server in servers]
    names = ["one", "two", "three"]
    cluster = ",".join(f"{name}={url}" for name, url in zip(names, urls, strict=False))
    return "--initial-cluster", cluster


def restore(saved: Path, server: Server, *more: object) -> None:
    """A data directory for the server."""
    url = f"http://127.0.0.1:{server.peer_port}"
    flags = ("--name", "one", "--initial-advertise-peer-urls", url, *flags_of(server))
    utl("snapshot", "restore", saved, "--data-dir", server.data, *flags, *more)


# --- snapshot status


def test_status_is_etcdctl_s(saved: Path, used: Server, etcdctl: str) -> None:
    """But for the keys: from 3.6 on these are the users' that exist, before it was all pairs."""
    theirs = run("snapshot", "status", saved, name=etcdctl).stdout.strip().split(", ")
    ours = utl("snapshot", "status", saved).rstrip("\n").split(", ")
    assert [ours[0], ours[1], ours[3], ours[4]] == [theirs[0], theirs[1], theirs[3], ""]
    with Client(used.port) as client:
        asked = {"key": b"\0", "range_end": b"\0", "count_only": True}
        assert int(ours[2]) == client.call("KV/Range", asked).get("count", 0)
    theirs_json = json.loads(run("snapshot", "status", saved, "-w", "json", name=etcdctl).stdout)
    ours_json = json.loads(utl("snapshot", "status", saved, "-w", "json"))
    assert ours_json == {**theirs_json, "totalKey": int(ours[2]), "version": ""}


def test_every_form_is_etcdutl_s(saved: Path, etcdutl: str) -> None:
    """But for the keys, which are others from 3.6 on, the version, which came with 3.6, and the
    lines of the table, which are 3.7's.
    """
    words = ("snapshot", "status", saved, "-w")
    theirs = {form: run(*words, form, name=etcdutl).stdout for form in FORMS}
    ours = {form: utl(*words, form) for form in FORMS}
    if "┌" not in theirs["table"]:
        ours["table"] = ours["table"].translate(OLD_LINES)
    old, new = (json.loads(each["json"]) for each in (theirs, ours))
    if "version" not in old:
        theirs = with_3_6_columns(theirs, old["totalKey"], new["totalKey"])
    assert ours == theirs


def with_3_6_columns(forms: dict[str, str], old: int, new: int) -> dict[str, str]:
    """What etcdutl 3.5 says, with the keys of 3.6 and an empty version."""
    line, head, _, row, _ = forms["table"].splitlines()
    row = row.replace(f"| {old:10} |", f"| {new:10} |")
    line, head, row = line + "-" * 9 + "+", head + " VERSION |", row + " " * 9 + "|"
    as_json = forms["json"].replace(f'"totalKey":{old},', f'"totalKey":{new},')
    fields = forms["fields"].replace(f'"Keys" : {old}\n', f'"Keys" : {new}\n')
    return {
        "simple": forms["simple"].replace(f", {old}, ", f", {new}, ")[:-1] + ", \n",
        "fields": fields + '"Version" : \n',
        "json": as_json[:-2] + ',"version":""}\n',
        "table": "".join(f"{each}\n" for each in (line, head, line, row, line)),
    }


def test_hashkv_is_etcdutl_s(hashing_etcdutl: str, used: Server, tmp_path: Path) -> None:
    """On a file whose keys have no leases: with one the etcdutl of 3.6 panics ("no lessor to attach
    lease"), which 3.7 does not.
    """
    if "version: 3.6" in run("version", name=hashing_etcdutl).stdout:
        with Client(used.port) as client:
            for lease in client.call("Lease/LeaseLeases").get("leases", ()):
                client.call("Lease/LeaseRevoke", {"ID": lease["ID"]})
    saved = save(used, tmp_path / "saved")
    for form, more in itertools.product((*FORMS, "protobuf"), ((), ("--rev", "230"), TOO_NEW)):
        ours, theirs = (
            run("hashkv", saved, "-w", form, *more, name=name) for name in ("", hashing_etcdutl)
        )
        assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
        if "┌" not in theirs.stdout:
            ours.stdout = ours.stdout.translate(OLD_LINES)
        assert ours.stdout == theirs.stdout


MISTAKES = (
    ("snapshot", "status"),
    ("snapshot", "status", "a", "b"),
    ("snapshot", "status", "gone"),
    ("snapshot", "status", "FILE", "-w", "xml"),
    ("-w", "xml", "snapshot", "status", "FILE"),
    ("snapshot", "restore", "a", "b", "--data-dir", "d"),
    ("snapshot", "restore", "--data-dir", "d"),
    ("snapshot", "restore", "FILE", "--data-dir", "d", "--name", "two"),
    ("snapshot", "restore", "FILE", "--data-dir", "d", "--initial-cluster", "foo"),
    ("snapshot", "restore", "FILE", "--data-dir", "d", "--initial-cluster", "default=ftp://a:1"),
    ("snapshot", "restore", "FILE", "--data-dir", "d", "--initial-advertise-peer-urls", ""),
    ("snapshot", "restore", "FILE", "--data-dir", "/proc"),
    ("snapshot", "restore", "FILE", "--data-dir", "d", "--wal-dir", "/proc"),
    ("snapshot", "restore", "FILE", "--data-dir", "d", "--initial-cluster",
     "default=http://localhost:2380,b=http://localhost:2380"),
    ("nope",),
    ("versoin",),
)  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_told_as_etcdutl_tells_them(
    words: tuple[str, ...], etcdutl: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    small.write_bytes(FILE + hashlib.sha256(FILE).digest())
    given = [str(small) if word == "FILE" else word for word in words]
    code, theirs = quorateutl.main(given), run(*given, name=etcdutl)
    ours = capsys.readouterr()
    assert (code, ours.out) == (theirs.returncode, theirs.stdout)
    assert ours.err.replace("quorateutl", "etcdutl") == theirs.stderr
    assert code != 0


def test_a_restore_s_log_is_etcdutl_s_to_the_byte(
    saved: Path, tmp_path: Path, etcdutl: str
) -> None:
    if "version: 3.7" in run("version", name=etcdutl).stdout:
        pytest.skip("3.7 leaves out fields that are zero")
    urls = "one=http://127.0.0.1:1,two=http://127.0.0.1:2,two=http://127.0.0.1:3"
    found: list[list[bytes]] = []
    for name in ("", etcdutl):
        data = tmp_path / f"data{len(found)}"
        flags = ("--initial-cluster", urls, "--initial-cluster-token", "t", "--data-dir", data)
        own = (
            "--name",
            "two",
            "--initial-advertise-peer-urls",
            "http://127.0.0.1:2,http://127.0.0.1:3",
        )
        assert run("snapshot", "restore", saved, *flags, *own, name=name).returncode == 0
        found.append([path.read_bytes() for path in (data / "member" / "wal").iterdir()])
    assert found[0] == found[1]


# --- snapshot restore


def test_a_restore_s_log_is_etcdctl_s(saved: Path, tmp_path: Path, etcdctl: str) -> None:
    """But for the configuration that 3.5 added to the snapshot's record."""
    logs: list[bytes] = []
    for name in ("", etcdctl):
        data = tmp_path / f"data{len(logs)}"
        flags = ("--initial-cluster", "one=http://a:1,two=http://b:2", "--data-dir", data)
        own = ("--name", "one", "--initial-advertise-peer-urls", "http://a:1")
        assert run("snapshot", "restore", saved, *flags, *own, name=name).returncode == 0
        [segment] = (data / "member" / "wal").iterdir()
        logs.append(segment.read_bytes())
        names = sorted(path.name for path in (data / "member" / "snap").iterdir())
        assert names == [f"{1:016x}-{2:016x}.snap", "db"]
    ours, theirs = (walmodel.decode([log]) for log in logs)
    assert (ours.metadata, ours.entries, ours.states) == (
        theirs.metadata,
        theirs.entries,
        theirs.states,
    )
    assert ours.snapshots == theirs.snapshots


@pytest.mark.parametrize("kind", ["quorate", "etcd"])
def test_both_start_from_a_restored_directory(
    kind: str, saved: Path, used: Server, program: Program, debian_etcd: Program, tmp_path: Path
) -> None:
    before = seen(used)
    first, second = (program, debian_etcd)[:: 1 if kind == "quorate" else -1]
    with Server(first, tmp_path / "a") as one, Server(second, tmp_path / "b") as other:
        restore(saved, one)
        other.data = one.data
        for server in (one, other):
            assert seen(server.start()) == before
            with Client(server.port) as client:
                use(client, random.Random(seed()), 50)
            before = seen(server)
            server.stop()
        assert "ok" in utl("check", "--data-dir", one.data)


def test_a_cluster_is_restored_member_by_member(
    saved: Path, used: Server, debian_etcd: Program, tmp_path: Path
) -> None:
    before = seen(used)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(Server(debian_etcd, tmp_path / name))
            for name in ("one", "two", "three")
        ]
        cluster = flags_of(*servers)
        for server in servers:
            name, url = server.directory.name, f"http://127.0.0.1:{server.peer_port}"
            own = ("--name", name, "--initial-advertise-peer-urls", url)
            words = ("--data-dir", server.data, *own, *cluster)
            utl("snapshot", "restore", saved, *words)
            server.flags = ("--name", name, *cluster)
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready()
        with Client(servers[0].port) as client:
            members = client.call("Cluster/MemberList")["members"]
            assert sorted(member["name"] for member in members) == ["one", "three", "two"]
            hashes = before["hash at " + str(before["revision"])]
        for server in servers:
            with Client(server.port) as client:
                asked = {"revision": before["revision"]}
                assert client.call("Maintenance/HashKV", asked)["hash"] == hashes


@pytest.mark.parametrize("kind", ["quorate", "etcd"])
def test_a_revision_that_jumps(
    kind: str, saved: Path, used: Server, program: Program, debian_etcd: Program, tmp_path: Path
) -> None:
    """What Kubernetes needs: no client sees a revision twice, every old watcher lists again."""
    before = seen(used)
    other = {"quorate": debian_etcd, "etcd": program}[kind]
    with (
        Server({"quorate": program, "etcd": debian_etcd}[kind], tmp_path / "a") as server,
        Server(other, tmp_path / "b") as next_server,
    ):
        restore(saved, server, "--bump-revision", 1_000_000, "--mark-compacted")
        expected = before["revision"] + 1_000_000
        told = json.loads(utl("hashkv", server.data / "member" / "snap" / "db", "-w", "json"))
        assert (told["hashRevision"], told["compactRevision"]) == (expected, expected)
        for each in (server, next_server):
            each.data = server.data
            with Client(each.start().port) as client:
                everything = {"key": b"\0", "range_end": b"\0"}
                whole = client.call("KV/Range", everything)
                assert whole["header"]["revision"] == expected
                if each is server:
                    assert whole.get("kvs", []) == before["now"]
                    assert client.call("Maintenance/HashKV")["hash"] == told["hash"]
                with pytest.raises(Refused, match="compacted"):
                    client.call("KV/Range", {**everything, "revision": before["revision"]})
                expected = client.put(KEYS[0], b"after")["header"]["revision"]
            each.stop()
        assert "ok" in utl("check", "--data-dir", server.data)


def test_a_restore_of_a_copied_file(used: Server, program: Program, tmp_path: Path) -> None:
    before = seen(used)
    used.stop()
    with Server(program, tmp_path / "quorate") as ours:
        copied = used.data / "member" / "snap" / "db"
        assert "missing hash" in run("snapshot", "restore", copied, "--data-dir", ours.data).stderr
        restore(copied, ours, "--skip-hash-check", "--wal-dir", tmp_path / "wal")
        ours.flags = ("--wal-dir", str(tmp_path / "wal"))
        assert seen(ours.start()) == before


# --- hashkv, defrag, check


def test_hashkv_is_the_server_s(used: Server, saved: Path) -> None:
    with Client(used.port) as client:
        revision = client.revision()
        compacted = client.call("Maintenance/HashKV").get("compact_revision", 0)
        for asked in (0, revision, revision - 5):
            if 0 < asked <= compacted:
                continue
            expected = client.call("Maintenance/HashKV", {"revision": asked})
            answer = json.loads(utl("hashkv", saved, "--rev", asked, "-w", "json"))
            assert answer["hash"] == expected["hash"]
            assert answer["compactRevision"] == expected.get("compact_revision", 0)
    assert run("hashkv", saved, "--rev", revision + 1).stderr == (
        "Error: mvcc: required revision is a future revision\n"
    )


@pytest.mark.parametrize("kind", ["quorate", "etcd"])
def test_a_server_that_runs_is_left_alone(
    kind: str, used: Server, program: Program, tmp_path: Path
) -> None:
    used.stop()
    with Server(program if kind == "quorate" else used.program, tmp_path / "a") as server:
        server.data = used.data
        server.start()
        before = seen(server)
        for command in ("defrag", "check"):
            done = run(command, "--data-dir", server.data, "--timeout", "100ms")
            assert done.returncode == 1
            assert "another process uses" in done.stderr
        assert seen(server) == before


def test_a_defragmented_directory(used: Server, program: Program, tmp_path: Path) -> None:
    with Client(used.port) as client:
        for _ in range(50):
            client.put(b"large", bytes(100_000))
        client.call("KV/Compact", {"revision": client.revision(), "physical": True})
    before = seen(used)
    used.stop()
    file = used.data / "member" / "snap" / "db"
    size = file.stat().st_size
    assert utl("defrag", "--data-dir", used.data) == ""
    assert file.stat().st_size < size / 4
    assert seen(used.start()) == before
    used.stop()
    with Server(program, tmp_path / "ours") as ours:
        ours.data = used.data
        assert seen(ours.start()) == before


def test_defrag_of_nothing(tmp_path: Path) -> None:
    done = run("defrag", "--data-dir", tmp_path)
    path = tmp_path / "member" / "snap" / "db"
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: Failed to defragment etcd data[{tmp_path}] "
        f"(stat {path}: no such file or directory)\n",
    )


def test_check_tells_what_a_directory_gives(used: Server, program: Program) -> None:
    with Client(used.port) as client:
        expected = client.call("Maintenance/HashKV")
        status = client.call("Maintenance/Status")
    used.kill()
    before = {path: path.read_bytes() for path in used.data.rglob("*") if path.is_file()}
    answer = json.loads(utl("check", "--data-dir", used.data, "-w", "json"))
    assert answer["hash"] == expected["hash"]
    assert answer["revision"] == expected["header"]["revision"]
    assert answer["index"] == status["raftIndex"]
    assert "the log alone gives the same" in utl("check", "--data-dir", used.data)
    assert before == {path: path.read_bytes() for path in used.data.rglob("*") if path.is_file()}


def test_check_finds_a_file_that_says_something_else(used: Server) -> None:
    """Its pages are right, and a value is another than the log made: nothing else would see it."""
    with Client(used.port) as client:
        client.put(b"k", b"said")
    used.stop()
    path = used.data / "member" / "snap" / "db"
    content = path.read_bytes()
    # Also where it lies in pages that are free.
    assert b"said" in content
    path.write_bytes(content.replace(b"said", b"sung"))
    done = run("check", "--data-dir", used.data)
    assert done.returncode == 1
    assert "the log alone gives hash " in done.stderr
    assert "the backend file is not what the log made; keep a copy" in done.stderr
