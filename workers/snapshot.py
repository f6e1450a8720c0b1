"""Maintenance.Snapshot: a backend file, read from a descriptor of the core's, and its SHA-256.

Rules:
1. The core gives a descriptor and does nothing per byte. Reading and hashing go on in a thread,
   without the GIL; one thread for all snapshots of a worker, so that they leave room for others.
2. At most a piece is read ahead of what the call may have waiting: a client that reads slowly costs
   that, and nothing else waits for it.
3. Messages are etcd's: `remaining_bytes` behind each piece, the storage version in each, no header,
   and in the last one the 32 bytes of the hash of all before. They are encoded here: a message
   class would take ten times as long as the hash.
"""

from __future__ import annotations

import hashlib
import os

import trio

from quorate.api.etcdserverpb import SnapshotResponse
from quorate.core.admincalls import AdminCall
from quorate.core.errors import TooManyRequestsError
from quorate.core.limits import SNAPSHOT_PIECE_BYTES, SNAPSHOT_SECONDS_MAX
from quorate.workers.calls import Call, Core

# Tags of SnapshotResponse: field number and wire type.
REMAINING_BYTES, BLOB, VERSION = b"\x10", b"\x1a", b"\x22"


class Reader:
    """The file from its beginning to its end, with its hash."""

    def __init__(self, descriptor: int, head: bytes, size: int) -> None:
        """`head` comes instead of as many of the file's bytes."""
        self.remaining = size
        self._descriptor = descriptor
        self._head = head
        self._at = 0
        self._hash = hashlib.sha256()

    def read(self) -> bytes:
        """The next piece. Raises OSError."""
        at, size = self._at, min(SNAPSHOT_PIECE_BYTES, self.remaining)
        piece = self._head[at : at + size]
        while len(piece) < size:
            more = os.pread(self._descriptor, size - len(piece), at + len(piece))
            if not more:
                raise OSError(f"the file ends at {at + len(piece)}, {self.remaining} bytes early")
            piece += more
        self._hash.update(piece)
        self._at += size
        self.remaining -= size
        return piece

    def digest(self) -> bytes:
        """The hash of what was read."""
        return self._hash.digest()


class Snapshots:
    """Serves the calls of one worker."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._limiter = trio.CapacityLimiter(1)

    async def serve(self, call: Call) -> None:
        """Serve one call. Raises EtcdError, or OSError when the file can't be read."""
        request = await call.recv_message()
        answer, descriptors = await self._core.ask_for_descriptors(
            AdminCall.SNAPSHOT, bytes(request), SNAPSHOT_SECONDS_MAX
        )
        try:
            if not descriptors:
                # This process has as many open as it may have.
                raise TooManyRequestsError
            source = SnapshotResponse.parse(answer)
            reader = Reader(descriptors[0], source.blob, source.remaining_bytes)
            while reader.remaining:
                piece = await trio.to_thread.run_sync(reader.read, limiter=self._limiter)
                await call.send_message(encode(reader.remaining, piece, source.version))
            await call.send_message(encode(0, reader.digest(), source.version))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


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
