"""core/_batch: what a worker may write into its ring, what is taken, and who hears of it."""

from __future__ import annotations

import random
import struct

import pytest

from quorate.core._batch import Reads
from quorate.core.errors import (
    CompactedError,
    CorruptError,
    FutureRevisionError,
    NoLeaderError,
)
from tests.core_driver import (
    ADMIN,
    CANCEL,
    END,
    HASH_KV,
    PULL,
    PUT,
    RANGE,
    REQUEST,
    TERM,
    TXN,
    Core,
    FakeWorker,
    Reply,
    request,
)
from tests.messages import Message, decode, encode

PUT_K = encode("PutRequest", {"key": b"k", "value": b"v"})
GET_K = encode("RangeRequest", {"key": b"k"})
# Payloads that the worker's own checks let nobody send.
REFUSED_BY_WORKERS = [
    (PUT, encode("PutRequest", {"value": b"no key"})),
    (PUT, encode("PutRequest", {"key": b"k", "value": b"v", "ignore_value": True})),
    (PUT, encode("PutRequest", {"key": b"k", "lease": 7, "ignore_lease": True})),
    (PUT, b"\x0a\x7fk"),
    (RANGE, b""),
    (RANGE, encode("RangeRequest", {"key": b"k", "sort_order": 9})),
    (TXN, encode("TxnRequest", {"success": [{}]})),
    (TXN, encode("TxnRequest", {"success": [{"request_put": {"key": b"k"}}] * 129})),
    (6, encode("RangeRequest", {"key": b"k", "sort_order": 2})),
]


# --- records that do not check --------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\x01",
        request(1, PUT, PUT_K)[: REQUEST.size - 1],
        REQUEST.pack(1, 0, PUT, 1) + PUT_K,  # the reserved field
        request(1, 0, PUT_K),  # no method
        request(1, 9, PUT_K),
        request(1, 63, PUT_K),
        request(1, 67),
        request(1, 2**32 - 1, PUT_K),
        request(1, PUT, bytes(5000)),  # longer than a request may be
        *[request(1, *one) for one in REFUSED_BY_WORKERS],
    ],
)
def test_a_record_that_does_not_check_is_dropped_and_counted(record: bytes) -> None:
    core = Core(request_bytes_max=4096)
    core.worker.push(record)
    core.worker.push(request(2, PUT, PUT_K))
    core.turn()
    assert core.worker.port.dropped == 1
    assert [reply.request_id for reply in core.worker.receive()] == [2]
    assert not core.worker.port.corrupt
    assert core.store.revision == 2


def test_the_longest_request_is_taken_and_one_byte_more_is_not() -> None:
    core = Core(request_bytes_max=4096)
    room = 4096 - len(encode("PutRequest", {"key": b"k", "value": bytes(4000)})) + 4000
    for size in (room, room + 1):
        core.worker.push(request(1, PUT, encode("PutRequest", {"key": b"k", "value": bytes(size)})))
    core.turn()
    assert len(core.worker.receive()) == 1
    assert core.worker.port.dropped == 1


def test_a_request_id_given_twice_harms_only_its_worker() -> None:
    core = Core(2)
    core.put(b"long", bytes(300_000))
    long = encode("RangeRequest", {"key": b"long", "range_end": b"m"})
    for _ in range(2):
        core.worker.push(request(77, RANGE, long))
        core.worker.push(request(78, PUT, PUT_K))
    core.turn()
    replies = core.worker.receive()
    assert core.worker.port.dropped == 1  # the second list; both puts are answered
    assert [reply.request_id for reply in replies].count(78) == 2
    core.worker.push(request(77, CANCEL))
    core.turn()
    other = core.workers[1]
    call = core.finish(other.start("KV/Range", {"key": b"long"}), other)
    assert call.result()[0]["count"] == 1


def test_cancel_and_pull_of_nothing_are_nothing() -> None:
    core = Core()
    for number in (CANCEL, PULL):
        core.worker.push(request(12345, number, b"", 2**64 - 1))
    core.turn()
    assert core.worker.receive() == []
    assert core.worker.port.dropped == 0


