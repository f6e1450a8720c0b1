# cython: language_level=3
"""The layout of request and reply records: what workers and core say to each other in the rings.

A record is a header and then `ring record size - header size` payload bytes.

Request, worker -> core. The payload of a KV or Lease request is the protobuf message as the client
sent it (checked by the worker, and again here, because the core trusts nothing that a worker
writes).

    METHOD_CANCEL   the asker is gone: drop what is still to be sent; no payload, no answer
    METHOD_PULL     the worker took `credit` more bytes of this long reply: send as many again
    METHOD_ADMIN    `extra` is an Admin call; payload as that call defines it; answered by Python
    METHOD_WATCH    a CatchUpRequest, then key and range end: what one watcher has missed, from a
                    revision on. Messages as its stream gets them; then END alone, whose `extra` is
                    the revision up to which the watcher has everything; or ERROR_COMPACTED with the
                    compacted revision
    METHOD_FOLLOW   all events from the revision `extra` on; payload: 1 byte, whether with previous
                    key-values. Messages are whole records of the event ring; the last one, with
                    END, is a FollowEnd instead; or ERROR_COMPACTED
    METHOD_UNFOLLOW this worker reads the event ring no more; no answer

A keep-alive's request id is that of its stream, which may have many under way; they are answered
in their order, each by a whole message without END, and an error by END.

Reply, core -> worker. A reply is one or more messages of the method's response type (one for unary
calls), each in one or more slices, and one record is one slice. FIRST starts a message and `extra`
is its whole size; LAST ends it; END ends the call, with `error` 0 or an ErrorId; END alone carries
no message. Of a long reply the core sends at most REPLY_WINDOW bytes more than the worker pulled.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum Method:
    METHOD_NONE = 0
    METHOD_RANGE = 1
    METHOD_PUT = 2
    METHOD_DELETE_RANGE = 3
    METHOD_TXN = 4
    METHOD_COMPACT = 5
    METHOD_RANGE_STREAM = 6
    METHOD_HASH_KV = 7
    METHOD_HASH = 8
    METHOD_LEASE_GRANT = 16
    METHOD_LEASE_REVOKE = 17
    METHOD_LEASE_KEEP_ALIVE = 18
    METHOD_LEASE_TIME_TO_LIVE = 19
    METHOD_LEASE_LEASES = 20
    METHOD_LEASE_CHECKPOINT = 21    # the core's own, in the log alone
    METHOD_CANCEL = 64
    METHOD_PULL = 65
    METHOD_ADMIN = 66
    METHOD_WATCH = 67
    METHOD_FOLLOW = 68
    METHOD_UNFOLLOW = 69


cdef enum ReplyFlag:
    REPLY_FIRST = 1
    REPLY_LAST = 2
    REPLY_END = 4
    REPLY_WHOLE = 7         # all three: a short unary reply in one record


cdef enum:
    # Bytes of one long reply that may be under way between core and worker.
    REPLY_WINDOW = 131072
    # A slice is at most this long, so that the core turns to other requests in between.
    REPLY_SLICE_MAX = 65536


cdef struct Request:
    uint64_t request_id     # chosen by the worker, unique while the call lives
    uint64_t extra          # METHOD_PULL: credit in bytes; METHOD_ADMIN: the Admin call
    uint32_t method
    uint32_t reserved       # zero


cdef struct Reply:
    uint64_t request_id
    uint64_t extra          # FIRST: size of the whole message in bytes
    uint16_t flags
    uint16_t error          # ErrorId; 0 = none; only with END
    uint32_t reserved       # zero


cdef enum WatchFlag:
    WATCH_NO_PUT = 1
    WATCH_NO_DELETE = 2
    WATCH_PREVIOUS = 4
    WATCH_FRAGMENT = 8


cdef struct CatchUpRequest:
    int64_t watch_id
    int64_t revision        # of the first event wanted
    uint32_t flags          # WatchFlag
    uint32_t key_size       # the rest of the payload is the range's end


cdef struct FollowEnd:
    int64_t revision        # all events up to it were sent
    uint64_t position       # where in the event ring those after it begin
