"""core/_port: a worker that does not take its replies holds up nobody, and gets them in order."""

from __future__ import annotations

import pytest

from quorate.core.errors import StoppedError
from tests.core_driver import FIRST, PUT, SLICE_MAX, WINDOW, Core, request
from tests.messages import encode

SMALL_RING = 1 << 14


def test_replies_that_find_no_room_wait_in_order() -> None:
    core = Core(ring_bytes=SMALL_RING)
    core.put(b"k", bytes(1000))
    ids = [core.worker.start("KV/Range", {"key": b"k"}) for _ in range(100)]
    core.turn()
    got = []
    for _ in range(100):
        got += [reply.request_id for reply in core.worker.absorb()]
        core.turn()
        if got == ids:
            break
    assert got == ids


def test_a_worker_that_leaves_replies_lying_is_asked_for_no_more() -> None:
    core = Core(2, ring_bytes=SMALL_RING)
    core.put(b"k", bytes(1000))
    for _ in range(100):
        core.worker.start("KV/Range", {"key": b"k"})
    core.turn()
    before = core.store.revision
    core.worker.start("KV/Put", {"key": b"late"})
    for _ in range(3):
        core.turn()
    assert core.store.revision == before
    assert not core.batch.waiting()  # nothing that could be taken: the core may sleep
    other = core.workers[1]
    core.finish(other.start("KV/Put", {"key": b"other"}), other)
    assert core.store.revision == before + 1
    for _ in range(20):
        core.worker.absorb()
        core.turn()
    assert core.store.revision == before + 2
    assert core.worker.calls[102].ended


def test_all_that_was_drained_is_answered_though_the_ring_is_full() -> None:
    core = Core(ring_bytes=SMALL_RING)
    puts = 0
    while core.worker.push(request(puts, PUT, encode("PutRequest", {"key": b"k"}))):
        puts += 1
    core.turn()
    seen: list[int] = []
    for _ in range(10):
        seen += [reply.request_id for reply in core.worker.receive()]
        core.turn()
    assert seen == list(range(puts))


def test_long_replies_wait_while_the_ring_is_full_and_other_replies_pass() -> None:
    core = Core(ring_bytes=1 << 19)
    for number in range(4):
        core.put(b"k%d" % number, bytes([number]) * 300_000)
    ids = [core.worker.start("KV/Range", {"key": b"k%d" % number}) for number in range(4)]
    for _ in range(3):
        core.turn()
    core.worker.start("KV/Put", {"key": b"k"})
    for _ in range(200):
        core.worker.absorb()
        core.turn()
    for number, request_id in enumerate(ids):
        [reply] = core.worker.calls[request_id].result()
        assert reply["kvs"][0]["value"] == bytes([number]) * 300_000
    assert core.worker.calls[5 + 4].ended


@pytest.mark.parametrize(
    "size", [0, 1, SLICE_MAX - 1, SLICE_MAX, SLICE_MAX + 1, 2 * SLICE_MAX, 700_000]
)
def test_messages_of_any_size_are_cut_into_slices(size: int) -> None:
    core = Core()
    message = (bytes(range(256)) * (size // 256 + 1))[:size]
    asked = core.worker.admin(1)
    core.turn()
    core.worker.port.answer(asked, message)
    call = core.finish(asked)
    assert call.messages == [message]
    assert call.records == max(1, -(-size // SLICE_MAX))


def test_errors_from_python_reach_their_asker() -> None:
    core = Core()
    asked = core.worker.admin(1)
    core.turn()
    core.worker.port.answer_error(asked, StoppedError.id)
    assert core.finish(asked).error == StoppedError.id


def test_at_most_a_window_is_under_way() -> None:
    core = Core()
    core.put(b"k", bytes(1_000_000))
    asked = core.worker.start("KV/Range", {"key": b"k"})
    sent = 0
    for _ in range(20):
        core.turn()
        sent += sum(len(reply.payload) for reply in core.worker.absorb(credit=False))
    assert sent == WINDOW
    for credit in (1, 1000, 70_000):
        core.worker.pull(asked, credit)
        for _ in range(5):
            core.turn()
        assert sum(len(reply.payload) for reply in core.worker.absorb(credit=False)) == credit
    for _ in range(3):  # more credit than a window is worth a window
        core.worker.pull(asked, 2**64 - 1)
    for _ in range(20):
        core.turn()
    assert sum(len(reply.payload) for reply in core.worker.absorb(credit=False)) == WINDOW


def test_a_slice_a_turn_and_no_slice_without_credit() -> None:
    core = Core()
    core.put(b"k", bytes(1_000_000))
    core.worker.start("KV/Range", {"key": b"k"})
    slices = WINDOW // SLICE_MAX
    for number in range(slices):
        assert core.turn()
        [reply] = core.worker.absorb(credit=False)
        assert len(reply.payload) == SLICE_MAX
        assert reply.flags == (FIRST if number == 0 else 0)
    assert not core.turn()
    assert core.worker.receive() == []


def test_lists_take_turns_however_many_there_are() -> None:
    core = Core()
    core.put(b"k", bytes(1_000_000))
    asked = [core.worker.start("KV/Range", {"key": b"k"}) for _ in range(3)]
    sent = []
    while core.turn():
        sent += [reply.request_id for reply in core.worker.absorb(credit=False)]
    assert sent == asked * (WINDOW // SLICE_MAX)
    core.worker.pull(asked[1], SLICE_MAX)
    core.turn()
    assert [reply.request_id for reply in core.worker.absorb(credit=False)] == [asked[1]]


def test_closing_a_port_lets_go_of_its_lists() -> None:
    core = Core(2)
    for number in range(50):
        core.put(b"k%02d" % number, bytes(20_000))
    core.worker.start("KV/Range", {"key": b"k", "range_end": b"l"})
    core.turn()
    other = core.workers[1]
    last = {"revision": core.store.revision, "physical": True}
    core.finish(other.start("KV/DeleteRange", {"key": b"k", "range_end": b"l"}), other)
    waits = other.start("KV/Compact", last | {"revision": core.store.revision})
    for _ in range(5):
        core.turn()
    versions = core.store.versions
    core.worker.port.close()
    core.ports[0] = None
    core.finish(waits, other)
    assert core.store.versions < versions
