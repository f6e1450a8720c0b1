"""The pump: real sockets on loopback, turned by a thread, and a core made of rings."""

from __future__ import annotations

import contextlib
import gc
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from quorate.core import limits
from quorate.core._ring import Doorbell
from quorate.frontends import _calls
from quorate.workers._pump import Pump
from tests.compat.probes import PROBES
from tests.compat.recordings import probes
from tests.connections import END, FIRST, LAST, PUT, PUT_REQUEST, RANGE, Core, grpc_message
from tests.http2 import (
    DATA,
    GOAWAY,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW,
    Raw,
    block,
    frame,
    grpc_headers,
    prefixed,
)

HEALTH = "/grpc.health.v1.Health/Check"
ALARM = "/etcdserverpb.Maintenance/Alarm"
RECORDED: dict[str, dict[str, str]] = probes()["grpc"]
# What Python or the core answers is their tests' business.
NOT_OURS = {"alarm with action 9", "health of an unknown service", "health of the server"}
NEEDS_CORE = {"txn with an empty op"}
BETTER = {"headers end the stream": {":status": "200", "grpc-status": "2", "grpc-message": "EOF"}}


class Loop:
    """A pump and its core, turned by a thread until closed."""

    def __init__(self, capacity: int = 4 << 20, answers: bool = True, **options: Any) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.core = Core(capacity)
        self.bell, self.core_bell = Doorbell(), Doorbell()
        self.answers = answers
        self.reply = b"reply"
        self.pump = Pump(
            listeners=[self.listener.fileno()],
            bell=self.bell,
            core_bell=self.core_bell,
            requests=self.core.requests,
            replies=self.core.replies,
            served=[HEALTH, ALARM],
            **options,
        )
        self.pump.accept()
        self.events: list[tuple[Any, ...]] = []
        self.asked: list[tuple[int, int, int, bytes]] = []
        self._stop = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(5)
        self.listener.close()
        assert self.error is None, self.error

    def _run(self) -> None:
        try:
            while not self._stop:
                self.step(0.02)
        except BaseException as error:
            self.error = error

    def step(self, seconds: float = 0.0) -> None:
        """One turn, the core's answers, and a wait for what comes next."""
        self.events += self.pump.turn()
        for request in self.core.take():
            self.asked.append(request)
            while self.answers and not self.core.reply(request[0], self.reply):
                self.events += self.pump.turn()
            self.bell.wake()
        select.select([self.pump.fd], [], [], min(seconds, self.pump.next_deadline()))

    def client(self) -> Raw:
        return Raw(self.port)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


def until(condition: Any, seconds: float = 5.0) -> bool:
    """Wait for something that another thread does."""
    stop = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > stop:
            return False
        time.sleep(0.001)
    return True


def test_a_call_goes_round(loop: Loop) -> None:
    with loop.client() as client:
        answer = client.call(PUT, PUT_REQUEST)
        assert answer.data == grpc_message(b"reply")
        assert (answer.status, answer.text) == (0, "")
        assert loop.asked[0][2:] == (2, PUT_REQUEST)
        assert loop.pump.clients_gone == 0
    assert until(lambda: loop.pump.gauges()["clients_live"] == 0)
    assert loop.pump.clients_gone == 1
    assert loop.pump.statistics().methods[PUT][:4] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", sorted(PROBES.keys() - NOT_OURS - NEEDS_CORE))
def test_a_recorded_probe_gets_etcds_answer(name: str, loop: Loop) -> None:
    recorded = BETTER.get(name) or RECORDED[name]
    with loop.client() as client:
        answer = PROBES[name](client)
        for header in (":status", "content-type", "grpc-status"):
            if header in recorded:
                assert answer.headers.get(header) == recorded[header]
        if "grpc-message" in recorded:
            assert answer.text == recorded["grpc-message"]
        assert bool(answer.data) == ("data" in recorded)
        assert answer.end == recorded.get("end", "stream ended")
        assert client.call(PUT, PUT_REQUEST).status == 0


def test_http1_is_handed_over_with_its_first_bytes(loop: Loop) -> None:
    with socket.create_connection(("127.0.0.1", loop.port)) as client:
        client.sendall(b"P")
        time.sleep(0.01)
        client.sendall(b"OST / HTTP/1.1\r\n\r\n")
        assert until(lambda: loop.events)
        kind, fd, data = loop.events[0]
        assert kind == _calls.HTTP1
        with socket.socket(fileno=fd) as server:
            while len(data) < 19:
                data += server.recv(100)
            assert data == b"POST / HTTP/1.1\r\n\r\n"
            server.sendall(b"hello")
        assert client.recv(100) == b"hello"
    assert loop.pump.gauges()["clients_live"] == 0
    assert loop.pump.gauges()["handed_over"] == 1


