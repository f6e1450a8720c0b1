"""The store for Python callers: tests, and what is too rare to be written in Cython.

Rules:
1. Keys and values are bytes, a range is (key, range_end) as in etcd's requests, a version is the
   tuple (key, value, create_revision, mod_revision, version, lease).
2. What the store leaves to its caller is unchecked, but for bounds of `compact` and `hash_kv`.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer, buffer_free
from quorate.core._errors cimport ERROR_NONE
from quorate.core._history cimport HistoryCursor
from quorate.core._keytree cimport Item, Path
from quorate.core._lessor cimport SavedLease
from quorate.core._mvcc cimport (
    STEP_BUDGET,
    Store,
    Version,
    version_is_tombstone,
    version_key,
    version_key_size,
    version_lease,
    version_previous,
    version_value,
    version_value_size,
)
from quorate.core._version cimport version_hold, version_unseal

from quorate.core.errors import BY_ID

cdef inline const uint8_t *data_of(bytes value) noexcept:
    return <const uint8_t *><const char *>value


cdef tuple unpack(const Version *version):
    """A version as a tuple; None for none."""
    if version == NULL:
        return None
    return (
        version_key(version)[:version_key_size(version)],
        version_value(version)[:version_value_size(version)],
        version.create_revision,
        version.mod_revision,
        version.version,
        version_lease(version),
    )


cdef class StoreView:
    """Calls a store by Python's hand."""

    def __init__(self, Store store=None):
        self.store = Store() if store is None else store

    def begin(self):
        """Open the transaction."""
        self.store.begin()

    def end(self):
        """Close it; answers the revision."""
        self.store.end()
        return self.store.revision

    def put(self, bytes key, bytes value, int64_t lease=0):
        """Write in the open transaction; answers the version and the one that it replaced."""
        cdef Version *version = self.store.put(
            data_of(key), len(key), data_of(value), len(value), lease
        )
        cdef Version *previous = version_previous(version)
        if previous != NULL and version_is_tombstone(previous):
            previous = NULL
        return unpack(version), unpack(previous)

    def delete_range(self, bytes key, bytes range_end=b""):
        """Delete in the open transaction; answers what was deleted."""
        cdef Buffer deleted = Buffer(NULL, 0, 0)
        cdef int64_t count
        try:
            count = self.store.delete_range(
                data_of(key), len(key), data_of(range_end), len(range_end), &deleted
            )
            return [unpack((<Version **>deleted.data)[i]) for i in range(count)]
        finally:
            buffer_free(&deleted)

    def write_revision(self):
        """What `end` would answer now."""
        return self.store.write_revision()

    def get(self, bytes key, int64_t revision=0):
        """The key's version at the revision, or None."""
        return unpack(self.store.get(data_of(key), len(key), revision))

    def count(self, bytes key, bytes range_end=b"", int64_t revision=0):
        """Live keys of the range."""
        return self.store.count(
            data_of(key), len(key), data_of(range_end), len(range_end), revision
        )

    def range(self, bytes key, bytes range_end=b"", int64_t revision=0):
        """The versions of the live keys of the range."""
        return list(Walk(self, key, range_end, revision))

    def history(self, int64_t revision=0, uint32_t sub=0):
        """(mod_revision, sub, key, version) of what is stored from (revision, sub) on."""
        cdef HistoryCursor at
        cdef Version *version
        found = []
        self.store.history_seek(&at, revision, sub)
        version = self.store.history_next(&at)
        while version != NULL:
            key = version_key(version)[:version_key_size(version)]
            found.append((version.mod_revision, version.sub, key, version.version))
            version = self.store.history_next(&at)
        return found

    def pin(self, int64_t revision):
        """Keep what a read at the revision needs."""
        self.store.pin(revision)

    def unpin(self, int64_t revision):
        """Take one pin back."""
        self.store.unpin(revision)

    def compact(self, int64_t revision):
        """Compact, the removal to come by steps; raises CompactedError, FutureRevisionError."""
        error = self.store.compact(revision)
        if error != ERROR_NONE:
            raise BY_ID[error]

    def compact_step(self, uint64_t budget=STEP_BUDGET):
        """Remove some; True when more can be done now."""
        return bool(self.store.compact_step(budget))

    def hash_kv(self, int64_t revision=0):
        """(hash, compact_revision, hash_revision); raises CompactedError, FutureRevisionError."""
        run = Hash(self, revision)
        while run.step():
            pass
        return run.close()

    def damage(self, bytes key, str where, uint32_t bit=0, int64_t revision=0):
        """Flip a bit of a version as a fault of the memory would; for tests.

        `where` is `head`, `key`, `value`, `lease`, `previous`, `newer`, `live` or `item`, or, for
        what is no damage, `unsealed`.
        """
        cdef Path path
        cdef bint found = self.store.tree.locate(&path, data_of(key), len(key))
        cdef Version *version = <Version *>path.leaf.keys.items[path.index] if found else NULL
        cdef uint8_t *at
        while version != NULL and revision and version.mod_revision != revision:
            version = version.previous
        assert version != NULL, (key, revision)
        if where == "head":
            at = <uint8_t *>version
        elif where == "key":
            at = <uint8_t *>version_key(version)
        elif where == "value":
            at = <uint8_t *>version_value(version)
        elif where == "lease":
            at = <uint8_t *>&version_hold(version).lease
        elif where == "previous":
            # An address of a version all the same, so that the process lives on.
            version.previous = version
            return
        elif where == "newer":
            version.newer = version
            return
        elif where == "unsealed":
            version_unseal(version)
            return
        elif where == "live":
            path.leaf.live ^= <uint64_t>1 << path.index
            return
        else:
            assert where == "item", where
            path.leaf.keys.items[path.index] = <Item *>version.previous
            return
        at[bit // 8] ^= <uint8_t>(1 << bit % 8)

    def leases(self):
        """(id, TTL, remaining) of each, as the log has them, in order of ids."""
        cdef Buffer rows = Buffer(NULL, 0, 0)
        cdef const SavedLease *lease
        cdef size_t at
        found = []
        try:
            self.store.lessor.append_saved(&rows)
            for at in range(0, rows.size, sizeof(SavedLease)):
                lease = <const SavedLease *>(rows.data + at)
                found.append((lease.id, lease.ttl, lease.remaining))
        finally:
            buffer_free(&rows)
        return sorted(found)

    def figures(self):
        """Figures by name."""
        return {
            "live_keys": self.store.live_keys(),
            "keys": self.store.tree.count,
            "versions": self.store.versions,
            "key_bytes": self.store.key_bytes,
            "value_bytes": self.store.value_bytes,
            "arena_bytes": self.store.arena.span_bytes,
            "size": self.store.db_size(),
            "size_in_use": self.store.db_size_in_use(),
        }


cdef class Walk:
    """An iterator over the live keys of a range at a revision, which the caller keeps pinned."""

    def __init__(self, StoreView view not None, bytes key, bytes range_end, int64_t revision):
        self.store = view.store
        self.key = key
        self.range_end = range_end
        self.store.seek(
            &self.cursor, data_of(key), len(key), data_of(range_end), len(range_end), revision
        )

    def __iter__(self):
        return self

    def __next__(self):
        cdef Version *version = self.store.next(&self.cursor)
        if version == NULL:
            raise StopIteration
        return unpack(version)


cdef class Hash:
    """A HashKV by steps; `close` it, also when it is given up."""

    def __init__(self, StoreView view not None, int64_t revision=0):
        self.store = view.store
        error = self.store.hash_begin(&self.state, revision)
        if error != ERROR_NONE:
            raise BY_ID[error]

    def step(self, uint64_t budget=STEP_BUDGET):
        """Go on; False when it is done."""
        return bool(self.store.hash_step(&self.state, budget))

    def close(self):
        """(hash, compact_revision, hash_revision)."""
        self.store.hash_end(&self.state)
        return self.state.crc, self.state.compact_revision, self.state.revision
