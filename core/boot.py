"""A data directory becomes a running member: a new one is bootstrapped, an old one is recovered.

Rules:
1. Directories are made with mode 0700, and one that others may read is warned of, as etcd does.
2. Recovery begins with the backend file, if there is one, and applies of the log what comes after
   its index: each committed run as it is read, and lets go of it, so that memory does not grow with
   the log. What is not yet known to be committed goes to raft, which decides.
3. A directory says no newer version than --storage-version: etcd refuses what is newer than itself.
   What says a newer one is lowered, by an entry of the log and a checkpoint. Nothing is raised:
   etcd does that when it leads.
4. A lone voter stands for election at once: there is nobody to wait for.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import TypedDict, Unpack

from ._batch import Batch
from ._disk import Disk, OsDisk
from ._eventring import EventRing
from ._port import Port
from ._run import Run
from ._wal import Wal, make_directories
from .apply import State
from .backend import Backend, find_start, lock_backend, open_backend, read_members, restore
from .buckets import find_unlike_rows, hashed_buckets
from .checkpoints import Checkpoints, Inline
from .config import Config
from .errors import Fatal
from .forcing import force_new_cluster
from .limits import GRPC_OVERHEAD_BYTES
from .logs import Logger, Progress
from .members import bootstrap_runs, cluster_id, initial_members
from .messages import (
    ClusterVersionSetRequest,
    ConfState,
    EntryType,
    HardState,
    InternalRaftRequest,
    RequestHeader,
)
from .node import Clock, Node
from .raft import Config as RaftConfig
from .raft import Raft
from .raftlog import RaftLog
from .snapshots import Snapshots
from .upkeep import add_duties
from .version import STORAGE_VERSIONS

# A lease's id is, as in etcd, 16 bits of this member's id and a count, which begins anywhere.
LEASE_COUNT_BITS = 48
# In `member/snap`: of a file that was not finished, by us or by etcd, which removes them, too.
LEFT_OVERS = ("db.tmp", "tmp")


def monotonic_milliseconds() -> int:
    """The core's clock: it never goes back, whatever happens to the time of day."""
    return time.monotonic_ns() // 1_000_000


class LogOptions(TypedDict, total=False):
    """How the log's files are made, where it is not the usual way."""

    segment_bytes: int
    ahead: bool


def open_node(
    config: Config,
    ports: list[Port | None],
    doorbell: int,
    logger: Logger,
    event_ring: EventRing | None = None,
) -> Node:
    """The member of this data directory, elected and with everything committed applied.

    Raises Fatal.
    """
    disk = OsDisk()
    make_directories(disk, config.data_dir)
    make_directories(disk, snap_path(config))
    warn_of_permissions(config.data_dir, logger)
    threads = ThreadPoolExecutor(1, "checkpoint")
    return start_node(config, disk, ports, doorbell, logger, event_ring, threads=threads)


def start_node(
    config: Config,
    disk: Disk,
    ports: list[Port | None],
    doorbell: int,
    logger: Logger,
    event_ring: EventRing | None = None,
    clock: Clock = monotonic_milliseconds,
    chance: random.Random | None = None,
    threads: Executor | None = None,
    **options: Unpack[LogOptions],
) -> Node:
    """The same on any disk, where the directories exist already. Raises Fatal.

    With a `chance` of its own a member is the same each time. Without `threads` checkpoints are
    written by the turns.
    """
    state = State(ports, logger)
    if chance is not None:
        state.applier.lessor.seed = chance.getrandbits(64)
    state.applier.lessor.ttl_min = lease_seconds_min(config)
    remove_left_over(disk, snap_path(config), logger)
    lock = lock_backend(disk, snap_path(config))
    try:
        backend = open_backend(disk, snap_path(config))
        wal, raft = open_raft(config, disk, backend, state, logger, **options)
    except BaseException:
        if lock >= 0:
            disk.close(lock)
        raise
    state.applier.identify(wal.cluster_id, wal.node_id)
    request_bytes_max = config.max_request_bytes + GRPC_OVERHEAD_BYTES
    batch = Batch(ports, state.applier, request_bytes_max, config.max_txn_ops, event_ring)
    batch.quota_bytes = config.quota_bytes
    count = (chance or random.Random()).getrandbits(LEASE_COUNT_BITS)
    batch.seed_leases(wal.node_id >> LEASE_COUNT_BITS << LEASE_COUNT_BITS | count)
    checkpoints = Checkpoints(
        config,
        disk,
        state,
        raft,
        wal,
        backend,
        lock,
        logger,
        clock,
        threads or Inline(),
        doorbell,
    )
    snapshots = Snapshots(checkpoints.demand, lambda: state.applied, clock, logger)
    stored = STORAGE_VERSIONS[config.storage_version]
    batch.buckets = partial(hashed_buckets, state, checkpoints.carried, stored)
    node = Node(state, raft, wal, batch, ports, doorbell, logger, clock, checkpoints, snapshots)
    elect(node)
    go_down(node, backend, config.storage_version)
    add_duties(node, config)
    # Workers may be asked for watches before the first turn.
    batch.events.publish()
    return node


