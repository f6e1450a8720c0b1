"""The target `restore`: what the buckets of a sound file hold; its mutator works on pairs.

An input is a sequence of pairs: the bucket's number, the key's size in a byte, the value's size in
two, key, value. The file that they become is sound: the bolt reader is another target.
"""

from __future__ import annotations

import json
import random
import struct

from quorate.core._bolt import Bolt
from quorate.core._boltwriter import BoltWriter
from quorate.core._mapping import Mapping
from quorate.core._mvcc import Store
from quorate.core._storeview import StoreView
from quorate.core.apply import State
from quorate.core.backend import Backend, Start, read_members, refuse_unserved, restore
from quorate.core.errors import Fatal
from quorate.core.logs import Logger
from tests.fuzz.mutations import bytes_of, havoc, number
from tests.messages import decode, encode
from tests.sim.disk import SimDisk
from tests.walmodel import varint

BUCKETS = (b"key", b"lease", b"meta", b"alarm", b"members", b"members_removed", b"cluster", b"auth")
KEY, LEASE, META, ALARM, MEMBERS, REMOVED, CLUSTER, AUTH = range(len(BUCKETS))
Pairs = list[tuple[int, bytes, bytes]]
PAIRS_MAX = 300
PATH = "/d/db"
MARKS = (
    b"consistent_index",
    b"term",
    b"storageVersion",
    b"finishedCompactRev",
    b"scheduledCompactRev",
)


def seeds() -> dict[str, bytes]:
    """Keys, leases, tombstones; a compaction that goes on; a bump; members; next to nothing."""
    keys = [
        (KEY, revision(2), key_value(b"a", 2)),
        (KEY, revision(3), key_value(b"b", 3, lease=5)),
        (KEY, revision(3, 1), key_value(b"c", 3)),
        (KEY, revision(4), key_value(b"a", 4, create_revision=2, version=2)),
        (KEY, revision(5, tombstone=True), encode("KeyValue", {"key": b"c"})),
        (KEY, revision(6, tombstone=True), encode("KeyValue", {"key": b"gone"})),
    ]
    leases = [(LEASE, struct.pack(">q", 5), lease(5, 100, 60))]
    index = [(META, b"consistent_index", (9).to_bytes(8, "big"))]
    compacted = [
        (META, b"finishedCompactRev", revision(2)),
        (META, b"scheduledCompactRev", revision(4)),
        (ALARM, b"\x08\x07\x10\x01", b""),
    ]
    member = {"id": 7, "peerURLs": ["http://127.0.0.1:1"], "name": "one"}
    cluster = [
        (META, b"storageVersion", b"3.6.0"),
        (MEMBERS, b"7", json.dumps(member).encode()),
        (REMOVED, b"ff", b"removed"),
        (CLUSTER, b"clusterVersion", b"3.6.0"),
        (AUTH, b"authEnabled", b"\0"),
    ]
    return {
        "keys": join(keys + leases + index),
        "compacted": join(keys + index + compacted),
        # What `etcdutl snapshot restore --bump-revision` leaves; its NULL key was once copied.
        "bump": join([*keys, (KEY, revision(99), b""), *index]),
        "members": join(index + cluster),
        "little": join(index),
    }


def revision(main: int, sub: int = 0, *, tombstone: bool = False) -> bytes:
    return struct.pack(">Q", main) + b"_" + struct.pack(">Q", sub) + b"t" * tombstone


def key_value(key: bytes, main: int, **fields: int) -> bytes:
    numbers = {"create_revision": main, "mod_revision": main, "version": 1} | fields
    return encode("KeyValue", {"key": key, "value": b"v", **numbers})


def lease(id: int, ttl: int, remaining: int) -> bytes:
    return b"\x08" + varint(id) + b"\x10" + varint(ttl) + b"\x18" + varint(remaining)


def join(pairs: Pairs) -> bytes:
    """The input of these pairs; what is too large for its head is cut."""
    out = b""
    for bucket, key, value in pairs:
        key, value = key[:255], value[:65535]
        out += bytes((bucket, len(key))) + len(value).to_bytes(2, "big") + key + value
    return out


def split(data: bytes) -> Pairs:
    """The pairs of any bytes."""
    pairs: Pairs = []
    at = 0
    while at + 4 <= len(data) and len(pairs) < PAIRS_MAX:
        key_size, value_size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        key = data[at + 4 : at + 4 + key_size]
        value = data[at + 4 + key_size : at + 4 + key_size + value_size]
        # No file has an empty key.
        if key:
            pairs.append((data[at] % len(BUCKETS), key, value))
        at += 4 + key_size + value_size
    return pairs


def file_of(pairs: Pairs) -> bytes:
    """A sound file with these pairs; of those with one key the last one."""
    disk = SimDisk(random.Random(1))
    disk.make_directory("/d")
    buckets: dict[int, dict[bytes, bytes]] = {}
    for bucket, key, value in pairs:
        buckets.setdefault(bucket, {})[key] = value
    writer = BoltWriter(disk, PATH, page_size=4096)
    for bucket in sorted(buckets, key=lambda each: BUCKETS[each]):
        writer.begin(BUCKETS[bucket])
        for key, value in sorted(buckets[bucket].items()):
            writer.put(key, value)
        writer.end()
    writer.finish()
    writer.close()
    return bytes(disk.file(PATH).data)


