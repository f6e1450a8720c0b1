"""Maintenance.Hash of one directory, asked of etcd and of quorate in turns: it is the same.

What it is of, and where it cannot be the same: docs/migrate.md.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.compat.test_moving import KEYS, USED, other
from tests.depth import depth, seed
from tests.polling import wait_until
from tests.server import Program, Server
from tests.wire import Client

from quorate.core.version import STORAGE_VERSIONS

pytestmark = pytest.mark.compat

__all__ = ["other"]


def hashed(server: Server) -> int:
    with Client(server.port) as client:
        found: int = client.call("Maintenance/Hash")["hash"]
        return found


def write(server: Server, chance: random.Random, calls: int) -> int:
    """Write, delete, lease and compact; the answer is the hash afterwards.

    Compacted is at revisions of puts: of a deletion at the very revision 3.4.23 and 3.5.1 keep
    nothing, later releases keep the tombstone.
    """
    with Client(server.port) as client:
        for number in range(calls):
            key, lease = chance.choice(KEYS), chance.randrange(1, 1 << 40)
            dice = chance.random()
            if dice < 0.2:
                client.delete(key, key + b"5" if dice < 0.1 else b"")
            elif dice < 0.4:
                client.call("Lease/LeaseGrant", {"ID": lease, "TTL": 5000})
                client.put(key, b"leased", lease=lease)
            elif dice < 0.5:
                puts = [{"request_put": {"key": one, "value": b"txn"}} for one in KEYS[:3]]
                client.call("KV/Txn", {"success": puts})
            revision = client.put(key, chance.randbytes(300))["header"]["revision"]
            if number % 40 == 20:
                client.call("KV/Compact", {"revision": revision, "physical": True})
    return hashed(server)


def has_version(server: Server) -> bool:
    """etcd says by an entry of its own, some time after its first start, what its cluster is."""
    version: str = json.loads(server.http("GET", "/version")[2])["etcdcluster"]
    return version.startswith(release(server.program))


def has_checkpoint(server: Server) -> bool:
    return any(line.get("msg") == "saved a checkpoint" for line in server.logged())


def release(program: Program) -> str:
    return f"{program.version[0]}.{program.version[1]}"


@pytest.mark.parametrize("other", ["debian_etcd", "newer_etcd"], indirect=True)
@pytest.mark.parametrize("how", ["checkpoint", "log"][: depth(1, 2)])
def test_etcd_and_quorate_have_the_same(
    how: str, program: Program, other: Program, tmp_path: Path
) -> None:
    chance = random.Random(start := seed())
    print(f"QUORATE_SEED={start}")
    kept_for = max(release(other), min(STORAGE_VERSIONS))
    with (
        Server(other, tmp_path / "etcd") as theirs,
        Server(program, tmp_path / "quorate", *USED, "--storage-version", kept_for) as ours,
    ):
        ours.data = theirs.data
        theirs.start()
        wait_until(lambda: has_version(theirs), "version")
        found = write(theirs, chance, 50)
        theirs.stop()
        assert hashed(ours.start()) == found, "of a directory that only etcd has written"
        if how == "log":
            found = write(ours, chance, 20)
            assert not has_checkpoint(ours)
            ours.kill()
        else:
            write(ours, chance, 60)
            wait_until(lambda: has_checkpoint(ours), "checkpoint")
            found = hashed(ours)
            ours.stop()
        theirs.start()
        # What quorate's file still has of compacted revisions, etcd removes after its start.
        wait_until(lambda: hashed(theirs) == found, f"hash {found}")
