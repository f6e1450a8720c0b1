"""Those who use a simulated server: writers, readers, holders of leases, callers of Python.

Rules:
1. An actor does one thing at a time: `act` takes in what came and then perhaps asks for something.
2. What it asks and is told goes into the world's `Records`, and is judged at the end; what can be
   judged at once is asserted.
3. One whose connection is gone comes back to any worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.crash.watching import EVERYTHING, KEYS, PREFIXES, random_ops, request_op
from tests.messages import Message, encode
from tests.sim.peer import LOST, Peer, Refusal
from tests.sim.records import Lease, Read
from tests.watchcheck import Op, Write
from tests.watches import PUT, revision_of

if TYPE_CHECKING:
    from tests.sim.world import World

# gRPC codes after which nothing has happened: invalid argument, not found, failed precondition,
# out of range.
CERTAIN = frozenset({3, 5, 9, 11})
NOT_FOUND, OUT_OF_RANGE = 5, 11
CALLS_MAX = 10
VALUE_BYTES_MAX = 6000


class Actor:
    """A client of the server."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.peer: Peer | None = None
        self.deaf_until = 0

    def due(self) -> bool:
        """Whether it would be of use to let it act."""
        if self.peer is None:
            return bool(self.world.accepting())
        link = self.peer.link
        return not self.deaf and (bool(link.to_client) or link.server_gone)

    @property
    def deaf(self) -> bool:
        """Whether it reads nothing now."""
        return self.world.steps < self.deaf_until

    def act(self, asks: bool = True) -> None:
        """Take in what came; then, if it `asks`, do something."""
        if self.peer is None:
            self.connect()
            return
        if self.deaf:
            return
        self.peer.receive()
        if self.peer.over:
            self.world.note(f"{self.name} lost its connection")
            self.peer = None
        else:
            self.look()
            if asks:
                self.ask(self.peer)

    def connect(self) -> None:
        """Come to any worker."""
        workers = self.world.accepting()
        if not workers:
            return
        worker = self.world.chance.choice(workers)
        window = self.world.chance.choice([4096, 20_000, 65_535, 1 << 20])
        self.peer = Peer(worker.pump.connect(), self.world.trace, window)
        self.world.note(f"{self.name} connects to worker {worker.slot}, window {window}")
        self.connected(self.peer)

    def disconnect(self) -> None:
        """Go without a word."""
        if self.peer is not None:
            self.peer.lose()
            self.peer = None

    def recover(self) -> None:
        """Read again, whatever was planned."""
        self.deaf_until = 0
        if self.peer is not None:
            self.peer.stingy = False
            self.peer.pay()

    def hamper(self) -> None:
        """Take nothing, or give no window back, for a while."""
        if self.world.chance.random() < 0.5:
            self.deaf_until = self.world.steps + self.world.chance.randrange(20, 200)
        elif self.peer is not None:
            self.peer.stingy = not self.peer.stingy
            if not self.peer.stingy:
                self.peer.pay()

    def connected(self, peer: Peer) -> None:
        """A connection stands."""

    def look(self) -> None:
        """Something may have come."""

    def ask(self, peer: Peer) -> None:
        """Do something."""

    def settled(self) -> bool:
        """Whether it waits for nothing."""
        return self.peer is not None and not self.peer.calls


