"""Real etcd's backend files are read, and etcd opens those that are written here."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from quorate.api.mvccpb import KeyValue
from quorate.core._bolt import Bolt
from quorate.core._boltwriter import BoltWriter
from quorate.core._disk import OsDisk
from tests.boltmodel import Content
from tests.depth import depth, seed
from tests.needs import need
from tests.server import Server, etcd
from tests.test_bolt import fill, read

State = dict[bytes, tuple[bytes, int, int, int, int]]

pytestmark = [pytest.mark.compat, pytest.mark.slow]


class Member:
    """A member of real etcd, and what etcdctl says of it."""

    def __init__(self, directory: Path) -> None:
        self.ctl = need("etcdctl")
        need("etcd")
        program = etcd()
        assert program is not None
        self.server = Server(program, directory)
        self.directory = directory

    @property
    def database(self) -> Path:
        return self.server.data / "member" / "snap" / "db"

    def run(self, *command: str, text: str = "") -> str:
        done = subprocess.run(
            [self.ctl, "--endpoints", f"127.0.0.1:{self.server.port}", *command],
            input=text,
            capture_output=True,
            text=True,
            timeout=30,
            env=os.environ | {"ETCDCTL_API": "3"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def put_many(self, rng: random.Random, calls: int) -> None:
        for _ in range(calls):
            keys = rng.sample(range(900), 60)
            lines = [f"put k{key:04} {'v' * rng.randrange(900)}." for key in keys]
            self.run("txn", text="\n" + "\n".join(lines) + "\n\n\n")

    def commit(self) -> None:
        """Have the backend's open transaction committed: a snapshot begins with that."""
        path = self.directory / "commit"
        self.run("snapshot", "save", str(path))
        path.unlink()

    def state(self) -> State:
        answer = json.loads(self.run("get", "", "--prefix", "-w", "json"))
        return {
            base64.b64decode(kv["key"]): (
                base64.b64decode(kv.get("value", "")),
                kv["create_revision"],
                kv["mod_revision"],
                kv["version"],
                kv.get("lease", 0),
            )
            for kv in answer.get("kvs", [])
        }


def stored_state(bolt: Bolt) -> State:
    """The newest versions of all keys, from the revisions of bucket `key`."""
    state: State = {}
    for revision, value in bolt.items(b"key"):
        kv = KeyValue.parse(value or b"")
        if revision[17:] == b"t":
            state.pop(kv.key, None)
        else:
            assert int.from_bytes(revision[:8], "big") == kv.mod_revision
            state[kv.key] = (kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
    return state


def lived_in(member: Member, rng: random.Random) -> State:
    """A member that has seen everything, killed; what it held."""
    member.server.start()
    member.put_many(rng, depth(20, 200))
    lease = member.run("lease", "grant", "5000").split()[1]
    member.run("put", "leased", "x", "--lease", lease)
    member.run("put", "large", text="y" * 200_000)
    member.run("del", "k01", "--prefix")
    member.commit()
    state = member.state()
    member.server.kill()
    return state


def test_files_of_a_real_etcd(tmp_path: Path) -> None:
    number = seed()
    rng = random.Random(number)
    why = f"QUORATE_SEED={number}"
    member = Member(tmp_path)
    with member.server:
        state = lived_in(member, rng)
        bolt = Bolt(member.database.read_bytes(), str(member.database))
        assert stored_state(bolt) == state, why
        assert bolt.warning is None
        check = bolt.check()
        assert check.pages_free > 0
        assert check.buckets == len(bolt.buckets()) >= 10
        assert bolt.count(b"lease")[0] == 1

        member.server.start()
        assert member.state() == state, why
        revision = max(kv[2] for kv in state.values())
        member.run("compact", "--physical", str(revision))
        member.put_many(rng, 3)
        member.run("defrag")
        member.put_many(rng, 3)
        member.commit()
        state = member.state()
        member.server.kill()
        bolt = Bolt(member.database.read_bytes(), str(member.database))
        assert stored_state(bolt) == state, why
        bolt.check()


@pytest.mark.parametrize("how", [{}, {"leaf_size": 65536}, {"fill_percent": 60, "freelist": 1}])
def test_etcd_goes_on_with_a_file_of_ours(tmp_path: Path, how: dict[str, Any]) -> None:
    """In the place of its own file, whose every bucket it was written from."""
    rng = random.Random(7)
    member = Member(tmp_path)
    with member.server:
        state = lived_in(member, rng)
        copy_database(member.database, how)
        member.server.start()
        assert member.state() == state
        member.put_many(rng, 10)
        member.run("del", "k02", "--prefix")
        member.run("compact", "--physical", str(max(kv[2] for kv in state.values())))
        member.commit()
        state = member.state()
        member.server.kill()
        bolt = Bolt(member.database.read_bytes(), str(member.database))
        assert stored_state(bolt) == state
        bolt.check()


def copy_database(path: Path, how: dict[str, Any]) -> Content:
    """Replace a bbolt file by one of ours with the same content."""
    bolt = Bolt(path.read_bytes(), str(path))
    content = read(bolt)
    path.unlink()
    writer = BoltWriter(OsDisk(), str(path), transaction=bolt.transaction + 1, **how)
    fill(writer, content)
    writer.finish()
    assert read(Bolt(path.read_bytes())) == content
    return content


@pytest.mark.parametrize("how", [{}, {"leaf_size": 65536}])
def test_etcdctl_restores_a_file_of_ours(tmp_path: Path, how: dict[str, Any]) -> None:
    member = Member(tmp_path / "first")
    with member.server:
        state = lived_in(member, random.Random(8))
    content = copy_database(member.database, how)
    data = member.database.read_bytes()
    snapshot = tmp_path / "snapshot"
    snapshot.write_bytes(data + hashlib.sha256(data).digest())
    status = json.loads(member.run("snapshot", "status", str(snapshot), "-w", "json"))
    assert status["totalKey"] == sum(len(pairs) for _, pairs in content.values())
    assert status["totalSize"] == len(data)
    restored = Member(tmp_path / "second")
    peer = f"http://127.0.0.1:{restored.server.peer_port}"
    member.run(
        *("snapshot", "restore", str(snapshot), "--data-dir", str(restored.server.data)),
        *("--name", "one", "--initial-cluster", f"one={peer}"),
        *("--initial-advertise-peer-urls", peer),
    )
    with restored.server:
        restored.server.start()
        assert restored.state() == state


def test_bbolt_finds_nothing_wrong(tmp_path: Path) -> None:
    """The `bbolt` program of the format's own project, where it is installed."""
    program = shutil.which("bbolt", path=os.pathsep.join([os.environ["PATH"], "/usr/local/bin"]))
    if program is None:
        pytest.skip("bbolt is not installed (go install go.etcd.io/bbolt/cmd/bbolt@v1.3.11)")
    rng = random.Random(9)
    content: Content = {
        b"key": (0, [(at.to_bytes(17, "big"), rng.randbytes(300)) for at in range(20_000)]),
        b"large": (3, [(bytes([at]) * 30_000, bytes(100_000)) for at in range(1, 20)]),
        b"empty": (0, []),
    } | {b"bucket %03d" % at: (0, [(b"k", bytes(900))]) for at in range(300)}
    for number, how in enumerate([{}, {"leaf_size": 65536}, {"freelist": 1, "page_size": 16384}]):
        path = tmp_path / str(number)
        writer = BoltWriter(OsDisk(), str(path), **how)
        fill(writer, content)
        writer.finish()
        done = subprocess.run(
            [program, "check", str(path)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
