"""core/_listing: long replies go out in slices while the store goes on, and read their revision."""

from __future__ import annotations

import random

import pytest

from quorate.core.errors import ListAbandonedError
from tests.core_driver import SLICE_MAX, WINDOW, Core
from tests.messages import Message
from tests.model import Model
from tests.range_model import range_reply

ALL: Message = {"key": b"\0", "range_end": b"\0"}


class Pair:
    """A core with two workers and the model of what it was told: one lists, one writes."""

    def __init__(self, keys: int, size: int, request_bytes_max: int = 1 << 21) -> None:
        self.core = Core(2, request_bytes_max=request_bytes_max)
        self.model = Model()
        for number in range(keys):
            self.put(b"k%05d" % number, bytes([number % 251 + 1]) * size)

    def put(self, key: bytes, value: bytes) -> None:
        self.model.begin()
        self.model.put(key, value, 0)
        self.model.end()
        self.write("KV/Put", {"key": key, "value": value})

    def delete(self, key: bytes, end: bytes = b"") -> None:
        self.model.begin()
        self.model.delete_range(key, end)
        self.model.end()
        self.write("KV/DeleteRange", {"key": key, "range_end": end})

    def compact(self) -> None:
        """Compact to the newest revision."""
        if self.model.compact_revision < self.model.revision:
            self.model.compact(self.model.revision)
            self.write("KV/Compact", {"revision": self.model.revision})

    def write(self, name: str, message: Message) -> Message:
        """A call of the second worker, while the first one's lists go on."""
        writer = self.core.workers[1]
        call = self.core.finish(writer.start(name, message), writer)
        return call.result()[0]

    def start(self, asked: Message, name: str = "KV/Range") -> int:
        """Begin a list; it reads the revision of now."""
        started = self.core.worker.start(name, asked)
        self.core.turn(compact=0)
        return started


def without_header(reply: Message, revision: int) -> Message:
    header = reply.pop("header")
    assert header["revision"] == revision
    return reply


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit": 150},
        {"sort_target": 1, "sort_order": 2},
        {"sort_target": 4, "sort_order": 1, "limit": 222},
        {"min_mod_revision": 100, "max_mod_revision": 280},
        {"revision": 200},
        {"revision": 200, "limit": 120, "sort_target": 3},
        {"keys_only": True},
    ],
)
def test_a_list_reads_its_revision_whatever_goes_on(options: Message) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    pair = Pair(300, 2_000)
    for number in range(0, 300, 3):
        pair.put(b"k%05d" % number, bytes(1_500))
    expected, revision = range_reply(pair.model, ALL | options), pair.model.revision
    listed = pair.start(ALL | options)
    call = pair.core.worker.calls[listed]
    owed = 0
    for _ in range(2_000):
        if call.ended:
            break
        choice = rng.randrange(6)
        if choice == 0:
            pair.put(b"k%05d" % rng.randrange(400), rng.randbytes(3_000))
        elif choice == 1:
            pair.delete(b"k%05d" % rng.randrange(300), b"k%05d" % rng.randrange(300))
        elif choice == 2:
            pair.compact()
        elif choice == 3 and owed:
            credit = rng.choice([1, owed, owed])
            pair.core.worker.pull(listed, credit)
            owed -= credit
        else:
            pair.core.turn(compact=rng.choice([0, 10, 10_000]))
        got = pair.core.worker.absorb(credit=False)
        owed += sum(len(reply.payload) for reply in got)
        assert owed <= WINDOW, f"seed {seed}"
    [reply] = call.result()
    assert without_header(reply, revision) == expected, f"seed {seed}"
    pair.compact()
    while pair.core.turn(compact=10_000):
        pass
    pair.core.store.check()
    assert pair.core.store.finished_revision == pair.core.store.compact_revision


def test_many_lists_at_once_each_read_their_own_revision() -> None:
    pair = Pair(150, 2_000)
    expected = {}
    for number in range(8):
        listed = pair.start(ALL)
        expected[listed] = range_reply(pair.model, ALL), pair.model.revision
        pair.delete(b"k%05d" % (10 * number), b"k%05d" % (10 * number + 5))
        pair.compact()
    for _ in range(500):
        pair.core.worker.absorb()
        pair.core.turn()
    for listed, (reply, revision) in expected.items():
        [got] = pair.core.worker.calls[listed].result()
        assert without_header(got, revision) == reply


