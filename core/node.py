"""One member: drives raft, the log and the state, and answers the workers.

Synchronous; the world is its arguments. A turn, from the requests in the rings to the replies:

    drain      take what gathered: one run of entries, the reads, what Python answers   (_batch)
    propose    the run goes to raft, the reads ask for their index                      (raft)
    store      what raft wants stored is appended; a sync begins unless one runs        (_wal)
    apply      what raft says is committed is applied, and those who wait are answered  (_apply)
    serve      reads whose index is applied are answered                                (_batch)
    publish    what was written is told to those who watch                              (_events)
    by itself  what a member does unasked, by entries of the next turn                  (upkeep)
    expire     leases that have run out are revoked by entries of the next turn         (_batch)
    tidy       a step of compaction, of a checkpoint and of each long reply; snapshots, and the
               replies go out                          (checkpoints, snapshots, _port)

Rules:
1. One sync is under way at most. What comes meanwhile gathers and is the next sync's: batches grow
   with the load, there is no timer.
2. The sync runs in the log's own thread: neither reads nor ticks wait for a disk. Only where nobody
   else waits, because all that this turn took are writes, and the last sync was quick, it runs
   here, two thread switches cheaper (10 connections x 10 streams on 2 cores: 13.9 µs of CPU for a
   put became 10.6).
3. A failed write or sync raises out of `turn` and ends the process: nothing is retried, nothing
   more is acknowledged.
4. The clock is asked when a turn begins and when a sync is done: a lease is granted or renewed from
   a moment on that is never before its answer by more than one apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from ._batch import Batch, Reads
from ._port import Port
from ._run import Run
from ._wal import Wal
from .apply import AlarmsDone, State
from .checkpoints import Checkpoints
from .errors import EtcdError, LeaderChangedError, TooManyRequestsError
from .limits import LONG_REPLY_SECONDS_MAX
from .logs import Logger
from .messages import AlarmRequest, InternalRaftRequest, RequestHeader
from .raft import Raft, Ready, Role, SoftState
from .readindex import ReadState
from .snapshots import Handed, Snapshots

# A sync is quick, and may run in the turn itself, if the one before took no longer; rule 2.
QUICK_SYNC_SECONDS = 0.001
# Compacted versions removed in a turn: below 100 microseconds.
COMPACT_STEP = 200
# Leases revoked in a turn, at least: about half a millisecond. More, if that is not more than what
# writers asked of the turn, or than what the disk takes for a sync.
EXPIRE_STEP = 256
EXPIRE_SECONDS_PER_KEY = 2e-6

LONG_REPLY_MILLISECONDS_MAX = int(LONG_REPLY_SECONDS_MAX * 1000)

# Gets None when a read index is applied, or why there is none.
ReadDone = Callable[[EtcdError | None], None]
# Answers what a worker asks in Python: the call, its payload, and where the answer goes.
Handle = Callable[[int, bytes, Callable[[bytes | Handed | EtcdError], None]], None]
# Milliseconds of a clock that never goes back.
Clock = Callable[[], int]


class Duty(Protocol):
    """What a member does by itself, in the turns' last part."""

    def due(self) -> int | None:
        """When the next turn is wanted, by the clock; None: with any turn."""

    def step(self, now: int) -> bool:
        """Do a little, no longer than a step of compaction; True when there is more to do now.

        `now` is when the turn began.
        """


class Asked:
    """All who wait for one read index: the reads of a turn, and callbacks."""

    __slots__ = ("callbacks", "reads")

    def __init__(self, reads: Reads | None, callbacks: Sequence[ReadDone]) -> None:
        self.reads = reads
        self.callbacks = callbacks


