"""Looking through the store's memory for damage: bits that flipped, writes that went astray.

Rules:
1. A pass goes over the history, some versions at a time. Writes and compactions go on in between:
   each version is looked at by itself and with its neighbours, so nothing has to stand still.
2. Every version is sealed with a checksum of all that never changes when it is written
   (`version_seal`). What was restored from a file is sealed when a pass first comes to it.
3. Found are: any change of a version's sizes, revisions, numbers, key, value and lease; a version
   that its key's chain or the tree does not lead to, or leads to as what it is not (a deletion);
   revisions out of order. A damaged address can also end the process, which loses nothing either.
4. Not found: damage before the seal, as in what a client sent; a version that is missing from the
   history and from its chain alike; the tree's own separators, until a search goes astray.
"""

from libc.stdint cimport INT64_MIN, uint64_t

from quorate.core._keytree cimport Item, Path
from quorate.core._mvcc cimport Store
from quorate.core._version cimport (
    VERSION_SEAL_SHIFT, Version, version_is_sound, version_is_tombstone, version_key, version_seal,
)

cdef enum:
    # Checksums of so many bytes cost as much as the rest of a version.
    WORK_BYTES = 4096

FAULTS = (
    "", "its revision is out of order", "its checksum is wrong",
    "the versions of its key do not hang together", "the tree does not lead to it",
)


cdef class Scrub:
    """A pass over all versions after another."""

    def __cinit__(self, Store store not None):
        self.store = store

    @property
    def size(self):
        """Microseconds of a pass, about."""
        return self.store.versions

    def step(self, uint64_t looks):
        """Look at about `looks` versions, to the end of the pass at most; answers what is wrong.

        The next pass begins with the step after the one that found the end.
        """
        cdef Version *version
        cdef Fault fault
        cdef uint64_t cost
        if self.looked_at == 0:
            # From below any revision: one whose sign flipped must not be passed over.
            self.revision = INT64_MIN
            self.sub = 0
            self.store.history_seek(&self.at, INT64_MIN, 0)
        while looks:
            version = self.store.history_next(&self.at)
            if version == NULL:
                self.passes += 1
                self.looked_at = 0
                return ""
            fault = self.look_at(version)
            if fault != FAULT_NONE:
                return f"version {version.mod_revision}.{version.sub}: {FAULTS[fault]}"
            self.looked_at += 1
            cost = 1 + version.value_size // WORK_BYTES
            looks -= min(cost, looks)
        return ""

    cdef Fault look_at(self, Version *version) noexcept nogil:
        cdef Path path
        cdef bint live
        if version.mod_revision < self.revision or (
                version.mod_revision == self.revision and version.sub <= self.sub):
            return FAULT_ORDER
        self.revision = version.mod_revision
        self.sub = version.sub
        if not version_is_sound(version):
            return FAULT_CHECKSUM
        if version.flags >> VERSION_SEAL_SHIFT == 0:
            version_seal(version)
        if version.previous != NULL and (
                version.previous.newer != version
                or version.previous.mod_revision > version.mod_revision):
            return FAULT_CHAIN
        if version.newer != NULL:
            return FAULT_NONE if version.newer.previous == version else FAULT_CHAIN
        if not self.store.tree.locate(&path, version_key(version), version.key_size):
            return FAULT_TREE
        if path.leaf.keys.items[path.index] != <Item *>version:
            return FAULT_TREE
        live = path.leaf.live >> path.index & 1
        return FAULT_TREE if live == version_is_tombstone(version) else FAULT_NONE
