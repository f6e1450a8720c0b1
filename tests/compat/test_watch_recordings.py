"""What etcd 3.7.1 was recorded to tell watchers is what quorate tells them, in rounds.

A round: writes, one Watch stream with some watchers, more writes, then perhaps a cancel. Recorded
is what each watch id was told, without the borders of responses.

How a round is known to be over without waiting for time: a watcher of everything (its id is none
that the recordings use) has been told the last write, and each id as many events as are recorded.
What comes later than that is not missed: the streams stay open to the file's end, and then no id
may have been told more of its round's revisions.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from tests.compat.recordings import FOLDER
from tests.messages import Message, decode, method
from tests.server import Program, Server
from tests.watchcheck import Complaint, History, Segment, check, responses_of
from tests.watches import Stream, revision_of, revision_of_event
from tests.wire import Client, Refused

pytestmark = pytest.mark.compat

WATCH_FILES = ("watch-1", "watch-2")
ROUNDS = 60
SENTINEL = 1_000_000
# The etcd that was recorded died of the third watcher of round 47 of the first file (see
# `test_watch_stories.py`): from there on the recording is empty, and only the checker judges.
JUDGED = {"watch-1": 47, "watch-2": ROUNDS}
# Of the rounds without a negative start revision, which 3.4 takes for a compacted one, Debian's
# 3.4.23 differs in so many of a file.
ETCD_34_DIFFERENCES = 4
# It loses deletes that a compaction is at (#18089, #19179).
ETCD_34_GAPS = 20


class Round(NamedTuple):
    """One recorded round; `told` by watch id."""

    number: int
    before: list[tuple[str, Message]]
    watchers: list[Message]
    after: list[tuple[str, Message]]
    told: dict[int, Any]

    @property
    def canceled(self) -> list[int]:
        """The ids that the client canceled: a cancel by the server has a compact revision."""
        return [
            watch_id
            for watch_id, told in self.told.items()
            if any(not one["compact_revision"] for one in told["canceled"])
        ]


def rounds(file: str) -> Iterator[Round]:
    """The rounds of a file."""
    with gzip.open(FOLDER / f"{file}.jsonl.gz", "rt") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            yield Round(
                number,
                [write(one) for one in row["before"]],
                [request("WatchCreateRequest", one["request"]) for one in row["watchers"]],
                [write(one) for one in row["after"]],
                {int(watch_id): told for watch_id, told in row["told"].items()},
            )


def request(name: str, text: str) -> Message:
    """A recorded message."""
    return decode(name, base64.b64decode(text))


def write(row: Any) -> tuple[str, Message]:
    """A recorded call: its short name and the request."""
    service, _, name = row["method"].rpartition("/")
    short = f"{service.rpartition('.')[2]}/{name}"
    return short, request(method(row["method"]).request, row["request"])


def play(client: Client, writes: list[tuple[str, Message]]) -> None:
    """Make the calls, some of which fail."""
    for name, message in writes:
        with contextlib.suppress(Refused):
            client.call(name, message)


def event_as_recorded(event: Message) -> dict[str, Any]:
    """An event in protobuf's JSON form."""
    shown: dict[str, Any] = {}
    for name in ("kv", "prev_kv"):
        if name in event:
            shown[name] = {
                key: base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
                for key, value in event[name].items()
            }
    return shown | ({"type": "DELETE"} if event.get("type") else {})


def told_as_recorded(stream: Stream, watch_id: int, last: int) -> dict[str, Any]:
    """What an id was told of revisions up to `last`, in the recording's form."""
    told = stream.of(watch_id)
    return {
        "created": [
            {
                "canceled": bool(one.get("canceled")),
                "compact_revision": one.get("compact_revision", 0),
                "reason": one.get("cancel_reason", ""),
                "revision": revision_of(one),
            }
            for one in told.created
        ],
        "canceled": [
            {
                "compact_revision": one.get("compact_revision", 0),
                "reason": one.get("cancel_reason", ""),
            }
            for one in told.canceled
        ],
        "events": [event_as_recorded(one) for one in told.events if revision_of_event(one) <= last],
    }


