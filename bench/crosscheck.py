"""The load generator against h2load: the same puts and gets, turn and turn about, on one server.

h2load sends one fixed body, so the generator works on one key; it looks at HTTP statuses only, the
generator reads every answer. A pair further apart than TOLERANCE says that one measures itself.
"""

import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench._keyspace import Keyspace
from bench._load import Load
from bench.protobuf import encode_varint
from bench.servers import RANGE, Server, ServerError, Target
from bench.workloads import SHAPES, demand, fill

TOLERANCE = 0.10
ROUNDS_MIN = 3
WARMUP_SECONDS = 1
PUT = "/etcdserverpb.KV/Put"

Shape = tuple[int, int]


@dataclass(frozen=True)
class Measure:
    """What one program says of one kind of work."""

    per_second: float
    cpu_us: float
    """CPU of the load generator for each request."""


@dataclass(frozen=True)
class Pair:
    """One kind of work, measured by both: medians of the rounds."""

    name: str
    ours: Measure
    theirs: Measure
    ratio: float
    """Our rate by h2load's: the median of the rounds' ratios, so that a slow minute hits both."""

    @property
    def agrees(self) -> bool:
        """Whether both say the same within the tolerance."""
        return abs(self.ratio - 1) <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.name}: ours {self.ours.per_second:,.0f}/s ({self.ours.cpu_us:.2f} µs CPU), "
            f"h2load {self.theirs.per_second:,.0f}/s ({self.theirs.cpu_us:.2f} µs), "
            f"ratio {self.ratio:.3f}{'' if self.agrees else ' DISAGREE'}"
        )


def compare(
    target: Target,
    seconds: int,
    rounds: int,
    directory: Path,
    say: Callable[[str], None],
    echo: bool = False,
) -> list[Pair]:
    """Measure every shape with both; raises ServerError when h2load is missing or fails."""
    if shutil.which("h2load") is None:
        raise ServerError("h2load: no such program (Debian: nghttp2-client)")
    pairs = []
    keyspace = Keyspace(b"/bench/crosscheck/", 1)
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=directory) as fresh,
        Server(target, Path(fresh) / "server", echo) as server,
    ):
        if not echo:
            fill(server, keyspace)
        for kind in ("put", "get"):
            body = Path(fresh) / kind
            body.write_bytes(request_body(kind, keyspace))
            for shape in SHAPES:
                ours: list[Measure] = []
                theirs: list[Measure] = []
                # h2load goes first in one round and second in the next.
                for number in range(2 * max(rounds, ROUNDS_MIN)):
                    if number % 4 in (0, 3):
                        ours.append(_ours(server, kind, keyspace, shape, seconds))
                    else:
                        theirs.append(_h2load(server, kind, body, shape, seconds))
                pairs.append(_pair(f"{kind} {shape[0]}x{shape[1]}", ours, theirs))
                say(f"{target.name}{', echo' if echo else ''}, {pairs[-1]}")
    return pairs


def request_body(kind: str, keyspace: Keyspace) -> bytes:
    """The bytes that the generator sends for key 0, with gRPC's prefix."""
    key = keyspace.key(0)
    message = b"\x0a" + encode_varint(len(key)) + key
    if kind == "put":
        value = keyspace.value(0, 1)
        message += b"\x12" + encode_varint(len(value)) + value
    return b"\x00" + len(message).to_bytes(4, "big") + message


def _ours(server: Server, kind: str, keyspace: Keyspace, shape: Shape, seconds: int) -> Measure:
    with Load(
        server.port,
        "put" if kind == "put" else "get",
        keyspace,
        connections=shape[0],
        streams=shape[1],
        check=not server.echo,
    ) as load:
        outcome = demand(load.run(seconds=seconds, warmup=WARMUP_SECONDS), "crosscheck")
    return Measure(outcome.per_second, outcome.cpu * 1e6 / max(1, outcome.succeeded))


def _h2load(server: Server, kind: str, body: Path, shape: Shape, seconds: int) -> Measure:
    path = PUT if kind == "put" else RANGE
    command = [
        "h2load", f"-c{shape[0]}", f"-m{shape[1]}", f"-D{seconds}",
        f"--warm-up-time={WARMUP_SECONDS}", "-H", "content-type: application/grpc",
        "-H", "te: trailers", "-d", str(body), f"http://127.0.0.1:{server.port}{path}",
    ]  # fmt: skip
    before = os.times()
    said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    after = os.times()
    rate = re.search(r"finished in [^,]+, ([0-9.]+) req/s", said.stdout)
    if rate is None or said.returncode != 0:
        raise ServerError(f"h2load failed: {said.stderr or said.stdout}")
    if re.search(r" 0 failed, 0 errored, 0 timeout", said.stdout) is None:
        raise ServerError(f"h2load saw failures: {said.stdout}")
    per_second = float(rate[1])
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return Measure(per_second, used * 1e6 / max(1.0, per_second * (seconds + WARMUP_SECONDS)))


def _pair(name: str, ours: list[Measure], theirs: list[Measure]) -> Pair:
    ratios = [
        mine.per_second / h2load.per_second for mine, h2load in zip(ours, theirs, strict=True)
    ]
    return Pair(name, _median(ours), _median(theirs), statistics.median(ratios))


def _median(measures: list[Measure]) -> Measure:
    return Measure(
        statistics.median(each.per_second for each in measures),
        statistics.median(each.cpu_us for each in measures),
    )
