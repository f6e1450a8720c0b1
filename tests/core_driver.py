"""The core without raft, disk or processes: rings, Batch, Applier and Port, turned by the test; and
the worker's side of the rings, which checks the form of every reply.

Rules:
1. `FakeWorker` shares no code with the real worker. It asks and collects; every reply record is
   checked against `core/_record.pxd`: FIRST tells the size, slices add up to it, END is the last.
2. `Core.turn` does what `Node.turn` does, with a log that is durable at once: a run that was
   drained is committed in the same turn. Time is `now`, which the test moves on.
3. Every wait is bounded in turns; nothing sleeps.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from quorate.core._apply import Applier
from quorate.core._batch import Batch
from quorate.core._mvcc import Store
from quorate.core._port import Port
from quorate.core._ring import Doorbell, Ring
from quorate.core._run import Run
from quorate.core.errors import BY_ID, EtcdError
from tests.messages import Message, decode, encode, method

RANGE, PUT, DELETE_RANGE, TXN, COMPACT, RANGE_STREAM, HASH_KV, HASH = range(1, 9)
GRANT, REVOKE, KEEP_ALIVE, TIME_TO_LIVE, LEASES = range(16, 21)
CANCEL, PULL, ADMIN, WATCH, FOLLOW, UNFOLLOW = range(64, 70)
METHODS = {
    "KV/Range": RANGE,
    "KV/Put": PUT,
    "KV/DeleteRange": DELETE_RANGE,
    "KV/Txn": TXN,
    "KV/Compact": COMPACT,
    "KV/RangeStream": RANGE_STREAM,
    "Maintenance/HashKV": HASH_KV,
    "Maintenance/Hash": HASH,
    "Lease/LeaseGrant": GRANT,
    "Lease/LeaseRevoke": REVOKE,
    "Lease/LeaseKeepAlive": KEEP_ALIVE,
    "Lease/LeaseTimeToLive": TIME_TO_LIVE,
    "Lease/LeaseLeases": LEASES,
}
FIRST, LAST, END = 1, 2, 4
# These two are tuned now and then, so the contract itself is read.
RECORD_PXD = Path(__file__).resolve().parent.parent / "core" / "_record.pxd"
SIZES = dict(re.findall(r"^    REPLY_(\w+) = (\d+)$", RECORD_PXD.read_text(), re.M))
SLICE_MAX, WINDOW = int(SIZES["SLICE_MAX"]), int(SIZES["WINDOW"])
REQUEST = struct.Struct("<QQII")
REPLY = struct.Struct("<QQHHI")
RING_BYTES = 1 << 22
CLUSTER_ID, MEMBER_ID, TERM = 0xC1, 0xA1, 2
TURNS_MAX = 100_000
EXPIRE_STEP = 100
STREAM_MESSAGE = "RangeStreamResponse"


class Reply(NamedTuple):
    """One reply record."""

    request_id: int
    extra: int
    flags: int
    error: int
    payload: bytes


def reply_type(name: str) -> str:
    """The name of the message that answers an RPC (`KV/Put`)."""
    return STREAM_MESSAGE if name == "KV/RangeStream" else method(name).reply


def request_type(name: str) -> str:
    """The name of the message that asks an RPC."""
    return "RangeRequest" if name == "KV/RangeStream" else method(name).request


def request(request_id: int, number: int, payload: bytes = b"", extra: int = 0) -> bytes:
    """A request record."""
    return REQUEST.pack(request_id, extra, number, 0) + payload


@dataclass
class Call:
    """What came for one request so far."""

    name: str
    messages: list[bytes] = field(default_factory=list)
    part: bytearray = field(default_factory=bytearray)
    size: int = -1  # announced by FIRST; -1 between two messages
    records: int = 0
    ended: bool = False
    error: int = 0
    extra: int = 0  # of the end

    def take(self, reply: Reply) -> None:
        """Add one record, which must fit what came before."""
        assert not self.ended, f"a record after END: {reply}"
        assert len(reply.payload) <= SLICE_MAX, len(reply.payload)
        self.records += 1
        self.error, self.ended = reply.error, bool(reply.flags & END)
        self.extra = reply.extra
        if not reply.flags & (FIRST | LAST) and not reply.payload:
            assert self.ended, "a record that says nothing"
            return
        assert reply.error == 0, reply
        if reply.flags & FIRST:
            assert self.size == -1, "FIRST within a message"
            self.size = reply.extra
        assert self.size >= 0, "a slice of nothing"
        self.part += reply.payload
        if reply.flags & LAST:
            assert len(self.part) == self.size, (len(self.part), self.size)
            self.messages.append(bytes(self.part))
            self.part.clear()
            self.size = -1
        assert len(self.part) <= max(self.size, 0)

    def result(self) -> list[Message]:
        """The decoded messages of a call that is over. Raises EtcdError."""
        assert self.ended, "the call is not over"
        if self.error:
            raise BY_ID[self.error]()
        return [decode(reply_type(self.name), message) for message in self.messages]


class FakeWorker:
    """The worker's ends of the rings of one port."""

    def __init__(self, slot: int = 0, generation: int = 1, ring_bytes: int = RING_BYTES) -> None:
        self.bell = Doorbell()
        self.port = Port(Ring(ring_bytes), Ring(ring_bytes), self.bell, slot, generation)
        self.requests = self.port.requests.other_side()
        self.replies = self.port.replies.other_side()
        self.calls: dict[int, Call] = {}
        self.asked = 0

    def push(self, record: bytes) -> bool:
        """Put any bytes into the request ring as one record."""
        return self.requests.push(record)

    def send(self, name: str, payload: bytes) -> int:
        """Ask with message bytes; answers the request id."""
        self.asked += 1
        self.calls[self.asked] = Call(name)
        assert self.push(request(self.asked, METHODS[name], payload)), "the request ring is full"
        return self.asked

    def start(self, name: str, message: Message | None = None) -> int:
        """Ask with a message given as a dict."""
        return self.send(name, encode(request_type(name), message or {}))

    def admin(self, call: int, payload: bytes = b"") -> int:
        """Ask Python."""
        self.asked += 1
        self.calls[self.asked] = Call("admin")
        assert self.push(request(self.asked, ADMIN, payload, call))
        return self.asked

    def ask(self, number: int, payload: bytes, extra: int = 0) -> int:
        """Ask something of the core that no client can ask by itself."""
        self.asked += 1
        self.calls[self.asked] = Call(str(number))
        assert self.push(request(self.asked, number, payload, extra))
        return self.asked

    def pull(self, request_id: int, credit: int) -> None:
        """Allow `credit` bytes more of a long reply."""
        assert self.push(request(request_id, PULL, b"", credit))

    def cancel(self, request_id: int) -> None:
        """Take a request back."""
        assert self.push(request(request_id, CANCEL))
        del self.calls[request_id]

    def receive(self) -> list[Reply]:
        """All reply records that are there."""
        found = []
        while (record := self.replies.pull()) is not None:
            request_id, extra, flags, error, reserved = REPLY.unpack_from(record)
            assert reserved == 0
            assert flags == flags & 7
            found.append(Reply(request_id, extra, flags, error, record[REPLY.size :]))
        return found

    def absorb(self, credit: bool = True) -> list[Reply]:
        """Sort what came to its calls; with `credit` give back the window that slices took."""
        found = self.receive()
        for reply in found:
            call = self.calls[reply.request_id]
            call.take(reply)
            if credit and reply.payload and not call.ended:
                self.pull(reply.request_id, len(reply.payload))
        return found


