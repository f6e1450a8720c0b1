"""core/_catchup and core/_events: what watchers and workers missed, against a naive history."""

from __future__ import annotations

import random
import struct
from itertools import chain, pairwise

import pytest

from quorate.core import limits
from quorate.core.errors import CompactedError
from tests.core_driver import FOLLOW, WATCH, WINDOW, Call, Core
from tests.depth import depth, seed
from tests.messages import Message, decode

REQUEST = struct.Struct("<qqII")
RECORD = struct.Struct("<IIqIIII")
FOLLOW_END = struct.Struct("<qQ")
NO_PUT, NO_DELETE, PREVIOUS, FRAGMENT = 1, 2, 4, 8
COMPACTED = CompactedError.id
KEYS = [b"a", b"ab", b"b", b"ba", b"c"]
Event = tuple[int, int, bytes, bytes, bytes | None]


class History:
    """A core, and every event that it must know: revision, type, key, value, previous value."""

    def __init__(self, request_bytes_max: int = 1 << 21) -> None:
        self.core = Core(2, request_bytes_max=request_bytes_max)
        self.values: dict[bytes, bytes] = {}
        self.events: list[Event] = []
        self.revision = 1

    def write(self, ops: list[tuple[bytes, bytes | None]]) -> None:
        """One Txn of puts, and of deletions (None) of keys; a key comes once."""
        before, found = dict(self.values), []
        for key, value in ops:
            if value is not None:
                self.values[key] = value
                found.append((0, key, value, before.get(key)))
            elif self.values.pop(key, None) is not None:
                found.append((1, key, b"", before[key]))
        if found:
            self.revision += 1
        self.events += [(self.revision, *event) for event in found]
        success = [
            {"request_delete_range": {"key": key}}
            if value is None
            else {"request_put": {"key": key, "value": value}}
            for key, value in ops
        ]
        self.core.call("KV/Txn", {"success": success})

    def wanted(self, start: int, key: bytes, end: bytes, flags: int) -> list[Event]:
        """The events of a range, as a watcher with these flags gets them."""
        found = []
        for revision, kind, changed, value, previous in self.events:
            if revision < start or flags & (NO_DELETE if kind else NO_PUT):
                continue
            if (
                changed != key
                if not end
                else not (key <= changed and (end == b"\0" or changed < end))
            ):
                continue
            found.append((revision, kind, changed, value, previous if flags & PREVIOUS else None))
        return found

    def ask(self, start: int, key: bytes, end: bytes, flags: int) -> Call:
        """One METHOD_WATCH, answered."""
        payload = REQUEST.pack(7, start, flags, len(key)) + key + end
        return self.core.finish(self.core.worker.ask(WATCH, payload))

    def catch_up(self, start: int, key: bytes, end: bytes, flags: int) -> list[list[Event]]:
        """All messages until nothing is missing, each as its events."""
        messages = []
        while start <= self.revision:
            call = self.ask(start, key, end, flags)
            assert call.error == 0
            assert call.extra >= start, "nothing was gained"
            messages += [events_of(message, flags) for message in call.messages]
            start = call.extra + 1
        return messages


def events_of(message: bytes, flags: int) -> list[Event]:
    response = decode("WatchResponse", message)
    assert response["watch_id"] == 7
    found = []
    for event in response["events"]:
        kv: Message = event["kv"]
        previous: Message = event.get("prev_kv", {})
        value = previous.get("value", b"") if previous else None
        kind = event.get("type", 0)
        found.append((kv["mod_revision"], kind, kv["key"], kv.get("value", b""), value))
    revisions = [event[0] for event in found]
    if not response.get("fragment"):
        assert response["header"]["revision"] >= max(revisions)
    return found


def joined(messages: list[list[Event]]) -> list[Event]:
    return list(chain.from_iterable(messages))


