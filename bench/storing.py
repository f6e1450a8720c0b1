"""What is measured of the data directory: restarts, checkpoints, snapshots, bytes on the disk.

Rules:
- A restart begins with the files in the page cache, for every server: they were written a moment
  ago, and are read once before. The first answer is a linearizable get of the key that was written
  last, and must have its value and the right revision.
- etcd commits to its backend file all the time, so there is nothing to switch on: all servers get
  the same flags. Checkpoints are those that `--snapshot-count` asks for; where none was written in
  the measured window nothing is told.
- A snapshot must be whole, with the right digest. The digest takes time that the servers would
  share with the client: what is timed is without, after one that was checked.
- Bytes on the disk are those that the device took from before the first put until nothing more is
  written: who else writes there is counted, too, and `others_mib_per_second` says how much that was
  just before. What the kernel counts for the server's processes stands beside it
  (`counted_bytes_per_byte`, and for want of a device instead of it); see `process.written_bytes`.
- User bytes are those of keys and values of puts, and of keys of deletes.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import datadir, process
from bench._download import Download
from bench._keyspace import Keyspace
from bench._load import Load
from bench.outcome import Received
from bench.protobuf import encode_varint, last_field
from bench.runner import free_bytes
from bench.servers import Server, revision_of
from bench.workloads import (
    Case,
    Metrics,
    NotMeasured,
    Rows,
    Settings,
    Stage,
    WrongAnswer,
    demand,
    every_write_counted,
    figures,
    fill,
    paced_puts,
    tail,
)

# Nothing is written when the kernel counted the same for so long, and it gets so long for it.
SETTLED_SECONDS = 1.5
# How often it is asked; a kernel that counts writes tells nobody.
SETTLING_POLL_SECONDS = 0.1
SETTLING_SECONDS_MAX = 180.0
PACE_BESIDE = 1000.0
# More entries than any window has, and etcd's default since 3.6.
NO_CHECKPOINT = "--snapshot-count=1000000000"
CHECKPOINTS = "--snapshot-count=10000"
SLOW_BYTES_PER_SECOND = float(2**20)
FAST = 0.0
MIX_SECONDS = 600.0
MIX_PER_SECOND = 2000
MIX_DELETES = 0.3
# The history that is kept, in pieces of a second: what etcd's users set is minutes.
MIX_PIECES_KEPT = 30
LARGE_VALUE = 2048
LARGE_KEYS = 5_000_000
# What a byte of user data takes at most while it is written, log and second file included; etcd's
# file alone takes 1.2 and grows by doubling.
DISK_BYTES_PER_BYTE = 3
DISK_BYTES_SPARE = 2 * 1024**3


def data_of(server: Server) -> Path:
    """The server's data directory."""
    return server.directory / "data"


def settle(server: Server, seconds_max: float = SETTLING_SECONDS_MAX) -> int:
    """Wait until the server writes nothing more; what it wrote so far.

    One that never rests is taken as it is after `seconds_max`.
    """
    began = changed = time.monotonic()
    written = process.written_bytes(server.pid)
    while time.monotonic() - changed < SETTLED_SECONDS:
        if time.monotonic() - began > seconds_max:
            break
        time.sleep(SETTLING_POLL_SECONDS)
        now = process.written_bytes(server.pid)
        if now != written:
            written, changed = now, time.monotonic()
    return written


# -- restarts


def restart_case(count: int) -> Case:
    """A restart on so many keys, after kill -9 and then after SIGTERM."""

    def run(stage: Stage) -> Rows:
        keyspace = Keyspace(b"/bench/disk/", stage.settings.size(count))
        need_room(stage, keyspace.count * keyspace.bytes_each)
        server = stage.server
        name = f"restart on {keyspace.count:,} keys"
        with server:
            fill(server, keyspace)
            server.question = question(keyspace.key(keyspace.count - 1))
            server.kill()
            killed = restarted(server, keyspace)
            stop_seconds = server.stop()
            ended = restarted(server, keyspace)
        return {
            f"{name}, after kill -9": killed,
            f"{name}, after SIGTERM": {**ended, "stop_seconds": stop_seconds},
        }

    return Case("disk", f"restart on {count:,} keys", run)


def question(key: bytes) -> bytes:
    """The RangeRequest for one key."""
    return b"\x0a" + encode_varint(len(key)) + key