def test_random_records_never_stop_the_core() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    core = Core(2)
    good = [PUT_K, GET_K, *(payload for _, payload in REFUSED_BY_WORKERS)]
    for _ in range(5_000):
        payload = bytearray(rng.choice(good))
        for _ in range(rng.randrange(3)):
            if payload:
                payload[rng.randrange(len(payload))] = rng.randrange(256)
        methods = [*range(1, 9), CANCEL, PULL, ADMIN, rng.randrange(100)]
        ids = rng.randrange(10), rng.randrange(2**64), rng.choice(methods), rng.random() < 0.05
        core.worker.push((REQUEST.pack(*ids) + payload)[: rng.choice([5, 1000, 1000, 1000])])
        if rng.random() < 0.1:
            core.turn()
            core.worker.receive()
    core.turn()
    core.worker.receive()
    core.store.check()
    other = core.workers[1]
    reply = core.finish(other.start("KV/Put", {"key": b"sane"}), other).result()[0]
    assert reply["header"]["revision"] > 10, f"seed {seed}"


# --- a ring that does not check -------------------------------------------------------------------

HEADER_BYTES = 4096  # of a ring, before its data


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, struct.pack("<Q", 1 << 40)),  # a head beyond the ring
        (HEADER_BYTES, struct.pack("<I", 1 << 30)),  # a length beyond the head
        (HEADER_BYTES + 4, struct.pack("<I", 9)),  # a sequence number out of order
    ],
)
def test_a_corrupt_ring_marks_its_port_and_stops_nobody_else(offset: int, data: bytes) -> None:
    core = Core(2)
    core.worker.push(request(1, PUT, PUT_K))
    core.worker.requests.poke(offset, data)
    core.workers[1].start("KV/Put", {"key": b"other"})
    core.turn()
    assert core.worker.port.corrupt
    assert not core.workers[1].port.corrupt
    assert keys_of(core) == [b"other"]
    core.worker.push(request(2, PUT, PUT_K))
    core.turn()
    assert keys_of(core) == [b"other"]
    assert not core.batch.waiting()


def keys_of(core: Core) -> list[bytes]:
    other = core.workers[1]
    asked = other.start("KV/Range", {"key": b"\0", "range_end": b"\0"})
    return [kv["key"] for kv in core.finish(asked, other).result()[0].get("kvs", [])]


# --- what becomes of requests ---------------------------------------------------------------------


def test_writes_of_a_turn_are_one_run_and_linearizable_reads_wait_together() -> None:
    core = Core(2)
    for worker in core.workers:
        worker.start("KV/Put", {"key": b"a%d" % worker.port.slot})
        worker.start("KV/Range", {"key": b"a0"})
        worker.start("KV/Range", {"key": b"a0", "serializable": True})
        ranged = {"request_range": {"key": b"a0"}}
        worker.start("KV/Txn", {"success": [ranged]})
        worker.start("KV/Txn", {"success": [{"request_range": {"key": b"a", "serializable": 1}}]})
        worker.start("KV/Txn", {"success": [{"request_txn": {"success": [ranged]}}]})
        worker.start("Maintenance/HashKV")
    core.batch.drain()
    run, reads = core.batch.run, core.batch.reads
    assert run is not None
    assert reads is not None
    assert run.count == 4  # the puts, and the nested Txns, which etcd logs too
    assert reads.count == 4
    core.ports[0].flush()  # type: ignore[union-attr]
    # Serializable: answered at once, from before the run. A hash takes a step.
    assert [reply.request_id for reply in core.worker.receive()] == [3, 5]


