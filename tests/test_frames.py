"""No Python frame runs per request, and no Python object is made per request.

A client whose bytes are made beforehand sends puts and gets to a pump over a real connection; the
pump and the node, on a real disk, take turns in this process. Only these turns are profiled, the
log's thread included. What is counted may grow with the number of turns, never with the number of
requests: a turn of ten times the requests must not count more. How many turns the rounds take is
the disk's and the scheduler's affair; they only must be far fewer than the requests.
"""

from __future__ import annotations

import gc
import select
import socket
import struct
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from quorate.core._disk import OsDisk
from quorate.core._wal import make_directories
from quorate.frontends.counters import HANDLED, METHOD_FIELDS
from quorate.workers._pump import Pump
from tests.http2 import DATA, HEADERS, PREFACE, SETTINGS, WINDOW, block, frame, grpc_headers
from tests.http2 import prefixed as grpc_message
from tests.messages import encode
from tests.node_driver import Member

PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
ROUNDS = 20
REQUESTS = 500  # of a round: 10,000 in all
# A turn of pump and node is so many frames at most, whatever it carries; a checkpoint, due by
# --snapshot-count once in 10,000 entries, takes some hundred more. A disk that is slow to sync
# makes more turns, though never as many as these:
FRAMES_A_TURN_MAX = 32
CHECKPOINT_FRAMES_MAX = 1_500
TURNS_MAX = 200
# Blocks of Python memory that 10,000 requests leave behind (raft keeps the last runs, one object
# each), and the most that a round holds at once: a turn that leaves its sync to the log's thread
# holds some 9 KB, one object for each request would be more than 14.
BLOCKS_MAX = 100
ROUND_BYTES_MAX = 12 * 1024
END_STREAM, END_HEADERS = 1, 4
SEGMENT_BYTES = 1 << 24
SECONDS_MAX = 10
WINDOW_MAX = 2**31 - 1


