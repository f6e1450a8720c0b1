"""What is measured of watches: delivery to many, latency, and what watchers cost everybody else.

Rules:
- Every watcher must get every event of its keys: once, whole, in order, with the value that was put
  and the revision that the put's reply gave; see `bench/_watchers.pyx`. Anything else raises
  WrongAnswer.
- In a *saturated* delivery the writer waits for its watchers: UNDELIVERED writes may be on their
  way to somebody, and the next one leaves when one of them has come to everybody. With more of them
  a server can pack many events of a watcher into one message, at the price of latency: the most
  that any number of UNDELIVERED_MORE gives is a figure of its own.
- Where a figure is compared with one "without", that one is the mean of before and after.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import process
from bench._keyspace import Keyspace
from bench._load import Load
from bench._watchers import Watchers
from bench.outcome import Delivery, Outcome
from bench.servers import Server
from bench.workloads import (
    Case,
    Metrics,
    Rows,
    Settings,
    Stage,
    demand,
    figures,
    fill,
    paced_puts,
    puts_beside,
    tail,
)

# Writes that may be on their way to watchers: enough to hide an fsync.
UNDELIVERED = 16
UNDELIVERED_MORE = (64, 256)
# Bounds how long a server needs for what is on its way: with more, etcd's puts time out.
EVENTS_UNDELIVERED_MAX = 300_000
PUTS_PER_SECOND = 200.0
PACE_BESIDE_BEHIND = 500.0
# 10 KB a second for each reader: what the slow ones do not read is soon more than any window. With
# twice as much etcd's puts time out.
PACE_BESIDE_SLOW = 10.0
SLOW_BYTES_PER_SECOND = 1000.0
SLOW_READERS = 1000
BEHIND_SECONDS_MAX = 20.0
# etcd 3.4 creates about 12,000 watchers a second, on cores of its own.
CREATION_SECONDS_MAX = 600.0
PATIENCE = 60.0


@contextmanager
def crowd(
    server: Server, keyspace: Keyspace, *, connections: int, streams: int = 1, each: int = 1,
    own_keys: bool = False, pace: float = 0.0,
) -> Iterator[Watchers]:  # fmt: skip
    """Watchers of one key, or of a key each, that the server has created."""
    with Watchers(
        server.port,
        keyspace,
        connections=connections,
        streams=streams,
        each=each,
        on="own key" if own_keys else "one key",
        pace=pace,
        patience=CREATION_SECONDS_MAX,
    ) as watchers:
        demand(watchers.created, "creating watchers")
        yield watchers


def deliver(
    watchers: Watchers,
    writer: Load,
    seconds: float,
    *,
    warmup: float = 0.0,
    rate: float = 0.0,
    undelivered: int = 0,
) -> Delivery:
    """Write and take what comes; raises WrongAnswer unless all that was written came."""
    delivery = watchers.run(
        writer,
        seconds=seconds,
        warmup=warmup,
        rate=rate,
        undelivered=undelivered,
        patience=PATIENCE,
    )
    if delivery.writes is not None:
        demand(delivery.writes, "puts to watched keys")
    demand(delivery, "events")
    return delivery


def fan_out_case(count: int, connections: int, streams: int = 1) -> Case:
    """One key with many watchers, saturated."""
    name = f"watch 1 to {count:,}, {connections:,} connections"
    if streams > 1:
        name += ", own streams"

    def run(stage: Stage) -> Rows:
        settings = stage.settings
        keyspace = Keyspace(b"/bench/watch/", 1)
        with (
            stage.server as server,
            crowd(
                server,
                keyspace,
                connections=connections,
                streams=streams,
                each=count // connections // streams,
            ) as watchers,
            Load(server.port, "put", keyspace, streams=max(UNDELIVERED_MORE)) as writer,
        ):
            before = process.cpu_seconds(server.pid)
            delivery = deliver(
                watchers,
                writer,
                settings.seconds,
                warmup=settings.warmup,
                undelivered=UNDELIVERED,
            )
            used = process.cpu_seconds(server.pid) - before
            assert delivery.writes is not None
            row = {
                "per_second": delivery.per_second,
                "cpu_us": used * 1e6 / delivery.succeeded,
                "generator_us": delivery.cpu * 1e6 / delivery.succeeded,
                "p50_us": delivery.microseconds(50),
                "p99_us": delivery.microseconds(99),
                "written_per_second": delivery.writes.per_second,
            }
            if count * max(UNDELIVERED_MORE) <= EVENTS_UNDELIVERED_MAX:
                row["most_per_second"] = most(watchers, writer, settings)
        return {name: row}

    return Case("watch", name, run)


def most(watchers: Watchers, writer: Load, settings: Settings) -> float:
    """Events a second with whatever number of undelivered writes gives most of them."""
    return max(
        deliver(watchers, writer, settings.seconds / 2, undelivered=number).per_second
        for number in UNDELIVERED_MORE
    )


def most_puts(server: Server, settings: Settings) -> float:
    """How many puts a second this server delivers to 100 watchers of one key."""
    keyspace = Keyspace(b"/bench/most/", 1)
    with (
        crowd(server, keyspace, connections=10, streams=10) as watchers,
        Load(server.port, "put", keyspace, streams=max(UNDELIVERED_MORE)) as writer,
    ):
        return most(watchers, writer, settings) / 100


def run_latency(stage: Stage) -> Rows:
    """From put to event with 100 watchers: at 200 puts a second, and at half of etcd's most."""
    settings = stage.settings
    with Server(stage.baseline or stage.target, stage.directory / "baseline") as server:
        half = most_puts(server, settings) / 2
    keyspace = Keyspace(b"/bench/watch/", 1)
    rows: Rows = {}
    with (
        stage.server as server,
        crowd(server, keyspace, connections=10, streams=10) as watchers,
        Load(server.port, "put", keyspace, streams=1000) as writer,
    ):
        for name, rate in (("200 puts/s", PUTS_PER_SECOND), ("half of etcd's most", half)):
            delivery = deliver(
                watchers, writer, settings.seconds, warmup=settings.warmup, rate=rate
            )
            rows[f"put to event, {name}"] = {**tail(delivery), "written_per_second": rate}
    return rows


