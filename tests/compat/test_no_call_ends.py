"""No call ends a member: not the two that end every etcd, and none of many random ones."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import grpc  # type: ignore[import-untyped]
import pytest
from tests.compat.requests import Call, Requests, ends_any_etcd
from tests.depth import depth, seed
from tests.messages import METHODS, Message, method
from tests.server import Program, Server
from tests.wire import Client, Refused

pytestmark = pytest.mark.compat

BATCH = 50
STREAM_SECONDS = 0.15
CALL_SECONDS = 10.0
# Not answers of a server that is well: the connection broke, or nothing came in time.
BROKEN = {14}
UNIMPLEMENTED = 12
# Lock and Campaign wait for others that never come.
WAIT_SECONDS = 0.2
IN_SCOPE = {
    method(name).path
    for name in (
        *("KV/Range", "KV/Put", "KV/DeleteRange", "KV/Txn", "KV/Compact", "Cluster/MemberList"),
        *("Maintenance/Status", "Maintenance/Alarm", "Maintenance/Defragment", "Maintenance/Hash"),
        *("Maintenance/HashKV", "Health/Check", "Lease/LeaseGrant", "Lease/LeaseRevoke"),
        *("Lease/LeaseTimeToLive", "Lease/LeaseLeases"),
    )
}
FROM_A_ON = {"request_delete_range": {"key": b"a", "range_end": b"\0"}}


@pytest.fixture
def quorate(program: Program) -> None:
    """Skips for etcd, which the calls of such a test end."""
    if not program.is_quorate:
        pytest.skip("this call ends any etcd")


@pytest.mark.parametrize("ignored", ["ignore_value", "ignore_lease"])
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.usefixtures("quorate")
def test_t49_a_put_that_keeps_what_its_txn_deleted(
    ignored: str, level: int, server: Server, client: Client
) -> None:
    client.put(b"b", b"1")
    before = server.identity(), client.revision(), client.all()
    put: Message = {"key": b"b", ignored: True} | ({"value": b"2"} if "lease" in ignored else {})
    ops = [FROM_A_ON, {"request_put": put}]
    for _ in range(level):
        ops = [{"request_txn": {"success": ops}}]
    with pytest.raises(Refused) as error:
        client.txn(success=ops)
    assert (error.value.code, error.value.text) == (3, "etcdserver: key not found")
    assert (server.identity(), client.revision(), client.all()) == before
    server.kill()
    server.restart()
    assert client.all() == before[2]
    assert client.txn(success=[FROM_A_ON, {"request_put": {"key": b"b", "value": b"3"}}])
    assert client.all()[0]["value"] == b"3"


@pytest.mark.parametrize("action", [3, 9, -1, (1 << 31) - 1])
@pytest.mark.usefixtures("quorate")
def test_t50_an_alarm_with_an_unknown_action(action: int, server: Server, client: Client) -> None:
    before = server.identity()
    for member in (0, 1):
        for alarm in (0, 1, 2, 9):
            request = {"action": action, "memberID": member, "alarm": alarm}
            with pytest.raises(Refused) as error:
                client.call("Maintenance/Alarm", request)
            assert error.value.code == 3
    assert server.identity() == before
    client.put(b"k", b"v")


def ask_all(client: Client, calls: list[Call], outcomes: Counter[int]) -> None:
    """Make unary calls side by side and count the statuses."""
    futures = [
        client.start_bytes(
            one.method.path,
            one.data,
            CALL_SECONDS if "etcdserver" in one.method.path else WAIT_SECONDS,
        )
        for one in calls
    ]
    for call, future in zip(calls, futures, strict=True):
        code = future.code().value[0]
        outcomes[code] += 1
        text = f"{call.method.path} {call.message or call.data!r}: {code} {future.details()}"
        assert code not in BROKEN or "etcdserver" in str(future.details()), text


def held_open(messages: list[bytes], done: threading.Event) -> Iterator[bytes]:
    """Those messages, then nothing until the call is over."""
    yield from messages
    done.wait(STREAM_SECONDS)


def stream(client: Client, call: Call, outcomes: Counter[int]) -> None:
    """Open one streaming call, send, and read for a short while."""
    done = threading.Event()
    messages = [call.data] * (2 if call.method.requests_stream else 1)
    requests = held_open(messages, done) if call.method.requests_stream else iter(messages)
    try:
        replies = client.stream_bytes(call.method.path, requests, STREAM_SECONDS)
        outcomes[0] += sum(1 for _ in zip(range(10), replies, strict=False))
    except Refused as error:
        outcomes[error.code] += 1
    finally:
        done.set()


def heal(client: Client) -> None:
    """Undo what random calls may have switched on: alarms, authentication, downgrades."""
    undo: list[tuple[str, Message]] = [
        ("Auth/AuthDisable", {}),
        ("Maintenance/Downgrade", {"action": 2}),
    ]
    alarms = client.call("Maintenance/Alarm", {"action": 0}).get("alarms", [])
    undo += [("Maintenance/Alarm", {"action": 2, **alarm}) for alarm in alarms]
    for name, message in undo:
        with suppress(Refused, grpc.FutureTimeoutError):
            client.call(name, message)


def test_random_requests_end_nothing(server: Server, client: Client, program: Program) -> None:
    start, total = seed(), depth(3000, 100_000)
    print(f"QUORATE_SEED={start}")
    requests, outcomes, asked = Requests(start), Counter[int](), Counter[str]()
    before = server.identity()
    unary: list[Call] = []
    while (made := sum(asked.values())) < total:
        call = requests.next()
        streams = call.method.requests_stream or call.method.replies_stream
        # A stream costs time: one in eight of those drawn is opened.
        if (not program.is_quorate and ends_any_etcd(call)) or (
            streams and requests.random.random() > 0.125
        ):
            continue
        asked[call.method.path] += 1
        if streams:
            stream(client, call, outcomes)
        else:
            unary.append(call)
        if len(unary) == BATCH:
            try:
                ask_all(client, unary, outcomes)
            finally:
                assert not BROKEN & outcomes.keys() or server.healthy(), server.tail(60)
            unary = []
        if made % 500 == 0:
            heal(client)
            requests.sequence.revision = client.revision()
    assert asked.keys() == METHODS.keys() or not program.is_quorate
    assert outcomes[0] > total // 50, outcomes
    check_after(server, client, before)


def check_after(server: Server, client: Client, before: list[tuple[int, str]]) -> None:
    """The processes are the same ones, and what they hold is what a restart reads from the disk."""
    assert server.identity() == before, server.tail()
    heal(client)
    client.put(b"after", b"all")
    held = client.all(), client.call("Maintenance/HashKV")["hash"], client.revision()
    server.signal(signal.SIGKILL)
    server.wait()
    server.restart()
    with Client(server.port) as fresh:
        heal(fresh)
        read = fresh.all(), fresh.call("Maintenance/HashKV")["hash"], fresh.revision()
    assert read == held


def test_each_rpc_is_answered_or_unimplemented(shared_client: Client) -> None:
    """The KV API is there; other RPCs answer, or are `Unimplemented` by name: none is unknown."""
    for path, rpc in METHODS.items():
        if rpc.requests_stream or rpc.replies_stream:
            continue
        waits = "lock" in path or "election" in path
        code = 0
        try:
            shared_client.start_bytes(path, b"", WAIT_SECONDS if waits else CALL_SECONDS).result()
        except grpc.RpcError as error:
            code = error.code().value[0]
        assert code not in BROKEN, path
        assert path not in IN_SCOPE or code != UNIMPLEMENTED, path
