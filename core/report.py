"""The core's own figures, members, alarms and counters, behind the calls that Python answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import admin
from .config import Config
from .errors import EtcdError
from .fleet import Fleet
from .messages import AlarmMember, AlarmRequest
from .node import Node
from .snapshots import Handed, SnapshotDone


class Report:
    """The node as `core/admin.py` asks for it."""

    def __init__(self, config: Config, node: Node, fleet: Fleet) -> None:
        self.config = config
        self.node = node
        self.fleet = fleet

    def handle(
        self, call: int, payload: bytes, answer: Callable[[bytes | Handed | EtcdError], None]
    ) -> None:
        """Answer what a worker asks."""
        admin.handle(self, call, payload, answer)

    def figures(self) -> admin.Figures:
        """The figures of this moment."""
        node = self.node
        _, size, size_in_use = node.applier.figures()
        return admin.Figures(
            cluster_id=node.wal.cluster_id,
            member_id=node.wal.node_id,
            revision=node.state.store.revision,
            raft_term=node.raft.term,
            raft_index=node.raft.log.committed,
            raft_applied_index=node.applier.applied,
            leader_id=node.raft.leader,
            is_learner=False,
            database_bytes=size,
            database_bytes_in_use=size_in_use,
            quota_bytes=self.config.quota_bytes,
            storage_version=node.checkpoints.storage_version,
        )

    def members(self) -> Sequence[admin.MemberInfo]:
        """All members; this one's name and client URLs are those of its own flags."""
        own = self.node.wal.node_id
        return [
            admin.MemberInfo(
                member.id,
                self.config.name if member.id == own else member.name,
                member.peer_urls,
                self.config.advertise_client_urls if member.id == own else member.client_urls,
                member.is_learner,
            )
            for member in self.node.state.members.list()
        ]

    def alarms(self) -> Sequence[admin.Alarm]:
        """The alarms that are on."""
        return [
            admin.Alarm(alarm.member_id, alarm.alarm) for alarm in self.node.state.members.alarms()
        ]

    def read_index(self, done: admin.Done) -> None:
        """Call `done` when all that is committed now is applied."""
        self.node.read_index(done)

    def propose_alarm(self, request: bytes, done: admin.AlarmsDone) -> None:
        """Propose an AlarmRequest. Raises MalformedError."""

        def applied(result: Sequence[AlarmMember] | EtcdError) -> None:
            if isinstance(result, EtcdError):
                done(result)
            else:
                done([admin.Alarm(alarm.member_id, alarm.alarm) for alarm in result])

        self.node.propose_alarm(AlarmRequest.decode(request), applied)

    def open_snapshot(self, done: SnapshotDone) -> None:
        """Call `done` with a backend file."""
        self.node.snapshots.open_snapshot(done)

    def metrics(self) -> admin.Metrics:
        """What the core counts."""
        node = self.node
        store = node.state.store
        syncs = node.wal.statistics()
        keys, _, _ = node.applier.figures()
        granted, revoked, renewed, expired, ttls, ttl_seconds = node.applier.lessor.metrics()
        return {
            "etcd_disk_wal_fsync_duration_seconds": admin.Histogram(
                syncs.fsync_buckets, syncs.fsync_seconds
            ),
            "etcd_disk_backend_snapshot_duration_seconds": admin.Histogram(
                node.snapshots.duration_counts, node.snapshots.duration_seconds
            ),
            "etcd_disk_wal_write_bytes_total": syncs.written_bytes,
            "etcd_debugging_lease_granted_total": granted,
            "etcd_debugging_lease_revoked_total": revoked,
            "etcd_debugging_lease_renewed_total": renewed,
            "etcd_debugging_lease_ttl_total": admin.Histogram(ttls, ttl_seconds),
            "etcd_debugging_server_lease_expired_total": expired,
            "etcd_debugging_mvcc_events_total": node.batch.events.caught_up,
            "etcd_debugging_mvcc_keys_total": keys,
            "etcd_debugging_mvcc_current_revision": store.revision,
            "etcd_debugging_mvcc_compact_revision": store.compact_revision,
        }

    def worker_counters(self) -> Sequence[int]:
        """The sum of the counters of all workers, past and present."""
        return self.fleet.counters()