@pytest.mark.parametrize("size", [SLICE_MAX - 40, SLICE_MAX, SLICE_MAX + 1, 200_000, 1_400_000])
def test_values_around_and_above_a_slice(size: int) -> None:
    pair = Pair(4, size)
    listed = pair.start(ALL)
    [reply] = pair.core.finish(listed).result()
    assert without_header(reply, pair.model.revision) == range_reply(pair.model, ALL)


def test_replies_around_the_length_of_a_slice() -> None:
    """Short replies go in one record, long ones in slices; the border is met from both sides."""
    pair = Pair(1, 10)
    for size in range(SLICE_MAX // 2 - 150, SLICE_MAX // 2 + 50, 7):
        pair.put(b"k00000", bytes(size))
        [reply] = pair.core.finish(pair.start(ALL)).result()
        assert without_header(reply, pair.model.revision) == range_reply(pair.model, ALL)


def test_other_requests_are_answered_between_two_slices() -> None:
    pair = Pair(500, 4_000)
    listed = pair.start(ALL)
    call = pair.core.worker.calls[listed]
    pair.core.worker.absorb()
    turns = 0
    while not call.ended:
        writer = pair.core.workers[1]
        asked = writer.start("KV/Put", {"key": b"other"})
        pair.core.turn()
        writer.absorb()
        assert writer.calls[asked].ended
        assert len(pair.core.worker.absorb()) <= 1
        turns += 1
    assert turns >= 500 * 4_000 // SLICE_MAX


# --- RangeStream ----------------------------------------------------------------------------------


def joined(messages: list[Message]) -> Message:
    """The chunks of a stream as one RangeResponse; what only the last may have is checked."""
    chunks = [message["range_response"] for message in messages]
    for chunk in chunks[:-1]:
        assert chunk.keys() == {"kvs"}
    whole = dict(chunks[-1])
    kvs = [kv for chunk in chunks for kv in chunk.get("kvs", [])]
    return whole | ({"kvs": kvs} if kvs else {})


@pytest.mark.parametrize(
    ("keys", "size", "options"),
    [
        (0, 0, {}),
        (1, 10, {}),
        (10, 10, {}),
        (11, 10, {}),
        (700, 10, {}),
        (700, 10, {"limit": 333}),
        (700, 10, {"revision": 400}),
        (700, 10, {"count_only": True}),
        (300, 3_000, {"keys_only": True}),
        (300, 3_000, {}),
        (30, 100_000, {"limit": 25}),
        # Random records found that a stream sorted by an order of NONE read beyond its range, and
        # ended the process.
        (300, 3_000, {"sort_target": 3}),
        (700, 10, {"sort_target": 4, "limit": 333}),
        (300, 10, {"sort_target": 1, "keys_only": True}),
    ],
)
def test_a_stream_is_a_list_in_chunks(keys: int, size: int, options: Message) -> None:
    pair = Pair(keys, size, request_bytes_max=200_000)
    expected, revision = range_reply(pair.model, ALL | options), pair.model.revision
    started = pair.start(ALL | options, "KV/RangeStream")
    if keys:
        pair.delete(b"k", b"l")
        pair.compact()
    call = pair.core.finish(started)
    assert without_header(joined(call.result()), revision) == expected
    shown = len(expected.get("kvs", []))
    assert (len(call.messages) > 1) == (shown > 10)
    assert all(len(message) < 3 * 200_000 for message in call.messages)


def test_chunks_grow_from_ten_keys() -> None:
    pair = Pair(700, 10)
    messages = pair.core.finish(pair.start(ALL, "KV/RangeStream")).result()
    sizes = [len(message["range_response"].get("kvs", [])) for message in messages]
    assert sizes[:6] == [10, 20, 40, 80, 160, 320]


# --- pins, cancels and slow readers ---------------------------------------------------------------


def hindered(pair: Pair) -> int:
    """Versions that stay because a list reads them: delete all, compact, sweep."""
    pair.delete(b"k", b"l")
    pair.compact()
    for _ in range(50):
        pair.core.turn(compact=10_000)
    return int(pair.core.store.versions)


@pytest.mark.parametrize("name", ["KV/Range", "KV/RangeStream"])
def test_a_list_keeps_what_it_reads_and_its_end_frees_it(name: str) -> None:
    for cancelled in (True, False):
        pair = Pair(200, 3_000)
        listed = pair.start(ALL, name)
        assert hindered(pair) >= 200
        if cancelled:
            pair.core.worker.cancel(listed)
            pair.core.worker.receive()
        else:
            assert pair.core.finish(listed).error == 0
        for _ in range(10):
            pair.core.turn(compact=10_000)
        assert pair.core.store.versions <= 200  # tombstones of the compacted revision stay
        pair.core.store.check()


def test_a_list_that_hinders_compaction_is_given_up_after_its_time() -> None:
    pair = Pair(200, 3_000)
    listed = pair.start(ALL)
    before = hindered(pair)
    port = pair.core.worker.port
    for _ in range(10):
        port.tick(100, 1000)
    port.flush()
    pair.core.worker.absorb(credit=False)
    assert not pair.core.worker.calls[listed].ended
    port.tick(100, 1000)
    port.flush()
    pair.core.worker.absorb(credit=False)
    assert pair.core.worker.calls[listed].error == ListAbandonedError.id
    for _ in range(10):
        pair.core.turn(compact=10_000)
    assert pair.core.store.versions < before
    pair.core.store.check()


def test_a_list_that_hinders_nothing_may_take_for_ever() -> None:
    pair = Pair(200, 3_000)
    listed = pair.start(ALL)
    for _ in range(1_000):
        pair.core.worker.port.tick(100, 1000)
    assert pair.core.finish(listed).error == 0


def test_a_stalled_list_is_no_work() -> None:
    """A core whose only business waits for its client sleeps."""
    pair = Pair(200, 3_000)
    pair.start(ALL)
    while pair.core.turn():
        pass
    assert not pair.core.turn()


# --- hashes and physical compaction ---------------------------------------------------------------


def test_a_hash_is_taken_in_steps_and_is_that_of_its_revision() -> None:
    pair = Pair(3_500, 3)
    model = pair.model
    asked = pair.core.worker.start("Maintenance/HashKV")
    expected = model.hash_kv(0)
    revision = model.revision
    for number in range(5):
        pair.core.turn(compact=0)
        assert pair.core.worker.calls[asked].ended == (number > 3)
        if number == 0:
            pair.delete(b"k", b"k00100")
            pair.compact()
        pair.core.worker.absorb()
        if pair.core.worker.calls[asked].ended:
            break
    [reply] = pair.core.worker.calls[asked].result()
    assert expected is not None
    assert (reply["hash"], reply["hash_revision"]) == (expected[0], revision)


def test_a_cancelled_hash_lets_compaction_go_on() -> None:
    pair = Pair(3_500, 3)
    asked = pair.core.worker.start("Maintenance/HashKV")
    pair.core.turn(compact=0)
    pair.compact()
    pair.core.worker.cancel(asked)
    while pair.core.turn(compact=10_000):
        pass
    assert pair.core.store.finished_revision == pair.core.store.compact_revision


@pytest.mark.parametrize("physical", [False, True])
def test_a_physical_compaction_is_answered_when_its_removal_is_done(physical: bool) -> None:
    core = Core()
    for number in range(2_000):
        core.put(b"k", b"%d" % number)
    asked = core.worker.start("KV/Compact", {"revision": 1_900, "physical": physical})
    core.turn(compact=0)
    core.worker.absorb()
    assert core.worker.calls[asked].ended == (not physical)
    core.turn(compact=500)
    core.worker.absorb()
    assert core.worker.calls[asked].ended == (not physical)
    while core.turn(compact=500):
        pass
    core.worker.absorb()
    [reply] = core.worker.calls[asked].result()
    assert reply["header"]["revision"] == 2_001
    assert core.store.versions == 102


def test_a_physical_compaction_does_not_wait_for_lists() -> None:
    """What a list still reads is left for later; a list that stalls must stall nothing else."""
    pair = Pair(200, 3_000)
    listed = pair.start(ALL)
    pair.delete(b"k", b"l")
    pair.write("KV/Compact", {"revision": pair.model.revision, "physical": True})
    assert pair.core.store.versions == 400
    assert not pair.core.worker.calls[listed].ended
    assert not pair.core.turn()
    pair.core.finish(listed)
    pair.core.turn()
    assert pair.core.store.versions == 200
