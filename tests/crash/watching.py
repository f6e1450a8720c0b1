"""Records what writers were promised and what watchers were told, for `tests.watchcheck`.

Rules:
1. A run begins on a fresh store, so that the model of its history is the whole of it.
2. Every value is written once; each write keeps its operations and, once answered, its revision.
3. A watcher whose stream breaks asks again from the revision after the last that is complete; one
   that is canceled for compaction asks again from the compacted revision on.
4. A run ends with a put and a delete of every key: each watch waits for its part of that.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType

import grpc  # type: ignore[import-untyped]
from tests.messages import Message
from tests.watchcheck import (
    Complaint,
    History,
    Op,
    Segment,
    Write,
    check,
    check_resumed,
    check_writes,
    responses_of,
)
from tests.watches import DELETE, NODELETE, NOPUT, PUT, Stream, revision_of
from tests.wire import UNCERTAIN, Client, Refused

PREFIXES = (b"a/", b"b/", b"c/")
KEYS = [prefix + b"%d" % number for prefix in PREFIXES for number in range(8)]
EVERYTHING = (b"\0", b"\0")
FINISH_SECONDS = 30.0
POLL_SECONDS = 0.01


def connect(port: int, stopped: threading.Event) -> Client | None:
    """A connection that stands; None once `stopped`."""
    while not stopped.is_set():
        client = Client(port)
        try:
            client.wait_connected(0.5)
        except grpc.FutureTimeoutError:
            client.close()
            continue
        return client
    return None


class Writers:
    """Threads, a connection each, that write and note every outcome."""

    def __init__(
        self,
        port: int,
        count: int,
        start: int,
        *,
        pace: float,
        size: Callable[[random.Random], int],
    ) -> None:
        self.writes: list[Write] = []
        self.acknowledged = 1
        self.errors: list[BaseException] = []
        self.stopped = threading.Event()
        self._port = port
        self._pace = pace
        self._size = size
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(start + number)))
            for number in range(count)
        ]

    def start(self) -> None:
        """Begin to write."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and raise what went wrong."""
        self.stopped.set()
        for thread in self._threads:
            thread.join(FINISH_SECONDS)
            assert not thread.is_alive(), "a write hangs"
        if self.errors:
            raise self.errors[0]

    def make(self, client: Client, ops: list[Op]) -> bool:
        """Make and note one write; whether its outcome is known."""
        write = Write(ops)
        with self._lock:
            self.writes.append(write)
        try:
            revision = send(client, ops)
        except Refused as error:
            if error.code not in UNCERTAIN:
                raise
            return False
        with self._lock:
            write.revision = revision
            self.acknowledged = max(self.acknowledged, revision)
        return True

    def _run(self, number: int, chance: random.Random) -> None:
        client = connect(self._port, self.stopped)
        at = 0
        try:
            while client is not None and not self.stopped.is_set():
                at += 1
                value = b"%d.%d=" % (number, at)
                if not self.make(client, random_ops(chance, value.ljust(self._size(chance), b"."))):
                    client.close()
                    client = connect(self._port, self.stopped)
                time.sleep(self._pace * chance.random())
        except BaseException as error:
            self.errors.append(error)
        finally:
            if client is not None:
                client.close()


def random_ops(chance: random.Random, value: bytes) -> list[Op]:
    """A put, a delete, a delete of a prefix, or several of them on different keys."""
    kind = chance.random()
    if kind < 0.5:
        return [Op(PUT, chance.choice(KEYS), value)]
    if kind < 0.62:
        return [Op(DELETE, chance.choice(KEYS))]
    if kind < 0.65:
        prefix = chance.choice(PREFIXES)
        return [Op(DELETE, prefix, range_end=prefix[:-1] + b"0")]
    keys = chance.sample(KEYS, chance.randrange(2, 6))
    return [
        Op(PUT, key, value + b"%d" % at) if chance.random() < 0.7 else Op(DELETE, key)
        for at, key in enumerate(keys)
    ]


def send(client: Client, ops: list[Op]) -> int:
    """Make the call; the revision that it led to, 0 if it changed nothing."""
    if len(ops) == 1 and ops[0].kind == PUT:
        return int(client.put(ops[0].key, ops[0].value)["header"]["revision"])
    if len(ops) == 1:
        reply = client.delete(ops[0].key, ops[0].range_end)
        return int(reply["header"]["revision"]) if reply.get("deleted") else 0
    reply = client.txn(success=[request_op(op) for op in ops])
    changed = any(
        "response_put" in one or one["response_delete_range"].get("deleted")
        for one in reply["responses"]
    )
    return int(reply["header"]["revision"]) if changed else 0


