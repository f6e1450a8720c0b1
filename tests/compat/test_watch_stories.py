"""Each bug that etcd's watches had, told as a test: what was done, and what must come.

The numbers are etcd's issues. Where Debian's 3.4.23 still has the bug, its test is skipped there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from tests.messages import Message
from tests.server import Program, Server
from tests.watchcheck import Complaint, History, Segment, check, responses_of
from tests.watches import DELETE, NO_WATCH, Stream, revision_of_event
from tests.wire import Client

pytestmark = pytest.mark.compat

EVERYTHING = (b"\0", b"\0")
ROUNDS = 20
LARGE = 50_000


@pytest.fixture
def stream(client: Client) -> Iterator[Stream]:
    """A Watch stream on a fresh server."""
    with Stream(client) as one:
        yield one


def need_newer(program: Program, bug: str) -> None:
    """Skips for an etcd that has the bug."""
    if not program.is_quorate and program.version < (3, 6):
        pytest.skip(f"this etcd has {bug}")


def judge(reference: Stream, last: int, *watches: tuple[Stream, int, Segment]) -> list[Complaint]:
    """What the checker says of watches; the reference's watch 0 was told everything."""
    history = History(reference.wait_revision(0, last))
    for stream, watch_id, segment in watches:
        segment.responses = responses_of(list(stream.responses), watch_id)
        segment.until = last
    return check(history, [segment for _, _, segment in watches])


def test_15220_progress_never_overtakes_events(
    client: Client, stream: Stream, program: Program
) -> None:
    """A progress request was answered with the store's revision while events were on their way.

    A client that resumed after that revision missed them.
    """
    need_newer(program, "#15220")
    stream.watch(*EVERYTHING)
    with contextlib.ExitStack() as stack:
        others: list[Stream] = []
        for number in range(200):
            client.put(b"k%d" % (number % 7), b"x" * LARGE)
            if number % 10 == 0:
                others.append(stack.enter_context(Stream(client)))
                others[-1].watch(*EVERYTHING, start_revision=2)
            for other in others:
                other.progress()
        last = client.revision()
        for other in others:
            other.wait_revision(0, last)
            other.progress()
            other.wait_progress(last)
        watches = [(other, 0, Segment(*EVERYTHING, 2)) for other in others]
        complaints = judge(stream, last, *watches)
    assert not complaints, complaints[:5]
    assert any(len(other.of(NO_WATCH).progress) > 1 for other in others)


def test_15271_a_watch_never_goes_back_in_time(server: Server) -> None:
    """A member that was behind, or came back, told watches revisions again that they had passed.

    One member can come back: its watches go on from where they were, and it remembers what was.
    """
    seen: list[int] = []
    start = 0
    for number in range(3):
        with Client(server.port) as client, Stream(client) as stream:
            watch_id = stream.watch(b"k", start_revision=start)
            future = stream.watch(b"k", start_revision=100)
            for at in range(10):
                client.put(b"k", b"%d.%d" % (number, at))
            last = client.revision()
            seen += map(revision_of_event, stream.wait_revision(watch_id, last))
            stream.progress()
            assert not stream.events(future)
            server.kill()
        server.restart()
        start = seen[-1] + 1
    assert seen == list(range(2, 32))


def test_17247_no_event_of_a_txn_comes_twice(client: Client, stream: Stream) -> None:
    """The buffer of a Txn that reads what it wrote gave its events a second time."""
    live = stream.watch(*EVERYTHING, prev_kv=True)
    read = {"request_range": {"key": b"\0", "range_end": b"\0"}}
    last = 1
    for number in range(ROUNDS):
        puts: list[Message] = []
        for at in range(5):
            put = {"key": b"k%d" % at, "value": b"%d" % number, "prev_kv": True}
            puts += [{"request_put": put}, read]
        last = client.txn(success=puts)["header"]["revision"]
    past = stream.watch(*EVERYTHING, prev_kv=True, start_revision=2)
    for watch_id in (live, past):
        events = stream.wait_revision(watch_id, last)
        found = [(one["kv"]["key"], one["kv"]["mod_revision"]) for one in events]
        assert found == [(b"k%d" % at, 2 + n) for n in range(ROUNDS) for at in range(5)]


def test_17529_a_starved_stream_loses_nothing(
    client: Client, stream: Stream, server: Server
) -> None:
    """With many slow watches on one stream, those that could not be served in time lost events."""
    stream.watch(*EVERYTHING, prev_kv=True)
    with Client(server.port) as slow_client, Stream(slow_client) as slow:
        asked = [Segment(*EVERYTHING, prev_kv=bool(at % 2), known=1) for at in range(50)]
        asked += [Segment(b"k%d" % (at % 5), known=1) for at in range(150)]
        for segment in asked:
            slow.watch(segment.key, segment.range_end, **segment.fields())
        slow.pause()
        for number in range(100):
            client.put(b"k%d" % (number % 5), b"%d=" % number + b"x" * 5000)
        last = client.revision()
        slow.resume()
        aims = [last] * 50 + [last - (4 - at % 5) for at in range(150)]
        for watch_id, aim in enumerate(aims):
            slow.wait_revision(watch_id, aim, seconds=30)
        complaints = judge(stream, last, *((slow, at, one) for at, one in enumerate(asked)))
    assert not complaints, complaints[:5]


