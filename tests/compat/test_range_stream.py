"""RangeStream says in pieces what Range says at once."""

from __future__ import annotations

import pytest
from tests.messages import Message
from tests.server import Program, Server
from tests.wire import Client, Refused

pytestmark = pytest.mark.compat

UNIMPLEMENTED = 12
KEYS = 300
LAST_ONLY = {"header", "more", "count"}
ASKED: list[Message] = [
    {"range_end": b"\0"},
    {"range_end": b"\0", "limit": 25},
    {"range_end": b"\0", "limit": KEYS},
    {"range_end": b"\0", "keys_only": True},
    {"range_end": b"\0", "count_only": True},
    {"range_end": b"\0", "revision": 100},
    {"range_end": b"\0", "serializable": True, "sort_order": 1},
    {"range_end": b"a"},
    {},
]
REFUSED: list[tuple[Message, int]] = [
    ({"key": b""}, 3),
    ({"revision": 1 << 40}, 11),
    ({"sort_target": 2, "sort_order": 1}, UNIMPLEMENTED),
    ({"sort_order": 2}, UNIMPLEMENTED),
    ({"min_mod_revision": 3}, UNIMPLEMENTED),
    ({"max_create_revision": 3}, UNIMPLEMENTED),
]


@pytest.fixture(scope="module")
def streaming(shared_server: Server, program: Program) -> Server:
    """A server with some keys, among them large ones; skips for an etcd before 3.7."""
    if program.version < (3, 7):
        pytest.skip("RangeStream came with 3.7")
    with Client(shared_server.port) as client:
        for number in range(KEYS):
            client.put(b"k/%03d" % number, bytes(20_000 if number % 10 == 0 else 20))
    return shared_server


@pytest.mark.parametrize("fields", ASKED, ids=repr)
def test_the_pieces_are_the_whole(fields: Message, streaming: Server) -> None:
    request = {"key": b"k/"} | fields
    with Client(streaming.port) as client:
        whole = client.call("KV/Range", request)
        replies = client.stream("KV/RangeStream", [request])
        pieces = [reply["range_response"] for reply in replies]
    kvs = [kv for piece in pieces for kv in piece.get("kvs", [])]
    assert kvs == whole.get("kvs", [])
    assert {k: v for k, v in pieces[-1].items() if k != "kvs"} == {
        k: v for k, v in whole.items() if k != "kvs"
    }
    assert not any(LAST_ONLY & piece.keys() for piece in pieces[:-1])
    assert len(pieces) > 1 or len(kvs) < KEYS


@pytest.mark.parametrize(("fields", "code"), REFUSED, ids=repr)
def test_what_a_stream_cannot_do_is_refused(fields: Message, code: int, streaming: Server) -> None:
    with Client(streaming.port) as client, pytest.raises(Refused) as error:
        list(client.stream("KV/RangeStream", [{"key": b"k/", "range_end": b"\0"} | fields]))
    assert error.value.code == code