def restarted(server: Server, keyspace: Keyspace) -> Metrics:
    """Start and judge the first answer; raises WrongAnswer."""
    datadir.warm(data_of(server))
    server.start()
    check_first_answer(server, keyspace)
    row = {"seconds": server.ready_seconds, **process.memory(server.pid)}
    with Load(server.port, "list", keyspace, count_only=True) as load:
        demand(load.run(requests=1, patience=60.0), "count after the restart")
    return row


def check_first_answer(server: Server, keyspace: Keyspace) -> None:
    """The revision of all that was acknowledged, and the value of the last key."""
    revision = revision_of(server.first_answer)
    if revision != keyspace.highest:
        raise WrongAnswer(
            f"the first answer is of revision {revision}, the last write was of {keyspace.highest}"
        )
    pair = last_field(server.first_answer, 2)
    value = last_field(pair, 5) if isinstance(pair, bytes) else b""
    number = keyspace.count - 1
    if not isinstance(value, bytes) or value != keyspace.value(number, serial_of(value)):
        raise WrongAnswer("the first answer has not the value that was put")


def serial_of(value: bytes) -> int:
    """The number of the write that a value names."""
    return int.from_bytes(value[8:16], "little")


# -- latency and rate beside something


def run_checkpoint(stage: Stage) -> Rows:
    """Puts over a store of a million keys, without checkpoints and with one after another."""
    settings, server = stage.settings, stage.server
    keyspace = Keyspace(b"/bench/disk/", settings.size(1_000_000))
    rows: list[tuple[Metrics, Metrics]] = []
    server.options = (CHECKPOINTS,)
    with server:
        fill(server, keyspace)
        for options in (NO_CHECKPOINT, CHECKPOINTS, NO_CHECKPOINT):
            server.stop()
            server.options = (options,)
            server.start()
            settle(server)
            before = datadir.backend_stamp(data_of(server))
            rows.append(closed_and_paced(server, keyspace, settings))
            if options == CHECKPOINTS and datadir.backend_stamp(data_of(server)) == before:
                raise NotMeasured("no checkpoint was written in the measured window")
    quiet, busy, after = rows
    return {
        "put 10x10, no checkpoint beside": mean(quiet[0], after[0]),
        "put 10x10, checkpoints beside": busy[0],
        "put, no checkpoint beside": mean(quiet[1], after[1]),
        "put, checkpoints beside": busy[1],
    }


def run_snapshot_beside(stage: Stage) -> Rows:
    """Puts without and with a snapshot that streams: to a slow reader, and to a fast one."""
    settings = stage.settings
    keyspace = Keyspace(b"/bench/disk/", settings.size(1_000_000))
    with stage.server as server:
        fill(server, keyspace)
        demand_snapshots(server)
        settle(server)
        before = closed_and_paced(server, keyspace, settings)
        with snapshots_beside(server, SLOW_BYTES_PER_SECOND) as slow_snapshots:
            slow = closed_and_paced(server, keyspace, settings)
        with snapshots_beside(server, FAST) as fast_snapshots:
            fast = closed_and_paced(server, keyspace, settings)
        after = closed_and_paced(server, keyspace, settings)
    return {
        "put 10x10, no snapshot beside": mean(before[0], after[0]),
        "put 10x10, a slow snapshot beside": slow[0],
        "put 10x10, fast snapshots beside": fast[0],
        "put, no snapshot beside": mean(before[1], after[1]),
        "put, a slow snapshot beside": slow[1],
        "put, fast snapshots beside": fast[1],
        "snapshots beside puts": {
            "slow_mib_per_second": rate_of(slow_snapshots),
            "fast_mib_per_second": rate_of(fast_snapshots),
        },
    }


def closed_and_paced(
    server: Server, keyspace: Keyspace, settings: Settings
) -> tuple[Metrics, Metrics]:
    """Random puts: as many as there can be, and at a steady pace."""
    with (
        every_write_counted(server, keyspace),
        Load(server.port, "put", keyspace, connections=10, streams=10) as load,
    ):
        closed = figures(server, load, settings)
        paced = paced_puts(server, keyspace, PACE_BESIDE, settings.seconds)
    return closed, tail(paced)


def mean(before: Metrics, after: Metrics) -> Metrics:
    """Of what was measured before and after."""
    return {metric: (before[metric] + after[metric]) / 2 for metric in before}


def demand_snapshots(server: Server) -> None:
    """Raises Unimplemented when the server has no snapshots."""
    with Download(server.port, check=False) as download:
        outcome = download.run(most=1, patience=60.0)
    if outcome.failed:
        demand(outcome, "a snapshot")


