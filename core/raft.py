"""Raft, the pure machine: told what happened, it says what to store, send, apply and answer.

It does no I/O and knows no clock: time is counted in ticks, chance is an argument, and the same
calls always give the same answers. One member of one cluster is one `Raft`. It is not safe for
threads: one thread calls it.

So far it is a lone voter: it elects itself and commits by its own log. What more voters need
(messages to peers, progress, joint majorities) joins behind the same contract.

The verbs
    tick()                      one tick of time went by
    campaign()                  stand for election now, without waiting for the timeout
    propose(run)                append the run; raises NoLeaderError, TooManyRequestsError
    read_index(context)         ask at which index reads are linearizable; raises NoLeaderError
    step(message)               a message came: from another member, from itself, from the storage
    ready()                     what is to be done now, or None
    advance(ready)              the driver took it over
    on_persisted(term, index)   the storage answers: it is on the disk
    on_applied(index)           the state machine answers: it is applied
    apply_conf_change(change)   a configuration change is being applied
    bootstrap(runs, conf_state) begin a new cluster: the first call on an empty log

`on_persisted` and `on_applied` are what `step` does with STORAGE_APPEND_RESPONSE and
STORAGE_APPLY_RESPONSE; a driver calls them directly, because they come with every batch.

The loop
    raft = Raft(config, RaftLog(recovered_runs, checkpoint_index, checkpoint_term),
                hard_state, conf_state, random_source)
    while True:
        await something: a tick, requests, messages, an answer of the storage
        raft.tick() / raft.propose(run) / raft.step(message) / raft.on_persisted(term, index) …
        while (ready := raft.ready()) is not None:
            raft.advance(ready)
            send(ready.messages)
            if ready.must_sync:
                storage.append(ready)       # returns at once; when it is durable:
                                            #   deliver ready.responses
                                            #   raft.on_persisted(ready.term, ready.index)
            for run in ready.committed:
                apply(run)                  # raft.apply_conf_change for each such entry
                raft.on_applied(run.last_index)
            answer(ready.read_states), refuse(ready.dropped_reads)

The driver's duties
1.  Take over at once. Between `ready()` and `advance(ready)` call nothing else. After `advance`
    the driver owes raft the work and its answers, and raft never names the same work again.
2.  Persist before send. `runs`, then `hard_state`, go to the disk in the order of the Readys; a
    `must_sync` Ready is synced before anything of its `responses` leaves. A Ready that need not be
    synced may hold a `hard_state` too (only its commit is new): keep it and write it with the next
    append; the newest replaces those before. No Ready may overtake another on its way to the disk.
3.  `messages` may leave at once, before the sync: raft puts nothing in there that promises it.
4.  Acknowledge after your own fsync. When a `must_sync` Ready and all before it are durable,
    deliver each of `responses` (those to this member's own id come back through `step`), then call
    `on_persisted(ready.term, ready.index)`. Answers come in the order of the Readys; one may stand
    for all before it. Several Readys may be under way; raft goes on meanwhile.
5.  A failed write or sync is final: call nothing more, stop the process.
6.  Apply after commit: `committed` in order, each run once; it is on this member's disk by then.
    Call `on_applied` after each run or after the last. What a client is told about an entry it is
    told after the entry's application, never before.
7.  Call `apply_conf_change` for each entry of a configuration change while applying it, also when
    the change was refused: then with a change that names no member.
8.  Answer the reads of a ReadState when everything up to its `read_index` is applied.
    `dropped_reads` never get one here: refuse them (LeaderChangedError); clients ask again.
9.  A run belongs to raft from `propose` on, also to be dropped; when `propose` raises it is the
    caller's again, unchanged. Runs are immutable once they have a place in the log.
10. After a restart give back what was durable: the checkpoint's index, term and conf_state, the
    runs after that index, and the last HardState. A log whose HardState was never written is that
    of an interrupted bootstrap: begin it anew. Then apply what `ready` hands out, and `campaign`.

What raft promises
a.  At most one leader a term; a member's vote and term are durable before anybody learns of them,
    itself included: it counts its own vote when that comes back as a response.
b.  A lone voter commits what its own disk has, never more: committed <= persisted. (The first
    entries of a cluster are decided by decree, and still not applied before they are persisted.)
c.  Nothing is applied that is not committed and persisted here, nothing twice or out of order.
d.  An entry of an older term is committed only together with one of this term (§5.4.2): a new
    leader begins its term with an empty entry, and all that its log holds is decided with that.
e.  A read's index is at least the commit index of the moment it was asked for; before the first
    commit of the leader's term reads wait.
f.  Memory is bounded: proposals are refused while UNAPPLIED_BYTES_MAX wait, and applied runs are
    kept up to the limits of `RaftLog`.
g.  What comes from outside never raises: a message of an older term, or one that means nothing
    in this role, is passed over. An assertion that fails is a bug of raft or of its driver, and the
    process must stop.

Raft touches runs only, never an entry: what a batch costs here does not depend on its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from ._run import Run
from .errors import Fatal, NoLeaderError, TooManyRequestsError
from .limits import UNAPPLIED_BYTES_MAX
from .messages import (
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    EntryType,
    HardState,
    Message,
    MessageType,
)
from .raftlog import RaftLog
from .readindex import ReadIndex, ReadState

# No member: nobody leads, or nobody got this member's vote.
NONE = 0


class Role(IntEnum):
    """What a member is in its term."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2