def random_history(chance: random.Random, writes: int, size: int) -> History:
    history = History()
    for _ in range(writes):
        keys = chance.sample(KEYS, chance.choice([1, 1, 1, 2, 3]))
        history.write(
            [(key, None if chance.random() < 0.3 else chance.randbytes(size)) for key in keys]
        )
    return history


@pytest.mark.parametrize("size", [3, 3000])
def test_random_watchers_get_what_the_model_has(size: int) -> None:
    number = seed()
    print(f"QUORATE_SEED={number}")
    chance = random.Random(number)
    history = random_history(chance, depth(300, 3000), size)
    for _ in range(depth(60, 600)):
        start = chance.randrange(1, history.revision + 1)
        key = chance.choice(KEYS)
        end = chance.choice([b"", b"", b"\0", b"b", b"zz"])
        if end not in (b"", b"\0") and end <= key:
            end = b""
        flags = chance.randrange(8)
        messages = history.catch_up(start, key, end, flags)
        assert joined(messages) == history.wanted(start, key, end, flags)
        for one, two in pairwise(messages):
            assert one[-1][0] < two[0][0], "a revision is split"


def test_a_key_written_very_often_is_read_from_far_back() -> None:
    history = History()
    for number in range(700):
        history.write([(b"hot", b"%d" % number)])
        history.write([(b"other", b"x")])
    for start in (2, 900, history.revision - 1):
        found = joined(history.catch_up(start, b"hot", b"", PREVIOUS))
        assert found == history.wanted(start, b"hot", b"", PREVIOUS)


@pytest.mark.parametrize("flags", [0, PREVIOUS, FRAGMENT, FRAGMENT | PREVIOUS])
def test_a_large_revision_is_whole_or_in_fragments(flags: int) -> None:
    history = History(request_bytes_max=1 << 16)
    for number in range(400):
        history.write([(b"k%03d" % number, bytes([65 + number % 26]) * 1000)])
    history.core.call("KV/DeleteRange", {"key": b"k", "range_end": b"l"})
    history.revision += 1
    for key in sorted(history.values):
        history.events.append((history.revision, 1, key, b"", history.values[key]))
    call = history.ask(history.revision, b"k", b"l", flags)
    assert call.extra == history.revision
    messages = [events_of(message, flags) for message in call.messages]
    assert joined(messages) == history.wanted(history.revision, b"k", b"l", flags)
    parts = [decode("WatchResponse", message).get("fragment", False) for message in call.messages]
    assert not parts[-1]
    assert all(parts[:-1])
    if flags == FRAGMENT | PREVIOUS:
        assert len(parts) > 5
        assert max(map(len, call.messages)) < (1 << 16) + 100
    else:
        assert len(parts) == 1


def test_compaction_waits_for_a_message_that_is_under_way() -> None:
    history = History()
    for number in range(64):
        history.write([(b"k%02d" % number, bytes(100_000))])
    history.core.call("KV/DeleteRange", {"key": b"k", "range_end": b"l"})
    last = history.revision + 1
    core = history.core
    payload = REQUEST.pack(7, last, PREVIOUS, 1) + b"kl"
    asked = core.worker.ask(WATCH, payload)
    core.turn()
    writer = core.workers[1]
    for _ in range(3):
        core.finish(writer.start("KV/Put", {"key": b"z", "value": b"v"}), writer)
    core.finish(writer.start("KV/Compact", {"revision": last + 3}), writer)
    for _ in range(100):
        core.turn()
    assert core.store.finished_revision < last + 3
    call = core.finish(asked)
    assert call.error == 0
    events = decode("WatchResponse", call.messages[0])["events"]
    assert len(events) == 64
    assert all(len(event["prev_kv"]["value"]) == 100_000 for event in events)
    for _ in range(100):
        core.turn()
    assert core.store.finished_revision == last + 3


def stalled(history: History, start: int) -> int:
    """A watcher of the deletions from this revision on, whose client takes a window and no more."""
    core = history.core
    asked = core.worker.ask(WATCH, REQUEST.pack(7, start, PREVIOUS, 1) + b"kl")
    for _ in range(20):
        core.turn()
        core.worker.absorb(credit=False)
    assert len(core.worker.calls[asked].part) == WINDOW
    return asked


