"""frontends/_watches beside a core that is two rings and an event ring."""

from __future__ import annotations

import struct

from quorate.core import limits
from quorate.core._eventring import EventReader, EventRing
from quorate.frontends._grpc import Grpc
from tests.connections import END, WHOLE, Client, Core, grpc_message
from tests.core_driver import FOLLOW, WATCH
from tests.http2 import grpc_headers
from tests.messages import encode, method

RING_BYTES = 1 << 24
LAST_OF_REVISION = 2
HEAD = struct.Struct("<IIqIIII")
CATCH_UP = struct.Struct("<qqII")
FOLLOW_END = struct.Struct("<qQ")


def record(key: bytes, revision: int, size: int, flags: int = 0) -> bytes:
    """A put in the event ring, with a value of that size."""
    kv = {"key": key, "mod_revision": revision, "value": bytes(size)}
    event = encode("Event", {"kv": kv})
    whole = HEAD.size + len(event) + 7 & ~7
    head = HEAD.pack(whole, flags, revision, event.index(key), len(key), len(event), 0)
    return (head + event).ljust(whole, b"\0")


def test_who_joins_amid_an_enormous_revision_gets_all_of_it() -> None:
    """A revision that a worker does not gather goes by in pieces. A watcher that had caught up with
    the revision before, between two of them, was live at once: its events of the first piece were
    lost."""
    core, ring = Core(), EventRing(RING_BYTES)
    ring.append(b"", 10)
    grpc = Grpc(requests=core.requests, replies=core.replies, events=EventReader(ring))
    grpc.set_time(1)
    client = Client(grpc)
    stream = client.open(grpc_headers(method("Watch/Watch").path))
    create = {"key": b"k", "start_revision": 5}
    client.data(stream, grpc_message(encode("WatchRequest", {"create_request": create})), end=False)
    grpc.deliver()
    asked = {kind: (number, extra, payload) for number, extra, kind, payload in core.take()}
    assert asked[FOLLOW][1] == 11
    assert CATCH_UP.unpack_from(asked[WATCH][2])[1] == 5
    core.reply(asked[FOLLOW][0], FOLLOW_END.pack(10, 0), WHOLE)
    grpc.deliver()
    other = record(b"other", 11, 60_000)
    count = (limits.WATCH_REVISION_BYTES_MAX + (1 << 20)) // len(other)
    end = record(b"other", 11, 10, LAST_OF_REVISION)
    ring.append(record(b"k", 11, 10) + other * count + end, 11)
    pieces = limits.WATCH_REVISION_BYTES_MAX // (len(other) * 4) + 1
    for _ in range(pieces):
        assert grpc.deliver()
    assert core.take() == []
    core.reply(asked[WATCH][0], b"", END, extra=10)
    while grpc.deliver():
        pass
    [(_, _, kind, payload)] = core.take()
    assert (kind, CATCH_UP.unpack_from(payload)[1]) == (WATCH, 11)
