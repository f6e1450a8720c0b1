"""The background check for damaged memory: a duty of every member, also of one that is alone.

Rules:
1. A pass takes SCRUB_SECONDS, or longer where there is so much that it would take more than
   SCRUB_VERSIONS_PER_SECOND_MAX. It is done in slices no longer than a step of compaction.
2. What is wrong is told once, in the log and by an entry that raises CORRUPT for this member: from
   then on the log refuses writes; reads go on, as in etcd. The files have what was acknowledged, so
   a restart heals a fault of the memory; then `alarm disarm`.
3. While the alarm is on there is nothing to look for. When it is off, looking begins anew.
4. `looker` is what looks: `step(budget)` answers what is wrong, or nothing; `passes` counts.
"""

from __future__ import annotations

from typing import Protocol

from .errors import EtcdError
from .limits import SCRUB_SECONDS, SCRUB_VERSIONS_PER_SECOND_MAX
from .messages import AlarmAction, AlarmMember, AlarmRequest, AlarmType, InternalRaftRequest
from .node import Node

# Versions looked at in a turn: about 100 microseconds.
SCRUB_STEP = 100
# When nothing else happens, the node is woken for so much at once, within these bounds.
WAKE_VERSIONS = 1000
WAKE_MILLISECONDS_MIN = 100
WAKE_MILLISECONDS_MAX = 5000
# The most that is done at one waking: a process that stood still makes up for no more.
OWED_VERSIONS_MAX = 2 * WAKE_VERSIONS
# How often it is looked whether the alarm is on or off.
ALARM_MILLISECONDS = 1000


class Looker(Protocol):
    """Goes through something, pass after pass; rule 4."""

    @property
    def passes(self) -> int:
        """How often it has come to the end."""

    def step(self, budget: int) -> str:
        """Look at so much; what is wrong, or the empty string."""


class Scrubbing:
    """Paces a looker and raises the alarm."""

    def __init__(self, node: Node, looker: Looker, seconds: float = SCRUB_SECONDS) -> None:
        self.node = node
        self.looker = looker
        self.seconds = seconds
        self.fault = ""
        # Versions that are to be looked at by now, and the time up to which they were counted.
        self._owed = 0.0
        self._counted = node.clock()
        self._due = self._counted
        # Of the alarm of a fault: an entry is under way, it was seen to be on.
        self._raising = False
        self._raised = False

    def due(self) -> int | None:
        """When there is enough to look at for a turn of its own."""
        return self._due

    def step(self, now: int) -> bool:
        """Look at what time has made due."""
        if now < self._due:
            return False
        if self.fault:
            return self._see_to_alarm(now)
        rate = self._per_millisecond()
        if self._owed < 1:
            self._owed = min(self._owed + (now - self._counted) * rate, OWED_VERSIONS_MAX)
            self._counted = now
        budget = min(int(self._owed), SCRUB_STEP)
        self._owed -= budget
        self.fault = self.looker.step(budget)
        if self.fault:
            self.node.logger.error("found data corruption", what=self.fault)
            return self._see_to_alarm(now)
        if self._owed >= 1:
            return True
        wanted = round(WAKE_VERSIONS / rate)
        self._due = now + min(max(wanted, WAKE_MILLISECONDS_MIN), WAKE_MILLISECONDS_MAX)
        return False

    def _per_millisecond(self) -> float:
        """The pace of rule 1."""
        versions = max(self.node.state.store.versions, 1)
        return min(versions / self.seconds, SCRUB_VERSIONS_PER_SECOND_MAX) / 1000

    def _see_to_alarm(self, now: int) -> bool:
        """Raise the alarm, and when it is off again, go on; True when there is an entry now."""
        node = self.node
        self._due = now + ALARM_MILLISECONDS
        own = AlarmMember(node.wal.node_id, AlarmType.CORRUPT)
        if own in node.state.members.alarms(AlarmType.CORRUPT):
            self._raised, self._raising = True, False
            return False
        if self._raised:
            self.fault = ""
            self._raised = False
            return False
        if self._raising:
            return False
        self._raising = True
        request = AlarmRequest(AlarmAction.ACTIVATE, own.member_id, own.alarm)
        node.propose(InternalRaftRequest(alarm=request), self._refused)
        return True

    def _refused(self, error: EtcdError) -> None:
        self._raising = False
        self.node.logger.error("alarm CORRUPT was not taken", error=error.text)
