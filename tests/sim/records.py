"""What a simulation was promised and told, and the verdict on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.crash.watching import Watcher
from tests.messages import Message
from tests.watchcheck import (
    Change,
    Complaint,
    History,
    Op,
    Write,
    check,
    check_resumed,
    check_writes,
    in_range,
)
from tests.watches import DELETE


@dataclass
class Lease:
    """A lease; it must last until `floor`, by the world's clock."""

    id: int
    floor: int
    granted: bool = False  # it is known to be
    revokes: int = 0  # how often somebody asked for its end


@dataclass
class Read:
    """A read: the revision that it is of, its range, and what it told."""

    revision: int
    where: tuple[bytes, bytes]
    kvs: list[Message]


@dataclass
class Records:
    """What all actors were promised and told."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    leases: dict[int, Lease] = field(default_factory=dict)
    bound: dict[int, int] = field(default_factory=dict)  # revision -> the lease of what it put
    reached: dict[int, int] = field(default_factory=dict)  # revision -> when the store had it
    acknowledged: int = 1
    compacted: int = 0

    def acknowledge(self, revision: int) -> None:
        """Somebody was told of this revision."""
        self.acknowledged = max(self.acknowledged, revision)


def verdict(
    records: Records, reference: Watcher, watchers: Iterable[Watcher]
) -> tuple[History, list[Complaint]]:
    """Every promise that was broken."""
    told = [
        event
        for segment in reference.segments
        for response in segment.responses
        for event in response.get("events", ())
    ]
    history = History(told)
    history.compacted = records.compacted
    writes = [*records.writes, *lease_ends(history, records)]
    complaints = list(check_writes(history, writes))
    complaints += check_leases(history, records)
    complaints += check_reads(history, records.reads)
    for watcher in [reference, *watchers]:
        if watcher.segments:
            watcher.segments[-1].until = history.last
        complaints += check(history, watcher.segments)
        complaints += check_resumed(watcher.segments)
    return history, complaints


def revisions(history: History) -> Iterator[tuple[int, list[Change]]]:
    """The changes of each revision."""
    group: list[Change] = []
    for change in history.changes:
        if group and change.revision != group[0].revision:
            yield group[0].revision, group
            group = []
        group.append(change)
    if group:
        yield group[0].revision, group


def lease_ends(history: History, records: Records) -> Iterator[Write]:
    """The revisions that nobody wrote and that are the end of a lease that may have ended then.

    All of its keys go in one revision; anything else is left for `check_writes` to complain of.
    """
    promised = {write.revision for write in records.writes}
    lease_of: dict[bytes, int] = {}
    for revision, changes in revisions(history):
        keys = {change.kv["key"] for change in changes}
        leases = {lease_of.get(key, 0) for key in keys}
        if revision not in promised and len(leases) == 1:
            lease = records.leases.get(leases.pop())
            if lease is not None and may_end(lease, records.reached.get(revision, 0)):
                every = {key for key, number in lease_of.items() if number == lease.id}
                if keys == every and all(change.kind == DELETE for change in changes):
                    yield Write([Op(DELETE, key) for key in sorted(keys)], revision)
        for change in changes:
            lease_of.pop(change.kv["key"], None)
            if change.kv.get("lease"):
                lease_of[change.kv["key"]] = change.kv["lease"]


def may_end(lease: Lease, when: int) -> bool:
    """Whether a lease may be over at that time."""
    return bool(lease.revokes) or when >= lease.floor


def check_leases(history: History, records: Records) -> Iterator[Complaint]:
    """Whether each key has the lease that its writer named."""
    for revision, changes in revisions(history):
        wanted = records.bound.get(revision)
        if wanted is not None and changes[0].kv.get("lease") != wanted:
            yield Complaint("fields", f"{changes[0].kv!r}, promised with lease {wanted}")


def check_reads(history: History, reads: Iterable[Read]) -> Iterator[Complaint]:
    """Whether each read is the state at its revision."""
    by_revision = sorted(reads, key=lambda read: read.revision)
    state: dict[bytes, Message] = {}
    groups = revisions(history)
    following = next(groups, None)
    for read in by_revision:
        while following is not None and following[0] <= read.revision:
            apply(state, following[1])
            following = next(groups, None)
        wanted = [state[key] for key in sorted(state) if in_range(key, *read.where)]
        if wanted != read.kvs:
            text = f"{read.where} at {read.revision} is {read.kvs!r}, not {wanted!r}"
            yield Complaint("read", text[:400])


def apply(state: dict[bytes, Message], changes: Iterable[Change]) -> None:
    """Bring a state up to date."""
    for change in changes:
        if change.kind == DELETE:
            state.pop(change.kv["key"], None)
        else:
            state[change.kv["key"]] = change.kv


def leaks(gauges: Mapping[str, int]) -> dict[str, int]:
    """What is alive in a worker that has no clients."""
    alive = ("calls_live", "partial_bytes", "reply_bytes", "replies_wrong")
    return {name: gauges[name] for name in alive if gauges[name]}
