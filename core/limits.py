"""Every maximum: its unit and its reason. Relations between them are asserted here, at import."""

from __future__ import annotations

# --- sizes of requests ----------------------------------------------------------------------------
# etcd's default of --max-request-bytes: what one raft proposal may hold.
REQUEST_BYTES_MAX_DEFAULT = 1_572_864
# gRPC messages may be this much larger than a proposal (etcd: grpcOverheadBytes).
GRPC_OVERHEAD_BYTES = 512 * 1024
# etcd's default of --max-txn-ops: operations in one list of a Txn.
TXN_OPS_MAX_DEFAULT = 128
# Above this --max-request-bytes etcd warns.
REQUEST_BYTES_RECOMMENDED_MAX = 10 * 1024 * 1024

# --- flags --------------------------------------------------------------------------------------
# etcd's ceiling of --election-timeout.
ELECTION_MILLISECONDS_MAX = 50_000
# etcd's meaning of --quota-backend-bytes=0, and the size above which it warns.
QUOTA_BYTES_DEFAULT = 2 * 1024**3
QUOTA_BYTES_RECOMMENDED_MAX = 8 * 1024**3
# NOSPACE is cleared when no more than this of the quota is used, so that it does not come back with
# the next few writes.
QUOTA_PERCENT_CLEAR = 90

# --- the background check for damage --------------------------------------------------------------
# A pass over memory, backend file and log: below the minute in which a fault is to be found.
SCRUB_SECONDS = 55.0
# Two percent of a core: a look is what takes about a microsecond.
SCRUB_LOOKS_PER_SECOND_MAX = 20_000

# --- rings ----------------------------------------------------------------------------------------
# A ring holds at least two of the largest requests; a power of two, being mapped twice in a row.
RING_BYTES_MIN = 4 * 1024 * 1024

# The event ring, which all workers read: what a worker that does other things for some milliseconds
# may be behind before it has to ask for what it missed; and several of the largest events.
EVENT_RING_BYTES_MIN = 16 * 1024 * 1024

# --- log ------------------------------------------------------------------------------------------
# etcd's WAL segment.
SEGMENT_BYTES = 64_000_000
# Applied entries that raft keeps in memory for members a little behind, whichever limit comes
# first; who is further behind gets a snapshot.
APPLIED_BYTES_KEPT_MAX = 4 * 1024 * 1024
APPLIED_ENTRIES_KEPT_MAX = 5_000
# Bytes of proposed and not yet applied entries beyond which raft refuses more: what a disk that
# hangs may cost in memory.
UNAPPLIED_BYTES_MAX = 64 * 1024 * 1024

assert RING_BYTES_MIN >= 2 * (REQUEST_BYTES_MAX_DEFAULT + GRPC_OVERHEAD_BYTES) - 128 * 1024

# --- off the hot path -----------------------------------------------------------------------------
# Calls with a Python handler that one worker has under way: each holds a task and its messages.
PYTHON_CALLS_MAX = 1024
# Messages that a client may be ahead of its Python handler on one call.
PYTHON_CALL_MESSAGES_MAX = 64
# Questions to the core that one worker has under way; more is answered `too many requests`.
ASKS_MAX = 1024
# How often a health Watch looks whether its status changed.
HEALTH_WATCH_SECONDS = 1.0

# --- HTTP/1.1 -------------------------------------------------------------------------------------
# Connections of one worker; probes and scrapers need a few, the rest is refused with 503.
HTTP1_CONNECTIONS_MAX = 256
# Request line and headers. Go's own limit is 1 MiB; no probe comes near this.
HTTP1_HEADER_BYTES_MAX = 16 * 1024
# Bodies are read to be thrown away.
HTTP1_BODY_BYTES_MAX = 64 * 1024
# From the first byte of a request to its end, and for a client to take the answer.
HTTP1_REQUEST_SECONDS_MAX = 10.0
# Between two requests on one connection.
HTTP1_IDLE_SECONDS_MAX = 120.0

