"""Bad input gets etcd's own code and text, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from tests.compat.probes import TXN, nested
from tests.http2 import Raw, grpc_headers, prefixed
from tests.messages import Message, delimited, encode, varint
from tests.server import Program, Server
from tests.wire import Client, Refused

pytestmark = pytest.mark.compat

INVALID, OUT_OF_RANGE, INTERNAL, EXHAUSTED = 3, 11, 13, 8
MAX_REQUEST = 1_572_864
MAX_MESSAGE = MAX_REQUEST + 512 * 1024
EMPTY = (INVALID, "etcdserver: key is not provided")
MISSING = (INVALID, "etcdserver: key not found")
VALUE = (INVALID, "etcdserver: value is provided")
LEASE = (INVALID, "etcdserver: lease is provided")
TOO_MANY = (INVALID, "etcdserver: too many operations in txn request")
DUPLICATE = (INVALID, "etcdserver: duplicate key given in txn request")
TOO_LARGE = (INVALID, "etcdserver: request is too large")
COMPACTED = (OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE = (OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
NO_LEASE = (5, "etcdserver: requested lease not found")


def put(key: bytes = b"k", **fields: Any) -> Message:
    return {"request_put": {"key": key, **fields}}


def delete(key: bytes, end: bytes = b"") -> Message:
    return {"request_delete_range": {"key": key, "range_end": end} if end else {"key": key}}


def txn(*ops: Message) -> Message:
    return {"success": list(ops)}


def inner(*ops: Message) -> Message:
    return {"request_txn": txn(*ops)}


PUTS = [put(b"n%d" % number) for number in range(129)]

# Store: revision 6, compacted at 4; key `k` and, from revision 5 on, `l`.
REFUSED: dict[str, tuple[str, Message, tuple[int, str]]] = {
    "put: empty key": ("KV/Put", {"value": b"v"}, EMPTY),
    "range: empty key": ("KV/Range", {}, EMPTY),
    "range: empty key with an end": ("KV/Range", {"range_end": b"z"}, EMPTY),
    "delete: empty key": ("KV/DeleteRange", {"range_end": b"\0"}, EMPTY),
    "txn: compare with an empty key": ("KV/Txn", {"compare": [{"version": 0}]}, EMPTY),
    "txn: put with an empty key": ("KV/Txn", txn(put(b"")), EMPTY),
    "txn: range with an empty key": ("KV/Txn", txn({"request_range": {}}), EMPTY),
    "txn: delete with an empty key": ("KV/Txn", txn(delete(b"")), EMPTY),
    "txn: inner empty key": ("KV/Txn", txn(inner(put(b""))), EMPTY),
    "txn: empty key in the branch not taken": ("KV/Txn", {"failure": [put(b"")]}, EMPTY),
    "txn: empty op": ("KV/Txn", txn({}), MISSING),
    "put: ignore_value with a value": (
        "KV/Put",
        {"key": b"k", "value": b"v", "ignore_value": 1},
        VALUE,
    ),
    "put: ignore_lease with a lease": (
        "KV/Put",
        {"key": b"k", "lease": 5, "ignore_lease": 1},
        LEASE,
    ),
    "put: ignore_value of no key": ("KV/Put", {"key": b"no", "ignore_value": 1}, MISSING),
    "put: ignore_lease of no key": ("KV/Put", {"key": b"no", "ignore_lease": 1}, MISSING),
    "put: a lease that is not there": ("KV/Put", {"key": b"k", "lease": 12345}, NO_LEASE),
    "txn: ignore_value of no key": ("KV/Txn", txn(put(b"no", ignore_value=1)), MISSING),
    "txn: a lease that is not there": ("KV/Txn", txn(put(lease=12345)), NO_LEASE),
    "txn: 129 ops": ("KV/Txn", txn(*PUTS), TOO_MANY),
    "txn: 129 ops in the other branch": ("KV/Txn", {"failure": PUTS}, TOO_MANY),
    "txn: 129 compares": ("KV/Txn", {"compare": [{"key": b"k"}] * 129}, TOO_MANY),
    "txn: 128 ops, the last one nested with 1": (
        "KV/Txn",
        txn(*PUTS[:127], inner(put(b"z"))),
        TOO_MANY,
    ),
    "txn: a key put twice": ("KV/Txn", txn(put(), put()), DUPLICATE),
    "txn: put, then deleted": ("KV/Txn", txn(put(), delete(b"k")), DUPLICATE),
    "txn: put, then in a deleted range": ("KV/Txn", txn(put(), delete(b"a", b"z")), DUPLICATE),
    "txn: put twice, one of them deeper": ("KV/Txn", txn(put(), inner(put())), DUPLICATE),
    "txn: put by two siblings": ("KV/Txn", txn(inner(put()), inner(put())), DUPLICATE),
    "txn: duplicate in the branch not taken": ("KV/Txn", {"failure": [put(), put()]}, DUPLICATE),
    "compact: again": ("KV/Compact", {"revision": 4}, COMPACTED),
    "compact: below": ("KV/Compact", {"revision": 3}, COMPACTED),
    "compact: zero": ("KV/Compact", {}, COMPACTED),
    "compact: the future": ("KV/Compact", {"revision": 7}, FUTURE),
    "range: the future": ("KV/Range", {"key": b"k", "revision": 7}, FUTURE),
    "range: compacted": ("KV/Range", {"key": b"k", "revision": 3}, COMPACTED),
    "hashkv: the future": ("Maintenance/HashKV", {"revision": 7}, FUTURE),
    "hashkv: compacted": ("Maintenance/HashKV", {"revision": 3}, COMPACTED),
    "txn: range of the future": (
        "KV/Txn",
        txn(put(), {"request_range": {"key": b"k", "revision": 8}}),
        FUTURE,
    ),
    "txn: range of what is compacted": (
        "KV/Txn",
        txn({"request_range": {"key": b"k", "revision": 3}}, put()),
        COMPACTED,
    ),
    "put: larger than --max-request-bytes": (
        "KV/Put",
        {"key": b"k", "value": bytes(MAX_REQUEST)},
        TOO_LARGE,
    ),
}
ALLOWED: dict[str, tuple[str, Message]] = {
    "range: at the compacted revision": ("KV/Range", {"key": b"k", "revision": 4}),
    "range: an end below the key": ("KV/Range", {"key": b"k", "range_end": b"a"}),
    "range: negative revision": ("KV/Range", {"key": b"k", "revision": -1}),
    "delete: nothing there": ("KV/DeleteRange", {"key": b"no"}),
    "txn: empty": ("KV/Txn", {}),
    "txn: 128 compares": ("KV/Txn", {"compare": [{"key": b"k"}] * 128}),
    "txn: the same key in both branches": ("KV/Txn", {"success": [], "failure": [put()]}),
    "txn: two deletes that overlap": ("KV/Txn", txn(delete(b"x", b"z"), delete(b"y"))),
    "compare: unknown result": ("KV/Txn", {"compare": [{"key": b"k", "result": 9}]}),
    "compare: unknown target": ("KV/Txn", {"compare": [{"key": b"k", "target": 9}]}),
}


@pytest.fixture(scope="module")
def filled(shared_server: Server) -> Server:
    """Revision 6, compacted at 4."""
    with Client(shared_server.port) as client:
        for number in range(4):
            client.put(b"k" if number < 3 else b"l", b"%d" % number)
        client.put(b"k", b"5")
        client.call("KV/Compact", {"revision": 4})
    return shared_server


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_in_etcds_words(name: str, filled: Server) -> None:
    rpc, request, expected = REFUSED[name]
    with Client(filled.port) as client:
        before = client.revision(), client.all()
        with pytest.raises(Refused) as error:
            client.call(rpc, request)
        assert (error.value.code, error.value.text) == expected
        assert (client.revision(), client.all()) == before


@pytest.mark.parametrize("name", ALLOWED)
def test_what_only_looks_wrong_is_allowed(name: str, filled: Server) -> None:
    with Client(filled.port) as client:
        before = client.revision()
        client.call(*ALLOWED[name])
        assert client.revision() == before


@pytest.mark.parametrize("option", [{"sort_order": 9}, {"sort_target": 9}, {"sort_order": -1}])
def test_an_unknown_sort_is_refused(option: Message, filled: Server, program: Program) -> None:
    if not program.is_quorate:
        pytest.skip("etcd before 3.6 dies of it")
    with Client(filled.port) as client, pytest.raises(Refused) as error:
        client.get(b"k", **option)
    assert (error.value.code, error.value.text) == (INVALID, "etcdserver: invalid sort option")


def test_an_empty_range_end_on_the_wire_is_none(filled: Server, program: Program) -> None:
    if not program.is_quorate:
        pytest.skip("etcd before 3.7 takes it for an open end")
    with Client(filled.port) as client:
        reply = client.call("KV/Range", {"key": b"k", "range_end": b""})
        assert reply["count"] == 1


def test_the_largest_request_passes(server: Server, client: Client) -> None:
    value = bytes(MAX_REQUEST - 100)
    client.put(b"k", value)
    assert client.get(b"k")["kvs"][0]["value"] == value
    server.kill()
    server.restart()
    assert client.get(b"k")["kvs"][0].get("value") == value


def test_a_message_over_the_grpc_limit(filled: Server) -> None:
    size = MAX_MESSAGE + 1
    with Client(filled.port) as client, pytest.raises(Refused) as error:
        client.put(b"k", bytes(size))
    assert error.value.code == EXHAUSTED
    assert error.value.text.startswith("grpc: received message larger than max (")
    assert error.value.text.endswith(f" vs. {MAX_MESSAGE})")


@pytest.mark.parametrize("asked", [b"--max-txn-ops=3", b"--max-request-bytes=1000"])
def test_the_limits_are_flags(asked: bytes, server: Server) -> None:
    server.stop()
    server.flags = (asked.decode(),)
    server.restart()
    with Client(server.port) as client:
        if b"txn" in asked:
            client.txn(success=PUTS[:3])
            call, expected = ("KV/Txn", txn(*PUTS[:4])), TOO_MANY
        else:
            client.put(b"k", bytes(900))
            call, expected = ("KV/Put", {"key": b"k", "value": bytes(1100)}), TOO_LARGE
        with pytest.raises(Refused) as error:
            client.call(*call)
    assert (error.value.code, error.value.text) == expected


@pytest.mark.parametrize("levels", [500, 2_000, 9_000, 12_000, 100_000])
def test_deep_nesting_is_refused_or_done_and_never_a_crash(levels: int, filled: Server) -> None:
    data = nested(levels) if levels < 20_000 else delimited(2, b"\x22" * 1_000_000)
    before = filled.identity()
    with Raw(filled.port) as raw:
        answer = raw.ask(grpc_headers(TXN), prefixed(data), seconds=20)
    assert answer.status in {0, INVALID, INTERNAL}, answer
    assert filled.identity() == before


LIES = {
    "a key longer than the message": varint(1 << 3 | 2) + varint(100) + b"k",
    "a key of 2^63 bytes": varint(1 << 3 | 2) + varint(1 << 63) + b"k",
    "a key of 2^31 bytes": varint(1 << 3 | 2) + varint(1 << 31) + b"k",
    "an op longer than its Txn": varint(2 << 3 | 2) + varint(50) + b"\x12\x01",
    "a varint of eleven bytes": varint(3 << 3) + b"\xff" * 10 + b"\x01",
    "an end of a group": b"\x0c",
    "a group that does not end": b"\x0b\x0a\x01k",
    "a tag with nothing behind": b"\x0a",
    "fixed64 cut short": b"\x19\x01\x02",
    "fixed32 cut short": b"\x1d\x01",
}


@pytest.mark.parametrize("path", ["KV/Put", "KV/Range", "KV/DeleteRange", "KV/Txn"])
@pytest.mark.parametrize("name", LIES)
def test_a_lying_length_is_malformed(
    name: str, path: str, filled: Server, program: Program
) -> None:
    with Raw(filled.port) as raw:
        answer = raw.call(f"/etcdserverpb.{path}", LIES[name])
        assert answer.status == INTERNAL, answer
        if program.is_quorate:
            text = "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"
            assert answer.text == text
        good = raw.call("/etcdserverpb.KV/Range", encode("RangeRequest", {"key": b"k"}))
        assert good.status == 0


def test_fields_that_come_twice_are_the_last_one(filled: Server) -> None:
    data = (
        delimited(1, b"no") + delimited(1, b"k") + varint(9 << 3) + b"\0" + varint(9 << 3) + b"\1"
    )
    with Raw(filled.port) as raw:
        answer = raw.call("/etcdserverpb.KV/Range", data)
    assert answer.status == 0
    assert answer.data.endswith(b"\x20\x01"), "count 1"