class Node:
    """One member of the cluster."""

    def __init__(
        self,
        state: State,
        raft: Raft,
        wal: Wal,
        batch: Batch,
        ports: list[Port | None],
        doorbell: int,
        logger: Logger,
        clock: Clock,
        checkpoints: Checkpoints,
        snapshots: Snapshots,
    ) -> None:
        self.state = state
        self.applier = state.applier
        self.raft = raft
        self.wal = wal
        self.batch = batch
        self.ports = ports
        self.doorbell = doorbell  # what the log's thread writes when a sync is done
        self.logger = logger
        self.clock = clock
        self.checkpoints = checkpoints
        self.snapshots = snapshots
        self.applier.set_time(clock())
        state.conf_changed = raft.apply_conf_change
        # What is appended and not synced, and what the sync under way makes durable.
        self._appended: list[Ready] = []
        self._syncing: list[Ready] = []
        self.duties: tuple[Duty, ...] = ()
        # Who hears of it if raft does not take the entries that Python proposed for this run.
        self._proposed: list[Callable[[EtcdError], object]] = []
        # Leases begin to run out here when this is applied: what earlier leaders wrote of them must
        # be known before. 0 = they do already, or another member leads.
        self._lead_index = 0
        # Who asks for a read index in this turn, and reads whose index is not applied yet.
        self._read_callbacks: list[ReadDone] = []
        self._indexed: list[ReadState] = []

    # --- the turn

    def turn(self, handle: Handle) -> bool:
        """Do everything that can be done now; True when there is more to do at once."""
        batch = self.batch
        now = self.clock()
        self.applier.set_time(now)
        more = batch.drain()
        for port, request_id, call, payload in batch.asked:
            handle(call, payload, partial(answer, port, request_id))
        run = batch.run
        if run is not None:
            self._propose(run)
        if batch.reads is not None or self._read_callbacks:
            self._ask_index()
        only_writes = run is not None and batch.writes == batch.taken and not more
        self.work(alone=only_writes and self.wal.last_sync_seconds <= QUICK_SYNC_SECONDS)
        batch.events.publish()
        for duty in self.duties:
            if duty.step(now):
                more = True
        if batch.expire(self._expire_budget(run)):
            more = True
        if self.applier.compact_step(COMPACT_STEP):
            more = True
        if self.snapshots.step():
            more = True
        if self.checkpoints.step(now):
            more = True
        for each in self.ports:
            if each is not None:
                if each.step():
                    more = True
                each.flush()
        return more

    def _expire_budget(self, run: Run | None) -> int:
        """How many keys of leases that have run out the next turn may delete."""
        writes = run.count if run is not None else 0
        return max(EXPIRE_STEP, writes, int(self.wal.last_sync_seconds / EXPIRE_SECONDS_PER_KEY))

    def due(self) -> int | None:
        """When a lease or a duty wants a turn, by the clock; None while none does."""
        wanted = [duty.due() for duty in self.duties]
        wanted.append(self.applier.lessor.due())
        return min((when for when in wanted if when is not None), default=None)

    def hold_leases(self, milliseconds: int) -> None:
        """Let no lease run out for so long."""
        self.applier.set_time(self.clock())
        self.applier.lessor.hold_back(milliseconds)

    def tick(self, milliseconds: int) -> None:
        """A tick went by, so long since the one before."""
        self.raft.tick()
        for port in self.ports:
            if port is not None:
                port.tick(milliseconds, LONG_REPLY_MILLISECONDS_MAX)
        self.snapshots.tick()

    def work(self, alone: bool = True) -> None:
        """Do what raft says until it says nothing more; `alone` as rule 2 says."""
        if self.wal.syncing and self.wal.sync_done:
            self.wal.finish_sync()
            done, self._syncing = self._syncing, []
            self._persisted(done)
        raft = self.raft
        while (ready := raft.ready()) is not None:
            raft.advance(ready)
            self._store(ready, alone)
            for run in ready.committed:
                self.applier.apply(run)
                raft.on_applied(run.last_index)
            self._indexed.extend(ready.read_states)
            for asked in ready.dropped_reads:
                self._refuse_reads(asked, LeaderChangedError())
            if ready.soft_state is not None:
                self._note(ready.soft_state)
        if self._lead_index and self.applier.applied >= self._lead_index:
            self._lead_index = 0
            self.applier.lessor.promote()
        if self._indexed:
            self._serve()

    def _propose(self, run: Run) -> None:
        try:
            self.raft.propose(run)
        except EtcdError as error:
            self.batch.refuse_run(run, error.id)
            for refused in self._proposed:
                refused(error)
        self._proposed.clear()

    def _ask_index(self) -> None:
        """Have raft say at which index this turn's reads are linearizable."""
        asked = Asked(self.batch.reads, self._read_callbacks)
        self._read_callbacks = []
        try:
            self.raft.read_index(asked)
        except EtcdError as error:
            self._refuse_reads(asked, error)

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
        """These Readys are durable: raft's messages to itself first, then the storage's answer."""
        self.applier.set_time(self.clock())
        for ready in done:
            for message in ready.responses:
                self.raft.step(message)
            self.raft.on_persisted(ready.term, ready.index)

    def _serve(self) -> None:
        """Answer the reads whose index is applied."""
        indexed, self._indexed = self._indexed, []
        for state in indexed:
            if state.read_index > self.applier.applied:
                self._indexed.append(state)
                continue
            asked = state.context
            assert isinstance(asked, Asked)
            if asked.reads is not None:
                self.batch.serve(asked.reads)
            for done in asked.callbacks:
                done(None)

    def _refuse_reads(self, asked: object, error: EtcdError) -> None:
        assert isinstance(asked, Asked)
        if asked.reads is not None:
            self.batch.refuse(asked.reads, error.id)
        for done in asked.callbacks:
            done(error)

    def _note(self, state: SoftState) -> None:
        """Somebody leads, or nobody does any more."""
        self.applier.set_term(self.raft.term)
        self.batch.events.ring.identify(self.wal.cluster_id, self.wal.node_id, self.raft.term)
        if state.role is not Role.LEADER:
            self._lead_index = 0
            self.applier.lessor.demote()
        elif not self.applier.lessor.is_primary:
            self._lead_index = self.raft.log.last_index
        role = state.role.name.lower()
        self.logger.info("raft role", role=role, leader=f"{state.leader:x}", term=self.raft.term)

    def close(self) -> None:
        """Leave what starts fastest: a last checkpoint, and all of the log on the disk."""
        if self.wal.syncing:
            self.wal.finish_sync()
        self.snapshots.close()
        self.checkpoints.finish()
        self.wal.sync()
        self.wal.close()

    # --- what Python proposes and reads

    def read_index(self, done: ReadDone) -> None:
        """Call `done` once all that is committed now is applied, or with why that is unknown."""
        self._read_callbacks.append(done)

    def propose_alarm(self, alarm: AlarmRequest, done: AlarmsDone) -> None:
        """Propose to raise or clear an alarm; within a turn, from `handle`."""

        request = InternalRaftRequest(alarm=alarm)
        entry_id = self.batch.propose(partial(encode, request))
        self._proposed.append(partial(self.state.refuse_entry, entry_id))
        self.state.await_entry(entry_id, done)

    def propose(self, request: InternalRaftRequest, refused: Callable[[EtcdError], object]) -> None:
        """Propose with the next turn's run what a duty asks for; `refused` if raft does not."""
        self.batch.propose(partial(encode, request), late=True)
        self._proposed.append(refused)


def encode(request: InternalRaftRequest, entry_id: int) -> bytes:
    """The data of an entry with this id."""
    return replace(request, header=RequestHeader(id=entry_id)).encode()


def answer(port: Port, request_id: int, reply: bytes | Handed | EtcdError) -> None:
    """Send a worker the answer to what it asked in Python."""
    if isinstance(reply, Handed):
        try:
            port.hand_over(request_id, list(reply.descriptors), reply.message)
        except OSError:
            # It takes no more, or is gone.
            port.answer_error(request_id, TooManyRequestsError.id)
    elif isinstance(reply, EtcdError):
        port.answer_error(request_id, reply.id)
    else:
        port.answer(request_id, reply)