# Read once: an enumeration's member costs a dictionary look-up each time.
_LEADER = Role.LEADER

# The changes that change who votes or learns.
_CONFIGURING = (
    ConfChangeType.ADD_NODE,
    ConfChangeType.REMOVE_NODE,
    ConfChangeType.ADD_LEARNER_NODE,
)


class RandomSource(Protocol):
    """Chance, as an argument: `random.Random(seed)` is one."""

    def randrange(self, stop: int, /) -> int:
        """A number of 0..stop-1."""
        ...


@dataclass(frozen=True, slots=True)
class Config:
    """What a member is told at its start and keeps."""

    id: int
    # A follower that hears of no leader for this many ticks, and up to twice as many, stands.
    election_ticks: int = 10


class SoftState(NamedTuple):
    """Who leads, and what this member is: worth knowing, not worth storing."""

    leader: int
    role: Role


class Ready:
    """What the driver has to do; see the duties in the module's docstring. Empty is ()."""

    __slots__ = (
        "committed",
        "dropped_reads",
        "hard_state",
        "index",
        "messages",
        "must_sync",
        "read_states",
        "responses",
        "runs",
        "soft_state",
        "term",
    )

    def __init__(self, term: int, index: int) -> None:
        # The storage's answer to a `must_sync` Ready is on_persisted(term, index).
        self.term = term
        self.index = index
        # Whether anybody waits for this Ready to be durable: entries, or a new term or vote.
        self.must_sync = False
        self.runs: Sequence[Run] = ()
        self.hard_state: HardState | None = None
        self.soft_state: SoftState | None = None
        self.messages: Sequence[Message] = ()
        self.responses: Sequence[Message] = ()
        self.committed: Sequence[Run] = ()
        self.read_states: Sequence[ReadState] = ()
        self.dropped_reads: Sequence[object] = ()


