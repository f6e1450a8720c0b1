"""A backend file's keys and leases become a store's.

Rules:
1. Leases come first, since keys hang on them; a key whose lease is not there hangs on none, as in
   etcd. Keys come in order of revision, each with the numbers that the file gives it: a file whose
   compaction was interrupted lacks versions that others were counted from.
2. What contradicts itself is refused with its key: a name or value that is malformed, a revision
   that the value denies, a key of nothing. A value of no bytes is what `snapshot restore
   --bump-revision` leaves at the revision that it jumps to: a version without a key, which no
   request can name, but which the hashes of etcd see.
3. A tombstone of a key that is not there deletes nothing. What it deleted was compacted at its very
   revision; watchers from there on still have to hear of it, so it is kept.
4. A compaction that was scheduled and not finished goes on by itself, as in etcd.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from quorate.core._bytes cimport crc32c, load_be64
from quorate.core._errors cimport ERROR_NONE
from quorate.core._keytree cimport Item, Path
from quorate.core._leaserecord cimport read_lease
from quorate.core._lessor cimport SavedLease
from quorate.core._protobuf cimport (
    WIRE_BYTES, WIRE_VARINT, Reader, read_bytes, read_tag, read_varint, skip_field,
)
from quorate.core._version cimport (
    Version, version_is_tombstone, version_key, version_unseal,
)
from quorate.core._versionrecord cimport (
    RECORD_KEY,
    RECORD_KEY_MAX,
    RECORD_SUB_AT,
    RECORD_TOMBSTONE,
    RECORD_UNDERSCORE,
    RECORD_UNDERSCORE_AT,
    record_size,
)

from quorate.core.errors import Fatal


class BackendError(Fatal):
    """The backend file holds what etcd never writes: the key, and what is wrong with it."""

    def __init__(self, path, key, reason):
        super().__init__(f"{path}: key {key.hex()}: {reason}; the file is refused")


def checksum(const uint8_t[::1] data not None):
    """The CRC-32C of some bytes, as it stands in etcd's snapshot files."""
    return crc32c(0, &data[0], data.shape[0]) if data.shape[0] else 0


