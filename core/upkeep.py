"""What a member does by itself, beside what its clients ask: duties of `core/node.py`.

Rules:
1. A duty takes the road of a client: what it changes is an entry, and it sees in the state that the
   entry was applied. Raft may refuse it; then the duty is still to be done.
2. A duty that proposed waits until it sees the outcome: one entry is under way at most.
"""

from __future__ import annotations

from ._scrub import Scrub
from ._scrubfile import FileScrub
from ._scrublog import LogScrub
from .compactor import Compactor, make_compactor
from .config import Config
from .errors import EtcdError
from .flags import duration_text
from .limits import QUOTA_PERCENT_CLEAR
from .messages import (
    AlarmAction,
    AlarmMember,
    AlarmRequest,
    AlarmType,
    CompactionRequest,
    InternalRaftRequest,
)
from .node import Node
from .scrub import Part, Scrubbing

# After raft refused an entry, how long a duty that no clock drives waits until it asks again.
RETRY_MILLISECONDS = 1000


class Compaction:
    """Compacts when the compactor says so."""

    def __init__(self, node: Node, compactor: Compactor) -> None:
        self.node = node
        self.compactor = compactor
        # The revision of the compaction under way, and when it began; 0: none is.
        self._revision = 0
        self._began = 0

    def due(self) -> int | None:
        """When the compactor is to be asked; while one is under way, it comes with the log."""
        return None if self._revision else self.compactor.due

    def step(self, now: int) -> bool:
        """Begin one or see that one is done."""
        node = self.node
        if self._revision:
            if node.state.store.compact_revision >= self._revision:
                self._finish(now)
            return False
        if now < self.compactor.due:
            return False
        leads = node.raft.leader == node.raft.id
        revision = self.compactor.poll(now, node.state.store.revision, leads)
        if revision is None:
            return False
        self._revision, self._began = revision, now
        name = self.compactor.name
        node.logger.info(f"starting auto {name} compaction", revision=revision, **self._kept())
        request = InternalRaftRequest(compaction=CompactionRequest(revision))
        node.propose(request, self._refused)
        return True

    def _finish(self, now: int) -> None:
        """It is done, or was before: for etcd, too, that is a success."""
        revision, self._revision = self._revision, 0
        self.compactor.succeeded(revision, now)
        self.node.logger.info(
            f"completed auto {self.compactor.name} compaction",
            revision=revision,
            **self._kept(),
            took=duration_text(now - self._began),
        )

    def _refused(self, error: EtcdError) -> None:
        revision, self._revision = self._revision, 0
        self.node.logger.warn(
            f"failed auto {self.compactor.name} compaction",
            revision=revision,
            **self._kept(),
            retry_interval=duration_text(self.compactor.retry_milliseconds),
            error=error.text,
        )

    def _kept(self) -> dict[str, object]:
        """The retention, as etcd's lines name it."""
        retention = self.compactor.retention
        if self.compactor.name == "periodic":
            return {"compact_period": duration_text(retention)}
        return {"revision_compaction_retention": retention}


class Quota:
    """Clears this member's NOSPACE once there is room again; `core/_batch.pyx` raises it.

    Whoever raised it and whenever: also one that etcd left, which counts free pages as used.
    """

    def __init__(self, node: Node, quota_bytes: int) -> None:
        self.node = node
        self.quota_bytes = quota_bytes  # 0: there is none
        self._raised = False
        # An entry that clears it is under way, and after one was refused, when the next may be.
        self._clearing = False
        self._retry_at: int | None = None

    def due(self) -> int | None:
        """Room comes with other things' turns."""
        return self._retry_at

    def step(self, now: int) -> bool:
        """Look whether the alarm is on and has a reason."""
        node = self.node
        if not node.applier.no_space and not self._raised:
            return False
        own = AlarmMember(node.wal.node_id, AlarmType.NOSPACE)
        raised = own in node.state.members.alarms(AlarmType.NOSPACE)
        if raised != self._raised:
            self._raised, self._clearing, self._retry_at = raised, False, None
            message = "alarm NOSPACE is on" if raised else "alarm NOSPACE is off"
            used = node.applier.figures()[2]
            node.logger.warn(message, size_in_use_bytes=used, quota_size_bytes=self.quota_bytes)
        if not raised or self._clearing or not self._has_room():
            return False
        if self._retry_at is not None and now < self._retry_at:
            return False
        self._retry_at = None
        self._clearing = True
        request = AlarmRequest(AlarmAction.DEACTIVATE, own.member_id, own.alarm)
        node.propose(InternalRaftRequest(alarm=request), self._refused)
        return True

    def _has_room(self) -> bool:
        """Below the mark, and the request that raised the alarm fits: not if it never would."""
        quota = self.quota_bytes
        if quota == 0:
            return True
        used = self.node.applier.figures()[2]
        wanted = min(self.node.batch.refused_cost, quota // 2)
        return used * 100 <= quota * QUOTA_PERCENT_CLEAR and used + wanted < quota

    def _refused(self, error: EtcdError) -> None:
        self._clearing = False
        self._retry_at = self.node.clock() + RETRY_MILLISECONDS


def add_duties(node: Node, config: Config) -> None:
    """Give a member what its flags ask it to do by itself."""
    store, checkpoints = node.state.store, node.checkpoints
    scrubbing = Scrubbing(
        node,
        (
            Part("memory", Scrub(store), checkpoints.stop),
            Part("backend file", FileScrub(store, checkpoints), checkpoints.stop),
            Part("log", LogScrub(node.wal), checkpoints.replace_log),
        ),
    )
    node.duties += (Quota(node, config.quota_bytes), scrubbing)
    compactor = make_compactor(config.auto_compaction, node.clock(), node.state.store.revision)
    if compactor is not None:
        node.duties += (Compaction(node, compactor),)