def backend_of(pairs: Pairs) -> Backend:
    """The file with these pairs, mapped as a disk without mappings does it."""
    disk = SimDisk(random.Random(0))
    handle = disk.open(PATH, create=True)
    disk.write(handle, file_of(pairs), 0)
    mapping = Mapping(disk, handle, PATH)
    return Backend(PATH, Bolt.mapped(mapping, mapping.reach), mapping)


def run(data: bytes) -> bool:
    """Restore a store: its invariants hold and it can be used, or the file is refused."""
    pairs = split(data)
    backend = backend_of(pairs)
    state = State([], Logger(()))
    try:
        refuse_unserved(backend)
        cluster = read_members(backend)
        restore(backend, Start(backend.index, 1, cluster), state, Logger(()))
    except Fatal:
        return False
    store = state.store
    assert -1 <= store.compact_revision <= store.revision
    chains = chains_of(pairs)
    if chains is None:
        return True
    view = StoreView(store)
    # The pair without a key is what a restored snapshot that was bumped has, with no numbers.
    chains.pop(b"", None)
    for key, chain in chains.items():
        found = view.get(key, 0)
        last = chain[-1][1]
        assert (found and found[1:5]) == (last and last[:4]), key
    if all(is_counted(chain, store) for chain in chains.values()):
        store.check()
    return True


# The pairs of a key: revision; value, creation, revision, version, or None for a tombstone.
Version = tuple[bytes, int, int, int]
Chain = list[tuple[int, Version | None]]


def chains_of(pairs: Pairs) -> dict[bytes, Chain] | None:
    """The versions of each key, plainly; None if a value is not as everybody would read it."""
    chains: dict[bytes, Chain] = {}
    for name, value in sorted(
        {key: value for bucket, key, value in pairs if bucket == KEY}.items()
    ):
        try:
            said = decode("KeyValue", value)
        except (ValueError, IndexError):
            return None
        numbers = [said.get(at, 0) for at in ("create_revision", "mod_revision", "version")]
        version = (said.get("value", b""), numbers[0], numbers[1], numbers[2])
        chain = chains.setdefault(said.get("key", b""), [])
        chain.append((int.from_bytes(name[:8], "big"), None if name[17:] else version))
    return chains


def is_counted(chain: Chain, store: Store) -> bool:
    """Whether its numbers follow one another, and a finished compaction left nothing behind.

    A store's own do. What a file says of it is believed, as etcd does.
    """
    before: Version | None = None
    for at, (revision, each) in enumerate(chain):
        next_revision = chain[at + 1][0] if at + 1 < len(chain) else 1 << 63
        finished = store.finished_revision
        if revision < finished and (each is None or next_revision <= finished):
            return False
        if each is None:
            if at and before is None:
                return False
        elif before is not None:
            if each[3] <= max(before[3], 1) or each[1] != before[1]:
                return False
        elif each[3] == 1:
            if each[1] != each[2]:
                return False
        elif at or each[1] > store.compact_revision:
            return False
        before = each
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change pairs, in their own words or byte by byte."""
    pairs = split(data)
    if not pairs or rng.random() < 0.05:
        return havoc(data, rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        change(pairs, rng)
    return join(pairs)


def change(pairs: Pairs, rng: random.Random) -> None:
    at = rng.randrange(len(pairs) + 1)
    choice = rng.randrange(6)
    if choice == 0 or at == len(pairs):
        pairs.insert(at, random_pair(rng))
        return
    bucket, key, value = pairs[at]
    if choice == 1:
        del pairs[at]
    elif choice == 2:
        pairs[at] = bucket, havoc(key, rng), value
    elif choice == 3:
        pairs[at] = bucket, key, havoc(value, rng)
    elif choice == 4:
        # The same revision once more: a put if it was a tombstone, or the other way round.
        pairs.insert(at, (bucket, key[:17] if key[17:] else key + b"t", value))
    else:
        pairs[at] = rng.randrange(len(BUCKETS)) if rng.random() < 0.1 else bucket, key, value


def random_pair(rng: random.Random) -> tuple[int, bytes, bytes]:
    """A pair that is likely to make sense."""

    def small() -> int:
        return rng.randrange(1, 9) if rng.random() < 0.9 else number(rng)

    bucket = rng.choice((KEY, KEY, KEY, LEASE, META, ALARM, MEMBERS, REMOVED))
    if bucket == KEY:
        main, sub = small(), rng.choice((0, 0, 1, number(rng)))
        fields = {
            "create_revision": small() % (1 << 63),
            "version": small() % (1 << 63),
            "lease": rng.choice((0, 0, 5, rng.getrandbits(62))),
        }
        key = rng.choice((b"a", b"b", b"c", b"gone", bytes_of(rng)))
        value = key_value(key, main % (1 << 63), **fields)
        return bucket, revision(main, sub, tombstone=rng.random() < 0.3), value
    if bucket == LEASE:
        id = small()
        return bucket, struct.pack(">Q", id), lease(id, number(rng, 60), number(rng, 30))
    if bucket == META:
        value = rng.choice((revision(small()), small().to_bytes(8, "big"), b"3.6.0", b"3.8.0"))
        return bucket, rng.choice(MARKS), value
    if bucket == ALARM:
        return bucket, b"\x08" + varint(small()) + b"\x10" + varint(rng.randrange(4)), b""
    return bucket, f"{small():x}".encode(), json.dumps({"id": small()}).encode()
