"""gRPC calls without a socket: framing, refusals, deadlines, the rings, and Python's road."""

from __future__ import annotations

import gc
import gzip
import struct

import pytest

from quorate.core import limits
from quorate.core.errors import BY_ID
from quorate.frontends import _calls
from quorate.frontends._grpc import Grpc
from quorate.frontends.status import encode, inflate, quote
from tests.connections import (
    END_HEADERS,
    PUT,
    PUT_REQUEST,
    RANGE,
    SECOND,
    Answer,
    Client,
    Core,
    grpc_message,
)
from tests.http2 import HEADERS, RST_STREAM, WINDOW, block, frame, grpc_headers

MEMBER_LIST = "/etcdserverpb.Cluster/MemberList"
WATCH = "/etcdserverpb.Watch/Watch"
PUT_METHOD, PULL, CANCEL, ADMIN = 2, 65, 64, 66
FIRST, LAST, END, WHOLE = 1, 2, 4, 7
NOW = 1000 * SECOND


class World:
    """A worker's calls, a core, and one client."""

    def __init__(self, ring: int = 4 << 20, **options: int) -> None:
        self.core = Core(ring)
        self.grpc = Grpc(
            requests=self.core.requests,
            replies=self.core.replies,
            served=[MEMBER_LIST, WATCH],
            **options,  # type: ignore[arg-type]
        )
        self.now = NOW
        self.grpc.set_time(self.now)
        self.client = Client(self.grpc)

    def requests(self) -> list[tuple[int, int, int, bytes]]:
        """What the core is asked."""
        self.grpc.deliver()
        return self.core.take()

    def deliver(self) -> None:
        """Let replies in and out."""
        self.grpc.deliver()
        self.client.read()

    def wait(self, seconds: float) -> None:
        """Move the clock."""
        self.now += int(seconds * SECOND)
        self.grpc.set_time(self.now)
        self.deliver()


@pytest.fixture
def world() -> World:
    return World()


def test_a_put_goes_to_the_core_and_comes_back(world: World) -> None:
    stream = world.client.open(grpc_headers(PUT))
    world.client.data(stream, grpc_message(PUT_REQUEST))
    ((request_id, extra, method, payload),) = world.requests()
    assert (extra, method, payload) == (0, PUT_METHOD, PUT_REQUEST)
    world.core.reply(request_id, b"reply")
    world.deliver()
    answer = world.client.answers[stream]
    assert answer.headers[":status"] == "200"
    assert answer.headers["content-type"] == "application/grpc"
    assert answer.data == grpc_message(b"reply")
    assert answer.status == ("0", "")
    assert answer.ended
    assert world.grpc.gauges()["calls_live"] == 0


def test_a_message_may_come_in_any_pieces(world: World) -> None:
    whole = grpc_message(PUT_REQUEST)
    for cut in range(1, len(whole)):
        stream = world.client.open(grpc_headers(PUT))
        world.client.data(stream, whole[:cut], end=False)
        world.client.data(stream, whole[cut:])
        assert [payload for *_, payload in world.requests()] == [PUT_REQUEST], cut
    stream = world.client.open(grpc_headers(PUT))
    for byte in whole:
        world.client.data(stream, bytes([byte]), end=False)
    assert [payload for *_, payload in world.requests()] == [PUT_REQUEST]


def test_every_error_id_has_its_code_and_text(world: World) -> None:
    for number, error in BY_ID.items():
        answer = world.client.call()
        ((request_id, *_),) = world.requests()
        world.core.reply(request_id, flags=END, error=number)
        world.deliver()
        assert answer.status == (str(error.code.value), error.text)
        assert answer.data == b""
        assert answer.ended