def lease_seconds_min(config: Config) -> int:
    """The shortest lease: etcd's one and a half elections, in whole seconds."""
    ticks = config.election_timeout // config.heartbeat_interval * 3 // 2
    return -(-ticks * config.heartbeat_interval // 1000)


def open_raft(
    config: Config,
    disk: Disk,
    backend: Backend | None,
    state: State,
    logger: Logger,
    **options: Unpack[LogOptions],
) -> tuple[Wal, Raft]:
    """The log and the raft of an old member or a new one, the state as they say. Raises Fatal."""
    started = None
    if any(name.endswith(".wal") for name in disk.list(config.wal_path) or ()):
        started = recover(config, disk, backend, state, logger, **options)
    elif backend is not None:
        raise Fatal(
            f"{backend.path} is of a member whose log is missing ({config.wal_path}): look for it, "
            "or make a directory of the file with `etcdutl snapshot restore --skip-hash-check`"
        )
    return started or bootstrap(config, disk, **options)


def bootstrap(config: Config, disk: Disk, **options: Unpack[LogOptions]) -> tuple[Wal, Raft]:
    """The log and the raft of the first member of a new cluster. Raises Fatal."""
    members = initial_members(peer_urls_by_name(config), config.initial_cluster_token)
    if len(members) != 1:
        raise Fatal("--initial-cluster names several members; this version serves one member")
    cluster = cluster_id(member.id for member in members)
    no_fsync = config.unsafe_no_fsync
    wal = Wal.create(disk, config.wal_path, members[0].id, cluster, no_fsync=no_fsync, **options)
    raft = make_raft(config, wal, RaftLog(), HardState(), ConfState())
    raft.bootstrap(*bootstrap_runs(members))
    return wal, raft


def peer_urls_by_name(config: Config) -> Mapping[str, list[str]]:
    """What --initial-cluster says: the peer URLs of each member."""
    urls: dict[str, list[str]] = {}
    for part in config.initial_cluster.split(","):
        name, _, url = part.strip().partition("=")
        if name:
            urls.setdefault(name, []).append(url)
    return urls


def recover(
    config: Config,
    disk: Disk,
    backend: Backend | None,
    state: State,
    logger: Logger,
    **options: Unpack[LogOptions],
) -> tuple[Wal, Raft] | None:
    """Read backend and log, apply what is committed, and give raft the rest. Raises Fatal.

    None when the log is that of a bootstrap which never finished: nobody was told anything yet,
    nothing was applied, and the log is put aside.
    """
    start = find_start(backend, disk, snap_path(config), config.wal_path)
    no_fsync = config.unsafe_no_fsync
    wal = Wal.open(disk, config.wal_path, start.index, start.term, no_fsync=no_fsync, **options)
    if backend is not None:
        restore(backend, start, state, logger)
    waiting: deque[Run] = deque()
    applied_term = 0
    progress = Progress(logger, "still reading the log")
    compared = False
    for run in wal.recover():
        progress.come(applied_index=state.applied, revision=state.store.revision)
        waiting.append(run)
        while waiting and waiting[0].last_index <= wal.commit:
            compared = compared or compare(config, backend, state)
            state.applier.apply(waiting[0])
            applied_term = waiting.popleft().term
    if not compared:
        compare(config, backend, state)
    term, vote, commit = wal.hard_state
    if term == 0 and backend is None:
        wal.close()
        put_aside(disk, config.wal_path, logger)
        return None
    if wal.torn_bytes:
        logger.warn("cut a torn write off the log", bytes=wal.torn_bytes)
    logger.info("recovered", applied_index=state.applied, revision=state.store.revision)
    if backend is not None and wal.last_index < backend.index:
        raise Fatal(
            f"{backend.path} holds what entries up to {backend.index} did, and the log "
            f"({config.wal_path}) ends at {wal.last_index}: one of them is not of this member"
        )
    if backend is not None and wal.node_id not in all_members(state):
        raise Fatal(
            f"{backend.path} is of a cluster that has no member {wal.node_id:x}, which the log "
            f"({config.wal_path}) is of: one of them is not of this member"
        )
    # What is in a backend file was committed, even if the log did not come to say so.
    if config.force_new_cluster:
        held = backend.index if backend is not None else 0
        force_new_cluster(wal, state, waiting, max(commit, held), logger)
        term, vote, commit = wal.hard_state
        applied_term = applied_term if waiting else wal.last_term
    log = RaftLog(waiting, state.applied, applied_term or wal.start_term)
    hard_state = HardState(term, vote, max(commit, start.index))
    return wal, make_raft(config, wal, log, hard_state, state.conf_state())


def compare(config: Config, backend: Backend | None, state: State) -> bool:
    """Note what the file says otherwise than the state, once that has come to where the file is."""
    if backend is None or state.applied < backend.index:
        return False
    stored = STORAGE_VERSIONS[config.storage_version]
    state.unlike_rows = find_unlike_rows(state, backend, stored)
    return True


def all_members(state: State) -> tuple[int, ...]:
    """The members that are and that were."""
    return (*(member.id for member in state.members.list()), *state.members.removed())


def snap_path(config: Config) -> str:
    """Where the backend file and the snapshots are."""
    return os.path.join(config.data_dir, "member", "snap")


def remove_left_over(disk: Disk, directory: str, logger: Logger) -> None:
    """Remove files that a crash kept from being finished."""
    for name in disk.list(directory) or ():
        if name.startswith(LEFT_OVERS):
            disk.remove(f"{directory}/{name}")
            logger.warn("removed a file that was not finished", path=f"{directory}/{name}")


def put_aside(disk: Disk, path: str, logger: Logger) -> None:
    """Rename the log of an interrupted bootstrap, so that nothing is ever deleted."""
    number = 0
    while disk.list(f"{path}.interrupted-{number}") is not None:
        number += 1
    aside = f"{path}.interrupted-{number}"
    disk.rename(path, aside)
    disk.sync_directory(os.path.dirname(path))
    logger.warn("put an unfinished first start aside", path=aside)


def make_raft(
    config: Config, wal: Wal, log: RaftLog, hard_state: HardState, conf_state: ConfState
) -> Raft:
    """The raft machine of this member."""
    ticks = max(1, config.election_timeout // config.heartbeat_interval)
    return Raft(RaftConfig(wal.node_id, ticks), log, hard_state, conf_state, random.Random())


def elect(node: Node) -> None:
    """Work until this member leads and has applied all that it knows to be committed."""
    raft = node.raft
    node.work()
    raft.campaign()
    while raft.leader != raft.id or node.applier.applied < raft.log.last_index:
        before = raft.log.last_index, node.applier.applied, raft.term
        node.work()
        if before == (raft.log.last_index, node.applier.applied, raft.term):
            raise Fatal("this member is not a voter of its cluster; this version serves one member")


def go_down(node: Node, backend: Backend | None, storage_version: str) -> None:
    """Lower what log and file say of versions; see rule 3."""
    most = minor_version(storage_version)
    current = node.state.members.cluster_version
    said = [current]
    if backend is not None:
        said.append((backend.mark(b"storageVersion") or b"").decode())
        said.append(read_members(backend).version)
    if all(not version or minor_version(version) <= most for version in said):
        return
    if current and minor_version(current) > most:
        lower = ClusterVersionSetRequest(f"{storage_version}.0")
        # Nobody waits for the entry; without a header etcd would not take it.
        request = InternalRaftRequest(header=RequestHeader(), cluster_version_set=lower)
        node.raft.propose(Run.of([(EntryType.NORMAL, request.encode())]))
        while node.applier.applied < node.raft.log.last_index:
            node.work()
        node.logger.info("lowered the cluster version", before=current, now=lower.version)
    node.checkpoints.wanted_index = node.state.applied


def minor_version(version: str) -> tuple[int, int]:
    """What compatibility is told by."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def warn_of_permissions(data_dir: str, logger: Logger) -> None:
    """Say when others than the owner can reach the data."""
    mode = os.stat(data_dir).st_mode & 0o777
    if mode & 0o077:
        logger.warn(
            "check file permission",
            error=f'directory "{data_dir}" exist, but the permission is "{mode:o}". '
            'The recommended permission is "700" to prevent possible unprivileged access to the '
            "data",
        )
