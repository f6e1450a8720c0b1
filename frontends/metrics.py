"""The text of /metrics: what core, workers and kernel say, under etcd's names.

Rules:
1. Every name of `metricnames` and every method of the API is there from the start, at 0.
2. What the core does not report is 0, never missing; a name that it reports and that is not etcd's
   is a bug.

Importing this loads prometheus-client (3 MiB), so a worker does it at its first scrape.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from grpclib.const import Status
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest

from quorate.core.version import CLUSTER_VERSION, SERVER_VERSION
from quorate.frontends.counters import (
    HANDLED,
    HEALTH_FAILURES,
    HEALTH_SUCCESS,
    METRICS_REQUESTS,
    RECEIVED,
    RECEIVED_BYTES,
    SENT,
    SENT_BYTES,
    SLOW_WATCHERS,
    STARTED,
    WATCH_EVENTS,
    WATCH_STREAMS,
    WATCHERS,
    Counters,
    check_name,
)
from quorate.frontends.health import CHECKS
from quorate.frontends.methods import METHODS, UNARY
from quorate.frontends.metricnames import COUNTER, GAUGE, HISTOGRAM, METRICS, exponential

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
# Go's names of gRPC's codes.
CODE_NAMES = {
    **{status: status.name.title().replace("_", "") for status in Status},
    Status.OK: "OK",
    Status.CANCELLED: "Canceled",
}
Values = Mapping[str, Any]


def exposition(core: Values, process: Values, counters: Counters) -> bytes:
    """The page. `core` is the answer to METRICS, `process` has names of METRICS as keys."""
    registry = CollectorRegistry()
    registry.register(Collector(core, process, counters))
    text: bytes = generate_latest(registry)
    # prometheus-client ends the name of every counter in _total; some of etcd's do not.
    for name, metric in METRICS.items():
        if metric.kind == COUNTER and not name.endswith("_total"):
            for line in (b"# HELP ", b"# TYPE "):
                text = text.replace(line + name.encode() + b"_total ", line + name.encode() + b" ")
    return text


class Collector:
    """All metrics of one scrape."""

    def __init__(self, core: Values, process: Values, counters: Counters) -> None:
        self._core = core
        self._counters = counters
        self._values = {
            **core["metrics"],
            **figure_values(core["figures"]),
            **counter_values(counters),
            **process,
        }
        # Workers send events as they come; the core sends them to those who are behind.
        self._values[EVENTS_SENT] += core["metrics"].get(EVENTS_SENT, 0)
        unknown = self._values.keys() - METRICS.keys()
        assert not unknown, f"not etcd's metrics: {sorted(unknown)}"

    def collect(self) -> Iterator[Metric]:
        """The families in the order of their names."""
        families = [*self._plain(), *self._labelled(), *self._grpc()]
        return iter(sorted(families, key=lambda family: str(family.name)))

    def _plain(self) -> Iterator[Metric]:
        for name, metric in METRICS.items():
            value = self._values.get(name, 0)
            if metric.kind == HISTOGRAM:
                counts, total = value or ([], 0.0)
                yield histogram(name, metric.help, metric.bounds, [({}, counts, total)])
            else:
                yield plain(name, metric.kind, metric.help, [({}, value)])

    def _labelled(self) -> Iterator[Metric]:
        figures = self._core["figures"]
        python = "python" + ".".join(map(str, sys.version_info[:3]))
        yield info(
            "etcd_cluster_version",
            "Cluster version.",
            "cluster_version",
            CLUSTER_VERSION.removesuffix(".0"),
        )
        yield info("etcd_server_version", "Server version.", "server_version", SERVER_VERSION)
        yield info("etcd_server_go_version", "What runs it.", "server_go_version", python)
        member = f"{figures['member_id']:x}"
        yield info("etcd_server_id", "Member id.", "server_id", member)
        yield from self._requests()
        yield from self._durations()
        yield from self._healthchecks()

    def _requests(self) -> Iterator[Metric]:
        counts = {"unary": 0, "stream": 0}
        for path, numbers in self._counters.methods.items():
            counts["unary" if METHODS[path] == UNARY else "stream"] += numbers[STARTED]
        samples = [
            ({"type": kind, "client_api_version": "unknown"}, count)
            for kind, count in counts.items()
        ]
        yield plain(
            "etcd_server_client_requests_total", COUNTER, "Requests per kind of call.", samples
        )
        scrapes = [({"code": "200"}, self._counters.named[METRICS_REQUESTS])]
        scrapes += [({"code": "500"}, 0), ({"code": "503"}, 0)]
        yield plain("promhttp_metric_handler_requests_total", COUNTER, "Scrapes.", scrapes)
        yield plain("etcd_server_feature_enabled", GAUGE, "Feature gates.", [])
        yield plain("etcd_network_known_peers", GAUGE, "Members known to each other.", [])

    def _durations(self) -> Iterator[Metric]:
        durations = self._core.get("durations", {})
        for name, bounds, text in DURATIONS:
            samples = [(labels, counts, total) for labels, counts, total in durations.get(name, ())]
            yield histogram(name, text, bounds, samples)

    def _healthchecks(self) -> Iterator[Metric]:
        totals, states = [], []
        for kind, names in CHECKS.items():
            for check in names:
                labels = {"type": kind, "name": check}
                success = self._counters.named[check_name(kind, check, True)]
                failed = self._counters.named[check_name(kind, check, False)]
                totals.append(({**labels, "status": "success"}, success))
                totals.append(({**labels, "status": "error"}, failed))
                states.append((labels, int(success > 0 and failed == 0)))
        yield plain("etcd_server_healthchecks_total", COUNTER, "Health checks.", totals)
        yield plain("etcd_server_healthcheck", GAUGE, "Whether a check holds.", states)

    def _grpc(self) -> Iterator[Metric]:
        methods = self._counters.methods
        for name, index, text in GRPC:
            samples = [(grpc_labels(path), counts[index]) for path, counts in methods.items()]
            yield plain(name, COUNTER, text, samples)
        samples = [
            ({"grpc_code": CODE_NAMES[status], **grpc_labels(path)}, counts[HANDLED + status.value])
            for path, counts in methods.items()
            for status in Status
        ]
        yield plain("grpc_server_handled_total", COUNTER, "RPCs ended on the server.", samples)


EVENTS_SENT = "etcd_debugging_mvcc_events_total"
GRPC = (
    ("grpc_server_started_total", STARTED, "RPCs started on the server."),
    ("grpc_server_msg_received_total", RECEIVED, "Messages received by the server."),
    ("grpc_server_msg_sent_total", SENT, "Messages sent by the server."),
)
# Histograms with labels; the core reports those that it measures as `durations`.
DURATIONS = (
    ("etcd_server_apply_duration_seconds", exponential(0.0001, 2, 20), "Applies, by operation."),
    ("etcd_server_range_duration_seconds", exponential(0.0001, 2, 20), "Ranges."),
    ("etcd_server_request_duration_seconds", exponential(0.001, 2, 14), "Requests, by type."),
)


def grpc_labels(path: str) -> dict[str, str]:
    """The labels of a method."""
    service, _, method = path[1:].rpartition("/")
    return {"grpc_type": METHODS[path], "grpc_service": service, "grpc_method": method}


def figure_values(figures: Values) -> dict[str, float]:
    """The metrics that follow from the core's figures."""
    return {
        "etcd_debugging_mvcc_current_revision": figures["revision"],
        "etcd_mvcc_db_total_size_in_bytes": figures["database_bytes"],
        "etcd_mvcc_db_total_size_in_use_in_bytes": figures["database_bytes_in_use"],
        "etcd_server_has_leader": int(figures["leader_id"] != 0),
        "etcd_server_is_leader": int(figures["leader_id"] == figures["member_id"]),
        "etcd_server_is_learner": int(figures["is_learner"]),
        "etcd_server_proposals_applied_total": figures["raft_applied_index"],
        "etcd_server_proposals_committed_total": figures["raft_index"],
        "etcd_server_quota_backend_bytes": figures["quota_bytes"],
    }


