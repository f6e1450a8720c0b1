"""The checker of watches lets what is right pass and sees each kind of wrong."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest

from tests.messages import Message
from tests.watchcheck import (
    History,
    Op,
    Segment,
    Write,
    check,
    check_resumed,
    check_writes,
    outcome,
    responses_of,
)
from tests.watches import DELETE, NODELETE, NOPUT, PUT, revision_of_event

KEYS = [b"a", b"b", b"c/1", b"c/2", b"d"]
PAST = 5


def random_writes(seed: int, count: int = 60) -> list[Write]:
    """Acknowledged writes, as a server would number them."""
    chance = random.Random(seed)
    writes: list[Write] = []
    state: dict[bytes, bytes] = {}
    revision = 1
    for number in range(count):
        ops = []
        for key in chance.sample(KEYS, chance.choice([1, 1, 2, 3])):
            if chance.random() < 0.7:
                ops.append(Op(PUT, key, b"%d" % number))
            else:
                ops.append(Op(DELETE, key))
        changes = outcome(ops, state)
        revision += bool(changes)
        for kind, key, value in changes:
            if kind == PUT:
                state[key] = value
            else:
                del state[key]
        writes.append(Write(ops, revision if changes else 0))
    return writes


def events_of(writes: list[Write]) -> list[Message]:
    """What a watch of everything is told of them."""
    state: dict[bytes, Message] = {}
    values: dict[bytes, bytes] = {}
    events: list[Message] = []
    for write in writes:
        for kind, key, value in outcome(write.ops, values) if write.revision else ():
            old = state.pop(key, None)
            values.pop(key, None)
            kv: Message = {"key": key, "mod_revision": write.revision}
            if kind == PUT:
                created = old["create_revision"] if old else write.revision
                kv |= {"create_revision": created, "version": old["version"] + 1 if old else 1}
                kv |= {"value": value}
                state[key], values[key] = kv, value
            event: Message = {"kv": kv} | ({"type": DELETE} if kind == DELETE else {})
            events.append(event | ({"prev_kv": old} if old else {}))
    return events


def header(revision: int) -> Message:
    return {"revision": revision}


def served(history: History, segment: Segment, size: int = 3) -> Segment:
    """What a right server answers: that many revisions in a response, progress after each."""
    start = segment.start_revision or segment.known + 1
    segment.responses = [{"header": header(max(start - 1, segment.known)), "created": True}]
    revisions: dict[int, list[Message]] = {}
    for change in history.select(segment, start):
        event: Message = {"kv": dict(change.kv)}
        if change.kind == DELETE:
            event["type"] = DELETE
        if segment.prev_kv and change.prev:
            event["prev_kv"] = dict(change.prev)
        revisions.setdefault(change.revision, []).append(event)
    order = list(revisions)
    for at in range(0, len(order), size):
        part = order[at : at + size]
        events = [event for revision in part for event in revisions[revision]]
        segment.responses.append({"header": header(part[-1]), "events": events})
        segment.responses.append({"header": header(part[-1]), "watch_id": -1})
    segment.until = history.last
    return segment


def watches(history: History) -> list[Segment]:
    """One of every kind, rightly served."""
    every: list[Segment] = [
        Segment(b"\0", b"\0", 1, prev_kv=True, name="all"),
        Segment(b"a", name="key", start_revision=3),
        Segment(b"c/", b"c0", PAST, prev_kv=True, name="prefix"),
        Segment(b"b", b"\0", PAST, filters=(NOPUT,), prev_kv=True, name="from key, no puts"),
        Segment(b"\0", b"\0", PAST, filters=(NODELETE,), name="no deletes"),
        Segment(b"\0", b"\0", 0, known=10, name="from now on"),
        Segment(b"\0", b"\0", 20, progress_notify=True, name="future"),
    ]
    return [served(history, one) for one in every]


@pytest.fixture
def writes() -> list[Write]:
    return random_writes(7)


@pytest.fixture
def history(writes: list[Write]) -> History:
    return History(events_of(writes))


@pytest.fixture
def segment(history: History) -> Segment:
    """A watch of everything with prev_kv, some revisions in a response."""
    return served(history, Segment(b"\0", b"\0", PAST, prev_kv=True))


def kinds(history: History, segment: Segment) -> set[str]:
    return {complaint.kind for complaint in check(history, [segment])}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_right_passes(seed: int) -> None:
    writes = random_writes(seed)
    history = History(events_of(writes))
    assert check(history, watches(history)) == []
    assert list(check_writes(history, writes)) == []


def test_the_model_is_that_of_the_plain_events(writes: list[Write], history: History) -> None:
    """Two ways to the same fields."""
    events = events_of(writes)
    assert [change.kv for change in history.changes] == [event["kv"] for event in events]
    for change, event in zip(history.changes, events, strict=True):
        assert change.prev == event.get("prev_kv")


def of_events(segment: Segment, least: int = 1) -> list[Message]:
    """The first response in the middle that has so many events."""
    middle = len(segment.responses) // 3
    return next(
        one["events"]
        for one in segment.responses[middle:]
        if len(one.get("events", [])) >= least and revision_span(one["events"]) > 1
    )


def revision_span(events: list[Message]) -> int:
    return len({revision_of_event(event) for event in events})


def drop(segment: Segment) -> None:
    of_events(segment, 3).pop(1)


def drop_the_last(segment: Segment) -> None:
    last = next(one for one in reversed(segment.responses) if one.get("events"))
    last["events"].pop()
    segment.responses = [one for one in segment.responses if one.get("watch_id") != -1]


def drop_a_response(segment: Segment) -> None:
    at = next(at for at, one in enumerate(segment.responses) if one.get("events") and at > 4)
    del segment.responses[at : at + 2]


def double(segment: Segment) -> None:
    events = of_events(segment)
    events.insert(1, copy.deepcopy(events[0]))


def double_a_response(segment: Segment) -> None:
    at = next(at for at, one in enumerate(segment.responses) if one.get("events") and at > 4)
    segment.responses.insert(at + 2, copy.deepcopy(segment.responses[at]))


def swap(segment: Segment) -> None:
    events = of_events(segment, 3)
    events[0], events[-1] = events[-1], events[0]


def swap_within_a_revision(segment: Segment) -> None:
    for response in segment.responses:
        events = response.get("events", [])
        for at in range(len(events) - 1):
            if revision_of_event(events[at]) == revision_of_event(events[at + 1]):
                events[at], events[at + 1] = events[at + 1], events[at]
                return
    raise AssertionError("no revision has two events")


def split(segment: Segment) -> None:
    """One revision in two responses."""
    for number, response in enumerate(segment.responses):
        events = response.get("events", [])
        for at in range(1, len(events)):
            if revision_of_event(events[at]) == revision_of_event(events[at - 1]):
                rest = response | {"events": events[at:]}
                response["events"] = events[:at]
                segment.responses.insert(number + 1, rest)
                return
    raise AssertionError("no revision has two events")


def split_into_fragments(segment: Segment) -> None:
    split(segment)
    number = next(
        at
        for at, one in enumerate(segment.responses)
        if one.get("events") and segment.responses[at + 1].get("events")
    )
    segment.responses[number]["fragment"] = True


def wrong_prev_kv(segment: Segment) -> None:
    event = next(
        event
        for response in segment.responses
        for event in response.get("events", [])
        if "prev_kv" in event
    )
    event["prev_kv"] = event["prev_kv"] | {"value": b"another"}


def no_prev_kv(segment: Segment) -> None:
    for response in segment.responses:
        for event in response.get("events", []):
            event.pop("prev_kv", None)


def progress_ahead(segment: Segment) -> None:
    """The answer to a progress request overtakes the events before it (#15220)."""
    at = next(at for at, one in enumerate(segment.responses) if one.get("watch_id") == -1)
    responses = segment.responses
    responses[at - 1], responses[at] = responses[at], responses[at - 1]


def progress_before_the_start(segment: Segment) -> None:
    segment.responses.insert(1, {"header": header(PAST - 1), "watch_id": -1})


def progress_unasked(segment: Segment) -> None:
    segment.responses.append({"header": segment.responses[-1]["header"]})


def events_before_created(segment: Segment) -> None:
    segment.responses[0], segment.responses[1] = segment.responses[1], segment.responses[0]


def created_twice(segment: Segment) -> None:
    segment.responses.insert(2, segment.responses[0])


def told_after_cancel(segment: Segment) -> None:
    segment.responses.insert(3, {"header": header(PAST), "canceled": True})


def an_old_header(segment: Segment) -> None:
    response = next(one for one in segment.responses if one.get("events"))
    response["header"] = header(revision_of_event(response["events"][-1]) - 1)


def another_value(segment: Segment) -> None:
    event = next(one for one in of_events(segment) if one.get("type") != DELETE)
    event["kv"]["value"] = b"another"


def another_create_revision(segment: Segment) -> None:
    event = next(one for one in of_events(segment) if one.get("type") != DELETE)
    event["kv"]["create_revision"] -= 1


def an_event_that_never_was(segment: Segment) -> None:
    events = of_events(segment)
    kv = events[0]["kv"] | {"key": b"never"}
    events.insert(0, {"kv": kv})


def canceled_for_no_compaction(segment: Segment) -> None:
    done: Message = {"header": header(PAST), "canceled": True, "compact_revision": PAST}
    segment.responses.append(done)


WRONG: list[tuple[Callable[[Segment], None], str]] = [
    (drop, "gap"),
    (drop_the_last, "gap"),
    (drop_a_response, "gap"),
    (double, "duplicate"),
    (double_a_response, "duplicate"),
    (swap, "order"),
    (swap_within_a_revision, "order"),
    (split, "atomic"),
    (split_into_fragments, "unasked"),
    (wrong_prev_kv, "prev_kv"),
    (no_prev_kv, "prev_kv"),
    (progress_ahead, "bookmark"),
    (progress_before_the_start, "bookmark"),
    (progress_unasked, "unasked"),
    (events_before_created, "created"),
    (created_twice, "created"),
    (told_after_cancel, "silence"),
    (an_old_header, "header"),
    (another_value, "fields"),
    (another_create_revision, "is_create"),
    (an_event_that_never_was, "unknown"),
    (canceled_for_no_compaction, "compaction"),
]


@pytest.mark.parametrize(("spoil", "kind"), WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_each_wrong_is_seen(
    spoil: Callable[[Segment], None], kind: str, history: History, segment: Segment
) -> None:
    assert kinds(history, segment) == set()
    segment.responses = copy.deepcopy(segment.responses)
    spoil(segment)
    assert kind in kinds(history, segment)


def test_fragments_are_right_where_asked_for(history: History) -> None:
    segment = served(history, Segment(b"\0", b"\0", PAST, prev_kv=True, fragment=True))
    split_into_fragments(segment)
    assert kinds(history, segment) == set()


def test_an_event_from_before_the_start_is_seen(history: History, segment: Segment) -> None:
    segment.start_revision += 1
    assert "start" in kinds(history, segment)


def test_an_event_of_another_range_is_seen(history: History, segment: Segment) -> None:
    segment.range_end, segment.key = b"c0", b"c/"
    assert "filter" in kinds(history, segment)


def test_an_event_that_a_filter_holds_back_is_seen(history: History, segment: Segment) -> None:
    segment.filters = (NODELETE,)
    assert "filter" in kinds(history, segment)


def test_prev_kv_that_nobody_asked_for_is_seen(history: History, segment: Segment) -> None:
    segment.prev_kv = False
    assert kinds(history, segment) == {"prev_kv"}


def test_prev_kv_may_be_missing_where_it_was_compacted(history: History, segment: Segment) -> None:
    no_prev_kv(segment)
    history.compacted = history.last
    assert kinds(history, segment) == set()


def test_a_watch_from_now_on_may_begin_before_its_answer(history: History) -> None:
    segment = served(history, Segment(b"\0", b"\0", 0, known=10))
    segment.responses[0]["header"] = header(13)
    assert kinds(history, segment) == set()
    first = segment.responses[1]["events"]
    assert revision_of_event(first[0]) == 11
    del first[1:]
    assert "gap" in kinds(history, segment)


def test_progress_is_told_to_the_watches_that_are_there() -> None:
    """A stream's progress used to be held against a watch that compaction had canceled before."""
    other = {"header": {"revision": 4}, "watch_id": 1, "created": True}
    progress = [{"header": {"revision": revision}, "watch_id": -1} for revision in (5, 7, 9)]
    created = {"header": {"revision": 6}, "created": True}
    canceled = {"header": {"revision": 8}, "canceled": True, "compact_revision": 7}
    told = [other, progress[0], created, progress[1], canceled, progress[2]]
    assert responses_of(told, 0) == [created, progress[1], canceled]
    assert responses_of(told, 1) == [other, *progress]


def test_a_watch_resumes_where_it_was_cut(history: History) -> None:
    first = served(history, Segment(b"\0", b"\0", 2))
    del first.responses[6:]
    first.until = 0
    again = served(history, Segment(b"\0", b"\0", first.told + 1))
    assert check(history, [first, again]) == check_resumed([first, again]) == []
    again.start_revision += 1
    assert [one.kind for one in check_resumed([first, again])] == ["resume"]


def test_a_write_that_was_promised_and_is_lost_is_seen(
    writes: list[Write], history: History
) -> None:
    lost = history.last // 2
    events = [event for event in events_of(writes) if revision_of_event(event) != lost]
    found = {complaint.kind for complaint in check_writes(History(events), writes)}
    assert "gap" in found
    last = [event for event in events_of(writes) if revision_of_event(event) != history.last]
    assert {one.kind for one in check_writes(History(last), writes)} == {"gap"}


def test_half_of_a_write_is_seen(writes: list[Write]) -> None:
    events = events_of(writes)
    half = next(
        at
        for at in range(1, len(events))
        if revision_of_event(events[at]) == revision_of_event(events[at - 1])
    )
    del events[half]
    assert "fields" in {one.kind for one in check_writes(History(events), writes)}


def test_a_write_of_open_outcome_is_there_or_not(writes: list[Write], history: History) -> None:
    open_ = next(one for one in writes if one.revision and one.ops[0].kind == PUT)
    open_.revision = None
    assert list(check_writes(history, writes)) == []
    writes.append(Write([Op(PUT, b"a", b"never done")]))
    assert list(check_writes(history, writes)) == []


def test_a_write_that_nobody_made_is_seen(writes: list[Write], history: History) -> None:
    del writes[10]
    assert "unknown" in {one.kind for one in check_writes(history, writes)}


def test_two_writes_of_one_revision_are_seen(writes: list[Write], history: History) -> None:
    writes.append(Write([Op(PUT, b"a", b"x")], history.last))
    assert "duplicate" in {one.kind for one in check_writes(history, writes)}
