"""The headline question: can this machine do 10,000 durable writes a second?

For each server: clients with one request in flight each are added until they reach the rate in a
closed loop; then exactly that rate is held in an open loop, whose latencies count from when each
write was due.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench._keyspace import Keyspace
from bench._load import Load
from bench.servers import Server, Target
from bench.workloads import demand, every_write_counted

WRITES_PER_SECOND = 10_000
CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
KEYS = 10_000
# In flight by each client in the open loop, so that a stall delays but does not starve.
STREAMS_OPEN = 10


@dataclass(frozen=True)
class Answer:
    """What one server had to say to the question."""

    target: Target
    clients: int
    """How many it took, or the last number tried."""
    closed_per_second: float
    closed_p99_us: float
    open_per_second: float
    open_p50_us: float
    open_p99_us: float
    open_p999_us: float

    @property
    def reached(self) -> bool:
        """Whether the rate was reached."""
        return self.closed_per_second >= WRITES_PER_SECOND

    def __str__(self) -> str:
        if not self.reached:
            return (
                f"{self.target.name}: no. With {self.clients} clients it makes "
                f"{self.closed_per_second:,.0f} durable writes a second"
            )
        return (
            f"{self.target.name}: yes, with {self.clients} clients "
            f"({self.closed_per_second:,.0f}/s, p99 {self.closed_p99_us / 1000:.2f} ms). "
            f"Held at {self.open_per_second:,.0f}/s: p50 {self.open_p50_us / 1000:.2f} ms, "
            f"p99 {self.open_p99_us / 1000:.2f} ms, p99.9 {self.open_p999_us / 1000:.2f} ms"
        )


def ask(
    targets: Sequence[Target], seconds: float, directory: Path, say: Callable[[str], None]
) -> list[Answer]:
    """Ask every target in turn; raises WrongAnswer or ServerError."""
    answers = []
    for target in targets:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=directory) as fresh:
            answers.append(_ask_one(target, seconds, Path(fresh), say))
    return answers


def _ask_one(target: Target, seconds: float, directory: Path, say: Callable[[str], None]) -> Answer:
    keyspace = Keyspace(b"/bench/headline/", KEYS)
    with Server(target, directory) as server, every_write_counted(server, keyspace):
        for clients in CLIENTS:
            with Load(server.port, "put", keyspace, connections=clients) as load:
                closed = demand(load.run(seconds=seconds / 4, warmup=seconds / 16), "closed loop")
            say(
                f"{target.name}, {clients} clients: {closed.per_second:,.0f} writes/s, "
                f"p99 {closed.microseconds(99) / 1000:.2f} ms"
            )
            if closed.per_second >= WRITES_PER_SECOND:
                break
        rate = min(WRITES_PER_SECOND, closed.per_second * 0.8)
        with Load(server.port, "put", keyspace, connections=clients, streams=STREAMS_OPEN) as load:
            held = demand(load.run(seconds=seconds, rate=rate), "open loop")
    return Answer(
        target=target,
        clients=clients,
        closed_per_second=closed.per_second,
        closed_p99_us=closed.microseconds(99),
        open_per_second=held.per_second,
        open_p50_us=held.microseconds(50),
        open_p99_us=held.microseconds(99),
        open_p999_us=held.microseconds(99.9),
    )
