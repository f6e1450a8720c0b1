"""The background check for damage: a duty of every member, also of one that is alone.

Rules:
1. A pass goes over memory, then the backend file, then the log. It takes SCRUB_SECONDS, or less
   where there is little, or longer where there is so much that it would take more than
   SCRUB_LOOKS_PER_SECOND_MAX. It is done in slices no longer than a step of compaction.
2. What is wrong is told once, in the log and by an entry that raises CORRUPT for this member: from
   then on the log refuses writes; reads go on, as in etcd.
3. Each of the three is the copy that the others are mended from, so each has its own consequence
   for checkpoints (core/checkpoints.py, rule 6), which ends with the alarm.
4. What a disk cannot read is looked at once more, from the beginning of its part, and then is a
   fault. A disk that fails otherwise (no descriptor is left) says nothing of what is on it.
5. While the alarm is on there is nothing to look for. When it is off, looking begins anew.
6. A `looker` is what looks: `step(looks)` answers what is wrong, or nothing; a look is what takes
   about a microsecond, `size` says of how many a pass is, `passes` counts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ._disk import DiskError
from .errors import EtcdError
from .limits import SCRUB_LOOKS_PER_SECOND_MAX, SCRUB_SECONDS
from .messages import AlarmAction, AlarmMember, AlarmRequest, AlarmType, InternalRaftRequest
from .node import Node

# Looks of a turn: about 100 microseconds.
SCRUB_STEP = 100
# A pass takes so many at least: where there is little, its beginnings and ends are most of it.
PASS_LOOKS_MIN = 10_000
# When nothing else happens, the node is woken for so much at once, within these bounds.
WAKE_LOOKS = 1000
WAKE_MILLISECONDS_MIN = 100
WAKE_MILLISECONDS_MAX = 5000
# The most that is done at one waking: a process that stood still makes up for no more.
OWED_LOOKS_MAX = 2 * WAKE_LOOKS
# What an operation fails with when what is on the device is lost or wrong.
UNREADABLE = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)
# How often it is looked whether the alarm is on or off.
ALARM_MILLISECONDS = 1000


class Looker(Protocol):
    """Goes through something, pass after pass; rule 6."""

    @property
    def passes(self) -> int:
        """How often it has come to the end."""

    @property
    def size(self) -> int:
        """Looks of a pass, about."""

    def step(self, looks: int) -> str:
        """Look so often; what is wrong, or the empty string. Raises DiskError: begin anew."""


@dataclass(frozen=True)
class Part:
    """One of the things to look at."""

    name: str
    looker: Looker
    found: Callable[[str], None]
    """What is done at once when something is wrong with it."""


class Scrubbing:
    """Goes through the parts, one after the other, at a pace, and raises the alarm."""

    def __init__(self, node: Node, parts: Sequence[Part], seconds: float = SCRUB_SECONDS) -> None:
        self.node = node
        self.parts = parts
        self.seconds = seconds
        self.fault = ""
        self._part = 0
        self._was_unreadable = False  # the part, and it is looked at once more
        # Looks that are due by now, and the time up to which they were counted.
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
            self._owed = min(self._owed + (now - self._counted) * rate, OWED_LOOKS_MAX)
            self._counted = now
        looks = min(int(self._owed), SCRUB_STEP)
        self._owed -= looks
        self._look(looks)
        if self.fault:
            return self._see_to_alarm(now)
        if self._owed >= 1:
            return True
        wanted = round(WAKE_LOOKS / rate)
        self._due = now + min(max(wanted, WAKE_MILLISECONDS_MIN), WAKE_MILLISECONDS_MAX)
        return False

    def _look(self, looks: int) -> None:
        """Look at the part that it is the turn of."""
        part = self.parts[self._part]
        passes = part.looker.passes
        try:
            self.fault = part.looker.step(looks)
        except DiskError as error:
            self.fault = self._judge(part, error)
        if self.fault:
            self.node.logger.error("found data corruption", where=part.name, what=self.fault)
            part.found(self.fault)
        elif part.looker.passes != passes:
            self._go_on()

    def _judge(self, part: Part, error: DiskError) -> str:
        """Whether an error of the disk is a fault; see rule 4."""
        if error.errno in UNREADABLE and self._was_unreadable:
            return str(error)
        self.node.logger.warn(
            "could not look for data corruption", where=part.name, error=str(error)
        )
        if error.errno in UNREADABLE:
            self._was_unreadable = True
        else:
            self._go_on()
        return ""

    def _go_on(self) -> None:
        """It is the next part's turn."""
        self._part = (self._part + 1) % len(self.parts)
        self._was_unreadable = False

    def _per_millisecond(self) -> float:
        """The pace of rule 1."""
        looks = max(sum(part.looker.size for part in self.parts), PASS_LOOKS_MIN)
        return min(looks / self.seconds, SCRUB_LOOKS_PER_SECOND_MAX) / 1000

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
            node.checkpoints.go_on()
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
