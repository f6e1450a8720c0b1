"""Maintenance.Snapshot: etcd's tools take what it streams, and both servers start from that."""

from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.depth import seed
from tests.messages import Message, decode
from tests.needs import need
from tests.server import Program, Server
from tests.wire import Client, Refused

from quorate.core._bolt import Bolt

pytestmark = pytest.mark.compat


def etcdctl(*words: object) -> str:
    """Run etcdctl; its output."""
    done = subprocess.run(
        [need("etcdctl"), *map(str, words)],
        env={"ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def save(server: Server, path: Path) -> Path:
    etcdctl(f"--endpoints=127.0.0.1:{server.port}", "snapshot", "save", path)
    return path


def restore(saved: Path, server: Server) -> Server:
    """A server with what was saved, in a directory of its own."""
    peer = f"http://127.0.0.1:{server.peer_port}"
    words = ["--name", "one", "--initial-cluster", f"one={peer}"]
    words += ["--initial-advertise-peer-urls", peer]
    etcdctl("snapshot", "restore", saved, "--data-dir", server.data, *words)
    return server


def fields(text: str) -> dict[str, int]:
    """What `snapshot status -w fields` says."""
    pairs = (line.split(" : ") for line in text.splitlines() if " : " in line)
    return {name.strip('" '): int(value.strip('"')) for name, value in pairs}


def stream(client: Client) -> Iterator[Message]:
    yield from client.stream("Maintenance/Snapshot", [{}], seconds=60)


def taken(messages: list[Message]) -> bytes:
    """The file, after a look at the messages that brought it."""
    *pieces, last = messages
    content = b"".join(piece["blob"] for piece in pieces)
    left = len(content)
    for piece in pieces:
        left -= len(piece["blob"])
        assert piece.get("remaining_bytes", 0) == left
    assert last["blob"] == hashlib.sha256(content).digest()
    assert "remaining_bytes" not in last
    assert not any("header" in piece for piece in messages)
    assert len({piece.get("version") for piece in messages}) == 1
    return content


def use(client: Client, chance: random.Random, calls: int) -> None:
    """Write, delete, lease, compact."""
    for lease in range(1, 4):
        client.call("Lease/LeaseGrant", {"ID": lease, "TTL": 1000 + lease})
    for number in range(calls):
        key = b"k%02d" % chance.randrange(40)
        value = chance.randbytes(chance.choice((3, 300, 9000)))
        if chance.random() < 0.8:
            client.put(key, value, lease=chance.randrange(4))
        else:
            client.delete(key)
        if number == calls // 2:
            client.call("KV/Compact", {"revision": client.revision() - 3})


def hashes(client: Client) -> list[int]:
    """HashKV at several revisions, and the compacted one."""
    revision = client.revision()
    found = [
        client.call("Maintenance/HashKV", {"revision": revision - back})["hash"]
        for back in range(4)
    ]
    return [revision, client.call("Maintenance/HashKV")["compact_revision"], *found]


def test_the_stream_is_etcds(shared_client: Client) -> None:
    shared_client.put(b"a", b"b")
    bolt = Bolt(taken(list(stream(shared_client))), "stream")
    bolt.check()
    assert set(bolt.buckets()) >= {b"key", b"lease", b"meta", b"members", b"cluster", b"auth"}


def test_two_snapshots_of_the_same_state_are_the_same(
    program: Program, shared_client: Client
) -> None:
    if not program.is_quorate:
        pytest.skip("etcd's have the freelist and the metas of the moment")
    first, second = (taken(list(stream(shared_client))) for _ in range(2))
    assert first == second


def test_save_status_restore(
    program: Program, debian_etcd: Program, server: Server, client: Client, tmp_path: Path
) -> None:
    """Both servers start from what was restored, with the same hashes and leases."""
    use(client, random.Random(seed()), 200)
    expected = hashes(client)
    saved = save(server, tmp_path / "saved")
    status = fields(etcdctl("snapshot", "status", saved, "-w", "fields"))
    assert (status["Revision"], status["Size"]) == (expected[0], saved.stat().st_size - 32)
    for number, other in enumerate((debian_etcd, program)):
        with Server(other, tmp_path / f"restored-{number}") as again:
            restore(saved, again).start()
            with Client(again.port) as reader:
                assert hashes(reader) == expected, f"seed {seed()}, {other}"
                leases = reader.call("Lease/LeaseLeases")["leases"]
                assert sorted(each["ID"] for each in leases) == [1, 2, 3]
                reader.put(b"after", b"restore")
                assert reader.revision() == expected[0] + 1
            # And its own snapshot is one again.
            saved_again = save(again, tmp_path / f"again-{number}")
            status = fields(etcdctl("snapshot", "status", saved_again, "-w", "fields"))
            assert status["Revision"] == expected[0] + 1


class Writers:
    """Clients that count: key `w<n>` goes from 0 up, and a key of all is written with each."""

    def __init__(self, port: int, count: int) -> None:
        self._ends = threading.Event()
        self.written = [0] * count
        arguments = [(port, number) for number in range(count)]
        self._threads = [threading.Thread(target=self._run, args=each) for each in arguments]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _run(self, port: int, number: int) -> None:
        with Client(port) as client:
            for count in itertools.count(1):
                if self._ends.is_set():
                    return
                puts = [
                    {"request_put": {"key": key, "value": b"%d" % count}}
                    for key in (b"w%d" % number, b"x%d" % number)
                ]
                client.call("KV/Txn", {"success": puts})
                self.written[number] = count


def test_under_writers(server: Server, client: Client) -> None:
    """It has every revision up to its own and none beyond, and all that was acknowledged before."""
    for number in range(300):
        client.put(b"fill%03d" % number, bytes(10_000))
    with Writers(server.port, 3) as writers:
        for _ in range(4):
            before = list(writers.written)
            bolt = Bolt(taken(list(stream(client))), "stream")
            bolt.check()
            names = [key for key, _ in bolt.items(b"key")]
            revisions = sorted({int.from_bytes(key[:8], "big") for key in names})
            assert revisions == list(range(2, len(revisions) + 2)), "a revision is missing"
            counts = newest(bolt)
            for number, least in enumerate(before):
                assert counts.get(b"w%d" % number, 0) >= least
                assert counts.get(b"w%d" % number) == counts.get(b"x%d" % number), "half a Txn"


def newest(bolt: Bolt) -> dict[bytes, int]:
    """The newest value of each writer's keys."""
    found = {}
    for _, value in bolt.items(b"key"):
        kv = decode("KeyValue", value or b"")
        if kv["key"][:1] in (b"w", b"x"):
            found[kv["key"]] = int(kv["value"])
    return found


def test_many_at_once(server: Server, client: Client) -> None:
    """All get the whole of it."""
    for number in range(50):
        client.put(b"k%d" % number, bytes(20_000))
    found: list[bytes] = []

    def read() -> None:
        with Client(server.port) as reader:
            found.append(taken(list(stream(reader))))

    threads = [threading.Thread(target=read) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 12
    for content in found:
        assert len([1 for _ in Bolt(content, "stream").items(b"key")]) == 50


def test_cancelled_in_the_middle(server: Server, client: Client) -> None:
    """Nothing of it stays, and the next one is whole."""
    for number in range(8):
        client.put(b"k%d" % number, random.Random(1).randbytes(1_000_000))
    for _ in range(5):
        messages = stream(client)
        next(messages)
        messages.close()  # type: ignore[attr-defined]
    assert Bolt(taken(list(stream(client))), "stream").count(b"key")[0] == 8


def test_a_deadline(server: Server, client: Client) -> None:
    """A client that does not read in time is told so."""
    for number in range(24):
        client.put(b"k%d" % number, random.Random(1).randbytes(1_000_000))
    messages = client.stream("Maintenance/Snapshot", [{}], seconds=1)
    next(messages)
    threading.Event().wait(1.5)
    with pytest.raises(Refused) as refused:
        list(messages)
    assert refused.value.code == 4
    client.put(b"k", b"v")
