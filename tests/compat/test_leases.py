"""Leases as their users see them: etcdctl, time, pauses, restarts, and directories that change
hands between etcd and quorate."""

from __future__ import annotations

import re
import struct
import subprocess
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from tests.compat.test_etcdctl import Etcdctl
from tests.http2 import Raw, grpc_headers, prefixed
from tests.messages import Message, decode, encode
from tests.needs import need
from tests.server import Program, Server
from tests.wire import Client, Refused

from quorate.core.main import LEASE_TICK_MILLISECONDS

pytestmark = pytest.mark.compat

KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
# A lease may go so much later than it is due: the tick, a sync, and a busy machine's delay.
LATE_SECONDS = LEASE_TICK_MILLISECONDS / 1000 + 1.0


def grant(client: Client, lease: int, ttl: int) -> Message:
    return client.call("Lease/LeaseGrant", {"ID": lease, "TTL": ttl})


def keep_alive(client: Client, *leases: int) -> list[int]:
    """The TTLs that one stream is answered."""
    replies = client.stream("Lease/LeaseKeepAlive", [{"ID": lease} for lease in leases])
    return [reply.get("TTL", 0) for reply in islice(replies, len(leases))]


def left(client: Client, lease: int) -> int:
    return int(client.call("Lease/LeaseTimeToLive", {"ID": lease}).get("TTL", 0))


def wait_gone(client: Client, key: bytes, seconds: float) -> float:
    """When the key was gone."""
    end = time.monotonic() + seconds
    while client.get(key).get("count", 0):
        assert time.monotonic() < end, "the lease does not run out"
        time.sleep(0.005)
    return time.monotonic()


def test_etcdctl_says_of_leases_what_it_says_of_etcds(server: Server) -> None:
    ctl = Etcdctl(server)

    def out(*words: str) -> str:
        code, text, complaints = ctl.run(*words)
        assert code == 0, complaints
        return text.decode()

    found = re.fullmatch(
        r"lease ([0-9a-f]{16}) granted with TTL\(60s\)\n", out("lease", "grant", "60")
    )
    assert found
    lease = found[1]
    out("put", "--lease", lease, "b", "1")
    out("put", "--lease", lease, "a", "1")
    assert out("lease", "list") == f"found 1 leases\n{lease}\n"
    text = out("lease", "timetolive", lease, "--keys")
    assert re.fullmatch(
        rf"lease {lease} granted with TTL\(60s\), remaining\((5\d|60)s\), "
        r"attached keys\(\[(a b|b a)\]\)\n",
        text,
    )
    assert out("lease", "keep-alive", "--once", lease) == f"lease {lease} keepalived with TTL(60)\n"
    assert out("lease", "revoke", lease) == f"lease {lease} revoked\n"
    assert out("lease", "timetolive", lease) == f"lease {lease} already expired\n"
    assert out("get", "", "--prefix") == ""
    code, _, complaints = ctl.run("lease", "revoke", lease)
    assert code != 0
    assert b"etcdserver: requested lease not found" in complaints
    code, _, complaints = ctl.run("lease", "keep-alive", "--once", lease)
    assert code != 0
    assert b"etcdserver: requested lease not found" in complaints


