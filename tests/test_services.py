"""Services, admin calls and the worker that carries them, against a fake node."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Awaitable, Callable
from mmap import mmap

import pytest
import trio
import trio.testing

from quorate.api.etcdserverpb import (
    AlarmMember,
    AlarmRequest,
    AlarmRequestAlarmAction,
    AlarmResponse,
    AlarmType,
    DefragmentResponse,
    MemberListRequest,
    MemberListResponse,
    StatusResponse,
)
from quorate.api.grpc.health.v1 import HealthCheckRequest, HealthCheckResponse, HealthListResponse
from quorate.api.grpc.health.v1 import HealthCheckResponseServingStatus as Serving
from quorate.core import fleet
from quorate.core.admin import Alarm, handle
from quorate.core.errors import EtcdError, InvalidAlarmActionError, MalformedError, NoLeaderError
from quorate.core.errors import NotImplementedError as NotBuiltError
from quorate.core.limits import DRAIN_SECONDS_MAX, HEALTH_WATCH_SECONDS
from quorate.core.logs import Logger
from quorate.core.snapshots import Handed
from quorate.frontends.counters import METHOD_FIELDS, RECEIVED_BYTES, STARTED, unpack
from quorate.workers.worker import Command, EventKind, Worker
from tests.fakepump import FIGURES, FakeNode, FakePump, Finished, settle

MAINTENANCE = "/etcdserverpb.Maintenance"
HEALTH = "/grpc.health.v1.Health"
PUT = "/etcdserverpb.KV/Put"
Test = Callable[[Worker, FakePump, FakeNode], Awaitable[None]]


class FakeBell:
    command: int = Command.SERVE


def run(test: Test) -> None:
    """Run a test beside a whole worker on a fake pump; it is drained in the end."""

    async def main() -> None:
        node = FakeNode()
        pump = FakePump(node)
        block = memoryview(mmap(-1, 2048 * 8)).cast("Q")
        bell = FakeBell()
        worker = Worker(pump, bell, block, Logger((log,)), pump.connect())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.serve)
            await settle()
            await test(worker, pump, node)
            bell.command = Command.DRAIN
            worker.wake()
        assert pump.drained
        node.counters = list(block)
        pump.close()

    log = os.open(os.devnull, os.O_WRONLY)
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    os.close(log)


async def call(pump: FakePump, path: str, message: bytes = b"", call_id: int = 1) -> bytes:
    """Make a unary call; answers the reply, or nothing if it was refused."""
    pump.put(EventKind.CALL, call_id, path, [])
    pump.put(EventKind.MESSAGE, call_id, message)
    pump.put(EventKind.HALF_CLOSED, call_id)
    with trio.fail_after(10):
        while call_id not in pump.finished:
            await trio.sleep(0.01)
    return b"".join(data for number, data in pump.sent if number == call_id)


def test_commands_are_those_of_the_fleet() -> None:
    assert {one.name: one.value for one in Command} == {
        one.name: one.value for one in fleet.Command
    }


def test_status() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        status = StatusResponse.parse(await call(pump, f"{MAINTENANCE}/Status"))
        assert pump.finished[1] == (0, "", [])
        assert (status.version, status.storage_version) == ("3.7.1", "3.7.0")
        assert (status.db_size, status.db_size_in_use) == (20480, 16384)
        assert (status.raft_index, status.raft_applied_index, status.raft_term) == (12, 11, 2)
        assert (status.leader, status.errors) == (FIGURES.leader_id, [])
        assert status.header is not None
        assert status.header.revision == 7
        node.now = FIGURES._replace(leader_id=0)
        node.alarms_on = [Alarm(5, 1)]
        status = StatusResponse.parse(await call(pump, f"{MAINTENANCE}/Status", call_id=2))
        assert status.errors == ["etcdserver: no leader", "memberID:5 alarm:NOSPACE"]

    run(test)


def test_members_are_read_linearizably_when_asked() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        path = "/etcdserverpb.Cluster/MemberList"
        members = MemberListResponse.parse(await call(pump, path)).members
        assert (members[0].name, members[0].client_urls) == ("default", ["http://localhost:2379"])
        assert node.reads == 0
        node.read_error = NoLeaderError()
        await call(pump, path, bytes(MemberListRequest(linearizable=True)), 2)
        assert (node.reads, pump.finished[2]) == (1, (14, "etcdserver: no leader", []))

    run(test)


def test_alarms() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        path = f"{MAINTENANCE}/Alarm"
        node.alarms_on = [Alarm(1, 1), Alarm(2, 2)]
        every = AlarmResponse.parse(await call(pump, path))
        assert [alarm.member_id for alarm in every.alarms] == [1, 2]
        corrupt = AlarmRequest(alarm=AlarmType.CORRUPT)
        found = AlarmResponse.parse(await call(pump, path, bytes(corrupt), 2))
        assert found.alarms == [AlarmMember(member_id=2, alarm=AlarmType.CORRUPT)]
        assert (node.reads, node.proposed) == (2, [])
        activate = bytes(AlarmRequest(action=AlarmRequestAlarmAction.ACTIVATE, member_id=3))
        changed = AlarmResponse.parse(await call(pump, path, activate, 3))
        assert (len(changed.alarms), node.proposed) == (1, [activate])

    run(test)


def test_an_unknown_alarm_action_never_reaches_the_log() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        await call(pump, f"{MAINTENANCE}/Alarm", b"\x08\x09")
        assert pump.finished[1] == (3, "etcdserver: invalid alarm action", [])
        assert (node.proposed, pump.asked) == ([], [])

    run(test)
    # A worker that lets it pass is not believed.
    assert isinstance(answers(3, b"\x08\x09")[0], InvalidAlarmActionError)


def answers(
    number: int, payload: bytes, node: FakeNode | None = None
) -> list[bytes | Handed | EtcdError]:
    found: list[bytes | Handed | EtcdError] = []
    handle(node or FakeNode(), number, payload, found.append)
    return found


def test_the_core_answers_nonsense_with_an_error() -> None:
    assert isinstance(answers(99, b"")[0], NotBuiltError)
    for number, payload in ((2, b"\x08"), (3, b"\xff"), (5, b"2"), (5, b"")):
        assert isinstance(answers(number, payload)[0], MalformedError), (number, payload)


def test_the_core_never_waits() -> None:
    node = FakeNode()
    node.hung = True
    assert answers(5, b"1", node) == []
    assert json.loads(bytes(answers(5, b"0", node)[0])) == {  # type: ignore[arg-type]
        "leader": True,
        "learner": False,
        "alarms": [],
    }


def test_defragment() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        reply = DefragmentResponse.parse(await call(pump, f"{MAINTENANCE}/Defragment"))
        assert reply.header is not None
        assert reply.header.member_id == FIGURES.member_id

    run(test)


def test_health_check_and_list() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        assert await call(pump, f"{HEALTH}/Check") == b"\x08\x01"
        unknown = bytes(HealthCheckRequest(service="kv"))
        await call(pump, f"{HEALTH}/Check", unknown, 2)
        assert pump.finished[2] == (5, "unknown service", [])
        listed = HealthListResponse.parse(await call(pump, f"{HEALTH}/List", call_id=3))
        assert {name: one.status for name, one in listed.statuses.items()} == {"": Serving.SERVING}
        node.now = FIGURES._replace(leader_id=0)
        assert await call(pump, f"{HEALTH}/Check", call_id=4) == b"\x08\x02"

    run(test)


def test_health_watch_tells_changes_only() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        pump.put(EventKind.CALL, 1, f"{HEALTH}/Watch", [])
        pump.put(EventKind.MESSAGE, 1, b"")
        await trio.sleep(5 * HEALTH_WATCH_SECONDS)
        assert pump.sent == [(1, b"\x08\x01")]
        node.now = FIGURES._replace(leader_id=0)
        await trio.sleep(2 * HEALTH_WATCH_SECONDS)
        node.now = FIGURES
        await trio.sleep(2 * HEALTH_WATCH_SECONDS)
        told = [HealthCheckResponse.parse(data).status for _, data in pump.sent]
        assert told == [Serving.SERVING, Serving.NOT_SERVING, Serving.SERVING]
        assert pump.finished == {}

    run(test)


def test_a_worker_drains_when_told() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        assert pump.accepting
        node.hung = True
        request = bytes(MemberListRequest(linearizable=True))
        pump.put(EventKind.CALL, 1, "/etcdserverpb.Cluster/MemberList", [])
        pump.put(EventKind.MESSAGE, 1, request)
        pump.put(EventKind.CALL, 2, f"{HEALTH}/Watch", [])
        pump.put(EventKind.MESSAGE, 2, b"")
        await trio.sleep(0.1)
        assert worker.calls.replies_due == 1
        pumps.append(pump)

    pumps: list[FakePump] = []
    run(test)
    stopped = Finished(14, "etcdserver: server stopped", [])
    assert pumps[0].finished == {1: stopped, 2: stopped}
    assert pumps[0].canceled != []


def test_a_command_that_rings_as_a_turn_begins_is_not_missed() -> None:
    """Seen with the real pump: the turn emptied the doorbell after the command was looked at."""

    async def main() -> None:
        pump = FakePump(FakeNode())
        bell = FakeBell()
        worker = Worker(pump, bell, memoryview(mmap(-1, 2048 * 8)).cast("Q"), Logger(()))

        def ring() -> None:
            bell.command = Command.DRAIN
            os.eventfd_write(pump.fd, 1)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.serve)
                await settle()
                pump.before_turn = ring
                os.eventfd_write(pump.fd, 1)
        pump.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_drain_without_calls_is_quick_and_bounded_with_them() -> None:
    for hangs in (False, True):
        times: list[float] = []

        async def main(hangs: bool = hangs, times: list[float] = times) -> None:
            pump = FakePump(FakeNode())
            bell = FakeBell()
            block = memoryview(mmap(-1, 2048 * 8)).cast("Q")
            worker = Worker(pump, bell, block, Logger(()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.serve)
                await settle()
                pump.idle = not hangs
                pump.put(EventKind.CALL, 1, f"{HEALTH}/Watch", [])
                await settle()
                bell.command = Command.DRAIN
                worker.wake()
                times.append(trio.current_time())
                await settle()
                # A stream may never end by itself, so it is ended at once.
                assert pump.finished == {1: (14, "etcdserver: server stopped", [])}
            times.append(trio.current_time())
            pump.close()

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        assert times[1] - times[0] == pytest.approx(DRAIN_SECONDS_MAX if hangs else 0.0)


def test_http1_connections_are_served_on_the_handed_over_descriptor() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        ours, theirs = socket.socketpair()
        pump.put(EventKind.HTTP1, theirs.detach(), b"GET /health HTTP/1.1\r\nHost: x\r\n")
        client = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        await client.send_all(b"Connection: close\r\n\r\n")
        answer = b""
        while data := await client.receive_some():
            answer += data
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b'{"health":"true","reason":""}')
        assert node.reads == 1
        await client.aclose()

    run(test)


def test_a_worker_publishes_its_own_and_the_pumps_counters() -> None:
    block = fleet.counter_block()

    async def main() -> None:
        pump = FakePump(FakeNode())
        bell = FakeBell()
        worker = Worker(pump, bell, block, Logger(()))
        counts = [0] * METHOD_FIELDS
        counts[STARTED] = 41
        pump.counted.methods[PUT] = counts
        pump.counted.named[RECEIVED_BYTES] = 1000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.serve)
            await call(pump, f"{MAINTENANCE}/Status")
            bell.command = Command.DRAIN
            worker.wake()
        pump.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    found = unpack(block)
    assert found.methods[PUT][STARTED] == 41
    assert found.methods[f"{MAINTENANCE}/Status"][STARTED] == 1
    assert found.named[RECEIVED_BYTES] == 1000
