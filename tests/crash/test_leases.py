"""kill -9 under lease load: what was revoked stays revoked, what was granted does not end early."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import grpc  # type: ignore[import-untyped]
import pytest
from tests.depth import depth, seed
from tests.server import Server
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
    for _ in range(depth(2, 40)):
        ledger, threads = Ledger(), []
        begun = time.monotonic()
        for at in range(CLIENTS):
            first = number + at * 1_000_000
            threads.append(threading.Thread(target=work, args=(server.port, ledger, first)))
            threads[-1].start()
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
                time.sleep(0.05)
            assert client.get(b"lease/", b"lease0").get("count", 0) == 0