def test_each_of_many_gets_has_its_own_answer() -> None:
    """Gets are looked up together; what each asked for must not get mixed up."""
    core = Core(3)
    for number in range(100):
        core.put(b"k%03d" % number, b"v%02d" % number)
    core.call("KV/DeleteRange", {"key": b"k010", "range_end": b"k020"})
    kinds: list[Message] = [{}, {"keys_only": True}, {"count_only": True}, {"range_end": b"k095"}]
    asked = []
    for number in range(120):
        worker, kind = core.workers[number % 3], kinds[number % 7 % 4]
        request_id = worker.start("KV/Range", {"key": b"k%03d" % number, **kind})
        asked.append((worker, request_id, number, kind))
    # Those of the third worker were asked by one that is gone.
    core.batch.drain()
    gone = core.workers[2]
    core.ports[2] = FakeWorker(2, generation=99).port
    assert core.batch.reads is not None
    core.batch.serve(core.batch.reads)
    for worker, request_id, number, kind in asked:
        if worker is gone:
            continue
        (answer,) = core.finish(request_id, worker).result()
        live = number < 100 and not 10 <= number < 20
        if "range_end" in kind:
            assert answer.get("count", 0) == len([n for n in range(number, 95) if not 10 <= n < 20])
            continue
        assert answer.get("count", 0) == live
        found = [(one["key"], one.get("value", b"")) for one in answer.get("kvs", [])]
        value = b"" if "keys_only" in kind else b"v%02d" % number
        assert found == ([(b"k%03d" % number, value)] if live and "count_only" not in kind else [])
    gone.port.flush()
    assert gone.receive() == []


def test_an_entry_is_the_clients_bytes_and_an_id() -> None:
    core = Core()
    unknown = b"\xfa\x3f\x03abc"
    core.worker.push(request(1, PUT, PUT_K + unknown))
    core.worker.push(request(2, TXN, encode("TxnRequest", {"success": [{"request_put": {}}]})))
    txn = encode("TxnRequest", {"success": [{"request_put": {"key": b"k"}}]})
    core.worker.push(request(3, TXN, txn))
    core.turn()
    [run] = core.runs
    body = PUT_K + unknown
    assert run.unpack() == [
        (0, b"\x22" + bytes([len(body)]) + body + b"\xa2\x06\x02\x08\x01"),
        (0, b"\x32" + bytes([len(txn)]) + txn + b"\xa2\x06\x02\x08\x02"),
    ]
    assert (run.first_index, run.last_index, run.term) == (1, 2, TERM)


def test_python_proposes_into_the_same_run_and_order() -> None:
    core = Core()
    core.worker.start("KV/Put", {"key": b"a"})
    core.worker.admin(3, b"payload")
    core.batch.drain()
    [(port, request_id, call, payload)] = core.batch.asked
    assert (port, request_id, call, payload) == (core.worker.port, 2, 3, b"payload")
    assert core.batch.propose(lambda entry_id: b"\x52\x02\x08\x01" + bytes([entry_id])) == 2
    assert core.batch.run is not None
    core.commit(core.batch.run)
    assert core.others == [(0, 2, b"\x52\x02\x08\x01\x02")]
    assert core.applier.applied == 2


def test_a_refused_run_and_refused_reads_tell_everyone_who_waits() -> None:
    core = Core(2)
    for worker in core.workers:
        worker.start("KV/Put", {"key": b"a"})
        worker.start("KV/Range", {"key": b"a"})
    core.batch.drain()
    assert core.batch.run is not None
    assert core.batch.reads is not None
    core.batch.propose(lambda entry_id: b"nobody waits")
    core.batch.refuse_run(core.batch.run, NoLeaderError.id)
    core.batch.refuse(core.batch.reads, NoLeaderError.id)
    for worker in core.workers:
        worker.port.flush()
        expected = [Reply(number, 0, END, NoLeaderError.id, b"") for number in (1, 2)]
        assert worker.receive() == expected
    assert core.store.revision == 1


