"""Hot calls whose client streams (keep-alives): order, ends, floods, and a ring that is full."""

from __future__ import annotations

import random

import pytest

from quorate.core import limits
from quorate.frontends._grpc import Grpc
from tests.connections import (
    END_HEADERS,
    PUT,
    RING_BYTES,
    SECOND,
    Answer,
    Client,
    Core,
    grpc_message,
)
from tests.http2 import HEADERS, RST_STREAM, block, frame, grpc_headers
from tests.messages import encode

KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
KEEP_ALIVE_METHOD, PUT_METHOD, CANCEL = 18, 2, 64
FIRST, LAST, END = 1, 2, 4
NOW = 1000 * SECOND
MAX = limits.STREAM_REQUESTS_MAX
UNREADABLE = (
    "grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data"
)


def request(lease: int) -> bytes:
    return encode("LeaseKeepAliveRequest", {"ID": lease})


def requests(*leases: int) -> bytes:
    return b"".join(grpc_message(request(lease)) for lease in leases)


class World:
    """A worker's calls, a core that answers in order, and one client with one open stream."""

    def __init__(self, ring: int = RING_BYTES) -> None:
        self.core = Core(ring)
        self.grpc = Grpc(requests=self.core.requests, replies=self.core.replies)
        self.now = NOW
        self.grpc.set_time(self.now)
        self.client = Client(self.grpc)
        self.stream = self.client.open(grpc_headers(KEEP_ALIVE))
        self.ids: list[int] = []

    @property
    def answer(self) -> Answer:
        """What came on the stream."""
        return self.client.answers.setdefault(self.stream, Answer())

    def send(self, payload: bytes, end: bool = False) -> None:
        """DATA on the stream."""
        self.client.data(self.stream, payload, end)

    def asked(self) -> list[bytes]:
        """What the core is asked: keep-alives only, all of one id."""
        self.grpc.deliver()
        found = self.core.take()
        assert all((extra, method) == (0, KEEP_ALIVE_METHOD) for _, extra, method, _ in found)
        self.ids += [request_id for request_id, *_ in found]
        assert len(set(self.ids)) <= 1
        return [payload for *_, payload in found]

    def reply(self, payload: bytes) -> None:
        """Answer one of them."""
        assert self.core.reply(self.ids[0], payload, FIRST | LAST)
        self.deliver()

    def deliver(self) -> None:
        """Let replies in and out."""
        self.grpc.deliver()
        self.client.read()

    def serve(self) -> list[bytes]:
        """Answer everything, each with what was asked, until nothing comes any more."""
        found: list[bytes] = []
        while batch := self.asked():
            found += batch
            for payload in batch:
                assert self.core.reply(self.ids[0], payload, FIRST | LAST)
            self.deliver()
        return found


@pytest.fixture
def world() -> World:
    return World()


def test_each_request_is_answered_in_its_order(world: World) -> None:
    world.send(requests(1, 2))
    world.send(requests(3))
    assert world.asked() == [request(1), request(2), request(3)]
    for text in (b"one", b"two", b"three"):
        world.reply(text)
    assert world.answer.data == b"".join(map(grpc_message, (b"one", b"two", b"three")))
    assert not world.answer.ended
    world.send(b"", end=True)
    world.deliver()
    assert world.answer.ended
    assert world.answer.status == ("0", "")
    assert world.grpc.gauges()["calls_live"] == 0


def test_the_end_of_the_clients_side_waits_for_the_last_answer(world: World) -> None:
    world.send(requests(1, 2), end=True)
    assert len(world.asked()) == 2
    world.reply(b"one")
    assert not world.answer.ended
    world.reply(b"two")
    assert world.answer.ended
    assert world.answer.status == ("0", "")


def test_a_stream_without_requests_ends_well(world: World) -> None:
    world.send(b"", end=True)
    world.deliver()
    assert world.answer.status == ("0", "")
    assert world.asked() == []


@pytest.mark.parametrize("cut", range(1, len(requests(1, 300)) - 1))
def test_requests_may_come_in_any_pieces(world: World, cut: int) -> None:
    whole = requests(1, 300)
    world.send(whole[:cut])
    world.send(whole[cut:])
    assert world.asked() == [request(1), request(300)]