REFUSALS: dict[str, tuple[list[tuple[str, str | bytes]], bytes | None, str, str, str]] = {
    "unknown service": (
        grpc_headers("/nope.Nope/Put"),
        None,
        "200",
        "12",
        "unknown service nope.Nope",
    ),
    "unknown method": (
        grpc_headers("/etcdserverpb.KV/Nope"),
        None,
        "200",
        "12",
        "unknown method Nope for service etcdserverpb.KV",
    ),
    "empty path": (grpc_headers(""), None, "200", "12", 'malformed method name: ""'),
    "no slash": (
        grpc_headers("etcdserverpb.KV/Put"),
        None,
        "200",
        "12",
        'malformed method name: "etcdserverpb.KV/Put"',
    ),
    "one part": (grpc_headers("/Put"), None, "200", "12", 'malformed method name: "/Put"'),
    "not served yet": (
        grpc_headers("/etcdserverpb.Auth/AuthEnable"),
        None,
        "200",
        "12",
        "etcdserver: not implemented",
    ),
    "GET": (
        [(n, "GET" if n == ":method" else v) for n, v in grpc_headers(PUT)],
        None,
        "405",
        "13",
        'Received a HEADERS frame with :method "GET" which should be POST',
    ),
    "text/plain": (
        grpc_headers(PUT, content_type="text/plain"),
        None,
        "415",
        "3",
        'invalid gRPC request content-type "text/plain"',
    ),
    "no content-type": (
        grpc_headers(PUT, content_type=None),
        None,
        "415",
        "3",
        'invalid gRPC request content-type ""',
    ),
    "two hosts": (
        [*grpc_headers(PUT), ("host", "a"), ("host", "b")],
        None,
        "400",
        "13",
        "num values of :authority: 1, num values of host: 2, "
        "both must only have 1 value as per HTTP/2 spec",
    ),
    "unknown encoding": (
        grpc_headers(PUT, grpc_encoding="snappy"),
        None,
        "200",
        "12",
        'grpc: Decompressor is not installed for grpc-encoding "snappy"',
    ),
    "too large": (
        grpc_headers(PUT),
        struct.pack("!BI", 0, 2097153),
        "200",
        "8",
        "grpc: received message larger than max (2097153 vs. 2097152)",
    ),
    "4 GiB": (
        grpc_headers(PUT),
        struct.pack("!BI", 0, 0xFFFFFFFF),
        "200",
        "8",
        "grpc: received message larger than max (4294967295 vs. 2097152)",
    ),
    "compressed, identity": (
        grpc_headers(PUT),
        grpc_message(PUT_REQUEST, 1),
        "200",
        "13",
        "grpc: compressed flag set with identity or empty encoding",
    ),
    "flag 2": (
        grpc_headers(PUT),
        grpc_message(PUT_REQUEST, 2),
        "200",
        "13",
        "grpc: received unexpected payload format 2",
    ),
    "not gzip": (
        grpc_headers(PUT, grpc_encoding="gzip"),
        grpc_message(PUT_REQUEST, 1),
        "200",
        "13",
        "grpc: failed to decompress the message: unexpected EOF",
    ),
    "empty body": (grpc_headers(PUT), b"", "200", "2", "EOF"),
    "short prefix": (grpc_headers(PUT), b"\0\0\0", "200", "2", "EOF"),
    "short message": (grpc_headers(PUT), grpc_message(b"xyz")[:-1], "200", "2", "unexpected EOF"),
    "short message to Python": (
        grpc_headers(MEMBER_LIST),
        grpc_message(b"xyz")[:-1],
        "200",
        "2",
        "unexpected EOF",
    ),
    "empty key": (
        grpc_headers(PUT),
        grpc_message(b""),
        "200",
        "3",
        "etcdserver: key is not provided",
    ),
    "timeout unit": (
        grpc_headers(PUT, grpc_timeout="1x"),
        None,
        "400",
        "13",
        'malformed grpc-timeout: transport: timeout unit is not recognized: "1x"',
    ),
    "timeout negative": (
        grpc_headers(PUT, grpc_timeout="-1S"),
        None,
        "400",
        "13",
        'malformed grpc-timeout: strconv.ParseUint: parsing "-1": invalid syntax',
    ),
    "timeout long": (
        grpc_headers(PUT, grpc_timeout="123456789S"),
        None,
        "400",
        "13",
        'malformed grpc-timeout: transport: timeout string is too long: "123456789S"',
    ),
    "timeout short": (
        grpc_headers(PUT, grpc_timeout="S"),
        None,
        "400",
        "13",
        'malformed grpc-timeout: transport: timeout string is too short: "S"',
    ),
    "timeout 1n": (
        grpc_headers(PUT, grpc_timeout="1n"),
        None,
        "200",
        "4",
        "context deadline exceeded",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_in_grpc_go_words(name: str, world: World) -> None:
    headers, payload, http_status, code, text = REFUSALS[name]
    answer = world.client.call(payload, headers)
    assert answer.headers[":status"] == http_status
    assert answer.headers["content-type"] == "application/grpc"
    assert answer.status == (code, text)
    assert answer.ended
    assert answer.data == b""
    assert world.requests() == []
    assert world.grpc.take_events() == []
    # The connection lives on, and nothing is left of the call.
    good = world.client.call()
    assert len(world.requests()) == 1
    assert good.status[0] is None
    assert world.grpc.gauges()["calls_live"] == 1


def test_headers_that_end_the_stream_are_an_empty_body(world: World) -> None:
    stream = world.client.open(grpc_headers(PUT), end=True)
    assert world.client.answers[stream].status == ("2", "EOF")


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("application/grpc+proto", "application/grpc+proto"),
        ("application/grpc+json", "application/grpc+json"),
        ("application/grpc;proto", "application/grpc+proto"),
        ("application/grpc+", "application/grpc"),
    ],
)
def test_the_content_type_comes_back(asked: str, given: str, world: World) -> None:
    answer = world.client.call(None, grpc_headers(PUT, content_type=asked))
    ((request_id, *_),) = world.requests()
    world.core.reply(request_id, b"")
    world.deliver()
    assert answer.headers["content-type"] == given
    assert answer.status == ("0", "")


