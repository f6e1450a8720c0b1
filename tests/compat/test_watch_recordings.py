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
from tests.watches import Stream, revision_of, revision_of_event
from tests.wire import Client, Refused

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("watching")]

WATCH_FILES = ("watch-1", "watch-2")
ROUNDS = 60
SENTINEL = 1_000_000
# Debian's 3.4.23 differs in so many rounds of both files, each for one of these reasons: a negative
# start revision is one that was compacted for it, and it knows no duplicate of a canceled id.
ETCD_34_DIFFERENCES = 60


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
        for watcher in round_.watchers:
            self.stream.answer(self.stream.ask(**watcher))
        before = client.revision()
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


@pytest.mark.parametrize("file", WATCH_FILES)
def test_each_watcher_is_told_what_was_recorded(
    file: str, server: Server, client: Client, program: Program
) -> None:
    replays: list[Replay] = []
    try:
        replays += (Replay(client, round_) for round_ in rounds(file))
        assert len(replays) == ROUNDS
        verdicts = {one.round.number: one.verdict() for one in replays}
    finally:
        for one in replays:
            one.stream.close()
    wrong = {number: found for number, found in verdicts.items() if found}
    text = "\n".join(f"{file} round {number}: {found[0]}" for number, found in wrong.items())
    if program.is_quorate:
        assert not wrong, f"{len(wrong)} of {ROUNDS} rounds differ:\n{text}"
    else:
        print(text)
        assert len(wrong) <= ETCD_34_DIFFERENCES, text
