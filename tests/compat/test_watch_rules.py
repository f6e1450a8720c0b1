"""The rules of Watch, one by one, as etcd has them.

That something does not come is seen by what comes instead: a stream answers creates in order, so
that a sentinel created, or told, afterwards comes after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.messages import Message
from tests.server import Program, Server
from tests.watches import DELETE, NO_WATCH, NODELETE, NOPUT, Stream, notifying, revision_of
from tests.wire import Client

pytestmark = pytest.mark.compat

COMPACTED = "etcdserver: mvcc: required revision has been compacted"
EMPTY_RANGE = "mvcc: watcher range is empty"
DUPLICATE = "mvcc: duplicate watch ID provided on the WatchStream"
EVERYTHING = (b"\0", b"\0")
MIB = 1 << 20
LONG_AGO, FAR = -(1 << 63), (1 << 63) - 1


@pytest.fixture
def stream(client: Client) -> Iterator[Stream]:
    """A Watch stream on a fresh server."""
    with Stream(client) as one:
        yield one


def brief(events: list[Message]) -> list[tuple[str, bytes, int]]:
    """What most tests compare: kind, key and revision."""
    return [
        (
            "delete" if one.get("type") == DELETE else "put",
            one["kv"]["key"],
            one["kv"]["mod_revision"],
        )
        for one in events
    ]


def need_37(program: Program) -> None:
    """Skips for an etcd that is too old for the rule."""
    if program.version < (3, 6):
        pytest.skip("etcd had this wrong once")


def test_a_watch_is_told_a_put_with_all_its_fields(client: Client, stream: Stream) -> None:
    watch_id = stream.watch(b"k")
    client.put(b"k", b"v")
    client.put(b"k", b"w")
    client.delete(b"k")
    assert stream.wait_events(watch_id, 3) == [
        {
            "kv": {
                "key": b"k",
                "create_revision": 2,
                "mod_revision": 2,
                "version": 1,
                "value": b"v",
            }
        },
        {
            "kv": {
                "key": b"k",
                "create_revision": 2,
                "mod_revision": 3,
                "version": 2,
                "value": b"w",
            }
        },
        {"type": DELETE, "kv": {"key": b"k", "mod_revision": 4}},
    ]


def test_prev_kv_is_the_pair_before(client: Client, stream: Stream) -> None:
    client.put(b"k", b"v")
    first = client.get(b"k")["kvs"][0]
    watch_id = stream.watch(b"k", prev_kv=True)
    client.put(b"k", b"w")
    second = client.get(b"k")["kvs"][0]
    client.delete(b"k")
    client.put(b"k", b"again")
    events = stream.wait_events(watch_id, 3)
    assert [one.get("prev_kv") for one in events] == [first, second, None]


def test_created_comes_before_events_of_the_past(client: Client, stream: Stream) -> None:
    for number in range(20):
        client.put(b"k", b"%d" % number)
    watch_id = stream.watch(b"k", start_revision=2)
    stream.wait_events(watch_id, 20)
    assert [bool(one.get("created")) for one in stream.responses][:2] == [True, False]
    assert revision_of(stream.responses[0]) == 21
    assert [one[2] for one in brief(stream.events(watch_id))] == list(range(2, 22))


def test_the_past_and_the_present_join(client: Client, stream: Stream) -> None:
    for number in range(50):
        client.put(b"k", b"%d" % number)
    numbers = [stream.ask(b"k", start_revision=2 + number) for number in range(50)]
    for number in range(50):
        client.put(b"k", b"%d" % number)
    for number in numbers:
        watch_id = stream.answer(number).get("watch_id", 0)
        events = stream.wait_revision(watch_id, 101)
        assert [one[2] for one in brief(events)] == list(range(2 + number, 102))


def test_ids_are_given_from_zero_up(client: Client, stream: Stream) -> None:
    assert stream.watch(b"k", watch_id=1) == 1
    assert stream.watch(b"k") == 0
    assert stream.watch(b"k") == 2
    assert stream.watch(b"k", watch_id=1 << 40) == 1 << 40
    assert stream.watch(b"k", watch_id=-5) == -5
    stream.cancel(2)
    assert stream.watch(b"k") == 3, "an id that was given is not given again"
    assert stream.watch(b"k", watch_id=2) == 2, "but it may be chosen"
    client.put(b"k", b"v")
    for watch_id in (0, 1, 2, 3, 1 << 40, -5):
        assert brief(stream.wait_events(watch_id, 1)) == [("put", b"k", 2)]


def test_an_id_in_use_is_refused(client: Client, stream: Stream) -> None:
    stream.watch(b"k", watch_id=7)
    answer = stream.create(b"other", watch_id=7)
    assert (answer["watch_id"], answer["created"], answer["canceled"]) == (NO_WATCH, True, True)
    assert answer["cancel_reason"] == DUPLICATE
    client.put(b"other", b"v")
    client.put(b"k", b"v")
    assert brief(stream.wait_events(7, 1)) == [("put", b"k", 3)]


@pytest.mark.parametrize("end", [b"a", b"b"])
def test_an_empty_range_is_refused(end: bytes, client: Client, stream: Stream) -> None:
    answer = stream.create(b"b", end)
    assert (answer["watch_id"], answer["created"], answer["canceled"]) == (NO_WATCH, True, True)
    assert answer["cancel_reason"] == EMPTY_RANGE
    assert stream.watch(b"b") == 0, "the refused one took no id"


@pytest.mark.parametrize("start", [-1, -2, LONG_AGO])
def test_a_negative_start_is_refused(start: int, stream: Stream, program: Program) -> None:
    need_37(program)
    answer = stream.create(b"k", start_revision=start)
    assert (answer["watch_id"], answer["created"], answer["canceled"]) == (NO_WATCH, True, True)
    assert answer["cancel_reason"] == COMPACTED
    assert answer.get("compact_revision", 0) == 0


def test_one_key_a_range_and_all_from_a_key(client: Client, stream: Stream) -> None:
    asked = {
        "key": (b"b", b""),
        "range": (b"b", b"d"),
        "from": (b"c", b"\0"),
        "all": EVERYTHING,
        "empty is the first key": (b"", b""),
        "empty and on": (b"", b"\0"),
    }
    ids = {name: stream.watch(*where) for name, where in asked.items()}
    keys = [b"\0", b"a", b"b", b"b\0", b"c", b"d", b"\xff\xff"]
    for key in keys:
        client.put(key, b"v")
    for watch_id in (ids["all"], ids["empty and on"]):
        assert [one[1] for one in brief(stream.wait_events(watch_id, 7))] == keys
    told = {
        "key": [b"b"],
        "range": [b"b", b"b\0", b"c"],
        "from": [b"c", b"d", b"\xff\xff"],
        "empty is the first key": [b"\0"],
    }
    for name, wanted in told.items():
        events = stream.wait_events(ids[name], len(wanted))
        assert [one[1] for one in brief(events)] == wanted, name


def test_filters_hold_back_puts_or_deletes(client: Client, stream: Stream) -> None:
    no_puts = stream.watch(b"k", filters=[NOPUT], prev_kv=True)
    no_deletes = stream.watch(b"k", filters=[NODELETE, NODELETE])
    nothing = stream.watch(b"k", filters=[NOPUT, NODELETE])
    whole = stream.watch(b"k", filters=[])
    past = stream.watch(b"k", filters=[NOPUT], start_revision=1)
    client.put(b"k", b"1")
    client.delete(b"k")
    client.put(b"k", b"2")
    assert len(stream.wait_events(whole, 3)) == 3
    assert brief(stream.wait_events(no_puts, 1)) == [("delete", b"k", 3)]
    assert stream.events(no_puts)[0]["prev_kv"]["value"] == b"1"
    assert brief(stream.wait_events(no_deletes, 2)) == [("put", b"k", 2), ("put", b"k", 4)]
    assert brief(stream.wait_events(past, 1)) == [("delete", b"k", 3)]
    stream.cancel(nothing)
    assert len(stream.of(nothing).responses) == 2, "no response without events"


def test_an_unknown_filter_is_none(client: Client, stream: Stream) -> None:
    watch_id = stream.watch(b"k", filters=[9, NODELETE])
    client.put(b"k", b"1")
    assert brief(stream.wait_events(watch_id, 1)) == [("put", b"k", 2)]


def test_what_changes_nothing_is_not_told(client: Client, stream: Stream) -> None:
    watch_id = stream.watch(*EVERYTHING)
    client.delete(b"nothing")
    client.txn([{"key": b"k", "target": 0, "version": 9}], [{"request_put": {"key": b"k"}}])
    client.txn(success=[{"request_range": {"key": b"k"}}])
    client.put(b"k", b"v")
    assert brief(stream.wait_events(watch_id, 1)) == [("put", b"k", 2)]


def test_a_txn_is_one_response_in_the_order_of_its_operations(
    client: Client, stream: Stream
) -> None:
    client.put(b"b", b"old")
    watch_id = stream.watch(*EVERYTHING)
    nested = {"success": [{"request_put": {"key": b"0"}}, {"request_put": {"key": b"x"}}]}
    client.txn(
        success=[
            {"request_put": {"key": b"z"}},
            {"request_txn": nested},
            {"request_delete_range": {"key": b"b"}},
            {"request_put": {"key": b"a"}},
        ]
    )
    events = stream.wait_events(watch_id, 5)
    assert brief(events) == [
        ("put", b"z", 3),
        ("put", b"0", 3),
        ("put", b"x", 3),
        ("delete", b"b", 3),
        ("put", b"a", 3),
    ]
    assert len(stream.responses) == 2


def test_a_range_is_deleted_in_one_response(client: Client, stream: Stream) -> None:
    keys = [b"%03d" % number for number in range(100)]
    client.txn(success=[{"request_put": {"key": key}} for key in keys])
    watch_id = stream.watch(*EVERYTHING, prev_kv=True)
    client.delete(*EVERYTHING)
    events = stream.wait_events(watch_id, 100)
    assert brief(events) == [("delete", key, 3) for key in keys]
    assert all(one["prev_kv"]["mod_revision"] == 2 for one in events)
    assert len(stream.responses) == 2


def test_a_key_deleted_and_put_in_one_txn(client: Client, stream: Stream) -> None:
    """Only a from-key delete passes the check for duplicates. prev_kv is of the revision before."""
    client.put(b"k", b"old")
    old = client.get(b"k")["kvs"][0]
    live = stream.watch(b"k", prev_kv=True)
    client.txn(
        success=[
            {"request_delete_range": {"key": b"a", "range_end": b"\0"}},
            {"request_put": {"key": b"k", "value": b"new"}},
        ]
    )
    past = stream.watch(b"k", prev_kv=True, start_revision=3)
    new = {"key": b"k", "create_revision": 3, "mod_revision": 3, "version": 1, "value": b"new"}
    for watch_id in (live, past):
        assert stream.wait_events(watch_id, 2) == [
            {"type": DELETE, "kv": {"key": b"k", "mod_revision": 3}, "prev_kv": old},
            {"kv": new},
        ]


def test_a_start_in_the_future_waits_in_silence(client: Client, stream: Stream) -> None:
    watch_id = stream.watch(b"k", start_revision=5)
    whole = stream.watch(b"k")
    for _ in range(5):
        client.put(b"k", b"v")
    stream.wait_events(whole, 5)
    assert [one[2] for one in brief(stream.wait_events(watch_id, 2))] == [5, 6]
    assert stream.watch(b"k", start_revision=FAR) == 2


def test_a_start_at_the_compacted_revision_is_allowed(client: Client, stream: Stream) -> None:
    for number in range(6):
        client.put(b"k", b"%d" % number)
    client.call("KV/Compact", {"revision": 4, "physical": True})
    watch_id = stream.watch(b"k", start_revision=4, prev_kv=True)
    events = stream.wait_events(watch_id, 4)
    assert [one[2] for one in brief(events)] == [4, 5, 6, 7]
    assert "prev_kv" not in events[0], "that was compacted"
    assert [one["prev_kv"]["mod_revision"] for one in events[1:]] == [4, 5, 6]


@pytest.mark.parametrize("start", [1, 3])
def test_a_start_below_is_canceled(start: int, client: Client, stream: Stream) -> None:
    for number in range(6):
        client.put(b"k", b"%d" % number)
    client.call("KV/Compact", {"revision": 4})
    watch_id = stream.watch(b"k", start_revision=start)
    canceled = stream.wait_canceled(watch_id)
    assert canceled["compact_revision"] == 4
    assert "cancel_reason" not in canceled
    assert not stream.events(watch_id)
    again = stream.watch(b"k", start_revision=canceled["compact_revision"])
    assert again != watch_id
    assert [one[2] for one in brief(stream.wait_events(again, 4))] == [4, 5, 6, 7]


def test_a_live_watch_survives_compaction(client: Client, stream: Stream) -> None:
    watch_id = stream.watch(b"k", prev_kv=True)
    client.put(b"k", b"1")
    stream.wait_events(watch_id, 1)
    client.call("KV/Compact", {"revision": 2, "physical": True})
    client.put(b"k", b"2")
    assert stream.wait_events(watch_id, 2)[1]["prev_kv"]["value"] == b"1"
    assert not stream.of(watch_id).canceled


def test_a_canceled_watch_is_silent(client: Client, stream: Stream) -> None:
    watch_id, other = stream.watch(b"k"), stream.watch(b"k")
    client.put(b"k", b"1")
    stream.wait_events(watch_id, 1)
    answer = stream.cancel(watch_id)
    assert revision_of(answer) == 2
    assert "cancel_reason" not in answer
    assert "created" not in answer
    client.put(b"k", b"2")
    stream.wait_events(other, 2)
    stream.cancel(other)
    assert len(stream.events(watch_id)) == 1


def test_cancel_of_an_unknown_id_is_silent(stream: Stream) -> None:
    watch_id = stream.watch(b"k")
    for unknown in (99, -1, FAR, LONG_AGO):
        stream.send(cancel_request={"watch_id": unknown})
    stream.cancel(watch_id)
    stream.send(cancel_request={"watch_id": watch_id})
    stream.watch(b"k")
    assert [one.get("watch_id", 0) for one in stream.responses] == [0, 0, 1]


def test_a_half_closed_stream_goes_on(client: Client, stream: Stream) -> None:
    watch_id = stream.watch(b"k")
    stream.half_close()
    for number in range(3):
        client.put(b"k", b"%d" % number)
    assert len(stream.wait_events(watch_id, 3)) == 3
    assert stream.end is None


def test_progress_is_told_once_to_the_stream(client: Client, stream: Stream) -> None:
    first, second = stream.watch(b"k"), stream.watch(b"other")
    for number in range(5):
        client.put(b"k", b"%d" % number)
    stream.wait_events(first, 5)
    stream.progress()
    assert stream.wait_progress(6) == 6
    stream.watch(b"k")
    told = [one for one in stream.responses if one.get("watch_id") == NO_WATCH]
    assert len(told) == 1
    assert not stream.of(second).events


def test_progress_without_a_watch_is_not_told(stream: Stream, program: Program) -> None:
    need_37(program)
    stream.progress()
    stream.watch(b"k")
    stream.cancel(0)
    stream.progress()
    stream.watch(b"k")
    assert not stream.of(NO_WATCH).progress


def test_progress_before_the_start_is_not_told(
    client: Client, stream: Stream, program: Program
) -> None:
    need_37(program)
    early, late = stream.watch(b"k"), stream.watch(b"k", start_revision=4)
    client.put(b"k", b"2")
    stream.wait_events(early, 1)
    stream.progress()
    stream.watch(b"other")
    assert not stream.of(NO_WATCH).progress
    client.put(b"k", b"3")
    client.put(b"k", b"4")
    stream.wait_events(late, 1)
    stream.progress()
    assert stream.wait_progress(4) == 4


def ask_until(stream: Stream, condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Repeat a progress request, which a server may drop, until it is answered as wanted."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "no progress"
        stream.progress()
        time.sleep(0.02)


def test_progress_comes_once_the_past_is_told(
    client: Client, stream: Stream, program: Program
) -> None:
    need_37(program)
    for number in range(200):
        client.put(b"k", b"%d" % number)
    watch_id = stream.watch(b"k", start_revision=1)
    ask_until(stream, lambda: bool(stream.of(NO_WATCH).progress))
    order = [(one.get("watch_id", 0), len(one.get("events", []))) for one in stream.responses]
    first = next(at for at, one in enumerate(order) if one[0] == NO_WATCH)
    assert sum(count for _, count in order[:first]) == 200
    assert len(stream.events(watch_id)) == 200


@pytest.fixture
def notifier(program: Program, tmp_path: Path) -> Iterator[Server]:
    """A server that tells progress often."""
    flag = notifying(program.kind, program.version)
    with Server(program, tmp_path / "notifier", flag) as server:
        yield server.start()


def test_progress_is_notified_to_those_who_asked(notifier: Server) -> None:
    with Client(notifier.port) as client, Stream(client) as stream:
        idle = stream.watch(b"idle", progress_notify=True)
        other = stream.watch(b"other")
        revision = client.put(b"k", b"v")["header"]["revision"]
        stream.wait_progress(revision, idle)
        told = len(stream.of(idle).progress)
        stream.wait(lambda: len(stream.of(idle).progress) >= told + 3, "three notifications more")
        assert not stream.of(other).progress
        assert all(one >= 1 for one in stream.of(idle).progress)
        assert not stream.of(NO_WATCH).responses


def test_no_notification_is_below_a_future_start(notifier: Server, program: Program) -> None:
    need_37(program)
    with Client(notifier.port) as client, Stream(client) as stream:
        now = stream.watch(b"idle", progress_notify=True)
        future = stream.watch(b"k", progress_notify=True, start_revision=4)
        stream.wait(lambda: len(stream.of(now).progress) >= 3, "three notifications")
        assert not stream.of(future).progress
        for number in range(3):
            client.put(b"k", b"%d" % number)
        stream.wait_progress(4, future)
        assert [one[2] for one in brief(stream.events(future))] == [4]


def test_a_large_response_comes_in_fragments(client: Client, stream: Stream) -> None:
    for number in range(5):
        client.put(b"k%d" % number, b"%d" % number * MIB)
    whole = stream.watch(*EVERYTHING, start_revision=2)
    assert len(stream.wait_events(whole, 5)) == 5
    parts = stream.watch(*EVERYTHING, start_revision=2, fragment=True)
    assert stream.wait_events(parts, 5) == stream.events(whole)
    responses = stream.of(parts).responses[1:]
    assert not responses[-1].get("fragment")
    # Whole revisions may come one by one; then there is nothing to cut.
    assert len(responses) >= 3
    assert all(len(one["events"]) == 1 for one in responses)
    assert not any(one.get("fragment") for one in stream.of(whole).responses)


def test_one_revision_comes_in_fragments(client: Client, stream: Stream) -> None:
    """Only with prev_kv a revision can be larger than a request may be."""
    whole = stream.watch(*EVERYTHING, prev_kv=True)
    parts = stream.watch(*EVERYTHING, prev_kv=True, fragment=True)
    for letter in (b"1", b"2"):
        puts = [
            {"request_put": {"key": b"k%d" % at, "value": letter * 100_000}} for at in range(14)
        ]
        client.txn(success=puts)
    assert stream.wait_events(parts, 28) == stream.wait_events(whole, 28)
    responses = [one for one in stream.of(parts).responses if one.get("events")]
    assert [bool(one.get("fragment")) for one in responses[:3]] == [False, True, False]
    assert len([one for one in stream.of(whole).responses if one.get("events")]) == 2


def test_an_enormous_revision_is_told_whole(client: Client, stream: Stream) -> None:
    """One revision that is larger than what any buffer between the store and its watchers holds."""
    count, size = 60_000, 600
    for start in range(0, count, 100):
        client.txn(
            success=[
                {"request_put": {"key": b"%0*d" % (size, number), "value": b"v"}}
                for number in range(start, start + 100)
            ]
        )
    whole = stream.watch(*EVERYTHING)
    parts = stream.watch(*EVERYTHING, fragment=True)
    one = stream.watch(b"%0*d" % (size, 7))
    client.delete(b"0", b"1")
    client.put(b"z")
    for watch_id in (whole, parts):
        keys = [event["kv"]["key"] for event in stream.wait_events(watch_id, count + 1)]
        assert keys == [*(b"%0*d" % (size, number) for number in range(count)), b"z"]
    assert len(stream.wait_events(one, 1)) == 1


def test_a_small_response_has_no_fragments(client: Client, stream: Stream) -> None:
    watch_id = stream.watch(*EVERYTHING, fragment=True)
    client.put(b"k", b"x" * MIB)
    client.put(b"k", b"y")
    stream.wait_events(watch_id, 2)
    assert not any(one.get("fragment") for one in stream.responses)


def test_a_revoked_lease_deletes_its_keys_in_one_revision(client: Client, stream: Stream) -> None:
    lease = client.call("Lease/LeaseGrant", {"TTL": 60})["ID"]
    for key in (b"c", b"a", b"b"):
        client.put(key, b"v", lease=lease)
    client.put(b"d", b"stays")
    watch_id = stream.watch(*EVERYTHING, prev_kv=True, start_revision=2)
    client.call("Lease/LeaseRevoke", {"ID": lease})
    events = stream.wait_events(watch_id, 7)
    assert [one["kv"].get("lease", 0) for one in events[:4]] == [lease] * 3 + [0]
    assert brief(events[4:]) == [("delete", key, 6) for key in (b"a", b"b", b"c")]
    assert all(one["prev_kv"]["lease"] == lease for one in events[4:])
    assert all("lease" not in one["kv"] for one in events[4:])


def test_an_expired_lease_is_told_as_well(client: Client, stream: Stream) -> None:
    lease = client.call("Lease/LeaseGrant", {"TTL": 1})["ID"]
    client.put(b"k", b"v", lease=lease)
    watch_id = stream.watch(b"k")
    assert brief(stream.wait_events(watch_id, 1)) == [("delete", b"k", 3)]


def gauge(server: Server, name: str) -> float:
    """A value of /metrics."""
    text = server.http("GET", "/metrics")[2].decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_closed_streams_leave_no_watch(server: Server, client: Client) -> None:
    with Client(server.port) as other:
        streams = [Stream(other) for _ in range(5)]
        for stream in streams:
            for _ in range(10):
                stream.watch(b"k", b"\0", start_revision=1)
        assert gauge(server, "etcd_debugging_mvcc_watcher_total") == 50
        assert gauge(server, "etcd_debugging_mvcc_watch_stream_total") == 5
        for stream in streams:
            stream.close()
    end = time.monotonic() + 5
    while gauge(server, "etcd_debugging_mvcc_watcher_total"):
        assert time.monotonic() < end, "watches outlive their stream"
        time.sleep(0.01)
    assert gauge(server, "etcd_debugging_mvcc_watch_stream_total") == 0
    client.put(b"k", b"v")
