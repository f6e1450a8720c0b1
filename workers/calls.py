"""gRPC calls with Python handlers: grpclib's service contract over the pump.

Rules:
1. A handler runs in a task of its own and sees a `Call`, which has the surface of
   `grpclib.server.Stream`; the pump is only told what to send, and the worker is woken to send it.
2. Every call ends exactly once: by `finish` of the pump, or by the client's reset, after which
   nothing more is sent.
3. EtcdError and GRPCError are answers. Any other exception is ours: it is logged, the client is
   told `Internal`, and no other call feels it.
4. Everything is bounded: calls under way, messages that wait for a handler, questions to the core
   and their time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Protocol

import trio
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError, ProtocolError
from multidict import MultiDict

from quorate.api.decoding import decode
from quorate.core.admincalls import AdminCall
from quorate.core.errors import (
    BY_ID,
    DeadlineExceededError,
    EtcdError,
    NotImplementedError,
    StoppedError,
    TimeoutError,
    TooManyRequestsError,
)
from quorate.core.limits import (
    ASKS_MAX,
    CALL_SEND_BYTES_HIGH,
    PYTHON_CALL_MESSAGES_MAX,
    PYTHON_CALLS_MAX,
    REQUEST_SECONDS_DEFAULT,
)
from quorate.core.logs import Logger
from quorate.frontends.counters import HANDLED, RECEIVED, SENT, STARTED, Counters
from quorate.frontends.methods import METHODS, unknown_method_text

REPLY_END = 4  # as in core/_record.pxd
TIMEOUT_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
# One message of the channel: the question's id, and what comes with its answer.
ASK_ID_BYTES = 8
DESCRIPTORS_MAX = 4
INTERNAL_TEXT = "quorate: internal error; the server's log says more"


class Pump(Protocol):
    """What calls need of `workers/_pump.pyx`."""

    def send_message(self, call_id: int, message: bytes) -> int:
        """Send one message on a call; the bytes that wait for the client, -1 if it is over.

        Above CALL_SEND_BYTES_HIGH the call gets a DRAINED event when the client has taken most.
        """

    def finish(
        self, call_id: int, status: int, message: str, trailers: list[tuple[str, str]]
    ) -> None:
        """End a call with its status."""

    def ask(self, call: int, payload: bytes) -> int:
        """Ask the core; the id of the question."""

    def cancel_ask(self, ask_id: int) -> None:
        """Take a question back."""


class Deadline:
    """When a call must have ended, by trio's clock."""

    def __init__(self, at: float) -> None:
        self.at = at

    def time_remaining(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self.at - trio.current_time())


class Core:
    """Asks the core process, which answers through the pump, and with descriptors over `channel`.

    A descriptor comes before the answer that it belongs to, with the id of the question.
    """

    def __init__(
        self, pump: Pump, wake: Callable[[], None], channel: socket.socket | None = None
    ) -> None:
        self._pump = pump
        self._wake = wake
        self._channel = channel
        self._asks: dict[int, Ask] = {}

    @property
    def asks(self) -> int:
        """How many questions wait for their answer."""
        return len(self._asks)

    async def ask(self, call: AdminCall, payload: bytes = b"") -> bytes:
        """The core's answer. Raises the EtcdError that it answers, or TimeoutError."""
        ask = await self._ask(call, payload, REQUEST_SECONDS_DEFAULT)
        assert not ask.descriptors, f"descriptors that nobody asked for came with {call!r}"
        return bytes(ask.reply)

    async def ask_for_descriptors(
        self, call: AdminCall, payload: bytes, seconds: float
    ) -> tuple[bytes, list[int]]:
        """The core's answer and the descriptors with it, which the caller closes.

        Raises the EtcdError that it answers, or TimeoutError after `seconds`.
        """
        ask = await self._ask(call, payload, seconds)
        return bytes(ask.reply), ask.descriptors

    async def _ask(self, call: AdminCall, payload: bytes, seconds: float) -> Ask:
        if len(self._asks) >= ASKS_MAX:
            raise TooManyRequestsError
        ask = Ask()
        ask_id = self._pump.ask(call, payload)
        self._asks[ask_id] = ask
        self._wake()
        try:
            with trio.move_on_after(seconds):
                await ask.answered.wait()
        except BaseException:
            ask.close()
            raise
        finally:
            del self._asks[ask_id]
            if not ask.answered.is_set():
                self._pump.cancel_ask(ask_id)
                self._wake()
        if not ask.answered.is_set():
            ask.close()
            raise TimeoutError
        if ask.error:
            ask.close()
            raise BY_ID[ask.error]
        return ask

    def on_reply(self, ask_id: int, flags: int, error: int, payload: bytes) -> None:
        """A slice of an answer came; of a question that was taken back, nobody cares."""
        ask = self._asks.get(ask_id)
        if ask is None:
            return
        ask.reply += payload
        if flags & REPLY_END:
            self.receive()
            ask.error = error
            ask.answered.set()

    def receive(self) -> None:
        """Take the descriptors that have come, and close those that nobody waits for."""
        if self._channel is None:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(
                    self._channel, ASK_ID_BYTES, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
                )
                if not message:
                    self._channel = None
                    return
                ask = self._asks.get(int.from_bytes(message, "little"))
                if ask is not None:
                    ask.descriptors += descriptors
                    continue
                for descriptor in descriptors:
                    os.close(descriptor)

    async def receive_forever(self) -> None:
        """Take descriptors whenever they come, so that none waits whose question is over."""
        while self._channel is not None:
            await trio.lowlevel.wait_readable(self._channel)
            self.receive()