class Core:
    """Workers, Batch, Applier and Store of one member."""

    def __init__(
        self,
        workers: int = 1,
        *,
        ring_bytes: int = RING_BYTES,
        request_bytes_max: int = 1 << 21,
        txn_ops_max: int = 128,
        ids: tuple[int, int, int] = (CLUSTER_ID, MEMBER_ID, TERM),
    ) -> None:
        self.workers = [FakeWorker(slot, slot + 1, ring_bytes) for slot in range(workers)]
        self.ports: list[Port | None] = [worker.port for worker in self.workers]
        self.store = Store()
        self.others: list[tuple[int, int, bytes]] = []
        self.applier = Applier(self.store, self.ports, lambda *entry: self.others.append(entry))
        self.applier.identify(*ids[:2])
        self.applier.set_term(ids[2])
        self.batch = Batch(self.ports, self.applier, request_bytes_max, txn_ops_max)
        self.now = 1000  # milliseconds
        self.lessor = self.store.lessor
        self.lessor.ttl_min = 2
        self.applier.set_time(self.now)
        self.lessor.promote()
        self.runs: list[Run] = []

    @property
    def worker(self) -> FakeWorker:
        """The first worker."""
        return self.workers[0]

    def turn(self, compact: int = 1000) -> bool:
        """One turn of the core; True when there is more to do at once."""
        self.applier.set_time(self.now)
        more = self.batch.drain()
        if self.batch.run is not None:
            self.commit(self.batch.run)
        if self.batch.reads is not None:
            self.batch.serve(self.batch.reads)
        self.batch.events.publish()
        more = self.batch.expire(EXPIRE_STEP) or more
        if compact and self.applier.compact_step(compact):
            more = True
        for port in self.ports:
            if port is not None:
                more = port.step() or more
                port.flush()
        return more

    def commit(self, run: Run) -> None:
        """Give a run the next index, and apply it."""
        run.assign(self.applier.applied + 1, TERM)
        self.runs.append(run)
        self.applier.apply(run)

    def apply(self, *entries: bytes) -> None:
        """Apply entries that nobody waits for."""
        self.commit(Run.of((0, data) for data in entries))

    def finish(self, request_id: int, worker: FakeWorker | None = None) -> Call:
        """Turn until the call is over."""
        worker = worker or self.worker
        call = worker.calls[request_id]
        for _ in range(TURNS_MAX):
            self.turn()
            worker.absorb()
            if call.ended:
                del worker.calls[request_id]
                return call
        raise AssertionError(f"{call.name} has no end; dropped {worker.port.dropped}")

    def call_bytes(self, name: str, payload: bytes) -> bytes:
        """A whole unary call with message bytes. Raises EtcdError."""
        call = self.finish(self.worker.send(name, payload))
        if call.error:
            raise BY_ID[call.error]()
        assert len(call.messages) == 1, call
        return call.messages[0]

    def call(self, name: str, message: Message | None = None) -> Message:
        """A whole unary call (`KV/Put`). Raises EtcdError."""
        reply = self.call_bytes(name, encode(request_type(name), message or {}))
        return decode(reply_type(name), reply)

    def refused(self, name: str, message: Message | None = None) -> type[EtcdError] | None:
        """How a unary call is refused; None when it is not."""
        try:
            self.call(name, message)
        except EtcdError as error:
            return type(error)
        return None

    def put(self, key: bytes, value: bytes = b"v", **fields: object) -> Message:
        """Put one key."""
        return self.call("KV/Put", {"key": key, "value": value, **fields})

    def range(self, key: bytes, end: bytes = b"", **fields: object) -> Message:
        """Range over keys."""
        asked = {"key": key, **fields} | ({"range_end": end} if end else {})
        return self.call("KV/Range", asked)

    def grant(self, lease: int, ttl: int = 60) -> Message:
        """Make a lease."""
        return self.call("Lease/LeaseGrant", {"ID": lease, "TTL": ttl})

    def keep_alive(self, *leases: int) -> list[int]:
        """Keep leases alive on one stream; answers their TTLs."""
        asked = self.worker.start("Lease/LeaseKeepAlive", {"ID": leases[0]})
        payloads = [encode("LeaseKeepAliveRequest", {"ID": lease}) for lease in leases[1:]]
        for payload in payloads:
            assert self.worker.push(request(asked, KEEP_ALIVE, payload))
        call = self.worker.calls[asked]
        for _ in range(TURNS_MAX):
            self.turn()
            self.worker.absorb(credit=False)
            if len(call.messages) == len(leases):
                break
        assert not call.ended
        del self.worker.calls[asked]
        replies = [decode("LeaseKeepAliveResponse", message) for message in call.messages]
        assert [reply.get("ID", 0) for reply in replies] == list(leases)
        return [reply.get("TTL", 0) for reply in replies]

    def pass_time(self, seconds: float) -> None:
        """Let time go by, and turn until nothing is left to do."""
        self.now += round(seconds * 1000)
        while self.turn():
            pass

    def everything(self) -> Message:
        """All keys, and the revision."""
        return self.range(b"\0", b"\0")
