"""What is measured: each case gets a server on a fresh data directory and gives rows of figures.

A row has a name ("put 10x10, one key": 10 connections with 10 streams each) and figures by metric
name. The name of a metric ends with its unit. Where the same row means the same for every server,
`goals` compares them.

Rules:
- Every case checks answers: what the load generator calls wrong, a revision that does not rise by
  exactly the acknowledged writes, or a count that is off after a restart raises WrongAnswer.
- The open loops run at a pace that every server here can hold, so that their percentiles compare
  stalls and not capacity.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench import process
from bench._keyspace import Keyspace
from bench._load import Load
from bench.outcome import Outcome
from bench.servers import Server, Target

Metrics = dict[str, float]
Rows = dict[str, Metrics]
AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)

SHAPES = ((1, 100), (10, 10), (100, 10))
LIST_CLIENTS = 5
# Like a gRPC client that trusts its memory: enough to keep a loopback connection busy.
LIST_WINDOW = 4 * 1024 * 1024
# Figures of fewer answers are none.
ANSWERS_MIN = 5
# A pace that etcd holds with ease on two cores beside other work.
PACE_BESIDE_LISTS = 500.0
PACE_BESIDE_COMPACTION = 1000.0


class WrongAnswer(Exception):
    """A server gave an answer that etcd would not give, or none."""


class Unimplemented(Exception):
    """A server does not have what the case is about."""


class NotMeasured(Exception):
    """The machine, or what happened meanwhile, is not what the case needs."""


@dataclass(frozen=True)
class Settings:
    """How long and how large."""

    seconds: float = 5.0
    warmup: float = 1.0
    scale: float = 1.0
    """What the sizes of data sets are multiplied with."""

    def size(self, count: int) -> int:
        """A data set's size at this scale."""
        return max(1000, int(count * self.scale))


@dataclass
class Stage:
    """What a case works with: one target and an empty directory."""

    target: Target
    settings: Settings
    directory: Path
    echo: bool = False
    baseline: Target | None = None
    """The first etcd of the command line, whose maximum other servers' loads are shares of."""
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self.server = Server(self.target, self.directory, self.echo)


@dataclass(frozen=True)
class Case:
    """One entry of the table of what can be measured."""

    group: str
    name: str
    run: Callable[[Stage], Rows]
    quorate_only: bool = False


def demand(outcome: AnyOutcome, what: str) -> AnyOutcome:
    """The same outcome; raises WrongAnswer unless every request was answered, and rightly.

    Raises Unimplemented when the server does not have the method.
    """
    if outcome.unimplemented:
        raise Unimplemented(f"{what}: {outcome.problem or 'unimplemented'}")
    if not outcome.good:
        raise WrongAnswer(
            f"{what}: {outcome.wrong} wrong, {outcome.failed} failed, {outcome.unfinished} without "
            f"an answer; the first: {outcome.problem or 'never sent'}"
        )
    return outcome


def fill(server: Server, keyspace: Keyspace, streams: int = 20, times: int = 1) -> Outcome:
    """Put every key once, or more often; what came of the last time."""
    streams = min(streams, max(1, keyspace.count // 10))
    with Load(
        server.port, "put", keyspace, connections=10, streams=streams, order="sequential"
    ) as load:
        for _ in range(times):
            outcome = demand(load.run(requests=keyspace.count, patience=900.0), "filling")
    return outcome


def figures(server: Server, load: Load, settings: Settings, rate: float = 0.0) -> Metrics:
    """Run a load and say how fast it was and what it cost; raises WrongAnswer."""
    before = process.cpu_seconds(server.pid)
    outcome = load.run(seconds=settings.seconds, warmup=settings.warmup, rate=rate)
    if demand(outcome, "load").completed < ANSWERS_MIN:
        # Too slow for the window: percentiles of nothing would read as zero.
        before = process.cpu_seconds(server.pid)
        outcome = demand(load.run(requests=ANSWERS_MIN, patience=300.0), "slow load")
    used = process.cpu_seconds(server.pid) - before
    return {
        "per_second": outcome.per_second,
        "p50_us": outcome.microseconds(50),
        "p99_us": outcome.microseconds(99),
        "p999_us": outcome.microseconds(99.9),
        "cpu_us": used * 1e6 / max(1, outcome.succeeded),
        "generator_us": outcome.cpu * 1e6 / max(1, outcome.succeeded),
    }


@contextmanager
def every_write_counted(server: Server, keyspace: Keyspace) -> Iterator[None]:
    """Raises WrongAnswer unless the revision rises by exactly the writes acknowledged meanwhile."""
    revision, writes = server.revision(), keyspace.writes
    yield
    risen, wanted = server.revision() - revision, keyspace.writes - writes
    if risen != wanted:
        raise WrongAnswer(f"{wanted} writes were acknowledged but the revision rose by {risen}")


def put_case(connections: int, streams: int, keys: int) -> Case:
    """Puts of 256 bytes in a closed loop."""
    which = "one key" if keys == 1 else f"{keys:,} keys"
    name = f"put {connections}x{streams}, {which}"

    def run(stage: Stage) -> Rows:
        keyspace = Keyspace(b"/bench/put/", keys)
        with (
            stage.server as server,
            every_write_counted(server, keyspace),
            Load(server.port, "put", keyspace, connections=connections, streams=streams) as load,
        ):
            return {name: figures(server, load, stage.settings)}

    return Case("put", name, run)


def run_get(stage: Stage) -> Rows:
    """Gets of one key of many, linearizable and serializable."""
    rows: Rows = {}
    keyspace = Keyspace(b"/bench/get/", stage.settings.size(100_000))
    with stage.server as server:
        fill(server, keyspace)
        for connections, streams in ((1, 1), *SHAPES):
            for serializable in (False, True):
                kind = "serializable" if serializable else "linearizable"
                name = f"get {connections}x{streams}, {kind}"
                with Load(
                    server.port,
                    "get",
                    keyspace,
                    connections=connections,
                    streams=streams,
                    serializable=serializable,
                ) as load:
                    rows[name] = figures(server, load, stage.settings)
    return rows


def run_txn(stage: Stage) -> Rows:
    """Kubernetes' update: compare the mod revision, put 1 KB, else get."""
    rows: Rows = {}
    keyspace = Keyspace(b"/registry/pods/default/pod-", 10_000, 1024)
    with stage.server as server:
        fill(server, keyspace)
        for connections, streams in SHAPES:
            with (
                every_write_counted(server, keyspace),
                Load(
                    server.port, "txn", keyspace, connections=connections, streams=streams
                ) as load,
            ):
                rows[f"txn {connections}x{streams}"] = figures(server, load, stage.settings)
    return rows


def run_list(stage: Stage) -> Rows:
    """Five clients list 300 MB each at once, beside puts at a steady pace."""
    settings = stage.settings
    objects = Keyspace(b"/registry/pods/default/pod-", settings.size(300_000), 1000)
    beside = Keyspace(b"/bench/put/", 1000)
    with stage.server as server:
        fill(server, objects)
        with every_write_counted(server, beside):
            quiet = paced_puts(server, beside, PACE_BESIDE_LISTS, settings.seconds)
            before = process.memory(server.pid)["pss_mib"]
            with process.peak_memory(server.pid) as peak:
                puts, lists = _puts_beside_lists(server, beside, objects)
        seconds = sum(each.elapsed for each in lists) / len(lists)
    row = {
        "seconds": seconds,
        "mib_per_second": LIST_CLIENTS * objects.count * objects.bytes_each / seconds / 2**20,
        "extra_peak_mib": peak.mib - before,
    }
    return {
        "put, no lists beside": tail(quiet),
        "put, five lists beside": tail(puts),
        "five lists of all": row,
    }


def paced_puts(server: Server, keyspace: Keyspace, rate: float, seconds: float) -> Outcome:
    """Puts of any key at a steady pace."""
    with Load(server.port, "put", keyspace, connections=10, streams=100) as load:
        return demand(load.run(seconds=seconds, rate=rate), f"puts at {rate:.0f}/s")


@contextmanager
def puts_beside(server: Server, keyspace: Keyspace, rate: float) -> Iterator[list[Outcome]]:
    """Puts at a steady pace while the block runs; their outcome is in the list after it."""
    done: list[Outcome] = []
    with Load(server.port, "put", keyspace, connections=10, streams=100) as load:
        thread = threading.Thread(
            target=lambda: done.append(load.run(seconds=600, rate=rate, patience=60.0))
        )
        thread.start()
        try:
            yield done
        finally:
            # A run that has not begun yet would forget that it was told to stop.
            while thread.is_alive():
                load.stop()
                thread.join(0.01)
    demand(done[0], f"puts at {rate:.0f}/s beside")


def tail(outcome: Outcome) -> Metrics:
    """The percentiles of an open loop."""
    return {
        "p50_us": outcome.microseconds(50),
        "p99_us": outcome.microseconds(99),
        "p999_us": outcome.microseconds(99.9),
    }


def _puts_beside_lists(
    server: Server, beside: Keyspace, objects: Keyspace
) -> tuple[Outcome, list[Outcome]]:
    """Puts at a pace from before the lists begin until the last one is whole."""
    lists: list[Outcome] = []
    loads = [Load(server.port, "list", objects, window=LIST_WINDOW) for _ in range(LIST_CLIENTS)]
    threads = [
        threading.Thread(target=lambda load=load: lists.append(load.run(requests=1, patience=300)))
        for load in loads
    ]
    with puts_beside(server, beside, PACE_BESIDE_LISTS) as puts:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for load in loads:
        load.close()
    return puts[0], [demand(each, "list") for each in lists]


def run_memory(stage: Stage) -> Rows:
    """A million keys of 256 bytes: memory, count, a page of 500, restart."""
    settings = stage.settings
    keyspace = Keyspace(b"/bench/memory/", settings.size(1_000_000))
    rows: Rows = {}
    with stage.server as server:
        empty = process.memory(server.pid)
        filled = fill(server, keyspace)
        full = process.memory(server.pid)
        payload = keyspace.count * keyspace.bytes_each
        more = (full["anonymous_mib"] - empty["anonymous_mib"]) * process.MIB - payload
        rows[f"memory of {keyspace.count:,} keys"] = {
            **full,
            "overhead_bytes_per_key": more / keyspace.count,
            "filled_per_second": filled.per_second,
        }
        with Load(server.port, "list", keyspace, count_only=True) as load:
            rows["count of all"] = figures(server, load, settings)
        with Load(server.port, "list", keyspace, limit=500) as load:
            rows["list, limit 500"] = figures(server, load, settings)
        stop_seconds = server.stop()
        server.start()
        rows["restart"] = {
            "seconds": server.ready_seconds,
            "stop_seconds": stop_seconds,
            **process.memory(server.pid),
        }
        with Load(server.port, "list", keyspace, count_only=True) as load:
            demand(load.run(requests=1), "count after the restart")
    return rows


def run_compaction(stage: Stage) -> Rows:
    """Puts at a steady pace, without and with a compaction of a million revisions beside."""
    settings = stage.settings
    keyspace = Keyspace(b"/bench/compaction/", settings.size(100_000))
    beside = Keyspace(b"/bench/put/", 1000)
    with stage.server as server:
        for _ in range(10):
            fill(server, keyspace)
        quiet = paced_puts(server, beside, PACE_BESIDE_COMPACTION, settings.seconds)
        with puts_beside(server, beside, PACE_BESIDE_COMPACTION) as puts:
            began = time.monotonic()
            server.compact(keyspace.highest)
            seconds = time.monotonic() - began
            # A compaction that is over at once still has its aftermath in the figures.
            time.sleep(max(0.0, settings.seconds - seconds))
    return {
        "put, no compaction beside": tail(quiet),
        "put, compaction beside": tail(puts[0]),
        "compaction": {"seconds": seconds},
    }


def run_idle(stage: Stage) -> Rows:
    """A server that nobody talks to."""
    # Times of processes come in ticks of 10 ms: 0.05 % of this.
    seconds = max(5.0, 4 * stage.settings.seconds)
    with stage.server as server:
        time.sleep(2.0)
        before = process.cpu_seconds(server.pid)
        time.sleep(seconds)
        used = process.cpu_seconds(server.pid) - before
        return {"idle": {**process.memory(server.pid), "cpu_percent": used / seconds * 100}}


def run_start(stage: Stage) -> Rows:
    """From the start of the process to the first linearizable Range, on an empty directory."""
    ready, stop = [], []
    for number in range(5):
        server = Server(stage.target, stage.directory / str(number))
        server.start()
        ready.append(server.ready_seconds)
        stop.append(server.stop())
    return {"start": {"seconds": sorted(ready)[2], "stop_seconds": sorted(stop)[2]}}


def run_echo(stage: Stage) -> Rows:
    """What quorate's workers answer without the core: the ceiling that the core eats from."""
    rows: Rows = {}
    stage.server.echo = True
    keyspace = Keyspace(b"/bench/echo/", 1000)
    with stage.server as server:
        for kind in ("put", "get"):
            for connections, streams in SHAPES:
                with Load(
                    server.port,
                    "put" if kind == "put" else "get",
                    keyspace,
                    connections=connections,
                    streams=streams,
                    check=False,
                ) as load:
                    rows[f"echo {kind} {connections}x{streams}"] = figures(
                        server, load, stage.settings
                    )
    return rows


CASES = (
    put_case(1, 1, 1),
    *(put_case(*shape, keys) for keys in (1, 100_000) for shape in SHAPES),
    Case("echo", "echo", run_echo, quorate_only=True),
    Case("get", "get", run_get),
    Case("txn", "txn", run_txn),
    Case("list", "list", run_list),
    Case("memory", "memory", run_memory),
    Case("compaction", "compaction", run_compaction),
    Case("idle", "idle", run_idle),
    Case("start", "start", run_start),
)