class Ask:
    """A question that waits for its answer."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.reply = bytearray()
        self.error = 0
        self.descriptors: list[int] = []

    def close(self) -> None:
        """Nobody wants what came."""
        while self.descriptors:
            os.close(self.descriptors.pop())


class Call:
    """One call, with the surface of `grpclib.server.Stream`."""

    def __init__(
        self,
        calls: Calls,
        call_id: int,
        path: str,
        metadata: Iterable[tuple[str, str]],
    ) -> None:
        self.metadata: MultiDict[str] = MultiDict(metadata)
        self.user_agent = self.metadata.get("user-agent")
        self.deadline: Deadline | None = None
        self.path = path
        self.scope = trio.CancelScope()
        self._calls = calls
        self._id = call_id
        self._handler: Handler = calls.handlers[path]
        self._messages: deque[bytes] = deque()
        self._half_closed = False
        self._arrived = trio.Event()
        self._drained = trio.Event()
        self._received = 0
        self._sent = 0
        self._ended = False
        self._trailers: list[tuple[str, str]] = []
        self._status: tuple[Status, str] | None = None
        seconds = parse_timeout(self.metadata.get("grpc-timeout", ""))
        if seconds is not None:
            self.deadline = Deadline(trio.current_time() + seconds)
            self.scope.deadline = self.deadline.at

    async def recv_message(self) -> Any:
        """The next message; None after the last one. Raises EtcdError or GRPCError."""
        while not self._messages and not self._half_closed:
            self._arrived = trio.Event()
            await self._arrived.wait()
        if self._messages:
            self._received += 1
            message = decode(self._handler.request_type, self._messages.popleft())
            self._count(RECEIVED)
            return message
        if not self._handler.cardinality.client_streaming and self._received == 0:
            # grpc-go tells of its reader's end of file.
            raise GRPCError(Status.UNKNOWN, "EOF")
        return None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send_initial_metadata(
        self, *, metadata: Mapping[str, str] | Iterable[tuple[str, str]] | None = None
    ) -> None:
        """Do nothing: the pump sends the headers with the first message, and etcd adds none."""
        assert not metadata, f"{self.path}: initial metadata can't be sent"
        await trio.lowlevel.checkpoint()

    async def send_message(self, message: Any) -> None:
        """Send a message; a unary call has one."""
        if self._status is not None:
            raise ProtocolError("Trailing metadata was already sent")
        if self._sent and not self._handler.cardinality.server_streaming:
            raise ProtocolError("Message was already sent")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sent += 1
        self._count(SENT)
        waiting = self._calls.pump.send_message(self._id, bytes(message))
        self._calls.wake()
        if waiting > CALL_SEND_BYTES_HIGH:
            self._drained = trio.Event()
            await self._drained.wait()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def send_trailing_metadata(
        self,
        *,
        status: Status = Status.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    ) -> None:
        """Say how the call ends; it ends when the handler returns."""
        if self._status is not None:
            raise ProtocolError("Trailing metadata was already sent")
        assert status_details is None, f"{self.path}: etcd sends no status details"
        await trio.lowlevel.checkpoint()
        self._status = (status, status_message or "")
        pairs = metadata.items() if isinstance(metadata, Mapping) else metadata or ()
        self._trailers = list(pairs)

    async def cancel(self) -> None:
        """Drop the call without a status of its own."""
        self.scope.cancel()
        await trio.lowlevel.checkpoint()

    def on_message(self, message: bytes) -> None:
        """A message came in; a client that is too far ahead of the handler loses the call."""
        if len(self._messages) >= PYTHON_CALL_MESSAGES_MAX:
            self.end(Status.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
            self.scope.cancel()
            return
        self._messages.append(message)
        self._arrived.set()

    def on_drained(self) -> None:
        """The client has taken most of what waited for it."""
        self._drained.set()

    def on_half_closed(self) -> None:
        """The client sent its last message."""
        self._half_closed = True
        self._arrived.set()

    def on_reset(self) -> None:
        """The client is gone: nothing is sent any more."""
        self._ended = True
        self._count(HANDLED + Status.CANCELLED.value)
        self.scope.cancel()

    def end(self, status: Status, text: str = "") -> None:
        """Send the status, unless the call has ended already."""
        if self._ended:
            return
        self._ended = True
        self._count(HANDLED + status.value)
        self._calls.pump.finish(self._id, status.value, text, self._trailers)
        self._calls.wake()

    async def run(self) -> None:
        """Run the handler and send how it ended."""
        try:
            with self.scope:
                await self._run_handler()
            if not self._ended:
                self.end(*self._canceled_status())
        finally:
            # The worker itself ends: whoever waits is told so.
            self.end(StoppedError.code, StoppedError.text)
            self._calls.forget(self._id)

    async def _run_handler(self) -> None:
        try:
            await self._handler.func(self)
        except EtcdError as error:
            self.end(error.code, error.text)
        except GRPCError as error:
            self.end(error.status, error_text(error))
        except Exception:
            self._log("a handler failed", traceback.format_exc())
            self.end(Status.INTERNAL, INTERNAL_TEXT)
        else:
            status, text = self._status or (Status.OK, "")
            if status is Status.OK and not self._sent and self.needs_reply:
                self._log("a handler sent no reply", "")
                status, text = Status.INTERNAL, INTERNAL_TEXT
            self.end(status, text)

    def _log(self, message: str, error: str) -> None:
        self._calls.logger.error(message, method=self.path, error=error)

    def _count(self, index: int) -> None:
        self._calls.counters.methods[self.path][index] += 1

    @property
    def needs_reply(self) -> bool:
        """Whether one reply ends the call."""
        return not self._handler.cardinality.server_streaming

    def _canceled_status(self) -> tuple[Status, str]:
        if self.deadline is not None and self.deadline.time_remaining() == 0.0:
            return DeadlineExceededError.code, DeadlineExceededError.text
        return Status.CANCELLED, "context canceled"


class Calls:
    """All calls of one worker that have Python handlers."""

    def __init__(
        self,
        pump: Pump,
        handlers: Mapping[str, Handler],
        nursery: trio.Nursery,
        wake: Callable[[], None],
        counters: Counters,
        logger: Logger,
    ) -> None:
        self.pump = pump
        self.handlers = handlers
        self.wake = wake
        self.counters = counters
        self.logger = logger
        self._nursery = nursery
        self._calls: dict[int, Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def replies_due(self) -> int:
        """How many calls will end by themselves: streams may never do."""
        return sum(call.needs_reply for call in self._calls.values())

    def on_call(self, call_id: int, path: str, metadata: Iterable[tuple[str, str]]) -> None:
        """A call came in: start its handler, or refuse it."""
        if path in METHODS:
            self.counters.methods[path][STARTED] += 1
        if path not in self.handlers:
            self._refuse_unknown(call_id, path)
        elif len(self._calls) >= PYTHON_CALLS_MAX:
            self._refuse(call_id, path, TooManyRequestsError.code, TooManyRequestsError.text)
        else:
            call = Call(self, call_id, path, metadata)
            self._calls[call_id] = call
            self._nursery.start_soon(call.run, name=path)

    def on_message(self, call_id: int, message: bytes) -> None:
        """A message of a call; one that has ended gets no more."""
        if call_id in self._calls:
            self._calls[call_id].on_message(message)

    def on_drained(self, call_id: int) -> None:
        """A slow client has caught up."""
        if call_id in self._calls:
            self._calls[call_id].on_drained()

    def end_streams(self) -> None:
        """End the calls that may never end by themselves: the worker drains."""
        for call in self._calls.values():
            if not call.needs_reply:
                call.end(StoppedError.code, StoppedError.text)
                call.scope.cancel()

    def on_half_closed(self, call_id: int) -> None:
        """The client's side of a call is complete."""
        if call_id in self._calls:
            self._calls[call_id].on_half_closed()

    def on_reset(self, call_id: int) -> None:
        """The client dropped a call, or its connection broke."""
        if call_id in self._calls:
            self._calls[call_id].on_reset()

    def forget(self, call_id: int) -> None:
        """A call's task has ended."""
        del self._calls[call_id]

    def _refuse_unknown(self, call_id: int, path: str) -> None:
        if path in METHODS:
            self._refuse(call_id, path, NotImplementedError.code, NotImplementedError.text)
        else:
            self._refuse(call_id, path, Status.UNIMPLEMENTED, unknown_method_text(path))

    def _refuse(self, call_id: int, path: str, status: Status, text: str) -> None:
        if path in METHODS:
            self.counters.methods[path][HANDLED + status.value] += 1
        self.pump.finish(call_id, status.value, text, [])
        self.wake()


def error_text(error: GRPCError) -> str:
    """The text of a GRPCError; the generated bases say UNIMPLEMENTED without one."""
    if error.message is None and error.status is Status.UNIMPLEMENTED:
        return NotImplementedError.text
    return error.message or ""


def parse_timeout(text: str) -> float | None:
    """`grpc-timeout` in seconds; None for none (the pump refuses what is malformed)."""
    digits, unit = text[:-1], text[-1:]
    if not (digits.isascii() and digits.isdigit()) or unit not in TIMEOUT_UNITS:
        return None
    return int(digits) * TIMEOUT_UNITS[unit]
