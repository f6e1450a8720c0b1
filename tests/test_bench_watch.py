"""The benchmark's watchers and leases against a server that lies, and its cases against etcd."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Literal

import pytest
from bench import leasing, runner, watching, workloads
from bench._keepalives import KeepAlives
from bench._keyspace import Keyspace
from bench._load import Load
from bench._watchers import Watchers
from bench.outcome import Delivery
from bench.servers import Target, find_target

from tests.fake_watch import LEASE_LIES, WATCH_LIES, FakeWatch
from tests.messages import decode
from tests.needs import need

PREFIX = b"/test/"
On = Literal["one key", "own key", "prefix"]


@pytest.mark.parametrize(("on", "fan"), [("one key", 12), ("own key", 1), ("prefix", 12)])
def test_every_watcher_gets_every_event(on: On, fan: int) -> None:
    with FakeWatch() as server:
        keyspace = Keyspace(PREFIX, 1 if on == "one key" else 12, 100)
        with (
            Watchers(server.port, keyspace, connections=2, streams=3, each=2, on=on) as watchers,
            Load(server.port, "put", keyspace, streams=3) as writer,
        ):
            assert watchers.created.succeeded == 12
            for _ in range(2):
                before = keyspace.writes
                delivery = watchers.run(writer, seconds=0.1, undelivered=2)
                assert (delivery.good, delivery.problem) == (True, "")
                assert delivery.succeeded == fan * (keyspace.writes - before) > 0
                assert delivery.completed <= delivery.succeeded
                assert 0 < delivery.latency.total <= delivery.succeeded
                assert delivery.first_event <= delivery.last_event


def test_events_of_the_past_may_come_with_the_watchers_creation() -> None:
    """They were once taken for more events than there had been writes."""
    with FakeWatch() as server:
        keyspace = Keyspace(PREFIX, 3, 100)
        with Load(server.port, "put", keyspace) as writer:
            assert writer.run(requests=9).good
        with Watchers(server.port, keyspace, on="prefix", start_revision=1) as watcher:
            assert watcher.created.good, watcher.created.problem
            watcher.finish()
            assert watcher.run(patience=10).good


def test_an_open_loop_writes_at_its_pace_beside_its_watchers() -> None:
    with FakeWatch() as server:
        keyspace = Keyspace(PREFIX, 1, 100)
        with (
            Watchers(server.port, keyspace, connections=2, streams=2) as watchers,
            Load(server.port, "put", keyspace, streams=4) as writer,
        ):
            delivery = watchers.run(writer, seconds=0.5, rate=100)
    assert delivery.good
    assert delivery.succeeded in (4 * 49, 4 * 50, 4 * 51)
    assert delivery.latency.total == delivery.succeeded


def test_slow_readers_get_everything_in_the_end() -> None:
    with FakeWatch() as server:
        keyspace = Keyspace(PREFIX, 1, 1024)
        with (
            Watchers(server.port, keyspace, connections=2, pace=1000.0) as slow,
            Load(server.port, "put", keyspace) as writer,
        ):
            done: list[Delivery] = []
            thread = threading.Thread(target=lambda: done.append(slow.run(patience=10)))
            thread.start()
            assert writer.run(requests=10).good
            written = time.monotonic()
            slow.finish()
            thread.join()
    assert done[0].good
    assert done[0].succeeded == 20
    # At a thousand bytes a second there was no time for the last one before.
    assert done[0].last_event > written


def test_a_watcher_sees_every_key_deleted_once() -> None:
    for times in (1, 2):
        with FakeWatch() as server:
            keyspace = Keyspace(PREFIX, 10, 100)
            with Load(server.port, "put", keyspace, order="sequential") as load:
                assert load.run(requests=10).good
            with Watchers(server.port, keyspace, streams=2, on="prefix", deletes=True) as watchers:
                server.delete_all(times)
                watchers.finish()
                ended = watchers.run(patience=5)
            assert ended.succeeded == 20
            assert ended.good == (times == 1), ended


# What is said of each lie.
PROBLEMS = {
    "missing": "an event is missing",
    "twice": "an event came twice",
    "order": "an event is missing",
    "late": "events are out of order",
    "value": "an event's value is not what was put",
    "key": "an event of a key that is not watched",
    "type": "an event is of the wrong type",
    "header": "an event's revision is above the header's",
    "revision": "one write has two revisions",
    "disagree": "one write has two revisions",
    "watch id": "watchers of a stream are not numbered from 0",
    "unknown watcher": "an event came for a watcher that was not created",
    "cancel": "because",
    "malformed": "a watch response is malformed",
    "compressed": "a message is compressed",
    "end": "the server ended a watch stream",
    "silence": "",
    "no watch": "unknown service",
}


@pytest.mark.parametrize("lie", WATCH_LIES)
def test_no_lie_of_a_watch_is_believed(lie: str) -> None:
    with FakeWatch(lie) as server:
        keyspace = Keyspace(PREFIX, 2 if lie == "late" else 1, 100)
        with (
            Watchers(
                server.port,
                keyspace,
                connections=2,
                streams=2,
                on="prefix" if lie == "late" else "one key",
                patience=0.3,
            ) as watchers,
            Load(server.port, "put", keyspace, order="sequential") as writer,
        ):
            created = watchers.created
            delivery = watchers.run(writer, seconds=0.05, rate=200, patience=0.3)
    assert delivery.writes is not None
    assert not (delivery.good and delivery.writes.good)
    said = delivery.problem or delivery.writes.problem
    assert said.startswith(PROBLEMS[lie])
    assert delivery.unimplemented == created.unimplemented == (lie == "no watch")
    assert created.good == (lie not in ("watch id", "malformed", "compressed", "no watch")), created


@pytest.mark.parametrize("lie", ["", *LEASE_LIES])
def test_grants_and_keep_alives_are_checked(lie: str) -> None:
    with FakeWatch() as server:
        keyspace = Keyspace(PREFIX, 10)
        with Load(server.port, "grant", keyspace, order="sequential") as load:
            assert load.run(requests=10, ttl=60).good
            server.watch_lie = lie
            assert load.run(requests=10, ttl=60).good == (lie in ("", "no lease"))
        with KeepAlives(server.port, 10, 60, connections=2, streams=2) as alive:
            outcome = alive.run(seconds=0.1, patience=1)
            assert outcome.good == (lie == ""), outcome
            assert outcome.unimplemented == (lie == "no lease")
            assert (outcome.succeeded > 0) == (lie == "")
            assert outcome.completed == outcome.latency.total


def test_puts_are_attached_to_the_lease_of_their_key() -> None:
    seen: list[bytes] = []

    class Listening(FakeWatch):
        def _put(self, message: bytes) -> bytes:
            seen.append(message)
            return super()._put(message)

    with Listening() as server:
        keyspace = Keyspace(PREFIX, 3)
        with Load(server.port, "put", keyspace, order="sequential", leased=True) as load:
            assert load.run(requests=2, first=1).good
    leases = [decode("PutRequest", message)["lease"] for message in seen]
    keys = [decode("PutRequest", message)["key"] for message in seen]
    assert keys == [keyspace.key(1), keyspace.key(2)]
    assert leases[1] - leases[0] == 1


def test_closed_or_misused_they_say_so() -> None:
    with FakeWatch() as server:
        keyspace = Keyspace(PREFIX, 10)
        watchers = Watchers(server.port, keyspace)
        watchers.close()
        with pytest.raises(RuntimeError, match="closed"):
            watchers.run()
        with pytest.raises(ValueError, match="lease of its own"):
            KeepAlives(server.port, 3, 60, connections=2, streams=2)
        alive = KeepAlives(server.port, 10, 60)
        alive.close()
        with pytest.raises(RuntimeError, match="closed"):
            alive.run(seconds=1)


def test_what_a_server_does_not_have_is_reported_and_the_rest_runs(tmp_path: Path) -> None:
    def case(stage: workloads.Stage) -> workloads.Rows:
        with FakeWatch("no watch") as server, Watchers(server.port, Keyspace(PREFIX, 1)) as crowd:
            workloads.demand(crowd.created, "creating watchers")
        return {}

    target = Target("etcd 3.4.23", "/a", "3.4.23")
    cases = [
        workloads.Case("watch", "a", case),
        workloads.Case("watch", "b", lambda stage: {"b": {"seconds": 1.0}}),
    ]
    lines: list[str] = []
    results = runner.run_rounds(cases, [target], workloads.Settings(), 1, tmp_path, lines.append)
    assert results.unimplemented == ["etcd 3.4.23, a: creating watchers: unknown service"]
    assert results.problems == []
    assert list(results.rounds["etcd 3.4.23"]) == ["b"]


def test_the_mean_of_before_and_after() -> None:
    assert watching.mean({"p99_us": 1.0}, {"p99_us": 3.0}) == {"p99_us": 2.0}


@pytest.mark.compat
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [case.name for case in (*watching.CASES, *leasing.CASES) if "10,000" not in case.name],
)
def test_a_case_runs_against_etcd(name: str, quick_path: Path) -> None:
    target = find_target(need("etcd"))
    case = next(case for case in (*watching.CASES, *leasing.CASES) if case.name == name)
    settings = workloads.Settings(seconds=0.2, warmup=0.1, scale=0.001)
    try:
        rows = case.run(workloads.Stage(target, settings, quick_path / "once"))
    except workloads.WrongAnswer as error:
        # etcd gives up a request after seven seconds, which a starved machine once needs.
        if "request timed out" not in str(error):
            raise
        rows = case.run(workloads.Stage(target, settings, quick_path / "again"))
    assert rows
    for metrics in rows.values():
        for metric, value in metrics.items():
            assert value >= 0 or metric in ("bytes_per_lease", "more_seconds"), metric
