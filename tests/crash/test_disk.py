"""Slow, full and failing disks: only what is durable is acknowledged, and what was is there."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.crash.load import Ledger, Load
from tests.crash.preload import Words, build
from tests.polling import wait_until
from tests.server import READY_LINE, Program, Server
from tests.wire import Client, Refused

pytestmark = pytest.mark.crash

DELAY_MS, SYNCS_LEFT, WRITES_LEFT, ERRNO, SYNCS, WRITES = range(6)
NO_SPACE = "etcdserver: mvcc: database space exceeded"
# Room for the first segments of 64,000,000 bytes, and not for all that the test writes.
SMALL_DISK, LARGE_DISK = "size=200m", "size=1g"
BIG_VALUE = bytes(1_000_000)
# A sync that does not return before the test says so.
STANDING_MS = 60_000
# What would answer too early would do so at once.
UNANSWERED_SECONDS = 0.2


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled shim."""
    return build("fault.c", tmp_path_factory.mktemp("shim"))


@pytest.fixture
def disk(tmp_path: Path) -> Words:
    """Good until told otherwise."""
    return Words(tmp_path / "control", 0, -1, -1, errno.EIO, 0, 0)


@pytest.fixture
def faulty(program: Program, shim: Path, disk: Words, tmp_path: Path) -> Iterator[Server]:
    """A server on the faulty disk; skips for etcd, which calls the kernel without the C library."""
    if not program.is_quorate:
        pytest.skip("etcd's system calls can't be replaced")
    with Server(program, tmp_path / "server") as server:
        server.environment = {"LD_PRELOAD": str(shim), "FAULT_CONTROL": str(disk.path)}
        server.start()
        assert disk[SYNCS] > 0, "the shim sees no sync"
        yield server


def test_a_slow_sync_makes_answers_late_and_none_early(faulty: Server, disk: Words) -> None:
    """A turn of nothing but writes may sync by itself, but once: then the disk is known to be slow.

    The test used to take a read that waited for such a sync for one that did not.
    """
    disk[DELAY_MS] = 1000
    with Client(faulty.port) as client, Client(faulty.port) as other:
        assert duration(lambda: client.put(b"first", b"v")) >= 1
        began = time.monotonic()
        writes = [client.start("KV/Put", {"key": b"k%d" % n, "value": b"v"}) for n in range(50)]
        # Time for what is wrong to happen: the sync takes ten times that.
        time.sleep(0.1)
        seen = other.get(b"k0", serializable=True).get("kvs", [])
        assert time.monotonic() - began < 0.9, "a read waited for the disk"
        assert not seen, "a read returned what is not durable"
        assert not any(write.done() for write in writes), "acknowledged before the sync returned"
        for write in writes:
            write.result()
        assert 0.9 <= time.monotonic() - began < 4.5
        disk[DELAY_MS] = 0
        assert other.get(b"k49")["kvs"][0]["value"] == b"v"


def test_a_long_start_answers_nothing_that_is_not_true(faulty: Server, disk: Words) -> None:
    """Before the log is read and all of it applied, the port takes connections and no page answers,
    as with etcd: a probe counts that as not live, not ready, not healthy. Nobody is refused: who
    waited is answered as soon as it is true.
    """
    faulty.stop()
    started, synced = len(faulty.logged()), disk[SYNCS]
    disk[DELAY_MS] = STANDING_MS
    faulty.launch()
    # The election's term has to be durable: there it stands now, its log read and not yet applied.
    wait_until(lambda: disk[SYNCS] > synced, "sync")
    with ExitStack() as stack:
        asked = {}
        for page in ("/health", "/livez", "/readyz"):
            asked[page] = stack.enter_context(socket.create_connection(("127.0.0.1", faulty.port)))
            asked[page].sendall(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % page.encode())
        answered, _, _ = select.select(asked.values(), [], [], UNANSWERED_SECONDS)
        assert not answered
        lines = [line.get("msg") for line in faulty.logged()[started:]]
        assert "recovered" in lines
        assert READY_LINE not in lines
        disk[DELAY_MS] = 0
        for page, connection in asked.items():
            connection.settimeout(10)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 "), page


@pytest.mark.parametrize("word", [SYNCS_LEFT, WRITES_LEFT], ids=["sync", "write"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("after", [0, 1, 7])
def test_the_first_failure_is_final(
    word: int, error: int, after: int, faulty: Server, disk: Words
) -> None:
    ledger = Ledger()
    load = Load(faulty.port, ledger, "before", 2, 4).start()
    # The load goes on for a while.
    time.sleep(0.2)
    disk[ERRNO] = error
    disk[word] = after
    code = faulty.wait(10)
    load.join()
    assert code == 1, faulty.tail()
    assert "Traceback" not in faulty.tail(100)
    disk[word] = -1
    faulty.restart()
    with Client(faulty.port) as client:
        assert ledger.verify(client) > 0
        client.put(b"z", b"after")


def duration(call: Callable[[], object]) -> float:
    """Seconds that the call took."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


@contextlib.contextmanager
def small_disk(at: Path) -> Iterator[None]:
    """A file system of its own there, `SMALL_DISK` large; skips where this user can't mount."""
    at.mkdir(mode=0o700, parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"{SMALL_DISK},mode=0700", "none", str(at)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user can't mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(server: Server) -> tuple[dict[bytes, int], Refused | None]:
    """Write until the server refuses or ends: what was acknowledged, and the refusal."""
    acknowledged: dict[bytes, int] = {}
    with Client(server.port) as client:
        for number in range(400):
            key = b"big/%03d" % number
            try:
                acknowledged[key] = client.put(key, BIG_VALUE)["header"]["revision"]
            except Refused as error:
                return acknowledged, error
    return acknowledged, None


def test_a_full_disk_loses_nothing(program: Program, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk), Server(program, tmp_path / "server") as server:
        server.data = disk / "data"
        server.start()
        acknowledged, refusal = fill(server)
        assert refusal is not None, "400 MB fitted on 200"
        assert len(acknowledged) > 20
        assert refusal.text == NO_SPACE or ended(server), refusal
        if server.alive():
            server.kill()
        server.process = None
        subprocess.run(["mount", "-o", f"remount,{LARGE_DISK}", str(disk)], check=True)
        server.restart()
        with Client(server.port) as client:
            there = client.get(b"big/", b"big0", keys_only=True)
            found = {kv["key"]: kv["mod_revision"] for kv in there["kvs"]}
            assert acknowledged.items() <= found.items()
            assert len(found) <= len(acknowledged) + 1
            client.put(b"z", b"after")


def ended(server: Server, seconds: float = 10.0) -> bool:
    """Whether the process ends by itself in that time."""
    assert server.process is not None
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(seconds)
    return not server.alive()
