"""Maintenance.Snapshot: a backend file, read from a descriptor of the core's, and its SHA-256.

Rules:
1. The core gives a descriptor and does nothing per byte. A thread reads and hashes without the GIL;
   of the threads of all snapshots of a worker one does so at a time, to leave room for others.
2. The thread is SNAPSHOT_PIECES_AHEAD messages ahead, so that the next one is there when the client
   has taken most of one: to wait for a thread would cost a turn of the pump. A client that reads
   slowly costs these messages, and nothing else waits for it.
3. Messages are etcd's: `remaining_bytes` behind each piece, the storage version in each, no header,
   and in the last one the 32 bytes of the hash of all before. They are encoded here: a message
   class would take longer than the hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import deque

import trio

from quorate.api.etcdserverpb import SnapshotResponse
from quorate.core.admincalls import AdminCall
from quorate.core.errors import TooManyRequestsError
from quorate.core.limits import (
    SNAPSHOT_PIECE_BYTES,
    SNAPSHOT_PIECES_AHEAD,
    SNAPSHOT_SECONDS_MAX,
)
from quorate.workers.calls import Call, Core

# Tags of SnapshotResponse: field number and wire type.
REMAINING_BYTES, BLOB, VERSION = b"\x10", b"\x1a", b"\x22"


class Snapshots:
    """Serves the calls of one worker."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._turn = threading.Lock()

    async def serve(self, call: Call) -> None:
        """Serve one call. Raises EtcdError, or OSError when the file can't be read."""
        request = await call.recv_message()
        answer, descriptors = await self._core.ask_for_descriptors(
            AdminCall.SNAPSHOT, bytes(request), SNAPSHOT_SECONDS_MAX
        )
        if not descriptors:
            # This process has as many open as it may have.
            raise TooManyRequestsError
        reader = Reader(descriptors, SnapshotResponse.parse(answer), self._turn)
        try:
            while message := await reader.next():
                await call.send_message(message)
        finally:
            reader.close()


class Reader:
    """The messages of a snapshot in order, made by a thread; it closes the descriptors."""

    def __init__(
        self, descriptors: list[int], source: SnapshotResponse, turn: threading.Lock
    ) -> None:
        """`source` is the core's answer, see `AdminCall`; who has `turn` may read and hash."""
        self._descriptors = descriptors
        self._head = source.blob
        self._version = source.version
        self._remaining = source.remaining_bytes
        self._at = 0
        self._hash = hashlib.sha256()
        self._turn = turn
        # What the thread has made, an empty one at the end; and how many it may make.
        self._messages: deque[bytes] = deque()
        self._room = threading.Semaphore(SNAPSHOT_PIECES_AHEAD)
        self._failure: OSError | None = None
        self._closed = False
        self._arrived: trio.Event | None = None
        self._token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._run, name="snapshot", daemon=True).start()

    async def next(self) -> bytes:
        """The next message; an empty one behind the last. Raises OSError."""
        while not self._messages:
            arrived = self._arrived = trio.Event()
            # It may have come before the thread could know that it is waited for.
            if not self._messages:
                await arrived.wait()
            self._arrived = None
        message = self._messages.popleft()
        if self._failure is not None and not message:
            raise self._failure
        self._room.release()
        return message

    def close(self) -> None:
        """No more is wanted: the thread ends behind what it is doing."""
        self._closed = True
        self._room.release()

    def _run(self) -> None:
        """In the thread: make messages until the end, as far ahead as there is room."""
        try:
            while self._wait():
                if not self._remaining:
                    self._give(encode(0, self._hash.digest(), self._version))
                    break
                with self._turn:
                    self._give(self._read())
        except OSError as error:
            self._failure = error
        finally:
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._give(b"")

    def _wait(self) -> bool:
        """Wait for room; False when no more is wanted."""
        self._room.acquire()
        return not self._closed

    def _give(self, message: bytes) -> None:
        self._messages.append(message)
        arrived = self._arrived
        if arrived is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(arrived.set)

    def _read(self) -> bytes:
        """The next message. Raises OSError."""
        size = min(SNAPSHOT_PIECE_BYTES, self._remaining)
        piece = self._head[self._at : self._at + size]
        while len(piece) < size:
            at = self._at + len(piece)
            more = os.pread(self._descriptors[0], size - len(piece), at)
            if not more:
                raise OSError(f"the file ends at {at}, {self._remaining} bytes are missing")
            piece += more
        self._hash.update(piece)
        self._at += size
        self._remaining -= size
        return encode(self._remaining, piece, self._version)


def encode(remaining: int, blob: bytes, version: str) -> bytes:
    """A SnapshotResponse; as always in protobuf, what is 0 or empty is left out."""
    text = version.encode()
    return b"".join(
        (
            REMAINING_BYTES + varint(remaining) if remaining else b"",
            BLOB + varint(len(blob)),
            blob,
            VERSION + varint(len(text)) + text if text else b"",
        )
    )


def varint(number: int) -> bytes:
    """A number as protobuf has it."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
