"""A machine with a server and its clients, of which one random source decides every step.

Rules:
1. A step is one thing: a turn of the core or of a worker, an actor's doing, time, the end of a
   sync, a fault. Nothing happens between two steps.
2. Everything that is left to chance comes from `chance`; the trace is every step and every byte
   that a client was sent, and its hash is the same for the same seed.
3. Faults come as the run's `Shape` has it, so that runs differ: some crash, some never do.
4. At the end all is healed. Then everything must come to rest, each watch be complete, leases gone,
   and nothing be left alive once the clients have gone and the workers were told to leave.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio
import trio.testing

from quorate.core._disk import DiskError
from quorate.core.errors import Fatal
from quorate.core.fleet import Command
from tests.crash.watching import EVERYTHING, KEYS
from tests.messages import Message
from tests.node_driver import new_disk
from tests.sim import scheduling
from tests.sim.actors import Actor, Lessee, Visitor, Writer
from tests.sim.core import Core
from tests.sim.disk import SimDisk
from tests.sim.peer import Refusal
from tests.sim.records import Records, leaks, verdict
from tests.sim.watching import Reference, observers
from tests.sim.worker import SimWorker
from tests.watchcheck import Op
from tests.watches import DELETE, PUT, revision_of

STEPS = 1200
LAST_STEPS = 60
CHECK_STEPS = 97
REST_STEPS_MAX = 40_000
TICK_MILLISECONDS = 1000
LEASE_SECONDS_MAX = 60


class Failure(AssertionError):
    """The server broke a promise."""


@dataclass
class Shape:
    """How a run is made: sizes, and how often what happens."""

    workers: int
    ring_bytes: tuple[int, int]  # to the core, from the core
    event_ring_bytes: int
    quick_syncs: float  # the share of syncs that run in the turn itself
    huge: float
    compactions: float
    cancels: float
    faults: dict[str, float]  # the weight of each in a step
    eagerness: float  # how often one acts who has no reason to

    @staticmethod
    def draw(chance: random.Random) -> Shape:
        """Any."""
        kilobytes = 1024
        faults = {
            "kill worker": 0.004,
            "pause worker": 0.008,
            "pause core": 0.003,
            "crash core": 0.002,
            "fail disk": 0.002,
            "hamper client": 0.01,
            "lose client": 0.005,
            "long time": 0.003,
        }
        return Shape(
            workers=chance.choice([1, 1, 2, 3]),
            ring_bytes=(
                kilobytes * chance.choice([32, 64, 256]),
                kilobytes * chance.choice([128, 256]),
            ),
            event_ring_bytes=kilobytes * chance.choice([64, 64, 128]),
            quick_syncs=chance.choice([0.0, 0.3, 1.0]),
            huge=chance.choice([0.0, 0.03, 0.2]),
            compactions=chance.choice([0.0, 0.02, 0.12]),
            cancels=chance.choice([0.0, 0.05, 0.2]),
            faults={
                name: weight * chance.choice([0.0, 0.5, 1.0, 3.0])
                for name, weight in faults.items()
            },
            eagerness=chance.choice([0.01, 0.2]),
        )


class World:
    """One run."""

    def __init__(
        self, seed: int, steps: int = STEPS, say: Callable[[str], object] | None = None
    ) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.shape = Shape.draw(self.chance)
        self.steps = 0
        self.steps_max = steps
        self.now = 1000
        self.records = Records()
        self.last: deque[str] = deque(maxlen=LAST_STEPS)
        self._say = say  # gets the trace, line by line
        self._hash = hashlib.sha256()
        self.counts: dict[str, int] = {}
        self.core: Core | None = None
        self.disk: SimDisk = new_disk(seed)
        self.disk.rng = self.chance
        self.workers: list[SimWorker | None] = [None] * self.shape.workers
        self.generation = 0
        self.core_paused_until = 0
        self.paused_until = [0] * self.shape.workers
        self.reference = Reference(self)
        self.observers = observers(self)
        self.last_writer = Writer(self, "last")
        self.actors: list[Actor] = [
            self.reference,
            *self.observers,
            *(Writer(self, f"writer{number}") for number in range(3)),
            Lessee(self, "lessee0"),
            Lessee(self, "lessee1"),
            Visitor(self, "visitor"),
        ]

    # --- the run

    def run(self) -> str:
        """From an empty disk to the verdict; the trace's hash. Raises what went wrong."""
        self.note(f"{self.shape}")
        scheduling.run(self.seed, self._main)
        return self._hash.hexdigest()

    async def _main(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        async with trio.open_nursery() as self._nursery:
            self.start_core()
            while self.steps < self.steps_max:
                await self.step(asks=True)
            await self.finish()
            self._nursery.cancel_scope.cancel()
        assert self.core is not None
        self.core.wal.abandon()

    def note(self, text: str) -> None:
        """Something happened."""
        line = f"{self.steps} {self.now} {text}"
        self.last.append(line[:300])
        self._hash.update(line.encode())
        if self._say is not None:
            self._say(line)

    def trace(self, data: bytes) -> None:
        """A client was sent these bytes."""
        self._hash.update(data)
        if self._say is not None:
            self._say(f"    {data!r}")

    def count(self, what: str) -> None:
        """Count what happened."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def accepting(self) -> list[SimWorker]:
        """Workers that take clients."""
        return [
            worker
            for worker in self.workers
            if worker is not None and worker.alive and worker.pump.is_accepting
        ]

    # --- steps

    async def step(self, asks: bool) -> bool:
        """One thing; False when nobody has a reason to do anything."""
        self.steps += 1
        if asks and self.steps % CHECK_STEPS == 0 and self.core is not None:
            self.core.check()
        if asks and self._fault():
            await self._settle()
            return True
        choices = self._choices(asks)
        if not choices:
            return False
        weights = [weight for weight, _, _ in choices]
        [(_, name, do)] = self.chance.choices(choices, weights)
        self.note(name)
        do()
        await self._settle()
        return True

    async def _settle(self) -> None:
        """Let every task do what it can."""
        await trio.testing.wait_all_tasks_blocked()

    def _choices(self, asks: bool) -> Sequence[tuple[float, str, Callable[[], object]]]:
        """Who may act now, with weights."""
        choices: list[tuple[float, str, Callable[[], object]]] = []
        eager = self.shape.eagerness if asks else 0.0
        core = self.core
        if core is None:
            choices.append((1.0, "start core", self.start_core))
        else:
            if core.wal.held:
                choices.append((1.0, "sync ends", core.wal.release))
            if self.steps >= self.core_paused_until:
                weight = 3.0 if core.due() else eager
                choices.append((weight, "core", self._turn_core))
        for slot, worker in enumerate(self.workers):
            if worker is None or not worker.alive:
                if core is not None:
                    choices.append((0.5, f"start worker {slot}", partial(self._start, slot)))
            elif self.steps >= self.paused_until[slot]:
                weight = 2.0 if worker.due() else eager
                choices.append((weight, f"worker {slot}", worker.go))
        for actor in self.actors:
            weight = 1.0 if actor.due() else 0.0
            if asks and not actor.deaf:
                weight = max(weight, 0.5)
            choices.append((weight, actor.name, partial(actor.act, asks)))
        if asks:
            choices.append((0.5, "time", self._pass_time))
        return [choice for choice in choices if choice[0]]

    def _turn_core(self) -> None:
        core = self.core
        assert core is not None
        try:
            core.turn()
        except DiskError as error:
            self.note(f"the core ends: {error}")
            self.count("disk failures")
            self.crash()
            return
        for revision in range(max(self.records.reached, default=1) + 1, core.revision + 1):
            self.records.reached[revision] = self.now

    def _pass_time(self) -> None:
        self.pass_time(self.chance.choice([1, 5, 20, 100, 300, 1000]))

    def pass_time(self, milliseconds: int) -> None:
        """Time goes by, for all."""
        self.now += milliseconds
        self.note(f"{milliseconds} ms")
        self._clock.jump(milliseconds / 1000)
        if self.core is not None:
            self.core.set_time(self.now, TICK_MILLISECONDS)
        for worker in self.workers:
            if worker is not None and worker.alive:
                worker.set_time(self.now)
                worker.pump.tick()

    # --- who lives

    def start_core(self) -> None:
        """Begin, or begin again, with workers of its own."""
        shape = self.shape
        self.disk.fail_at = self.disk.die_at = None
        if self.chance.random() < min(0.5, 20 * shape.faults["fail disk"]):
            self.disk.fail_at = self.disk.operations + self.chance.randrange(1, 40)
        try:
            self.core = Core(
                self.disk,
                self.chance,
                self.now,
                shape.workers,
                shape.event_ring_bytes,
                self._sync_seconds,
            )
        except Fatal as error:
            if self.disk.fail_at is None:
                raise
            self.note(f"the core does not start: {error}")
            self.count("failed starts")
            self.disk = self.disk.crash()
            return
        self.disk.fail_at = None
        revision = self.core.revision
        assert revision >= self.records.acknowledged, (
            f"started at {revision}, {self.records.acknowledged} was acknowledged"
        )
        for at in [at for at in self.records.reached if at > revision]:
            del self.records.reached[at]
        for slot in range(shape.workers):
            self._start(slot)

    def _sync_seconds(self) -> float:
        return 0.0 if self.chance.random() < self.shape.quick_syncs else 0.002

    def _start(self, slot: int) -> None:
        assert self.core is not None
        self.generation += 1
        worker = SimWorker(
            self.core, slot, self.generation, self.shape.ring_bytes, self.chance.getrandbits(63)
        )
        worker.set_time(self.now)
        worker.bell.command = Command.SERVE
        self.workers[slot] = worker
        self.core.adopt(slot, worker.port, worker.block)
        self.paused_until[slot] = 0
        self._nursery.start_soon(worker.run)

    def kill(self, slot: int) -> None:
        """End a worker; the core learns of it at once."""
        worker = self.workers[slot]
        if worker is not None and worker.alive:
            worker.kill()
        if self.core is not None:
            self.core.lose(slot)

    def crash(self, how: str | None = None) -> None:
        """End the core, and with it the workers."""
        assert self.core is not None
        for slot in range(self.shape.workers):
            worker = self.workers[slot]
            if worker is not None and worker.alive:
                worker.kill()
        self.disk = self.core.crash(how)
        self.core = None
        self.core_paused_until = 0

    # --- faults

    def _fault(self) -> bool:
        """Perhaps one; whether there was."""
        for name, weight in self.shape.faults.items():
            if self.chance.random() < weight:
                self.note(name)
                self.count(name)
                getattr(self, "_" + name.replace(" ", "_"))()
                return True
        return False

    def _any_worker(self) -> int:
        return self.chance.randrange(self.shape.workers)

    def _kill_worker(self) -> None:
        self.kill(self._any_worker())

    def _pause_worker(self) -> None:
        steps = self.chance.choice([20, 100, 600])
        self.paused_until[self._any_worker()] = self.steps + self.chance.randrange(10, steps)

    def _pause_core(self) -> None:
        self.core_paused_until = self.steps + self.chance.randrange(10, 150)

    def _crash_core(self) -> None:
        if self.core is not None:
            self.crash()

    def _fail_disk(self) -> None:
        self.disk.fail_at = self.disk.operations + self.chance.randrange(1, 30)

    def _hamper_client(self) -> None:
        self.chance.choice(self.actors).hamper()

    def _lose_client(self) -> None:
        self.chance.choice(self.actors).disconnect()

    def _long_time(self) -> None:
        self.pass_time(self.chance.choice([3000, 8000, 30_000]))

    # --- the end

    async def finish(self) -> None:
        """Heal, come to rest, write each key a last time, and judge."""
        self.note("finish")
        self.disk.fail_at = None
        self.core_paused_until = 0
        self.paused_until = [0] * self.shape.workers
        for actor in self.actors:
            actor.recover()
        await self.rest("the server heals")
        for _ in range(4):
            self.pass_time(LEASE_SECONDS_MAX * 250)
            await self.rest("leases end")
        await self._write_last()
        for observer in self.observers:
            for stream in observer.streams:
                stream.progress(self.records.acknowledged)
        await self.rest("progress is told")
        last = self.records.acknowledged
        for observer in self.observers:
            for stream in observer.streams:
                text = f"{observer.name}: progress {stream.told()}, not {last}"
                assert stream.told() == last or not stream.begun(last), text
        assert self.core is not None
        assert self.core.revision == last, (self.core.revision, last)
        await self._end()
        self.judge()

    async def _write_last(self) -> None:
        """A put and a delete of every key, after all leases have ended."""
        writer = self.last_writer
        self.actors.append(writer)
        writer.connect()
        assert writer.peer is not None
        found: list[Message] = []

        def read(reply: Message | Refusal) -> None:
            assert not isinstance(reply, Refusal), reply
            found.append(reply)

        everything = {"key": EVERYTHING[0], "range_end": EVERYTHING[1]}
        writer.peer.ask("KV/Range", everything, read)
        await self.rest("a last read")
        bound = [kv for kv in found[0].get("kvs", ()) if kv.get("lease")]
        assert not bound, f"leases have ended, and have keys yet: {bound}"
        for key in KEYS:
            writer.write(writer.peer, [Op(PUT, key, b"end " + key)])
        await self.rest("last writes")
        writer.write(writer.peer, [Op(DELETE, EVERYTHING[0], range_end=EVERYTHING[1])])
        await self.rest("the last write")
        assert revision_of(found[0]) + len(KEYS) + 1 == self.records.acknowledged

    async def rest(self, what: str) -> None:
        """Go on until nobody has a reason to, and nobody waits."""
        for _ in range(REST_STEPS_MAX):
            if await self.step(asks=False):
                continue
            waiting = [actor.name for actor in self.actors if not actor.settled()]
            assert not waiting, f"{what}: nothing moves, and {waiting} wait"
            return
        raise Failure(f"{what}: no rest after {REST_STEPS_MAX} steps")

    async def _end(self) -> None:
        """All clients go; then nothing may be left, and the workers leave when they are told to."""
        actors, self.actors = self.actors, []
        for actor in actors:
            actor.disconnect()
        await self.rest("clients go")
        assert self.core is not None
        self.core.check()
        for worker in self.accepting():
            left = leaks(worker.gauges())
            assert not left, f"worker {worker.slot} has left: {left}"
            worker.bell.command = Command.DRAIN
            worker.go()
            await self._settle()
            assert worker.left, f"worker {worker.slot} does not leave"
            worker.alive = False

    def judge(self) -> None:
        """Raise for every promise that was broken."""
        watchers = [watcher for one in self.observers for watcher in one.watchers]
        history, complaints = verdict(self.records, self.reference.watcher, watchers)
        if complaints:
            raise Failure("\n".join(map(": ".join, complaints[:10])))
        assert history.last == self.records.acknowledged, (history.last, self.records.acknowledged)
        self.counts["revisions"] = history.last
