"""Limits of one HTTP/2 connection: each attack, on a connection without a socket."""

from __future__ import annotations

import struct

import pytest

from quorate.core import limits
from quorate.frontends._grpc import Connection, Grpc
from tests.connections import (
    END_HEADERS,
    END_STREAM,
    PUT,
    PUT_REQUEST,
    SECOND,
    Client,
    Core,
    grpc_message,
)
from tests.http2 import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW,
    Headers,
    block,
    frame,
    grpc_headers,
)

NO_ERROR, PROTOCOL_ERROR, FRAME_SIZE_ERROR, CALM = 0, 1, 6, 11
WATCH = "/etcdserverpb.Watch/Watch"
NOW = 1000 * SECOND


class World:
    """A worker's calls that echo, and one client."""

    def __init__(self, **options: float) -> None:
        self.grpc = Grpc(echo=True, served=[WATCH], **options)  # type: ignore[arg-type]
        self.now = NOW
        self.grpc.set_time(self.now)
        self.client = Client(self.grpc)

    def works(self) -> bool:
        """Whether the connection still answers a call."""
        return self.client.call().status == ("0", "")

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.grpc.set_time(self.now)

    def tick(self, seconds: float) -> None:
        self.wait(seconds)
        self.client.connection.tick()
        self.client.read()

    def refused(self, code: int, reason: bytes | None = None) -> bool:
        """Whether the server said GOAWAY like this and is done."""
        if self.client.goaway is None or not self.client.connection.finished:
            return False
        return self.client.goaway[0] == code and reason in (None, self.client.goaway[1])


@pytest.fixture
def world() -> World:
    return World()


def test_our_settings(world: World) -> None:
    assert world.client.settings == {
        3: limits.STREAMS_MAX,
        4: limits.STREAM_WINDOW_BYTES,
        6: limits.HEADER_LIST_BYTES_MAX,
        9: 1,
    }
    assert World(streams_max=10).client.settings[3] == 10
    assert World(streams_max=0xFFFFFFFF).client.settings[3] == limits.STREAMS_MAX


def test_bytes_may_come_one_by_one() -> None:
    grpc = Grpc(echo=True)
    client = Client(grpc)
    data = frame(HEADERS, END_HEADERS, 1, block(grpc_headers(PUT)))
    data += frame(DATA, END_STREAM, 1, grpc_message(PUT_REQUEST))
    for byte in data:
        client.feed(bytes([byte]))
    assert client.answers[1].status == ("0", "")


