"""How to make each gRPC call of `probes.json`: the calls that are not quite right."""

from __future__ import annotations

from collections.abc import Callable

from tests.http2 import Answer, Headers, Raw, grpc_headers, prefixed
from tests.messages import Message, delimited, encode, varint

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
TXN = "/etcdserverpb.KV/Txn"
ALARM = "/etcdserverpb.Maintenance/Alarm"
HEALTH = "/grpc.health.v1.Health/Check"
GOOD = encode("PutRequest", {"key": b"k", "value": b"v"})

Probe = Callable[[Raw], Answer]


def headers(path: str = PUT, data: bytes = prefixed(GOOD), **replace: str | bytes | None) -> Probe:
    """A put with some header replaced, added or left out."""
    return lambda raw: raw.ask(grpc_headers(path, **replace), data)


def body(data: bytes, path: str = PUT) -> Probe:
    """A call whose body is these bytes."""
    return headers(path, data)


def message(path: str, name: str, fields: Message) -> Probe:
    """A well-formed message with odd contents."""
    return headers(path, prefixed(encode(name, fields)))


def ended_by_headers(raw: Raw) -> Answer:
    """A call whose HEADERS end the stream."""
    return raw.wait(raw.open(grpc_headers(PUT), end=True))


def extra_header(name: str, value: str) -> Probe:
    """A put with one more header line, its name as it is written."""
    line: Headers = [(name, value)]
    return lambda raw: raw.ask(grpc_headers(PUT) + line, prefixed(GOOD))


def nested(levels: int) -> bytes:
    """A TxnRequest within a TxnRequest, so many deep, built from the inside."""
    data = b""
    for _ in range(levels):
        data = delimited(2, delimited(4, data))
    return data


PROBES: dict[str, Probe] = {
    "a good put": headers(),
    "a put of 60,000 bytes": message(PUT, "PutRequest", {"key": b"k", "value": b"v" * 60_000}),
    "alarm with action 9": message(ALARM, "AlarmRequest", {"action": 9}),
    "client api version not UTF-8": headers(client_api_version=b"\xff\xfe"),
    "compare with result 9": message(TXN, "TxnRequest", {"compare": [{"result": 9, "key": b"k"}]}),
    "compare with target 9": message(TXN, "TxnRequest", {"compare": [{"target": 9, "key": b"k"}]}),
    "compressed flag, grpc-encoding gzip": headers(
        data=prefixed(GOOD, flag=1), grpc_encoding="gzip"
    ),
    "compressed flag, no grpc-encoding": body(prefixed(GOOD, flag=1)),
    "connection header": extra_header("connection", "close"),
    "content-type application/grpc+json": headers(content_type="application/grpc+json"),
    "content-type application/grpc+proto": headers(content_type="application/grpc+proto"),
    "content-type application/json": headers(content_type="application/json"),
    "content-type text/plain": headers(content_type="text/plain"),
    "data longer than the length": body(prefixed(GOOD) + b"\0\0\0"),
    "empty body": body(b""),
    "empty path": headers(path=""),
    "flag 2": body(prefixed(GOOD, flag=2)),
    "grpc-encoding gzip, not compressed": headers(grpc_encoding="gzip"),
    "grpc-encoding unknown": headers(data=prefixed(GOOD, flag=1), grpc_encoding="snappy"),
    "grpc-timeout 1S": headers(grpc_timeout="1S"),
    "grpc-timeout 1n": headers(grpc_timeout="1n"),
    "grpc-timeout junk": headers(grpc_timeout="1x"),
    "grpc-timeout negative": headers(grpc_timeout="-1S"),
    "grpc-timeout nine digits": headers(grpc_timeout="123456789S"),
    "hasleader true": headers(hasleader="true"),
    "headers end the stream": ended_by_headers,
    "health of an unknown service": message(HEALTH, "HealthCheckRequest", {"service": "nope"}),
    "health of the server": message(HEALTH, "HealthCheckRequest", {}),
    "length just over the limit (2 MiB + 1)": body(prefixed(GOOD, length=2_097_153)),
    "length longer than the data": body(prefixed(GOOD, length=len(GOOD) + 10)),
    "length says 2 GiB": body(prefixed(GOOD, length=(1 << 31) - 1)),
    "length says 4 GiB": body(prefixed(GOOD, length=(1 << 32) - 1)),
    "malformed protobuf: cut varint": body(prefixed(b"\x18\xff")),
    "malformed protobuf: field 0": body(prefixed(b"\x00\x01")),
    "malformed protobuf: wire type 7": body(prefixed(b"\x0f\x01")),
    "method GET": headers(method="GET"),
    "method PUT": headers(method="PUT"),
    "no :authority": headers(authority=None),
    "no content-type": headers(content_type=None),
    "no te": headers(te=None),
    "path with one part": headers(path="/Put"),
    "path without its leading slash": headers(path="etcdserverpb.KV/Put"),
    "prefix cut short": body(b"\0\0\0"),
    "range with limit -1": message(RANGE, "RangeRequest", {"key": b"k", "limit": -1}),
    "range with sort order 9": message(RANGE, "RangeRequest", {"key": b"k", "sort_order": 9}),
    "range with sort target 9": message(RANGE, "RangeRequest", {"key": b"k", "sort_target": 9}),
    "server reflection": headers("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    "token of nobody": headers(token="nobody"),
    "two messages on a unary call": body(prefixed(GOOD) * 2),
    "txn nested 10 deep": body(prefixed(nested(10)), TXN),
    "txn nested 100 deep": body(prefixed(nested(100)), TXN),
    "txn nested 5000 deep": body(prefixed(nested(5000)), TXN),
    "txn with an empty op": message(TXN, "TxnRequest", {"success": [{}]}),
    "unknown field": body(prefixed(GOOD + varint(1000 << 3) + b"\x01")),
    "unknown method of a known service": headers("/etcdserverpb.KV/Nope"),
    "unknown service": headers("/nope.Nope/Nope"),
    "upper-case header name": extra_header("X-Upper", "x"),
    "wrong wire type for a known field": body(prefixed(b"\x08\x01")),
    "zero-length message (empty key)": body(prefixed(b"")),
}
