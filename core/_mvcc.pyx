"""The multi-version store: keys, versions, revisions, compaction and hashes; no I/O, no clock.

Rules:
1. Revisions are etcd's: an empty store is at 1, and a transaction that wrote anything is one
   revision more. Its writes are numbered 0, 1, 2 ... (`sub`). A read at a revision sees the last
   write of that revision to each key.
2. `version` counts the writes to a key since it was created, `create_revision` says when; both
   start anew after the key was deleted. A deletion is a version, too: a tombstone, with `version`
   0 and no value.
3. Each key stands once in the tree, with its newest version; older ones hang behind it. A key is
   live in the tree unless its newest version is a tombstone. It leaves the tree when compaction
   takes out that tombstone.
4. All versions stand in the history in the order in which they were written. Every version is one
   block of the arena, with its key inside, and so is a small value; a larger one has a block of its
   own until a file has it that is mapped: then it is read there, and the version does not move. No
   Python object exists per key or version.
5. A compaction to revision C keeps of every key the newest version not after C, unless that is a
   tombstone before C, and everything of C and after it: who watches from C on gets all that C did.
   What readers may ask changes at once; the rest is a sweep over the history, in steps.
6. A pinned revision delays removal: what a read at it needs stays. Nothing else does: a Version
   is valid until the next `compact_step`, or as long as a pinned revision sees it.
7. Once a file is written that newer versions are appended to, nothing is removed before it is
   there (`saved_revision`): etcd counts versions from what it finds, and must find no gap.
8. A hash of a revision goes over the history in steps, too. Compactions that came after it began
   wait for it.
9. One thread at a time. Only `put`, `delete_range` and `pin` take memory that may be missing;
   steps then do nothing.

Where etcd's own compaction would lose data, when a key was deleted and put again in the very
revision that is compacted to, this store keeps the key.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from quorate.core._arena cimport Arena
from quorate.core._bytes cimport (
    Buffer,
    buffer_append,
    buffer_free,
    buffer_reserve,
    crc32c,
)
from quorate.core._errors cimport ERROR_COMPACTED, ERROR_FUTURE_REVISION, ERROR_NONE
from quorate.core._history cimport History, HistoryCursor
from quorate.core._keytree cimport Item, KeyTree, Path, Probe, compare_keys, keys_search
from quorate.core._lessor cimport Lessor
from quorate.core._values cimport Values
from quorate.core._version cimport (
    VALUE_OUTSIDE_MIN,
    VERSION_LEASED,
    VERSION_OUTSIDE,
    Hold,
    Version,
    record_bytes,
    ring_remove,
    version_hold,
    version_is_sound,
    version_is_tombstone,
    version_key,
    version_lease,
    version_seal,
    version_size,
    version_value,
    version_value_size,
)
from quorate.core._versionrecord cimport FILE_PAGE, crc_of_record, record_size

cdef extern from * nogil:
    int __builtin_ctzll(unsigned long long)
    void __builtin_prefetch(const void *address)

cdef enum:
    # Pages of an empty bbolt file.
    FILE_PAGES_MIN = 4
    # A lease in its bucket, at the most: etcd's estimate.
    LEASE_BYTES = 64
    # While walking a leaf, this far ahead versions are fetched into the cache.
    PREFETCH_AHEAD = 6
    # Of each value of some keys that are read together, so many lines of the processor's cache are
    # fetched before the first value is copied; the processor goes on by itself.
    VALUE_LINES_AHEAD = 8
    LINE_BYTES = 64
    # Hashing so many bytes counts as much as one version.
    WORK_BYTES = 1024


cdef inline bint is_newest_at(const Version *version, int64_t revision) noexcept nogil:
    return version.newer == NULL or version.newer.mod_revision > revision


cdef void hash_record(HashState *state, const Version *version) noexcept nogil:
    """Take a version, not after the hashed revision, in or leave it out, as etcd does."""
    cdef bint tombstone = version_is_tombstone(version)
    cdef bint kept = is_newest_at(version, state.revision)
    if tombstone:
        kept = kept and state.of_sweep and version.mod_revision == state.revision
    state.seen_kept = state.seen_kept or kept
    if version.mod_revision > state.compact_revision:
        state.crc = crc_of_record(state.crc, version)
        if not state.seen_kept:
            state.crc_of_all = crc_of_record(state.crc_of_all, version)
    elif not tombstone:
        if kept:
            state.crc = crc_of_record(state.crc, version)
        elif not state.seen_kept and is_newest_at(version, state.compact_revision):
            state.crc_of_all = crc_of_record(state.crc_of_all, version)


cdef void hash_start(HashState *state, int64_t revision, int64_t compact_revision) noexcept nogil:
    memset(state, 0, sizeof(HashState))
    state.revision = revision
    state.compact_revision = compact_revision
    state.crc = state.crc_of_all = crc32c(0, <const uint8_t *>b"key", 3)


cdef class Store:
    """All keys of a member and their versions."""

    def __cinit__(self):
        self.arena = Arena()
        self.tree = KeyTree(self.arena, sizeof(Version))
        self.history = History(self.arena)
        self.lessor = Lessor()
        self.values = Values(self.arena)
        self.saved_revision = NOTHING_SAVED
        self.revision = 1
        self.compact_revision = self.finished_revision = self.queued_revision = -1

    def __dealloc__(self):
        buffer_free(&self.pins)

    # -- the write transaction

    cdef void begin(self) noexcept nogil:
        """Open the transaction; there is none."""
        self.writing = True
        self.sub = 0

    cdef void end(self) noexcept nogil:
        """Close it: what it wrote is a revision."""
        self.revision = self.write_revision()
        self.writing = False
        self.sub = 0

    cdef int64_t write_revision(self) noexcept nogil:
        """What `end` would make the revision now."""
        return self.revision + (1 if self.sub else 0)

    cdef Version *put(
        self, const uint8_t *key, size_t key_size, const uint8_t *value, size_t value_size,
        int64_t lease,
    ) except NULL nogil:
        """Write a version; what it replaced hangs behind it."""
        cdef Path path
        cdef bint found
        cdef Version *previous = NULL
        cdef uint32_t flags = VERSION_LEASED if lease else 0
        cdef Version *version
        if value_size >= VALUE_OUTSIDE_MIN:
            flags |= VERSION_OUTSIDE
        version = self._new_version(key_size, record_bytes(key_size, value_size, flags))
        version.value_size = <uint32_t>value_size
        version.flags = flags
        memcpy(<uint8_t *>version_key(version), key, key_size)
        if flags & VERSION_OUTSIDE:
            self.values.put(version, value)
        elif value_size:
            memcpy(<uint8_t *>version_value(version), value, value_size)
        if lease:
            memset(version_hold(version), 0, sizeof(Hold))
            version_hold(version).lease = lease
        found = self.tree.locate(&path, key, key_size)
        if found:
            previous = <Version *>path.leaf.keys.items[path.index]
            self.tree.replace(&path, <Item *>version, True)
        elif not self.tree.insert(&path, <Item *>version, True):
            self._release(version)
            with gil:
                raise MemoryError("no memory for a node of the tree")
        if previous == NULL or version_is_tombstone(previous):
            version.create_revision = self.revision + 1
            version.version = 1
        else:
            version.create_revision = previous.create_revision
            version.version = previous.version + 1
        self._add(version, previous)
        if lease:
            self.lessor.attach(lease, version)
        return version

    cdef int delete_version(self, Version *live) except -1 nogil:
        """Write a tombstone on top of a key's newest version."""
        cdef Path path
        cdef Version *tombstone = self._delete(live)
        self.tree.locate(&path, version_key(live), live.key_size)
        self.tree.replace(&path, <Item *>tombstone, False)
        return 0

    cdef int64_t delete_range(
        self, const uint8_t *key, size_t key_size, const uint8_t *end, size_t end_size,
        Buffer *deleted,
    ) except -1 nogil:
        """Write a tombstone for each live key of the range."""
        cdef Path path
        cdef Cursor bounds
        cdef int64_t count = 0
        cdef int64_t in_leaf
        cdef Version *tombstone
        self.seek(&bounds, key, key_size, end, end_size, 0)
        self.tree.locate(&path, key, key_size)
        while bounds.leaf != NULL:
            in_leaf = 0
            while path.index < bounds.stop:
                if path.leaf.live >> path.index & 1:
                    tombstone = self._delete(<Version *>path.leaf.keys.items[path.index])
                    path.leaf.keys.items[path.index] = <Item *>tombstone
                    path.leaf.live &= ~(<uint64_t>1 << path.index)
                    in_leaf += 1
                    if deleted != NULL:
                        buffer_append(deleted, <uint8_t *>&tombstone.previous, sizeof(Version *))
                path.index += 1
            count += in_leaf
            self.tree.add_live(&path, -in_leaf)
            if path.index < path.leaf.keys.count or not end_size:
                break
            if not self.tree.next_leaf(&path):
                break
            bounds.leaf = path.leaf
            bounds.stop = self._stop(&bounds)
        return count

    cdef Version *_delete(self, Version *live) except NULL nogil:
        """A tombstone on top of the key's newest version; the caller puts it into the tree."""
        cdef Version *tombstone = self._new_version(
            live.key_size, sizeof(Version) + live.key_size
        )
        memcpy(<uint8_t *>version_key(tombstone), version_key(live), live.key_size)
        self._add(tombstone, live)
        return tombstone

    cdef Version *_new_version(self, size_t key_size, size_t size) except NULL nogil:
        """Memory for a version, and room for it in the history."""
        cdef Version *version
        if self.history.reserve():
            version = <Version *>self.arena.allocate(size)
            if version != NULL:
                memset(version, 0, sizeof(Version))
                version.key_size = <uint32_t>key_size
                return version
        with gil:
            raise MemoryError(f"no memory for a version of {size} bytes")

    cdef void _add(self, Version *version, Version *previous) noexcept nogil:
        """Give a version its place in the order and in the books."""
        version.mod_revision = self.revision + 1
        version.sub = self.sub
        self.sub += 1
        version_seal(version)
        version.previous = previous
        if previous != NULL:
            previous.newer = version
            # Only a key's newest version says on which lease it hangs.
            ring_remove(previous)
        self.history.append(version)
        self.versions += 1
        self.key_bytes += version.key_size
        self.value_bytes += version.value_size
        self.bucket_bytes += record_size(version)

    cdef void _drop(self, Version *version) noexcept nogil:
        """Take a version out of its chain, or its key out of the tree, and free it."""
        cdef Path path
        if version.newer != NULL:
            version.newer.previous = version.previous
        else:
            self.tree.locate(&path, version_key(version), version.key_size)
            self.tree.remove(&path)
        if version.previous != NULL:
            version.previous.newer = version.newer
        self.versions -= 1
        self.key_bytes -= version.key_size
        self.value_bytes -= version.value_size
        self.bucket_bytes -= record_size(version)
        self._release(version)

    cdef void map_value(self, Version *version, const uint8_t *place) noexcept nogil:
        """Have a value that is VERSION_OUTSIDE read from a mapped file."""
        cdef bint sound = version_is_sound(version)
        self.values.move(version, place)
        if sound:
            version_seal(version)

    cdef void _release(self, Version *version) noexcept nogil:
        """Give back what a version takes."""
        if version.flags & VERSION_OUTSIDE:
            self.values.leave(version)
        self.arena.release(version, version_size(version))

    # -- reads

    cdef bint _reads_newest(self, int64_t revision) noexcept nogil:
        """Whether a read at `revision` sees the newest version of every key."""
        return revision == 0 or revision >= self.write_revision()

    cdef Version *get(self, const uint8_t *key, size_t key_size, int64_t revision) noexcept nogil:
        """The key's version at `revision`, NULL when it did not exist."""
        cdef Version *version = <Version *>self.tree.get(key, key_size)
        if revision:
            while version != NULL and version.mod_revision > revision:
                version = version.previous
        if version == NULL or version_is_tombstone(version):
            return NULL
        return version

    cdef void get_each(self, Probe *probes, int count) noexcept nogil:
        """The newest versions of some keys at a time, as items, and NULL of what does not exist."""
        cdef const uint8_t *value
        cdef Version *version
        cdef size_t size
        cdef int i
        cdef int line
        self.tree.get_each(probes, count)
        for i in range(count):
            version = <Version *>probes[i].item
            if version == NULL:
                continue
            if version_is_tombstone(version):
                probes[i].item = NULL
                continue
            value = version_value(version)
            size = version_value_size(version)
            for line in range(VALUE_LINES_AHEAD):
                if <size_t>line * LINE_BYTES < size:
                    __builtin_prefetch(value + line * LINE_BYTES)

    cdef int64_t count(
        self, const uint8_t *key, size_t key_size, const uint8_t *end, size_t end_size,
        int64_t revision,
    ) noexcept nogil:
        """How many keys of the range existed; O(log n) at the newest revision, else a walk."""
        cdef Cursor cursor
        cdef int64_t first
        cdef int64_t limit
        if end_size == 0:
            return self.get(key, key_size, revision) != NULL
        if self._reads_newest(revision):
            first = self.tree.rank(key, key_size)
            limit = self.tree.live
            if end_size != 1 or end[0] != 0:
                limit = self.tree.rank(end, end_size)
            return limit - first if limit > first else 0
        self.seek(&cursor, key, key_size, end, end_size, revision)
        limit = 0
        while self.next(&cursor) != NULL:
            limit += 1
        return limit

    cdef void seek(
        self, Cursor *cursor, const uint8_t *key, size_t key_size, const uint8_t *end,
        size_t end_size, int64_t revision,
    ) noexcept nogil:
        """Start a walk; `key` and `end` stay the caller's."""
        cursor.key = key
        cursor.key_size = key_size
        cursor.end = end
        cursor.end_size = end_size
        cursor.revision = revision
        cursor.last = NULL
        self._reseek(cursor)
        if end_size > 1 or (end_size == 1 and end[0] != 0):
            if compare_keys(key, key_size, end, end_size) >= 0:
                cursor.leaf = NULL

    cdef void _reseek(self, Cursor *cursor) noexcept nogil:
        """Find the place in the tree where the walk starts or goes on."""
        cdef const uint8_t *key = cursor.key
        cdef size_t size = cursor.key_size
        if cursor.last != NULL:
            key = version_key(cursor.last)
            size = cursor.last.key_size
        cursor.leaf = self.tree.seek(key, size, &cursor.index)
        cursor.changes = self.tree.changes
        cursor.stop = self._stop(cursor)
        if cursor.last != NULL and cursor.index < cursor.leaf.keys.count:
            # On behind the key that was returned last; it may have left the tree.
            if compare_keys(
                key, size, version_key(<Version *>cursor.leaf.keys.items[cursor.index]),
                cursor.leaf.keys.items[cursor.index].key_size,
            ) == 0:
                cursor.index += 1

    cdef uint32_t _stop(self, Cursor *cursor) noexcept nogil:
        """Where the range ends in the cursor's leaf."""
        cdef bint exact = False
        cdef uint32_t stop
        if cursor.end_size == 0:
            stop = keys_search(&cursor.leaf.keys, cursor.key, cursor.key_size, &exact)
            return stop + 1 if exact else 0
        if cursor.end_size == 1 and cursor.end[0] == 0:
            return cursor.leaf.keys.count
        return keys_search(&cursor.leaf.keys, cursor.end, cursor.end_size, &exact)

    cdef Version *next(self, Cursor *cursor) noexcept nogil:
        """The next version of the walk, NULL at its end."""
        cdef Version *version
        cdef uint64_t live
        cdef bint newest = self._reads_newest(cursor.revision)
        if cursor.leaf == NULL:
            return NULL
        if cursor.changes != self.tree.changes:
            self._reseek(cursor)
        while True:
            if cursor.index >= cursor.stop:
                if (cursor.stop < cursor.leaf.keys.count or cursor.leaf.next == NULL
                        or cursor.end_size == 0):
                    cursor.leaf = NULL
                    return NULL
                cursor.leaf = cursor.leaf.next
                cursor.index = 0
                cursor.stop = self._stop(cursor)
                continue
            if newest:
                live = cursor.leaf.live >> cursor.index
                if live == 0:
                    cursor.index = cursor.leaf.keys.count
                    continue
                cursor.index += __builtin_ctzll(live)
                if cursor.index >= cursor.stop:
                    continue
            if cursor.index + PREFETCH_AHEAD < cursor.stop:
                __builtin_prefetch(cursor.leaf.keys.items[cursor.index + PREFETCH_AHEAD])
            version = <Version *>cursor.leaf.keys.items[cursor.index]
            cursor.index += 1
            if not newest:
                while version != NULL and version.mod_revision > cursor.revision:
                    version = version.previous
                if version == NULL or version_is_tombstone(version):
                    continue
            cursor.last = version
            return version

    cdef int pin(self, int64_t revision) except -1 nogil:
        """Keep what a read at `revision` needs, until as many `unpin`."""
        cdef Pin *pin
        cdef size_t at = 0
        cdef size_t count = self.pins.size // sizeof(Pin)
        buffer_reserve(&self.pins, sizeof(Pin))
        pin = <Pin *>self.pins.data
        while at < count and pin[at].revision < revision:
            at += 1
        if at == count or pin[at].revision != revision:
            memmove(&pin[at + 1], &pin[at], (count - at) * sizeof(Pin))
            self.pins.size += sizeof(Pin)
            pin[at].revision = revision
            pin[at].count = 0
        pin[at].count += 1
        return 0

    cdef void unpin(self, int64_t revision) noexcept nogil:
        """Take one `pin` of this revision back."""
        cdef Pin *pin = <Pin *>self.pins.data
        cdef size_t at = 0
        cdef size_t count = self.pins.size // sizeof(Pin)
        while at < count and pin[at].revision != revision:
            at += 1
        if at == count:
            return
        pin[at].count -= 1
        if pin[at].count == 0:
            memmove(&pin[at], &pin[at + 1], (count - at - 1) * sizeof(Pin))
            self.pins.size -= sizeof(Pin)

    cdef bint _pinned(self, int64_t first, int64_t limit) noexcept nogil:
        """Whether any revision in [first, limit) is pinned."""
        cdef const Pin *pin = <const Pin *>self.pins.data
        cdef size_t at = 0
        cdef size_t count = self.pins.size // sizeof(Pin)
        cdef size_t high = count
        cdef size_t middle
        while at < high:
            middle = (at + high) // 2
            if pin[middle].revision < first:
                at = middle + 1
            else:
                high = middle
        return at < count and pin[at].revision < limit

    # -- history

    cdef void history_seek(
        self, HistoryCursor *cursor, int64_t revision, uint32_t sub
    ) noexcept nogil:
        """Go to the first version that is not before (revision, sub)."""
        self.history.seek(cursor, revision, sub)

    cdef Version *history_next(self, HistoryCursor *cursor) noexcept nogil:
        """The version at the cursor, which goes on behind it; NULL at the end, for now."""
        return self.history.next(cursor)

    # -- compaction

    cdef int compact(self, int64_t revision) noexcept nogil:
        """Compact to `revision`, for readers at once; answers an ErrorId or 0."""
        if revision <= self.compact_revision:
            return ERROR_COMPACTED
        if revision > self.revision:
            return ERROR_FUTURE_REVISION
        # etcd remembers the hash of a compaction only if the one before was done when it came.
        if self.finished_revision == self.compact_revision:
            self.queued_revision = revision
        self.compact_revision = revision
        return ERROR_NONE

    cdef bint compact_step(self, uint64_t budget) noexcept nogil:
        """Remove some of what compaction made superfluous; True when more can be done now."""
        cdef Version *version
        cdef uint64_t cost
        while True:
            if not self.sweeping and not self._sweep_begin():
                return False
            version = self.history.sweep_peek()
            if version == NULL or version.mod_revision > self.sweep_revision:
                self._sweep_end()
                continue
            if budget == 0:
                return True
            cost = 1
            if self.sweep_hashes:
                cost += (version.key_size + version.value_size) // WORK_BYTES
            if not self.history.sweep_reserve():
                return True
            self._sweep_one(version)
            budget -= cost if cost < budget else budget

    cdef bint _sweep_begin(self) noexcept nogil:
        """Start the sweep that is due; False when none is, or it has to wait."""
        cdef int64_t revision
        if self.finished_revision != self.compact_revision:
            revision = self.queued_revision if self.queued_revision >= 0 else self.compact_revision
        elif self.leftovers and not self._pinned(0, self.finished_revision):
            revision = self.finished_revision
        else:
            return False
        if revision > self.saved_revision:
            return False
        if self.hold_count and revision > self.holds[0].revision:
            # As far as the oldest holder lets it, unless a hash is to be made of all of it.
            if self.queued_revision >= 0 or self.holds[0].revision <= self.finished_revision:
                return False
            revision = self.holds[0].revision
        if not self.history.sweep_begin():
            return False
        self.sweep_hashes = self.queued_revision >= 0
        if self.sweep_hashes:
            hash_start(&self.sweep_hash, revision, self.finished_revision)
            self.sweep_hash.of_sweep = True
        self.queued_revision = -1
        self.leftovers = 0
        self.sweep_revision = revision
        self.sweeping = True
        return True

    cdef void _sweep_one(self, Version *version) noexcept nogil:
        """Keep or drop one version, for which the history has room."""
        cdef bint tombstone = version_is_tombstone(version)
        if self.sweep_hashes:
            hash_record(&self.sweep_hash, version)
        if version.mod_revision == self.sweep_revision or (
                not tombstone and is_newest_at(version, self.sweep_revision)):
            self.history.sweep_keep()
            return
        # A tombstone hides the older versions of its key, so it stays while a pin keeps one.
        if version.previous != NULL if tombstone else (
                self._pinned(version.mod_revision, version.newer.mod_revision)):
            self.leftovers += 1
            self.history.sweep_keep()
            return
        self.history.sweep_drop()
        self._drop(version)

    cdef void _sweep_end(self) noexcept nogil:
        """The sweep came to the first version after its revision."""
        self.history.sweep_end()
        self.sweeping = False
        if self.sweep_hashes:
            if not self.sweep_hash.seen_kept:
                self.sweep_hash.crc = self.sweep_hash.crc_of_all
            self._store_hash(&self.sweep_hash)
        self.finished_revision = self.sweep_revision

    # -- hashes

    cdef void _store_hash(self, HashState *state) noexcept nogil:
        """Remember the hash of a compaction; compactions only go up, so it is the newest."""
        if self.hash_count == HASHES_STORED_MAX:
            memmove(
                &self.hashes[0], &self.hashes[1], (HASHES_STORED_MAX - 1) * sizeof(StoredHash)
            )
            self.hash_count -= 1
        self.hashes[self.hash_count].revision = state.revision
        self.hashes[self.hash_count].compact_revision = state.compact_revision
        self.hashes[self.hash_count].crc = state.crc
        self.hash_count += 1

    cdef int hash_begin(self, HashState *state, int64_t revision) noexcept nogil:
        """Start a hash of what was at `revision`; answers an ErrorId or 0."""
        cdef int i
        # etcd looks here first: a compacted revision has a hash as long as it is remembered. But 0
        # means now: after a compaction at 0 etcd would answer the hash of nothing for ever.
        for i in range(self.hash_count if revision else 0):
            if self.hashes[i].revision == revision:
                hash_start(state, revision, self.hashes[i].compact_revision)
                state.crc = self.hashes[i].crc
                state.done = True
                return ERROR_NONE
        if revision > 0 and revision < self.compact_revision:
            return ERROR_COMPACTED
        if revision > self.revision:
            return ERROR_FUTURE_REVISION
        hash_start(state, revision or self.revision, self.compact_revision)
        self.history.seek(&state.at, 0, 0)
        state.held = self.hold()
        state.holding = True
        return ERROR_NONE

    cdef bint hash_step(self, HashState *state, uint64_t budget) noexcept nogil:
        """Go on with a hash; False when `state.crc` is it."""
        cdef Version *version
        cdef uint64_t cost
        while not state.done:
            if budget == 0:
                return True
            version = self.history.next(&state.at)
            if version == NULL or version.mod_revision > state.revision:
                if not state.seen_kept:
                    state.crc = state.crc_of_all
                state.done = True
                break
            hash_record(state, version)
            cost = 1 + (version.key_size + version.value_size) // WORK_BYTES
            budget -= cost if cost < budget else budget
        return False

    cdef void hash_end(self, HashState *state) noexcept nogil:
        """Let compactions go on; also for a hash that was given up."""
        if state.holding:
            state.holding = False
            self.release_hold(state.held)

    cdef int64_t hold(self) noexcept nogil:
        """Keep what is stored now of revisions that are not compacted yet."""
        cdef uint32_t at = self.hold_count
        if at == 0 or (at < HOLDS_MAX and self.holds[at - 1].revision != self.compact_revision):
            self.holds[at].revision = self.compact_revision
            self.holds[at].count = 0
            self.hold_count += 1
        else:
            at -= 1
        self.holds[at].count += 1
        return self.holds[at].revision

    cdef void release_hold(self, int64_t held) noexcept nogil:
        """Take one `hold` back."""
        cdef uint32_t at = 0
        while self.holds[at].revision != held:
            at += 1
        self.holds[at].count -= 1
        if self.holds[at].count == 0:
            self.hold_count -= 1
            memmove(
                &self.holds[at], &self.holds[at + 1], (self.hold_count - at) * sizeof(Pin))

    # -- figures

    cdef int64_t live_keys(self) noexcept nogil:
        """Keys that exist now."""
        return self.tree.live

    @property
    def waits_for_checkpoint(self):
        """Whether what a compaction makes superfluous has to be saved before it is removed."""
        return bool(self.finished_revision < self.compact_revision > self.saved_revision)

    @property
    def size_in_use(self):
        """The same as `db_size_in_use`."""
        return self.db_size_in_use()

    cdef uint64_t db_size_in_use(self) noexcept nogil:
        """What a backend file with all this takes: leaf pages filled to nine tenths."""
        cdef uint64_t bytes = self.bucket_bytes + self.lessor.count * LEASE_BYTES
        cdef uint64_t pages = bytes * 10 // (9 * FILE_PAGE)
        return (FILE_PAGES_MIN + pages + pages // 100) * FILE_PAGE

    cdef uint64_t db_size(self) noexcept nogil:
        """A checkpoint has no free pages."""
        return self.db_size_in_use()

    # -- invariants

    def check(self):
        """Walk everything; AssertionError when a rule is broken."""
        cdef HistoryCursor at
        cdef Version *version
        cdef Version *last = self.history.last()
        blocks = self.tree.check() + self.history.check()
        self.arena.check()
        figures = [0, 0, 0, 0]
        newest = leftovers = 0
        self.history.seek(&at, 0, 0)
        version = self.history.next(&at)
        while version != NULL:
            self._check_version(version)
            newest += version.newer == NULL
            leftovers += self._is_leftover(version)
            for i, size in enumerate(
                (1, version.key_size, version.value_size, record_size(version))
            ):
                figures[i] += size
            version = self.history.next(&at)
        books = [self.versions, self.key_bytes, self.value_bytes, self.bucket_bytes]
        _check(figures == books, "figures", (figures, books))
        _check(newest == self.tree.count, "keys", (newest, self.tree.count))
        blocks += self.values.blocks
        _check(self.versions + blocks == self.arena.blocks, "blocks", (
            self.versions, blocks, self.arena.blocks))
        _check(last == NULL or last.mod_revision <= self.write_revision(), "revision", (
            self.revision))
        self.lessor.check()
        if not self.sweeping:
            _check(leftovers == self.leftovers, "leftovers", (leftovers, self.leftovers))
        _check(self.finished_revision <= self.compact_revision <= self.revision, "revisions", (
            self.finished_revision, self.compact_revision, self.revision))

    cdef bint _is_leftover(self, const Version *version) noexcept:
        """Whether the last finished compaction would have taken it, but for a pin."""
        if version.mod_revision >= self.finished_revision:
            return False
        return version_is_tombstone(version) or not is_newest_at(version, self.finished_revision)

    cdef _check_version(self, const Version *version):
        cdef Path path
        cdef const Version *previous = version.previous
        cdef bint tombstone = version_is_tombstone(version)
        where = (version.mod_revision, version.sub)
        found = self.tree.locate(&path, version_key(version), version.key_size)
        _check(found, "a version's key is not in the tree", where)
        if version.newer == NULL:
            _check(path.leaf.keys.items[path.index] == <Item *>version, "newest", where)
            _check(path.leaf.live >> path.index & 1 == (not tombstone), "live bit", where)
        else:
            _check(version.newer.previous == version, "links", where)
        if tombstone:
            _check(version.create_revision == 0 and version.value_size == 0, "tombstone", where)
        else:
            _check(0 < version.create_revision <= version.mod_revision, "creation", where)
            _check((version.version == 1) == (version.create_revision == version.mod_revision)
                   or version.version > 1, "first version", where)
        self._check_hold(<Version *>version, where)
        if previous == NULL:
            _check(version.version <= 1 or version.create_revision <= self.compact_revision, (
                "a version is missing"), where)
            return
        _check(previous.newer == version, "links", where)
        _check(compare_keys(
            version_key(version), version.key_size, version_key(previous), previous.key_size
        ) == 0, "keys of a chain", where)
        _check((previous.mod_revision, previous.sub) < where, "order of a chain", where)
        if version_is_tombstone(previous) == (version.version == 1):
            _check(version.version <= 1 or version.version > previous.version, "version", where)
            _check(version.version <= 1 or version.create_revision == previous.create_revision, (
                "generation"), where)
        else:
            # Only compaction takes out what was in between.
            _check(version_is_tombstone(previous), "a key that exists is created", where)
            _check(previous.mod_revision < self.compact_revision, "a missing version", where)

    cdef _check_hold(self, Version *version, where):
        """A key is in its lease's ring from its newest version alone."""
        cdef bint held
        cdef bint exists
        if not version.flags & VERSION_LEASED:
            return
        held = version_hold(version).link.next != 0
        exists = self.lessor.find(version_lease(version)) != NULL
        _check(held == (exists and version.newer == NULL), "hangs on its lease", where)


cdef _check(bint holds, what, where):
    """An `assert` that release builds keep."""
    if not holds:
        raise AssertionError(f"store: {what}: {where!r}")
