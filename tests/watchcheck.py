"""Checks what watchers were told against the whole history of writes.

What a run records: every write with its outcome (`Write`), one reference watch of everything from
the first revision on, and each watch as one `Segment` for each time that it was asked for (a watch
that reconnects is a row of segments).

Rules:
1. The reference is believed in nothing but which keys were put and deleted at which revision, and
   even so `check_writes` compares it with what writers were promised: each acknowledged write is at
   its revision, whole; each revision is one write; no revision is missing. A write of open outcome
   (its connection broke) is there whole or not at all, and at most once.
2. create_revision, version and the pair before come from a model (`History`), not from the server.
3. A complaint has a kind, so that a test can tell which promise it was that broke:

   created    `created` comes first, and once
   order      revisions never fall, and within one its events are in the order of its operations
   duplicate  an event comes once
   gap        from the start to the last event, and to `until`, nothing of the range is missing
   atomic     the events of a revision come in one response, or in fragments that were asked for
   bookmark   when progress tells a revision, every event up to it came before, none after, and the
              watch had begun
   start      nothing from before the start revision
   filter     nothing outside the range, or that a filter holds back
   unknown    nothing that never happened
   fields     key, value, mod_revision, lease
   is_create  create_revision == mod_revision, and version 1, just when the key was not there
   prev_kv    the pair as it was before the revision, just when asked for and there was one; it may
              be missing once that was compacted
   header     a response's header is not older than its events
   silence    nothing comes after `canceled`
   compaction a watch is canceled for compaction only while it needs what was compacted
   unasked    progress, or a response with nothing in it, without having been asked for
   resume     a watch begins again just where it was cut, or at the compacted revision
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.messages import Message
from tests.watches import (
    DELETE,
    NODELETE,
    NOPUT,
    PUT,
    is_progress,
    revision_of,
    revision_of_event,
)

FIRST_REVISION = 2


class Complaint(NamedTuple):
    """A promise that was broken."""

    kind: str
    text: str


class Op(NamedTuple):
    """A put (no range_end) or a delete of a write."""

    kind: int
    key: bytes
    value: bytes = b""
    range_end: bytes = b""


@dataclass
class Write:
    """One call that writes: its revision, 0 if it changed nothing, None if its outcome is open."""

    ops: list[Op]
    revision: int | None = None


class Change(NamedTuple):
    """One event as it has to be told; `prev` is the pair before its revision."""

    revision: int
    kind: int
    kv: Message
    prev: Message | None

    @property
    def identity(self) -> tuple[int, int, bytes]:
        """What names the event: no revision puts or deletes a key twice."""
        return self.revision, self.kind, self.kv["key"]


def identity(event: Message) -> tuple[int, int, bytes]:
    """The same of an event that was told."""
    return revision_of_event(event), event.get("type", PUT), event["kv"].get("key", b"")


def in_range(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether a key is in etcd's range: one key, from `start` on, or up to `end`."""
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


class History:
    """Every revision's changes, with their fields as the model has them."""

    def __init__(self, events: Iterable[Message]) -> None:
        self.changes: list[Change] = []
        state: dict[bytes, Message] = {}
        before: dict[bytes, Message] = {}
        at = 0
        once: dict[tuple[int, int, bytes], Message] = {}
        for event in events:
            once.setdefault(identity(event), event)
        for event in sorted(once.values(), key=revision_of_event):
            revision = revision_of_event(event)
            if revision != at:
                before, at = dict(state), revision
            self.changes.append(_change(event, revision, state, before.get(event["kv"]["key"])))
        self.compacted = 0
        self.identities = {change.identity for change in self.changes}

    @property
    def last(self) -> int:
        """The last revision."""
        return self.changes[-1].revision if self.changes else 0

    def select(self, segment: Segment, start: int) -> list[Change]:
        """What the segment has to be told from a revision on."""
        first = bisect.bisect_left(self.changes, start, key=lambda change: change.revision)
        return [change for change in self.changes[first:] if segment.wants(change)]


def _change(
    event: Message, revision: int, state: dict[bytes, Message], prev: Message | None
) -> Change:
    """The change that an event stands for; the state is brought up to date."""
    told, kind = event["kv"], event.get("type", PUT)
    key = told["key"]
    old = state.pop(key, None)
    if kind == DELETE:
        return Change(revision, DELETE, {"key": key, "mod_revision": revision}, prev)
    state[key] = {
        "key": key,
        "create_revision": old["create_revision"] if old else revision,
        "mod_revision": revision,
        "version": old["version"] + 1 if old else 1,
    } | {name: told[name] for name in ("value", "lease") if name in told}
    # A key that was deleted and put in one revision is a new one.
    return Change(revision, PUT, state[key], prev if old else None)


