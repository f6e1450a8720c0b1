"""What befalls a server, and its leases: kill -9 under load, jumps of the time of day, standstills.

What was revoked stays revoked, and what was granted does not end early.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
from tests.crash.preload import Words, build
from tests.depth import depth, seed
from tests.http2 import Raw, grpc_headers, prefixed
from tests.messages import encode
from tests.server import Program, Server
from tests.wire import Client, Refused

pytestmark = pytest.mark.crash

TTL_SECONDS = 8
CLIENTS = 4
# What a busy machine may add to the end of a lease.
LATE_SECONDS = 4.0


@dataclass
class Ledger:
    """What the clients know of their leases; each lease belongs to one client."""

    granted: set[int] = field(default_factory=set)  # acknowledged, with its key
    revoked: set[int] = field(default_factory=set)  # acknowledged
    unsure: set[int] = field(default_factory=set)  # asked to be revoked, not answered


def key_of(lease: int) -> bytes:
    return b"lease/%d" % lease


def work(port: int, ledger: Ledger, first: int) -> None:
    """Grant, put, keep alive, revoke every third, until the server is gone."""
    with Client(port) as client, suppress(Refused, grpc.FutureTimeoutError):
        for lease in range(first, first + 100_000):
            client.call("Lease/LeaseGrant", {"ID": lease, "TTL": TTL_SECONDS})
            client.put(key_of(lease), b"v", lease=lease)
            ledger.granted.add(lease)
            replies = client.stream("Lease/LeaseKeepAlive", [{"ID": lease}])
            assert [reply.get("TTL", 0) for reply in islice(replies, 1)] == [TTL_SECONDS]
            if lease % 3 == 0:
                ledger.unsure.add(lease)
                client.call("Lease/LeaseRevoke", {"ID": lease})
                ledger.revoked.add(lease)


def living(client: Client) -> set[int]:
    """The leases that are there, which are those that have keys."""
    leases = {one["ID"] for one in client.call("Lease/LeaseLeases").get("leases", [])}
    for kv in client.get(b"lease/", b"lease0").get("kvs", []):
        assert kv["lease"] in leases, f"{kv!r} outlives its lease"
    return leases


def test_the_core_is_killed_under_lease_load(server: Server) -> None:
    start = seed()
    print(f"QUORATE_SEED={start}")
    chance, number = random.Random(start), 1
    for _ in range(depth(1, 40)):
        ledger, threads = Ledger(), []
        begun = time.monotonic()
        for at in range(CLIENTS):
            first = number + at * 1_000_000
            threads.append(threading.Thread(target=work, args=(server.port, ledger, first)))
            threads[-1].start()
        # A random moment of the load.
        time.sleep(0.2 + chance.random())
        server.kill()
        killed = time.monotonic()
        assert killed - begun < TTL_SECONDS
        for thread in threads:
            thread.join()
        number += CLIENTS * 1_000_000
        server.launch()
        launched = time.monotonic()
        server.wait_ready()
        ready = time.monotonic()
        with Client(server.port) as client:
            found = living(client)
            assert time.monotonic() - launched < TTL_SECONDS, "too slow to judge"
            assert ledger.granted, "the load granted nothing"
            assert not ledger.revoked & found, "revoked leases came back"
            assert ledger.granted - ledger.unsure <= found, "leases ended early"
            for lease in ledger.granted - ledger.unsure:
                assert client.get(key_of(lease))["count"] == 1
            assert time.monotonic() - launched < TTL_SECONDS, "too slow to judge"
            end = ready + TTL_SECONDS + LATE_SECONDS
            while living(client):
                assert time.monotonic() < end, "leases outlive their time"
                # Asked, not watched: a watch is not what is tested.
                time.sleep(0.05)
            assert client.get(b"lease/", b"lease0").get("count", 0) == 0


# --- time -----------------------------------------------------------------------------------------

HOUR = 3600
DAY = 24 * HOUR
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


@pytest.mark.parametrize("hours", [1, -1])
def test_t14_a_jump_of_the_time_of_day_ends_no_lease_early_or_late(
    hours: int, program: Program, tmp_path: Path
) -> None:
    """Leases are measured by a clock that never goes back or jumps."""
    if not program.is_quorate:
        pytest.skip("etcd's clock can't be replaced")
    shift = Words(tmp_path / "control", -2 * DAY)
    library = build("clock.c", tmp_path)
    with Server(program, tmp_path / "server", "--election-timeout=500") as server:
        server.environment = {"LD_PRELOAD": str(library), "CLOCK_CONTROL": str(shift.path)}
        server.start()
        yesterday = datetime.now(UTC) - timedelta(days=1)
        said = str(server.logged()[0]["ts"])
        assert said < yesterday.isoformat(), "the time of day is not replaced"
        with Client(server.port) as client:
            before = time.monotonic()
            for lease, ttl in ((5, 1), (6, 100)):
                client.call("Lease/LeaseGrant", {"ID": lease, "TTL": ttl})
                client.put(key_of(lease), b"v", lease=lease)
            granted = time.monotonic()
            shift[0] += hours * HOUR
            while client.get(key_of(5)).get("count", 0):
                assert time.monotonic() < granted + 1 + LATE_SECONDS, "a lease lasts"
                time.sleep(0.005)
            assert time.monotonic() - before >= 1, "a lease ended early"
            left = client.call("Lease/LeaseTimeToLive", {"ID": 6})["TTL"]
            assert 90 <= left < 100


@pytest.mark.slow
def test_t13_a_standstill_of_all_processes_ends_no_lease_that_is_kept_alive(
    program: Program, tmp_path: Path
) -> None:
    """The keep-alive came while nobody could read it, and the core is the first to go on: it used
    to revoke the lease before a worker had read from its sockets."""
    if not program.is_quorate:
        pytest.skip("etcd revokes it or not, as it happens")
    with Server(program, tmp_path / "server", "--election-timeout=500") as server:
        server.start()
        with Client(server.port) as client, Raw(server.port) as raw:
            for lease in (5, 6):
                client.call("Lease/LeaseGrant", {"ID": lease, "TTL": 1})
                client.put(key_of(lease), b"v", lease=lease)
            stream = raw.open(grpc_headers(KEEP_ALIVE))
            raw.drain(0.1)
            stopped = [server.pid, *server.workers()]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                raw.body(stream, prefixed(encode("LeaseKeepAliveRequest", {"ID": 5})))
                time.sleep(2)  # the leases' own second has to go by, and more
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
                    time.sleep(0.2)  # each of them may have to wait for a processor
            assert raw.wait(stream).data.endswith(b"\x18\x01"), "the lease was revoked"
            assert client.get(key_of(5))["count"] == 1
            resumed = time.monotonic()
            while client.get(b"lease/", b"lease0").get("count", 0):
                assert time.monotonic() < resumed + 2 + LATE_SECONDS, "the leases last"
                time.sleep(0.005)
