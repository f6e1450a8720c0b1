"""Every expected error: its gRPC code and etcd's exact text, which clients match.

Rules:
1. An error here is an answer to a client and changes nothing. A broken invariant is an
   `AssertionError` or a `Fatal` and stops the process.
2. `id` names the error in ring records; `core/_errors.pxd` holds the same numbers for Cython, and a
   test compares them. An id is never reused.

Source of codes and texts: etcd's api/v3rpc/rpctypes/error.go; grpc-go for those that begin `grpc:`.
"""

from __future__ import annotations

from typing import ClassVar

from grpclib.const import Status


class Fatal(Exception):
    """The server can't go on (a broken file, a failed disk): one clear line, then exit 1."""


class EtcdError(Exception):
    """An expected error: what the client is told, and nothing changes."""

    id: ClassVar[int] = 0
    code: ClassVar[Status] = Status.UNKNOWN
    text: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__(self.text)


class EmptyKeyError(EtcdError):
    """`etcdserver: key is not provided`."""

    id = 1
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: key is not provided"


class KeyNotFoundError(EtcdError):
    """`etcdserver: key not found`."""

    id = 2
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: key not found"


class ValueProvidedError(EtcdError):
    """`etcdserver: value is provided`."""

    id = 3
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: value is provided"


class LeaseProvidedError(EtcdError):
    """`etcdserver: lease is provided`."""

    id = 4
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: lease is provided"


class TooManyOpsError(EtcdError):
    """`etcdserver: too many operations in txn request`."""

    id = 5
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: too many operations in txn request"


class DuplicateKeyError(EtcdError):
    """`etcdserver: duplicate key given in txn request`."""

    id = 6
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: duplicate key given in txn request"


class InvalidSortOptionError(EtcdError):
    """`etcdserver: invalid sort option`."""

    id = 7
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: invalid sort option"


class RequestTooLargeError(EtcdError):
    """`etcdserver: request is too large`."""

    id = 8
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: request is too large"


class InvalidClientApiVersionError(EtcdError):
    """`etcdserver: invalid client api version`."""

    id = 9
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: invalid client api version"


class CompactedError(EtcdError):
    """`etcdserver: mvcc: required revision has been compacted`."""

    id = 10
    code = Status.OUT_OF_RANGE
    text = "etcdserver: mvcc: required revision has been compacted"


class FutureRevisionError(EtcdError):
    """`etcdserver: mvcc: required revision is a future revision`."""

    id = 11
    code = Status.OUT_OF_RANGE
    text = "etcdserver: mvcc: required revision is a future revision"


class LeaseNotFoundError(EtcdError):
    """`etcdserver: requested lease not found`."""

    id = 12
    code = Status.NOT_FOUND
    text = "etcdserver: requested lease not found"


class NoSpaceError(EtcdError):
    """`etcdserver: mvcc: database space exceeded`."""

    id = 13
    code = Status.RESOURCE_EXHAUSTED
    text = "etcdserver: mvcc: database space exceeded"


class TooManyRequestsError(EtcdError):
    """`etcdserver: too many requests`."""

    id = 14
    code = Status.UNKNOWN
    text = "etcdserver: too many requests"


class NoLeaderError(EtcdError):
    """`etcdserver: no leader`."""

    id = 15
    code = Status.UNAVAILABLE
    text = "etcdserver: no leader"


class LeaderChangedError(EtcdError):
    """`etcdserver: leader changed`."""

    id = 16
    code = Status.UNAVAILABLE
    text = "etcdserver: leader changed"


class StoppedError(EtcdError):
    """`etcdserver: server stopped`."""

    id = 17
    code = Status.UNAVAILABLE
    text = "etcdserver: server stopped"


class TimeoutError(EtcdError):
    """`etcdserver: request timed out`."""

    id = 18
    code = Status.UNAVAILABLE
    text = "etcdserver: request timed out"


class TimeoutAppliedError(EtcdError):
    """`etcdserver: request timed out, waiting for the applied index took too long`."""

    id = 19
    code = Status.UNAVAILABLE
    text = "etcdserver: request timed out, waiting for the applied index took too long"


class CorruptError(EtcdError):
    """`etcdserver: corrupt cluster`."""

    id = 20
    code = Status.DATA_LOSS
    text = "etcdserver: corrupt cluster"


class MemberNotFoundError(EtcdError):
    """`etcdserver: member not found`."""

    id = 21
    code = Status.NOT_FOUND
    text = "etcdserver: member not found"


class InvalidAlarmActionError(EtcdError):
    """`etcdserver: invalid alarm action`."""

    id = 22
    code = Status.INVALID_ARGUMENT
    text = "etcdserver: invalid alarm action"


class MalformedError(EtcdError):
    """`grpc: error unmarshalling request: proto: cannot parse invalid wire-format data`."""

    id = 23
    code = Status.INTERNAL
    text = "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"


class TooDeepError(EtcdError):
    """`grpc: error unmarshalling request: proto: exceeded maximum recursion depth`."""

    id = 24
    code = Status.INTERNAL
    text = "grpc: error unmarshalling request: proto: exceeded maximum recursion depth"


class RangeStreamSortError(EtcdError):
    """`RangeStream does not support custom sort orders`."""

    id = 25
    code = Status.UNIMPLEMENTED
    text = "RangeStream does not support custom sort orders"


class RangeStreamFilterError(EtcdError):
    """`RangeStream does not support revision filters`."""

    id = 26
    code = Status.UNIMPLEMENTED
    text = "RangeStream does not support revision filters"


class ReplyTooLargeError(EtcdError):
    """`grpc: trying to send message larger than max (2147483647)`."""

    id = 27
    code = Status.RESOURCE_EXHAUSTED
    text = "grpc: trying to send message larger than max (2147483647)"


class ListAbandonedError(EtcdError):
    """`etcdserver: the client read this reply too slowly and it was dropped`."""

    id = 28
    code = Status.ABORTED
    text = "etcdserver: the client read this reply too slowly and it was dropped"


class DeadlineExceededError(EtcdError):
    """`context deadline exceeded`."""

    id = 29
    code = Status.DEADLINE_EXCEEDED
    text = "context deadline exceeded"


class CanceledError(EtcdError):
    """`etcdserver: request canceled`."""

    id = 30
    code = Status.CANCELLED
    text = "etcdserver: request canceled"


class NotImplementedError(EtcdError):
    """`etcdserver: not implemented`."""

    id = 31
    code = Status.UNIMPLEMENTED
    text = "etcdserver: not implemented"


class LeaseExistsError(EtcdError):
    """`etcdserver: lease already exists`."""

    id = 32
    code = Status.FAILED_PRECONDITION
    text = "etcdserver: lease already exists"


class LeaseTtlTooLargeError(EtcdError):
    """`etcdserver: too large lease TTL`."""

    id = 33
    code = Status.OUT_OF_RANGE
    text = "etcdserver: too large lease TTL"


class SnapshotFailedError(EtcdError):
    """`etcdserver: the snapshot could not be made; the server's log says why`."""

    id = 34
    code = Status.INTERNAL
    text = "etcdserver: the snapshot could not be made; the server's log says why"


BY_ID: dict[int, type[EtcdError]] = {error.id: error for error in EtcdError.__subclasses__()}
