"""Snapshots whose clients, workers, disk or server do not last: the others go on, nothing stays."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from tests.crash.test_disk import SMALL_DISK, small_disk
from tests.messages import decode
from tests.polling import wait_until
from tests.server import Program, Server
from tests.wire import Client, Refused

pytestmark = pytest.mark.crash

SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"
MIB = 1 << 20
VALUES = 48
SLOW_READERS = 8
# What a slow reader may cost: what is read ahead, encoded and queued of it; see limits.py.
READER_BYTES = 4 * MIB
SLACK_BYTES = 24 * MIB


@pytest.fixture
def filled(program: Program, tmp_path: Path) -> Iterator[Server]:
    """A server with VALUES values of a MiB."""
    if not program.is_quorate:
        pytest.skip("it looks at quorate's processes")
    chance = random.Random(1)
    with Server(program, tmp_path / "server") as server:
        with Client(server.start().port) as client:
            for number in range(VALUES):
                client.put(b"big/%02d" % number, chance.randbytes(MIB))
        yield server


def lent(server: Server) -> int:
    """How many states of the backend file the core keeps open for readers."""
    count = 0
    for name in os.listdir(f"/proc/{server.pid}/fd"):
        try:
            path = os.readlink(f"/proc/{server.pid}/fd/{name}")
            flags = Path(f"/proc/{server.pid}/fdinfo/{name}").read_text().split()[3]
        except OSError:
            continue
        if path.removesuffix(" (deleted)").endswith("/snap/db"):
            count += int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
    return count


def begin(client: Client) -> Any:
    """A snapshot of which the first message has come."""
    call = client.open(SNAPSHOT, [b""], 60)
    next(call)
    return call


def whole(call: Any, first: bytes = b"") -> bool:
    """Whether the rest of a call that was begun at the beginning ends with the right hash."""
    blobs = [decode("SnapshotResponse", data)["blob"] for data in call]
    found: bytes = blobs[-1]
    return hashlib.sha256(first + b"".join(blobs[:-1])).digest() == found


def snapshot(client: Client) -> bool:
    return whole(client.open(SNAPSHOT, [b""], 60))


def test_slow_readers(filled: Server) -> None:
    """They cost memory up to a limit, and nobody else waits for them."""
    with Client(filled.port) as writer:
        assert snapshot(writer)
        before = filled.memory()
        readers = [Client(filled.port) for _ in range(SLOW_READERS)]
        try:
            calls = [reader.open(SNAPSHOT, [b""], 60) for reader in readers]
            firsts = [decode("SnapshotResponse", next(call))["blob"] for call in calls]
            assert lent(filled) == 1, "they asked for the same state, and did not share"
            times = []
            for number in range(300):
                began = time.monotonic()
                writer.put(b"k%d" % number, b"v")
                times.append(time.monotonic() - began)
            assert sorted(times)[len(times) // 2] < 0.05
            grown = filled.memory() - before
            assert grown < SLOW_READERS * READER_BYTES + SLACK_BYTES, grown / MIB
            assert all(map(whole, calls, firsts))
        finally:
            for reader in readers:
                reader.close()
        wait_until(lambda: lent(filled) == 0, "release of the file")


def test_clients_that_vanish(filled: Server) -> None:
    for _ in range(3):
        with Client(filled.port) as client:
            begin(client)
    wait_until(lambda: lent(filled) == 0, "release of the file")
    with Client(filled.port) as client:
        assert snapshot(client)


def test_a_worker_that_dies(filled: Server) -> None:
    """Its clients are told; the file is given back; the next worker serves the next ones."""
    with Client(filled.port) as client:
        call = begin(client)
        assert lent(filled) == 1
        for pid in filled.workers():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as failed:
            list(call)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: lent(filled) == 0, "release of the file")
        wait_until(filled.healthy, "health")
        with Client(filled.port) as again:
            assert snapshot(again)
            again.put(b"k", b"v")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends(number: signal.Signals, filled: Server) -> None:
    """As etcd: the stream ends with an error, never as if it were whole; nothing is left."""
    with Client(filled.port) as client:
        call = begin(client)
        if number == signal.SIGTERM:
            assert filled.stop(5) == 0
        else:
            filled.kill()
        with pytest.raises(grpc.RpcError) as failed:
            list(call)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not [path for path in (filled.data / "member" / "snap").iterdir() if "tmp" in path.name]
    filled.restart()
    with Client(filled.port) as client:
        assert snapshot(client)


def test_a_disk_that_is_full(program: Program, tmp_path: Path) -> None:
    """Who asked is told; writers never notice; with room again there are snapshots again."""
    if not program.is_quorate:
        pytest.skip("etcd writes no file for a snapshot")
    assert SMALL_DISK == "size=200m"
    disk = tmp_path / "disk"
    with small_disk(disk), Server(program, tmp_path / "server") as server:
        server.data = disk / "data"
        with Client(server.start().port) as client:
            for number in range(20):
                client.put(b"big/%02d" % number, os.urandom(MIB))
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(free(disk) - 10 * MIB))
            for _ in range(2):
                with pytest.raises(Refused, match="the snapshot could not be made"):
                    list(client.stream("Maintenance/Snapshot", [{}]))
                assert client.put(b"k", b"v")
            wait_until(lambda: lent(server) == 0, "release of the file")
            wait_until(lambda: free(disk) > 9 * MIB, "room")
            assert "No space left" in server.log.read_text()
            ballast.unlink()
            assert snapshot(client)


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
