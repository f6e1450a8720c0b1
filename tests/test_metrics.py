"""/metrics: every name and type of etcd 3.7.1, with what is known as values."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from grpclib.const import Status

from quorate.core.limits import WORKER_COUNTERS_MAX
from quorate.frontends.counters import (
    GAUGES,
    GAUGES_AT,
    HANDLED,
    METHOD_FIELDS,
    NAMED,
    SENT_BYTES,
    STARTED,
    Counters,
    check_name,
    pack,
    unpack,
)
from quorate.frontends.methods import METHODS
from quorate.frontends.metrics import CODE_NAMES, exposition
from quorate.workers.processes import process_values
from tests.fakepump import FIGURES

PROBES = Path(__file__).parent / "recordings" / "probes.json.gz"
PUT = "/etcdserverpb.KV/Put"
SAMPLE = re.compile(r"^([a-z_0-9]+)(\{[^}]*\})? (\S+)$")


def page(counters: Counters | None = None, **metrics: object) -> dict[str, float]:
    """Every sample of a page, by its name and labels."""
    core = {"figures": FIGURES._asdict(), "metrics": metrics}
    return samples(exposition(core, {}, counters or Counters()).decode())


def samples(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.match(line)
            assert match, line
            key = match[1] + (match[2] or "")
            assert key not in found, f"{key} is there twice"
            found[key] = float(match[3])
    return found


def test_names_and_types_are_those_of_etcd() -> None:
    recorded = json.loads(gzip.decompress(PROBES.read_bytes()))["metrics"]
    core = {"figures": FIGURES._asdict(), "metrics": {}}
    text = exposition(core, {}, Counters()).decode()
    found = re.findall(r"^# TYPE (\S+ \S+)$", text, re.M)
    wanted = [name for name in recorded if not name.startswith("go_")]
    assert sorted(found) == sorted(wanted)
    assert sorted(re.findall(r"^# HELP (\S+) .", text, re.M)) == sorted(
        one.split()[0] for one in found
    )


def test_figures_become_gauges() -> None:
    found = page()
    assert found["etcd_server_has_leader"] == 1
    assert found["etcd_server_is_leader"] == 1
    assert found["etcd_debugging_mvcc_current_revision"] == 7
    assert found["etcd_server_proposals_committed_total"] == 12
    assert found["etcd_server_proposals_applied_total"] == 11
    assert found['etcd_server_id{server_id="8e9e05c52164694d"}'] == 1
    assert found['etcd_server_version{server_version="3.7.1"}'] == 1
    assert found['etcd_cluster_version{cluster_version="3.7"}'] == 1


def test_every_method_and_code_is_there_from_the_start() -> None:
    found = page()
    for name in ("started", "msg_received", "msg_sent"):
        prefix = f"grpc_server_{name}_total{{"
        assert sum(key.startswith(prefix) for key in found) == len(METHODS)
    handled = [key for key in found if key.startswith("grpc_server_handled_total{")]
    assert len(handled) == len(METHODS) * len(Status)
    names = "OK Canceled Unknown InvalidArgument DeadlineExceeded NotFound AlreadyExists"
    names += " PermissionDenied ResourceExhausted FailedPrecondition Aborted OutOfRange"
    names += " Unimplemented Internal Unavailable DataLoss Unauthenticated"
    assert " ".join(CODE_NAMES[status] for status in Status) == names


def test_counters_become_samples() -> None:
    counters = Counters()
    counters.methods[PUT][STARTED] = 5
    counters.methods[PUT][HANDLED + Status.INVALID_ARGUMENT.value] = 2
    counters.named[SENT_BYTES] = 99
    counters.named[check_name("readyz", "linearizable_read", False)] = 4
    found = page(unpack(pack(counters)))
    labels = 'grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"'
    assert found[f"grpc_server_started_total{{{labels}}}"] == 5
    key = f'grpc_server_handled_total{{grpc_code="InvalidArgument",{labels}}}'
    assert found[key] == 2
    assert found["etcd_network_client_grpc_sent_bytes_total"] == 99
    kind = 'client_api_version="unknown",type="unary"'
    assert found[f"etcd_server_client_requests_total{{{kind}}}"] == 5
    check = 'name="linearizable_read",status="error",type="readyz"'
    assert found[f"etcd_server_healthchecks_total{{{check}}}"] == 4


def test_histograms_are_cumulative() -> None:
    found = page(etcd_disk_wal_fsync_duration_seconds=[[1, 2] + [0] * 12 + [3], 1.5])
    name = "etcd_disk_wal_fsync_duration_seconds"
    bounds = [key for key in found if key.startswith(f"{name}_bucket")]
    assert len(bounds) == 15
    assert found[f'{name}_bucket{{le="0.001"}}'] == 1
    assert found[f'{name}_bucket{{le="0.002"}}'] == 3
    assert found[f'{name}_bucket{{le="8.192"}}'] == 3
    assert found[f'{name}_bucket{{le="+Inf"}}'] == 6
    assert (found[f"{name}_sum"], found[f"{name}_count"]) == (1.5, 6)


def test_a_name_that_etcd_does_not_have_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="etcd_mvcc_puts"):
        page(etcd_mvcc_puts=1)


def test_a_block_comes_back_as_it_was() -> None:
    count = len(METHODS) * METHOD_FIELDS + len(NAMED)
    numbers = [*range(count), *[0] * (GAUGES_AT - count), *range(1, len(GAUGES) + 1)]
    assert len(numbers) <= WORKER_COUNTERS_MAX
    assert pack(unpack(numbers)) == numbers


def test_the_kernel_tells_of_real_processes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        values = process_values(os.getpid())
        assert child.stdin is not None
        child.stdin.close()
    assert values["process_open_fds"] > values["os_fd_used"] > 2
    assert values["process_resident_memory_bytes"] > 10_000_000
    assert values["process_start_time_seconds"] > 1_600_000_000
    gone = process_values(1, tmp_path)
    assert gone["process_resident_memory_bytes"] == 0
