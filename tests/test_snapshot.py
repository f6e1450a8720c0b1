"""workers/snapshot: the stream of a file, for clients that read, read slowly, or go away."""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from quorate.api.etcdserverpb import SnapshotResponse
from quorate.core.errors import SnapshotFailedError
from quorate.core.limits import (
    CALL_SEND_BYTES_HIGH,
    SNAPSHOT_PIECE_BYTES,
    SNAPSHOT_PIECES_AHEAD,
    SNAPSHOT_SECONDS_MAX,
)
from quorate.core.snapshots import Source
from quorate.frontends.counters import SENT
from quorate.workers.snapshot import encode
from quorate.workers.worker import Command, EventKind, Worker
from tests.fakepump import FakeNode, FakePump
from tests.messages import decode
from tests.test_services import run

SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"
SECONDS_MAX = 10
WAITS = CALL_SEND_BYTES_HIGH + 1


def source(content: bytes, head: bytes = b"", size: int | None = None) -> Source:
    """A file whose first bytes are nonsense where `head` comes instead."""
    descriptor = os.memfd_create("source")
    os.write(descriptor, b"x" * len(head) + content[len(head) :])
    return Source(descriptor, head, len(content) if size is None else size, "3.7.0")


def ask(pump: FakePump, call_id: int = 1) -> None:
    pump.put(EventKind.CALL, call_id, SNAPSHOT, [])
    pump.put(EventKind.MESSAGE, call_id, b"")
    pump.put(EventKind.HALF_CLOSED, call_id)


async def until(condition: Callable[[], object]) -> None:
    """Wait; threads take real time, of which the test's clock knows nothing."""
    for _ in range(SECONDS_MAX * 1000):
        if condition():
            return
        # By the test's clock, then for real: what is waited for tells neither.
        await trio.sleep(0.001)
        await trio.to_thread.run_sync(threading.Event().wait, 0.001)
    raise AssertionError("it does not come")


def held(node: FakeNode) -> int:
    """How many loans are not returned."""
    poll = select.poll()
    for holder in node.holders:
        poll.register(holder, 0)
    return len(node.holders) - len(poll.poll(0))


async def released(node: FakeNode) -> None:
    await until(lambda: held(node) == 0)
    for holder in node.holders:
        os.close(holder)


@pytest.mark.parametrize("size", [0, 1, SNAPSHOT_PIECE_BYTES, 3 * SNAPSHOT_PIECE_BYTES + 4096])
@pytest.mark.parametrize("head", [0, 8192])
def test_a_stream(size: int, head: int) -> None:
    content = random.Random(1).randbytes(max(size, head))

    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        node.snapshot = source(content, content[:head])
        ask(pump)
        await until(lambda: 1 in pump.finished)
        assert pump.finished[1] == (0, "", [])
        *pieces, last = [decode("SnapshotResponse", data) for _, data in pump.sent]
        assert b"".join(piece["blob"] for piece in pieces) == content
        left = len(content)
        for piece in pieces:
            left -= len(piece["blob"])
            assert piece.get("remaining_bytes", 0) == left
            assert len(piece["blob"]) == SNAPSHOT_PIECE_BYTES or left == 0
            assert piece.keys() <= {"remaining_bytes", "blob", "version"}
        assert last == {"blob": hashlib.sha256(content).digest(), "version": "3.7.0"}
        assert worker.counters.methods[SNAPSHOT][SENT] == len(pump.sent)
        await released(node)
        os.close(node.snapshot.descriptor)

    run(test)


def test_messages_are_those_of_the_generated_class() -> None:
    for remaining, blob, version in (
        (0, b"", ""),
        (1 << 40, b"x" * 300, "3.7.0"),
        (127, b"x", ""),
        (128, b"x" * 127, "3.6.0"),
        (0, b"x" * 32, "3.7.0"),
    ):
        message = SnapshotResponse(remaining_bytes=remaining, blob=blob, version=version)
        expected = bytes(message)
        found = encode(remaining, blob, version)
        assert SnapshotResponse.parse(found) == message
        assert found == expected or not blob


def test_a_slow_client_costs_what_is_read_ahead() -> None:
    """Each message waits until the one before is taken, and no more than some are read before."""
    pieces = 10

    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        file = node.snapshot = source(bytes(pieces * SNAPSHOT_PIECE_BYTES))
        pump.waiting = WAITS
        ask(pump)
        await until(lambda: pump.sent)
        await settled()
        assert len(pump.sent) == 1
        # What is not read by now has changed.
        assert isinstance(node.snapshot, Source)
        beyond = (1 + SNAPSHOT_PIECES_AHEAD) * SNAPSHOT_PIECE_BYTES
        os.pwrite(node.snapshot.descriptor, b"y" * 10, beyond)
        os.pwrite(node.snapshot.descriptor, b"z" * 10, beyond - SNAPSHOT_PIECE_BYTES)
        for sent in range(2, pieces + 2):
            pump.put(EventKind.DRAINED, 1)
            await until(lambda sent=sent: len(pump.sent) == sent)  # type: ignore[misc]
        pump.put(EventKind.DRAINED, 1)
        await until(lambda: 1 in pump.finished)
        assert pump.finished[1].status == 0
        begins = [decode("SnapshotResponse", data)["blob"][:1] for _, data in pump.sent[:-1]]
        assert begins == [b"\0"] * 3 + [b"y"] + [b"\0"] * (pieces - 4)
        await released(node)
        os.close(file.descriptor)

    run(test)