def test_replies_to_a_replaced_worker_are_dropped() -> None:
    core = Core(2)
    core.put(b"long", bytes(300_000))
    gone = core.worker
    gone.start("KV/Put", {"key": b"a"})
    gone.start("KV/Range", {"key": b"a"})
    gone.start("KV/Txn", {"success": [{"request_range": {"key": b"long"}}]})
    core.batch.drain()
    run, reads = core.batch.run, core.batch.reads
    assert run is not None
    assert reads is not None
    core.ports[0] = None
    gone.port.close()
    core.commit(run)
    core.workers[0] = FakeWorker(0, generation=99)
    core.ports[0] = core.workers[0].port
    core.batch.serve(reads)
    core.batch.refuse(reads, NoLeaderError.id)
    core.batch.refuse_run(run, NoLeaderError.id)
    for worker in (gone, core.workers[0]):
        worker.port.step()
        worker.port.flush()
        assert worker.receive() == []
    assert core.everything()["count"] == 2  # the write itself counts


def test_a_turn_takes_a_bounded_number_and_says_that_there_is_more() -> None:
    core = Core()
    for number in range(5_000):
        core.worker.push(request(number, CANCEL))
    assert core.batch.drain()
    assert core.batch.waiting()
    assert not core.batch.drain()
    assert not core.batch.waiting()


def test_a_turn_takes_a_bounded_number_of_bytes() -> None:
    core = Core(ring_bytes=1 << 23)
    put = encode("PutRequest", {"key": b"k", "value": bytes(1_000_000)})
    for number in range(7):
        core.worker.push(request(number, PUT, put))
    assert core.batch.drain()
    assert core.batch.run is not None
    assert core.batch.run.count == 5
    assert not core.batch.drain()
    assert core.batch.run is not None
    assert core.batch.run.count == 2


# --- reads ----------------------------------------------------------------------------------------


def test_reads_of_revisions_that_cannot_be_read() -> None:
    core = Core()
    for number in range(5):
        core.put(b"k", b"%d" % number)
    core.call("KV/Compact", {"revision": 4})
    for serializable in (False, True):
        asked: Message = {"key": b"k", "serializable": serializable}
        assert core.refused("KV/Range", asked | {"revision": 3}) is CompactedError
        assert core.refused("KV/Range", asked | {"revision": 7}) is FutureRevisionError
        for revision in (4, 5, 6, 0, -1):
            assert core.refused("KV/Range", asked | {"revision": revision}) is None
    stream = core.finish(core.worker.start("KV/RangeStream", {"key": b"k", "revision": 3}))
    assert stream.error == CompactedError.id
    assert core.refused("Maintenance/HashKV", {"revision": 99}) is FutureRevisionError


def test_the_corrupt_alarm_refuses_no_reads() -> None:
    """As in etcd 3.4 and 3.5; writes and lease grants are another matter."""
    core = Core()
    core.put(b"k")
    core.applier.corrupt = True
    ranged = {"success": [{"request_range": {"key": b"k"}}]}
    assert core.refused("KV/Range", {"key": b"k"}) is None
    assert core.refused("KV/Range", {"key": b"k", "serializable": True}) is None
    assert core.refused("KV/Txn", ranged) is None
    assert core.refused("Maintenance/HashKV") is None
    assert core.refused("Maintenance/Hash") is None
    assert not core.finish(core.worker.start("KV/RangeStream", {"key": b"k"})).error
    assert core.refused("KV/Put", {"key": b"k"}) is CorruptError


def test_a_hash_of_hostile_length_is_one_of_many_reads() -> None:
    """Reads are kept with their bytes until their index is known; padding must not shift them."""
    core = Core()
    core.put(b"k", b"value")
    for size in range(1, 20):
        core.worker.push(request(size, RANGE, encode("RangeRequest", {"key": bytes(size)})))
        core.worker.push(request(100 + size, RANGE, GET_K))
    core.worker.push(request(300, HASH_KV, b""))
    core.turn()
    counts = {}
    for reply in core.worker.receive():
        if reply.request_id != 300:
            message = decode("RangeResponse", reply.payload)
            counts[reply.request_id] = message.get("count", 0)
    assert counts == dict.fromkeys(range(1, 20), 0) | {100 + size: 1 for size in range(1, 20)}


def test_no_reads_is_an_empty_set() -> None:
    core = Core()
    core.batch.serve(Reads())
    core.batch.refuse(Reads(), NoLeaderError.id)
    assert core.worker.receive() == []