def test_a_flood_waits_at_the_client() -> None:
    """A client that sends all that its window lets it: the core is asked for no more than a few at
    a time, nothing is lost, and the window comes back only for what was taken."""
    world = World()
    window = limits.STREAM_WINDOW_BYTES
    one = requests(7)
    count = window // len(one)
    world.send(one * count)
    assert len(world.asked()) == MAX
    assert world.asked() == []
    gauges = world.grpc.gauges()
    assert gauges["partial_bytes"] == (count - MAX) * len(one)
    assert window_given(world) == 0
    for _ in range(MAX // 2):
        world.reply(b"")
    assert len(world.asked()) == MAX // 2
    for _ in range(MAX):
        world.reply(b"")
    assert len(world.serve()) == count - MAX - MAX // 2
    assert world.grpc.gauges()["partial_bytes"] == 0
    assert window_given(world) > 0


def window_given(world: World) -> int:
    """What the server let the client send beyond its first window, of this stream."""
    return world.client.window.get(world.stream, 0)


def test_a_full_ring_holds_back_and_loses_nothing() -> None:
    world = World(ring=4096)
    world.send(requests(*range(1, 401)))
    assert world.serve() == [request(lease) for lease in range(1, 401)]
    assert world.answer.data == b"".join(grpc_message(request(lease)) for lease in range(1, 401))
    world.send(b"", end=True)
    world.deliver()
    assert world.answer.status == ("0", "")


def test_two_streams_share_a_full_ring() -> None:
    world = World(ring=4096)
    other = world.client.open(grpc_headers(KEEP_ALIVE))
    for _ in range(4):
        world.send(requests(*range(1, 101)))
        world.client.data(other, requests(*range(1001, 1101)), end=False)
    counts: dict[int, list[bytes]] = {}
    while True:
        world.grpc.deliver()
        found = world.core.take()
        if not found:
            break
        for request_id, _, _, payload in found:
            counts.setdefault(request_id, []).append(payload)
            assert world.core.reply(request_id, b"", FIRST | LAST)
    assert sorted(map(len, counts.values())) == [400, 400]
    for stream in (world.stream, other):
        world.client.data(stream, b"", end=True)
    world.deliver()
    assert world.grpc.gauges()["calls_live"] == 0


@pytest.mark.parametrize("pending", [0, 2])
@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (grpc_message(b"\x0a\x7fk"), ("13", UNREADABLE)),
        (grpc_message(b"\x08\x01", flag=1), ("13", None)),
        (grpc_message(b"\x08\x01", flag=7), ("13", None)),
        (b"\0\xff\xff\xff\xff", ("8", None)),
    ],
)
def test_a_bad_request_ends_the_call_after_the_answers_before_it(
    world: World, pending: int, bad: bytes, status: tuple[str, str | None]
) -> None:
    world.send(requests(*range(1, pending + 1)) + bad + requests(9))
    assert len(world.asked()) == pending
    for _ in range(pending):
        assert not world.answer.ended
        world.reply(b"fine")
    world.deliver()
    assert world.answer.ended
    assert world.answer.status[0] == status[0]
    assert status[1] is None or world.answer.status[1] == status[1]
    assert world.answer.data == grpc_message(b"fine") * pending
    assert world.asked() == []


def test_an_end_within_a_request(world: World) -> None:
    world.send(requests(1) + requests(2)[:-1], end=True)
    assert world.asked() == [request(1)]
    world.reply(b"one")
    assert world.answer.status == ("13", "unexpected EOF")


def test_an_error_of_the_core_ends_the_stream(world: World) -> None:
    world.send(requests(1, 2))
    world.asked()
    assert world.core.reply(world.ids[0], flags=END, error=15)
    world.deliver()
    assert world.answer.status == ("14", "etcdserver: no leader")
    world.core.reply(world.ids[0], b"late", FIRST | LAST)
    world.deliver()
    assert world.grpc.gauges()["replies_late"] == 1


def test_a_deadline_ends_the_stream() -> None:
    world = World()
    stream = world.client.open(grpc_headers(KEEP_ALIVE, **{"grpc-timeout": "2S"}))
    world.client.data(stream, requests(1), end=False)
    world.now += 3 * SECOND
    world.grpc.set_time(world.now)
    world.deliver()
    assert world.client.answers[stream].status == ("4", "context deadline exceeded")