async def settled() -> None:
    """Let the reading threads come as far as they may."""

    def asleep() -> bool:
        return not any(thread.name == "snapshot" and running(thread) for thread in threads())

    for _ in range(3):
        await until(asleep)


def threads() -> list[threading.Thread]:
    return threading.enumerate()


def running(thread: threading.Thread) -> bool:
    """Whether the kernel says that the thread does something."""
    with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "S"


Ending = Callable[[Worker, FakePump], Awaitable[None]]


async def reset(worker: Worker, pump: FakePump) -> None:
    pump.put(EventKind.RESET, 1)


async def drain(worker: Worker, pump: FakePump) -> None:
    worker._bell.command = Command.DRAIN
    worker.wake()
    await until(lambda: 1 in pump.finished)
    assert pump.finished[1] == (14, "etcdserver: server stopped", [])


@pytest.mark.parametrize("end", [reset, drain])
@pytest.mark.parametrize("amid", [False, True])
def test_an_end_before_the_end(end: Ending, amid: bool) -> None:
    """While it is sent, or while the core makes it: the file is given back."""

    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        pump.waiting = WAITS
        if amid:
            node.snapshot = source(bytes(10 * SNAPSHOT_PIECE_BYTES))
        ask(pump)
        await until(lambda: pump.sent if amid else pump.asked)
        sent = len(pump.sent)
        await end(worker, pump)
        await until(lambda: not len(worker.calls))
        assert len(pump.sent) == sent
        assert pump.canceled == ([] if amid else [1])
        await released(node)
        if isinstance(node.snapshot, Source):
            os.close(node.snapshot.descriptor)

    run(test)


@pytest.mark.parametrize("late", [False, True])
def test_a_file_that_comes_and_nobody_waits_any_more_is_closed(late: bool) -> None:
    """The client goes between the file and the answer, or before both."""

    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        ask(pump)
        await until(lambda: pump.asked)
        if late:
            pump.put(EventKind.RESET, 1)
            await until(lambda: pump.canceled)
        ours, theirs = os.pipe()
        node.holders.append(ours)
        socket.send_fds(pump.channel[0], [(1).to_bytes(8, "little")], [theirs, theirs])
        os.close(theirs)
        if not late:
            await until(lambda: worker.core._asks[1].descriptors)
            pump.put(EventKind.RESET, 1)
        await released(node)

    run(test)


def test_the_core_has_none() -> None:
    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        node.snapshot = SnapshotFailedError()
        ask(pump)
        await until(lambda: 1 in pump.finished)
        assert pump.finished[1][:2] == (SnapshotFailedError.code.value, SnapshotFailedError.text)
        node.snapshot = None
        ask(pump, 2)
        await trio.sleep(SNAPSHOT_SECONDS_MAX - 1)
        assert len(pump.asked) == 2
        assert 2 not in pump.finished
        await trio.sleep(2)
        assert pump.finished[2] == (14, "etcdserver: request timed out", [])

    run(test)


def test_a_file_that_is_too_short() -> None:
    """What was sent is no snapshot: the client is told that, and gets no hash."""

    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        node.snapshot = source(bytes(SNAPSHOT_PIECE_BYTES + 5), size=2 * SNAPSHOT_PIECE_BYTES)
        ask(pump)
        await until(lambda: 1 in pump.finished)
        assert pump.finished[1].status == 13
        assert len(pump.sent) == 1
        await released(node)
        os.close(node.snapshot.descriptor)

    run(test)


def test_many_streams_of_one_file() -> None:
    content = random.Random(2).randbytes(3 * SNAPSHOT_PIECE_BYTES)

    async def test(worker: Worker, pump: FakePump, node: FakeNode) -> None:
        node.snapshot = source(content)
        for call_id in range(1, 21):
            ask(pump, call_id)
        await until(lambda: len(pump.finished) == 20)
        for call_id in range(1, 21):
            blobs = [
                decode("SnapshotResponse", data)["blob"]
                for number, data in pump.sent
                if number == call_id
            ]
            assert b"".join(blobs) == content + hashlib.sha256(content).digest()
        await released(node)
        os.close(node.snapshot.descriptor)

    run(test)
