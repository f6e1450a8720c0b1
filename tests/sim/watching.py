"""Those who watch a simulated server.

Rules:
1. `mixed` of `tests/crash/watching.py` says which watches there are; a watch that is cut, canceled
   or taken back is asked for again from where it was complete.
2. All responses of a stream are kept, in order; the verdict is `tests/watchcheck.py`'s.
3. What has to be answered is: a create, a cancel, and in the end a progress request.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.crash.watching import EVERYTHING, Watcher, mixed
from tests.messages import Message, encode
from tests.sim.actors import Actor
from tests.sim.peer import LOST, Peer, Refusal
from tests.watchcheck import Segment
from tests.watches import NO_WATCH, is_progress, revision_of

if TYPE_CHECKING:
    from tests.sim.world import World

IDS_FROM = 1 << 20


class SimStream:
    """The client's half of one Watch call."""

    def __init__(self, peer: Peer, watchers: list[Watcher], acknowledged: int) -> None:
        self.responses: list[Message] = []
        self.created: list[Message] = []
        self.creates = 0
        self.ended = False
        self.canceling: set[int] = set()
        self.open: dict[int, tuple[Watcher, Segment]] = {}
        self._progress_asked: deque[int] = deque()
        self._peer = peer
        self._acknowledged = acknowledged
        self._next_id = IDS_FROM
        self._number = peer.begin("Watch/Watch", self._take, self._end)
        for watcher in watchers:
            self.ask(watcher, 0)

    def ask(self, watcher: Watcher, known: int, own_id: bool = False) -> None:
        """Ask for a watch, or for its rest."""
        segment = watcher.next(max(known, self._acknowledged))
        request = {"key": segment.key, "range_end": segment.range_end, **segment.fields()}
        if own_id:
            self._next_id += 1
            request["watch_id"] = self._next_id
        self.open[self.creates] = watcher, segment
        self.creates += 1
        self._send({"create_request": request})

    def cancel(self, chance: random.Random) -> None:
        """Cancel one of the watches."""
        created = [one for one, _ in self.open.values() if one.watch_id is not None]
        if created:
            watch_id = chance.choice(created).watch_id
            assert watch_id is not None
            self.canceling.add(watch_id)
            self._send({"cancel_request": {"watch_id": watch_id}})

    def progress(self, known: int) -> None:
        """Ask how far all is complete, when `known` was acknowledged to somebody."""
        self._progress_asked.append(known)
        self._send({"progress_request": {}})

    def reset(self) -> None:
        """Take the call back."""
        self._peer.reset(self._number)

    def look(self, known: int, own_id: bool) -> None:
        """Take note of created watches, and ask again for those that were canceled."""
        canceled = {one.get("watch_id", 0) for one in self.responses if one.get("canceled")}
        self.canceling -= canceled
        for number, (watcher, segment) in list(self.open.items()):
            if watcher.watch_id is None and number < len(self.created):
                watcher.watch_id = int(self.created[number].get("watch_id", 0))
                assert watcher.watch_id != NO_WATCH, self.created[number]
            if watcher.watch_id is not None and watcher.watch_id in canceled:
                del self.open[number]
                watcher.keep(segment, self.responses)
                if not self.ended:
                    self.ask(watcher, known, own_id)

    def leave(self) -> None:
        """The stream is over: keep what its watches were told."""
        for watcher, segment in self.open.values():
            watcher.keep(segment, self.responses)
        self.open.clear()

    def complete(self) -> bool:
        """Whether every create and cancel is answered."""
        return len(self.created) == self.creates and not self.canceling

    def begun(self, revision: int) -> bool:
        """Whether all watches begin at that revision or before."""
        return all(segment.start_revision <= revision for _, segment in self.open.values())

    def told(self) -> int:
        """The revision of the last answer to a progress request."""
        answers = [
            revision_of(one)
            for one in self.responses
            if one.get("watch_id") == NO_WATCH and is_progress(one)
        ]
        return max(answers, default=0)

    def _send(self, request: Message) -> None:
        self._peer.send(self._number, encode("WatchRequest", request))

    def _take(self, response: Message) -> None:
        self.responses.append(response)
        if response.get("created"):
            self.created.append(response)
        if response.get("watch_id") == NO_WATCH and is_progress(response):
            # One answer may be for several requests, and a request may have none.
            known = self._progress_asked.popleft()
            text = f"progress {revision_of(response)}, {known} was acknowledged before"
            assert revision_of(response) >= known, text

    def _end(self, how: Refusal) -> None:
        assert how.code == LOST, how
        self.ended = True


