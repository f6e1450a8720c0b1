"""A driver of one `Raft` for tests: it does the duties of raft's docstring, one at a time."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from quorate.core._run import Run
from quorate.core.messages import ConfChange, ConfState, EntryType, HardState
from quorate.core.raft import Config, Raft, Ready, Role
from quorate.core.raftlog import RaftLog


@dataclass
class Disk:
    """What is durable: all that a restart finds."""

    runs: list[Run] = field(default_factory=list)
    hard_state: HardState = HardState()  # noqa: RUF009 - immutable


class Driver:
    """One member, its disk, and the work that raft handed out and the test did not yet do."""

    def __init__(self, disk: Disk | None = None, *, id: int = 1, seed: int = 1) -> None:
        self.disk = disk if disk is not None else Disk()
        self.id = id
        # Readys on their way to the disk, each with the state to write, and runs on their way to
        # the state machine. A state that needs no sync is kept for the next append (duty 2).
        self.appending: deque[tuple[Ready, HardState | None]] = deque()
        self.kept_state: HardState | None = None
        self.applying: deque[Run] = deque()
        self.applied: list[tuple[int, bytes]] = []
        self.reads: list[tuple[object, int]] = []
        self.dropped: list[object] = []
        self.raft = Raft(
            Config(id, election_ticks=10),
            RaftLog(self.disk.runs),
            self.disk.hard_state,
            ConfState(),
            random.Random(seed),
        )

    def bootstrap(self) -> None:
        change = ConfChange(node_id=self.id).encode()
        self.raft.bootstrap([Run.of([(EntryType.CONF_CHANGE, change)])], ConfState((self.id,)))

    def role(self) -> Role:
        """What raft is now; a call, so that type checkers do not think it stays so."""
        return self.raft.role

    def propose(self, *data: bytes) -> Run:
        run = Run.of((EntryType.NORMAL, each) for each in data)
        self.raft.propose(run)
        return run

    def take(self) -> Ready | None:
        """Take over what raft has to do; it waits in the queues until `persist` and `apply`."""
        ready = self.raft.ready()
        if ready is None:
            return None
        self.raft.advance(ready)
        self.kept_state = ready.hard_state or self.kept_state
        if ready.must_sync:
            self.appending.append((ready, self.kept_state))
            self.kept_state = None
        self.applying.extend(ready.committed)
        self.reads.extend(ready.read_states)
        self.dropped.extend(ready.dropped_reads)
        self.raft.check()
        return ready

    def write(self) -> Ready:
        """The oldest append is durable; raft does not know yet."""
        ready, state = self.appending.popleft()
        self.disk.runs.extend(ready.runs)
        self.disk.hard_state = state or self.disk.hard_state
        return ready

    def persist(self) -> bool:
        """The oldest append is durable, and raft is told."""
        if not self.appending:
            return False
        ready = self.write()
        for message in ready.responses:
            self.raft.step(message)
        self.raft.on_persisted(ready.term, ready.index)
        self.raft.check()
        return True

    def apply(self) -> bool:
        """The state machine finishes the oldest run and answers."""
        if not self.applying:
            return False
        run = self.applying.popleft()
        for entry_type, data in run.unpack():
            if entry_type == EntryType.CONF_CHANGE:
                self.raft.apply_conf_change(ConfChange.decode(data).as_v2())
            self.applied.append((len(self.applied) + 1, data))
        self.raft.on_applied(run.last_index)
        self.raft.check()
        return True

    def stabilize(self) -> None:
        """Do everything until nothing is left."""
        while self.take() or self.persist() or self.apply():
            pass

    def restart(self) -> Driver:
        """The process dies and begins again with what its disk has."""
        return Driver(self.disk, id=self.id)


def leader() -> Driver:
    """A lone voter that has begun a cluster and leads it."""
    driver = Driver()
    driver.bootstrap()
    driver.stabilize()
    driver.raft.campaign()
    driver.stabilize()
    return driver