@contextmanager
def snapshots_beside(server: Server, pace: float) -> Iterator[list[Received]]:
    """Snapshots while the block runs, one after another; raises WrongAnswer if one is bad."""
    done: list[Received] = []
    running: list[Download] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            with Download(server.port, pace=pace, check=False) as download:
                running[:] = [download]
                done.append(download.run())
            if done[-1].failed or done[-1].wrong:
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        # One that has begun this very moment would not know that it was told to stop.
        while thread.is_alive():
            for each in running:
                each.stop()
            thread.join(0.01)
    for snapshot in done:
        if snapshot.failed or snapshot.wrong:
            demand(snapshot, "a snapshot beside puts")


def rate_of(snapshots: list[Received]) -> float:
    """MiB a second while they streamed."""
    seconds = sum(each.elapsed for each in snapshots)
    return sum(each.size for each in snapshots) / 2**20 / seconds if seconds > 0 else 0.0


# -- bytes on the disk


@dataclass(frozen=True)
class Written:
    """How much was written so far."""

    log: datadir.Log
    counted: int
    device: int

    @classmethod
    def by(cls, server: Server) -> "Written":
        """When the server is at rest."""
        counted = settle(server)
        datadir.flush(data_of(server))
        device = datadir.device_bytes(server.directory)
        log = datadir.find_log(data_of(server))
        return cls(log, counted, counted if device is None else device)


@contextmanager
def counted_bytes(server: Server, row: Metrics) -> Iterator[list[int]]:
    """Fill a row with what a block writes; the block says how many user bytes that was."""
    at_rest, began = Written.by(server), time.monotonic()
    before = Written.by(server)
    others = (before.device - at_rest.device) / (time.monotonic() - began)
    user: list[int] = []
    yield user
    after = Written.by(server)
    bytes_in = sum(user)
    written = after.device - before.device
    # etcd allocates its segments and writes no zeros.
    filled = after.log.filled - before.log.filled if server.target.is_quorate else 0
    row["written_bytes_per_byte"] = written / bytes_in
    row["unfilled_bytes_per_byte"] = (written - filled) / bytes_in
    row["log_bytes_per_byte"] = (after.log.size - before.log.size) / bytes_in
    row["counted_bytes_per_byte"] = (after.counted - before.counted) / bytes_in
    row["user_mib"] = bytes_in / 2**20
    row["others_mib_per_second"] = others / 2**20
    row.update(datadir.sizes(data_of(server)))


def run_bytes_new(stage: Stage) -> Rows:
    """A million new keys of 256 bytes."""
    keyspace = Keyspace(b"/bench/disk/", stage.settings.size(1_000_000))
    row: Metrics = {}
    with stage.server as server, counted_bytes(server, row) as user:
        row["per_second"] = fill(server, keyspace).per_second
        user.append(keyspace.count * keyspace.bytes_each)
    return {f"bytes of {keyspace.count:,} new keys": row}


def run_bytes_overwritten(stage: Stage) -> Rows:
    """A million overwrites of 10,000 keys of 256 bytes."""
    keyspace = Keyspace(b"/bench/disk/", 10_000)
    times = max(1, round(100 * stage.settings.scale))
    row: Metrics = {}
    with stage.server as server:
        fill(server, keyspace)
        with counted_bytes(server, row) as user:
            row["per_second"] = fill(server, keyspace, times=times).per_second
            user.append(times * keyspace.count * keyspace.bytes_each)
    return {f"bytes of {times * keyspace.count:,} overwrites": row}