class Frames:
    """Counts Python calls of all threads while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.calls: Counter[str] = Counter()
        self.total = 0

    def profile(self, frame: FrameType, event: str, argument: object) -> None:
        """What `sys.setprofile` calls."""
        if event == "call" and self.on:
            self.total += 1
            self.calls[frame.f_code.co_qualname] += 1

    def started(self, code: CodeType, offset: int) -> None:
        """What `sys.monitoring` calls."""
        if self.on:
            self.total += 1
            self.calls[code.co_qualname] += 1


@pytest.fixture
def frames() -> Iterator[Frames]:
    """Counting by the cheapest means that the interpreter has."""
    counted = Frames()
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is None:
        threading.setprofile(counted.profile)
        sys.setprofile(counted.profile)
        yield counted
        sys.setprofile(None)
        threading.setprofile(None)
        return
    tool, event = monitoring.PROFILER_ID, monitoring.events.PY_START
    monitoring.use_tool_id(tool, "frames")
    monitoring.register_callback(tool, event, counted.started)
    monitoring.set_events(tool, event)
    yield counted
    monitoring.set_events(tool, 0)
    monitoring.free_tool_id(tool)


class Server:
    """A pump and a node, and one connection to them."""

    def __init__(self, path: Path) -> None:
        disk = OsDisk()
        make_directories(disk, str(path / "member" / "snap"))
        self.member = Member(disk, data_dir=str(path), segment_bytes=SEGMENT_BYTES)
        self.turns = 0
        worker = self.member.worker
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.pump = Pump(
            listeners=[self.listener.fileno()],
            bell=worker.bell,
            core_bell=self.member.bell,
            requests=worker.requests,
            replies=worker.replies,
        )
        self.pump.accept()
        self.client = socket.create_connection(self.listener.getsockname())
        self.client.setblocking(False)
        self.stream = 1
        window = struct.pack("!HI", 4, WINDOW_MAX)
        credit = struct.pack("!I", WINDOW_MAX - 65_535)
        self.unsent = PREFACE + frame(SETTINGS, 0, 0, window) + frame(WINDOW, 0, 0, credit)

    def close(self) -> None:
        """Everything that was opened."""
        self.client.close()
        self.listener.close()
        self.member.node.wal.close()

    def prepare(self, path: str, messages: list[bytes]) -> None:
        """The bytes of so many calls, to be sent in the next round."""
        headers = block(grpc_headers(path))
        parts = [self.unsent]
        for message in messages:
            parts.append(frame(HEADERS, END_HEADERS, self.stream, headers))
            parts.append(frame(DATA, END_STREAM, self.stream, grpc_message(message)))
            self.stream += 2
        self.unsent = b"".join(parts)

    def exchange(self) -> None:
        """Send what the socket takes, and throw away what came."""
        try:
            self.unsent = self.unsent[self.client.send(self.unsent) :] if self.unsent else b""
            while self.client.recv(1 << 20):
                pass
        except BlockingIOError:
            pass

    def turn(self) -> None:
        """A turn of the pump, and turns of the node until it waits."""
        self.turns += 1
        events = self.pump.turn()
        assert not events, events
        while self.member.node.turn(self.member.report.handle):
            pass
        # Who sleeps is rung for, as in the processes.
        self.member.bell.sleep()

    def finished(self, path: str) -> int:
        """Calls that ended well."""
        counts = self.pump.statistics().methods.get(path, [0] * METHOD_FIELDS)
        return counts[HANDLED]

    def round(self, path: str, messages: list[bytes], counted: Callable[[bool], None]) -> None:
        """Answer so many calls; `counted` is told when turns begin and end."""
        wanted = self.finished(path) + len(messages)
        self.prepare(path, messages)
        while self.unsent:
            self.exchange()
        for _ in range(1_000):
            counted(True)
            self.turn()
            counted(False)
            self.exchange()
            if self.finished(path) == wanted:
                return
            ready = [self.pump.fd, self.member.bell.fd]
            assert select.select(ready, [], [], SECONDS_MAX)[0], "nobody is answered any more"
            self.member.bell.rise()
        raise AssertionError("a round takes too many turns")


@pytest.fixture
def server(frames: Frames, tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path)
    one.member.call("Lease/LeaseGrant", {"ID": 5, "TTL": 60})
    yield one
    one.close()


def messages_of(path: str, rounds: int, requests: int) -> list[list[bytes]]:
    """The messages of each round."""
    if path == KEEP_ALIVE:
        return [[encode("LeaseKeepAliveRequest", {"ID": 5})] * requests] * rounds
    kind = "PutRequest" if path == PUT else "RangeRequest"
    value = {"value": b"v" * 64} if path == PUT else {}
    return [
        [encode(kind, {"key": b"k%d-%d" % (at, n), **value}) for n in range(requests)]
        for at in range(rounds)
    ]


def frames_of(server: Server, frames: Frames, path: str, requests: int) -> tuple[int, int]:
    """Python frames of ROUNDS rounds, and the turns that they took."""
    before = frames.total, server.turns

    def counted(on: bool) -> None:
        frames.on = on

    for messages in messages_of(path, ROUNDS, requests):
        server.round(path, messages, counted)
    return frames.total - before[0], server.turns - before[1]


@pytest.mark.parametrize("path", [PUT, RANGE, KEEP_ALIVE])
def test_no_frame_runs_per_request(path: str, server: Server, frames: Frames) -> None:
    """The bound was one of frames alone, and fell where a loaded machine took more turns."""
    assert FRAMES_A_TURN_MAX * TURNS_MAX + CHECKPOINT_FRAMES_MAX < ROUNDS * REQUESTS
    frames_of(server, frames, path, 10)  # what happens once has happened
    for requests in (REQUESTS // 10, REQUESTS):
        frames.calls.clear()
        count, turns = frames_of(server, frames, path, requests)
        most = FRAMES_A_TURN_MAX * turns + CHECKPOINT_FRAMES_MAX
        assert turns < TURNS_MAX
        assert count < most, frames.calls.most_common(10)
    assert server.finished(path) == ROUNDS * (REQUESTS + REQUESTS // 10 + 10)
    if path == PUT:
        assert server.member.revision == 1 + server.finished(path)


@pytest.mark.parametrize("path", [PUT, RANGE, KEEP_ALIVE])
def test_no_object_is_made_per_request(path: str, server: Server) -> None:
    prepared = messages_of(path, ROUNDS, REQUESTS)
    for messages in prepared:  # first, so that what is kept once is kept
        server.round(path, messages, lambda on: None)
    peaks = []

    def traced(on: bool) -> None:
        if on:
            tracemalloc.reset_peak()
            peaks.append(-tracemalloc.get_traced_memory()[0])
        else:
            peaks[-1] += tracemalloc.get_traced_memory()[1]

    gc.collect()
    blocks = sys.getallocatedblocks()
    for messages in prepared:
        server.round(path, messages, lambda on: None)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < BLOCKS_MAX
    tracemalloc.start()
    try:
        for messages in prepared:
            server.round(path, messages, traced)
    finally:
        tracemalloc.stop()
    assert max(peaks) < ROUND_BYTES_MAX
