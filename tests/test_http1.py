"""HTTP/1.1 connections in memory: pages, garbage, slow clients, limits."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from quorate.core.errors import LeaderChangedError
from quorate.core.limits import (
    HTTP1_BODY_BYTES_MAX,
    HTTP1_CONNECTIONS_MAX,
    HTTP1_HEADER_BYTES_MAX,
    HTTP1_IDLE_SECONDS_MAX,
    HTTP1_REQUEST_SECONDS_MAX,
)
from quorate.core.logs import Logger
from quorate.frontends.counters import (
    HEALTH_FAILURES,
    HEALTH_SUCCESS,
    METRICS_REQUESTS,
    Counters,
    check_name,
)
from quorate.frontends.health import Response
from quorate.workers.calls import Core
from quorate.workers.http1 import Http1
from quorate.workers.pages import Pages
from tests.fakepump import FIGURES, FakeNode, FakePump

GET = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
BAD = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\n\r\n400 Bad Request"
)


class FakePages:
    """Answers what the test wants."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.body = b"hello"
        self.seconds = 0.0

    async def answer(self, method: str, target: str) -> Response:
        self.asked.append((method, target))
        await trio.sleep(self.seconds)
        if target == "/bug":
            raise ZeroDivisionError
        return Response(200, (("content-type", "text/plain"),), self.body)


def connect(
    test: Callable[[trio.abc.Stream, FakePages], Awaitable[None]], first_bytes: bytes = b""
) -> FakePages:
    """Run a test as the client of one connection; the server's side must have ended after it."""
    pages = FakePages()

    async def main() -> None:
        client, server = trio.testing.memory_stream_pair()
        http1 = Http1(pages, Logger((log,)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(http1.serve, server, first_bytes)
            await test(client, pages)
        assert http1.answers_due == 0

    log = os.open(os.devnull, os.O_WRONLY)
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    os.close(log)
    return pages


async def everything(stream: trio.abc.Stream) -> bytes:
    """All that comes until the server closes."""
    data = b""
    while more := await stream.receive_some():
        data += more
    return data


async def reply(stream: trio.abc.Stream, end: bytes = b"hello") -> bytes:
    """What comes until `end`."""
    data = b""
    while not data.endswith(end):
        more = await stream.receive_some()
        assert more, data
        data += more
    return data


def test_a_connection_serves_one_request_after_another() -> None:
    async def test(client: trio.abc.Stream, pages: FakePages) -> None:
        for _ in range(3):
            await client.send_all(GET)
            answer = await reply(client)
            assert answer.startswith(b"HTTP/1.1 200 \r\n")
            assert b"content-length: 5\r\n" in answer
            assert b"access-control-allow-origin: *\r\n" in answer
        await client.aclose()

    assert connect(test).asked == [("GET", "/version")] * 3


def test_pipelined_requests_and_first_bytes_are_served() -> None:
    async def test(client: trio.abc.Stream, pages: FakePages) -> None:
        await client.send_all(b"Connection: close\r\n\r\n")
        assert (await everything(client)).count(b"HTTP/1.1 200") == 3

    pages = connect(test, GET + GET + b"GET /last HTTP/1.1\r\nHost: x\r\n")
    assert pages.asked[-1] == ("GET", "/last")


def test_every_split_of_a_request_is_read() -> None:
    async def test(client: trio.abc.Stream, pages: FakePages) -> None:
        for place in range(1, len(GET)):
            await client.send_all(GET[:place])
            await trio.testing.wait_all_tasks_blocked()
            await client.send_all(GET[place:])
            await reply(client)
        await client.aclose()

    assert len(connect(test).asked) == len(GET) - 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_garbage_is_answered_and_closed(garbage: bytes) -> None:
    async def test(client: trio.abc.Stream, pages: FakePages) -> None:
        assert await everything(client) == BAD

    assert connect(test, garbage).asked == []


def test_headers_and_bodies_are_bounded() -> None:
    async def headers(client: trio.abc.Stream, pages: FakePages) -> None:
        await client.send_all(b"X: " + b"a" * HTTP1_HEADER_BYTES_MAX)
        assert (await everything(client)).startswith(b"HTTP/1.1 431 ")

    async def body(client: trio.abc.Stream, pages: FakePages) -> None:
        await client.send_all(b"a" * (HTTP1_BODY_BYTES_MAX + 1))
        assert (await everything(client)).startswith(b"HTTP/1.1 413 ")

    connect(headers, b"GET / HTTP/1.1\r\nHost: x\r\n")
    length = 10 * HTTP1_BODY_BYTES_MAX
    post = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
    connect(body, post)


def test_a_trickle_of_headers_is_cut_off() -> None:
    async def test(client: trio.abc.Stream, pages: FakePages) -> None:
        began = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            while trio.current_time() - began < 10 * HTTP1_REQUEST_SECONDS_MAX:
                await client.send_all(b"X: y\r\n")
                await trio.sleep(1)
        assert trio.current_time() - began <= HTTP1_REQUEST_SECONDS_MAX + 1

    connect(test, b"GET / HTTP/1.1\r\n")


def test_an_idle_connection_is_closed_in_the_end() -> None:
    async def test(client: trio.abc.Stream, pages: FakePages) -> None:
        await reply(client)
        began = trio.current_time()
        assert await everything(client) == b""
        assert trio.current_time() - began == HTTP1_IDLE_SECONDS_MAX

    connect(test, GET)


def test_a_client_that_takes_no_answer_is_dropped() -> None:
    async def main() -> None:
        pages = FakePages()
        pages.body = b"x" * 100_000
        pages.seconds = 3.0  # which are not the client's fault
        client, server = trio.testing.lockstep_stream_pair()
        began = trio.current_time()
        await Http1(pages, Logger(())).serve(server, GET)
        assert trio.current_time() - began == 3.0 + HTTP1_REQUEST_SECONDS_MAX
        await client.aclose()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_long_answer_is_chunked() -> None:
    async def test(client: trio.abc.Stream, pages: FakePages) -> None:
        pages.body = b"x" * 100_000
        await client.send_all(b"Connection: close\r\n\r\n")
        answer = await everything(client)
        assert b"transfer-encoding: chunked" in answer.lower()
        assert answer.count(b"x") >= 100_000

    connect(test, b"GET / HTTP/1.1\r\nHost: y\r\n")


def test_a_bug_ends_one_connection_only() -> None:
    async def test(client: trio.abc.Stream, pages: FakePages) -> None:
        assert await everything(client) == b""

    connect(test, b"GET /bug HTTP/1.1\r\nHost: x\r\n\r\n")


def test_head_has_no_body_and_continue_is_granted() -> None:
    async def head(client: trio.abc.Stream, pages: FakePages) -> None:
        answer = await everything(client)
        assert answer.endswith(b"\r\n\r\n")

    async def post(client: trio.abc.Stream, pages: FakePages) -> None:
        assert (await reply(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await client.send_all(b"abc")
        assert (await everything(client)).startswith(b"HTTP/1.1 200 ")

    end = b"Host: x\r\nConnection: close\r\n"
    connect(head, b"HEAD / HTTP/1.1\r\n" + end + b"\r\n")
    more = b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    connect(post, b"POST / HTTP/1.1\r\n" + end + more)


def test_the_number_of_connections_is_bounded() -> None:
    async def main() -> None:
        http1 = Http1(FakePages(), Logger(()))
        clients = []
        async with trio.open_nursery() as nursery:
            for _ in range(HTTP1_CONNECTIONS_MAX + 1):
                client, server = trio.testing.memory_stream_pair()
                nursery.start_soon(http1.serve, server, b"")
                clients.append(client)
                await trio.testing.wait_all_tasks_blocked()
            assert (await everything(clients[-1])).startswith(b"HTTP/1.1 503 ")
            await clients[0].aclose()
            client, server = trio.testing.memory_stream_pair()
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(http1.serve, server, GET)
            assert (await reply(client)).startswith(b"HTTP/1.1 200 ")
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def with_node(test: Callable[[Pages, FakeNode, Counters], Awaitable[None]]) -> None:
    """Run a test with real pages and a core that answers at once."""

    async def main() -> None:
        node, counters = FakeNode(), Counters()
        pump = FakePump(node)
        core = Core(pump, lambda: None)

        async def deliver() -> None:
            while True:
                await trio.lowlevel.wait_readable(pump.fd)
                for event in pump.turn(0.0):
                    core.on_reply(*event[1:])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            await test(Pages(core, counters, lambda: None), node, counters)
            nursery.cancel_scope.cancel()
        pump.close()

    trio.run(main)


def test_health_asks_the_core_for_a_linearizable_read() -> None:
    async def test(pages: Pages, node: FakeNode, counters: Counters) -> None:
        assert (await pages.answer("GET", "/health")).status == 200
        assert node.reads == 1
        assert (await pages.answer("GET", "/health?serializable=true")).status == 200
        assert node.reads == 1
        node.read_error = LeaderChangedError()
        failed = await pages.answer("GET", "/health")
        assert failed.body == (
            b'{"health":"false","reason":"RANGE ERROR:etcdserver: leader changed"}\n'
        )
        assert (await pages.answer("GET", "/livez")).status == 200
        node.now = FIGURES._replace(leader_id=0)
        failed = await pages.answer("GET", "/health")
        assert failed.body == b'{"health":"false","reason":"RAFT NO LEADER"}\n'
        assert (await pages.answer("GET", "/readyz")).status == 503
        named = counters.named
        assert (named[HEALTH_SUCCESS], named[HEALTH_FAILURES]) == (2, 2)
        assert named[check_name("readyz", "linearizable_read", False)] == 1
        assert named[check_name("livez", "serializable_read", True)] == 1

    with_node(test)


def test_metrics_and_variables_are_pages() -> None:
    async def test(pages: Pages, node: FakeNode, counters: Counters) -> None:
        metrics = await pages.answer("GET", "/metrics")
        assert metrics.status == 200
        assert dict(metrics.headers)["content-type"] == (
            "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
        )
        assert b"\netcd_mvcc_put_total 3.0\n" in metrics.body
        assert counters.named[METRICS_REQUESTS] == 1
        found = await pages.answer("GET", "/debug/vars")
        assert len(found.body.splitlines()) == 6
        assert json.loads(found.body)["raft.status"]["term"] == 2

    with_node(test)
