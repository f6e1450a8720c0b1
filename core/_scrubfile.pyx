"""Looking through the backend file for damage: pages that changed, records that memory denies.

Rules:
1. A pass is over the file as the newest checkpoint left it when the pass began. No page of that is
   ever used again, so checkpoints go on meanwhile; a file that was replaced is held open, and the
   pass ends with the old one. Pages are read, not mapped: what a disk cannot read is an error, and
   so is a file that became shorter.
2. First the metas: the newest is the one that was written last, and the other one is good. While a
   checkpoint is under way that other one is left alone.
3. Then the bucket `key`, in its order, beside the history of the store. A record and a version of
   the same revision have the same key, numbers, lease and value; a value that memory reads from a
   file itself is not compared.
4. A record may be without a version if a sweep came past its revision: before a compaction's own
   revision it takes what it likes. A version may be without a record if the file was written whole
   and did the work of a compaction that takes it, also where memory keeps it for a reader. What was
   in between may be gone since: so what replaced it counts up to the newest compaction.
5. Last the file's bytes, part by part, against the checksums that were taken when they were written
   (`FileSums`): every value, all other buckets, and what is garbage. A part that nobody took, as of
   a file that a start found, is taken when a pass first comes to it.
6. Any page is believed no further than `Bolt` checks it.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from quorate.core._bolt cimport Bolt, Bucket
from quorate.core._bytes cimport buffer_free, buffer_reserve, crc32c
from quorate.core._filesums cimport PART_BYTES, PartSum
from quorate.core._protobuf cimport Span
from quorate.core._restore cimport read_pair, read_record_key
from quorate.core._version cimport (
    VERSION_MAPPED, version_is_tombstone, version_key, version_lease, version_value,
)
from quorate.core._versionrecord cimport RECORD_KEY, RECORD_SUB_AT

from quorate.core._bolt import BoltError
from quorate.core._disk import DiskError

cdef enum:
    # Pairs compared, and bytes read, that take about a microsecond.
    PAIRS_PER_LOOK = 6
    BYTES_PER_LOOK = 4096


cdef class FileScrub:
    """A pass over the newest checkpoint's file after another."""

    def __init__(self, Store store not None, checkpoints not None):
        """`checkpoints` says which file that is: `saved` and `is_writing`."""
        self.store = store
        self.checkpoints = checkpoints

    def __dealloc__(self):
        buffer_free(&self.bytes)

    @property
    def size(self):
        """Microseconds of a pass, about."""
        return (self.store.versions // PAIRS_PER_LOOK
                + 2 * self.checkpoints.saved.size // BYTES_PER_LOOK)

    def step(self, uint64_t looks):
        """Look at about so much, to the end of the pass at most; answers what is wrong.

        Raises DiskError; then the pass begins anew, as after a fault.
        """
        cdef bint more
        try:
            if self.stage == FILE_STAGE_NONE:
                self.begin()
            elif self.stage == FILE_STAGE_KEYS:
                with nogil:
                    more = self.key_step(looks * PAIRS_PER_LOOK)
                if not more:
                    self.root = self.keys = None
                    self.stage = FILE_STAGE_PARTS
            else:
                with nogil:
                    more = self.part_step(looks)
                if not more:
                    self.end()
        except (BoltError, DiskError) as fault:
            self.leave()
            if isinstance(fault, DiskError):
                raise
            return str(fault)
        return ""

    cdef begin(self):
        """Take the newest checkpoint's file, if there is one, and look at its metas."""
        cdef Bolt bolt
        cdef Bucket bucket
        saved = self.checkpoints.saved
        if saved.file is None:
            self.end()
            return
        other = 1 - (saved.transaction & 1) if self.checkpoints.is_writing else -1
        bolt = saved.file.bolt(saved.page_size, other)
        if bolt.transaction != saved.transaction or bolt.high_water * bolt.page_size != saved.size:
            raise BoltError(
                bolt.path, saved.transaction & 1,
                f"the transaction {saved.transaction} of {saved.size} bytes was written here, and "
                f"the newest is {bolt.transaction} of {bolt.high_water * bolt.page_size} bytes")
        if bolt.warning is not None and other < 0 and saved.has_both_metas:
            raise BoltError(bolt.path, 1 - (saved.transaction & 1), bolt.warning)
        self.file = saved.file
        self.sums = saved.sums
        self.bytes_saved = saved.size
        self.page_size = saved.page_size
        self.revision = saved.revision
        self.finished = saved.finished
        self.root = FileCursor(self.file, bolt)
        self.keys = None
        if self.root.find_nested(Span(<const uint8_t *>b"key", 3), &bucket):
            self.keys = FileCursor(self.file, bolt)
            self.keys.over(bolt, bucket)
        self.begun = self.has_pair = False
        self.store.history_seek(&self.at, 0, 0)
        self.part = 0
        self.stage = FILE_STAGE_KEYS

    cdef end(self):
        """The pass is over."""
        self.passes += 1
        self.leave()

    cdef leave(self):
        """Let go of the file, which may be closed."""
        self.stage = FILE_STAGE_NONE
        self.root = self.keys = None
        self.file = None
        self.sums = None

    # --- the bucket `key` ---------------------------------------------------------------------

    cdef bint key_step(self, uint64_t looks) except -1 nogil:
        """Compare so many records and versions; False when all are compared."""
        cdef uint64_t cost
        cdef Version *version = self.next_version()
        while looks:
            if not self.has_pair:
                self.has_pair = self.next_pair()
            if not self.has_pair and version == NULL:
                return False
            if version == NULL or (self.has_pair and is_before(&self.pair, version)):
                self.without_version()
                self.has_pair = False
            elif not self.has_pair or not is_same(&self.pair, version):
                self.without_pair(version)
                version = self.next_version()
            else:
                self.compare(version)
                self.has_pair = False
                version = self.next_version()
            cost = 1
            if self.bytes_read:
                cost += self.bytes_read * PAIRS_PER_LOOK // BYTES_PER_LOOK
                self.bytes_read = 0
            looks -= min(cost, looks)
        if version != NULL:
            self.store.history_seek(&self.at, version.mod_revision, version.sub)
        return True

    cdef Version *next_version(self) noexcept nogil:
        """The next one that the file is to have; NULL behind the last."""
        cdef Version *version = self.store.history_next(&self.at)
        if version != NULL and version.mod_revision > self.revision:
            self.store.history_seek(&self.at, version.mod_revision, version.sub)
            return NULL
        return version

    cdef bint next_pair(self) except -1 nogil:
        """Go to the next record and take it apart; False when there is none."""
        cdef bint found
        if self.keys is None:
            return False
        found = self.keys.to_next() if self.begun else self.keys.to_first()
        self.begun = True
        self.bytes_read += self.keys.bytes_read
        self.keys.bytes_read = 0
        if found:
            self.take_pair()
        return found

    cdef int take_pair(self) except -1 nogil:
        """The record that the cursor is at."""
        cdef Pair *pair = &self.pair
        memset(pair, 0, sizeof(Pair))
        if self.keys.is_bucket or not read_record_key(&self.keys.key, pair):
            return self.refuse(b"this is no revision")
        pair.is_bump = self.keys.value.size == 0 and not pair.tombstone
        if pair.revision > self.revision:
            return self.refuse(b"its revision is none that was saved")
        if not read_pair(&self.keys.value, pair):
            return self.refuse(b"it is no key-value")
        return 0

    cdef int compare(self, const Version *version) except -1 nogil:
        """A record and the version of the same revision."""
        cdef const Pair *pair = &self.pair
        if pair.tombstone != version_is_tombstone(version):
            return self.refuse(b"in memory it is another kind of record")
        if pair.key.size != version.key_size or (pair.key.size and memcmp(
                pair.key.data, version_key(version), pair.key.size)):
            return self.refuse(b"in memory it is of another key")
        if pair.tombstone or pair.is_bump:
            return 0
        if (pair.mod_revision != version.mod_revision or pair.version != version.version
                or pair.create_revision != version.create_revision):
            return self.refuse(b"in memory it has other numbers")
        if pair.lease != version_lease(version):
            return self.refuse(b"in memory it has another lease")
        if pair.value.size != version.value_size:
            return self.refuse(b"in memory its value has another size")
        if not version.flags & VERSION_MAPPED and pair.value.size and memcmp(
                pair.value.data, version_value(version), pair.value.size):
            return self.refuse(b"in memory it has another value")
        return 0

    cdef int without_version(self) except -1 nogil:
        """A record that memory has not."""
        cdef int64_t swept = self.store.finished_revision
        if self.store.sweeping:
            swept = max(swept, self.store.sweep_revision)
        if self.pair.revision >= swept:
            return self.refuse(b"in memory it is missing")
        return 0

    cdef int without_pair(self, const Version *version) except -1 nogil:
        """A version that the file has not."""
        cdef int64_t compacted = max(self.finished, self.store.compact_revision)
        if version.mod_revision < self.finished:
            if version_is_tombstone(version):
                return 0
            if version.newer != NULL and version.newer.mod_revision <= compacted:
                return 0
        with gil:
            raise BoltError(
                self.file.path, self.keys.page() if self.has_pair else 0,
                f"bucket key: revision {version.mod_revision}.{version.sub} is missing")

    cdef int refuse(self, const char *reason) except -1 nogil:
        """Raise what is wrong with the record that the cursor is at."""
        with gil:
            name = self.keys.key.data[:min(self.keys.key.size, <size_t>32)]
            what = f"record {name.hex()}"
            if len(name) >= RECORD_KEY:
                sub = int.from_bytes(name[RECORD_SUB_AT:RECORD_KEY], "big")
                what = f"revision {int.from_bytes(name[:8], 'big')}.{sub}"
            raise BoltError(
                self.file.path, self.keys.page(), f"bucket key: {what}: {reason.decode()}")

    # --- bytes --------------------------------------------------------------------------------

    cdef bint part_step(self, uint64_t looks) except -1 nogil:
        """Compare parts for about so long; False when that was the last."""
        cdef PartSum known
        cdef uint64_t offset, size
        cdef uint32_t crc
        while looks:
            offset = self.sums.start + self.part * PART_BYTES
            if offset >= self.bytes_saved:
                return False
            known = self.sums.part(self.part)
            size = known.size or min(<uint64_t>PART_BYTES, self.bytes_saved - offset)
            buffer_reserve(&self.bytes, PART_BYTES)
            self.file.read(self.bytes.data, size, offset)
            if known.size == 0:
                self.sums.take(offset, self.bytes.data, size)
            else:
                crc = crc32c(0, self.bytes.data, size)
                if crc != known.crc:
                    with gil:
                        raise BoltError(
                            self.file.path, offset // self.page_size,
                            f"bytes {offset} to {offset + size} are not what was written")
            self.part += 1
            looks -= min(1 + size // BYTES_PER_LOOK, looks)
        return True


cdef inline bint is_before(const Pair *pair, const Version *version) noexcept nogil:
    """Whether a record's revision is less than that of a version."""
    if pair.revision != version.mod_revision:
        return pair.revision < version.mod_revision
    return pair.sub < version.sub


cdef inline bint is_same(const Pair *pair, const Version *version) noexcept nogil:
    return pair.revision == version.mod_revision and pair.sub == version.sub
