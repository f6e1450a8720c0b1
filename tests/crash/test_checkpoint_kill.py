"""kill -9 while checkpoints are written all the time: file and log together are the state.

Rules:
1. Each key and each lease has one writer, who knows what is there but for its last call.
2. The log is kept whole (`--max-wals 0`), so that a copy of the directory without the backend and
   the snapshot files is a reference that has never seen a checkpoint: it must say the same.
3. A checkpoint follows each compaction and each snapshot, so that it is under way most of the time.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.depth import depth, seed
from tests.messages import Message
from tests.server import Program, Server
from tests.wire import UNCERTAIN, Client, Refused

pytestmark = pytest.mark.crash

FLAGS = ("--snapshot-count", "50", "--max-wals", "0", "--max-snapshots", "2")
# Small, in a mapping, and so large that few of them are garbage enough for a whole new file.
SIZES = (0, 10, 10, 100, 100, 3_000, 200_000)
KEYS = 24
WINDOW = 6
LEASE_SECONDS = 3600
COMPACTED = "required revision has been compacted"
# A directory is used for so many kills: the reference reads all of its log.
KILLS = 8


@dataclass
class Writer:
    """Who alone writes its keys, and what it knows of them."""

    name: str
    seed: int
    # key → (mod revision, value) as acknowledged; what is not here is not there.
    known: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    # key → the value of a put, or None for a deletion, that has no answer.
    open: dict[bytes, bytes | None] = field(default_factory=dict)
    lease: int = 0
    revision: int = 0
    calls: int = 0
    errors: list[Refused] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def run(self, port: int, stopped: threading.Event) -> None:
        """Write until the server is gone."""
        with Client(port) as client:
            try:
                while not stopped.is_set():
                    self.work(client)
            except Refused as error:
                self.errors.append(error)

    def work(self, client: Client) -> None:
        """A lease for some of a few calls at once, each of another key; the lease before ends."""
        chance, before = self.chance, self.lease
        if chance.random() < 0.2:
            lease = client.call("Lease/LeaseGrant", {"TTL": LEASE_SECONDS})["ID"]
            self.lease = lease
            if before:
                self.revoke(client, before)
        under = []
        for key in chance.sample([f"{self.name}/{at}".encode() for at in range(KEYS)], WINDOW):
            self.calls += 1
            value = b"%d=" % self.calls + b"%d." % self.calls * (chance.choice(SIZES) // 8)
            if chance.random() < 0.2:
                self.open[key] = None
                under.append((key, client.start("KV/DeleteRange", {"key": key})))
            else:
                self.open[key] = value
                put: Message = {"key": key, "value": value}
                under.append((key, client.start("KV/Put", put)))
        for key, call in under:
            self.acknowledge(key, call.result()["header"]["revision"])

    def revoke(self, client: Client, lease: int) -> None:
        """Put a key under a lease and revoke that: the key is gone with it."""
        key = f"{self.name}/leased".encode()
        self.open[key] = b"leased"
        put = client.put(key, b"leased", lease=lease)
        self.acknowledge(key, put["header"]["revision"])
        self.open[key] = None
        gone = client.call("Lease/LeaseRevoke", {"ID": lease})
        self.acknowledge(key, gone["header"]["revision"])

    def acknowledge(self, key: bytes, revision: int) -> None:
        value = self.open.pop(key)
        self.revision = max(self.revision, revision)
        if value is None:
            self.known.pop(key, None)
        else:
            self.known[key] = (revision, value)

    def verify(self, there: dict[bytes, Message]) -> None:
        """Compare with what is there after a restart, and know it from now on."""
        wrong = [error for error in self.errors if error.code not in UNCERTAIN]
        assert not wrong, f"refused: {wrong[:3]}"
        prefix = f"{self.name}/".encode()
        mine = {key: kv for key, kv in there.items() if key.startswith(prefix)}
        for key in mine.keys() | self.known.keys() | self.open.keys():
            kv = mine.get(key)
            found = kv and (kv["mod_revision"], kv.get("value", b""))
            if found == self.known.get(key):
                continue
            assert key in self.open, f"{key!r}: {self.told(key)} acknowledged, {found!r:.60} found"
            value = found and found[1]
            assert value == self.open[key], f"{key!r}: neither what was nor what was asked for"
        self.known = {key: (kv["mod_revision"], kv.get("value", b"")) for key, kv in mine.items()}
        self.open.clear()
        self.errors.clear()
        self.lease = 0

    def told(self, key: bytes) -> str:
        revision, value = self.known.get(key, (0, b""))
        return f"{len(value)} bytes at {revision}"


@dataclass
class Disturber:
    """Compacts and asks for snapshots, so that checkpoints never end."""

    seed: int
    compacted: int = 0
    snapshots: int = 0
    errors: list[Refused] = field(default_factory=list)

    def run(self, port: int, stopped: threading.Event) -> None:
        """Go on until the server is gone."""
        chance = random.Random(self.seed)
        with Client(port) as client:
            while not stopped.is_set():
                try:
                    if chance.random() < 0.7:
                        revision = client.revision() - chance.randrange(30)
                        physical = chance.random() < 0.3
                        asked = {"revision": revision, "physical": physical}
                        client.call("KV/Compact", asked)
                        self.compacted = max(self.compacted, revision)
                    else:
                        for _ in client.stream("Maintenance/Snapshot", [{}]):
                            pass
                        self.snapshots += 1
                except Refused as error:
                    if "compacted" not in error.text:
                        self.errors.append(error)
                        return
                # So often: without a pause it would hold up the writers.
                time.sleep(0.01)

    def verify(self, client: Client) -> None:
        """What was compacted stays so."""
        wrong = [error for error in self.errors if error.code not in UNCERTAIN]
        assert not wrong, f"refused: {wrong[:3]}"
        self.errors.clear()
        if self.compacted > 1:
            with pytest.raises(Refused, match=COMPACTED):
                client.get(b"k", revision=self.compacted - 1)


@contextmanager
def loaded(port: int, workers: list[Writer | Disturber]) -> Iterator[None]:
    """All of them at work; they end with the server."""
    stopped = threading.Event()
    threads = [threading.Thread(target=one.run, args=(port, stopped)) for one in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a call hangs"


def told(client: Client) -> object:
    """What a member says of its state."""
    answer = client.call("Maintenance/HashKV")
    leases = sorted(one["ID"] for one in client.call("Lease/LeaseLeases").get("leases", []))
    return answer["hash"], answer["compact_revision"], client.revision(), leases


def reference(program: Program, data: Path, directory: Path) -> object:
    """What the log alone says; `data` is of a server that does not run."""
    with Server(program, directory) as server:
        shutil.copytree(data, server.data)
        snap = server.data / "member" / "snap"
        for path in {*snap.glob("*.snap"), *snap.glob("db*")}:
            path.unlink()
        server.start()
        with Client(server.port) as client:
            found = told(client)
    shutil.rmtree(directory)
    return found


def test_the_core_is_killed_while_it_writes_checkpoints(program: Program, tmp_path: Path) -> None:
    if not program.is_quorate:
        pytest.skip("etcd's log is not kept whole")
    start = seed()
    print(f"QUORATE_SEED={start}")
    chance, left, saved, acknowledged = random.Random(start), depth(5, 200), 0, 0
    while left > 0:
        kills = min(left, KILLS)
        left -= kills
        directory = tmp_path / f"server{left}"
        with Server(program, directory, *FLAGS) as server:
            server.start()
            acknowledged += kill_often(server, chance, kills, tmp_path / "reference")
            saved += sum(line.get("msg") == "saved a checkpoint" for line in server.logged())
        shutil.rmtree(directory)
    print(f"{acknowledged} calls acknowledged, {saved} checkpoints")
    assert acknowledged > 20, "the load wrote nothing"
    assert saved > 4, "hardly a checkpoint was written"


def kill_often(server: Server, chance: random.Random, kills: int, directory: Path) -> int:
    """The kills of one directory; how many calls were acknowledged."""
    writers = [Writer(f"w{at}", chance.getrandbits(32)) for at in range(3)]
    disturber = Disturber(chance.getrandbits(32))
    revision = 0
    for number in range(kills):
        with loaded(server.port, [*writers, disturber]):
            # A random moment of the load: of writes, or of the checkpoints that they bring.
            time.sleep(chance.choice([0.05, 0.2, 0.6, 1.3]) * chance.random() + 0.05)
            server.kill()
        while chance.random() < 0.3:
            # In the middle of the recovery, or soon after it.
            server.launch()
            time.sleep(0.5 * chance.random())
            server.kill()
        compare = number % 4 == 3
        expected = reference(server.program, server.data, directory) if compare else None
        server.restart()
        with Client(server.port) as client:
            if compare:
                assert told(client) == expected, "the log alone says something else"
            reply = client.get(b"\0", b"\0")
            there = {kv["key"]: kv for kv in reply.get("kvs", [])}
            now = reply["header"]["revision"]
            revision = max(revision, *(writer.revision for writer in writers))
            assert now >= revision, f"revision went back: {revision} acknowledged, now {now}"
            revision = now
            for writer in writers:
                writer.verify(there)
            disturber.verify(client)
    return sum(writer.calls for writer in writers)
