"""Random watches of random writes: Debian's etcd and quorate tell the same, field by field.

Both get the same calls one after the other, so that both are in the same state. A watch is compared
by what it was told in order: its answer, its events, its cancel; borders of responses are left out.

Before each compaction, and at the end, every key is put and deleted, and each watch has to be told
of that: then none is behind, on neither side, and what a compaction cancels is the same.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.compat.answers import plain
from tests.compat.sequences import KEYS, Sequence, prefix_end
from tests.depth import depth, seed
from tests.messages import Message
from tests.server import Program, Server
from tests.watches import NO_WATCH, NODELETE, NOPUT, Stream, Told, revision_of
from tests.wire import Client, Refused

pytestmark = pytest.mark.compat

CALLS = 300
STREAMS = 3
WRITES = {"KV/Put", "KV/DeleteRange", "KV/Txn"}
# Values of several of them fill more than a request may hold, so that fragments are made.
LARGE = 300_000


class Asked(NamedTuple):
    """A watch on both sides: which stream, which create of it, and what was asked."""

    stream: int
    number: int
    request: Message


class Side:
    """One server: a client that writes, and the streams, each on a connection of its own."""

    def __init__(self, port: int, stack: contextlib.ExitStack) -> None:
        self.client = stack.enter_context(Client(port))
        clients = [stack.enter_context(Client(port)) for _ in range(STREAMS)]
        self.streams = [stack.enter_context(Stream(client)) for client in clients]

    def told(self, asked: Asked) -> Told | None:
        """What a watch was told; None if it was refused."""
        stream = self.streams[asked.stream]
        answer = stream.created[asked.number]
        return None if answer.get("canceled") else stream.of(answer.get("watch_id", 0))


class Round:
    """One sequence on both."""

    def __init__(self, number: int, old: Side, new: Side) -> None:
        self.sides = (old, new)
        self.held: list[int] = []
        self.random = random.Random(number)
        self.sequence = Sequence(number)
        self.asked: list[Asked] = []
        self.canceled: set[int] = set()
        self.revision = 1

    def play(self) -> None:
        """All calls; raises AssertionError where the two differ."""
        calls = iter(self.sequence)
        for at in range(CALLS):
            kind = self.random.random()
            if kind < 0.10:
                self.create()
            elif kind < 0.12:
                self.cancel()
            elif kind < 0.13:
                self.settle()
                self.compact()
            elif kind < 0.14:
                self.large()
            elif kind < 0.17:
                self.lease()
            else:
                name, request = next(one for one in calls if one[0] in WRITES)
                self.write(name, request, f"call {at}")
        self.settle()
        self.compare()

    def write(self, name: str, request: Message, where: str = "") -> None:
        """The same call to both: equal replies, or both refuse."""
        replies = []
        for side in self.sides:
            try:
                reply: Message | None = side.client.call(name, request)
            except Refused:
                reply = None
            replies.append(reply)
        old, new = replies
        assert (old is None) == (new is None), f"{where}: {name} {request!r}: {replies!r}"
        if old is not None and new is not None:
            self.revision = old["header"]["revision"]
            assert new["header"]["revision"] == self.revision, f"{where}: {name} {request!r}"
            self.sequence.seen(name, request, plain(name, old))

    def create(self) -> None:
        """A watch with any options, on both."""
        request = self.request()
        stream = self.random.randrange(STREAMS)
        numbers = [side.streams[stream].ask(**request) for side in self.sides]
        answers = [
            side.streams[stream].answer(number)
            for side, number in zip(self.sides, numbers, strict=True)
        ]
        shown = [summary(answer) for answer in answers]
        assert numbers[0] == numbers[1]
        assert shown[0] == shown[1], f"{request!r}: {shown!r}"
        self.asked.append(Asked(stream, numbers[0], request))

    def request(self) -> Message:
        """A WatchCreateRequest."""
        chance, request = self.random, {"key": self.sequence.key()}
        kind = chance.random()
        if kind < 0.3:
            request["range_end"] = prefix_end(request["key"]) if request["key"] else b"\0"
        elif kind < 0.45:
            request["range_end"] = chance.choice(KEYS)
        elif kind < 0.7:
            request["range_end"] = b"\0"
        now, compacted = self.revision, self.sequence.compacted
        past = chance.randint(compacted, now) if compacted <= now else now
        # Deletes at the compacted revision are lost by etcds before 3.5.
        past = past + 1 if past == compacted else past
        starts = [0, 0, past, past, now, now + 1, now + 5, max(compacted - 1, 0), 1]
        fields: Message = {
            "start_revision": chance.choice(starts),
            "prev_kv": chance.random() < 0.5,
            "fragment": chance.random() < 0.3,
            "progress_notify": chance.random() < 0.3,
            "filters": chance.choice([[], [], [], [NOPUT], [NODELETE], [NOPUT, NODELETE]]),
            # One that was canceled may be chosen anew, but then its two watches are told as one.
            "watch_id": chance.choice([0, 0, 0, *({33, 40, 50} - self.canceled)]),
        }
        return request | {name: value for name, value in fields.items() if value}

    def cancel(self) -> None:
        """Cancel a watch that is there, or any id."""
        self.settle()
        stream = self.random.randrange(STREAMS)
        sides = [side.streams[stream] for side in self.sides]
        known = [id_ for id_, told in sides[0].told.items() if not told.canceled and id_ >= 0]
        if known:
            watch_id = self.random.choice(known)
            self.canceled.add(watch_id)
            answers = [summary(one.cancel(watch_id)) for one in sides]
            assert answers[0] == answers[1]
        for one in sides:
            one.send(cancel_request={"watch_id": 9999})

    def compact(self) -> None:
        """Compact somewhere between the last compaction and now."""
        low = self.sequence.compacted + 1
        if low < self.revision:
            revision = self.random.randint(low, self.revision - 1)
            for side in self.sides:
                side.client.call("KV/Compact", {"revision": revision, "physical": True})
            self.sequence.compacted = revision

    def large(self) -> None:
        """A Txn with much in it."""
        keys = self.random.sample(KEYS, 4)
        puts = [{"request_put": {"key": key, "value": b"." * LARGE}} for key in keys]
        self.write("KV/Txn", {"success": puts})

    def lease(self) -> None:
        """Put keys with a new lease, or revoke one, which deletes what still hangs on it."""
        if self.held and self.random.random() < 0.6:
            lease = self.held.pop(self.random.randrange(len(self.held)))
            replies = [side.client.call("Lease/LeaseRevoke", {"ID": lease}) for side in self.sides]
            revisions = [revision_of(reply) for reply in replies]
            assert revisions[0] == revisions[1]
            self.revision = self.sequence.revision = revisions[0]
            return
        lease = self.random.randrange(1, 1 << 62)
        for side in self.sides:
            side.client.call("Lease/LeaseGrant", {"ID": lease, "TTL": 600})
        self.held.append(lease)
        for key in self.random.sample(KEYS, 3):
            self.write("KV/Put", {"key": key, "value": b"leased", "lease": lease})

    def settle(self) -> None:
        """Put and delete every key, and wait until each live watch was told its part."""
        puts = [{"request_put": {"key": key}} for key in KEYS]
        self.write("KV/Txn", {"success": puts})
        put = self.revision
        self.write("KV/DeleteRange", {"key": b"\0", "range_end": b"\0"})
        for asked in self.asked:
            filters = asked.request.get("filters", [])
            aim = put if NODELETE in filters else self.revision
            if filters != [NOPUT, NODELETE] and asked.request.get("start_revision", 0) <= aim:
                for side in self.sides:
                    self.wait(side, asked, aim)

    def wait(self, side: Side, asked: Asked, aim: int) -> None:
        """Return once the watch was told that revision, or was canceled."""
        told = side.told(asked)
        if told is not None:
            side.streams[asked.stream].wait(
                lambda: bool(told.canceled) or told.revision >= aim, f"{asked} to be told {aim}"
            )

    def compare(self) -> None:
        """Every watch was told the same by both."""
        for asked in self.asked:
            old, new = (side.told(asked) for side in self.sides)
            assert (old is None) == (new is None), asked
            if old is None or new is None:
                continue
            assert len(old.events) == len(new.events), f"{asked}: {difference(old, new)}"
            assert old.events == new.events, f"{asked}: {difference(old, new)}"
            if asked.request.get("filters") == [NOPUT, NODELETE]:
                # When such a one has caught up can't be seen, and so not what compaction cancels.
                continue
            canceled = [[summary(one) for one in told.canceled] for told in (old, new)]
            assert canceled[0] == canceled[1], asked
        for old_stream, new_stream in zip(*(side.streams for side in self.sides), strict=True):
            refusals = [
                [summary(one) for one in stream.of(NO_WATCH).created]
                for stream in (old_stream, new_stream)
            ]
            assert refusals[0] == refusals[1]


def summary(response: Message) -> dict[str, Any]:
    """A response that creates or cancels, without what differs from member to member."""
    names = ("watch_id", "created", "canceled", "compact_revision", "cancel_reason")
    shown = {name: response.get(name) for name in names}
    # A cancel for compaction tells the revision of the moment at which it was noticed.
    return shown if response.get("compact_revision") else shown | {"at": revision_of(response)}


def difference(old: Told, new: Told) -> str:
    """The first event that differs."""
    for at, (one, two) in enumerate(zip(old.events, new.events, strict=False)):
        if one != two:
            return f"event {at}: {one!r} or {two!r}"[:600]
    longer = max((old.events, new.events), key=len)
    rest = longer[min(len(old.events), len(new.events)) :]
    return f"{len(old.events)} or {len(new.events)} events: {rest[:3]!r}"[:600]


@pytest.mark.parametrize("round_", range(depth(2, 60)))
def test_random_watches_are_told_as_by_etcd(
    round_: int,
    program: Program,
    debian_etcd: Program,
    tmp_path: Path,
) -> None:
    number = seed() + round_
    print(f"QUORATE_SEED={number}")
    with (
        Server(debian_etcd, tmp_path / "etcd") as theirs,
        Server(program, tmp_path / "ours") as ours,
        contextlib.ExitStack() as stack,
    ):
        theirs.launch()
        ours.launch()
        theirs.wait_ready()
        ours.wait_ready()
        sides = Side(theirs.port, stack), Side(ours.port, stack)
        round_of_both = Round(number, *sides)
        round_of_both.play()
        told = [told for stream in round_of_both.sides[0].streams for told in stream.told.values()]
        events = sum(len(one.events) for one in told)
        assert events > 100, f"only {events} events"