def test_many_requests_on_many_connections(loop: Loop) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(loop.client()) for _ in range(20)]
        streams = []
        for client in clients:
            for _ in range(50):
                stream = client.open(grpc_headers(PUT))
                client.body(stream, prefixed(PUT_REQUEST))
                streams.append((client, stream))
        assert all(client.wait(stream).status == 0 for client, stream in streams)
    assert len({request_id for request_id, *_ in loop.asked}) == 1000


def test_a_full_ring_delays_and_drops_nothing() -> None:
    with Loop(capacity=8192) as loop, loop.client() as client:
        streams = []
        for _ in range(300):
            stream = client.open(grpc_headers(PUT))
            client.body(stream, prefixed(b"\x0a\x01k\x12\x7f" + b"v" * 127))
            streams.append(stream)
        assert all(client.wait(stream).status == 0 for stream in streams)
    assert len({request_id for request_id, *_ in loop.asked}) == 300


def test_a_full_ring_stops_the_reading() -> None:
    loop = Loop(capacity=8192)
    try:
        with socket.create_connection(("127.0.0.1", loop.port)) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(PREFACE + frame(SETTINGS, 0, 0))
            loop.pump.turn()
            for number in range(300):
                client.sendall(call_bytes(2 * number + 1))
            for _ in range(4):
                loop.pump.turn()
            begun = loop.pump.gauges()["calls_begun"]
            assert begun > 50
            for number in range(300, 600):
                client.sendall(call_bytes(2 * number + 1))
            for _ in range(4):
                loop.pump.turn()
            # The core has taken nothing, so nothing more is read; the kernel holds the client back.
            assert loop.pump.gauges()["calls_begun"] == begun
            seen: list[int] = []
            for _ in range(1000):
                loop.pump.turn()
                seen += [request_id for request_id, *_ in loop.core.take()]
                if len(seen) == 600:
                    break
            assert len(set(seen)) == 600
    finally:
        loop.listener.close()


def test_a_client_that_reads_nothing_is_bounded_and_slows_nobody() -> None:
    with Loop() as loop, loop.client() as good:
        loop.reply = bytes(60_000)
        bad = socket.socket()
        # Before it connects, so that the kernel does not make the buffer larger by itself.
        bad.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        bad.connect(("127.0.0.1", loop.port))
        with contextlib.closing(bad):
            window = struct.pack("!HI", 4, 0x7FFFFFFF)
            bad.sendall(
                PREFACE + frame(SETTINGS, 0, 0, window) + frame(WINDOW, 0, 0, b"\x7f\xff\0\0")
            )
            for number in range(450):
                bad.sendall(call_bytes(2 * number + 1))
            # The socket is full, and 27 MB of replies would wait for it.
            assert until(lambda: loop.pump.gauges()["reply_bytes"] > limits.REPLY_BYTES_HIGH)
            assert good.call(PUT, PUT_REQUEST).status == 0
            begun = loop.pump.gauges()["calls_begun"]
            for number in range(450, 900):
                bad.sendall(call_bytes(2 * number + 1))
            assert loop.pump.gauges()["reply_bytes"] <= limits.REPLY_BYTES_MAX
            slowest = 0.0
            loop.reply = b"r"
            for _ in range(50):
                began = time.monotonic()
                assert good.call(PUT, PUT_REQUEST).status == 0
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 1.0
            # Of the client that does not read, nothing more was read.
            assert loop.pump.gauges()["calls_begun"] == begun + 50
        assert until(lambda: loop.pump.gauges()["clients_live"] == 1)
        assert loop.pump.gauges()["reply_bytes"] == 0
        assert loop.pump.gauges()["calls_live"] == 0


def call_bytes(stream: int) -> bytes:
    """A whole put as frames."""
    return frame(HEADERS, 4, stream, block(grpc_headers(PUT))) + frame(
        DATA, 1, stream, grpc_message(PUT_REQUEST)
    )


def test_a_long_reply_through_the_socket() -> None:
    with Loop(answers=False) as loop, loop.client() as client:
        client.h2.update_settings({4: 1 << 24})
        client.flush()
        stream = client.open(grpc_headers(RANGE))
        client.body(stream, prefixed(b"\x0a\x01k"))
        assert until(lambda: loop.asked)
        request_id = loop.asked[0][0]
        total, size, sent, allowed = 2 << 20, 65536, 0, 262144
        seen = 1
        stop = time.monotonic() + 10
        while not client.over(stream) and time.monotonic() < stop:
            while sent < total and sent + size <= allowed:
                flags = (FIRST if sent == 0 else 0) | (LAST | END if sent + size == total else 0)
                loop.core.reply(request_id, bytes(size), flags, 0, total)
                loop.bell.wake()
                sent += size
            client.receive(0.05)
            allowed += sum(extra for _, extra, method, _ in loop.asked[seen:] if method == 65)
            seen = max(seen, len(loop.asked))
        answer = client.answers[stream]
        assert answer.status == 0
        assert answer.data == grpc_message(bytes(total))