BAD_HEADERS: dict[str, Headers] = {
    "upper case": [("X-Bad", "1")],
    "connection": [("connection", "close")],
    "space in name": [("x bad", "1")],
    "empty name": [("", "1")],
    "control in value": [("x", b"a\x00b")],
    "newline in value": [("x", b"a\nb")],
    "unknown pseudo": [(":nope", "1")],
    "pseudo after regular": [("x", "1"), (":path", PUT)],
    "response pseudo": [(":status", "200")],
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_malformed_header_resets_its_stream_only(name: str, world: World) -> None:
    pseudo = [pair for pair in grpc_headers(PUT) if pair[0].startswith(":")]
    regular = [pair for pair in grpc_headers(PUT) if not pair[0].startswith(":")]
    extra = BAD_HEADERS[name]
    headers = pseudo + extra + regular if extra[0][0].startswith(":") else pseudo + regular + extra
    stream = world.client.open(headers, end=True)
    assert world.client.answers[stream].reset == PROTOCOL_ERROR
    assert world.grpc.gauges()["calls_live"] == 0
    assert world.works()


@pytest.mark.parametrize("name", [":path", ":method", ":authority", ":scheme"])
def test_a_pseudo_header_comes_once(name: str, world: World) -> None:
    stream = world.client.open([(name, "x"), *grpc_headers(PUT)], end=True)
    assert world.client.answers[stream].reset == PROTOCOL_ERROR
    assert world.works()


def test_all_of_a_tokens_characters_are_allowed(world: World) -> None:
    name = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
    assert world.client.call(None, [*grpc_headers(PUT), (name, b"\t \x80\xff~")]).status[0] == "0"


def test_a_header_list_has_a_size(world: World) -> None:
    room = limits.HEADER_LIST_BYTES_MAX - 1000
    assert world.client.call(None, [*grpc_headers(PUT), ("x", "v" * room)]).status[0] == "0"
    stream = world.client.next_stream
    world.client.next_stream += 2
    big = block([*grpc_headers(PUT), *[(f"x{n}", "v" * 1000) for n in range(17)]])
    world.client.feed(
        frame(HEADERS, 0, stream, big[:16000])
        + frame(CONTINUATION, END_HEADERS, stream, big[16000:])
    )
    assert world.client.answers[stream].reset == FRAME_SIZE_ERROR
    assert world.works()


def test_an_hpack_bomb_is_only_read(world: World) -> None:
    """A table entry of 4,000 bytes, named 8,000 times: 32 MB of headers in 12 KB."""
    entry = b"\x40\x01x\x7f" + b"\xa1\x1e" + b"v" * 4000
    world.client.feed(frame(HEADERS, END_HEADERS | END_STREAM, 1, entry + b"\xbe" * 8000))
    assert world.client.answers[1].reset == FRAME_SIZE_ERROR
    world.client.next_stream = 3
    assert world.client.goaway is None


def test_continuation_flood(world: World) -> None:
    world.client.feed(
        frame(HEADERS, 0, 1, block(grpc_headers(PUT))) + frame(CONTINUATION, 0, 1) * 100
    )
    assert world.client.connection.finished


def test_a_header_block_must_end_in_time(world: World) -> None:
    world.client.feed(frame(HEADERS, 0, 1, block(grpc_headers(PUT))))
    world.tick(limits.FIRST_BYTES_SECONDS - 1)
    assert not world.client.connection.finished
    world.tick(2)
    assert world.refused(CALM)


def test_rapid_reset(world: World) -> None:
    opened = block(grpc_headers(PUT))
    for number in range(limits.RESETS_BURST + 10):
        stream = 2 * number + 1
        world.client.feed(
            frame(HEADERS, END_HEADERS, stream, opened)
            + frame(RST_STREAM, 0, stream, struct.pack("!I", 8))
        )
        if world.client.connection.finished:
            break
    assert world.client.connection.finished
    assert number >= limits.RESETS_BURST - 1
    world.client.connection.close()
    assert world.grpc.gauges()["calls_live"] == 0


def test_resets_that_the_server_is_made_to_send(world: World) -> None:
    """MadeYouReset: the client sends what we must reset, and never a RST_STREAM of its own."""
    opened = block([*grpc_headers(PUT), ("connection", "close")])
    for number in range(limits.RESETS_BURST + 10):
        world.client.feed(frame(HEADERS, END_HEADERS, 2 * number + 1, opened))
        if world.client.connection.finished:
            break
    assert world.refused(CALM, b"too many resets")
    assert number >= limits.RESETS_BURST


def test_a_client_may_cancel_at_a_human_rate(world: World) -> None:
    opened = block(grpc_headers(PUT))
    for number in range(3 * limits.RESETS_BURST):
        if number % limits.RESETS_PER_SECOND == 0:
            world.wait(2)
        stream = 2 * number + 1
        world.client.feed(frame(HEADERS, END_HEADERS, stream, opened))
        # Of nghttp2's own clock this test takes no time, so we reset by a malformed trailer.
        world.client.feed(frame(HEADERS, END_HEADERS, stream, block([("x", "1")])))
    world.client.next_stream = 2 * number + 3
    assert world.client.goaway is None
    assert world.works()


def test_ping_flood_ends_with_too_many_pings(world: World) -> None:
    for _ in range(limits.PING_STRIKES_MAX + 1):
        world.client.feed(frame(PING, 0, 0, bytes(8)))
        assert world.client.goaway is None
    world.client.feed(frame(PING, 0, 0, bytes(8)))
    assert world.refused(CALM, b"too_many_pings")


def test_pings_at_the_pace_of_keepalive_min_are_fine_while_a_call_lives(world: World) -> None:
    world.client.open(grpc_headers(WATCH))
    for _ in range(20):
        world.wait(5.1)
        world.client.feed(frame(PING, 0, 0, bytes(8)))
    assert world.client.goaway is None
    assert world.client.pings == 20
    for _ in range(5):
        world.wait(4.9)
        world.client.feed(frame(PING, 0, 0, bytes(8)))
    assert world.refused(CALM, b"too_many_pings")


def test_pings_without_a_call_are_too_many_even_at_that_pace(world: World) -> None:
    for _ in range(5):
        world.wait(6)
        world.client.feed(frame(PING, 0, 0, bytes(8)))
    assert world.refused(CALM, b"too_many_pings")


def test_a_reply_forgives_a_ping(world: World) -> None:
    for _ in range(50):
        assert world.works()
        world.client.feed(frame(PING, 0, 0, bytes(8)))
    assert world.client.goaway is None


def test_we_ping_a_silent_client_and_drop_it_when_it_stays_silent(world: World) -> None:
    world.tick(2 * 3600 - 1)
    assert world.client.server_pings == 0
    world.tick(2)
    assert world.client.server_pings == 1
    world.tick(19)
    assert not world.client.connection.finished
    world.client.feed(frame(PING, 1, 0, bytes(8)))
    world.tick(5)
    assert not world.client.connection.finished
    world.tick(2 * 3600)
    world.tick(21)
    assert world.client.connection.finished


FLOODS = {
    "settings acks": frame(SETTINGS, 1, 0),
    "priority": frame(PRIORITY, 0, 1, struct.pack("!IB", 3, 1)),
    "window update": frame(WINDOW, 0, 0, struct.pack("!I", 1)),
}


@pytest.mark.parametrize("name", FLOODS)
def test_frames_that_ask_for_nothing(name: str, world: World) -> None:
    flood = FLOODS[name]
    for _ in range(8):
        world.client.feed(flood * (limits.IDLE_FRAMES_MAX // 10))
    assert world.client.goaway is None or name == "settings acks"
    if world.client.goaway is None:
        assert world.works()
        for _ in range(11):
            world.client.feed(flood * (limits.IDLE_FRAMES_MAX // 10))
    assert world.client.connection.finished


def test_empty_data_frames(world: World) -> None:
    stream = world.client.open(grpc_headers(WATCH))
    for _ in range(11):
        world.client.feed(frame(DATA, 0, stream) * (limits.IDLE_FRAMES_MAX // 10))
    assert world.client.connection.finished


def test_settings_flood(world: World) -> None:
    flood = frame(SETTINGS, 0, 0) * 100
    for _ in range(limits.IDLE_FRAMES_MAX // 100 + 1):
        world.client.feed(flood)
    assert world.client.connection.finished


def test_a_settings_frame_with_too_many_entries(world: World) -> None:
    world.client.feed(frame(SETTINGS, 0, 0, struct.pack("!HI", 3, 1) * 100))
    assert world.client.connection.finished


@pytest.mark.parametrize("kind", range(10, 16))
def test_unknown_frames_are_ignored(kind: int, world: World) -> None:
    world.client.feed(frame(kind, 0xFF, 0, b"anything") + frame(kind, 0, 0))
    assert world.works()


@pytest.mark.parametrize("size", [0, 1, 16383, 1 << 24, 0xFFFFFFFF])
def test_a_bad_max_frame_size_ends_the_connection(size: int, world: World) -> None:
    world.client.feed(frame(SETTINGS, 0, 0, struct.pack("!HI", 5, size)))
    assert world.client.connection.finished
    assert world.client.goaway is not None


@pytest.mark.parametrize("stream", [0, 1])
def test_a_window_beyond_its_bounds(stream: int, world: World) -> None:
    world.client.open(grpc_headers(WATCH))
    world.client.feed(frame(WINDOW, 0, stream, struct.pack("!I", 0x7FFFFFFF)))
    if stream:
        assert world.client.answers[stream].reset == 3
        assert world.works()
    else:
        assert world.client.connection.finished


def test_streams_beyond_the_limit_are_refused() -> None:
    world = World(streams_max=5)
    for _ in range(5):
        world.client.open(grpc_headers(WATCH))
    stream = world.client.open(grpc_headers(PUT))
    # The client has acknowledged the limit, so this is an error of the connection (RFC 9113 5.1.2).
    assert stream not in world.client.answers
    assert world.refused(PROTOCOL_ERROR)


def test_trailers_end_their_stream(world: World) -> None:
    stream = world.client.open(grpc_headers(PUT))
    world.client.feed(frame(HEADERS, END_HEADERS | END_STREAM, stream, block([("x", "1")])))
    assert world.client.answers[stream].status == ("2", "EOF")
    stream = world.client.open(grpc_headers(PUT))
    world.client.feed(frame(HEADERS, END_HEADERS, stream, block([("x", "1")])))
    assert world.client.answers[stream].reset == PROTOCOL_ERROR
    assert world.works()


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 100, PREFACE[:20] + b"XXXX", PREFACE + bytes(200), PREFACE + b"\xff" * 200],
    ids=lambda data: repr(bytes(data[:24])),
)
def test_garbage_ends_the_connection(garbage: bytes) -> None:
    connection = Connection(Grpc(echo=True))
    connection.feed(garbage)
    connection.drain()
    assert connection.finished


def test_zero_windows_hold_replies_within_bounds() -> None:
    core = Core()
    grpc = Grpc(requests=core.requests, replies=core.replies)
    grpc.set_time(NOW)
    client = Client(grpc, struct.pack("!HI", 4, 0))
    for _ in range(1000):
        client.call()
        grpc.deliver()
        for request_id, *_ in core.take():
            core.reply(request_id, bytes(60_000))
        grpc.deliver()
        client.read()
        assert grpc.gauges()["reply_bytes"] <= limits.REPLY_BYTES_MAX
    assert grpc.gauges()["calls_cut"] > 400
    client.feed(
        frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 1 << 20)) + frame(WINDOW, 0, 0, b"\0\x10\0\0")
    )
    assert any(answer.status == ("0", "") for answer in client.answers.values())


def test_shut_down_lets_calls_end_and_takes_no_more() -> None:
    core = Core()
    grpc = Grpc(requests=core.requests, replies=core.replies)
    grpc.set_time(NOW)
    client = Client(grpc)
    answer = client.call()
    client.connection.shut_down()
    client.read()
    assert client.goaway == (NO_ERROR, b"")
    assert not client.connection.finished
    late = client.open(grpc_headers(PUT))
    grpc.deliver()
    ((request_id, *_),) = core.take()
    core.reply(request_id, b"r")
    grpc.deliver()
    client.read()
    assert answer.status == ("0", "")
    assert client.answers.get(late) is None
    assert client.connection.finished


def test_a_goaway_of_the_client_lets_its_calls_end(world: World) -> None:
    stream = world.client.open(grpc_headers(PUT))
    world.client.feed(frame(GOAWAY, 0, 0, struct.pack("!II", 0, 0)))
    world.client.data(stream, grpc_message(PUT_REQUEST))
    assert world.client.answers[stream].status == ("0", "")