STOPPED = ("14", "etcdserver: server stopped")


@pytest.mark.parametrize("pending", [0, 3])
def test_a_stop_ends_the_stream_after_the_answers_before_it(world: World, pending: int) -> None:
    """An idle stream used to keep its worker for all of the time that a stop may take."""
    world.send(requests(*range(1, pending + 1)))
    assert len(world.asked()) == pending
    world.client.connection.shut_down()
    world.deliver()
    assert world.client.goaway
    for _ in range(pending):
        assert not world.answer.ended
        world.reply(b"yes")
    assert world.answer.status == STOPPED
    assert world.answer.data == grpc_message(b"yes") * pending
    assert world.client.connection.finished


def test_a_stop_asks_nothing_more_of_a_flood() -> None:
    """What the stream holds back, and half a request, are given up."""
    for ring in (RING_BYTES, 4096):
        world = World(ring=ring)
        world.send(requests(7) * (MAX + 100) + b"\0\0")
        world.client.connection.shut_down()
        asked = len(world.serve())
        assert 0 < asked <= (MAX if ring > 4096 else MAX // 2)
        assert world.answer.status == STOPPED
        assert world.answer.data.count(grpc_message(request(7))) == asked
        gauges = world.grpc.gauges()
        assert (gauges["partial_bytes"], gauges["calls_live"]) == (0, 0)
        assert world.client.connection.finished


@pytest.mark.parametrize("pending", [0, 3])
def test_a_reset_forgets_the_stream(world: World, pending: int) -> None:
    world.send(requests(*range(pending)) + requests(5)[:3])
    world.grpc.deliver()
    world.client.feed(frame(RST_STREAM, 0, world.stream, (8).to_bytes(4, "big")))
    world.deliver()
    world.core.take()
    gauges = world.grpc.gauges()
    assert gauges["calls_live"] == gauges["partial_bytes"] == 0


def test_a_stream_that_goes_while_the_ring_is_full() -> None:
    """What it held back is forgotten; the ring serves others."""
    world = World(ring=4096)
    world.send(requests(*range(1, 301)))
    world.client.feed(frame(RST_STREAM, 0, world.stream, (8).to_bytes(4, "big")))
    world.grpc.deliver()
    while world.core.take():
        world.grpc.deliver()
    gauges = world.grpc.gauges()
    assert gauges["calls_live"] == gauges["partial_bytes"] == 0
    stream = world.client.open(grpc_headers(PUT))
    world.client.data(stream, grpc_message(b"\x0a\x01k\x12\x01v"))
    world.grpc.deliver()
    assert [method for _, _, method, _ in world.core.take()] == [PUT_METHOD]


def test_random_streams_lose_nothing() -> None:
    """Pieces of any size, answers at any time, a small ring: each request once, in order."""
    chance = random.Random(11)
    for _ in range(20):
        world = World(ring=chance.choice([4096, RING_BYTES]))
        whole = requests(*range(1, chance.randrange(2, 3000)))
        sent, got, owed = 0, [], 0
        while sent < len(whole) or world.grpc.gauges()["partial_bytes"] or owed:
            size = chance.choice([1, 7, 400, 9000])
            if sent < len(whole) and world.grpc.gauges()["partial_bytes"] < 100_000:
                world.send(whole[sent : sent + size])
                sent += size
            batch = world.asked()
            got += batch
            owed += len(batch)
            answers = owed if sent >= len(whole) else chance.randrange(owed + 1)
            for _ in range(answers):
                assert world.core.reply(world.ids[0], b"", FIRST | LAST)
            owed -= answers
            world.deliver()
        got += world.serve()
        assert b"".join(map(grpc_message, got)) == whole
        world.send(b"", end=True)
        world.deliver()
        assert world.answer.status == ("0", "")


def test_a_second_head_on_a_stream_changes_nothing(world: World) -> None:
    world.send(requests(1))
    world.client.feed(frame(HEADERS, END_HEADERS | 1, world.stream, block([("x", "y")])))
    assert world.asked() == [request(1)]
    world.reply(b"one")
    assert world.answer.status == ("0", "")
