"""A small gRPC client for tests: grpcio with bytes in and out, and errors as code and text.

Rules:
1. Messages are the dicts of `tests.messages`; nothing of quorate is used.
2. Every call has a deadline, so that a server that does not answer fails a test and never hangs it.
3. A client has a connection of its own: two clients never share one.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import grpc  # type: ignore[import-untyped]

from tests.messages import Message, decode, encode, method

CALL_SECONDS = 30.0
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
    ("grpc.enable_http_proxy", 0),
]
# The codes after which a write may or may not have happened.
UNCERTAIN = frozenset({1, 2, 4, 14})


class Refused(Exception):
    """An RPC ended with a status other than OK."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


def refused(error: grpc.RpcError) -> Refused:
    """The same as grpcio's error, in two fields."""
    return Refused(error.code().value[0], error.details() or "")


def _given(**fields: bytes) -> Message:
    """Fields that are not empty: an empty range_end on the wire is open to etcds before 3.7."""
    return {name: value for name, value in fields.items() if value}


class Pending:
    """A call under way."""

    def __init__(self, reply: str, future: Any) -> None:
        self._reply = reply
        self._future = future

    def result(self) -> Message:
        """The reply; raises Refused."""
        return decode(self._reply, self.result_bytes())

    def result_bytes(self) -> bytes:
        """The reply's bytes; raises Refused."""
        try:
            data: bytes = self._future.result()
        except grpc.RpcError as error:
            raise refused(error) from None
        except grpc.FutureCancelledError:
            raise Refused(1, "cancelled here") from None
        return data

    def cancel(self) -> None:
        """Take the call back."""
        self._future.cancel()

    def done(self) -> bool:
        """Whether it has a reply or a status."""
        return bool(self._future.done())


class Client:
    """One connection to a server at `127.0.0.1:port`."""

    def __init__(self, port: int, *options: tuple[str, object]) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[*OPTIONS, *options])
        self._unary: dict[str, Any] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def wait_connected(self, seconds: float = CALL_SECONDS) -> None:
        """Return once the connection stands; raises grpc.FutureTimeoutError."""
        grpc.channel_ready_future(self._channel).result(timeout=seconds)

    def start_bytes(self, path: str, data: bytes, seconds: float = CALL_SECONDS) -> Any:
        """grpcio's future of a unary call, bytes in and out."""
        call = self._unary.get(path)
        if call is None:
            call = self._unary[path] = self._channel.unary_unary(path)
        return call.future(data, timeout=seconds)

    def start(
        self, name: str, message: Message | None = None, *, seconds: float = CALL_SECONDS
    ) -> Pending:
        """Begin a unary call (`KV/Put`)."""
        rpc = method(name)
        data = encode(rpc.request, message or {})
        return Pending(rpc.reply, self.start_bytes(rpc.path, data, seconds))

    def call(
        self, name: str, message: Message | None = None, *, seconds: float = CALL_SECONDS
    ) -> Message:
        """Make a unary call (`KV/Put`) and return its reply; raises Refused."""
        return self.start(name, message, seconds=seconds).result()

    def stream(
        self, name: str, messages: Iterable[Message], *, seconds: float = CALL_SECONDS
    ) -> Iterator[Message]:
        """The replies of a call that streams on either side; raises Refused."""
        rpc = method(name)
        requests = (encode(rpc.request, message) for message in messages)
        for data in self.stream_bytes(rpc.path, requests, seconds):
            yield decode(rpc.reply, data)

    def stream_bytes(self, path: str, requests: Iterable[bytes], seconds: float) -> Iterator[bytes]:
        """The same with bytes in and out."""
        replies = self.open(path, requests, seconds)
        try:
            yield from replies
        except grpc.RpcError as error:
            raise refused(error) from None
        finally:
            replies.cancel()

    def open(self, path: str, requests: Iterable[bytes], seconds: float) -> Any:
        """grpcio's call of a stream, bytes in and out: to iterate over, and to cancel."""
        return self._channel.stream_stream(path)(iter(requests), timeout=seconds)

    # The calls that tests write most.

    def put(self, key: bytes, value: bytes = b"", **fields: object) -> Message:
        """KV/Put."""
        return self.call("KV/Put", {"key": key, **_given(value=value), **fields})

    def get(self, key: bytes, range_end: bytes = b"", **fields: object) -> Message:
        """KV/Range."""
        return self.call("KV/Range", {"key": key, **_given(range_end=range_end), **fields})

    def delete(self, key: bytes, range_end: bytes = b"", **fields: object) -> Message:
        """KV/DeleteRange."""
        return self.call("KV/DeleteRange", {"key": key, **_given(range_end=range_end), **fields})

    def txn(
        self,
        compare: list[Message] | None = None,
        success: list[Message] | None = None,
        failure: list[Message] | None = None,
    ) -> Message:
        """KV/Txn."""
        return self.call(
            "KV/Txn",
            {"compare": compare or [], "success": success or [], "failure": failure or []},
        )

    def revision(self) -> int:
        """The store's current revision."""
        return int(self.get(b"\0", count_only=True)["header"]["revision"])

    def all(self) -> list[Message]:
        """Every key and value."""
        kvs: list[Message] = self.get(b"\0", b"\0").get("kvs", [])
        return kvs
