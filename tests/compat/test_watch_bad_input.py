"""Watch streams that are not right, or too much: the server lives and serves the others."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tests.depth import depth, seed
from tests.http2 import Answer, Raw, grpc_headers, prefixed
from tests.messages import decode, delimited, encode, varint
from tests.server import Program, Server
from tests.watches import NO_WATCH, WATCH, Stream
from tests.wire import Client

from quorate.core.limits import (
    GRPC_OVERHEAD_BYTES,
    REQUEST_BYTES_MAX_DEFAULT,
    WATCHERS_PER_CONNECTION_MAX,
)

pytestmark = pytest.mark.compat

EVERYTHING = (b"\0", b"\0")
MANY = depth(20_000, 100_000)
PAIRS = depth(2000, 20_000)
MIB = 1 << 20
# What a stream that is never read may cost, beside the data.
UNREAD_BYTES = 64 * MIB
UNREAD_WATCHES, UNREAD_PUTS, UNREAD_VALUE = 4, 80, 300_000
WAIT_SECONDS = 60.0
MESSAGE_MAX = REQUEST_BYTES_MAX_DEFAULT + GRPC_OVERHEAD_BYTES
# What as many watchers as a connection may have take, of one key.
WATCHERS_BYTES = 64 * MIB
UNREADABLE = (
    "grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data"
)
FAR = (1 << 63) - 1


@pytest.fixture
def stream(client: Client) -> Iterator[Stream]:
    """A Watch stream on a fresh server."""
    with Stream(client) as one:
        yield one


@pytest.fixture(autouse=True)
def others(server: Server) -> Iterator[None]:
    """After each test: the same processes run, and another client is served and told."""
    before = server.identity()
    yield
    assert server.identity() == before, server.tail()
    with Client(server.port) as client, Stream(client) as stream:
        watch_id = stream.watch(b"still/here")
        client.put(b"still/here", b"v")
        stream.wait_events(watch_id, 1)


def create(**fields: object) -> bytes:
    """A WatchRequest that creates."""
    return encode("WatchRequest", {"create_request": fields})


# Each is taken for nothing; what follows on the stream is served.
IGNORED = {
    "nothing": b"",
    "an unknown field": varint(15 << 3 | 2) + varint(3) + b"abc",
    "an unknown number": varint(1000 << 3) + varint(5),
    "an unknown member of the oneof": delimited(9, create(key=b"k")),
}


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_a_request_that_asks_nothing_is_ignored(name: str, stream: Stream) -> None:
    stream.send_bytes(IGNORED[name])
    assert stream.watch(b"k") == 0
    assert len(stream.responses) == 1


def test_the_last_of_the_oneof_counts(client: Client, stream: Stream) -> None:
    cancel = encode("WatchRequest", {"cancel_request": {"watch_id": 0}})
    stream.send_bytes(cancel + create(key=b"k"))
    stream.creates += 1
    assert stream.answer(0)["created"]
    stream.send_bytes(create(key=b"other") + cancel)
    assert stream.wait_canceled(0)["canceled"]
    assert len(stream.responses) == 2


def test_a_create_of_nothing_watches_the_first_key(client: Client, stream: Stream) -> None:
    assert stream.watch() == 0
    client.put(b"\0", b"v")
    assert len(stream.wait_events(0, 1)) == 1


BROKEN = {
    "a cut length": b"\x0a\xff",
    "a length that lies": b"\x0a\x7fabc",
    "an endless number": b"\x0a\x0c" + b"\x18" + b"\xff" * 11,
    "a group that never ends": b"\x0b",
    "wire type 7": b"\x0f",
    "field 0": b"\x02\x01a",
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_bytes_that_are_no_message_end_the_stream(
    name: str, stream: Stream, program: Program
) -> None:
    stream.watch(b"k")
    stream.send_bytes(BROKEN[name])
    end = stream.wait_end()
    assert end.code == 13, end
    assert not program.is_quorate or end.text == UNREADABLE


@pytest.mark.parametrize("first", [b"", prefixed(create(key=b"k"))])
def test_an_end_within_a_request_ends_the_stream(first: bytes, server: Server) -> None:
    """As a handler's stream in Go ends; that of a unary call has another code."""
    with Raw(server.port) as raw:
        stream = raw.open(grpc_headers(WATCH))
        raw.body(stream, first + prefixed(create(key=b"k"))[:-1])
        answer = raw.wait(stream)
        assert (answer.status, answer.text) == (13, "unexpected EOF")