def fill_and_delete(history: History, size: int) -> int:
    """One revision that puts four large values, and one that deletes them: the latter."""
    history.write([(b"k%d" % number, bytes(size)) for number in range(4)])
    history.write([(b"k%d" % number, None) for number in range(4)])
    return history.revision


def compact(history: History, revision: int) -> int:
    """Compact by another worker; answers how far that got."""
    core, writer = history.core, history.core.workers[1]
    core.finish(writer.start("KV/Compact", {"revision": revision}), writer)
    for _ in range(20):
        core.turn()
        core.worker.absorb(credit=False)
    core.store.check()
    return core.store.finished_revision


def test_a_slow_client_holds_compaction_up_for_a_tick() -> None:
    """A watcher that took nothing used to keep all that was written for ten minutes."""
    history = History()
    deleted = fill_and_delete(history, 300_000)
    asked = stalled(history, deleted)
    core = history.core
    history.write([(b"z", b"")])
    assert compact(history, history.revision) < history.revision
    core.worker.port.tick(1000, 600_000)
    copied = core.batch.events.copied
    assert 1_000_000 < copied <= limits.CATCH_UP_COPY_BYTES_MAX
    for _ in range(20):
        core.turn()
    assert core.store.finished_revision == history.revision
    core.store.check()
    core.worker.pull(asked, WINDOW)
    call = core.finish(asked)
    assert (call.error, call.extra) == (0, history.revision - 1)
    [message] = call.messages
    assert events_of(message, PREVIOUS) == history.wanted(deleted, b"k", b"l", PREVIOUS)[:4]
    assert core.batch.events.copied == 0


def test_what_is_too_large_to_be_copied_holds_compaction_up_until_it_is_given_up() -> None:
    history = History(request_bytes_max=1 << 22)
    deleted = fill_and_delete(history, 600_000)
    asked = stalled(history, deleted)
    core = history.core
    for _ in range(3):
        core.worker.port.tick(1000, 3000)
        history.write([(b"z", b"")])
        assert compact(history, history.revision) < deleted
    core.worker.port.tick(1000, 3000)
    for _ in range(20):
        core.turn()
        core.worker.absorb(credit=False)
    assert core.batch.events.copied == 0
    assert core.store.finished_revision == history.revision
    assert core.worker.calls[asked].error


def test_who_holds_compaction_up_does_so_for_what_came_before_it() -> None:
    """Holders that overlapped without end used to stop all compaction."""
    history = History(request_bytes_max=1 << 22)
    core, asked, revisions = history.core, [], []
    for _ in range(5):
        deleted = fill_and_delete(history, 600_000)
        asked.append(stalled(history, deleted))
        if len(asked) > 1:
            core.worker.cancel(asked[-2])
        history.write([(b"z", b"")])
        revisions.append(history.revision)
        finished = compact(history, history.revision)
        assert finished == (revisions[-2] if len(asked) > 1 else -1)
    core.worker.cancel(asked[-1])
    for _ in range(20):
        core.turn()
    assert core.store.finished_revision == history.revision
    core.store.check()


def test_a_slow_stream_gets_a_window_and_no_more() -> None:
    history = History()
    for number in range(4):
        history.write([(b"k%d" % number, bytes(300_000))])
    core = history.core
    core.call("KV/DeleteRange", {"key": b"k", "range_end": b"l"})
    asked = core.worker.ask(WATCH, REQUEST.pack(7, history.revision + 1, PREVIOUS, 1) + b"kl")
    for _ in range(50):
        core.turn()
        core.worker.absorb(credit=False)
    assert len(core.worker.calls[asked].part) == WINDOW
    core.worker.cancel(asked)
    core.turn()
    core.call("KV/Compact", {"revision": history.revision + 1, "physical": True})
    core.store.check()


