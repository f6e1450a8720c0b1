"""Calls not quite right, over raw HTTP/2 and HTTP/1.1, get etcd 3.7.1's answer, or a better one."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest
from tests.compat.probes import GOOD, PROBES, PUT
from tests.compat.recordings import probes
from tests.http2 import Raw, grpc_headers, prefixed
from tests.server import Program, Server

pytestmark = pytest.mark.compat

RECORDED = probes()
# Where etcd dies or hangs, quorate answers; the recording's `end` says so.
BETTER: dict[str, dict[str, str]] = {
    "alarm with action 9": {":status": "200", "grpc-status": "3"},
    "headers end the stream": {":status": "200", "grpc-status": "2", "grpc-message": "EOF"},
}
# These end an etcd 3.4 or 3.5.
ENDS_OLD_ETCD = {
    "alarm with action 9",
    "client api version not UTF-8",
    "headers end the stream",
    "range with sort target 9",
}
# What later issues bring: until then the path is unknown.
LATER = {"GET /debug/vars", "GET /v3/kv/range"}
NOT_FOUND = RECORDED["http1"]["GET /nope"]


def test_every_recorded_probe_is_made() -> None:
    assert RECORDED["grpc"].keys() == PROBES.keys()


@pytest.mark.parametrize("name", sorted(PROBES))
def test_a_grpc_call_that_is_not_quite_right(
    name: str, shared_server: Server, program: Program
) -> None:
    if not program.is_quorate and name in ENDS_OLD_ETCD:
        pytest.skip("this etcd ends")
    recorded: dict[str, Any] = BETTER.get(name) or RECORDED["grpc"][name]
    with Raw(shared_server.port) as raw:
        answer = PROBES[name](raw)
        if not program.is_quorate:
            assert answer.end != "nothing"
            return  # older releases of grpc-go refuse the same calls in other words
        for header in (":status", "content-type", "grpc-status"):
            if header in recorded:
                assert answer.headers.get(header) == recorded[header], answer
        if "grpc-message" in recorded:
            assert answer.text == recorded["grpc-message"]
        assert bool(answer.data) == ("data" in recorded), answer
        assert answer.end == recorded.get("end", "stream ended")
    assert shared_server.alive()


@pytest.mark.parametrize("name", sorted(PROBES))
def test_the_connection_outlives_an_odd_call(
    name: str, shared_server: Server, program: Program
) -> None:
    """HTTP/2 allows each of these errors to end with its stream."""
    if not program.is_quorate and name in ENDS_OLD_ETCD:
        pytest.skip("this etcd ends")
    with Raw(shared_server.port) as raw:
        PROBES[name](raw)
        answer = raw.ask(grpc_headers(PUT), prefixed(GOOD))
        assert answer.status == 0, answer


@pytest.mark.parametrize("name", sorted(RECORDED["http1"]))
def test_a_plain_http_request(name: str, shared_server: Server, program: Program) -> None:
    recorded = RECORDED["http1"][name]
    status, headers, body = shared_server.http(*name.split(" ", 1))
    if not program.is_quorate:
        assert status in {recorded["status"], 200, 404, 405}
        return
    if name in LATER and status == NOT_FOUND["status"]:
        recorded = NOT_FOUND
    assert status == recorded["status"], body
    if not recorded["body"].endswith("lines"):
        assert body.decode() == recorded["body"]
    for header, value in recorded["headers"].items():
        if header != "transfer-encoding":
            assert headers.get(header) == value, header


def test_metrics_are_prometheus_text(shared_server: Server) -> None:
    _, headers, body = shared_server.http("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = body.decode().splitlines()
    assert any(line.startswith("etcd_server_has_leader 1") for line in lines)
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[a-zA-Z_:]\S*({.*})? \S+( \d+)?", line), line


GARBAGE = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"A" * 100_000,
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(200),
    b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    bytes(range(256)) * 40,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda data: repr(bytes(data[:16])))
def test_garbage_on_the_port_is_answered_or_dropped(garbage: bytes, shared_server: Server) -> None:
    before = shared_server.identity()
    with socket.create_connection(("127.0.0.1", shared_server.port), timeout=5) as peer:
        try:
            peer.sendall(garbage)
            peer.shutdown(socket.SHUT_WR)
            received = b""
            while piece := peer.recv(65536):
                received += piece
        except TimeoutError:
            pytest.fail("neither answered nor dropped")
        except OSError:
            received = b""
    assert len(received) < 65536
    assert shared_server.healthy()
    assert shared_server.identity() == before