def counter_values(counters: Counters) -> dict[str, float]:
    """The metrics that workers count, without those of methods."""
    return {
        EVENTS_SENT: counters.named[WATCH_EVENTS],
        "etcd_debugging_mvcc_slow_watcher_total": counters.named[SLOW_WATCHERS],
        "etcd_debugging_mvcc_watch_stream_total": counters.named[WATCH_STREAMS],
        "etcd_debugging_mvcc_watcher_total": counters.named[WATCHERS],
        "etcd_network_client_grpc_received_bytes_total": counters.named[RECEIVED_BYTES],
        "etcd_network_client_grpc_sent_bytes_total": counters.named[SENT_BYTES],
        "etcd_server_health_failures": counters.named[HEALTH_FAILURES],
        "etcd_server_health_success": counters.named[HEALTH_SUCCESS],
        "promhttp_metric_handler_requests_in_flight": 1,
    }


def plain(
    name: str, kind: str, text: str, samples: Iterable[tuple[dict[str, str], float]]
) -> Metric:
    """A family of gauges or counters."""
    family = Metric(name.removesuffix("_total") if kind == COUNTER else name, text, kind)
    for labels, value in samples:
        family.add_sample(name, labels, value)
    return family


def info(name: str, text: str, label: str, value: str) -> Metric:
    """A gauge that is 1 and says something by its label."""
    return plain(name, GAUGE, text, [({label: value}, 1)])


def histogram(
    name: str,
    text: str,
    bounds: Sequence[float],
    samples: Iterable[tuple[dict[str, str], Sequence[int], float]],
) -> Metric:
    """A family of histograms; counts are per bucket, the last one is what is above all bounds."""
    family = Metric(name, text, HISTOGRAM)
    for labels, counts, total in samples:
        padded = list(counts) or [0] * (len(bounds) + 1)
        assert len(padded) == len(bounds) + 1, f"{name}: {len(padded)} counts"
        for bound, count in zip((*bounds, float("inf")), accumulate(padded), strict=True):
            shown = "+Inf" if bound == float("inf") else f"{bound:.15g}"
            family.add_sample(f"{name}_bucket", {**labels, "le": shown}, count)
        family.add_sample(f"{name}_sum", labels, total)
        family.add_sample(f"{name}_count", labels, sum(padded))
    return family
