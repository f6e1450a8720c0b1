"""Calls with Python handlers, over a pump in memory and a clock that jumps."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from quorate.api.etcdserverpb import (
    AlarmRequest,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    MemberAddRequest,
    MemberAddResponse,
    MemberListRequest,
    MemberListResponse,
    StatusRequest,
    StatusResponse,
)
from quorate.api.etcdserverpb.services import ClusterBase, LeaseBase, MaintenanceBase
from quorate.core.admincalls import AdminCall
from quorate.core.errors import EtcdError, MemberNotFoundError, TimeoutError, TooManyRequestsError
from quorate.core.limits import (
    ASKS_MAX,
    CALL_SEND_BYTES_HIGH,
    PYTHON_CALL_MESSAGES_MAX,
    PYTHON_CALLS_MAX,
    REQUEST_SECONDS_DEFAULT,
)
from quorate.core.logs import Logger
from quorate.frontends.counters import HANDLED, RECEIVED, SENT, STARTED, Counters
from quorate.workers.calls import Calls, Core, parse_timeout
from tests.fakepump import FakePump, settle

STATUS = "/etcdserverpb.Maintenance/Status"
LIST = "/etcdserverpb.Cluster/MemberList"
ADD = "/etcdserverpb.Cluster/MemberAdd"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
Test = Callable[[Calls, FakePump], Awaitable[None]]


class Maintenance(MaintenanceBase):
    async def status(self, message: StatusRequest) -> StatusResponse:
        await trio.sleep(1)
        return StatusResponse(version="late")


class Cluster(ClusterBase):
    async def member_list(self, message: MemberListRequest) -> MemberListResponse:
        if message.linearizable:
            raise MemberNotFoundError
        raise ZeroDivisionError("a bug")

    async def member_add(self, message: MemberAddRequest) -> MemberAddResponse:
        raise GRPCError(Status.ABORTED, "as it is")


class Lease(LeaseBase):
    async def lease_keep_alive(
        self, messages: AsyncIterator[LeaseKeepAliveRequest]
    ) -> AsyncIterator[LeaseKeepAliveResponse]:
        async for message in messages:
            yield LeaseKeepAliveResponse(id=message.id)


def run(test: Test) -> None:
    """Run a test with the three services above."""

    async def main() -> None:
        pump = FakePump()
        async with trio.open_nursery() as nursery:
            handlers = {}
            for service in (Maintenance(), Cluster(), Lease()):
                handlers.update(service.__mapping__())
            counters = Counters()
            logger = Logger((log,))
            calls = Calls(pump, handlers, nursery, lambda: None, counters, logger)
            await test(calls, pump)
            nursery.cancel_scope.cancel()
        assert len(calls) == 0
        pump.close()

    log = os.open(os.devnull, os.O_WRONLY)
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    os.close(log)


def test_a_unary_call_is_answered_and_counted() -> None:
    async def test(calls: Calls, pump: FakePump) -> None:
        calls.on_call(1, STATUS, [("user-agent", "me")])
        await settle()
        assert pump.sent == []
        calls.on_message(1, b"")
        calls.on_half_closed(1)
        await trio.sleep(2)
        assert pump.sent == [(1, bytes(StatusResponse(version="late")))]
        assert pump.finished == {1: (0, "", [])}
        counts = calls.counters.methods[STATUS]
        assert (counts[STARTED], counts[RECEIVED], counts[SENT], counts[HANDLED]) == (1, 1, 1, 1)

    run(test)


@pytest.mark.parametrize(
    ("path", "message", "status", "text"),
    [
        (LIST, b"\x08\x01", 5, "etcdserver: member not found"),
        (ADD, b"", 10, "as it is"),
        (LIST, b"", 13, "quorate: internal error; the server's log says more"),
        (LIST, b"\x08", 13, "grpc: error unmarshalling request: proto: cannot parse invalid wire-"
         "format data"),
        ("/etcdserverpb.Cluster/MemberRemove", b"", 12, "etcdserver: not implemented"),
        ("/v3lockpb.Lock/Lock", b"", 12, "etcdserver: not implemented"),
        ("/etcdserverpb.KV/Nope", b"", 12, "unknown method Nope for service etcdserverpb.KV"),
        ("/nope.Nope/X", b"", 12, "unknown service nope.Nope"),
        ("/Put", b"", 12, 'malformed method name: "/Put"'),
        ("a/b", b"", 12, 'malformed method name: "a/b"'),
    ],
)  # fmt: skip
def test_errors_end_only_their_own_call(path: str, message: bytes, status: int, text: str) -> None:
    async def test(calls: Calls, pump: FakePump) -> None:
        calls.on_call(1, KEEP_ALIVE, [])
        calls.on_call(2, path, [])
        calls.on_message(2, message)
        calls.on_half_closed(2)
        await settle()
        assert pump.finished == {2: (status, text, [])}
        calls.on_message(1, bytes(LeaseKeepAliveRequest(id=5)))
        await settle()
        assert pump.sent == [(1, bytes(LeaseKeepAliveResponse(id=5)))]

    run(test)


def test_a_call_without_a_message_ends_as_in_grpc_go() -> None:
    async def test(calls: Calls, pump: FakePump) -> None:
        calls.on_call(1, STATUS, [])
        calls.on_half_closed(1)
        await settle()
        assert pump.finished == {1: (2, "EOF", [])}

    run(test)


def test_a_stream_echoes_until_it_is_closed() -> None:
    async def test(calls: Calls, pump: FakePump) -> None:
        calls.on_call(1, KEEP_ALIVE, [])
        for number in (1, 2, 3):
            calls.on_message(1, bytes(LeaseKeepAliveRequest(id=number)))
        calls.on_half_closed(1)
        await settle()
        assert [message for _, message in pump.sent] == [
            bytes(LeaseKeepAliveResponse(id=number)) for number in (1, 2, 3)
        ]
        assert pump.finished == {1: (0, "", [])}

    run(test)


def test_a_handler_waits_for_a_slow_client() -> None:
    async def test(calls: Calls, pump: FakePump) -> None:
        pump.waiting = CALL_SEND_BYTES_HIGH + 1
        calls.on_call(1, KEEP_ALIVE, [])
        for _ in range(3):
            calls.on_message(1, b"")
        for sent in (1, 2, 3):
            await settle()
            assert len(pump.sent) == sent
            calls.on_drained(1)
        calls.on_drained(7)

    run(test)


def test_the_deadline_ends_a_call() -> None:
    async def test(calls: Calls, pump: FakePump) -> None:
        calls.on_call(1, STATUS, [("grpc-timeout", "500m")])
        calls.on_message(1, b"")
        await trio.sleep(0.49)
        assert pump.finished == {}
        await trio.sleep(0.02)
        assert pump.finished == {1: (4, "context deadline exceeded", [])}
        await trio.sleep(5)
        assert pump.sent == []

    run(test)


def test_after_a_reset_nothing_is_sent() -> None:
    async def test(calls: Calls, pump: FakePump) -> None:
        calls.on_call(1, STATUS, [])
        calls.on_message(1, b"")
        await trio.sleep(0.5)
        calls.on_reset(1)
        await trio.sleep(5)
        assert (pump.sent, pump.finished, len(calls)) == ([], {}, 0)
        calls.on_message(1, b"")
        calls.on_half_closed(1)
        calls.on_reset(1)

    run(test)


def test_a_client_far_ahead_of_the_handler_loses_the_call() -> None:
    async def test(calls: Calls, pump: FakePump) -> None:
        calls.on_call(1, STATUS, [])
        for _ in range(PYTHON_CALL_MESSAGES_MAX):
            calls.on_message(1, b"")
        assert pump.finished == {}
        calls.on_message(1, b"")
        assert pump.finished == {1: (8, "etcdserver: too many requests", [])}
        await settle()

    run(test)


def test_the_number_of_calls_is_bounded() -> None:
    async def test(calls: Calls, pump: FakePump) -> None:
        for call_id in range(PYTHON_CALLS_MAX + 1):
            calls.on_call(call_id, KEEP_ALIVE, [])
        await settle()
        assert pump.finished == {PYTHON_CALLS_MAX: (2, "etcdserver: too many requests", [])}
        calls.on_half_closed(0)
        await settle()
        calls.on_call(PYTHON_CALLS_MAX + 1, KEEP_ALIVE, [])
        await settle()
        assert PYTHON_CALLS_MAX + 1 not in pump.finished

    run(test)


def test_calls_of_a_worker_that_ends_are_told_so() -> None:
    pumps = []

    async def test(calls: Calls, pump: FakePump) -> None:
        pumps.append(pump)
        calls.on_call(1, KEEP_ALIVE, [])
        await settle()

    run(test)
    assert pumps[0].finished == {1: (14, "etcdserver: server stopped", [])}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1S", 1.0), ("250m", 0.25), ("2H", 7200.0), ("1n", 1e-9), ("", None), ("S", None)],
)
def test_timeouts(text: str, seconds: float | None) -> None:
    assert parse_timeout(text) == seconds


def ask_all(test: Callable[[Core, FakePump], Awaitable[None]]) -> None:
    async def main() -> None:
        pump = FakePump()
        await test(Core(pump, lambda: None), pump)
        pump.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_answer_may_come_in_slices() -> None:
    async def test(core: Core, pump: FakePump) -> None:
        answers = []

        async def asker() -> None:
            answers.append(await core.ask(AdminCall.ALARM, bytes(AlarmRequest(member_id=1))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker)
            await settle()
            for slice_ in ((1, 3, 0, b"ab"), (1, 1, 0, b"c"), (9, 7, 0, b"x"), (1, 6, 0, b"d")):
                core.on_reply(*slice_)
        assert answers == [b"abcd"]
        assert (core.asks, pump.canceled) == (0, [])

    ask_all(test)


def test_an_error_of_the_core_is_raised() -> None:
    async def test(core: Core, pump: FakePump) -> None:
        async def asker() -> None:
            with pytest.raises(MemberNotFoundError):
                await core.ask(AdminCall.STATUS)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker)
            await settle()
            core.on_reply(1, 4, MemberNotFoundError.id, b"")

    ask_all(test)


def test_questions_that_are_late_or_canceled_are_taken_back() -> None:
    async def test(core: Core, pump: FakePump) -> None:
        began = trio.current_time()
        with pytest.raises(TimeoutError):
            await core.ask(AdminCall.STATUS)
        assert trio.current_time() - began == REQUEST_SECONDS_DEFAULT
        with trio.move_on_after(1):
            await core.ask(AdminCall.STATUS)
        assert (pump.canceled, core.asks) == ([1, 2], 0)
        core.on_reply(2, 7, 0, b"late")

    ask_all(test)


def test_questions_are_bounded() -> None:
    async def test(core: Core, pump: FakePump) -> None:
        refused: list[EtcdError] = []

        async def asker() -> None:
            try:
                await core.ask(AdminCall.STATUS)
            except TooManyRequestsError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(ASKS_MAX + 2):
                nursery.start_soon(asker)
            await settle()
            assert (len(refused), len(pump.asked)) == (2, ASKS_MAX)
            nursery.cancel_scope.cancel()

    ask_all(test)
