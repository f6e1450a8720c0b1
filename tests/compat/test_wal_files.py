"""WAL files go both ways between quorate and a real etcd."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests import walmodel
from tests.needs import need
from tests.server import Program, Server

from quorate.core._disk import OsDisk
from quorate.core._run import Run
from quorate.core._wal import Wal
from quorate.core._walread import WalLockedError

pytestmark = pytest.mark.compat

NODE, CLUSTER = 0x1234567890ABCDEF, 0x0FEDCBA987654321
PUTS = 300


def etcdctl(server: Server, *words: str) -> str:
    done = subprocess.run(
        [need("etcdctl"), "--endpoints", f"http://127.0.0.1:{server.port}", *words],
        env={"ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def put(key: bytes, value: bytes, request_id: int) -> bytes:
    """An InternalRaftRequest: the put, then its header with the id."""
    body = b"\x0a" + walmodel.varint(len(key)) + key + b"\x12" + walmodel.varint(len(value)) + value
    header = b"\x08" + walmodel.varint(request_id)
    return b"\x22" + walmodel.varint(len(body)) + body + b"\xa2\x06" + bytes([len(header)]) + header


def bootstrap(peer: str) -> bytes:
    """The ConfChange that adds the only member, as etcd starts a log with."""
    member = json.dumps({"id": NODE, "peerURLs": [peer], "name": "one"}).encode()
    return walmodel.scalars(0, 0, NODE) + b"\x22" + walmodel.varint(len(member)) + member


def test_etcd_starts_on_a_log_of_ours(debian_etcd: Program, tmp_path: Path) -> None:
    """Several segments, made by the thread, and nothing else in the directory."""
    with Server(debian_etcd, tmp_path / "etcd") as server:
        wal = Wal.create(
            OsDisk(), str(server.data / "member" / "wal"), NODE, CLUSTER, segment_bytes=40_000
        )
        first = Run.of([(1, bootstrap(f"http://127.0.0.1:{server.peer_port}"))])
        first.assign(1, 1)
        wal.append(first, (1, 0, 1))
        wal.sync()
        puts = [put(b"k%03d" % at, b"v%d" % at * 50, at + 1) for at in range(PUTS)]
        for at in range(0, PUTS, 10):
            batch = Run.of([(0, b""), *((0, one) for one in puts[:10])] if at == 0 else [])
            if at:
                batch = Run.of([(0, one) for one in puts[at : at + 10]])
            batch.assign(wal.last_index + 1, 2)
            wal.append(batch, (2, NODE, wal.last_index))
            wal.sync()
        assert wal.last_index == PUTS + 2
        wal.close()
        server.start()
        found = etcdctl(server, "get", "", "--prefix").splitlines()
        expected = [line for at in range(PUTS) for line in (f"k{at:03d}", f"v{at}" * 50)]
        assert found == expected
        status = json.loads(etcdctl(server, "endpoint", "status", "-w", "json"))
        header = status[0]["Status"]["header"]
        assert header["revision"] == PUTS + 1
        assert header["member_id"] == NODE
        assert header["cluster_id"] == CLUSTER


def test_we_read_a_log_of_etcd_entry_for_entry(debian_etcd: Program, tmp_path: Path) -> None:
    """etcd puts, is killed, and its log is read, continued by us, and read by etcd again."""
    with Server(debian_etcd, tmp_path / "etcd") as server:
        server.start()
        for at in range(20):
            etcdctl(server, "put", f"key{at}", "v" * 40)
        directory = str(server.data / "member" / "wal")
        with pytest.raises(WalLockedError):
            Wal.open(OsDisk(), directory)
        server.kill()
        files = sorted(Path(directory).glob("*.wal"))
        decoded = walmodel.decode([file.read_bytes() for file in files])
        wal = Wal.open(OsDisk(), directory)
        entries = {
            run.first_index + at: (kind, run.term, data)
            for run in wal.recover()
            for at, (kind, data) in enumerate(run.unpack())
        }
        assert entries == decoded.entries
        assert wal.hard_state == decoded.states[-1]
        assert walmodel.scalars(wal.node_id, wal.cluster_id) in decoded.metadata
        for at in range(20):
            assert any(b"key%d\x12" % at in data for _, _, data in entries.values())
        ours = Run.of([(0, put(b"ours", b"value", 77))])
        ours.assign(wal.last_index + 1, wal.term)
        wal.append(ours, None)
        wal.append(None, (wal.term, wal.vote, wal.last_index))
        wal.sync()
        wal.close()
        server.start()
        assert etcdctl(server, "get", "ours").split() == ["ours", "value"]
