"""Orderly ends, refused starts: SIGTERM under load, a second server on one directory or port."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
from tests.crash.load import Ledger, Load
from tests.http2 import Raw, grpc_headers, prefixed
from tests.messages import encode
from tests.server import Program, Server
from tests.watches import WATCH, Stream
from tests.wire import Client, Refused, refused

from quorate.core.limits import DRAIN_SECONDS_MAX

pytestmark = pytest.mark.crash

# Draining and a checkpoint, on a machine with other work: 1.56 s were seen.
STOP_SECONDS = 5.0
START_SECONDS = 5.0


def ended_well(program: Program, code: int, number: signal.Signals) -> bool:
    """quorate exits with 0; etcd dies of the signal that it was sent."""
    return code == 0 if program.is_quorate else code in {0, -number}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_answers_or_refuses_everything(
    number: signal.Signals, server: Server, program: Program
) -> None:
    ledger = Ledger()
    idle = [Raw(server.port) for _ in range(20)]
    health = Raw(server.port)
    health.body(health.open(grpc_headers("/grpc.health.v1.Health/Watch")), prefixed(b""))
    load = Load(server.port, ledger, "s", 4, 16).start()
    # The load goes on for a while.
    time.sleep(0.5)
    began = time.monotonic()
    server.signal(number)
    code = server.wait()
    took = time.monotonic() - began
    load.join(5)
    for raw in [*idle, health]:
        raw.close()
    assert ended_well(program, code, number), f"exit code {code}:\n{server.tail()}"
    assert took <= STOP_SECONDS, f"it took {took:.2f} s"
    assert len(ledger.acknowledged) > 50
    server.restart()
    with Client(server.port) as client:
        ledger.verify(client)


def test_a_stop_ends_a_connection_with_goaway(server: Server, program: Program) -> None:
    if not program.is_quorate:
        pytest.skip("etcd only closes it")
    with Raw(server.port) as raw:
        put = encode("PutRequest", {"key": b"k"})
        assert raw.ask(grpc_headers("/etcdserverpb.KV/Put"), prefixed(put)).status == 0
        server.signal(signal.SIGTERM)
        raw.drain(2)
        assert raw.goaway == 0
    assert server.wait() == 0


KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


def test_a_stop_ends_idle_streams_at_once(server: Server, program: Program) -> None:
    """Watch and LeaseKeepAlive would last for ever. etcd closes their connections without a word
    (3.5 and later after 7 s); with a status clients know at once that they have to go elsewhere."""
    with Client(server.port) as client, Stream(client) as idle, Stream(client) as half:
        client.call("Lease/LeaseGrant", {"ID": 5, "TTL": 600})
        for stream in (idle, half):
            stream.watch(b"k")
        half.half_close()
        stop = threading.Event()

        def requests(*leases: int) -> Iterator[bytes]:
            for lease in leases:
                yield encode("LeaseKeepAliveRequest", {"ID": lease})
            stop.wait(10)

        kept = client.open(KEEP_ALIVE, requests(5), 10)
        assert next(kept)
        silent = client.open(KEEP_ALIVE, requests(), 10)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        code = server.wait()
        took = time.monotonic() - began
        ends = [stream.wait_end() for stream in (idle, half)]
        for call in (kept, silent):
            with pytest.raises(grpc.RpcError) as error:
                next(call)
            ends.append(refused(error.value))
        stop.set()
    assert ended_well(program, code, signal.SIGTERM), f"exit code {code}:\n{server.tail()}"
    assert {end.code for end in ends} == {14}
    if program.is_quorate:
        assert {end.text for end in ends} == {"etcdserver: server stopped"}
        assert took < DRAIN_SECONDS_MAX, f"it took {took:.2f} s"


def test_a_stop_waits_for_no_stream_that_is_not_read(server: Server, program: Program) -> None:
    """Of watches that are behind and keep-alives without end, while others write."""
    create = encode(
        "WatchRequest", {"create_request": {"key": b"k", "range_end": b"l", "start_revision": 1}}
    )
    ledger = Ledger()
    with (
        Raw(server.port, credit=False) as behind,
        Raw(server.port, credit=False) as flood,
        Client(server.port) as client,
    ):
        client.call("Lease/LeaseGrant", {"ID": 5, "TTL": 600})
        for number in range(20):
            client.put(b"k%d" % (number % 5), b"." * 500_000)
        for _ in range(5):
            behind.body(behind.open(grpc_headers(WATCH)), prefixed(create), end=False)
        one = prefixed(encode("LeaseKeepAliveRequest", {"ID": 5}))
        flood.body(flood.open(grpc_headers(KEEP_ALIVE)), one * 20_000, end=False, seconds=0.3)
        load = Load(server.port, ledger, "s", 2, 8).start()
        # The load goes on for a while.
        time.sleep(0.3)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        code = server.wait()
        took = time.monotonic() - began
        load.join(5)
    assert ended_well(program, code, signal.SIGTERM), f"exit code {code}:\n{server.tail()}"
    assert took <= STOP_SECONDS, f"it took {took:.2f} s"
    assert ledger.acknowledged
    server.restart()
    with Client(server.port) as client:
        client.delete(b"k", b"l")
        ledger.verify(client)


def test_a_stop_twice_in_a_row_is_a_stop(server: Server, program: Program) -> None:
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGTERM)
    assert ended_well(program, server.wait(), signal.SIGTERM)


def refusal(server: Server, program: Program) -> str:
    """Start a server that must not start; its complaint, which for quorate is one line."""
    server.launch()
    code = server.wait(START_SECONDS if program.is_quorate else 30)
    lines = [
        record
        for record in server.logged()
        if "plain" in record or record.get("level") in {"error", "fatal", "panic"}
    ]
    text = "\n".join(str(record.get("plain", record)) for record in lines)
    assert code != 0
    if program.is_quorate:
        assert code == 1, text
        assert len(lines) == 1, text
        assert "Traceback" not in text
    return text


def test_a_second_server_on_the_same_port_says_so(
    server: Server, program: Program, tmp_path: Path
) -> None:
    with Server(program, tmp_path / "second") as second:
        second.port = server.port
        text = refusal(second, program)
        assert str(server.port) in text or not program.is_quorate
        assert "address already in use" in text
    assert server.healthy()


def test_a_second_server_on_the_same_directory_says_so(
    server: Server, program: Program, tmp_path: Path
) -> None:
    if not program.is_quorate:
        pytest.skip("etcd waits for the lock for ever")
    with Server(program, tmp_path / "second") as second:
        second.data = server.data
        assert str(server.data) in refusal(second, program)
    with Client(server.port) as client:
        client.put(b"k", b"v")


def test_a_directory_that_cannot_be_made_is_one_clear_line(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a directory")
    with Server(program, tmp_path / "one") as server:
        server.data = tmp_path / "file" / "data"
        text = refusal(server, program)
        assert str(server.data) in text or not program.is_quorate


def test_the_log_says_when_it_serves(server: Server, program: Program) -> None:
    if not program.is_quorate:
        pytest.skip("etcd 3.4 does not")
    messages = [str(record.get("msg")) for record in server.logged()]
    assert messages.count("ready to serve client requests") == 1
    assert not [record for record in server.logged() if "plain" in record]
    for record in server.logged():
        assert {"level", "ts", "caller", "msg"} <= record.keys(), record


def test_what_it_was_told_survives_a_clean_restart(server: Server, program: Program) -> None:
    with Client(server.port) as client:
        for number in range(100):
            client.put(b"k/%d" % (number % 7), b"%d" % number)
        client.delete(b"k/3")
        client.call("KV/Compact", {"revision": 50})
        before = client.all(), client.call("Maintenance/HashKV")["hash"], client.revision()
    assert ended_well(program, server.stop(), signal.SIGTERM)
    server.restart()
    with Client(server.port) as client:
        after = client.all(), client.call("Maintenance/HashKV")["hash"], client.revision()
        with pytest.raises(Refused, match="required revision has been compacted"):
            client.get(b"k/1", revision=49)
    assert after == before


def test_its_processes_end_with_it(server: Server) -> None:
    pids = [server.pid, *server.workers()]
    server.stop()
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []
