"""The benchmark: its histogram, its load generator against a server that lies, its reports."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import pytest
from bench import (
    __main__,
    crosscheck,
    goals,
    headline,
    leasing,
    process,
    report,
    runner,
    storing,
    watching,
    workloads,
)
from bench._histogram import Histogram
from bench._keyspace import Keyspace
from bench._load import Load
from bench.cases import CASES
from bench.charts import bars
from bench.outcome import Outcome
from bench.protobuf import encode_varint, last_field
from bench.servers import Server, ServerError, Target, find_target, free_ports

from tests.fake_kv import LIES, FakeKV
from tests.messages import decode, encode
from tests.needs import need

PREFIX = b"/test/"
Kind = Literal["put", "get", "list", "txn", "call"]


# -- the histogram


def test_a_percentile_is_at_most_one_part_in_128_above_the_truth() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    values = sorted(int(chance.lognormvariate(12, 3)) for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    for percent in (0.1, 1, 25, 50, 90, 99, 99.9, 100):
        exact = values[max(0, -int(-len(values) * percent // 100) - 1)]
        assert exact <= histogram.percentile(percent) <= exact * (1 + 1 / 128) + 1, seed
    assert histogram.mean == pytest.approx(sum(values) / len(values)), seed


@pytest.mark.parametrize("value", [0, 1, 127, 128, 129, 255, 256, 2**31, 2**62, 2**63 - 1])
def test_one_value_is_every_percentile(value: int) -> None:
    histogram = Histogram()
    histogram.record(value)
    assert histogram.percentile(0.1) == histogram.percentile(100) == value
    assert (histogram.smallest, histogram.largest, histogram.total) == (value, value, 1)


def test_merged_histograms_count_like_one() -> None:
    parts = [Histogram(), Histogram(), Histogram()]
    whole = Histogram()
    for value in range(3, 30_000, 7):
        parts[value % 2].record(value)
        whole.record(value)
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    for percent in (1, 50, 99, 100):
        assert parts[0].percentile(percent) == whole.percentile(percent)
    assert (parts[0].smallest, parts[0].largest) == (3, whole.largest)
    parts[0].clear()
    assert parts[0].percentile(50) == parts[0].total == 0


# -- the load generator


def run(kind: Kind, server: FakeKV, keyspace: Keyspace, **options: Any) -> Outcome:
    with Load(server.port, kind, keyspace, connections=2, streams=3, **options) as load:
        return load.run(requests=30, patience=3)


def filled(server: FakeKV, keyspace: Keyspace, lie: str = "") -> None:
    """Every key twice; nothing is a lie until it is done."""
    server.lie = ""
    for _ in range(2):
        with Load(server.port, "put", keyspace, order="sequential") as load:
            assert load.run(requests=keyspace.count).good
    server.lie = lie


def test_all_kinds_of_work_are_answered_and_checked() -> None:
    with FakeKV() as server:
        keyspace = Keyspace(PREFIX, 20, 100)
        filled(server, keyspace)
        assert keyspace.writes == 40
        assert server.revision == 41 == keyspace.highest
        cases: list[tuple[Kind, dict[str, Any]]] = [
            ("get", {}),
            ("get", {"serializable": True}),
            ("txn", {}),
            ("list", {}),
            ("list", {"limit": 7}),
            ("list", {"keys_only": True}),
            ("list", {"count_only": True}),
        ]
        for kind, options in cases:
            outcome = run(kind, server, keyspace, **options)
            assert (outcome.succeeded, outcome.problem) == (30, ""), (kind, options)
            assert outcome.completed == outcome.latency.total == 30
        assert keyspace.writes == 40 + 30 == server.revision - 1


# Which kinds of work each lie must be caught by.
CAUGHT: dict[str, tuple[Kind, ...]] = {
    "revision": ("put", "txn"),
    "value": ("get", "list"),
    "old value": ("get", "list"),
    "key": ("get", "list"),
    "count": ("get", "list"),
    "short list": ("get", "list"),
    "more": ("get", "list"),
    "txn": ("txn",),
    "status": ("put", "get", "txn", "list"),
    "cut": ("put", "get", "txn", "list"),
    "two messages": ("put", "get", "txn", "list"),
    "compressed": ("put", "get", "txn", "list"),
    "malformed": ("put", "get", "txn", "list"),
    "silence": ("get",),
    "close": ("put",),
}


@pytest.mark.parametrize(("lie", "kind"), [(lie, kind) for lie in LIES for kind in CAUGHT[lie]])
def test_no_lie_is_believed(lie: str, kind: Kind) -> None:
    with FakeKV() as server:
        keyspace = Keyspace(PREFIX, 20, 100)
        filled(server, keyspace, lie)
        limit = 5 if kind == "list" else 0
        with Load(server.port, kind, keyspace, limit=limit) as load:
            outcome = load.run(requests=3, patience=0.3 if lie == "silence" else 3)
        assert outcome.succeeded == 0 or lie == "revision"
        assert not outcome.good
        assert outcome.problem
        assert bool(outcome.unfinished) == (lie == "silence")
        assert bool(outcome.failed) == (lie in ("status", "close"))


def test_the_servers_own_words_are_the_problem() -> None:
    with FakeKV("status") as server:
        outcome = run("put", server, Keyspace(PREFIX, 6, 100))
        assert "database space exceeded" in outcome.problem
        assert outcome.failed == 30


def test_without_checks_only_the_status_counts() -> None:
    with FakeKV("revision") as server:
        assert run("put", server, Keyspace(PREFIX, 6, 100), check=False).good


def test_an_open_loop_keeps_its_pace_and_counts_what_was_due() -> None:
    with FakeKV() as server, Load(server.port, "put", Keyspace(PREFIX, 6), streams=4) as load:
        outcome = load.run(seconds=0.5, rate=100)
        assert outcome.good
        assert outcome.completed in (49, 50, 51)


def test_an_open_loop_counts_latency_from_when_a_request_was_due() -> None:
    with FakeKV() as server, Load(server.port, "put", Keyspace(PREFIX, 6)) as load:
        outcome = load.run(requests=100, rate=1e6)
    # All were due at once and left one after the other: on average each waited for half of them.
    assert outcome.good
    assert outcome.latency.mean / 1e9 > outcome.elapsed / 5


def test_an_open_loop_counts_what_could_not_leave() -> None:
    with FakeKV("silence") as server, Load(server.port, "put", Keyspace(PREFIX, 6)) as load:
        outcome = load.run(seconds=0.2, rate=100, patience=0.1)
        # One is on its way, the others were due and could never leave.
        assert outcome.unfinished in (19, 20, 21)


def test_a_run_in_a_thread_stops_when_told() -> None:
    outcomes: list[Outcome] = []
    with FakeKV() as server, Load(server.port, "put", Keyspace(PREFIX, 6)) as load:
        thread = threading.Thread(target=lambda: outcomes.append(load.run(seconds=600, rate=50)))
        thread.start()
        load.stop()
        while thread.is_alive():
            load.stop()
            thread.join(0.01)
    assert outcomes[0].good


def test_a_call_gives_reply_and_status() -> None:
    message = encode("PutRequest", {"key": b"k", "value": b"v"})
    path = "/etcdserverpb.KV/Put"
    with FakeKV() as server, Load(server.port, "call", path=path, message=message) as load:
        assert load.run(requests=1).good
        assert decode("PutResponse", load.reply)["header"]["revision"] == 2
        assert load.status == 0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="keyspace"):
        Load(1, "put")
    with pytest.raises(ValueError, match="key of its own"):
        Load(1, "txn", Keyspace(PREFIX, 5), connections=2, streams=3)
    with pytest.raises(OSError, match="refused"):
        Load(free_ports(1)[0], "put", Keyspace(PREFIX, 5))
    for prefix, count, size in ((b"", 1, 100), (b"x" * 64, 1, 100), (b"k", 0, 100), (b"k", 1, 15)):
        with pytest.raises(ValueError, match="has"):
            Keyspace(prefix, count, size)
    with FakeKV() as server, Load(server.port, "put", Keyspace(PREFIX, 5)) as load:
        with pytest.raises(ValueError, match="either"):
            load.run()
        load.close()
        with pytest.raises(RuntimeError, match="closed"):
            load.run(requests=1)


def test_h2load_gets_the_generators_own_bytes() -> None:
    keyspace = Keyspace(PREFIX, 1, 200)
    body = crosscheck.request_body("put", keyspace)
    request = decode("PutRequest", body[5:])
    assert request == {"key": keyspace.key(0), "value": keyspace.value(0, 1)}
    assert int.from_bytes(body[1:5], "big") == len(body) - 5


def test_protobuf_by_hand() -> None:
    header = {"cluster_id": 2**63, "revision": 300}
    reply = encode("PutResponse", {"header": header})
    inner = last_field(reply, 1)
    assert isinstance(inner, bytes)
    assert last_field(inner, 3) == 300
    assert last_field(inner, 4) == 0
    assert encode_varint(300) == b"\xac\x02"


# -- figures, goals, reports

QUORATE = Target("quorate", "/q", "3.7.1", is_quorate=True)
OLD = Target("etcd 3.4.23", "/a", "3.4.23")
NEW = Target("etcd 3.10.1", "/b", "3.10.1")


def some_results() -> runner.Results:
    results = runner.Results([QUORATE, OLD, NEW])
    row = "put 10x10, one key"
    for rate in (150_000.0, 90_000.0, 140_000.0):
        results.add(QUORATE, {row: {"per_second": rate, "cpu_us": 12.0}})
        results.add(OLD, {row: {"per_second": 30_000.0}})
    results.add(QUORATE, {"idle": {"pss_mib": 40.0, "cpu_percent": 0.2}})
    results.add(QUORATE, {"memory of 1,000,000 keys": {"pss_mib": 300.0}})
    results.add(NEW, {"memory of 1,000,000 keys": {"pss_mib": 500.0}})
    results.add(OLD, {"memory of 1,000,000 keys": {"pss_mib": 100.0}})
    return results


def test_goals_are_judged_by_medians_and_against_the_right_server() -> None:
    verdicts = {(str(v.goal), v.goal.row): v for v in report.verdicts_of(some_results())}
    times = verdicts[">= 4.5 x etcd", "put 10x10, one key"]
    assert times.value == pytest.approx(140 / 30)
    assert times.reached
    assert not verdicts["<= 10 µs", "put 10x10, one key"].reached
    assert verdicts["<= 45 MiB", "idle"].reached
    memory = verdicts["<= 0.8 x newest etcd", "memory of 1,000,000 keys"]
    assert memory.value == pytest.approx(0.6)
    assert memory.reached


def row_patterns() -> list[re.Pattern[str]]:
    """Every text of the cases' sources that may name a row, with anything where a value goes."""
    patterns = [re.escape(case.name) for case in CASES]
    for module in (workloads, watching, leasing, storing):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.JoinedStr):
                fixed = [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
                # What is nearly nothing but values would name any row.
                if len("".join(fixed)) > 4:
                    patterns.append("".join(pattern_of(part) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                patterns.append(re.escape(node.value))
    return [re.compile(pattern) for pattern in patterns]


def pattern_of(part: ast.expr) -> str:
    """One piece of an f-string, as a regular expression."""
    return re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"[\w,' /]+"


def test_every_goal_names_a_row_that_a_case_gives() -> None:
    patterns = row_patterns()
    for goal in goals.GOALS:
        for row in filter(None, (goal.row, goal.other_row)):
            assert any(pattern.fullmatch(row) for pattern in patterns), row
    for row in ("put quickly", "1,000 leases due one by one"):
        assert not any(pattern.fullmatch(row) for pattern in patterns), row


def test_a_report_has_every_row_and_is_read_back(tmp_path: Path) -> None:
    results = some_results()
    results.problems.append("etcd 3.4.23, get: a value is not what was put")
    path = report.write(results, workloads.Settings(), {"file system": "ext4"}, tmp_path)
    text = path.read_text()
    assert "| put 10x10, one key | per_second | 140,000 /s | 30,000 /s | - | 4.67 | - |" in text
    assert "a value is not what was put" in text
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["medians"]["quorate"]["idle"]["pss_mib"] == 40.0
    drawings = sorted(tmp_path.glob("*.svg"))
    assert len(drawings) == 2
    for drawing in drawings:
        ElementTree.fromstring(drawing.read_text())


def test_a_chart_draws_one_bar_for_each_figure() -> None:
    text = bars("a < b", "/s", {"x": {"one": 1.0, "two": 2.0}, "y": {"two": 0.0}}, ["one", "two"])
    rects = [each for each in ElementTree.fromstring(text).iter() if each.tag.endswith("rect")]
    assert len(rects) == 1 + 2 + 3


def test_targets_take_turns_and_a_failure_does_not_end_the_rest(tmp_path: Path) -> None:
    order: list[str] = []

    def case(stage: workloads.Stage) -> workloads.Rows:
        order.append(stage.target.name)
        assert stage.directory.is_dir()
        if stage.target is OLD:
            raise workloads.WrongAnswer("it lied")
        return {"row": {"seconds": 1.0}}

    cases = [workloads.Case("g", "a", case), workloads.Case("g", "b", case, quorate_only=True)]
    lines: list[str] = []
    results = runner.run_rounds(
        cases, [QUORATE, OLD], workloads.Settings(), 2, tmp_path, lines.append
    )
    assert order == ["quorate", "etcd 3.4.23", "quorate", "etcd 3.4.23", "quorate", "quorate"]
    assert results.problems == ["etcd 3.4.23, a: it lied"] * 2
    assert len(results.rounds["quorate"]["row"]) == 4
    assert list(tmp_path.iterdir()) == []
    assert len(lines) == 6


def test_the_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        __main__.parse(["putt"])
    with pytest.raises(ServerError, match="no such program"):
        find_target(str(tmp_path / "etcd"))
    twins = __main__.distinct([OLD, Target("etcd 3.4.23", "/c", "3.4.23")])
    assert [each.name for each in twins] == ["etcd 3.4.23 /a", "etcd 3.4.23 /c"]
    assert __main__.parse(["put", "--quick"]).rounds == 1


def test_a_memory_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "file_system_of", lambda directory: "tmpfs")
    with pytest.raises(ServerError, match="not durable"):
        __main__.check_disk(tmp_path, scale=0.01)


def test_cpu_and_memory_of_this_process() -> None:
    before = process.cpu_seconds(os.getpid())
    while process.cpu_seconds(os.getpid()) < before + 0.03:
        sum(range(10_000))
    found = process.memory(os.getpid())
    assert 5 < found["anonymous_mib"] <= found["pss_mib"] < 2000
    assert os.getpid() in process.tree(os.getppid())
    with process.peak_memory(os.getpid()) as peak:
        pass
    assert peak.mib > 5


def test_a_server_too_slow_for_the_window_has_figures_all_the_same() -> None:
    with FakeKV() as server, Load(server.port, "put", Keyspace(PREFIX, 6)) as load:
        stand_in = Server(OLD, Path("unused"))
        stand_in._process = subprocess.Popen(["sleep", "60"])
        settings = workloads.Settings(seconds=1e-6, warmup=0.0)
        try:
            found = workloads.figures(stand_in, load, settings)
        finally:
            stand_in.stop()
    assert found["p50_us"] > 0
    assert found["per_second"] > 0


# -- with a real server


@pytest.mark.compat
@pytest.mark.slow
@pytest.mark.parametrize("name", ["put 10x10, one key", "txn", "list", "memory", "compaction"])
def test_a_case_runs_against_etcd(name: str, quick_path: Path) -> None:
    target = find_target(need("etcd"))
    case = next(case for case in CASES if case.name == name)
    settings = workloads.Settings(seconds=0.2, warmup=0.1, scale=0.001)
    rows = case.run(workloads.Stage(target, settings, quick_path))
    assert rows
    for metrics in rows.values():
        assert all(value >= 0 for name, value in metrics.items() if not name.startswith("overhead"))


@pytest.mark.compat
@pytest.mark.slow
def test_the_headline_question_is_answered(quick_path: Path) -> None:
    target = find_target(need("etcd"))
    lines: list[str] = []
    (answer,) = headline.ask([target], 0.2, quick_path, lines.append)
    assert answer.clients in headline.CLIENTS
    assert str(answer).startswith(f"{target.name}: {'yes' if answer.reached else 'no'}")
    assert len(lines) == headline.CLIENTS.index(answer.clients) + 1


@pytest.mark.compat
def test_a_server_that_cannot_start_is_a_clear_error(tmp_path: Path) -> None:
    need("etcd")
    bad = Target("etcd", shutil.which("false") or "false", "0")
    stage = workloads.Stage(bad, workloads.Settings(), tmp_path)
    with pytest.raises(ServerError, match="ended with 1"):
        stage.server.start()