class Observer(Actor):
    """Some watches on streams of one connection."""

    def __init__(self, world: World, name: str, groups: list[list[Segment]]) -> None:
        super().__init__(world, name)
        self.groups = [[Watcher(segment) for segment in group] for group in groups]
        self.streams: list[SimStream] = []

    @property
    def watchers(self) -> list[Watcher]:
        """All of them."""
        return [watcher for group in self.groups for watcher in group]

    def connected(self, peer: Peer) -> None:
        known = self.world.records.acknowledged
        self.streams = [SimStream(peer, group, known) for group in self.groups]

    def act(self, asks: bool = True) -> None:
        super().act(asks)
        if self.peer is None:
            self.leave()

    def disconnect(self) -> None:
        super().disconnect()
        self.leave()

    def leave(self) -> None:
        """The connection is gone."""
        for stream in self.streams:
            stream.look(0, False)
            stream.leave()
        self.streams.clear()

    def look(self) -> None:
        known = self.world.records.acknowledged
        for at, stream in enumerate(self.streams):
            stream.look(known, self.world.chance.random() < 0.3)
            if stream.ended and self.peer is not None:
                stream.leave()
                self.streams[at] = SimStream(self.peer, self.groups[at], known)

    def ask(self, peer: Peer) -> None:
        chance = self.world.chance
        stream = chance.choice(self.streams)
        kind = chance.random()
        if kind < 0.25:
            stream.progress(self.world.records.acknowledged)
        elif kind < 0.25 + self.world.shape.cancels:
            self.world.note(f"{self.name} cancels")
            stream.cancel(chance)
        elif kind > 0.99:
            self.world.note(f"{self.name} resets a stream")
            stream.reset()
            self.look()
        elif kind > 0.98:
            self.world.note(f"{self.name} wants the past")
            past = Watcher(Segment(*EVERYTHING, 1, fragment=chance.random() < 0.5, name="past"))
            group = self.groups[self.streams.index(stream)]
            group.append(past)
            stream.ask(past, 0)

    def settled(self) -> bool:
        return self.peer is not None and all(
            stream.complete() and not stream.ended for stream in self.streams
        )


class Reference(Observer):
    """The watch of everything that nobody cancels."""

    def __init__(self, world: World) -> None:
        whole = Segment(*EVERYTHING, 1, prev_kv=True, name="reference")
        super().__init__(world, "reference", [[whole]])

    @property
    def watcher(self) -> Watcher:
        """The watch."""
        return self.watchers[0]

    @property
    def told(self) -> int:
        """Up to where it is complete."""
        live = [
            replace(segment, responses=stream.responses).told
            for stream in self.streams
            for _, segment in stream.open.values()
        ]
        return max([self.watcher.done, *live])

    def ask(self, peer: Peer) -> None:
        if self.world.chance.random() < 0.2:
            self.streams[0].progress(self.world.records.acknowledged)


def observers(world: World) -> list[Observer]:
    """One for each stream of `mixed`, and one that has them all on streams of one connection."""
    groups = mixed()
    notified = [Segment(b"b/", b"b0", progress_notify=True, name="notified")]
    single = [[*group] for group in groups]
    found = [Observer(world, f"watcher{at}", [group]) for at, group in enumerate(single)]
    return [*found, Observer(world, "watchers", [*mixed(), notified])]