@dataclass
class Segment:
    """A watch as it was asked for once, and all its responses in order.

    Answers to progress requests (id -1) that came while it lived are among them. `known` is a
    revision that the store had before it was asked for; up to `until` it has to be complete.
    """

    key: bytes
    range_end: bytes = b""
    start_revision: int = 0
    filters: tuple[int, ...] = ()
    prev_kv: bool = False
    fragment: bool = False
    progress_notify: bool = False
    responses: list[Message] = field(default_factory=list)
    known: int = 0
    until: int = 0
    name: str = ""

    def wants(self, change: Change) -> bool:
        """Whether the change is in its range and passes its filters."""
        held = NODELETE if change.kind == DELETE else NOPUT
        return held not in self.filters and in_range(
            change.kv["key"], self.key or b"\0", self.range_end
        )

    def fields(self) -> Message:
        """The create request without key and range_end."""
        asked = {
            "start_revision": self.start_revision,
            "filters": list(self.filters),
            "prev_kv": self.prev_kv,
            "fragment": self.fragment,
            "progress_notify": self.progress_notify,
        }
        return {name: value for name, value in asked.items() if value}

    @property
    def told(self) -> int:
        """The last revision that is complete: of its events, or of progress; 0 for none."""
        revision = 0
        for response in self.responses:
            events = response.get("events")
            if events and not response.get("fragment"):
                revision = max(revision, revision_of_event(events[-1]))
            elif is_progress(response):
                revision = max(revision, revision_of(response))
        return revision

    @property
    def canceled(self) -> Message | None:
        """The response that ended it."""
        return next((one for one in self.responses if one.get("canceled")), None)


def responses_of(responses: Iterable[Message], watch_id: int) -> list[Message]:
    """What a stream told a watch, with what it told all of them while that was there."""
    found: list[Message] = []
    there = False
    for response in responses:
        if response.get("watch_id", 0) == watch_id:
            found.append(response)
            there = not response.get("canceled")
        elif there and response.get("watch_id") == -1 and is_progress(response):
            found.append(response)
    return found


def check(history: History, segments: Iterable[Segment]) -> list[Complaint]:
    """Every promise that was broken to any of the watches."""
    return [complaint for segment in segments for complaint in Checker(history, segment).run()]


class Checker:
    """Goes through one segment's responses."""

    def __init__(self, history: History, segment: Segment) -> None:
        self.history = history
        self.segment = segment
        self.complaints: list[Complaint] = []
        created = segment.responses[0] if segment.responses else {}
        # A watch from now on begins at some revision between asking and being answered.
        self.first = segment.start_revision or segment.known + 1
        self.sure = segment.start_revision or revision_of(created) + 1
        self.expected = history.select(segment, self.first)
        self.places = {change.identity: at for at, change in enumerate(self.expected)}
        self.at = bisect.bisect_left(self.expected, self.sure, key=lambda one: one.revision)
        self.seen: set[int] = set()
        self.skipped: set[int] = set()
        self.begun = False

    def run(self) -> list[Complaint]:
        """All complaints about the segment."""
        self._envelope()
        split_from = 0
        for response in self.segment.responses:
            events = response.get("events", [])
            if is_progress(response):
                self._progress(response)
            if events:
                first, last = revision_of_event(events[0]), revision_of_event(events[-1])
                if first == split_from:
                    self._complain("atomic", f"revision {first} in two responses")
                fragment = self.segment.fragment and response.get("fragment")
                split_from = 0 if fragment else last
                if revision_of(response) < max(map(revision_of_event, events)):
                    self._complain("header", f"{revision_of(response)} with events of {last}")
            for event in events:
                self._event(event)
        self._missing()
        return self.complaints

    def _complain(self, kind: str, text: str) -> None:
        self.complaints.append(
            Complaint(kind, f"{self.segment.name or self.segment.key!r}: {text}")
        )

    def _envelope(self) -> None:
        """What holds whatever the events are: created first and once, silence, no odd fragment."""
        segment, canceled = self.segment, False
        for number, response in enumerate(segment.responses):
            if bool(response.get("created")) != (number == 0):
                self._complain("created", f"response {number} is {response!r}"[:300])
            # A client that cancels what compaction had canceled gets its answer all the same.
            late = response.get("canceled") and (segment.canceled or {}).get("compact_revision")
            if canceled and response.get("watch_id", 0) != -1 and not late:
                self._complain("silence", f"after its cancel came {response!r}"[:300])
            if response.get("fragment") and not segment.fragment:
                self._complain("unasked", "a fragment")
            canceled = canceled or bool(response.get("canceled"))
        compact = (segment.canceled or {}).get("compact_revision", 0)
        if compact and not max(segment.told + 1, segment.start_revision) < compact:
            self._complain("compaction", f"canceled by {compact}, told up to {segment.told}")
        if compact > self.history.compacted:
            self._complain(
                "compaction", f"canceled by {compact}, compacted {self.history.compacted}"
            )

    def _progress(self, response: Message) -> None:
        revision = revision_of(response)
        if response.get("watch_id", 0) != -1 and not self.segment.progress_notify:
            self._complain("unasked", f"progress {revision}")
        if revision < self.segment.start_revision:
            text = f"progress {revision}, but it starts at {self.segment.start_revision}"
            self._complain("bookmark", text)
        if self.at < len(self.expected) and self.expected[self.at].revision <= revision:
            missing = self.expected[self.at].identity
            self._complain("bookmark", f"progress {revision} before the event {missing}")

    def _event(self, event: Message) -> None:
        name = identity(event)
        place = self.places.get(name)
        if place is None:
            self._stranger(name)
            return
        if not self.begun and place < self.at:
            # It began before its answer was written: with this revision, whole.
            revision = name[0]
            self.at = bisect.bisect_left(self.expected, revision, key=lambda one: one.revision)
        self.begun = True
        if place in self.seen:
            self._complain("duplicate", f"{name}")
        elif place < self.at:
            self._complain("order", f"{name} came late")
        self.skipped.update(range(self.at, place))
        self.seen.add(place)
        self.at = max(self.at, place + 1)
        self._fields(event, self.expected[place])

    def _stranger(self, name: tuple[int, int, bytes]) -> None:
        if name not in self.history.identities:
            self._complain("unknown", f"{name} never happened")
        elif name[0] < self.first:
            self._complain("start", f"{name}, but it starts at {self.first}")
        else:
            self._complain("filter", f"{name} is not for it")

    def _fields(self, event: Message, change: Change) -> None:
        kv = event["kv"]
        if kv != change.kv:
            ages = ("create_revision", "version")
            same = all(kv.get(age) == change.kv.get(age) for age in ages)
            self._complain("fields" if same else "is_create", f"{kv!r}, not {change.kv!r}"[:400])
        prev = event.get("prev_kv")
        wanted = change.prev if self.segment.prev_kv else None
        may_be_gone = change.revision - 1 < self.history.compacted
        if prev != wanted and not (prev is None and may_be_gone):
            text = f"{change.identity} with {prev!r}, not {wanted!r}"
            self._complain("prev_kv", text[:400])

    def _missing(self) -> None:
        for place in sorted(self.skipped - self.seen):
            self._complain("gap", f"{self.expected[place].identity} is missing")
        for change in self.expected[self.at :]:
            if change.revision > self.segment.until:
                break
            text = f"{change.identity} never came, told up to {self.segment.told}"
            self._complain("gap", text)