def mean(one: Metrics, other: Metrics) -> Metrics:
    """The mean of each figure of two measurements of the same thing."""
    return {metric: (one[metric] + other[metric]) / 2 for metric in one}


def run_beside(stage: Stage) -> Rows:
    """The rate of puts with and without 100,000 watchers of other keys."""
    settings = stage.settings
    keyspace = Keyspace(b"/bench/put/", 1000)
    each = settings.size(100_000) // 100
    watched = Keyspace(b"/bench/watched/", each * 100)
    with (
        stage.server as server,
        Load(server.port, "put", keyspace, connections=10, streams=10) as load,
    ):
        before = figures(server, load, settings)
        with crowd(
            server, watched, connections=10, streams=10, each=each, own_keys=True
        ) as watchers:
            beside = figures(server, load, settings)
            prove(server, watchers, watched)
        # The server has to forget them first; the warm-up is meant for that.
        after = figures(server, load, settings)
    return {
        "put 10x10, no watchers beside": mean(before, after),
        f"put 10x10, {watched.count:,} watchers beside": beside,
    }


def prove(server: Server, watchers: Watchers, keyspace: Keyspace) -> None:
    """Raises WrongAnswer unless these watchers of a key each get what is put."""
    with Load(server.port, "put", keyspace, streams=UNDELIVERED) as writer:
        deliver(watchers, writer, 0.2, undelivered=UNDELIVERED)