def request_op(op: Op) -> Message:
    """The same as a RequestOp."""
    if op.kind == PUT:
        return {"request_put": {"key": op.key, "value": op.value}}
    where = {"key": op.key} | ({"range_end": op.range_end} if op.range_end else {})
    return {"request_delete_range": where}


class Watcher:
    """A watch that is asked for again whenever it is cut."""

    def __init__(self, asked: Segment) -> None:
        self.asked = asked
        self.segments: list[Segment] = []
        self.watch_id: int | None = None
        self.number = 0

    def next(self, known: int) -> Segment:
        """What to ask for now."""
        again = replace(self.asked, responses=[], known=known)
        if self.segments:
            last = self.segments[-1]
            compact = (last.canceled or {}).get("compact_revision", 0)
            again.start_revision = compact or self.done + 1
        return again

    @property
    def done(self) -> int:
        """The last revision that needs not to be told again."""
        done = 0
        for segment in self.segments:
            begun = 0 if segment.start_revision else revision_of(segment.responses[0])
            done = max(done, segment.start_revision - 1, segment.told, begun)
        return done

    def keep(self, segment: Segment, told: Iterable[Message]) -> None:
        """Note the responses of the segment that ended."""
        if self.watch_id is None:
            return
        segment.responses = responses_of(told, self.watch_id)
        self.segments.append(segment)
        self.watch_id = None


class Watching:
    """A thread with one Watch stream and its watches; it reconnects and resumes."""

    def __init__(
        self, port: int, asked: list[Segment], writers: Writers, client: Client | None = None
    ) -> None:
        self.watchers = [Watcher(one) for one in asked]
        self.stopped = threading.Event()
        self.progress_seconds = 0.05
        self.stream: Stream | None = None
        self.streams = 0
        self.errors: list[BaseException] = []
        self._port = port
        self._writers = writers
        self._shared = client
        self._thread = threading.Thread(target=self._run)
        self._open: dict[int, tuple[Watcher, Segment]] = {}

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def wait_created(self, seconds: float = FINISH_SECONDS) -> None:
        """Return once every watch of the first stream is answered."""
        end = time.monotonic() + seconds
        while any(one.watch_id is None for one in self.watchers):
            assert time.monotonic() < end, "watches are not created"
            assert not self.errors, self.errors
            time.sleep(POLL_SECONDS)

    def revision(self, watcher: Watcher) -> int:
        """The last revision of which the watcher was told an event."""
        stream, watch_id = self.stream, watcher.watch_id
        if stream is None or watch_id is None:
            return 0
        return stream.of(watch_id).revision

    def break_off(self) -> None:
        """Take the stream back from here: the thread connects and resumes."""
        if self.stream is not None:
            self.stream.break_off()

    def stop(self) -> None:
        """End, and raise what went wrong."""
        self.stopped.set()
        self._thread.join(FINISH_SECONDS)
        assert not self._thread.is_alive(), "a watcher hangs"
        if self.errors:
            raise self.errors[0]

    def _run(self) -> None:
        try:
            while not self.stopped.is_set():
                client = self._shared or connect(self._port, self.stopped)
                if client is None:
                    break
                self._one_stream(client)
                if client is not self._shared:
                    client.close()
        except BaseException as error:
            self.errors.append(error)

    def _one_stream(self, client: Client) -> None:
        stream = self.stream = Stream(client)
        self.streams += 1
        self._open = {}
        for watcher in self.watchers:
            self._ask(stream, watcher)
        asked = time.monotonic()
        while not self.stopped.is_set() and stream.end is None:
            self._look(stream)
            if time.monotonic() - asked > self.progress_seconds:
                stream.progress()
                asked = time.monotonic()
            time.sleep(POLL_SECONDS)
        stream.close()
        self._look(stream)
        for watcher, segment in self._open.values():
            watcher.keep(segment, list(stream.responses))

    def _ask(self, stream: Stream, watcher: Watcher) -> None:
        segment = watcher.next(self._writers.acknowledged)
        number = stream.ask(segment.key, segment.range_end, **segment.fields())
        self._open[number] = watcher, segment

    def _look(self, stream: Stream) -> None:
        """Take note of created watches, and ask again for those that were canceled."""
        for number, (watcher, segment) in list(self._open.items()):
            if watcher.watch_id is None and number < len(stream.created):
                watcher.watch_id = int(stream.created[number].get("watch_id", 0))
            if watcher.watch_id is not None and stream.of(watcher.watch_id).canceled:
                del self._open[number]
                watcher.keep(segment, list(stream.responses))
                if not self.stopped.is_set() and stream.end is None:
                    self._ask(stream, watcher)