# --- HTTP/2, of one connection --------------------------------------------------------------------
# etcd's defaults of --grpc-keepalive-min-time, -interval and -timeout, in seconds.
KEEPALIVE_MIN_SECONDS_DEFAULT = 5.0
KEEPALIVE_INTERVAL_SECONDS_DEFAULT = 2 * 3600.0
KEEPALIVE_TIMEOUT_SECONDS_DEFAULT = 20.0
# grpc-go forgives this many early pings before GOAWAY too_many_pings.
PING_STRIKES_MAX = 2
# Open streams. etcd's default is no limit at all; this many clients may share a connection.
STREAMS_MAX = 16_384
# Names, values and 32 bytes each, as HTTP/2 counts: room for a large JWT, not for a bomb.
HEADER_LIST_BYTES_MAX = 16 * 1024
# A block of HEADER_LIST_BYTES_MAX fits in one or two frames; this is nghttp2's default as well.
CONTINUATIONS_MAX = 8
# PING and SETTINGS acknowledgements that wait to be sent.
ACKNOWLEDGEMENTS_MAX = 1_000
# Entries of one SETTINGS frame.
SETTINGS_ENTRIES_MAX = 32
# Streams reset by either side: what a client whose calls all time out at once needs, then a rate
# that costs us less than one percent of a core.
RESETS_BURST = 2_000
RESETS_PER_SECOND = 1_000
# Frames in a row that ask for nothing (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA),
# between any two that carry a request or a reply. Unknown ones cost nothing but their bytes.
IDLE_FRAMES_MAX = 10_000
# Flow control: what a client may send of one call, and of all calls, before we take it.
STREAM_WINDOW_BYTES = 256 * 1024
CONNECTION_WINDOW_BYTES = 4 * 1024 * 1024
# Requests that have begun and are not whole yet; beyond it their streams are reset.
PARTIAL_BYTES_MAX = 64 * 1024 * 1024
# Replies that wait because the client does not take them: first we stop reading, then calls end.
REPLY_BYTES_HIGH = 8 * 1024 * 1024
REPLY_BYTES_MAX = 32 * 1024 * 1024
# Frames of replies that wait in nghttp2 while the socket is full: then we stop reading.
QUEUED_FRAMES_HIGH = 512
# Framed bytes that the socket did not take; nothing more is framed until they are gone.
SEND_BYTES_MAX = 256 * 1024
# A socket must say what it speaks, and a header block must end, within this; an idle connection
# that has said so may stay for ever.
FIRST_BYTES_SECONDS = 30.0
# A client that has replies waiting and takes no byte of them is dropped.
SEND_STALL_SECONDS = 60.0
# What Python-made replies may wait per call before `send_message` asks for patience.
CALL_SEND_BYTES_HIGH = 256 * 1024
CALL_SEND_BYTES_LOW = 64 * 1024

# --- gRPC, of one worker --------------------------------------------------------------------------
# Calls that live at once, over all connections: more streams are refused.
CALLS_MAX = 262_144
# As PARTIAL_BYTES_MAX and REPLY_BYTES_MAX, over all connections.
WORKER_PARTIAL_BYTES_MAX = 512 * 1024 * 1024
WORKER_REPLY_BYTES_MAX = 512 * 1024 * 1024
# etcd's ReqTimeout for --election-timeout=1000: 5 s and two elections.
REQUEST_SECONDS_DEFAULT = 7.0
# One recv; a worker has one such buffer for all its sockets.
RECEIVE_BYTES = 256 * 1024
# What a worker keeps of freed memory: what one round sends to all its clients, and more.
WORKER_FREE_BYTES = 32 * 1024 * 1024
# A turn gives the process back to Python at the latest after this, however busy it is.
TURN_SECONDS_MAX = 0.05
# After "too many open files", how long a worker leaves new connections to the others.
ACCEPT_PAUSE_SECONDS = 0.1

assert PARTIAL_BYTES_MAX >= 16 * (REQUEST_BYTES_MAX_DEFAULT + GRPC_OVERHEAD_BYTES)
assert CONNECTION_WINDOW_BYTES >= 2 * STREAM_WINDOW_BYTES
assert REPLY_BYTES_HIGH < REPLY_BYTES_MAX < WORKER_REPLY_BYTES_MAX
assert CALL_SEND_BYTES_LOW < CALL_SEND_BYTES_HIGH
# One request always fits, however large the flag lets it be by default.
assert UNAPPLIED_BYTES_MAX > REQUEST_BYTES_MAX_DEFAULT

# --- watches, of one worker ----------------------------------------------------------------------
# etcd's default of --watch-progress-notify-interval.
WATCH_PROGRESS_SECONDS_DEFAULT = 600.0
# A shorter interval counts as this one, as in etcd.
WATCH_PROGRESS_SECONDS_MIN = 0.1
# Watchers of one connection, about 200 bytes each; etcd has no limit.
WATCHERS_PER_CONNECTION_MAX = 200_000
# What may wait for a stream, and for a connection, before its watchers are read for by the core
# instead; the core goes on with a stream when so little waits. One event for all the watchers of a
# connection must fit.
WATCH_SEND_BYTES_HIGH = 4 * 1024 * 1024
WATCH_SEND_BYTES_LOW = 64 * 1024
WATCH_CONNECTION_BYTES_HIGH = 16 * 1024 * 1024
# When so much waits for all clients of a worker, a stream gets no more than WATCH_SEND_BYTES_LOW.
WATCH_WORKER_BYTES_HIGH = 64 * 1024 * 1024
# Larger messages are made by the core, in slices; a larger revision is not gathered by a worker.
WATCH_MESSAGE_BYTES_MAX = 256 * 1024
WATCH_REVISION_BYTES_MAX = 4 * 1024 * 1024
# Pairs of an event and a range that it concerns, of one revision; 16 bytes each.
WATCH_NOTES_MAX = 1_048_576