def test_below_the_compacted_revision_is_refused_and_at_it_all_is_there() -> None:
    history = History()
    for number in range(10):
        history.write([(b"a", b"%d" % number), (b"b", None if number % 2 else b"x")])
    history.core.call("KV/Compact", {"revision": 7, "physical": True})
    call = history.ask(6, b"a", b"z", 0)
    assert (call.error, call.extra) == (COMPACTED, 7)
    found = joined(history.catch_up(7, b"a", b"z", 0))
    assert found == history.wanted(7, b"a", b"z", 0)
    # The previous values of revision 7 were those of revision 6.
    found = joined(history.catch_up(7, b"a", b"z", PREVIOUS))
    assert [event[4] for event in found if event[0] == 7] == [None, None]
    assert found[2:] == history.wanted(8, b"a", b"z", PREVIOUS)


def test_a_revision_compacted_to_keeps_what_it_overwrote_itself() -> None:
    """A put and a deletion of one key in one Txn: the watcher at that revision gets both.

    Compaction to that very revision used to take the first of them.
    """
    core = Core(2)
    inner = {"success": [{"request_delete_range": {"key": b"a"}}]}
    core.call("KV/Txn", {"success": [{"request_put": {"key": b"a", "value": b"1"}}]})
    core.call("KV/Txn", {"success": [{"request_txn": inner}, {"request_put": {"key": b"b"}}]})
    core.call("KV/Compact", {"revision": 3, "physical": True})
    call = core.finish(core.worker.ask(WATCH, REQUEST.pack(7, 3, 0, 1) + b"a\0"))
    events = decode("WatchResponse", call.messages[0])["events"]
    assert [event["kv"]["key"] for event in events] == [b"a", b"b"]
    core.store.check()


def follow(history: History, start: int) -> tuple[list[tuple[int, bool, bytes]], tuple[int, int]]:
    """All records from a revision on (revision, whether it is the last one, key), and the end."""
    call = history.core.finish(history.core.worker.ask(FOLLOW, b"\1", start))
    assert call.error == 0
    found = []
    for message in call.messages[:-1]:
        at = 0
        while at < len(message):
            size, flags, revision, key_at, key_size, _, _ = RECORD.unpack_from(message, at)
            key_at += at + RECORD.size
            found.append((revision, bool(flags & 2), message[key_at : key_at + key_size]))
            at += size
    return found, FOLLOW_END.unpack(call.messages[-1])


def test_who_follows_gets_all_events_and_where_the_ring_goes_on() -> None:
    number = seed()
    print(f"QUORATE_SEED={number}")
    history = random_history(random.Random(number), 200, 2000)
    for start in (1, 50, history.revision, history.revision + 1):
        found, (revision, position) = follow(history, start)
        assert revision == history.revision
        assert position == 0
        wanted = [event for event in history.events if event[0] >= start]
        assert [(one[0], one[2]) for one in found] == [(one[0], one[2]) for one in wanted]
        for one, two in pairwise([*found, (revision + 1, True, b"")]):
            assert one[1] == (one[0] != two[0]), "the last event of a revision"
    history.write([(b"a", b"live")])
    _, (revision, position) = follow(history, history.revision)
    assert revision == history.revision
    assert position > 0, "the write is in the ring"


def test_who_follows_from_a_compacted_revision_is_told() -> None:
    history = random_history(random.Random(1), 50, 10)
    history.core.call("KV/Compact", {"revision": 20, "physical": True})
    call = history.core.finish(history.core.worker.ask(FOLLOW, b"\0", 19))
    assert (call.error, call.extra) == (COMPACTED, 20)
    found, _ = follow(history, 20)
    assert found[0][0] == 20


def test_what_is_no_catch_up_request_is_dropped() -> None:
    core = Core()
    for payload in (b"", b"short", REQUEST.pack(0, 1, 0, 5) + b"four", REQUEST.pack(0, -1, 0, 0)):
        core.worker.ask(WATCH, payload)
    core.turn()
    assert core.worker.port.dropped == 4
