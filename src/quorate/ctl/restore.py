"""`snapshot restore`: a snapshot file becomes the data directory of a member of a new cluster.

Rules:
1. Nothing is written before everything that can be refused was: names, URLs, the snapshot's hash.
2. All is made in `member.restoring`, synced, and renamed to `member` in the end (a log elsewhere
   just before): whatever interrupts it, there is a whole member or none, and what is left does not
   keep the same command from being given again. (But a log elsewhere does, if it had its name and
   the member had not: it is to be removed first.)
3. The backend file is written anew from what the snapshot's pages lead to: each is checked on the
   way. Keys, leases, alarms, users and unknown buckets are carried over; members, the index and the
   configuration are the new cluster's, as etcd 3.7 has them.
4. The log is that of a cluster whose first entries add its members, with the record of a snapshot
   behind them, and the file of that snapshot is there: up to 3.6 etcd begins with it.
5. The members of one cluster are restored each on its own; given the same flags they agree.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quorate.core._bolt import Bolt
from quorate.core._boltscan import Copy
from quorate.core._boltwriter import BoltWriter
from quorate.core._disk import Disk, OsDisk
from quorate.core._wal import Wal, make_directories
from quorate.core.config import Config, read_initial_cluster, verify_local_member
from quorate.core.errors import Fatal
from quorate.core.flags import read_url
from quorate.core.limits import SEGMENT_BYTES
from quorate.core.logs import Logger
from quorate.core.members import Cluster, Member, bootstrap_runs, cluster_id, initial_members
from quorate.core.messages import ConfState
from quorate.core.snapfile import write_snapshot

from .commandline import EXIT_BAD_ARGS, Call, CommandError
from .files import mapped, opened
from .progress import Advance, nobody, progress

# A snapshot is pages, of which each is a multiple of this, and then its SHA-256.
SECTOR, HASH_BYTES = 512, 32
# Bytes hashed, and pairs copied, between two looks at the bar.
PIECE_BYTES, PIECE_PAIRS = 1 << 22, 10_000
TEMPORARY = "member.restoring"
FIRST_TERM = 1
REVISION_BYTES = 17


@dataclass(frozen=True)
class Plan:
    """What is to be made."""

    members: tuple[Member, ...]
    name: str
    data_dir: str
    wal_dir: str = ""  # "": where it is by default
    bump: int = 0  # how far the revision jumps

    @property
    def conf_state(self) -> ConfState:
        """The members vote."""
        return ConfState(tuple(member.id for member in self.members))

    @property
    def index(self) -> int:
        """Of the last entry: one for each member."""
        return len(self.members)

    @property
    def own(self) -> Member:
        """The member whose directory it is."""
        return next(member for member in self.members if member.name == self.name)


def restore_command(call: Call) -> None:
    """`snapshot restore FILE`. Raises CommandError, Fatal."""
    if len(call.arguments) != 1:
        raise CommandError("snapshot restore requires exactly one argument", EXIT_BAD_ARGS)
    bump = call.integer("bump-revision")
    if (bump > 0) != call.switch("mark-compacted"):
        raise CommandError("--mark-compacted required if --revision-bump > 0", EXIT_BAD_ARGS)
    disk, logger = OsDisk(), Logger(form="console")
    plan = plan_of(call, bump)
    check_places(disk, plan)
    [path] = call.arguments
    snap = os.path.join(plan.data_dir, "member", "snap")
    wal = plan.wal_dir or os.path.join(plan.data_dir, "member", "wal")
    places = {"path": path, "wal_dir": wal, "data_dir": plan.data_dir, "snap_dir": snap}
    logger.info("restoring snapshot", **places)
    with opened(path) as descriptor:
        data = memoryview(mapped(descriptor, path))
        pages = verified(data, call.switch("skip-hash-check"))
        with progress("restoring", len(pages)) as advance:
            restore(disk, Bolt(pages, path), plan, advance)
    for member in plan.members:
        logger.info(
            "added member",
            cluster_id=f"{cluster_id(each.id for each in plan.members):x}",
            added_peer_id=f"{member.id:x}",
            added_peer_peer_urls=member.peer_urls,
        )
    logger.info("restored snapshot", **places)


def plan_of(call: Call, bump: int) -> Plan:
    """What the flags ask for. Raises CommandError, Fatal."""
    name, text = call.text("name"), call.text("initial-cluster")
    token = call.text("initial-cluster-token")
    try:
        advertised = call.text("initial-advertise-peer-urls").split(",")
        urls = tuple(sorted(read_url(url) for url in advertised))
        cluster = read_initial_cluster(text)
    except ValueError as error:
        raise CommandError(str(error)) from None
    verify_local_member(Config(name=name, initial_advertise_peer_urls=urls), cluster)
    sorted_urls = {name: sorted(urls) for name, urls in sorted(cluster.items())}
    listed = [url for urls in sorted_urls.values() for url in urls]
    if len(set(listed)) < len(listed):
        shown = ",".join(f"{name}={url}" for name, urls in sorted_urls.items() for url in urls)
        raise CommandError(f"initial cluster {shown} has duplicate url")
    data_dir = call.text("data-dir") or f"{name}.etcd"
    members = initial_members(sorted_urls, token)
    return Plan(tuple(members), name, data_dir, call.text("wal-dir"), bump)


def check_places(disk: Disk, plan: Plan) -> None:
    """Nothing is there that would be lost. Raises CommandError."""
    try:
        there = set(disk.list(plan.data_dir) or ())
    except Fatal:
        there = {plan.data_dir}
    if there - {TEMPORARY}:
        raise CommandError(f'data-dir "{plan.data_dir}" not empty or could not be read')
    if plan.wal_dir and os.path.lexists(plan.wal_dir):
        raise CommandError(f'wal-dir "{plan.wal_dir}" exists')


def verified(data: memoryview, skip_hash: bool) -> memoryview:
    """The snapshot without its hash, which is right. Raises CommandError."""
    if len(data) % SECTOR != HASH_BYTES:
        if not skip_hash:
            raise CommandError("snapshot missing hash but --skip-hash-check=false")
        return data
    pages, said = data[:-HASH_BYTES], data[-HASH_BYTES:]
    if skip_hash:
        return pages
    running = hashlib.sha256()
    with progress("checking the hash", len(pages)) as advance:
        for at in range(0, len(pages), PIECE_BYTES):
            running.update(pages[at : at + PIECE_BYTES])
            advance(at)
    found = running.digest()
    if found != said:
        shown = " ".join(map(str, said)), " ".join(map(str, found))
        raise CommandError(f"expected sha256 [{shown[0]}], got [{shown[1]}]")
    return pages


def restore(
    disk: Disk,
    bolt: Bolt,
    plan: Plan,
    advance: Advance = nobody,
    segment_bytes: int = SEGMENT_BYTES,
) -> None:
    """Make the directory, durable when this returns. Raises Fatal."""
    temporary = f"{plan.data_dir}/{TEMPORARY}"
    wal = f"{plan.wal_dir}.restoring" if plan.wal_dir else f"{temporary}/wal"
    snap = f"{temporary}/snap"
    make_directories(disk, snap)
    for left in (snap, wal):
        for name in disk.list(left) or ():
            disk.remove(f"{left}/{name}")
    write_backend(disk, f"{snap}/db", bolt, plan, advance)
    write_snapshot(disk, snap, plan.index, FIRST_TERM, Cluster(plan.members[:]), plan.conf_state)
    if plan.wal_dir:
        make_directories(disk, os.path.dirname(plan.wal_dir) or ".")
    write_log(disk, wal, plan, segment_bytes)
    if plan.wal_dir:
        disk.rename(wal, plan.wal_dir)
        disk.sync_directory(os.path.dirname(plan.wal_dir) or ".")
    disk.rename(temporary, f"{plan.data_dir}/member")
    disk.sync_directory(plan.data_dir)


def write_backend(disk: Disk, path: str, bolt: Bolt, plan: Plan, advance: Advance) -> None:
    """The snapshot's file with the new cluster's members, index and configuration."""
    fixed: dict[bytes, Mapping[bytes, bytes]] = {
        b"members": {f"{member.id:x}".encode(): member.to_json() for member in plan.members},
        b"members_removed": {},
        b"meta": marks(bolt, plan),
    }
    writer = BoltWriter(disk, path, page_size=bolt.page_size)
    try:
        there = bolt.buckets()
        for name in sorted({*there, *fixed}):
            writer.begin(name, bolt.sequence(name) if name in there else 0)
            if name in fixed:
                for key, value in sorted(fixed[name].items()):
                    writer.put(key, value)
            else:
                copy = Copy(bolt, name, writer)
                while copy.step(PIECE_PAIRS):
                    advance(writer.pages * writer.page_size)
            if name == b"key" and plan.bump:
                writer.put(revision_key(newest_revision(bolt) + plan.bump), b"")
            writer.end()
        writer.finish()
    finally:
        writer.close()


def marks(bolt: Bolt, plan: Plan) -> dict[bytes, bytes]:
    """What is known of the new file as a whole."""
    found = dict(items(bolt, b"meta"))
    voters = {"voters": plan.conf_state.voters, "auto_leave": False}
    found[b"confState"] = json.dumps(voters, separators=(",", ":")).encode()
    found[b"consistent_index"] = plan.index.to_bytes(8, "big")
    found[b"term"] = FIRST_TERM.to_bytes(8, "big")
    if plan.bump:
        # So every watcher of a revision before the jump is told that it was compacted.
        found[b"scheduledCompactRev"] = revision_key(newest_revision(bolt) + plan.bump)
    return found


def items(bolt: Bolt, bucket: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of a small bucket, which may be missing."""
    if bucket in bolt.buckets():
        for key, value in bolt.items(bucket):
            yield key, value or b""