def test_a_request_beyond_the_limit_ends_the_stream(stream: Stream) -> None:
    """--max-request-bytes and 512 KiB, and one byte."""
    stream.watch(b"k")
    stream.send_bytes(bytes(MESSAGE_MAX + 1))
    end = stream.wait_end()
    assert (end.code, end.text) == (
        8,
        f"grpc: received message larger than max ({MESSAGE_MAX + 1} vs. {MESSAGE_MAX})",
    )


def test_random_bytes_end_at_most_the_stream(client: Client) -> None:
    chance = random.Random(number := seed())
    print(f"QUORATE_SEED={number}")
    good = create(
        key=b"k", range_end=b"\0", start_revision=1, prev_kv=True, filters=[0], watch_id=3
    )
    for _ in range(depth(60, 2000)):
        with Stream(client) as stream:
            for _ in range(5):
                data = bytearray(good)
                for _ in range(chance.randrange(1, 4)):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                stream.send_bytes(bytes(data[: chance.randrange(len(data) + 1)]))
            stream.half_close()
    assert client.revision() == 1


@pytest.mark.parametrize("start", [FAR, FAR - 1])
def test_a_start_that_never_comes(start: int, client: Client, stream: Stream) -> None:
    watch_id = stream.watch(b"k", start_revision=start)
    sentinel = stream.watch(b"k")
    client.put(b"k", b"v")
    stream.wait_events(sentinel, 1)
    assert len(stream.of(watch_id).responses) == 1


def test_a_range_that_runs_backwards(stream: Stream) -> None:
    assert stream.create(b"z", b"a")["watch_id"] == NO_WATCH
    assert stream.create(b"\xff\xff", b"\xff")["watch_id"] == NO_WATCH
    assert stream.watch(b"\xff\xff", b"\0") == 0