def test_etcdctl_keeps_a_lease_alive(server: Server, client: Client) -> None:
    """Over one stream, for longer than the lease would live by itself."""
    grant(client, 0x77, 2)
    client.put(b"k", b"v", lease=0x77)
    command = [need("etcdctl"), f"--endpoints=127.0.0.1:{server.port}", "lease", "keep-alive", "77"]
    with subprocess.Popen(
        command, env={"ETCDCTL_API": "3"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as keeper:
        try:
            assert keeper.stdout is not None
            for _ in range(6):
                line = keeper.stdout.readline()
                assert line == b"lease 0000000000000077 keepalived with TTL(2)\n"
            assert client.get(b"k")["count"] == 1
        finally:
            keeper.kill()
    wait_gone(client, b"k", 10)


def test_t13_a_lease_lives_as_long_as_it_was_granted(client: Client, program: Program) -> None:
    before = time.monotonic()
    grant(client, 5, 2)
    granted = time.monotonic()
    client.put(b"k", b"v", lease=5)
    gone = wait_gone(client, b"k", 10)
    assert gone - before >= 2.0
    assert not program.is_quorate or gone - granted <= 2.0 + LATE_SECONDS
    assert client.call("Lease/LeaseLeases").get("leases", []) == []
    assert keep_alive(client, 5) == [0]


def test_t13_a_pause_of_the_server_ends_no_lease_that_is_kept_alive(
    server: Server, client: Client, program: Program
) -> None:
    """Its keep-alive was there when the server went on, so the lease was not given up."""
    if not program.is_quorate:
        pytest.skip("etcd may revoke first")
    grant(client, 5, 2)
    client.put(b"k", b"v", lease=5)
    with Raw(server.port) as raw:
        stream = raw.open(grpc_headers(KEEP_ALIVE))
        raw.body(stream, prefixed(encode("LeaseKeepAliveRequest", {"ID": 77})), end=False)
        raw.drain(0.2)
        server.pause()
        try:
            raw.body(stream, prefixed(encode("LeaseKeepAliveRequest", {"ID": 5})))
            time.sleep(3)  # the lease's own two seconds have to go by
        finally:
            server.resume()
        answer = raw.wait(stream)
    assert [reply.get("TTL", 0) for reply in messages(answer.data)] == [0, 2]
    assert client.get(b"k")["count"] == 1


def test_a_restart_ends_no_lease_early(server: Server) -> None:
    with Client(server.port) as client:
        grant(client, 5, 3)
        grant(client, 6, 600)
        client.put(b"k", b"v", lease=5)
        client.put(b"l", b"v", lease=6)
        grant(client, 7, 600)
        client.call("Lease/LeaseRevoke", {"ID": 7})
        time.sleep(1)  # of the three seconds that the lease has
    server.kill()
    server.launch()
    launched = time.monotonic()
    server.wait_ready()
    with Client(server.port) as client:
        assert sorted(one["ID"] for one in client.call("Lease/LeaseLeases").get("leases", [])) == [
            5,
            6,
        ]
        assert client.get(b"k")["count"] == 1
        assert wait_gone(client, b"k", 12) - launched >= 3
        assert 590 <= left(client, 6) <= 601  # etcd adds an election
        reply = client.call("Lease/LeaseTimeToLive", {"ID": 6, "keys": True})
        assert reply["keys"] == [b"l"]


@pytest.mark.parametrize("etcd_first", [True, False])
def test_a_directory_with_leases_changes_hands(
    etcd_first: bool, program: Program, debian_etcd: Program, tmp_path: Path
) -> None:
    """What one wrote of leases, revokes and keys the other reads, goes on with, and gives back."""
    order = [debian_etcd, program] if etcd_first else [program, debian_etcd]
    with Server(order[0], tmp_path / "one") as server:
        server.start()
        with Client(server.port) as client:
            for lease in (1, 2, -3, 4):
                grant(client, lease, 500 + lease)
            for at in range(10):
                client.put(b"k%d" % at, b"v", lease=(1, 2, -3)[at % 3])
            client.put(b"k0", b"moved", lease=2)
            client.call("Lease/LeaseRevoke", {"ID": -3})
            grant(client, 9, 2)
            client.put(b"short", b"v", lease=9)
            wait_gone(client, b"short", 10)
            before = states(client)
        for other in (order[1], order[0]):
            server.kill()
            server.program = other
            server.start()
            with Client(server.port) as client:
                assert states(client) == before
                client.put(b"k1", b"again", lease=4)
                client.call("Lease/LeaseRevoke", {"ID": 1})
                grant(client, 1, 700)
                before = states(client)


def states(client: Client) -> tuple[list[Message], list[tuple[int, int, list[bytes]]], int]:
    """All keys, all leases with their keys, and the hash."""
    leases = []
    for one in client.call("Lease/LeaseLeases").get("leases", []):
        reply = client.call("Lease/LeaseTimeToLive", {"ID": one["ID"], "keys": True})
        leases.append((one["ID"], reply["grantedTTL"], sorted(reply.get("keys", []))))
    return client.all(), sorted(leases), client.call("Maintenance/HashKV")["hash"]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "request_", "code", "text"),
    [
        ("LeaseGrant", {"ID": 5, "TTL": 9_000_000_001}, 11, "etcdserver: too large lease TTL"),
        ("LeaseGrant", {"ID": 5, "TTL": (1 << 63) - 1}, 11, "etcdserver: too large lease TTL"),
        ("LeaseRevoke", {"ID": 0}, 5, "etcdserver: requested lease not found"),
        ("LeaseRevoke", {"ID": -1}, 5, "etcdserver: requested lease not found"),
    ],
)
def test_bad_requests_get_etcds_words(
    name: str, request_: Message, code: int, text: str, shared_client: Client
) -> None:
    with pytest.raises(Refused) as error:
        shared_client.call(f"Lease/{name}", request_)
    assert (error.value.code, error.value.text) == (code, text)