def run_bytes_mixed(stage: Stage) -> Rows:
    """Ten minutes of puts, overwrites and deletes at a steady pace, with compactions."""
    settings = stage.settings
    keyspace = Keyspace(b"/bench/disk/", settings.size(100_000))
    pieces = max(4, round(MIX_SECONDS * settings.scale))
    kept = min(MIX_PIECES_KEPT, pieces // 3)
    row: Metrics = {}
    with stage.server as server:
        fill(server, keyspace)
        with counted_bytes(server, row) as user, every_write_counted(server, keyspace):
            user.append(mix(server, keyspace, pieces, kept))
    return {f"bytes of a mix of {pieces} seconds": row}


def mix(server: Server, keyspace: Keyspace, pieces: int, kept: int) -> int:
    """Puts and deletes in turn, and a compaction whenever `kept` pieces went by; the user bytes."""
    puts = round(MIX_PER_SECOND * (1 - MIX_DELETES))
    deletes = MIX_PER_SECOND - puts
    old = keyspace.highest
    with (
        Load(server.port, "put", keyspace, connections=4, streams=25) as putting,
        Load(server.port, "delete", keyspace, connections=4, streams=25) as deleting,
    ):
        for piece in range(1, pieces + 1):
            for load, requests in ((putting, puts), (deleting, deletes)):
                demand(load.run(requests=requests, rate=MIX_PER_SECOND, patience=60.0), "the mix")
            if piece % kept == 0:
                server.compact(old)
                old = keyspace.highest
    key_bytes = keyspace.bytes_each - keyspace.value_size
    return pieces * (puts * keyspace.bytes_each + deletes * key_bytes)


# -- memory, much data, whole snapshots


def run_memory(stage: Stage) -> Rows:
    """A million keys of 256 bytes, when all is written to the file."""
    keyspace = Keyspace(b"/bench/disk/", stage.settings.size(1_000_000))
    with stage.server as server:
        fill(server, keyspace)
        settle(server)
        return {f"memory of {keyspace.count:,} keys in the file": process.memory(server.pid)}


def run_large(stage: Stage) -> Rows:
    """Five million keys of 2 KB: rates beside those of an empty store, memory."""
    settings, server = stage.settings, stage.server
    few = Keyspace(b"/bench/few/", settings.size(10_000), LARGE_VALUE)
    many = Keyspace(b"/bench/disk/", settings.size(LARGE_KEYS), LARGE_VALUE)
    payload = many.count * many.bytes_each
    need_room(stage, payload)
    server.quota_bytes = DISK_BYTES_PER_BYTE * payload + DISK_BYTES_SPARE
    with server:
        fill(server, few)
        rows = put_and_get(server, few, settings, "an empty store")
        filled = fill(server, many)
        settle(server)
        name = f"{many.count:,} keys of 2 KB"
        rows |= put_and_get(server, many, settings, name)
        settle(server)
        memory = process.memory(server.pid)
    rows[f"memory of {name}"] = {**memory, "filled_per_second": filled.per_second}
    return rows


def put_and_get(server: Server, keyspace: Keyspace, settings: Settings, name: str) -> Rows:
    """Rates of random puts and gets in closed loops."""
    rows: Rows = {}
    for kind in ("put", "get"):
        with Load(
            server.port, "put" if kind == "put" else "get", keyspace, connections=10, streams=10
        ) as load:
            rows[f"{kind} 10x10, {name}"] = figures(server, load, settings)
    return rows


def need_room(stage: Stage, payload: int) -> None:
    """Raises NotMeasured when the disk is too small for so much user data."""
    needed = DISK_BYTES_PER_BYTE * payload + DISK_BYTES_SPARE
    free = free_bytes(stage.directory)
    if free < needed:
        raise NotMeasured(
            f"{needed / 2**30:.0f} GiB of disk are needed and {free / 2**30:.0f} GiB are free"
        )


def run_snapshot(stage: Stage) -> Rows:
    """A snapshot of 1 GB, read as fast as it comes."""
    keyspace = Keyspace(b"/bench/disk/", stage.settings.size(1_000_000), 1000)
    with stage.server as server:
        fill(server, keyspace)
        settle(server)
        for check in (True, False):
            with Download(server.port, check=check) as download:
                outcome = demand(download.run(), "a snapshot")
    payload = keyspace.count * keyspace.bytes_each
    if outcome.size < payload:
        raise WrongAnswer(f"a snapshot of {outcome.size} bytes holds {payload} bytes of user data")
    return {
        f"snapshot of {keyspace.count:,} keys of 1 KB": {
            "seconds": outcome.elapsed,
            "mib_per_second": outcome.mib_per_second,
            "size_mib": outcome.size / 2**20,
            "generator_seconds": outcome.cpu,
        }
    }


CASES = (
    restart_case(1_000_000),
    restart_case(5_000_000),
    Case("disk", "put beside checkpoints", run_checkpoint),
    Case("disk", "put beside snapshots", run_snapshot_beside),
    Case("disk", "bytes of new keys", run_bytes_new),
    Case("disk", "bytes of overwrites", run_bytes_overwritten),
    Case("disk", "bytes of a mix", run_bytes_mixed),
    Case("disk", "memory in the file", run_memory),
    Case("disk", "much data", run_large),
    Case("disk", "snapshot save", run_snapshot),
)