def test_a_very_long_key(client: Client, stream: Stream) -> None:
    key = b"k" * (MIB // 2)
    watch_id = stream.watch(key)
    prefix = stream.watch(key[:-1], key[:-1] + b"l")
    client.put(key, b"v")
    for one in (watch_id, prefix):
        assert stream.wait_events(one, 1)[0]["kv"]["key"] == key


def test_create_and_cancel_again_and_again(client: Client, stream: Stream) -> None:
    for number in range(PAIRS):
        stream.ask(b"k%d" % number, watch_id=7)
        stream.send(cancel_request={"watch_id": 7})
    told = stream.of(7)
    stream.wait(lambda: len(told.canceled) == PAIRS, "every cancel", WAIT_SECONDS)
    assert len(told.created) == PAIRS
    client.put(b"k1", b"v")
    assert stream.watch(b"k", watch_id=7) == 7
    assert not told.events


def test_one_id_asked_for_again_and_again(client: Client, stream: Stream) -> None:
    for _ in range(PAIRS):
        last = stream.ask(b"k", watch_id=7)
    stream.answer(last, WAIT_SECONDS)
    assert sum(bool(one.get("canceled")) for one in stream.created) == PAIRS - 1
    client.put(b"k", b"v")
    assert len(stream.wait_events(7, 1)) == 1


def test_progress_asked_for_again_and_again(client: Client, stream: Stream) -> None:
    """Not every request needs an answer of its own; no answer may be wrong."""
    stream.watch(b"k")
    for number in range(PAIRS):
        stream.progress()
        if number % 500 == 0:
            client.put(b"k", b"%d" % number)
    last = client.revision()
    stream.wait_revision(0, last)
    stream.progress()
    assert stream.wait_progress(last, seconds=WAIT_SECONDS) == last
    assert stream.of(NO_WATCH).progress == sorted(stream.of(NO_WATCH).progress)


def test_a_client_that_creates_very_many(server: Server) -> None:
    """A limit may end it, with an error that says so: then its watches are gone, and no others."""
    with Client(server.port) as many, Client(server.port) as client, Stream(client) as other:
        watch_id = other.watch(b"other")
        with Stream(many) as stream:
            asked = 0
            while asked < MANY and stream.end is None:
                stream.ask(b"k%d" % asked)
                asked += 1
                if asked % 1000 == 0:
                    client.put(b"other", b"%d" % asked)
            done = f"{asked} answers, or an end"
            stream.wait(lambda: stream.end or len(stream.created) == asked, done, WAIT_SECONDS)
            if stream.end is None:
                client.put(b"k17", b"v")
                told = stream.created[17].get("watch_id", 0)
                assert len(stream.wait_events(told, 1)) == 1
            else:
                assert stream.end.code == 8, stream.end
                assert stream.end.text
        last = client.put(b"other", b"last")["header"]["revision"]
        other.wait_revision(watch_id, last)


class Granted:
    """Counts the watches that a raw stream was granted; any other response is an error."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.count = self._at = 0

    def come_to(self, count: int) -> bool:
        """Whether there are so many now."""
        data = self.answer.data
        while self._at + 5 <= len(data):
            end = self._at + 5 + int.from_bytes(data[self._at + 1 : self._at + 5])
            if end > len(data):
                break
            assert data[end - 2 : end] == b"\x18\x01", "refused"
            self._at = end
            self.count += 1
        return self.count == count


def test_watchers_of_a_connection_have_a_limit(server: Server, program: Program) -> None:
    """Beyond it a create is refused, and nothing else; those who go make room, and it is only that
    connection's."""
    if not program.is_quorate:
        pytest.skip("etcd has none")
    share = WATCHERS_PER_CONNECTION_MAX // 4
    text = f"etcdserver: too many watchers on this connection (at most {4 * share})"
    before = server.memory()
    with Raw(server.port) as raw, Client(server.port) as client, Stream(client) as other:
        streams = [raw.open(grpc_headers(WATCH)) for _ in range(4)]
        for stream in streams:
            raw.body(stream, prefixed(create(key=b"k")) * share, end=False, seconds=20)
        granted = [Granted(raw.answers[stream]) for stream in streams]
        raw.wait_for(lambda: all(one.come_to(share) for one in granted), WAIT_SECONDS)
        grown = server.memory() - before
        assert grown < WATCHERS_BYTES, f"{grown / MIB:.0f} MiB"
        answer = raw.answers[streams[0]]
        for _ in range(2):
            answer.data = b""
            raw.body(streams[0], prefixed(create(key=b"k")), end=False)
            raw.wait_for(lambda: answer.data)
            refusal = decode("WatchResponse", answer.data[5:])
            assert (refusal["watch_id"], refusal["cancel_reason"]) == (NO_WATCH, text)
            assert refusal["created"]
            assert refusal["canceled"]
        assert other.watch(b"k") == 0
        cancel = encode("WatchRequest", {"cancel_request": {"watch_id": 7}})
        answer.data = b""
        raw.body(streams[0], prefixed(cancel) + prefixed(create(key=b"k")), end=False)
        raw.wait_for(lambda: answer.data.count(b"\x18\x01"))
        assert text.encode() not in answer.data
        raw.reset(streams[3])
        again = raw.open(grpc_headers(WATCH))
        raw.body(again, prefixed(create(key=b"k")) * share, end=False, seconds=20)
        last = Granted(raw.answers[again])
        raw.wait_for(lambda: last.come_to(share), WAIT_SECONDS)


def test_a_stream_that_is_never_read(server: Server, program: Program) -> None:
    """Its watches are behind for good; nobody waits for them, and they cost no more than named."""
    with (
        Client(server.port) as lazy,
        Client(server.port) as client,
        Stream(client) as other,
        Stream(lazy) as stream,
    ):
        for number in range(UNREAD_WATCHES):
            stream.watch(*EVERYTHING, prev_kv=bool(number % 2))
        stream.pause()
        watch_id = other.watch(*EVERYTHING)
        for number in range(8):
            client.put(b"k%d" % number, b"." * UNREAD_VALUE)
        before = server.memory()
        for number in range(UNREAD_PUTS):
            client.put(b"k%d" % (number % 8), b"%d=" % number + b"." * UNREAD_VALUE)
        other.wait_revision(watch_id, client.revision(), WAIT_SECONDS)
        grown = server.memory() - before - UNREAD_PUTS * UNREAD_VALUE
        assert not program.is_quorate or grown < UNREAD_BYTES, f"{grown / MIB:.0f} MiB"
        stream.resume()
        for one in range(UNREAD_WATCHES):
            stream.wait_revision(one, client.revision(), WAIT_SECONDS)


def test_streams_that_are_opened_and_dropped(server: Server) -> None:
    """With watches on them, and events under way."""
    with Client(server.port) as client, Client(server.port) as other:
        for number in range(depth(100, 2000)):
            client.put(b"k", b"." * 10_000)
            stream = Stream(other)
            for _ in range(number % 5):
                stream.ask(*EVERYTHING, start_revision=1)
            stream.break_off()
        assert client.revision() >= 100
