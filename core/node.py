"""One member: drives raft, the log and the store, and answers the workers. Synchronous; the world is its arguments.

A turn, from the requests in the rings to the replies in the rings:

    drain      take what gathered: one run of entries, the reads, what Python answers       (_batch)
    propose    the run goes to raft, the reads ask for their index                          (raft)
    store      what raft wants stored is appended; a sync begins unless one is under way    (_wal)
    apply      what raft says is committed is applied, and those who wait are answered      (_apply)
    serve      reads whose index is applied are answered                                    (_batch)
    tidy       a step of compaction, a slice of each long reply, and the replies go out     (_port)

Rules:
1. One sync is under way at most. What comes meanwhile gathers and is the next sync's: batches grow with the load, there is
   no timer.
2. The sync runs in the log's own thread, so that this turn applies and answers what the last sync made durable; but when
   one request is all there is, nobody gains by that and the sync runs here, two thread switches cheaper.
3. A failed write or sync raises out of `turn` and ends the process: nothing is retried, nothing more is acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ._apply import Applier
from ._batch import Batch
from ._mvcc import Store
from ._port import Port
from ._run import Run
from ._wal import Wal
from .errors import EtcdError, Fatal, LeaderChangedError, MalformedError
from .logs import Logger
from .members import Members
from .messages import (
    AlarmMember,
    AlarmRequest,
    AlarmType,
    EntryType,
    InternalRaftRequest,
    RequestHeader,
    decode_request,
)
from .protobuf import fields
from .raft import Raft, Ready

# A run of at most this many entries is synced in the turn itself when nothing else waits; see rule 2.
LONE_ENTRIES_MAX = 1
# Compacted versions removed in a turn: below 100 microseconds.
COMPACT_STEP = 500
# Fields of InternalRaftRequest that this version cannot apply: leases, auth, downgrades.
FIELDS_NOT_APPLIED = frozenset({8, 9, 11, *range(1000, 1300), 1302})

# Gets the alarms that a proposed AlarmRequest changed, or why it was not applied.
AlarmsDone = Callable[[Sequence[AlarmMember] | EtcdError], None]
# Gets None when a read index is applied, or why there is none.
ReadDone = Callable[[EtcdError | None], None]


class Node:
    """One member of the cluster; `begin` before the first `turn`."""

    def __init__(
        self, wal: Wal, store: Store, ports: list[Port | None], doorbell: int, logger: Logger
    ) -> None:
        self.wal = wal
        self.applier = Applier(store, ports, self.apply_other)
        self.ports = ports
        self.doorbell = doorbell  # what the log's thread writes when a sync is done
        self.logger = logger
        self.members = Members()
        self.raft: Raft | None = None
        # What is appended and not synced, and what the sync under way makes durable.
        self._appended: list[Ready] = []
        self._syncing: list[Ready] = []
        # Whoever waits for a read index, and reads whose index is not applied yet.
        self._read_waiters: list[ReadDone] = []
        self._indexed: list[tuple[object, int]] = []
        # By entry id, who waits in Python for an entry to be applied.
        self._proposed: dict[int, AlarmsDone] = {}

    def begin(self, raft: Raft, batch: Batch) -> None:
        """Take up the member's raft and its clients."""
        self.raft = raft
        self.batch = batch

    # --- the turn

    def turn(self, handle: Callable[[int, bytes, Callable[[bytes | EtcdError], None]], None]) -> bool:
        """Do everything that can be done now; True when there is more to do at once.

        `handle(call, payload, answer)` answers what workers ask in Python.
        """
        batch = self.batch
        more = batch.drain()
        for port, request_id, call, payload in batch.asked:
            handle(call, payload, partial(answer, port, request_id))
        run = batch.run
        if run is not None:
            self._propose(run)
        if batch.reads is not None or self._read_waiters:
            self._ask_index()
        self.work(alone=run is not None and run.count <= LONE_ENTRIES_MAX and not more)
        if self.applier.compact_step(COMPACT_STEP):
            more = True
        for port in self.ports:
            if port is not None:
                if port.step():
                    more = True
                port.flush()
        return more

    def synced(self) -> None:
        """The doorbell rang: take the answer of a sync that is done, if there is one."""
        if self.wal.syncing and self.wal.sync_done:
            self.wal.finish_sync()
            done, self._syncing = self._syncing, []
            self._persisted(done)

    def tick(self, long_reply_ticks_max: int) -> None:
        """A tick of time went by."""
        self.raft.tick()
        for port in self.ports:
            if port is not None:
                port.tick(long_reply_ticks_max)

    def _propose(self, run: Run) -> None:
        try:
            self.raft.propose(run)
        except EtcdError as error:
            self.batch.refuse_run(run, error.id)

    def _ask_index(self) -> None:
        """Have raft say at which index this turn's reads are linearizable."""
        batch, waiters = self.batch, self._read_waiters
        context = (batch.reads, waiters)
        self._read_waiters = []
        try:
            self.raft.read_index(context)
        except EtcdError as error:
            self._refuse_reads(context, error)

    def work(self, alone: bool = True) -> None:
        """Do what raft says until it says nothing more."""
        self.synced()
        raft = self.raft
        while True:
            ready = raft.ready()
            if ready is None:
                break
            raft.advance(ready)
            self._store(ready, alone)
            for run in ready.committed:
                self.applier.apply(run)
                raft.on_applied(run.last_index)
            for state in ready.read_states:
                self._indexed.append(state)
            for context in ready.dropped_reads:
                self._refuse_reads(context, LeaderChangedError())
            if ready.soft_state is not None:
                self._note(ready)
        if self._indexed:
            self._serve()

    def _store(self, ready: Ready, alone: bool) -> None:
        """Append what is to be stored, and see that it gets synced."""
        wal = self.wal
        for run in ready.runs:
            wal.append(run, None)
        if ready.hard_state is not None:
            state = ready.hard_state
            wal.append(None, (state.term, state.vote, state.commit))
        if ready.must_sync:
            self._appended.append(ready)
        if not self._appended or wal.syncing:
            return
        if alone:
            done, self._appended = self._appended, []
            wal.sync()
            self._persisted(done)
        else:
            self._syncing, self._appended = self._appended, []
            wal.start_sync(self.doorbell)

    def _persisted(self, done: Sequence[Ready]) -> None:
        """These Readys are durable: raft's own messages to itself first, then the storage's answer."""
        for ready in done:
            for message in ready.responses:
                self.raft.step(message)
            self.raft.on_persisted(ready.term, ready.index)

    def _serve(self) -> None:
        """Answer the reads whose index is applied."""
        waiting = []
        for context, index in self._indexed:
            if index > self.applier.applied:
                waiting.append((context, index))
                continue
            reads, waiters = context
            if reads is not None:
                self.batch.serve(reads)
            for done in waiters:
                done(None)
        self._indexed = waiting

    def _refuse_reads(self, context: object, error: EtcdError) -> None:
        reads, waiters = context
        if reads is not None:
            self.batch.refuse(reads, error.id)
        for done in waiters:
            done(error)

    def _note(self, ready: Ready) -> None:
        """Somebody leads, or nobody does any more."""
        self.applier.set_term(self.raft.term)
        leader, role = ready.soft_state
        self.logger.info("raft role", role=role.name.lower(), leader=f"{leader:x}", term=self.raft.term)

    # --- what Python proposes, applies and reads

    def read_index(self, done: ReadDone) -> None:
        """Call `done` when all that is committed now is applied, or with why that can't be known."""
        self._read_waiters.append(done)

    def propose_alarm(self, request: AlarmRequest, done: AlarmsDone) -> None:
        """Propose to raise or clear an alarm."""

        def encode(entry_id: int) -> bytes:
            header = RequestHeader(id=entry_id)
            return InternalRaftRequest(header=header, alarm=request).encode()

        self._proposed[self.batch.propose(encode)] = done

    def apply_other(self, entry_type: int, index: int, data: bytes) -> None:
        """Apply an entry that is no KV request; total, but for what a later version alone can apply."""
        if entry_type != EntryType.NORMAL:
            change = self.members.apply_conf_change(entry_type, data)
            if self.raft is not None:
                self.raft.apply_conf_change(change)
            return
        try:
            refuse_unknown(index, data)
            request = decode_request(data)
        except MalformedError:
            self.logger.error("entry does not decode and changes nothing", index=index)
            return
        changed = self.members.apply_request(request)
        self.applier.no_space = self.members.has_alarm(AlarmType.NOSPACE)
        self.applier.corrupt = self.members.has_alarm(AlarmType.CORRUPT)
        if request.header is not None and self._proposed:
            done = self._proposed.pop(request.header.id, None)
            if done is not None:
                done(changed)


def refuse_unknown(index: int, data: bytes) -> None:
    """Stop at an entry that this version cannot apply: to skip it would make this member another than the others.

    Raises Fatal, MalformedError.
    """
    for number, _, _ in fields(data):
        if number in FIELDS_NOT_APPLIED:
            raise Fatal(
                f"entry {index} of the log holds a request (field {number}) that this version cannot apply; "
                "start the etcd that wrote it, or a newer quorate"
            )


def answer(port: Port, request_id: int, reply: bytes | EtcdError) -> None:
    """Send a worker the answer to what it asked in Python."""
    if isinstance(reply, EtcdError):
        port.answer_error(request_id, reply.id)
    else:
        port.answer(request_id, reply)