def test_what_follows_the_first_message_is_ignored(world: World) -> None:
    answer = world.client.call(grpc_message(PUT_REQUEST) + b"more" + grpc_message(PUT_REQUEST))
    ((request_id, *_),) = world.requests()
    world.core.reply(request_id, b"r")
    world.deliver()
    assert answer.status == ("0", "")


def test_a_call_answered_before_the_client_ends_it_is_reset_with_no_error(world: World) -> None:
    stream = world.client.open(grpc_headers(PUT))
    world.client.data(stream, grpc_message(PUT_REQUEST), end=False)
    ((request_id, *_),) = world.requests()
    world.core.reply(request_id, b"r")
    world.deliver()
    answer = world.client.answers[stream]
    assert answer.status == ("0", "")
    assert answer.reset == 0
    assert world.grpc.gauges()["calls_live"] == 0


def test_a_gzip_message_is_unpacked(world: World) -> None:
    packed = grpc_message(gzip.compress(PUT_REQUEST), 1)
    world.client.call(packed, grpc_headers(PUT, grpc_encoding="gzip"))
    assert [payload for *_, payload in world.requests()] == [PUT_REQUEST]


def test_a_gzip_bomb_is_refused(world: World) -> None:
    packed = grpc_message(gzip.compress(bytes(64 << 20)), 1)
    answer = world.client.call(packed, grpc_headers(PUT, grpc_encoding="gzip"))
    assert answer.status == (
        "8",
        "grpc: received message after decompression larger than max 2097152",
    )


def test_inflate_speaks_go() -> None:
    good = gzip.compress(b"hello" * 100)
    assert inflate(good, 1000) == b"hello" * 100
    for bad, text in [
        (b"", "EOF"),
        (good[:5], "unexpected EOF"),
        (good[:-3], "unexpected EOF"),
        (b"x" * 20, "gzip: invalid header"),
        (good[:-8] + bytes(8), "gzip: invalid checksum"),
    ]:
        with pytest.raises(ValueError, match=text):
            inflate(bad, 1000)


def test_go_quoting_and_percent_encoding() -> None:
    assert quote(b'a"b\\c\n\x01\xff') == '"a\\"b\\\\c\\n\\x01\\xff"'
    assert quote("é\u200b".encode()) == '"é\\u200b"'
    assert encode("100% é\n") == b"100%25 %C3%A9%0A"


def test_a_large_message_gets_its_window_back(world: World) -> None:
    value = bytes(1_500_000)
    message = (
        b"\x0a\x01k\x12"
        + bytes([0x80 | (len(value) & 127), 0x80 | (len(value) >> 7 & 127), len(value) >> 14])
        + value
    )
    stream = world.client.open(grpc_headers(PUT))
    world.client.data(stream, grpc_message(message))
    assert [len(payload) for *_, payload in world.requests()] == [len(message)]
    assert world.grpc.gauges()["partial_bytes"] == 0