class Replay:
    """One round on its stream, and what it was told."""

    def __init__(self, client: Client, round_: Round) -> None:
        self.round = round_
        play(client, round_.before)
        self.stream = Stream(client)
        self.known = before = client.revision()
        self.answers = [self.stream.create(**watcher) for watcher in round_.watchers]
        self.stream.watch(b"\0", b"\0", watch_id=SENTINEL)
        play(client, round_.after)
        self.last = client.revision()
        self.differences: list[str] = []
        try:
            if self.last > before:
                self.stream.wait_revision(SENTINEL, self.last)
            self._wait_for_all()
        except AssertionError as error:
            self.differences.append(str(error))
        self.canceled = {id_: len(told.canceled) for id_, told in self.stream.told.items()}

    def segments(self) -> Iterator[Segment]:
        """The watches that were granted, for the checker."""
        for asked, answer in zip(self.round.watchers, self.answers, strict=True):
            if not answer.get("canceled") and asked.get("start_revision", 0) >= 0:
                yield Segment(
                    asked.get("key", b""),
                    asked.get("range_end", b""),
                    asked.get("start_revision", 0),
                    tuple(asked.get("filters", [])),
                    bool(asked.get("prev_kv")),
                    bool(asked.get("fragment")),
                    responses=responses_of(list(self.stream.responses), answer.get("watch_id", 0)),
                    known=self.known,
                    until=0 if self.ended(answer.get("watch_id", 0)) else self.last,
                    name=f"round {self.round.number}, watch {answer.get('watch_id', 0)}",
                )

    def ended(self, watch_id: int) -> bool:
        """Whether the watch was canceled, by either side."""
        return bool(self.stream.of(watch_id).canceled)

    def _wait_for_all(self) -> None:
        for watch_id, recorded in self.round.told.items():
            by_server = sum(bool(one["compact_revision"]) for one in recorded["canceled"])
            # An etcd that refuses a watch which the recorded one granted tells it nothing.
            if recorded["events"]:
                self.stream.wait_events(watch_id, len(recorded["events"]), seconds=2)
            if by_server:
                self.stream.wait_canceled(watch_id, by_server - 1, seconds=2)
        for watch_id in self.round.canceled:
            self.stream.cancel(watch_id)

    def verdict(self) -> list[str]:
        """How what was told differs from what was recorded."""
        found = list(self.differences)
        for watch_id in sorted(self.round.told.keys() | self.stream.told.keys() - {SENTINEL}):
            recorded = self.round.told.get(watch_id, {"created": [], "canceled": [], "events": []})
            told = told_as_recorded(self.stream, watch_id, self.last)
            told["canceled"] = told["canceled"][: self.canceled.get(watch_id, 0)]
            for part in ("created", "events", "canceled"):
                if told[part] != recorded[part]:
                    found.append(
                        f"watch {watch_id}, {part}: {told[part]!r}, recorded {recorded[part]!r}"
                    )
        return found


def replay(client: Client, file: str, count: int) -> tuple[list[Replay], list[Complaint]]:
    """The rounds of a file, and what the checker has to complain of."""
    replays: list[Replay] = []
    with contextlib.ExitStack() as streams:
        reference = streams.enter_context(Stream(client))
        everything = Segment(b"\0", b"\0", prev_kv=True, known=1, name="reference")
        reference.watch(everything.key, everything.range_end, **everything.fields())
        for round_ in rounds(file):
            if round_.number < count:
                replays.append(Replay(client, round_))
                streams.enter_context(replays[-1].stream)
        history = History(reference.wait_revision(0, client.revision()))
        history.compacted = client.revision()
        everything.responses, everything.until = reference.of(0).responses, history.last
        segments = [one for replay in replays for one in replay.segments()]
        return replays, check(history, [everything, *segments])


@pytest.mark.parametrize("file", WATCH_FILES)
def test_each_watcher_is_told_what_was_recorded(
    file: str, server: Server, client: Client, program: Program
) -> None:
    old = program.version < (3, 5)
    count = ROUNDS if program.is_quorate or old else JUDGED[file]
    replays, complaints = replay(client, file, count)
    assert len(replays) == count
    gaps = sum(one.kind == "gap" for one in complaints) if old else 0
    text = "\n".join(map(str, complaints[:10]))
    assert len(complaints) == gaps <= ETCD_34_GAPS, text
    wrong = []
    for one in replays[: JUDGED[file]]:
        found = one.verdict()
        negative = any(asked.get("start_revision", 0) < 0 for asked in one.round.watchers)
        if found and not (negative and old):
            wrong.append(f"{file} round {one.round.number}: {found[0]}")
    allowed = ETCD_34_DIFFERENCES if old else 0
    assert len(wrong) <= allowed, f"{len(wrong)} of {count} rounds differ:\n" + "\n".join(wrong)