def newest_revision(bolt: Bolt) -> int:
    """The last revision of the bucket `key`; 0 if there is none. Raises Fatal."""
    last = bolt.cursor(b"key").last() if b"key" in bolt.buckets() else None
    if last is None:
        return 0
    if len(last[0]) < REVISION_BYTES:
        raise Fatal(f"{bolt.path}: key {last[0].hex()}: this is no revision")
    return int.from_bytes(last[0][:8], "big")


def revision_key(revision: int) -> bytes:
    """A revision as a key of the backend file. Raises CommandError."""
    if revision >= 1 << 63:
        raise CommandError(f"revision {revision} is larger than any can be")
    return revision.to_bytes(8, "big") + b"_" + bytes(8)


def write_log(disk: Disk, directory: str, plan: Plan, segment_bytes: int) -> None:
    """A log whose entries add the members."""
    cluster = cluster_id(member.id for member in plan.members)
    wal = Wal.create(
        disk, directory, plan.own.id, cluster, segment_bytes=segment_bytes, ahead=False
    )
    try:
        runs, _ = bootstrap_runs(plan.members)
        for index, run in enumerate(runs, 1):
            run.assign(index, FIRST_TERM)
            wal.append(run, None)
        wal.append(None, (FIRST_TERM, plan.members[0].id, plan.index))
        wal.append_snapshot(plan.index, FIRST_TERM, plan.conf_state.encode())
        wal.sync()
    finally:
        wal.close()