def test_the_clients_deadline(world: World) -> None:
    answer = world.client.call(None, grpc_headers(PUT, grpc_timeout="100m"))
    ((request_id, *_),) = world.requests()
    world.wait(0.099)
    assert answer.status[0] is None
    world.wait(0.012)
    assert answer.status == ("4", "context deadline exceeded")
    assert [(method, identity) for identity, _, method, _ in world.requests()] == [
        (CANCEL, request_id)
    ]
    world.core.reply(request_id, b"late")
    world.deliver()
    assert world.grpc.gauges()["replies_late"] == 1
    assert world.grpc.gauges()["calls_live"] == 0


@pytest.mark.parametrize("timeout", [None, "60S", "99999999H"])
def test_etcds_own_request_timeout(timeout: str | None, world: World) -> None:
    answer = world.client.call(None, grpc_headers(PUT, grpc_timeout=timeout))
    world.requests()
    world.wait(6.9)
    assert answer.status[0] is None
    world.wait(0.2)
    assert answer.status == ("14", "etcdserver: request timed out")


def test_a_hash_takes_as_long_as_it_takes(world: World) -> None:
    answer = world.client.call(grpc_message(b""), grpc_headers("/etcdserverpb.Maintenance/HashKV"))
    world.requests()
    world.wait(1000)
    assert answer.status[0] is None


def test_a_reset_cancels_the_request(world: World) -> None:
    stream = world.client.open(grpc_headers(PUT))
    world.client.data(stream, grpc_message(PUT_REQUEST))
    ((request_id, *_),) = world.requests()
    world.client.feed(frame(RST_STREAM, 0, stream, struct.pack("!I", 8)))
    assert [(i, method) for i, _, method, _ in world.requests()] == [(request_id, CANCEL)]
    world.core.reply(request_id, b"late")
    world.deliver()
    assert world.grpc.gauges()["replies_late"] == 1


def test_a_closed_connection_cancels_everything(world: World) -> None:
    for _ in range(10):
        world.client.call()
    asked = [request_id for request_id, *_ in world.requests()]
    world.client.connection.close()
    assert sorted(i for i, _, method, _ in world.requests() if method == CANCEL) == sorted(asked)
    assert world.grpc.gauges()["calls_live"] == 0


def test_replies_with_wrong_ids_are_counted_and_hurt_nobody(world: World) -> None:
    answer = world.client.call()
    ((request_id, *_),) = world.requests()
    world.core.reply(request_id + (1 << 32), b"x")
    world.core.reply(0xDEADBEEF, b"x")
    world.core.reply(request_id, b"good")
    world.deliver()
    assert answer.data == grpc_message(b"good")
    assert world.grpc.gauges()["replies_late"] == 1
    assert world.grpc.gauges()["replies_wrong"] == 1


def test_a_late_reply_does_not_reach_the_next_call_of_its_slot(world: World) -> None:
    world.client.call(None, grpc_headers(PUT, grpc_timeout="10m"))
    ((old, *_),) = world.requests()
    world.wait(1)
    world.requests()
    answers = [world.client.call() for _ in range(100)]
    slots = {request_id & 0xFFFFFFFF for request_id, *_ in world.requests()}
    assert old & 0xFFFFFFFF in slots
    world.core.reply(old, b"late")
    world.deliver()
    assert all(answer.data == b"" for answer in answers)
    assert world.grpc.gauges()["replies_late"] == 1


def test_a_slice_beyond_its_message_ends_the_call(world: World) -> None:
    bad = world.client.call()
    ((request_id, *_),) = world.requests()
    world.core.reply(request_id, b"tw", FIRST, 0, 4)
    world.deliver()
    world.core.reply(request_id, b"three", 0)
    world.deliver()
    assert bad.reset == 11
    assert world.grpc.gauges()["replies_wrong"] == 1
    assert world.grpc.gauges()["reply_bytes"] == 0