# What the core copies of a message for a slow client that compaction would have to wait for: any
# revision that one request of puts can make; and all such copies together. Beyond it compaction
# waits, LONG_REPLY_SECONDS_MAX at the most.
CATCH_UP_COPY_BYTES_MAX = 2 * 1024 * 1024
CATCH_UP_COPIES_BYTES_MAX = 64 * 1024 * 1024

assert WATCH_SEND_BYTES_LOW < WATCH_SEND_BYTES_HIGH < WATCH_CONNECTION_BYTES_HIGH
assert WATCH_CONNECTION_BYTES_HIGH < REPLY_BYTES_MAX
assert WATCH_MESSAGE_BYTES_MAX < WATCH_SEND_BYTES_HIGH

# --- checkpoints ---------------------------------------------------------------------------------
# A checkpoint is due after so many bytes of the log, whatever --snapshot-count says: what a restart
# reads of the log, and how much of the values is not in the file yet. Half a second of either.
CHECKPOINT_LOG_BYTES = 64 * 1024 * 1024
# After so many entries alone not sooner than this after the one before: its syncs are not free.
CHECKPOINT_PAUSE_SECONDS = 1.0
# And not sooner than if what it wrote beyond what the log did had been written at this rate: 10,000
# changes of a million leases with random ids write all of these anew, 43 MB.
CHECKPOINT_BYTES_PER_SECOND = 16 * 1024 * 1024
# After one that failed.
CHECKPOINT_RETRY_SECONDS = 30.0
# Leaves of so many bytes take several pages in a row, and less than a hundredth is lost at ends.
LEAF_BYTES = 64 * 1024
# A file is written anew when more than half of it, and more than this, is garbage.
GARBAGE_BYTES_MIN = 16 * 1024 * 1024
# Leaves of leases: a checkpoint writes those anew in which a lease changed, and all branches over
# them. With a million leases the branches are 150 KB; larger leaves make those of few changes dear.
LEASE_LEAF_BYTES = 8 * 1024
# Changes of leases that are noted for the next checkpoint, 32 bytes each: so many, or a quarter of
# the leases if that is more. Where more of them change, few leaves would stay as they are.
LEASE_CHANGES_MIN = 65536
# Address space kept for a backend file, which is mapped only as far as it reaches.
BACKEND_REACH_MIN = 64 * 1024 * 1024 * 1024

# --- counters -------------------------------------------------------------------------------------
# Counters of one worker in shared memory, 16 KiB: 20 for each method and some of the worker itself.
WORKER_COUNTERS_MAX = 2048
# The last of them say what is alive now: they are forgotten when their worker dies.
WORKER_GAUGES_MAX = 8
# How old the counts of other workers in /metrics may be.
COUNTERS_PUBLISH_SECONDS = 1.0
# After so many connections have gone, a worker gives the memory that they had back to the kernel.
GONE_CONNECTIONS_MAX = 1000

# --- workers --------------------------------------------------------------------------------------
# How long a turn of the pump may wait for more before the process goes back to trio.
LINGER_SECONDS = 0.001
# How long a worker that is told to stop goes on answering what is under way; less than the core
# waits for it.
DRAIN_SECONDS_MAX = 0.8

# --- long replies ---------------------------------------------------------------------------------
# A list keeps the revision it reads from being compacted away. One whose revision was compacted
# meanwhile is given up after this: its client takes less than 500 KB/s of a reply of 300 MB.
LONG_REPLY_SECONDS_MAX = 600.0

# --- snapshots ------------------------------------------------------------------------------------
# States of the backend file that clients read at once. Most are the same file; but one that was
# written anew since keeps its room on the disk. Who comes when all are in use waits.
SNAPSHOT_FILES_MAX = 8
# Clients of Snapshot at once, in all workers: each costs its worker CALL_SEND_BYTES_HIGH and
# what is read ahead, below 2 MiB, and the core a pipe. More are answered `too many requests`.
SNAPSHOT_STREAMS_MAX = 64
# How long a client may wait for its file to be made, and for others' to be returned before.
SNAPSHOT_SECONDS_MAX = 600.0
# One message, where etcd has 32 KiB: more than a call may have waiting, so that each one is asked
# for as soon as the client has taken most of the one before; any client takes 4 MiB.
SNAPSHOT_PIECE_BYTES = 512 * 1024
# Messages that are read before they can be sent.
SNAPSHOT_PIECES_AHEAD = 2

assert CALL_SEND_BYTES_HIGH < SNAPSHOT_PIECE_BYTES < REPLY_BYTES_HIGH

# --- leases ---------------------------------------------------------------------------------------
# Memory of replies that tell of leases and their keys, all of them together: 16 bytes for each of a
# million leases, and of the keys of one lease their bytes. Who comes when it is used up waits.
LEASE_REPLIES_BYTES_MAX = 64 * 1024 * 1024
# Keep-alives of one stream that the core has not answered yet; what comes after them waits at the
# client. More than what comes in one read of a socket is never needed to keep the core busy.
STREAM_REQUESTS_MAX = 512
