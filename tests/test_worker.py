"""A worker with the real pump, real rings and real sockets, and a core that answers in Python."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import mmap

import pytest
import trio

from quorate.core._eventring import EventRing
from quorate.core._ring import Doorbell, Ring
from quorate.core.admin import handle
from quorate.core.config import Config
from quorate.core.errors import EtcdError
from quorate.core.limits import EVENT_RING_BYTES_MIN, RING_BYTES_MIN, WORKER_COUNTERS_MAX
from quorate.core.logs import Logger
from quorate.core.snapshots import Handed
from quorate.frontends.counters import HANDLED, STARTED, unpack
from quorate.workers.worker import Command, Worker, make_pump
from tests.fakepump import FakeNode
from tests.wire import Client, Refused

REQUEST = struct.Struct("<QQII")
REPLY = struct.Struct("<QQHHI")
STATUS = "/etcdserverpb.Maintenance/Status"
WHOLE, END = 7, 4


@dataclass
class Inherited:
    """What the core would hand to a worker."""

    listeners: list[socket.socket]
    slot: int = 0
    core_pid: int = 0
    config: Config = field(default_factory=Config)
    logger: Logger = field(default_factory=lambda: Logger(()))
    requests: Ring = field(default_factory=lambda: Ring(RING_BYTES_MIN))
    replies: Ring = field(default_factory=lambda: Ring(RING_BYTES_MIN))
    bell: Doorbell = field(default_factory=Doorbell)
    core_bell: Doorbell = field(default_factory=Doorbell)
    event_ring: EventRing = field(default_factory=lambda: EventRing(EVENT_RING_BYTES_MIN))
    channel: socket.socket | None = None


class Core:
    """A thread that answers admin calls from the other side of the rings."""

    def __init__(self, inherited: Inherited, node: FakeNode) -> None:
        self._node = node
        self._inherited = inherited
        self._requests = inherited.requests.other_side()
        self._replies = inherited.replies.other_side()
        self._ends = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._ends = True
        self._thread.join()

    def _run(self) -> None:
        while not self._ends:
            record = self._requests.pull()
            if record is None:
                self._inherited.core_bell.wait(1)
                continue
            request_id, call, _, _ = REQUEST.unpack_from(record)
            handle(self._node, call, record[REQUEST.size :], self._replier(request_id))

    def _replier(self, request_id: int) -> Callable[[bytes | Handed | EtcdError], None]:
        def reply(answer: bytes | Handed | EtcdError) -> None:
            assert not isinstance(answer, Handed)
            if isinstance(answer, EtcdError):
                record = REPLY.pack(request_id, 0, END, answer.id, 0)
            else:
                record = REPLY.pack(request_id, len(answer), WHOLE, 0, 0) + answer
            assert self._replies.push(record)
            self._inherited.bell.wake()

        return reply


@dataclass
class Served:
    """A worker that serves, for a test."""

    port: int
    node: FakeNode
    block: memoryview
    inherited: Inherited


@contextmanager
def serving() -> Iterator[Served]:
    """A worker in a thread, accepting; drained and joined in the end."""
    node = FakeNode()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        inherited = Inherited([listener])
        inherited.bell.command = Command.SERVE
        block = memoryview(mmap(-1, WORKER_COUNTERS_MAX * 8)).cast("Q")
        core = Core(inherited, node)

        async def main() -> None:
            pump = make_pump(inherited)
            await Worker(pump, inherited.bell, block, inherited.logger).serve()

        thread = threading.Thread(target=trio.run, args=(main,))
        thread.start()
        try:
            yield Served(listener.getsockname()[1], node, block, inherited)
        finally:
            inherited.bell.command = Command.DRAIN
            inherited.bell.wake()
            thread.join(10)
            core.end()
            assert not thread.is_alive()


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_services_over_the_wire() -> None:
    with serving() as served, Client(served.port) as client:
        status = client.call("Maintenance/Status", {})
        assert status["version"] == "3.7.1"
        members = client.call("Cluster/MemberList", {"linearizable": True})["members"]
        assert members[0]["name"] == "default"
        with pytest.raises(Refused) as refused:
            client.call("Cluster/MemberAdd", {})
        assert (refused.value.code, refused.value.text) == (12, "etcdserver: not implemented")
        with pytest.raises(Refused) as refused:
            client.call("Maintenance/Alarm", {"action": 9})
        assert (refused.value.code, refused.value.text) == (3, "etcdserver: invalid alarm action")
    counts = unpack(served.block).methods[STATUS]
    assert (counts[STARTED], counts[HANDLED]) == (1, 1)


def test_pages_on_the_same_port() -> None:
    with serving() as served:
        assert get(served.port, "/health") == (200, b'{"health":"true","reason":""}')
        assert served.node.reads == 1
        versions = json.loads(get(served.port, "/version")[1])
        assert versions == {"etcdserver": "3.7.1", "etcdcluster": "3.7.0", "storage": "3.7.0"}
        status, text = get(served.port, "/metrics")
        assert status == 200
        assert b"\netcd_server_has_leader 1.0\n" in text
        assert get(served.port, "/readyz?verbose")[1].endswith(b"[+]non_learner ok\nok\n")


def test_garbage_on_the_port_is_answered_as_http1() -> None:
    with serving() as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
            client.sendall(b"\x16\x03\x01\x00\xa5\x01\x00\x00\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert get(served.port, "/livez") == (200, b"ok\n")


FAULTS = """
import sys, resource, threading
from quorate.core.limits import WORKER_FREE_BYTES
from quorate.workers._system import keep_memory

def burst():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(b"x") * 300_000 for _ in range(20)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    if sys.argv[1] == "keep":
        keep_memory(WORKER_FREE_BYTES)
    burst()
    print(sum(burst() for _ in range(10)))

# As a worker does, in a thread that is not the first.
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_a_worker_keeps_the_memory_of_its_bursts() -> None:
    """An event for a thousand streams once cost more time in madvise and page faults than in TCP:
    glibc gave each burst's memory back and took it again for the next."""
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, mode], capture_output=True, check=True, timeout=60
            ).stdout
        )
        for mode in ("keep", "leave")
    }
    assert faults["keep"] < 100 < 1000 < faults["leave"], faults