def test_python_events_come_out_of_turn(loop: Loop) -> None:
    with loop.client() as client:
        stream = client.open(grpc_headers(HEALTH))
        client.body(stream, prefixed(b""))
        assert until(lambda: len(loop.events) >= 2)
        call_id = loop.events[0][1]
        loop.pump.send_message(call_id, b"\x08\x01")
        loop.pump.finish(call_id, 0)
        loop.bell.wake()
        answer = client.wait(stream)
        assert answer.data == grpc_message(b"\x08\x01")
        assert answer.status == 0


def test_a_sleeping_pump_is_woken_by_the_bell() -> None:
    loop = Loop()
    try:
        loop.pump.turn()
        assert select.select([loop.pump.fd], [], [], 0) == ([], [], [])
        loop.core.reply(1 << 32, b"late")
        loop.bell.wake()
        assert select.select([loop.pump.fd], [], [], 0)[0]
        loop.pump.turn()
        assert select.select([loop.pump.fd], [], [], 0) == ([], [], [])
        # A reply that nobody rang for is seen by the next turn's look at the ring.
        loop.core.reply(1 << 32, b"late")
        loop.pump.turn()
        assert loop.pump.gauges()["replies_wrong"] == 2
    finally:
        loop.listener.close()


def test_the_garbage_collector_may_take_a_pump_with_calls() -> None:
    core = Core()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        knot: list[Any] = [
            Pump(listeners=[listener.fileno()], requests=core.requests, replies=core.replies)
        ]
        knot.append(knot)
        knot[0].accept()
        with Raw(listener.getsockname()[1]) as client:
            client.body(client.open(grpc_headers(PUT)), prefixed(PUT_REQUEST))
            assert until(lambda turn=knot[0].turn: turn() == [] and core.take() != [])
            del knot
            gc.collect()
            while client.receive():
                pass
            assert client.closed


def test_a_turn_that_python_cuts_short_leaves_its_descriptor_readable() -> None:
    loop = Loop()
    try:
        with socket.create_connection(("127.0.0.1", loop.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            # More replies than one round takes, and an event for Python that ends the turn.
            for _ in range(3000):
                assert loop.core.reply(1 << 32, b"late")
            events: list[tuple[Any, ...]] = []
            while not events:
                events = loop.pump.turn()
            socket.socket(fileno=events[0][1]).close()
            if loop.pump.gauges()["replies_wrong"] < 3000:
                assert select.select([loop.pump.fd], [], [], 0)[0]
            for _ in range(3):
                loop.pump.turn()
            assert loop.pump.gauges()["replies_wrong"] == 3000
    finally:
        loop.listener.close()


def test_idle_and_drain() -> None:
    with Loop(answers=False) as loop, loop.client() as client:
        stream = client.open(grpc_headers(PUT))
        client.body(stream, prefixed(PUT_REQUEST))
        assert until(lambda: loop.asked)
        assert not loop.pump.idle
        loop.pump.drain()
        loop.bell.wake()
        accepted = loop.pump.gauges()["accepted"]
        accepted = loop.pump.gauges()["accepted"]
        with socket.create_connection(("127.0.0.1", loop.port)) as late:
            late.sendall(PREFACE)
            # h2 gives a connection up at GOAWAY, so its frames are read by hand.
            assert until(lambda: loop.pump.is_draining)
            loop.core.reply(loop.asked[0][0], b"r")
            loop.bell.wake()
            kinds = frame_kinds(client.socket)
        assert GOAWAY in kinds
        assert kinds.count(HEADERS) == 2
        assert loop.pump.gauges()["accepted"] == accepted
        assert until(lambda: loop.pump.idle and loop.pump.gauges()["clients_live"] == 0)


def frame_kinds(client: socket.socket) -> list[int]:
    """The kinds of all frames until the server closes."""
    data = b""
    client.settimeout(5)
    while piece := client.recv(65536):
        data += piece
    kinds = []
    while data:
        kinds.append(data[3])
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return kinds


def test_half_open_and_vanishing_clients_leave_nothing(loop: Loop) -> None:
    for number in range(200):
        client = socket.create_connection(("127.0.0.1", loop.port))
        if number % 4:
            client.sendall((PREFACE + frame(SETTINGS, 0, 0) + call_bytes(1))[: number * 2])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", number % 2, 0))
        client.close()
    assert until(lambda: loop.pump.gauges()["accepted"] >= 190)
    assert until(
        lambda: not loop.pump.gauges()["clients_live"] and not loop.pump.gauges()["calls_live"]
    )
    with loop.client() as client_:
        assert client_.call(PUT, PUT_REQUEST).status == 0