@pytest.mark.parametrize(
    ("payload", "flags", "error", "extra"),
    [
        (b"four", WHOLE, 0, 3),
        (b"four", WHOLE, 0, 5),
        (b"four", FIRST, 0, 4),
        (b"four", LAST, 0, 4),
        (b"four", FIRST, 0, 1 << 40),
        (b"", END, 9999, 0),
    ],
)
def test_a_reply_that_contradicts_itself_ends_its_call_only(
    payload: bytes, flags: int, error: int, extra: int, world: World
) -> None:
    bad = world.client.call()
    good = world.client.call()
    first, second = (request_id for request_id, *_ in world.requests())
    world.core.reply(first, payload, flags, error, extra)
    world.core.reply(second, b"good")
    world.deliver()
    assert bad.ended
    assert bad.status[0] == "10"
    assert good.data == grpc_message(b"good")
    assert world.grpc.gauges()["replies_wrong"] == 1


def test_a_long_reply_is_pulled_as_the_client_reads(world: World) -> None:
    stream = world.client.open(grpc_headers(RANGE))
    world.client.data(stream, grpc_message(b"\x0a\x01k"))
    ((request_id, *_),) = world.requests()
    total, slice_size, window = 1 << 20, 65536, 262144
    body = bytes(range(256)) * (total // 256)
    sent, allowed, pulls = 0, window, 0
    for _ in range(1000):
        while sent < total and sent + slice_size <= allowed:
            flags = (FIRST if sent == 0 else 0) | (LAST | END if sent + slice_size == total else 0)
            world.core.reply(request_id, body[sent : sent + slice_size], flags, 0, total)
            sent += slice_size
        world.deliver()
        assert world.grpc.gauges()["reply_bytes"] <= window + 5
        for identity, credit, method, _ in world.requests():
            assert (identity, method) == (request_id, PULL)
            allowed += credit
            pulls += 1
        answer = world.client.answers[stream]
        if answer.ended:
            break
        held = window_update(len(answer.data))
        world.client.feed(held)
        world.client.feed(window_update(65536, stream))
    assert answer.data == grpc_message(body)
    assert answer.status == ("0", "")
    assert pulls >= 4
    assert allowed <= total + window


def window_update(size: int, stream: int = 0) -> bytes:
    return frame(WINDOW, 0, stream, struct.pack("!I", max(1, min(size, 65536))))


def test_a_stream_of_messages(world: World) -> None:
    answer = world.client.call(
        grpc_message(b"\x0a\x01k"), grpc_headers("/etcdserverpb.KV/RangeStream")
    )
    ((request_id, *_),) = world.requests()
    world.core.reply(request_id, b"one", FIRST | LAST)
    world.deliver()
    assert answer.data == grpc_message(b"one")
    world.core.reply(request_id, b"tw", FIRST, 0, 3)
    world.core.reply(request_id, b"o", LAST)
    world.core.reply(request_id, flags=END, error=10)
    world.deliver()
    assert answer.data == grpc_message(b"one") + grpc_message(b"two")
    assert answer.status == ("11", "etcdserver: mvcc: required revision has been compacted")


def test_a_full_ring_delays_and_drops_nothing() -> None:
    world = World(ring=8192)
    answers = [
        world.client.call(grpc_message(b"\x0a\x01k\x12\x7f" + b"v" * 127)) for _ in range(200)
    ]
    seen: list[int] = []
    for _ in range(200):
        got = world.requests()
        seen += [request_id for request_id, *_ in got]
        if not got:
            break
    assert len(set(seen)) == len(seen) == 200
    for request_id in seen:
        world.core.reply(request_id, b"r")
    world.deliver()
    assert {answer.status for answer in answers} == {("0", "")}


def test_a_full_ring_still_gets_its_cancels() -> None:
    world = World(ring=8192)
    for _ in range(200):
        world.client.call(grpc_message(b"\x0a\x01k\x12\x7f" + b"v" * 127))
    world.client.connection.close()
    asked: set[int] = set()
    canceled: set[int] = set()
    for _ in range(200):
        for request_id, _, method, _ in world.requests():
            (canceled if method == CANCEL else asked).add(request_id)
    assert asked == canceled
    assert asked
    assert world.grpc.gauges()["calls_live"] == 0


def test_a_call_that_owes_credit_and_is_reset_owes_its_cancel_once() -> None:
    world = World(ring=8192)
    client = world.client
    client.feed(window_update(65536))
    stream = client.open(grpc_headers(RANGE))
    client.data(stream, grpc_message(b"\x0a\x01k"))
    client.feed(window_update(65536, stream))
    ((request_id, *_),) = world.requests()
    full = 0
    while world.grpc.gauges()["calls_live"] < 300:
        client.call(grpc_message(b"\x0a\x01k\x12\x7f" + b"v" * 127))
        full += 1
    world.core.reply(request_id, bytes(65536), FIRST, 0, 1 << 20)
    world.core.reply(request_id, bytes(65536), 0)
    world.deliver()
    # What it took is owed behind the requests that wait; now its client loses interest.
    client.feed(frame(RST_STREAM, 0, stream, struct.pack("!I", 8)))
    seen: list[tuple[int, int]] = []
    for _ in range(100):
        seen += [(identity, method) for identity, _, method, _ in world.requests()]
    assert [method for identity, method in seen if identity == request_id] == [CANCEL]
    assert len(set(seen)) == len(seen) == full + 1
    assert world.grpc.gauges()["calls_live"] == full


def test_the_garbage_collector_may_take_calls_in_flight() -> None:
    world = World()
    world.client.call()
    assert len(world.requests()) == 1
    knot = [world.grpc, world.client]
    knot.append(knot)
    del world, knot
    assert gc.collect() > 0


def test_python_answers_a_unary_call(world: World) -> None:
    answer = world.client.call(
        grpc_message(b"hi"), [*grpc_headers(MEMBER_LIST), ("x-a", "b"), ("x-raw", b"\xff")]
    )
    (kind, call_id, path, metadata), message, half = world.grpc.take_events()
    assert (kind, path) == (_calls.CALL, MEMBER_LIST)
    assert ("x-a", "b") in metadata
    assert ("x-raw", "\udcff") in metadata
    assert message == (_calls.MESSAGE, call_id, b"hi")
    assert half == (_calls.HALF_CLOSED, call_id)
    assert world.grpc.send_message(call_id, b"reply") == 10
    world.grpc.finish(call_id, 0, "", [("x-trailer", "t")])
    world.client.read()
    assert answer.data == grpc_message(b"reply")
    assert answer.status == ("0", "")
    assert answer.headers["x-trailer"] == "t"
    assert world.grpc.send_message(call_id, b"late") == -1
    world.grpc.finish(call_id, 0)
    assert world.grpc.take_events() == []


def test_python_refuses_without_a_message(world: World) -> None:
    answer = world.client.call(grpc_message(b""), grpc_headers(MEMBER_LIST))
    call_id = world.grpc.take_events()[0][1]
    world.grpc.finish(call_id, 5, "nö", [("x-t", "1")])
    world.client.read()
    assert answer.status == ("5", "nö")
    assert answer.headers["x-t"] == "1"


def test_a_stream_both_ways(world: World) -> None:
    stream = world.client.open(grpc_headers(WATCH))
    ((kind, call_id, path, _),) = world.grpc.take_events()
    assert (kind, path) == (_calls.CALL, WATCH)
    world.client.data(stream, grpc_message(b"one") + grpc_message(b"two")[:6], end=False)
    assert world.grpc.take_events() == [(_calls.MESSAGE, call_id, b"one")]
    world.grpc.send_message(call_id, b"a")
    world.client.read()
    world.client.data(stream, grpc_message(b"two")[6:], end=False)
    world.grpc.send_message(call_id, b"b")
    world.client.read()
    world.client.data(stream, b"")
    assert world.grpc.take_events() == [
        (_calls.MESSAGE, call_id, b"two"),
        (_calls.HALF_CLOSED, call_id),
    ]
    world.grpc.finish(call_id, 0)
    world.client.read()
    answer = world.client.answers[stream]
    assert answer.data == grpc_message(b"a") + grpc_message(b"b")
    assert answer.status == ("0", "")


def test_a_slow_reader_makes_python_wait(world: World) -> None:
    stream = world.client.open(grpc_headers(WATCH))
    call_id = world.grpc.take_events()[0][1]
    total = 0
    while world.grpc.send_message(call_id, bytes(10_000)) <= limits.CALL_SEND_BYTES_HIGH:
        total += 10_000
    world.client.read()
    assert world.grpc.take_events() == []
    for _ in range(10):
        world.client.feed(window_update(65536) + window_update(65536, stream))
    assert world.grpc.take_events() == [(_calls.DRAINED, call_id)]


def test_a_reset_reaches_python(world: World) -> None:
    stream = world.client.open(grpc_headers(WATCH))
    call_id = world.grpc.take_events()[0][1]
    world.client.feed(frame(RST_STREAM, 0, stream, struct.pack("!I", 8)))
    assert world.grpc.take_events() == [(_calls.RESET, call_id)]
    assert world.grpc.send_message(call_id, b"x") == -1


def test_a_question_of_pythons_own(world: World) -> None:
    ask_id = world.grpc.ask(7, b"what")
    assert world.requests() == [(ask_id, 7, ADMIN, b"what")]
    world.core.reply(ask_id, b"an", FIRST, 0, 6)
    world.core.reply(ask_id, b"swer", LAST | END)
    world.deliver()
    assert world.grpc.take_events() == [
        (_calls.REPLY, ask_id, FIRST, 0, b"an"),
        (_calls.REPLY, ask_id, LAST | END, 0, b"swer"),
    ]
    other = world.grpc.ask(8)
    world.requests()
    world.grpc.cancel_ask(other)
    assert [(i, method) for i, _, method, _ in world.requests()] == [(other, CANCEL)]
    world.core.reply(other, b"late")
    world.deliver()
    assert world.grpc.take_events() == []
    assert world.grpc.gauges()["calls_live"] == 0


def test_a_corrupt_ring_is_told_once(world: World) -> None:
    world.core.reply(1, b"x")
    world.core.replies.poke(0, b"\xff" * 16)
    world.grpc.deliver()
    world.grpc.deliver()
    assert world.grpc.take_events() == [(_calls.CORRUPT,)]


def test_calls_have_a_limit() -> None:
    world = World(calls_max=3)
    answers = [world.client.call() for _ in range(5)]
    assert [answer.reset for answer in answers] == [None, None, None, 7, 7]
    assert len(world.requests()) == 3


def test_partial_messages_have_a_limit() -> None:
    world = World(request_bytes_max=64 << 20)
    world.client.feed(frame(HEADERS, END_HEADERS, 1, block(grpc_headers(PUT))))
    world.client.next_stream = 3
    world.client.data(
        1, grpc_message(b"x" * (limits.PARTIAL_BYTES_MAX + (1 << 18)))[:-100], end=False
    )
    answer = world.client.answers[1]
    assert answer.status[0] == "10" or answer.reset == 11
    assert world.grpc.gauges()["partial_bytes"] == 0
    assert world.grpc.gauges()["calls_cut"] == 1


def test_replies_that_nobody_takes_have_a_limit(world: World) -> None:
    answers: list[Answer] = []
    slice_size = 65536
    for _ in range(limits.REPLY_BYTES_MAX // slice_size + 20):
        answers.append(world.client.call(grpc_message(b"\x0a\x01k"), grpc_headers(RANGE)))
        ((request_id, *_),) = world.requests()
        world.core.reply(request_id, bytes(slice_size))
        # The client's window is shut after 64 KiB, so the rest waits here.
        world.grpc.deliver()
        assert world.grpc.gauges()["reply_bytes"] <= limits.REPLY_BYTES_MAX
    world.client.read()
    cut = [answer for answer in answers if answer.status[0] == "10"]
    assert 15 <= len(cut) <= 25
    assert "too slowly" in str(cut[0].status[1])


def test_hot_calls_are_counted(world: World) -> None:
    for error in (0, 18):
        world.client.call()
        ((request_id, *_),) = world.requests()
        world.core.reply(request_id, flags=END if error else WHOLE, error=error)
        world.deliver()
    world.client.call(b"")
    counts = world.grpc.method_counts()[PUT]
    assert counts[:3] == [3, 2, 1]
    assert {code: n for code, n in enumerate(counts[3:]) if n} == {0: 1, 2: 1, 14: 1}