class Run:
    """Writers and watchers on one fresh server, from the first write to the verdict."""

    def __init__(
        self,
        port: int,
        groups: list[list[Segment]],
        start: int,
        *,
        writers: int = 4,
        pace: float = 0.004,
        size: Callable[[random.Random], int] = lambda _: 20,
        client: Client | None = None,
    ) -> None:
        print(f"QUORATE_SEED={start}")
        self.port = port
        self.writers = Writers(port, writers, start, pace=pace, size=size)
        whole = Segment(*EVERYTHING, prev_kv=True, name="reference")
        self.reference = Watching(port, [whole], self.writers)
        self.groups = [Watching(port, group, self.writers, client) for group in groups]
        self.compacted = 0
        self.history = History([])

    def __enter__(self) -> Run:
        self.reference.start()
        self.reference.wait_created()
        for group in self.groups:
            group.start()
        self.writers.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.writers.stop()
            try:
                self._finish()
            finally:
                self._end_watches()
            return
        self.writers.stopped.set()
        with contextlib.suppress(AssertionError, Refused):
            self._end_watches()

    def compact(self, behind: int) -> int:
        """Compact up to so many revisions before what the reference was told."""
        revision = self.reference.revision(self.reference.watchers[0]) - behind
        if revision > self.compacted:
            with Client(self.port) as client, contextlib.suppress(Refused):
                self.compacted = revision
                client.call("KV/Compact", {"revision": revision})
        return self.compacted

    def verdict(self) -> list[Complaint]:
        """Every promise that was broken."""
        whole = self.reference.watchers[0].segments
        told = [event for one in whole for response in one.responses for event in events(response)]
        self.history = History(told)
        self.history.compacted = self.compacted
        complaints = list(check_writes(self.history, self.writers.writes))
        for group in [self.reference, *self.groups]:
            for watcher in group.watchers:
                assert watcher.segments, f"{watcher.asked.name} was never created"
                watcher.segments[-1].until = self.history.last
                complaints += check(self.history, watcher.segments)
                complaints += check_resumed(watcher.segments)
        return complaints

    def count(self, what: Callable[[Message], object]) -> int:
        """How many responses of the watches are so."""
        return sum(
            bool(what(response))
            for group in self.groups
            for watcher in group.watchers
            for segment in watcher.segments
            for response in segment.responses
        )

    def _finish(self) -> None:
        """Write every key a last time, and wait until each watch was told its part."""
        with Client(self.port) as client:
            assert self.writers.make(client, [Op(PUT, key, b"end " + key) for key in KEYS])
            assert self.writers.make(client, [Op(DELETE, *EVERYTHING[:1], range_end=b"\0")])
        last = self.writers.acknowledged
        end = time.monotonic() + FINISH_SECONDS
        for group in [self.reference, *self.groups]:
            for watcher in group.watchers:
                filters = watcher.asked.filters
                if NODELETE in filters and NOPUT in filters:
                    continue
                aim = last - 1 if NODELETE in filters else last
                while (told := group.revision(watcher)) < aim:
                    assert not group.errors, group.errors
                    text = f"{watcher.asked.name}: told up to {told}, never of {aim}"
                    assert time.monotonic() < end, text
                    time.sleep(POLL_SECONDS)

    def _end_watches(self) -> None:
        for group in [self.reference, *self.groups]:
            group.stopped.set()
        for group in [self.reference, *self.groups]:
            group.stop()


def events(response: Message) -> list[Message]:
    """The events of a response."""
    found: list[Message] = response.get("events", [])
    return found


def mixed() -> list[list[Segment]]:
    """Watches of every kind, on three streams."""
    prefix = (b"a/", b"a0")
    return [
        [
            Segment(b"a/0", name="key"),
            Segment(b"b/1", prev_kv=True, name="key with prev_kv"),
            Segment(*prefix, prev_kv=True, name="prefix with prev_kv"),
            Segment(b"b/", b"b0", filters=(NOPUT,), prev_kv=True, name="prefix, no puts"),
        ],
        [
            Segment(b"b/", b"\0", filters=(NODELETE,), name="from key, no deletes"),
            Segment(b"c/", b"c0", 1, fragment=True, name="fragments from revision 1"),
            Segment(*EVERYTHING, 40, progress_notify=True, name="from a future revision"),
            Segment(*EVERYTHING, filters=(NODELETE, NOPUT), name="nothing"),
        ],
        [Segment(*EVERYTHING, 1, prev_kv=True, name="everything")],
    ]
