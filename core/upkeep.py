"""What a member does by itself, beside what its clients ask: duties of `core/node.py`.

Rules:
1. A duty takes the road of a client: what it changes is an entry, and it sees in the state that the
   entry was applied. Raft may refuse it; then the duty is still to be done.
2. A duty that proposed waits until it sees the outcome: one entry is under way at most.
"""

from __future__ import annotations

from .compactor import Compactor, make_compactor
from .config import Config
from .errors import EtcdError
from .flags import duration_text
from .messages import CompactionRequest, InternalRaftRequest
from .node import Node


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

    def step(self) -> bool:
        """Begin one or see that one is done."""
        node = self.node
        if self._revision:
            if node.state.store.compact_revision >= self._revision:
                self._finish()
            return False
        now = node.clock()
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

    def _finish(self) -> None:
        """It is done, or was before: for etcd, too, that is a success."""
        revision, self._revision = self._revision, 0
        now = self.node.clock()
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


def add_duties(node: Node, config: Config) -> None:
    """Give a member what its flags ask it to do by itself."""
    compactor = make_compactor(config.auto_compaction, node.clock(), node.state.store.revision)
    if compactor is not None:
        node.duties += (Compaction(node, compactor),)
