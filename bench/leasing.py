"""What is measured of leases: keep-alives, a hundred thousand due at once, and what a million cost.

Rules:
- A keep-alive's answer must name its lease and the time to live that was granted.
- Each key of a lease that is due must be deleted once, and not before its time: a watcher of them
  all sees it. Anything else raises WrongAnswer.
"""

import time

from bench import process
from bench._keepalives import KeepAlives
from bench._keyspace import Keyspace
from bench._load import Load
from bench._watchers import Watchers
from bench.outcome import Delivery
from bench.servers import Server
from bench.workloads import (
    Case,
    Metrics,
    Rows,
    Stage,
    WrongAnswer,
    demand,
    fill,
    paced_puts,
    puts_beside,
    tail,
)

LONG = 3600
"""Seconds to live of leases that are not to be due."""
LEASES_KEPT_ALIVE = 10_000
PACE_BESIDE_EXPIRY = 500.0
# Longer than this is bad enough; etcd 3.4 ends a thousand a second.
EXPIRY_SECONDS_MAX = 45.0
# Grants and puts come in so many pieces, each with the time to live that is left.
PIECES = 100
# Like the widest shape of puts: filling a million is waiting, and not what is measured.
FILL_SHAPE = (10, 100)


def grant(server: Server, keyspace: Keyspace) -> None:
    """A lease for each key of the keyspace."""
    with filler(server, "grant", keyspace) as load:
        demand(load.run(requests=keyspace.count, ttl=LONG, patience=900.0), "granting")


def filler(server: Server, kind: str, keyspace: Keyspace) -> Load:
    """A load that grants leases, or puts keys that are attached to them, in order."""
    connections, streams = FILL_SHAPE
    return Load(
        server.port,
        "grant" if kind == "grant" else "put",
        keyspace,
        connections=connections,
        streams=streams,
        order="sequential",
        leased=kind == "leased",
    )


def run_keep_alive(stage: Stage) -> Rows:
    """Keep-alives of 10,000 leases in a closed loop: 10 connections with 10 streams each."""
    settings = stage.settings
    keyspace = Keyspace(b"/bench/leased/", LEASES_KEPT_ALIVE)
    with stage.server as server:
        grant(server, keyspace)
        with KeepAlives(server.port, keyspace.count, LONG, connections=10, streams=10) as alive:
            before = process.cpu_seconds(server.pid)
            outcome = demand(
                alive.run(seconds=settings.seconds, warmup=settings.warmup), "keep-alives"
            )
            used = process.cpu_seconds(server.pid) - before
    row = {
        "per_second": outcome.per_second,
        "p50_us": outcome.microseconds(50),
        "p99_us": outcome.microseconds(99),
        "cpu_us": used * 1e6 / max(1, outcome.succeeded),
        "generator_us": outcome.cpu * 1e6 / max(1, outcome.succeeded),
    }
    return {"keep-alive 10x10": row}


def grant_due_together(server: Server, keyspace: Keyspace, seconds: float) -> tuple[float, float]:
    """A lease and a key for each number, all due in one second about `seconds` from now.

    Answers the earliest and the latest moment at which one of them can be due.
    """
    due = time.monotonic() + seconds
    piece = -(-keyspace.count // PIECES)
    earliest, latest = due, 0.0
    with (
        filler(server, "grant", keyspace) as grants,
        filler(server, "leased", keyspace) as puts,
    ):
        for first in range(0, keyspace.count, piece):
            requests = min(piece, keyspace.count - first)
            now = time.monotonic()
            ttl = round(due - now)
            if ttl < 2:
                raise WrongAnswer("the first leases are due before the last ones are granted")
            demand(grants.run(requests=requests, first=first, ttl=ttl), "granting")
            earliest = min(earliest, now + ttl)
            latest = max(latest, time.monotonic() + ttl)
            demand(puts.run(requests=requests, first=first), "putting leased keys")
    return earliest, latest


def run_expiry(stage: Stage) -> Rows:
    """Puts at a steady pace, before and while 100,000 leases with a key each are due at once."""
    settings = stage.settings
    keyspace = Keyspace(b"/bench/leased/", settings.size(100_000))
    beside = Keyspace(b"/bench/put/", max(1000, keyspace.count // 20))
    with stage.server as server:
        # A grant and a put for each, on a machine that may be three times slower a moment later;
        # and the quiet puts before the end.
        needed = 2 * keyspace.count / fill(server, beside, streams=100, times=2).per_second
        seconds = 3 * needed + settings.seconds + 3.0
        earliest, latest = grant_due_together(server, keyspace, seconds)
        with Watchers(server.port, keyspace, on="prefix", deletes=True) as watcher:
            demand(watcher.created, "creating a watcher")
            quiet_seconds = min(settings.seconds, earliest - time.monotonic() - 0.5)
            if quiet_seconds <= 0:
                raise WrongAnswer("the leases are due before the puts beside them are measured")
            quiet = paced_puts(server, beside, PACE_BESIDE_EXPIRY, quiet_seconds)
            # The window that is measured begins just before the first lease is due.
            time.sleep(max(0.0, earliest - time.monotonic() - 0.5))
            with puts_beside(server, beside, PACE_BESIDE_EXPIRY) as puts:
                ended = end_together(watcher, earliest, latest)
                # What is over at once still has its aftermath in the figures.
                time.sleep(max(0.0, latest + settings.seconds / 2 - time.monotonic()))
    last = time.monotonic() if ended.unfinished else ended.last_event
    return {
        "put, no leases due": tail(quiet),
        "put, leases due": tail(puts[0]),
        f"{keyspace.count:,} leases due at once": {
            "late_seconds": max(0.0, last - latest),
            "ended_percent": 100 * ended.succeeded / keyspace.count,
        },
    }


def end_together(watcher: Watchers, earliest: float, latest: float) -> Delivery:
    """Take the deletes of all keys; raises WrongAnswer when one is early. Late is not wrong."""
    watcher.finish()
    ended = watcher.run(patience=latest - time.monotonic() + EXPIRY_SECONDS_MAX)
    if ended.wrong or ended.failed:
        demand(ended, "keys of leases that are due")
    if 0 < ended.first_event < earliest:
        raise WrongAnswer(f"a lease ended {earliest - ended.first_event:.3f} s early")
    return ended


def filled_and_restarted(server: Server, keyspace: Keyspace, leased: bool) -> Metrics:
    """Memory with all keys, with a lease each or without, and how long a restart takes on them."""
    with server:
        if leased:
            grant(server, keyspace)
        with filler(server, "leased" if leased else "put", keyspace) as load:
            demand(load.run(requests=keyspace.count, patience=900.0), "filling")
        memory = process.memory(server.pid)
        server.stop()
        server.start()
        return {**memory, "seconds": server.ready_seconds}


def run_memory(stage: Stage) -> Rows:
    """A million keys, without and with a lease each: memory, and restarts on them."""
    count = stage.settings.size(1_000_000)
    rows: Rows = {}
    for name, leased in (("keys", False), ("leases", True)):
        server = Server(stage.target, stage.directory / name)
        keyspace = Keyspace(b"/bench/leased/", count, 16)
        rows[name] = filled_and_restarted(server, keyspace, leased)
    more = (rows["leases"]["anonymous_mib"] - rows["keys"]["anonymous_mib"]) * process.MIB
    return {
        f"{count:,} keys without leases": rows["keys"],
        f"{count:,} keys with a lease each": {
            **rows["leases"],
            "bytes_per_lease": more / count,
            "more_seconds": rows["leases"]["seconds"] - rows["keys"]["seconds"],
        },
    }


CASES = (
    Case("lease", "lease keep-alive", run_keep_alive),
    Case("lease", "lease expiry", run_expiry),
    Case("lease", "lease memory", run_memory),
)
