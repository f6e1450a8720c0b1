"""--force-new-cluster: a member of several goes on alone, with what it knows to be committed.

Rules:
1. As in etcd entries not known to be committed are discarded, and entries that remove all other
   members come in their place, committed by force. The cluster keeps its id.
2. They are in the log, synced, before anything else happens: a crash on the way leaves the
   directory as it was, or forced.
3. A member that is alone already decides its own log, so none of it is discarded: what was
   acknowledged is in it, and the log does not always say that it was committed. etcd discards it.
"""

from __future__ import annotations

from collections import deque

from ._run import Run
from ._wal import Wal
from .apply import State
from .errors import Fatal
from .logs import Logger
from .members import Member
from .messages import ConfChange, ConfChangeType, EntryType

# etcd's, for a member that the log does not know.
PEER_URL = "http://localhost:2380"


def force_new_cluster(
    wal: Wal, state: State, waiting: deque[Run], committed: int, logger: Logger
) -> None:
    """Leave nothing in `waiting`, and this member alone in the state. Raises Fatal, DiskError."""
    ids = [member.id for member in state.members.list()]
    if ids == [wal.node_id] and not any(run.has_conf_change for run in waiting):
        logger.info("the member is alone in its cluster: there is nothing to force")
        return
    apply_committed(state, waiting, committed)
    if waiting:
        logger.info(
            "discarding uncommitted WAL entries",
            entry_index=waiting[0].first_index,
            commit_index_from_wal=committed,
            number_of_discarded_entries=sum(run.count for run in waiting),
        )
        waiting.clear()
    before = wal.commit
    force_changes(wal, state, lone_member_changes(wal, state))
    logger.info(
        "forcing restart member",
        cluster_id=f"{wal.cluster_id:x}",
        local_member_id=f"{wal.node_id:x}",
        wal_commit_index=before,
        commit_index=wal.commit,
    )


def apply_committed(state: State, waiting: deque[Run], committed: int) -> None:
    """Apply what of `waiting` is committed: the log may say so only in its backend file."""
    while waiting and waiting[0].first_index <= committed:
        run = waiting.popleft()
        count = committed - run.first_index + 1
        if count < run.count:
            entries = run.unpack()
            rest = Run.of(entries[count:])
            rest.assign(run.first_index + count, run.term)
            waiting.appendleft(rest)
            index, term = run.first_index, run.term
            run = Run.of(entries[:count])
            run.assign(index, term)
        state.applier.apply(run)


def lone_member_changes(wal: Wal, state: State) -> list[ConfChange]:
    """What makes this member the only one: first itself, so that there is always one."""
    own, members = wal.node_id, state.members
    if own in members.removed():
        raise Fatal(f"--force-new-cluster: member {own:x} was removed from this cluster")
    changes = []
    known = members.get(own)
    if known is None:
        context = Member(own, (PEER_URL,)).to_json()
        changes.append(ConfChange(type=ConfChangeType.ADD_NODE, node_id=own, context=context))
    elif known.is_learner:
        raise Fatal(f"--force-new-cluster: member {own:x} is a learner and cannot be alone")
    return changes + [
        ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=member.id)
        for member in members.list()
        if member.id != own
    ]


def force_changes(wal: Wal, state: State, changes: list[ConfChange]) -> None:
    """Write the changes behind what is applied, as committed, and apply them."""
    index = state.applied
    # A term of their own: what they override may be of the present one.
    term = max(wal.term, wal.last_term) + 1
    runs = []
    for change in changes:
        run = Run.of([(EntryType.CONF_CHANGE, change.encode())])
        index += 1
        run.assign(index, term)
        wal.append(run, None)
        runs.append(run)
    wal.append(None, (term, 0, index))
    wal.sync()
    for run in runs:
        state.applier.apply(run)
    alone = [member.id for member in state.members.list()]
    assert alone == [wal.node_id], alone