def test_ids_and_times_at_their_ends(client: Client) -> None:
    for lease, ttl in ((-1, 100), (-(1 << 63), 0), ((1 << 63) - 1, -5), (1, 9_000_000_000)):
        reply = grant(client, lease, ttl)
        assert (reply["ID"], reply["TTL"]) == (lease, max(ttl, 2))
        with pytest.raises(Refused) as error:
            grant(client, lease, ttl)
        assert error.value.text == "etcdserver: lease already exists"
    chosen = {client.call("Lease/LeaseGrant", {"TTL": 60})["ID"] for _ in range(20)}
    assert len(chosen) == 20
    assert min(chosen) > 0
    assert keep_alive(client, 0, -1, 77, 1) == [0, 100, 0, 9_000_000_000]


def test_requests_after_the_end_and_halves(shared_server: Server) -> None:
    """A malformed keep-alive ends its stream as grpc-go ends it, and nothing else."""
    with Raw(shared_server.port) as raw:
        answer = raw.ask(grpc_headers(KEEP_ALIVE), prefixed(b"\x0a\x7fk"))
        assert answer.status == 13
        answer = raw.ask(grpc_headers(KEEP_ALIVE), prefixed(b"\x08\x01")[:-1])
        assert answer.status in {2, 13}
        answer = raw.ask(grpc_headers(KEEP_ALIVE), b"")
        assert (answer.status, answer.data) == (0, b"")
        answer = raw.ask(grpc_headers(KEEP_ALIVE), prefixed(b"\x08\x63") * 3)
        assert answer.status == 0
        assert [reply["ID"] for reply in messages(answer.data)] == [99, 99, 99]


def messages(data: bytes) -> Iterator[Message]:
    """The replies of a stream."""
    while data:
        (size,) = struct.unpack_from("!I", data, 1)
        yield decode("LeaseKeepAliveResponse", data[5 : 5 + size])
        data = data[5 + size :]


def test_a_flood_that_reads_nothing_harms_nobody(server: Server, client: Client) -> None:
    """The window of such a stream is used up; others are answered, and memory stays where it is."""
    if not server.program.is_quorate:
        pytest.skip("what etcd holds for such a client is its own matter")
    grant(client, 5, 600)
    before = server.memory()
    one = prefixed(encode("LeaseKeepAliveRequest", {"ID": 5}))
    with Raw(server.port, credit=False) as raw:
        for _ in range(20):
            stream = raw.open(grpc_headers(KEEP_ALIVE))
            raw.body(stream, one * 15_000, end=False)
        begun = time.monotonic()
        for at in range(50):
            client.put(b"k%d" % at, b"v")
        assert time.monotonic() - begun < 5
        assert server.memory() - before < 64 << 20
    assert keep_alive(client, 5) == [600]
    assert server.healthy()
