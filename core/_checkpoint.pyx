"""A store as etcd's backend file has it, written in slices while the store goes on.

Rules:
1. What is written is the store as it was when this began: versions do not change, newer ones come
   behind, and what compactions from then on would take is held.
2. A whole file is one in which the newest compaction is done, whether or not the store's own has
   come so far. etcd counts versions from what it finds, so garbage may be missing only from the
   oldest on: here all of it is.
3. A file that is gone on with gets every version since the one before, garbage or not: the store
   removes none that is not saved (`saved_revision`), so no gap comes up, and what a compaction has
   made superfluous in the file is removed by the next one that is whole.
4. Once the file is durable and mapped, values are read from it: `map_step`.
5. What is damaged in memory is not written: the file before, and the log, still have it right.
6. The other buckets, and the marks, are the caller's; leases are `core/_leasebucket.pyx`'s.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from quorate.core._bytes cimport (
    buffer_append, buffer_free, buffer_reserve, load_be64, load_le64,
)
from quorate.core._mapping cimport Mapping
from quorate.core._protobuf cimport Span, write_varint
from quorate.core._reply cimport (
    OMIT_NOTHING,
    append_key_value,
    key_value_size,
    number_size,
)
from quorate.core._version cimport (
    VERSION_OUTSIDE,
    version_is_sound,
    version_is_tombstone,
    version_key,
    version_key_size,
    version_lease,
    version_value_size,
)
from quorate.core._versionrecord cimport (
    RECORD_KEY, RECORD_KEY_MAX, RECORD_SUB_AT, write_record_key,
)

from quorate.core.errors import Fatal

cdef enum:
    TAG_KEY = 10


cdef class Checkpoint:
    """Writes the bucket `key`."""

    def __init__(self, Store store not None, BoltWriter writer not None, *, int64_t after=0):
        """`writer` has no open bucket. With `after`, a revision, its file has all up to there."""
        self.store = store
        self.writer = writer
        self.after = after
        self.revision = store.revision
        self.compact_revision = store.compact_revision
        store.history_seek(&self.at, after + 1, 0)
        if after:
            writer.extend(b"key", places=True)
        else:
            writer.begin(b"key", places=True)
        # Last, because who fails here is never closed.
        self.held = store.hold()
        self.holding = True

    def __dealloc__(self):
        buffer_free(&self.scratch)

    def step(self, uint64_t pairs):
        """Write so many pairs more; False when all are written. Raises DiskError, Fatal."""
        if not self.done and not self._key_step(pairs):
            self.writer.end()
            self.done = True
            self.store.history_seek(&self.at, self.after + 1, 0)
        return not self.done

    def map_step(self, Mapping mapping not None, uint64_t pairs):
        """Have so many values more be read from `mapping`, which is of the finished file and which
        the store knows; False when all are.
        """
        cdef bint more
        assert self.done and self.holding
        with nogil:
            more = self._map_values(mapping, pairs)
        return more

    cdef bint _map_values(self, Mapping mapping, uint64_t pairs) noexcept nogil:
        """Walk history and file side by side: either may have what the other has not."""
        cdef const uint8_t *pair
        cdef Version *version = self.store.history_next(&self.at)
        while version != NULL and self.place_at < self.writer.places.size:
            if pairs == 0:
                self.store.history_seek(&self.at, version.mod_revision, version.sub)
                return True
            pairs -= 1
            pair = mapping.data + load_le64(self.writer.places.data + self.place_at)
            if is_before(pair, version):
                self.place_at += sizeof(uint64_t)
                continue
            if (load_be64(pair) == <uint64_t>version.mod_revision
                    and load_be64(pair + RECORD_SUB_AT) == version.sub):
                self.place_at += sizeof(uint64_t)
                if version.flags & VERSION_OUTSIDE:
                    self.store.map_value(version, pair + RECORD_KEY + head_size(version))
            version = self.store.history_next(&self.at)
        return False

    def close(self):
        """Let compactions go on: after the last `map_step`, and for one that is given up."""
        if self.holding:
            self.holding = False
            self.store.release_hold(self.held)

    cdef bint _key_step(self, uint64_t pairs) except -1:
        cdef const Version *version
        with nogil:
            while pairs:
                version = self.store.history_next(&self.at)
                if version == NULL or version.mod_revision > self.revision:
                    return False
                if self._is_wanted(version):
                    if not version_is_sound(version):
                        with gil:
                            raise Fatal(
                                f"revision {version.mod_revision} ({version.sub}) is damaged in "
                                "memory, and so not written")
                    self._write_version(version)
                    self.pairs += 1
                pairs -= 1
        return True

    cdef bint _is_wanted(self, const Version *version) noexcept nogil:
        """Whether it is written: in a whole file, if a compaction to `compact_revision` leaves it.
        """
        if self.after:
            return True
        if version.mod_revision >= self.compact_revision:
            return True
        if version_is_tombstone(version):
            return False
        return version.newer == NULL or version.newer.mod_revision > self.compact_revision

    cdef int _write_version(self, const Version *version) except -1 nogil:
        """A pair of the bucket `key`: what a compaction and a hash of etcd see."""
        cdef uint8_t[RECORD_KEY_MAX] name
        cdef size_t name_size = write_record_key(name, version) - &name[0]
        cdef size_t size
        self.scratch.size = 0
        if version_is_tombstone(version):
            size = version_key_size(version)
            buffer_reserve(&self.scratch, 11)
            self.scratch.data[0] = TAG_KEY
            self.scratch.size = write_varint(self.scratch.data + 1, size) - self.scratch.data
            buffer_append(&self.scratch, version_key(version), size)
            return self.writer.push(
                Span(&name[0], name_size), Span(self.scratch.data, self.scratch.size))
        size = key_value_size(version, OMIT_NOTHING)
        append_key_value(&self.scratch, TAG_KEY, version, OMIT_NOTHING)
        return self.writer.push(
            Span(&name[0], name_size),
            Span(self.scratch.data + self.scratch.size - size, size))


cdef inline bint is_before(const uint8_t *pair, const Version *version) noexcept nogil:
    """Whether a pair's revision is less than that of a version."""
    cdef uint64_t revision = load_be64(pair)
    if revision != <uint64_t>version.mod_revision:
        return revision < <uint64_t>version.mod_revision
    return load_be64(pair + RECORD_SUB_AT) < version.sub


cdef inline size_t head_size(const Version *version) noexcept nogil:
    """Bytes of a mvccpb.KeyValue before those of its value."""
    return (key_value_size(version, OMIT_NOTHING) - version_value_size(version)
            - number_size(<uint64_t>version_lease(version)))
