"""Every metric of etcd 3.7 that has no label or a fixed one: its type, buckets and meaning.

Rules:
1. Dashboards and alerts know the names: none is renamed, none is left out. A metric of something
   that quorate does not have (a backend's rebalance, a proxy's cache) is there and stays 0.
2. Metrics of Go's runtime (`go_*`) have nothing to say here and are left out.
"""

from __future__ import annotations

from typing import NamedTuple

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"


class MetricName(NamedTuple):
    """One metric; `bounds` are the upper bounds of a histogram's buckets, without infinity."""

    name: str
    kind: str
    bounds: tuple[float, ...]
    help: str


def exponential(start: float, factor: float, count: int) -> tuple[float, ...]:
    """`count` bounds, each `factor` times the one before."""
    return tuple(start * factor**step for step in range(count))


# name, g = gauge, c = counter, or start,factor,count of a histogram's bounds; what it measures
TABLE = """
etcd_debugging_auth_revision g Revision of the auth store.
etcd_debugging_disk_backend_commit_rebalance_duration_seconds 0.001,2,14 None: no such step here.
etcd_debugging_disk_backend_commit_spill_duration_seconds 0.001,2,14 None: no such step here.
etcd_debugging_disk_backend_commit_write_duration_seconds 0.001,2,14 None: no such step here.
etcd_debugging_lease_granted_total c Leases granted.
etcd_debugging_lease_renewed_total c Leases renewed by the leader.
etcd_debugging_lease_revoked_total c Leases revoked.
etcd_debugging_lease_ttl_total 1,2,24 Time to live of granted leases, in seconds.
etcd_debugging_mvcc_compact_revision g Revision of the last compaction.
etcd_debugging_mvcc_current_revision g Revision of the store.
etcd_debugging_mvcc_db_compaction_keys_total c Versions removed by compactions.
etcd_debugging_mvcc_db_compaction_last g Unix time of the last compaction.
etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds 1,2,13 Pauses made by compactions.
etcd_debugging_mvcc_db_compaction_total_duration_milliseconds 100,2,14 Time of whole compactions.
etcd_debugging_mvcc_events_total c Events sent to watchers.
etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds 0.5,2,14 None: no such pause here.
etcd_debugging_mvcc_keys_total g Keys in the store.
etcd_debugging_mvcc_pending_events_total g Events that wait for slow watchers.
etcd_debugging_mvcc_slow_watcher_total g Watchers that are not up to date.
etcd_debugging_mvcc_total_put_size_in_bytes g Bytes of keys and values put since the start.
etcd_debugging_mvcc_watch_stream_total g Watch streams.
etcd_debugging_mvcc_watcher_total g Watchers.
etcd_debugging_server_lease_expired_total c Leases that expired.
etcd_debugging_server_watch_send_loop_control_stream_duration_seconds 0.001,2,14 Control replies.
etcd_debugging_server_watch_send_loop_progress_duration_seconds 0.001,2,14 Progress replies.
etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds 0.001,2,14 One event.
etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds 0.001,2,14 Event replies.
etcd_debugging_snap_save_marshalling_duration_seconds 0.001,2,14 Encoding of snapshots.
etcd_debugging_snap_save_total_duration_seconds 0.001,2,14 Saving of snapshots.
etcd_debugging_store_expires_total c None: there is no v2 store.
etcd_debugging_store_watch_requests_total c None: there is no v2 store.
etcd_debugging_store_watchers g None: there is no v2 store.
etcd_disk_backend_commit_duration_seconds 0.001,2,14 Commits of a checkpoint to disk.
etcd_disk_backend_defrag_duration_seconds 0.1,2,13 Defragmentations; they have nothing to do.
etcd_disk_backend_snapshot_duration_seconds 0.01,2,17 Making of backend snapshots.
etcd_disk_defrag_inflight g Whether a defragmentation runs: never.
etcd_disk_wal_fsync_duration_seconds 0.001,2,14 Syncs of the write-ahead log.
etcd_disk_wal_write_bytes_total g Bytes written to the write-ahead log.
etcd_disk_wal_write_duration_seconds 0.001,2,14 Writes to the write-ahead log.
etcd_grpc_proxy_cache_hits_total g None: this is no proxy.
etcd_grpc_proxy_cache_keys_total g None: this is no proxy.
etcd_grpc_proxy_cache_misses_total g None: this is no proxy.
etcd_grpc_proxy_events_coalescing_total c None: this is no proxy.
etcd_grpc_proxy_watchers_coalescing_total g None: this is no proxy.
etcd_mvcc_db_open_read_transactions g Lists that are being read at their revision.
etcd_mvcc_db_total_size_in_bytes g Bytes that a checkpoint of the store would take.
etcd_mvcc_db_total_size_in_use_in_bytes g Bytes of it that are live.
etcd_mvcc_delete_total c Deletes of keys.
etcd_mvcc_hash_duration_seconds 0.01,2,15 Hashes of the whole backend.
etcd_mvcc_hash_rev_duration_seconds 0.01,2,15 Hashes at a revision.
etcd_mvcc_put_total c Puts.
etcd_mvcc_range_total c Ranges.
etcd_mvcc_txn_total c Transactions.
etcd_network_client_grpc_received_bytes_total c Bytes received from clients.
etcd_network_client_grpc_sent_bytes_total c Bytes sent to clients.
etcd_server_has_leader g Whether a leader is known: 1 or 0.
etcd_server_health_failures c Health checks that failed.
etcd_server_health_success c Health checks that went well.
etcd_server_heartbeat_send_failures_total c Heartbeats that were sent late.
etcd_server_is_leader g Whether this member leads: 1 or 0.
etcd_server_is_learner g Whether this member is a learner: 1 or 0.
etcd_server_leader_changes_seen_total c Changes of the leader.
etcd_server_learner_promote_successes c Learners promoted while this member led.
etcd_server_proposals_applied_total g Index of the last applied entry.
etcd_server_proposals_committed_total g Index of the last committed entry.
etcd_server_proposals_failed_total c Proposals that failed.
etcd_server_proposals_pending g Proposals that wait for their commit.
etcd_server_quota_backend_bytes g Quota of the store, in bytes.
etcd_server_read_indexes_failed_total c Read indexes that failed.
etcd_server_slow_apply_total c Applies that took over 100 ms.
etcd_server_slow_read_indexes_total c Read indexes that came late.
etcd_server_snapshot_apply_in_progress_total g Whether a snapshot is being applied: 1 or 0.
etcd_snap_db_fsync_duration_seconds 0.001,2,14 Syncs of received snapshots.
etcd_snap_db_save_total_duration_seconds 0.1,2,10 Saving of received snapshots.
etcd_snap_fsync_duration_seconds 0.001,2,14 Syncs of snapshot files.
os_fd_limit g Descriptors that this process may open.
os_fd_used g Descriptors that this process has open.
process_cpu_seconds_total c CPU time of core and workers.
process_max_fds g Descriptors that one process may open.
process_network_receive_bytes_total c Bytes received by this machine.
process_network_transmit_bytes_total c Bytes sent by this machine.
process_open_fds g Descriptors that core and workers have open.
process_resident_memory_bytes g Memory of core and workers, pages shared since the fork twice.
process_start_time_seconds g Unix time of the core's start.
process_virtual_memory_bytes g Virtual memory of the core.
process_virtual_memory_max_bytes g Virtual memory that a process may have; -1 for no limit.
promhttp_metric_handler_requests_in_flight g Scrapes under way.
"""


def parse_line(line: str) -> MetricName:
    """One line of the table."""
    name, kind, text = line.split(" ", 2)
    if kind in ("g", "c"):
        return MetricName(name, GAUGE if kind == "g" else COUNTER, (), text)
    start, factor, count = kind.split(",")
    return MetricName(name, HISTOGRAM, exponential(float(start), float(factor), int(count)), text)


METRICS: dict[str, MetricName] = {
    metric.name: metric for metric in map(parse_line, TABLE.strip().splitlines())
}