class Raft:
    """One member; the contract is the module's docstring."""

    __slots__ = (
        "_dropped_reads",
        "_election_elapsed",
        "_election_news",
        "_election_timeout",
        "_random_source",
        "_reads",
        "_ready",
        "_responses",
        "_saved_commit",
        "_saved_soft_state",
        "_saved_term",
        "_saved_vote",
        "_term_first_index",
        "conf_state",
        "config",
        "id",
        "leader",
        "log",
        "role",
        "term",
        "vote",
    )

    def __init__(
        self,
        config: Config,
        log: RaftLog,
        hard_state: HardState,
        conf_state: ConfState,
        random_source: RandomSource,
    ) -> None:
        assert config.id != NONE, "a member needs an id"
        assert config.election_ticks > 0, config
        if hard_state.commit > log.last_index or hard_state.term < log.last_term:
            raise Fatal(
                f"the log ends at index {log.last_index} of term {log.last_term}, "
                f"but the state beside it says term {hard_state.term}, commit {hard_state.commit}"
            )
        self.config = config
        self.id = config.id
        self.log = log
        self.conf_state = conf_state
        self._random_source = random_source
        self.term = self._saved_term = hard_state.term
        self.vote = self._saved_vote = hard_state.vote
        log.commit_to(hard_state.commit)
        self._saved_commit = hard_state.commit
        self.role = Role.FOLLOWER
        self.leader = NONE
        self._saved_soft_state = SoftState(self.leader, self.role)
        # A leader's first entry of its term: what is committed from here on proves its log.
        self._term_first_index = 0
        self._election_elapsed = 0
        self._election_timeout = 0
        self._reads = ReadIndex()
        self._dropped_reads: list[object] = []
        self._responses: list[Message] = []
        # Whether a role began since the last Ready: all that comes with elections hangs on it.
        self._election_news = False
        # What `ready` answered and `advance` did not yet take.
        self._ready: Ready | None = None
        self._require_lone_voter()
        self._reset(self.term)

    # --- what happened

    def tick(self) -> None:
        """One tick of time went by; a lone leader has nobody to tell, so only others count."""
        assert self._ready is None, "advance is owed"
        if self.role is _LEADER:
            return
        self._election_elapsed += 1
        if self.promotable and self._election_elapsed >= self._election_timeout:
            self._election_elapsed = 0
            self.campaign()

    def campaign(self) -> None:
        """Stand for election, unless this member leads, may not, or has changes to apply first."""
        self.step(Message(MessageType.HUP))

    def propose(self, run: Run) -> None:
        """Give the run its place at the end of the log.

        Raises NoLeaderError when this member does not lead, TooManyRequestsError when too much
        waits for the disk or the state machine; the run is untouched then.
        """
        assert self._ready is None, "advance is owed"
        log = self.log
        if self.role is not _LEADER:
            raise NoLeaderError
        if log.unapplied_bytes > UNAPPLIED_BYTES_MAX:
            raise TooManyRequestsError
        assert run.count > 0, "an empty run"
        run.assign(log.last_index + 1, self.term)
        log.append(run)

    def read_index(self, context: object) -> None:
        """Ask for the index at which the reads of `context` are linearizable.

        The answer is a ReadState of a later Ready. Raises NoLeaderError unless this member leads.
        """
        assert self._ready is None, "advance is owed"
        if self.role is not _LEADER:
            raise NoLeaderError
        self._reads.add(context)
        self._maybe_release_reads()

    def step(self, message: Message) -> None:
        """A message came. A newer term ends this member's role; an older one is passed over."""
        assert self._ready is None, "advance is owed"
        if message.term > self.term:
            self._become_follower(message.term, NONE)
        elif 0 < message.term < self.term:
            return
        handle = _STEP.get((self.role, message.type))
        if handle is not None:
            handle(self, message)

    def on_persisted(self, term: int, index: int) -> None:
        """The Ready with this `term` and `index`, and all before it, are durable.

        Of an older term it counts for nothing: what was written then may since have been
        overwritten. The Ready that made the newer term durable answers for everything.
        """
        assert self._ready is None, "advance is owed"
        assert term <= self.term, f"persisted in term {term}, but the term is {self.term}"
        if term != self.term:
            return
        self.log.stable_to(index)
        if self._maybe_commit():
            self._maybe_release_reads()

    def on_applied(self, index: int) -> None:
        """Every run up to `index` is applied."""
        assert self._ready is None, "advance is owed"
        self.log.applied_to(index)

    # --- what to do

    def ready(self) -> Ready | None:
        """What is to be done now, or None; the same again until `advance` takes it."""
        if self._ready is not None:
            return self._ready
        log = self.log
        ready = Ready(self.term, log.last_index)
        something = self._ready_rarely(ready)
        if log.offered < log.last_index:
            ready.runs = log.unstable_runs()
            ready.must_sync = something = True
        if log.applying < log.committed and log.applying < log.stable:
            ready.committed = log.committed_runs()
            something = something or bool(ready.committed)
        if log.committed != self._saved_commit:
            ready.hard_state = HardState(self.term, self.vote, log.committed)
            something = True
        if self._reads.ready:
            ready.read_states = self._reads.ready
            something = True
        if not something:
            return None
        self._ready = ready
        return ready

    def _ready_rarely(self, ready: Ready) -> bool:
        """Fill in the parts that come with elections only; whether there is any."""
        if not self._election_news:
            return False
        soft_state = SoftState(self.leader, self.role)
        if soft_state != self._saved_soft_state:
            ready.soft_state = soft_state
        if self.term != self._saved_term or self.vote != self._saved_vote:
            ready.hard_state = HardState(self.term, self.vote, self.log.committed)
            ready.must_sync = True
        ready.responses = self._responses
        ready.dropped_reads = self._dropped_reads
        self._election_news = bool(
            ready.soft_state or ready.must_sync or ready.responses or ready.dropped_reads
        )
        return self._election_news

    def advance(self, ready: Ready) -> None:
        """The driver took `ready` over: what it holds is under way."""
        assert ready is self._ready, "not the Ready that was handed out last"
        self._ready = None
        if ready.runs:
            self.log.offer()
        if ready.committed:
            self.log.apply_begins(ready.committed)
        if ready.hard_state is not None:
            self._saved_term, self._saved_vote = self.term, self.vote
            self._saved_commit = ready.hard_state.commit
        if ready.read_states:
            self._reads.ready = []
        if self._election_news:
            self._election_news = False
            self._saved_soft_state = SoftState(self.leader, self.role)
            self._responses = []
            self._dropped_reads = []

    # --- roles

    def _reset(self, term: int) -> None:
        """Begin a role; in a new term nobody leads yet and no vote is given."""
        assert term >= self.term, f"the term never falls: {self.term} to {term}"
        if term != self.term:
            self.term = term
            self.vote = NONE
        self.leader = NONE
        self._election_news = True
        self._election_elapsed = 0
        ticks = self.config.election_ticks
        self._election_timeout = ticks + self._random_source.randrange(ticks)
        self._dropped_reads += self._reads.drop()

    def _become_follower(self, term: int, leader: int) -> None:
        self._reset(term)
        self.leader = leader
        self.role = Role.FOLLOWER

    def _become_candidate(self) -> None:
        assert self.role is not _LEADER, "a leader does not stand"
        self._reset(self.term + 1)
        self.vote = self.id
        self.role = Role.CANDIDATE

    def _become_leader(self) -> None:
        assert self.role is Role.CANDIDATE, f"{self.role.name} can't win"
        self._reset(self.term)
        self.leader = self.id
        self.role = _LEADER
        # Promise d: this entry is what commits all before it.
        empty = Run.of([(EntryType.NORMAL, b"")])
        self._term_first_index = self.log.last_index + 1
        empty.assign(self._term_first_index, self.term)
        self.log.append(empty)

    # --- messages

    def _handle_hup(self, message: Message) -> None:
        """Stand: a vote for itself, which counts when it comes back from the disk."""
        if not self.promotable or self.log.has_unapplied_conf_change():
            return
        self._become_candidate()
        self._responses.append(
            Message(MessageType.VOTE_RESPONSE, to=self.id, from_=self.id, term=self.term)
        )

    def _handle_vote_response(self, message: Message) -> None:
        """A vote was given; one of one voter is a majority."""
        if message.term != self.term or message.reject:
            return
        if message.from_ in self.conf_state.voters:
            self._become_leader()

    def _handle_storage_append_response(self, message: Message) -> None:
        self.on_persisted(message.term, message.index)

    def _handle_storage_apply_response(self, message: Message) -> None:
        self.on_applied(message.index)

    # --- commit and reads

    def _maybe_commit(self) -> bool:
        """Commit what a majority has: for a lone voter, what its own disk has; whether it moved.

        Nothing before this term's first entry is committed on its own (§5.4.2).
        """
        log = self.log
        if self.role is not _LEADER or log.stable < self._term_first_index:
            return False
        if log.stable <= log.committed:
            return False
        log.commit_to(log.stable)
        return True

    def _maybe_release_reads(self) -> None:
        """Give waiting reads their index, once something of this term is committed."""
        if self._reads.waiting and self.log.committed >= self._term_first_index:
            self._reads.release(self.log.committed)

    # --- configuration

    @property
    def promotable(self) -> bool:
        """Whether this member may stand: it is a voter."""
        return self.id in self.conf_state.voters

    def bootstrap(self, runs: Sequence[Run], conf_state: ConfState) -> None:
        """Begin a new cluster: `runs` are its members' changes, decided by decree at term 1.

        Every first member does the same, so that their logs begin alike.
        """
        assert self.log.last_index == 0 == self.term, "bootstrap of a log that has begun"
        self._become_follower(1, NONE)
        for run in runs:
            run.assign(self.log.last_index + 1, 1)
            self.log.append(run)
        self.log.commit_to(self.log.last_index)
        self.conf_state = conf_state
        self._require_lone_voter()

    def apply_conf_change(self, change: ConfChangeV2) -> ConfState:
        """The configuration after `change`; a step that names no member changes nothing."""
        voters = set(self.conf_state.voters)
        learners = set(self.conf_state.learners)
        for single in change.changes:
            node_id = single.node_id
            if node_id == NONE or single.type not in _CONFIGURING:
                continue
            if voters == {node_id} and single.type != ConfChangeType.ADD_NODE:
                # Without a voter the cluster could never decide anything again.
                continue
            voters.discard(node_id)
            learners.discard(node_id)
            if single.type == ConfChangeType.ADD_NODE:
                voters.add(node_id)
            elif single.type == ConfChangeType.ADD_LEARNER_NODE:
                learners.add(node_id)
        self.conf_state = ConfState(tuple(sorted(voters)), tuple(sorted(learners)))
        self._require_lone_voter()
        return self.conf_state

    def _require_lone_voter(self) -> None:
        """Stop rather than decide alone what others must agree to."""
        conf_state = self.conf_state
        members = {
            *conf_state.voters,
            *conf_state.learners,
            *conf_state.voters_outgoing,
            *conf_state.learners_next,
        }
        if members - {self.id}:
            names = ", ".join(f"{member:x}" for member in sorted(members))
            raise Fatal(f"the log is that of a cluster of {names}; this version serves one member")

    def check(self) -> None:
        """Walk every invariant; for tests and the debug build."""
        log = self.log
        log.check()
        assert self.term >= log.last_term, (self.term, log.last_term)
        assert self._saved_term <= self.term, (self._saved_term, self.term)
        assert self._saved_commit <= log.committed, (self._saved_commit, log.committed)
        assert (self.leader == self.id) == (self.role is Role.LEADER), (self.leader, self.role)
        if self.role is Role.LEADER:
            assert self.vote == self.id, (self.vote, self.id)
            assert log.last_term == self.term, (log.last_term, self.term)
            first = self._term_first_index
            assert first <= log.snapshot_index or log.term(first) == self.term, first
        if log.committed > log.stable:
            assert self.term == log.last_term == 1, "a lone voter commits what its disk has"
        assert not (self._reads.waiting and log.committed >= self._term_first_index)


_STEP: dict[tuple[Role, int], Callable[[Raft, Message], None]] = {
    (Role.FOLLOWER, MessageType.HUP): Raft._handle_hup,
    (Role.CANDIDATE, MessageType.HUP): Raft._handle_hup,
    (Role.CANDIDATE, MessageType.VOTE_RESPONSE): Raft._handle_vote_response,
    (Role.FOLLOWER, MessageType.STORAGE_APPEND_RESPONSE): Raft._handle_storage_append_response,
    (Role.CANDIDATE, MessageType.STORAGE_APPEND_RESPONSE): Raft._handle_storage_append_response,
    (Role.LEADER, MessageType.STORAGE_APPEND_RESPONSE): Raft._handle_storage_append_response,
    (Role.FOLLOWER, MessageType.STORAGE_APPLY_RESPONSE): Raft._handle_storage_apply_response,
    (Role.CANDIDATE, MessageType.STORAGE_APPLY_RESPONSE): Raft._handle_storage_apply_response,
    (Role.LEADER, MessageType.STORAGE_APPLY_RESPONSE): Raft._handle_storage_apply_response,
}
