"""One member without processes: a Node on any disk, and workers that are the test's.

Rules:
1. The member is started by `core/boot.py` and answers Python's calls through `core/report.py`, as
   in the core process; only the log's files are small and made when they are needed.
2. `settle` turns until nothing is left to do. It waits for a sync under way at the node's doorbell,
   for at most SYNC_SECONDS_MAX, and nowhere else.
3. Time stands still until the test moves it.
"""

from __future__ import annotations

import random
from typing import Any

from quorate.core._disk import Disk
from quorate.core._eventring import EventRing
from quorate.core._ring import Doorbell
from quorate.core._wal import make_directories
from quorate.core.boot import start_node
from quorate.core.config import Config
from quorate.core.errors import BY_ID, EtcdError
from quorate.core.fleet import Fleet
from quorate.core.logs import Logger
from quorate.core.report import Report
from tests.core_driver import Call, FakeWorker
from tests.messages import Message, decode
from tests.sim.disk import SimDisk

DATA = "/data"
SEGMENT_BYTES = 16 * 1024
SYNC_SECONDS_MAX = 10
TURNS_MAX = 10_000


def new_disk(seed: int = 1) -> SimDisk:
    """An empty disk with the directories of a member."""
    disk = SimDisk(random.Random(seed))
    make_directories(disk, f"{DATA}/member/snap")
    disk.operations = 0
    return disk


class Heard(Logger):
    """A log whose lines a test reads."""

    def __init__(self) -> None:
        super().__init__(())
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def _write(self, level: str, message: str, fields: dict[str, object]) -> None:
        self.lines.append((level, message, fields))

    def of(self, level: str) -> list[str]:
        """What was said at a level."""
        return [message for one, message, _ in self.lines if one == level]


class Member:
    """A running member and its workers."""

    def __init__(
        self,
        disk: Disk,
        workers: int = 1,
        data_dir: str = DATA,
        segment_bytes: int = SEGMENT_BYTES,
        now: int = 1000,
        event_ring: EventRing | None = None,
        chance: random.Random | None = None,
        logger: Logger | None = None,
        **flags: Any,
    ) -> None:
        config = Config(data_dir=data_dir, workers=workers, **flags)
        logger = logger or Logger((), "info")
        self.now = now  # milliseconds; the test moves it
        self.fleet = Fleet(config, logger, [], lambda inheritance, block: 0)
        self.bell: Doorbell = self.fleet.core_bell
        self.node = start_node(
            config,
            disk,
            self.fleet.ports,
            self.bell.fd,
            logger,
            event_ring,
            clock=lambda: self.now,
            chance=chance,
            segment_bytes=segment_bytes,
            ahead=False,
        )
        self.report = Report(config, self.node, self.fleet)
        self.workers = [FakeWorker(slot, slot + 1) for slot in range(workers)]
        self.fleet.ports[:] = [worker.port for worker in self.workers]

    @property
    def worker(self) -> FakeWorker:
        """The first worker."""
        return self.workers[0]

    @property
    def revision(self) -> int:
        """What the store has come to."""
        return self.node.state.store.revision

    def turn(self) -> bool:
        """One turn, and what it answered goes to its calls."""
        more = self.node.turn(self.report.handle)
        for worker in self.workers:
            worker.absorb()
        return more

    def settle(self) -> None:
        """Turn until there is nothing more to do, syncs included."""
        for _ in range(TURNS_MAX):
            if self.turn():
                continue
            if not self.node.wal.syncing:
                return
            assert self.bell.wait(SYNC_SECONDS_MAX * 1000), "the sync does not end"
            self.bell.rise()
        raise AssertionError("the node does not come to rest")

    def finish(self, request_id: int, worker: FakeWorker | None = None) -> Call:
        """Settle, and take the call, which must be over."""
        worker = worker or self.worker
        self.settle()
        call = worker.calls.pop(request_id)
        assert call.ended, f"{call.name} has no end; dropped {worker.port.dropped}"
        return call

    def call(self, name: str, message: Message | None = None) -> Message:
        """A whole unary call. Raises EtcdError."""
        return self.finish(self.worker.start(name, message)).result()[0]

    def put(self, key: bytes, value: bytes = b"v") -> int:
        """Put a key; answers its revision."""
        reply = self.call("KV/Put", {"key": key, "value": value})
        return int(reply["header"]["revision"])

    def keep_alive(self, lease: int) -> int:
        """Keep a lease alive; answers its TTL."""
        asked = self.worker.start("Lease/LeaseKeepAlive", {"ID": lease})
        self.settle()
        call = self.worker.calls.pop(asked)
        [message] = call.messages
        return int(decode("LeaseKeepAliveResponse", message).get("TTL", 0))

    def everything(self) -> dict[bytes, tuple[bytes, int]]:
        """Value and mod revision of each key."""
        reply = self.call("KV/Range", {"key": b"\0", "range_end": b"\0"})
        return {
            kv["key"]: (kv.get("value", b""), kv["mod_revision"]) for kv in reply.get("kvs", ())
        }

    def ask(self, call: int, payload: bytes = b"") -> bytes:
        """A call that Python answers. Raises EtcdError."""
        found = self.finish(self.worker.admin(call, payload))
        if found.error:
            raise BY_ID[found.error]()
        return found.messages[0]

    def refused(self, name: str, message: Message) -> type[EtcdError] | None:
        """How a unary call is refused; None when it is not."""
        found = self.finish(self.worker.start(name, message))
        return BY_ID[found.error] if found.error else None

    def check(self) -> None:
        """Every invariant of store, log and raft."""
        self.node.state.store.check()
        self.node.wal.check()
        self.node.raft.check()
        self.node.state.members.check()