def test_18089_a_delete_at_the_compacted_revision_is_told(
    client: Client, stream: Stream, program: Program
) -> None:
    """Compacting at the revision of a delete dropped the delete, though it may be watched from."""
    need_newer(program, "#18089")
    client.put(b"k", b"v")
    client.delete(b"k")
    client.put(b"other", b"v")
    client.call("KV/Compact", {"revision": 3, "physical": True})
    watch_id = stream.watch(b"k", start_revision=3, prev_kv=True)
    assert stream.wait_events(watch_id, 1) == [
        {"type": DELETE, "kv": {"key": b"k", "mod_revision": 3}}
    ]


@pytest.mark.parametrize("physical", [False, True])
def test_19179_deletes_are_told_when_a_watch_opens_at_the_compacted_revision(
    physical: bool, client: Client, stream: Stream, program: Program
) -> None:
    """Of several deletes in the compacted revision some were missing, depending on what followed.

    One key comes again afterwards, one in the same revision, one never.
    """
    need_newer(program, "#19179")
    keys = [b"again", b"gone", b"was/twice"]
    client.txn(success=[{"request_put": {"key": key, "value": b"1"}} for key in keys])
    client.put(b"was/twice", b"2")
    deleted = client.delete(*EVERYTHING)["header"]["revision"]
    client.put(b"again", b"3")
    client.call("KV/Compact", {"revision": deleted, "physical": physical})
    wanted = [(DELETE, key, deleted) for key in keys] + [(0, b"again", deleted + 1)]
    for number in range(2):
        watch_id = stream.watch(*EVERYTHING, start_revision=deleted, prev_kv=bool(number))
        events = stream.wait_events(watch_id, 4)
        found = [(one.get("type", 0), one["kv"]["key"], revision_of_event(one)) for one in events]
        assert found == wanted
    each = [stream.watch(key, start_revision=deleted) for key in keys]
    for key, watch_id in zip(keys, each, strict=True):
        first = stream.wait_events(watch_id, 1)[0]
        assert (first["type"], first["kv"]["key"]) == (DELETE, key)


def test_20221_a_watch_of_the_future_is_told_nothing_older(
    server: Server, program: Program
) -> None:
    """One that began in the future was told old events, or progress below its start."""
    need_newer(program, "#20221")
    with Client(server.port) as client, Stream(client) as stream:
        future = stream.watch(*EVERYTHING, start_revision=15, progress_notify=True)
        now = stream.watch(*EVERYTHING)
        for number in range(10):
            client.put(b"k", b"%d" % number)
            stream.progress()
        stream.wait_revision(now, 11)
        assert len(stream.of(future).responses) == 1
        assert not stream.of(NO_WATCH).progress
    server.kill()
    server.restart()
    with Client(server.port) as client, Stream(client) as stream:
        future = stream.watch(*EVERYTHING, start_revision=15)
        for number in range(5):
            stream.progress()
            client.put(b"k", b"%d" % number)
        events = stream.wait_revision(future, 16)
        assert [revision_of_event(one) for one in events] == [15, 16]
        stream.progress()
        assert stream.wait_progress(16) == 16
        assert min(stream.of(NO_WATCH).progress) >= 15


def test_a_key_deleted_and_put_in_the_compacted_revision(
    client: Client, server: Server, program: Program
) -> None:
    """Compaction at that revision keeps the delete for watchers (#19179), and then drops the put
    from the file, but not from the index: a read, or a watch with prev_kv that looks the pair up,
    ends every member. etcd 3.7.1 does so; the recorded one died of it ('watch-1', round 47).
    """
    if not program.is_quorate and program.version >= (3, 5):
        pytest.skip("it ends this etcd")
    client.put(b"k", b"old")
    revision = client.txn(
        success=[
            {"request_delete_range": {"key": b"a", "range_end": b"\0"}},
            {"request_put": {"key": b"k", "value": b"new"}},
        ]
    )["header"]["revision"]
    client.put(b"other", b"v")
    client.call("KV/Compact", {"revision": revision, "physical": True})
    new = client.get(b"k")["kvs"][0]
    assert new["value"] == b"new"
    assert client.get(b"k", revision=revision)["kvs"] == [new]
    with Stream(client) as stream:
        watch_id = stream.watch(*EVERYTHING, start_revision=revision, prev_kv=True)
        last = client.put(b"k", b"newer")["header"]["revision"]
        events = stream.wait_revision(watch_id, last)
    told = [one for one in events if one["kv"]["key"] == b"k"]
    if program.is_quorate:
        assert told.pop(0) == {"type": DELETE, "kv": {"key": b"k", "mod_revision": revision}}
    assert told[0] == {"kv": new}
    assert told[1]["prev_kv"] == new
    assert server.alive()