class Writer(Actor):
    """Puts, deletes, transactions, huge ones, reads, compactions."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.count = 0

    def ask(self, peer: Peer) -> None:
        for _ in range(self.world.chance.randrange(6)):
            if len(peer.calls) < CALLS_MAX:
                self.ask_one(peer)

    def ask_one(self, peer: Peer) -> None:
        """One thing."""
        chance = self.world.chance
        kind = chance.random()
        if kind < 0.5:
            self.write(peer, random_ops(chance, self.value(chance.randrange(60))))
        elif kind < 0.5 + self.world.shape.huge and peer.settings:
            self.huge(peer)
        elif kind < 0.8:
            self.read(peer)
        elif kind < 0.8 + self.world.shape.compactions:
            self.compact(peer)

    def value(self, size: int) -> bytes:
        """A value that was never written before."""
        self.count += 1
        return f"{self.name}.{self.count}=".encode().ljust(size, b".")

    def huge(self, peer: Peer) -> None:
        """A revision that is more than the rings hold."""
        chance = self.world.chance
        size = chance.randrange(1000, VALUE_BYTES_MAX)
        room = self.world.shape.ring_bytes[0] * 2 // 5
        keys = chance.sample(KEYS, min(len(KEYS), max(1, room // (size + 100))))
        value = self.value(size)
        self.write(peer, [Op(PUT, key, value + b"%d" % at) for at, key in enumerate(keys)])

    def write(self, peer: Peer, ops: list[Op]) -> None:
        """One write, of which the outcome is noted."""
        write = Write(ops)
        self.world.records.writes.append(write)
        name, message = write_request(ops)

        def done(reply: Message | Refusal) -> None:
            if not isinstance(reply, Refusal):
                write.revision = changed_revision(name, reply)
                self.world.records.acknowledge(revision_of(reply))
            elif reply.code in CERTAIN:
                write.revision = 0

        self.world.note(f"{self.name} {name} {[(op.kind, op.key) for op in ops][:4]}")
        peer.ask(name, message, done)

    def read(self, peer: Peer) -> None:
        """A key, a prefix, or all; now, or at a revision."""
        chance, records = self.world.chance, self.world.records
        prefix = chance.choice(PREFIXES)
        where = chance.choice(
            [(chance.choice(KEYS), b""), (prefix, prefix[:-1] + b"0"), EVERYTHING]
        )
        message: Message = {"key": where[0]} | ({"range_end": where[1]} if where[1] else {})
        at = 0
        if chance.random() < 0.2:
            at = chance.randrange(
                records.compacted, max(records.acknowledged, records.compacted) + 3
            )
            message["revision"] = at
        serializable = chance.random() < 0.3
        if serializable:
            message["serializable"] = True
        known = 0 if serializable else records.acknowledged

        def done(reply: Message | Refusal) -> None:
            if isinstance(reply, Refusal):
                assert reply.code != OUT_OF_RANGE or at, reply
                return
            revision = revision_of(reply)
            assert revision >= known, f"read at {revision}, {known} was acknowledged before"
            kvs = reply.get("kvs", [])
            assert reply.get("count", 0) == len(kvs), reply
            records.reads.append(Read(at or revision, where, kvs))
            if not serializable:
                records.acknowledge(revision)

        self.world.note(f"{self.name} reads {where} at {at}")
        peer.ask("KV/Range", message, done)

    def compact(self, peer: Peer) -> None:
        """Compact up to something that the reference was told."""
        chance, records = self.world.chance, self.world.records
        revision = self.world.reference.told - chance.choice([0, 1, 5, 30])
        if revision <= max(records.compacted, 1):
            return
        records.compacted = revision
        self.world.note(f"{self.name} compacts {revision}")
        peer.ask("KV/Compact", {"revision": revision}, lambda reply: None)


class Lessee(Actor):
    """Grants leases, binds keys to them, keeps them alive or not, revokes them, asks for them."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.count = 0
        self.stream: int | None = None
        self.asked: list[tuple[int, int]] = []  # the stream's keep-alives: lease, when

    def ask(self, peer: Peer) -> None:
        chance = self.world.chance
        if len(peer.calls) >= CALLS_MAX:
            return
        known = [lease for lease in self.world.records.leases.values() if lease.granted]
        kind = chance.random()
        if kind < 0.2 or not known:
            self.grant(peer)
        elif kind < 0.5:
            self.put(peer, chance.choice(known[-6:]))
        elif kind < 0.85:
            self.keep_alive(peer, chance.choice(known[-6:]))
        elif kind < 0.9:
            self.revoke(peer, chance.choice(known[-6:]))
        elif kind < 0.96:
            self.time_to_live(peer, chance.choice(known[-6:]))
        else:
            peer.ask("Lease/LeaseLeases", {}, lambda reply: None)

    def grant(self, peer: Peer) -> None:
        """A lease, whose id is ours or the server's to choose."""
        world = self.world
        seconds = world.chance.choice([2, 3, 5, 10, 30])
        number = len(world.records.leases) + 1 if world.chance.random() < 0.7 else 0
        floor = world.now + 1000 * seconds
        if number:
            world.records.leases[number] = Lease(number, floor)

        def done(reply: Message | Refusal) -> None:
            if isinstance(reply, Refusal):
                assert reply.code == LOST or reply.code not in CERTAIN, reply
                return
            given = int(reply["ID"])
            assert reply["TTL"] >= seconds, reply
            assert not number or given == number, reply
            lease = world.records.leases.setdefault(given, Lease(given, floor))
            lease.granted = True

        world.note(f"{self.name} grants {number} for {seconds} s")
        peer.ask("Lease/LeaseGrant", {"ID": number, "TTL": seconds}, done)

    def put(self, peer: Peer, lease: Lease) -> None:
        """Bind a key to a lease."""
        self.count += 1
        key = self.world.chance.choice(KEYS)
        write = Write([Op(PUT, key, f"{self.name}.{self.count}".encode())])
        self.world.records.writes.append(write)

        def done(reply: Message | Refusal) -> None:
            if not isinstance(reply, Refusal):
                write.revision = revision_of(reply)
                self.world.records.acknowledge(write.revision)
                self.world.records.bound[write.revision] = lease.id
            elif reply.code in CERTAIN:
                write.revision = 0
                assert reply.code == NOT_FOUND, reply
                self.gone(lease)

        self.world.note(f"{self.name} binds {key!r} to {lease.id}")
        message = {"key": key, "value": write.ops[0].value, "lease": lease.id}
        peer.ask("KV/Put", message, done)

    def gone(self, lease: Lease) -> None:
        """The server says that there is no such lease."""
        world = self.world
        early = f"lease {lease.id} is gone at {world.now}, it lasts until {lease.floor}"
        assert lease.revokes or world.now >= lease.floor, early

    def keep_alive(self, peer: Peer, lease: Lease) -> None:
        """Ask on the stream that is open, or open one."""
        if self.stream is None:
            asked = self.asked = []

            def end(how: Refusal) -> None:
                if self.asked is asked:
                    self.stream = None

            self.stream = peer.begin(
                "Lease/LeaseKeepAlive", lambda reply: self.kept(asked, reply), end
            )
        self.asked.append((lease.id, self.world.now))
        self.world.note(f"{self.name} keeps {lease.id} alive")
        peer.send(self.stream, encode("LeaseKeepAliveRequest", {"ID": lease.id}))
        if self.world.chance.random() < 0.05:
            peer.half_close(self.stream)
            self.stream = None

    def kept(self, asked: list[tuple[int, int]], reply: Message) -> None:
        """The answer to a stream's oldest keep-alive."""
        number, when = asked.pop(0)
        assert reply.get("ID", 0) == number, (reply, number)
        lease = self.world.records.leases[number]
        seconds = reply.get("TTL", 0)
        if seconds:
            lease.floor = max(lease.floor, when + 1000 * seconds)
        else:
            self.gone(lease)

    def revoke(self, peer: Peer, lease: Lease) -> None:
        """End a lease."""
        lease.revokes += 1

        def done(reply: Message | Refusal) -> None:
            if isinstance(reply, Refusal):
                if reply.code == NOT_FOUND and lease.revokes == 1:
                    assert self.world.now >= lease.floor, (lease, self.world.now)
            else:
                self.world.records.acknowledge(revision_of(reply))

        self.world.note(f"{self.name} revokes {lease.id}")
        peer.ask("Lease/LeaseRevoke", {"ID": lease.id}, done)

    def time_to_live(self, peer: Peer, lease: Lease) -> None:
        """Ask how long a lease lasts yet."""

        def done(reply: Message | Refusal) -> None:
            if not isinstance(reply, Refusal) and reply.get("TTL", 0) == -1:
                self.gone(lease)

        peer.ask("Lease/LeaseTimeToLive", {"ID": lease.id, "keys": True}, done)

    def settled(self) -> bool:
        return self.peer is not None and not self.peer.calls.keys() - {self.stream}


class Visitor(Actor):
    """Calls that Python answers."""

    def ask(self, peer: Peer) -> None:
        if len(peer.calls) >= CALLS_MAX:
            return
        name = self.world.chance.choice(["Cluster/MemberList", "Maintenance/Status"])
        self.world.note(f"{self.name} {name}")
        peer.ask(name, {}, self.answered)

    def answered(self, reply: Message | Refusal) -> None:
        """Nothing is wrong with the request."""
        assert not isinstance(reply, Refusal) or reply.code not in CERTAIN, reply


def write_request(ops: list[Op]) -> tuple[str, Message]:
    """The call that makes a write."""
    if len(ops) > 1:
        return "KV/Txn", {"success": [request_op(op) for op in ops]}
    [(kind, message)] = request_op(ops[0]).items()
    return ("KV/Put" if kind == "request_put" else "KV/DeleteRange"), message


def changed_revision(name: str, reply: Message) -> int:
    """The revision that a write led to, 0 if it changed nothing."""
    changed = name == "KV/Put" or bool(reply.get("deleted"))
    for one in reply.get("responses", ()):
        deleted = one.get("response_delete_range", {}).get("deleted")
        changed = changed or "response_put" in one or bool(deleted)
    return revision_of(reply) if changed else 0