def run_behind(stage: Stage) -> Rows:
    """Puts at a steady pace, without and with a watcher that is 500,000 revisions behind."""
    settings = stage.settings
    past = Keyspace(b"/bench/past/", settings.size(500_000) // 50)
    beside = Keyspace(b"/bench/put/", 1000)
    with stage.server as server:
        first = server.revision() + 1
        fill(server, past, streams=100, times=50)
        before = paced_puts(server, beside, PACE_BESIDE_BEHIND, settings.seconds)
        passes: list[Delivery] = []
        with puts_beside(server, beside, PACE_BESIDE_BEHIND) as puts:
            over = time.monotonic() + settings.seconds
            # A watcher that does not even get through once says enough.
            while not passes or (time.monotonic() < over and not passes[-1].unfinished):
                passes.append(catch_up(server, past, first))
        after = paced_puts(server, beside, PACE_BESIDE_BEHIND, settings.seconds)
    seen = sum(each.succeeded for each in passes)
    missing = sum(each.unfinished for each in passes)
    seconds = sum(each.elapsed for each in passes)
    return {
        "put, no watcher behind": mean(tail(before), tail(after)),
        "put, a watcher behind": tail(puts[0]),
        f"a watcher {past.writes:,} behind": {
            "per_second": seen / seconds,
            "seen_percent": 100 * seen / (seen + missing),
        },
    }


def catch_up(server: Server, past: Keyspace, first: int) -> Delivery:
    """One watcher from the first revision to the last; being late is no wrong answer."""
    with Watchers(server.port, past, on="prefix", start_revision=first) as watcher:
        demand(watcher.created, "creating a watcher")
        began = time.monotonic()
        watcher.finish()
        delivery = watcher.run(patience=BEHIND_SECONDS_MAX)
        if delivery.wrong or delivery.failed:
            demand(delivery, "a watcher behind")
        seconds = time.monotonic() - began
    total = past.writes
    return Delivery(
        **{
            **vars(delivery),
            # Events that came with the watcher's creation are not of the run.
            "succeeded": total - delivery.unfinished,
            "elapsed": seconds,
        }
    )


def run_slow(stage: Stage) -> Rows:
    """A thousand quick readers, without and with a thousand slow ones; and the server's memory."""
    settings = stage.settings
    keyspace = Keyspace(b"/bench/watch/", 1, 1024)
    with (
        stage.server as server,
        crowd(server, keyspace, connections=SLOW_READERS) as quick,
        Load(server.port, "put", keyspace, streams=100) as writer,
    ):
        before = deliver(
            quick, writer, settings.seconds, warmup=settings.warmup, rate=PACE_BESIDE_SLOW
        )
        with crowd(server, keyspace, connections=SLOW_READERS, pace=SLOW_BYTES_PER_SECOND) as slow:
            memory = process.memory(server.pid)["pss_mib"]
            done: list[Delivery] = []
            thread = threading.Thread(target=lambda: done.append(slow.run(patience=PATIENCE)))
            with process.peak_memory(server.pid) as peak:
                thread.start()
                try:
                    beside = deliver(
                        quick,
                        writer,
                        settings.seconds,
                        warmup=settings.warmup,
                        rate=PACE_BESIDE_SLOW,
                    )
                finally:
                    slow.finish()
                    thread.join()
            demand(done[0], "slow readers")
        after = deliver(
            quick, writer, settings.seconds, warmup=settings.warmup, rate=PACE_BESIDE_SLOW
        )
    return {
        "quick watchers, no slow ones": mean(tail(before), tail(after)),
        "quick watchers, 1,000 slow ones beside": tail(beside),
        "1,000 slow watchers": {"extra_peak_mib": peak.mib - memory},
    }


def run_memory(stage: Stage) -> Rows:
    """A million watches of a key each: 50 connections, 2,000 streams, 500 on each."""
    streams = max(1, round(40 * stage.settings.scale))
    keyspace = Keyspace(b"/bench/watched/", 50 * streams * 500)
    with stage.server as server:
        empty = process.memory(server.pid)["anonymous_mib"]
        with crowd(
            server, keyspace, connections=50, streams=streams, each=500, own_keys=True
        ) as watchers:
            created: Outcome = watchers.created
            full = process.memory(server.pid)
            prove(server, watchers, keyspace)
    more = (full["anonymous_mib"] - empty) * process.MIB
    row = {
        **full,
        "bytes_per_watch": more / keyspace.count,
        "created_per_second": created.per_second,
    }
    return {f"memory of {keyspace.count:,} watches": row}


_FAN_OUT_CASES = (
    fan_out_case(1000, 10),
    fan_out_case(1000, 1000),
    fan_out_case(10_000, 10),
    fan_out_case(10_000, 1000),
    fan_out_case(10_000, 10, streams=1000),
)
FAN_OUTS = tuple(case.name for case in _FAN_OUT_CASES)
CASES = (
    *_FAN_OUT_CASES,
    Case("watch", "watch latency", run_latency),
    Case("watch", "watch beside puts", run_beside),
    Case("watch", "watch behind", run_behind),
    Case("watch", "watch slow", run_slow),
    Case("watch", "watch memory", run_memory),
)
