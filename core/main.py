"""The core process: opens sockets and data directory, starts the workers, and turns until it is
told to stop.

Rules:
1. This process is what the user started; its workers are its children.
2. Between two turns it sleeps on its doorbell: first for LINGER_MILLISECONDS right there, which
   costs no time in the event loop while requests come in quick succession, then in trio, where
   signals, ticks and dead workers are seen to.
3. SIGTERM and SIGINT: the workers stop accepting and finish what is under way, then the core stops;
   exit code 0.
"""

from __future__ import annotations

import gc
import os
import signal
import time

import trio

from .boot import open_node
from .config import Config
from .errors import Fatal
from .fleet import Command, Fleet, WorkerMain
from .logs import Logger
from .node import Node
from .report import Report
from .sockets import close_listeners, open_listeners, raise_descriptor_limit
from .version import SERVER_VERSION

# How long a sleep is kept out of the event loop; also how late a signal or a tick may be seen.
LINGER_MILLISECONDS = 1
# A leader without followers has nobody to send heartbeats to: its ticks may be slow and rare.
LONE_TICK_MILLISECONDS = 1000
# How exact the moment is at which a lease runs out: it may be late by this, and never early.
LEASE_TICK_MILLISECONDS = 100
# Idle, the core turns with every tick. Without a turn for longer, something has stopped it.
STANDSTILL_MILLISECONDS = LONE_TICK_MILLISECONDS + 500
# Then keep-alives of that time may still wait in sockets and workers: leases wait for them.
STANDSTILL_GRACE_MILLISECONDS = 1000
# Objects that may pile up before the collector looks for cycles among them.
GARBAGE_OBJECTS_MAX = 100_000
# However busy the turns are, the event loop gets its say this often.
BUSY_SECONDS_MAX = 0.01
# What a stopping worker may take to finish what its clients asked; the whole stop has 1.5 s.
DRAIN_SECONDS_MAX = 1.0


def run(config: Config, logger: Logger, worker_main: WorkerMain) -> None:
    """Serve until told to stop. Raises Fatal, DiskError."""
    logger.info("starting", version=SERVER_VERSION, name=config.name, pid=os.getpid())
    raise_descriptor_limit()
    listeners = open_listeners(config.listen_client_urls)
    fleet = Fleet(config, logger, listeners, worker_main)
    node = open_node(config, fleet.ports, fleet.core_bell.fd, logger, fleet.event_ring)
    # What lives now lives until the end, and a turn leaves no cycles behind: the collector need not
    # walk it all again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS_MAX)
    fleet.tell(Command.SERVE)
    for slot in range(config.workers):
        fleet.start(slot)
    stop = Stop()
    failure: Fatal | None = None
    try:
        trio.run(serve, config, logger, fleet, node, stop)
    except* Fatal as group:
        # Raised below: in here Python 3.11.2 would wrap it in a group again.
        failure = first_leaf(group)
    finally:
        close_listeners(listeners)
        for slot in range(config.workers):
            if fleet.ports[slot] is not None:
                fleet.kill(slot)
    if failure is not None:
        raise failure
    node.close()
    logger.info("stopped")


async def serve(config: Config, logger: Logger, fleet: Fleet, node: Node, stop: Stop) -> None:
    """Everything that goes on in the core process."""
    async with trio.open_nursery() as nursery:
        for slot in range(config.workers):
            nursery.start_soon(fleet.watch, slot)
        nursery.start_soon(tick, config, node)
        nursery.start_soon(turn, fleet, node, Report(config, node, fleet))
        log_ready(config, logger)
        name = await stop.wait()
        logger.info("received signal; shutting down", signal=name)
        fleet.tell(Command.DRAIN)
        await drained(fleet)
        nursery.cancel_scope.cancel()


async def turn(fleet: Fleet, node: Node, report: Report) -> None:
    """Turn the node whenever there is something to do."""
    bell, batch, handle = fleet.core_bell, node.batch, report.handle
    yielded = time.monotonic()
    turned = node.clock()
    while True:
        began = node.clock()
        if began - turned > STANDSTILL_MILLISECONDS:
            node.hold_leases(STANDSTILL_GRACE_MILLISECONDS)
        turned = began
        more = node.turn(handle)
        fleet.replace_corrupt()
        if time.monotonic() - yielded > BUSY_SECONDS_MAX:
            await trio.lowlevel.checkpoint()
            yielded = time.monotonic()
        if more:
            continue
        bell.sleep()
        # A worker does not ring when it has made room for replies: then the sleep is short.
        if (
            not batch.waiting()
            and not bell.wait(LINGER_MILLISECONDS)
            and not fleet.waits_for_room()
        ):
            await trio.lowlevel.wait_readable(bell.fd)
            yielded = time.monotonic()
        bell.rise()


async def tick(config: Config, node: Node) -> None:
    """Let time go by, and wake the node when a lease runs out or a duty is due.

    A lease lasts at least a second, so that one which is granted while this sleeps is seen in time.
    """
    ticked = node.clock()
    while True:
        leads = node.raft.leader == node.raft.id
        milliseconds = LONE_TICK_MILLISECONDS if leads else config.heartbeat_interval
        now = node.clock()
        due = node.due()
        pause = max(ticked + milliseconds - now, 0)
        if due is not None:
            pause = min(pause, max(due - now, LEASE_TICK_MILLISECONDS))
        await trio.sleep(pause / 1000)
        now = node.clock()
        if now >= ticked + milliseconds:
            node.tick(now - ticked)
            ticked = now
        # A turn, whatever the doorbell says: for the leases, to send what the tick gave up, and
        # because a hostile worker may have silenced the bell for the others.
        os.eventfd_write(node.doorbell, 1)


class Stop:
    """SIGTERM and SIGINT from here on: the first one stops the server, others change nothing."""

    def __init__(self) -> None:
        self.name = ""
        self._event = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self.name = self.name or signal.Signals(number).name
        if self._token is not None:
            self._token.run_sync_soon(self._event.set, idempotent=True)

    async def wait(self) -> str:
        """Wait for a signal; answers its name."""
        self._token = trio.lowlevel.current_trio_token()
        if not self.name:
            await self._event.wait()
        return self.name


def first_leaf(group: BaseExceptionGroup[Fatal]) -> Fatal:
    """The one error that a group of errors is about."""
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert isinstance(leaf, Fatal)
    return leaf


async def drained(fleet: Fleet) -> None:
    """Wait until every worker has left, or DRAIN_SECONDS_MAX are over."""
    with trio.move_on_after(DRAIN_SECONDS_MAX):
        while fleet.alive():
            await trio.sleep(0.01)


def log_ready(config: Config, logger: Logger) -> None:
    """The lines that tools wait for."""
    logger.info("ready to serve client requests")
    for url in config.listen_client_urls:
        address = url.partition("://")[2]
        logger.info(
            "serving client traffic insecurely; this is strongly discouraged!",
            traffic="grpc+http",
            address=address,
        )