def check_resumed(segments: list[Segment]) -> list[Complaint]:
    """Whether a watch went on each time where it was cut."""
    complaints = []
    done = 0
    for at, segment in enumerate(segments):
        if at:
            compact = (segments[at - 1].canceled or {}).get("compact_revision", 0)
            if segment.start_revision not in {done + 1, compact or done + 1}:
                text = f"{segment.name}: from {segment.start_revision} on, told up to {done}"
                complaints.append(Complaint("resume", text))
        done = max(done, segment.start_revision - 1, segment.told)
        if not segment.start_revision and segment.responses:
            # It was told nothing, but it began there.
            done = max(done, revision_of(segment.responses[0]))
    return complaints


def outcome(ops: list[Op], state: dict[bytes, bytes]) -> list[tuple[int, bytes, bytes]]:
    """The changes that a write makes to a state: kind, key, value."""
    state = dict(state)
    changes: list[tuple[int, bytes, bytes]] = []
    for op in ops:
        if op.kind == PUT:
            changes.append((PUT, op.key, op.value))
            state[op.key] = op.value
            continue
        for key in sorted(key for key in state if in_range(key, op.key, op.range_end)):
            changes.append((DELETE, key, b""))
            del state[key]
    return changes


def check_writes(history: History, writes: list[Write]) -> Iterator[Complaint]:
    """Whether the history is what the writers were promised, each revision one of their writes."""
    promised: dict[int, Write] = {}
    for write in writes:
        if write.revision:
            if write.revision in promised:
                yield Complaint("duplicate", f"two writes at revision {write.revision}")
            promised[write.revision] = write
    open_ = [write for write in writes if write.revision is None]
    state: dict[bytes, bytes] = {}
    at = FIRST_REVISION
    for revision, changes in _by_revision(history):
        for missing in range(at, revision):
            yield Complaint("gap", f"the reference has nothing of revision {missing}")
        at = revision + 1
        found = [(one.kind, one.kv["key"], one.kv.get("value", b"")) for one in changes]
        if revision in promised:
            wanted = outcome(promised.pop(revision).ops, state)
            if wanted != found:
                yield Complaint("fields", f"{revision} is {found!r}, promised {wanted!r}"[:400])
        else:
            did = next((one for one in open_ if outcome(one.ops, state) == found), None)
            if did is None:
                yield Complaint("unknown", f"nobody wrote {found!r} at {revision}"[:300])
            else:
                open_.remove(did)
        for kind, key, value in found:
            if kind == PUT:
                state[key] = value
            else:
                state.pop(key, None)
    for revision in promised:
        yield Complaint("gap", f"revision {revision} was acknowledged, and nobody was told")


def _by_revision(history: History) -> Iterator[tuple[int, list[Change]]]:
    group: list[Change] = []
    for change in history.changes:
        if group and change.revision != group[0].revision:
            yield group[0].revision, group
            group = []
        group.append(change)
    if group:
        yield group[0].revision, group
