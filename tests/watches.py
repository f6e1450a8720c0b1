"""One Watch stream as a client sees it: asks for watches, keeps every response in order.

Rules:
1. A thread takes the responses as they come. Tests wait for what they need with `wait`, which has a
   deadline; none of them sleeps.
2. `responses` is what came, message by message, fragments apart; `told` is the same put together
   for each watch.
3. A `created` response answers the oldest create that has none yet: etcd answers in order.
4. The stream's methods may be called from any thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]

from tests.messages import Message, decode, encode
from tests.wire import Client, Refused, refused

WATCH = "/etcdserverpb.Watch/Watch"
STREAM_SECONDS = 600.0
WAIT_SECONDS = 10.0
# The id that stands for no watch: of refusals, and of answers to progress requests.
NO_WATCH = -1
NOPUT, NODELETE = 0, 1
PUT, DELETE = 0, 1

T = TypeVar("T")


def revision_of(message: Message) -> int:
    """The revision in a response's header."""
    return int(message.get("header", {}).get("revision", 0))


def revision_of_event(event: Message) -> int:
    """The revision that an event belongs to."""
    return int(event["kv"]["mod_revision"])


def is_progress(response: Message) -> bool:
    """Whether the response only tells a revision."""
    return not any(response.get(name) for name in ("events", "created", "canceled"))


@dataclass
class Told:
    """What one watch id was told."""

    created: list[Message] = field(default_factory=list)
    canceled: list[Message] = field(default_factory=list)
    events: list[Message] = field(default_factory=list)
    progress: list[int] = field(default_factory=list)
    responses: list[Message] = field(default_factory=list)

    def take(self, response: Message) -> None:
        """Note the next response."""
        self.responses.append(response)
        if response.get("created"):
            self.created.append(response)
        elif response.get("canceled"):
            self.canceled.append(response)
        elif is_progress(response):
            self.progress.append(revision_of(response))
        self.events += response.get("events", [])

    @property
    def revision(self) -> int:
        """The revision of the last event; 0 before any."""
        return revision_of_event(self.events[-1]) if self.events else 0


