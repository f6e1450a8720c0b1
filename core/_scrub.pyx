"""Looking through the store's memory for damage: bits that flipped, writes that went astray.

Rules:
1. A pass goes over the tree and then over the history, some versions at a time. Writes and
   compactions go on in between: each version is looked at by itself and with its neighbours, so
   nothing has to stand still.
2. Every version is sealed with a checksum of all that never changes when it is written
   (`version_seal`). What was restored from a file is sealed when a pass first comes to it.
3. The tree is gone through in its own order, which costs a fifth of searching for each key. Each
   version that a search finds, and as what it is, gets the pass's mark (VERSION_REACHED): the
   newest version of a key that was there when the pass began must have it. So a store has one
   Scrub at a time.
4. Found are: any change of a version's sizes, revisions, numbers, key, value and lease; a version
   that its key's chain or the tree does not lead to, or leads to as what it is not (a deletion);
   revisions out of order. A damaged address can also end the process, which loses nothing either.
5. Not found: damage before the seal, as in what a client sent; the tree's own separators, until a
   search goes astray. A version that is missing from the history and from its chain alike is found
   by `_scrubfile.pyx`, if the file has it.
"""

from libc.stdint cimport INT64_MIN, uint32_t, uint64_t

from quorate.core._bytes cimport buffer_append, buffer_free
from quorate.core._keytree cimport Leaf, keys_search
from quorate.core._mvcc cimport Store
from quorate.core._version cimport (
    VERSION_REACHED, VERSION_SEAL_SHIFT, Version, version_is_sound, version_is_tombstone,
    version_key, version_seal,
)

cdef extern from * nogil:
    void __builtin_prefetch(const void *address)

cdef enum:
    # Checksums of so many bytes cost as much as the rest of a version.
    WORK_BYTES = 512
    # Passes mark in turns; together they are VERSION_REACHED.
    MARK_ODD = 8
    MARK_EVEN = 16
    # What takes about a microsecond: keys of the tree, versions of the history.
    KEYS_PER_LOOK = 5
    VERSIONS_PER_LOOK = 10

FAULTS = (
    "", "its revision is out of order", "its checksum is wrong",
    "the versions of its key do not hang together", "the tree does not lead to it",
)


cdef class Scrub:
    """A pass over all versions after another."""

    def __cinit__(self, Store store not None):
        self.store = store

    def __dealloc__(self):
        buffer_free(&self.key)

    @property
    def size(self):
        """Microseconds of a pass, about."""
        cdef uint64_t bytes = self.store.value_bytes if self.store.values.blocks else 0
        return (self.store.tree.count // KEYS_PER_LOOK
                + (self.store.versions + bytes // WORK_BYTES) // VERSIONS_PER_LOOK)

    def step(self, uint64_t looks):
        """Look about so often, to the end of the pass at most; answers what is wrong."""
        cdef Version *version = NULL
        cdef Fault fault
        if self.stage == MEMORY_STAGE_NONE:
            self.begin()
        if self.stage == MEMORY_STAGE_TREE:
            if not self.tree_step(looks * KEYS_PER_LOOK):
                self.stage = MEMORY_STAGE_HISTORY
            return ""
        fault = self.history_step(looks * VERSIONS_PER_LOOK, &version)
        if fault != FAULT_NONE:
            self.stage = MEMORY_STAGE_NONE
            return f"version {version.mod_revision}.{version.sub}: {FAULTS[fault]}"
        if version == NULL:
            self.passes += 1
            self.stage = MEMORY_STAGE_NONE
        return ""

    cdef begin(self):
        """Go to the beginning of tree and history."""
        self.mark = MARK_EVEN if self.mark == MARK_ODD else MARK_ODD
        self.reached_revision = self.store.revision
        self.key.size = 0
        # From below any revision: one whose sign flipped must not be passed over.
        self.revision = INT64_MIN
        self.sub = 0
        self.store.history_seek(&self.at, INT64_MIN, 0)
        self.stage = MEMORY_STAGE_TREE

    cdef bint tree_step(self, uint64_t budget) except -1 nogil:
        """Mark what the tree leads to, some leaves at a time; False behind the last."""
        cdef uint32_t index = 0
        cdef uint64_t cost
        cdef Leaf *leaf = self.store.tree.seek(self.key.data, self.key.size, &index)
        while True:
            self.mark_leaf(leaf, index)
            cost = 1 + leaf.keys.count - index
            leaf = leaf.next
            index = 0
            if leaf == NULL:
                return False
            if cost >= budget:
                break
            budget -= cost
        self.key.size = 0
        buffer_append(
            &self.key, version_key(<Version *>leaf.keys.items[0]), leaf.keys.items[0].key_size)
        return True

    cdef void mark_leaf(self, const Leaf *leaf, uint32_t index) noexcept nogil:
        """Mark what a search in the leaf finds, from its item at `index` on."""
        cdef Version *version
        cdef bint found = False
        cdef bint live
        cdef uint32_t item
        for item in range(index, leaf.keys.count):
            __builtin_prefetch(leaf.keys.items[item])
            __builtin_prefetch(version_key(<Version *>leaf.keys.items[item]))
        for item in range(index, leaf.keys.count):
            version = <Version *>leaf.keys.items[item]
            if keys_search(
                    &leaf.keys, version_key(version), version.key_size, &found) != item:
                continue
            live = leaf.live >> item & 1
            if found and live != version_is_tombstone(version):
                version.flags = version.flags & ~<uint32_t>VERSION_REACHED | self.mark

    cdef Fault history_step(self, uint64_t budget, Version **found) noexcept nogil:
        """Look at so many versions; `found` is the one with a fault, and NULL at the end."""
        cdef Version *version
        cdef Fault fault
        cdef uint64_t cost
        while True:
            found[0] = version = self.store.history_next(&self.at)
            if version == NULL:
                return FAULT_NONE
            fault = self.look_at(version)
            if fault != FAULT_NONE:
                return fault
            self.revision = version.mod_revision
            self.sub = version.sub
            if version.flags >> VERSION_SEAL_SHIFT == 0:
                version_seal(version)
            cost = 1 + version.value_size // WORK_BYTES
            if cost >= budget:
                return FAULT_NONE
            budget -= cost

    cdef Fault look_at(self, const Version *version) noexcept nogil:
        if version.mod_revision < self.revision or (
                version.mod_revision == self.revision and version.sub <= self.sub):
            return FAULT_ORDER
        if not version_is_sound(version):
            return FAULT_CHECKSUM
        if version.previous != NULL and (
                version.previous.newer != version
                or version.previous.mod_revision > version.mod_revision):
            return FAULT_CHAIN
        if version.newer != NULL:
            return FAULT_NONE if version.newer.previous == version else FAULT_CHAIN
        if version.mod_revision <= self.reached_revision and (
                version.flags & VERSION_REACHED != self.mark):
            return FAULT_TREE
        return FAULT_NONE