cdef class Restore:
    """Fills an empty store."""

    def __init__(self, Bolt bolt not None, Store store not None, *, bint in_place=False):
        """With `in_place`, the file lies in a mapping that the store knows."""
        assert store.revision == 1 and store.versions == 0, store.revision
        names = bolt.buckets()
        self.bolt = bolt
        self.store = store
        self.in_place = in_place
        self.leases = Cursor(bolt, b"lease") if b"lease" in names else None
        self.keys = Cursor(bolt, b"key") if b"key" in names else None
        self.at = self.leases or self.keys

    def step(self, uint64_t pairs):
        """Take so many pairs more; False when there are none. Raises BackendError, BoltError."""
        cdef bint more
        if self.at is None:
            return False
        self.store.values.in_place = self.in_place
        with nogil:
            more = self._take(pairs)
        self.store.values.in_place = False
        return more

    def finish(self, int64_t scheduled, int64_t finished):
        """Everything was read: what the file says of compactions, 0 if nothing."""
        cdef Store store = self.store
        store.revision = max(store.revision, scheduled, finished)
        store.saved_revision = store.revision
        store.sub = 0
        if finished > 0:
            store.compact_revision = store.finished_revision = finished
        if scheduled > finished:
            store.compact(scheduled)

    cdef bint _take(self, uint64_t pairs) except -1 nogil:
        cdef uint64_t _i
        for _i in range(pairs):
            if not self._more():
                return False
            self.pairs += 1
            if self.at is self.keys:
                self._take_pair()
            else:
                self._take_lease()
        return True

    cdef bint _more(self) except -1 nogil:
        """Go to the next pair; False at the end of the last bucket."""
        cdef bint found
        while True:
            found = self.at.to_next() if self.begun else self.at.to_first()
            self.begun = True
            if found or self.at is self.keys or self.keys is None:
                return found
            with gil:
                self.at = self.keys
            self.begun = False

    cdef int _take_lease(self) except -1 nogil:
        """A leasepb.Lease under its id."""
        cdef SavedLease saved
        cdef const char *reason = read_lease(self.at.key, self.at.value, &saved)
        if reason != NULL:
            return self._refuse(reason)
        if self.store.lessor.grant(saved.id, saved.ttl) != ERROR_NONE:
            return self._refuse(b"a lease that can't be")
        if saved.remaining > 0:
            self.store.lessor.checkpoint(self.store.lessor.find(saved.id), saved.remaining)
        return 0

    cdef int _take_pair(self) except -1 nogil:
        """A mvccpb.KeyValue under its revision."""
        cdef Pair pair
        memset(&pair, 0, sizeof(Pair))
        if not read_record_key(&self.at.key, &pair):
            return self._refuse(b"this is no revision")
        pair.is_bump = self.at.value.size == 0 and not pair.tombstone
        if not read_pair(&self.at.value, &pair) or (pair.key.size == 0 and not pair.is_bump):
            return self._refuse(b"a malformed key-value")
        if pair.revision < self.store.revision or (
                pair.revision == self.store.revision and pair.sub < self.store.sub):
            return self._refuse(b"a revision comes twice")
        self.store.revision = pair.revision - 1
        self.store.sub = pair.sub
        self.store.writing = True
        if pair.tombstone:
            self._delete(&pair)
        else:
            self._put(&pair)
        self.store.writing = False
        self.store.revision = pair.revision
        return 0

    cdef int _put(self, const Pair *pair) except -1 nogil:
        cdef Version *version
        if not pair.is_bump:
            if pair.mod_revision != pair.revision:
                return self._refuse(b"a key-value under another's revision")
            if not 0 < pair.create_revision <= pair.revision or pair.version <= 0:
                return self._refuse(b"a key-value that was never created")
        version = self.store.put(
            pair.key.data, pair.key.size, pair.value.data, pair.value.size, pair.lease)
        if not pair.is_bump:
            # What it takes in a file depends on these numbers: the books are to have the file's.
            self.store.bucket_bytes -= record_size(version)
            version.create_revision = pair.create_revision
            version.version = pair.version
            self.store.bucket_bytes += record_size(version)
            version_unseal(version)
        return 0

    cdef int _delete(self, const Pair *pair) except -1 nogil:
        cdef Path path
        cdef Version *newest = NULL
        cdef Version *tombstone
        if self.store.tree.locate(&path, pair.key.data, pair.key.size):
            newest = <Version *>path.leaf.keys.items[path.index]
            if not version_is_tombstone(newest):
                return self.store.delete_version(newest)
        # Rule 3.
        self.orphans += 1
        tombstone = self.store._new_version(pair.key.size, sizeof(Version) + pair.key.size)
        memcpy(<uint8_t *>version_key(tombstone), pair.key.data, pair.key.size)
        if newest != NULL:
            self.store.tree.replace(&path, <Item *>tombstone, False)
        elif not self.store.tree.insert(&path, <Item *>tombstone, False):
            with gil:
                raise MemoryError("no memory for a node of the tree")
        self.store._add(tombstone, newest)
        return 0

    cdef int _refuse(self, const char *reason) except -1 nogil:
        with gil:
            raise BackendError(
                self.bolt.path, self.at.key.data[:self.at.key.size], reason.decode())


cdef bint read_record_key(const Span *key, Pair *pair) noexcept nogil:
    """Take a key of the bucket `key` apart; False when it is no revision."""
    cdef uint64_t revision, sub
    if key.size != RECORD_KEY and (
            key.size != RECORD_KEY_MAX or key.data[RECORD_KEY] != RECORD_TOMBSTONE):
        return False
    revision = load_be64(key.data)
    sub = load_be64(key.data + RECORD_SUB_AT)
    if (key.data[RECORD_UNDERSCORE_AT] != RECORD_UNDERSCORE or revision == 0 or revision >> 63
            or sub >> 32):
        return False
    pair.revision = <int64_t>revision
    pair.sub = <uint32_t>sub
    pair.tombstone = key.size > RECORD_KEY
    return True


cdef bint read_pair(const Span *value, Pair *pair) noexcept nogil:
    """Take a mvccpb.KeyValue apart; False when malformed."""
    cdef Reader reader = Reader(value.data, value.data + value.size)
    cdef uint64_t number
    cdef uint32_t field
    cdef int wire
    # What is left out is empty, at a place that can be read.
    pair.key = pair.value = Span(value.data, 0)
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return False
        if wire == WIRE_BYTES and (field == 1 or field == 5):
            if not read_bytes(&reader, &pair.key if field == 1 else &pair.value):
                return False
        elif wire == WIRE_VARINT and 2 <= field <= 6:
            if not read_varint(&reader, &number):
                return False
            if field == 2:
                pair.create_revision = <int64_t>number
            elif field == 3:
                pair.mod_revision = <int64_t>number
            elif field == 4:
                pair.version = <int64_t>number
            else:
                pair.lease = <int64_t>number
        elif not skip_field(&reader, field, wire):
            return False
    return True