class Stream:
    """A Watch stream on a client's connection."""

    def __init__(self, client: Client, *, seconds: float = STREAM_SECONDS) -> None:
        self.responses: list[Message] = []
        self.told: dict[int, Told] = {}
        self.creates = 0
        self.created: list[Message] = []
        self.end: Refused | None = None
        self._changed = threading.Condition()
        self._reading = threading.Event()
        self._reading.set()
        self._asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call: Any = client.open(WATCH, self._requests(), seconds)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What is asked.

    def send(self, **request: object) -> None:
        """Send a WatchRequest."""
        self.send_bytes(encode("WatchRequest", request))

    def send_bytes(self, data: bytes) -> None:
        """Send what may or may not be a WatchRequest."""
        self._asked.put(data)

    def ask(self, key: bytes = b"", range_end: bytes = b"", **fields: object) -> int:
        """Ask for a watch; answers which create of the stream it was."""
        given = {"key": key, "range_end": range_end} if range_end else {"key": key}
        with self._changed:
            self.creates += 1
            number = self.creates - 1
            self.send(create_request=given | fields)
        return number

    def answer(self, number: int, seconds: float = WAIT_SECONDS) -> Message:
        """The `created` response to that create."""
        return self.wait(
            lambda: self.created[number] if len(self.created) > number else None,
            f"an answer to create {number}",
            seconds,
        )

    def create(self, key: bytes = b"", range_end: bytes = b"", **fields: object) -> Message:
        """Ask for a watch and return the answer."""
        return self.answer(self.ask(key, range_end, **fields))

    def watch(self, key: bytes = b"", range_end: bytes = b"", **fields: object) -> int:
        """Ask for a watch that is granted; its id."""
        response = self.create(key, range_end, **fields)
        assert not response.get("canceled"), response
        return int(response.get("watch_id", 0))

    def cancel(self, watch_id: int) -> Message:
        """Cancel a watch that is there; the answer."""
        count = len(self.of(watch_id).canceled)
        self.send(cancel_request={"watch_id": watch_id})
        return self.wait_canceled(watch_id, count)

    def progress(self) -> None:
        """Send a progress request."""
        self.send(progress_request={})

    def half_close(self) -> None:
        """End this side of the stream."""
        self._asked.put(None)

    def pause(self) -> None:
        """Read no further response: what the server sends piles up."""
        self._reading.clear()

    def resume(self) -> None:
        """Read again."""
        self._reading.set()

    def break_off(self) -> None:
        """Take the call back."""
        self._call.cancel()

    def close(self) -> None:
        """Take the call back and wait for the reader's end."""
        self._call.cancel()
        self._asked.put(None)
        self._reading.set()
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "the reader hangs"

    # What was told.

    def of(self, watch_id: int) -> Told:
        """What that id was told so far."""
        with self._changed:
            return self.told.setdefault(watch_id, Told())

    def events(self, watch_id: int) -> list[Message]:
        """The events that the watch was told so far."""
        return list(self.of(watch_id).events)

    def wait(
        self, condition: Callable[[], T | None], what: str, seconds: float = WAIT_SECONDS
    ) -> T:
        """The first answer of `condition` that is true, asked again at each response.

        Raises AssertionError after that time, or when the stream ends without it.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                found = condition()
                if found:
                    return found
                assert self.end is None, f"the stream ended with {self.end} before {what}"
                left = end - time.monotonic()
                assert left > 0, f"not within {seconds} s: {what}; {self._state()}"
                self._changed.wait(left)

    def wait_events(
        self, watch_id: int, count: int, seconds: float = WAIT_SECONDS
    ) -> list[Message]:
        """That many events of a watch, or more."""
        told = self.of(watch_id)
        self.wait(lambda: len(told.events) >= count, f"{count} events of {watch_id}", seconds)
        return list(told.events)

    def wait_revision(
        self, watch_id: int, revision: int, seconds: float = WAIT_SECONDS
    ) -> list[Message]:
        """The watch's events, once one of that revision or a later one is there."""
        told = self.of(watch_id)
        what = f"revision {revision} for watch {watch_id}"
        self.wait(lambda: told.revision >= revision, what, seconds)
        return list(told.events)

    def wait_canceled(
        self, watch_id: int, count: int = 0, seconds: float = WAIT_SECONDS
    ) -> Message:
        """The response that cancels a watch, after `count` others that did."""
        told = self.of(watch_id)
        what = f"a cancel of watch {watch_id}"
        self.wait(lambda: len(told.canceled) > count, what, seconds)
        return told.canceled[count]

    def wait_progress(
        self, revision: int, watch_id: int = NO_WATCH, seconds: float = WAIT_SECONDS
    ) -> int:
        """A progress revision that is at least so high, told to that id."""
        told = self.of(watch_id)
        what = f"progress {revision} for {watch_id}"
        self.wait(lambda: bool(told.progress) and told.progress[-1] >= revision, what, seconds)
        return told.progress[-1]

    def wait_end(self, seconds: float = WAIT_SECONDS) -> Refused:
        """The status that the stream ended with (code 0 for OK)."""
        with self._changed:
            self._changed.wait_for(lambda: self.end is not None, seconds)
            assert self.end is not None, f"the stream still lives after {seconds} s"
            return self.end

    # Beneath.

    def _requests(self) -> Iterator[bytes]:
        while (data := self._asked.get()) is not None:
            yield data

    def _read(self) -> None:
        end = Refused(0, "")
        try:
            self._reading.wait()
            for data in self._call:
                self._take(decode("WatchResponse", data))
                self._reading.wait()
        except grpc.RpcError as error:
            end = refused(error)
        except ValueError as error:
            end = Refused(NO_WATCH, f"a response that is not one: {error}")
        with self._changed:
            self.end = end
            self._changed.notify_all()
        self._asked.put(None)

    def _take(self, response: Message) -> None:
        with self._changed:
            self.responses.append(response)
            if response.get("created"):
                self.created.append(response)
            self.told.setdefault(response.get("watch_id", 0), Told()).take(response)
            self._changed.notify_all()

    def _state(self) -> str:
        told = {
            watch_id: (len(one.created), len(one.events), one.revision, len(one.canceled))
            for watch_id, one in sorted(self.told.items())[:20]
        }
        return f"id: (created, events, last revision, canceled) {told}"


def notifying(kind: str, version: tuple[int, int]) -> str:
    """The flag that makes a server tell progress often; its interval is etcd's least."""
    old = "experimental-" if kind == "etcd" and version < (3, 6) else ""
    return f"--{old}watch-progress-notify-interval=100ms"
