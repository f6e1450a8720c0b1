# cython: language_level=3
"""The multi-version store: keys, versions, revisions, compaction and hashes. No I/O, no clock.

See `_mvcc.pyx` for the rules. Sizes are bytes, revisions are etcd's main revisions. A range is
etcd's: `end_size` 0 is the one key, `end` b"\\0" is every key from `key` on, anything else is
[key, end). `Version` and its `version_*` functions can be cimported from here.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._arena cimport Arena
from quorate.core._bytes cimport Buffer
from quorate.core._history cimport History, HistoryCursor
from quorate.core._keytree cimport KeyTree, Leaf, Probe
from quorate.core._lessor cimport Lessor
from quorate.core._values cimport Values
from quorate.core._version cimport (
    Version,
    version_is_tombstone,
    version_key,
    version_key_size,
    version_lease,
    version_previous,
    version_size,
    version_value,
    version_value_size,
)

cdef enum:
    # As many hashes of finished compactions are remembered as etcd remembers.
    HASHES_STORED_MAX = 10
    # A budget for `compact_step` and `hash_step` between two batches: well under 100 microseconds.
    STEP_BUDGET = 200


cdef extern from *:
    """
    #define QUORATE_NOTHING_SAVED INT64_MAX
    """
    # In place of `saved_revision`: there is no file that newer versions are appended to.
    const int64_t NOTHING_SAVED "QUORATE_NOTHING_SAVED"


cdef struct Cursor:
    # A walk over the live keys of a range at one revision; private to the store. Borrows the memory
    # of `key` and `end` from the caller, who keeps it until the walk is over.
    const uint8_t *key
    const uint8_t *end
    size_t key_size
    size_t end_size
    int64_t revision        # 0 = newest, with the writes of the open transaction
    Version *last           # returned last, or NULL
    Leaf *leaf              # where to go on; NULL = the walk is over
    uint32_t index          # in `leaf`
    uint32_t stop           # the range ends in `leaf` before this index
    uint64_t changes        # the tree's counter for which leaf, index and stop hold


cdef struct HashState:
    int64_t revision            # the revision that is hashed (HashKV's hash_revision)
    int64_t compact_revision    # the compaction it takes as done (HashKV's compact_revision)
    uint32_t crc                # the result, once `hash_step` answered False
    # Private: etcd leaves nothing out when it finds no key to keep, so both ways are summed until
    # one is found.
    uint32_t crc_of_all
    bint seen_kept
    bint of_sweep               # of a compaction, which keeps a tombstone at its own revision
    bint holding                # compactions to newer revisions wait for `hash_end`
    int64_t held                # what `hold` answered
    bint done
    HistoryCursor at


cdef struct StoredHash:
    int64_t revision
    int64_t compact_revision
    uint32_t crc


cdef enum:
    # Compacted revisions that holders are told apart by; more of them count as the newest of these.
    HOLDS_MAX = 8


cdef struct Pin:
    int64_t revision
    uint64_t count


cdef class Store:
    cdef readonly int64_t revision              # current; 1 for an empty store
    cdef readonly int64_t compact_revision      # of the newest compaction, -1 before the first
    cdef readonly int64_t finished_revision     # of the newest one whose removal is done, or -1
    cdef public int64_t saved_revision          # a file has all up to here; nothing newer goes
    cdef readonly Arena arena
    cdef KeyTree tree
    cdef History history
    cdef readonly Values values                 # where the larger values lie
    cdef readonly Lessor lessor                 # the leases that keys hang on

    # Figures. Bytes of keys count once for every version, as in a backend file.
    cdef readonly uint64_t versions             # stored, tombstones included
    cdef readonly uint64_t key_bytes
    cdef readonly uint64_t value_bytes
    cdef uint64_t bucket_bytes                  # of all versions in a backend file's leaf pages

    # The open transaction.
    cdef bint writing
    cdef uint32_t sub                           # of its next write = writes so far

    # Pins, sorted by revision, and the compaction that runs.
    cdef Buffer pins
    cdef Pin[HOLDS_MAX] holds                   # hashes and long walks under way, the oldest first
    cdef uint32_t hold_count
    cdef uint64_t leftovers                     # versions below `finished_revision` that pins kept
    cdef int64_t queued_revision                # the sweep to come that makes a hash, or -1
    cdef bint sweeping
    cdef bint sweep_hashes                      # the running sweep makes a hash to remember
    cdef int64_t sweep_revision                 # what the running sweep compacts to
    cdef HashState sweep_hash
    cdef StoredHash[HASHES_STORED_MAX] hashes   # sorted by revision
    cdef int hash_count

    # -- The write transaction: one at a time, for committed entries only. A MemoryError leaves half
    #    a transaction behind: stop the process.
    cdef void begin(self) noexcept nogil
    cdef Version *put(
        self, const uint8_t *key, size_t key_size, const uint8_t *value, size_t value_size,
        int64_t lease,
    ) except NULL nogil
    # Deletes the live keys of the range and answers how many; `deleted` (or NULL) gets the Version*
    # of each, in key order.
    cdef int64_t delete_range(
        self, const uint8_t *key, size_t key_size, const uint8_t *end, size_t end_size,
        Buffer *deleted,
    ) except -1 nogil
    # Deletes a key by its newest version, which is no tombstone.
    cdef int delete_version(self, Version *live) except -1 nogil
    cdef void end(self) noexcept nogil
    # What `end` would make the revision now.
    cdef int64_t write_revision(self) noexcept nogil
    # The value of a version that is VERSION_OUTSIDE is read from `place` in a mapped file from now
    # on; not while a caller has its old address.
    cdef void map_value(self, Version *version, const uint8_t *place) noexcept nogil

    # -- Reads. Revision 0 = newest, with the open transaction's writes. The caller checks bounds.
    cdef Version *get(self, const uint8_t *key, size_t key_size, int64_t revision) noexcept nogil
    # The newest for `count` keys at a time.
    cdef void get_each(self, Probe *probes, int count) noexcept nogil
    cdef int64_t count(
        self, const uint8_t *key, size_t key_size, const uint8_t *end, size_t end_size,
        int64_t revision,
    ) noexcept nogil
    cdef void seek(
        self, Cursor *cursor, const uint8_t *key, size_t key_size, const uint8_t *end,
        size_t end_size, int64_t revision,
    ) noexcept nogil
    # The next live version in key order, NULL at the end. A walk that goes on after writes or
    # compaction steps needs its revision pinned (and not 0).
    cdef Version *next(self, Cursor *cursor) noexcept nogil
    cdef int pin(self, int64_t revision) except -1 nogil
    cdef void unpin(self, int64_t revision) noexcept nogil

    # -- History: versions by (revision, sub), tombstones included, as far as compaction left them.
    cdef void history_seek(
        self, HistoryCursor *cursor, int64_t revision, uint32_t sub
    ) noexcept nogil
    cdef Version *history_next(self, HistoryCursor *cursor) noexcept nogil

    # -- Compaction. `compact` answers an ErrorId or 0 and holds for readers at once; `compact_step`
    #    removes, about `budget` versions' worth of work (or KiB of values hashed), and answers
    #    whether it can do more now. `finished_revision` tells what is done.
    cdef int compact(self, int64_t revision) noexcept nogil
    cdef bint compact_step(self, uint64_t budget) noexcept nogil

    # -- HashKV. `hash_begin` (0 = the current revision) answers an ErrorId or 0; after 0 call
    #    `hash_step` until it answers False, then `hash_end`, also when giving up. Writes and
    #    compactions may go on in between.
    cdef int hash_begin(self, HashState *state, int64_t revision) noexcept nogil
    cdef bint hash_step(self, HashState *state, uint64_t budget) noexcept nogil
    cdef void hash_end(self, HashState *state) noexcept nogil
    # While anybody holds, no sweep begins beyond what the oldest holder found compacted: the answer
    # of `hold`, which `release_hold` is given.
    cdef int64_t hold(self) noexcept nogil
    cdef void release_hold(self, int64_t held) noexcept nogil

    # -- Figures, O(1).
    cdef int64_t live_keys(self) noexcept nogil
    cdef uint64_t db_size(self) noexcept nogil              # what a checkpoint would take
    cdef uint64_t db_size_in_use(self) noexcept nogil

    # -- Private.
    cdef Version *_new_version(self, size_t key_size, size_t size) except NULL nogil
    cdef void _release(self, Version *version) noexcept nogil
    cdef void _add(self, Version *version, Version *previous) noexcept nogil
    cdef void _drop(self, Version *version) noexcept nogil
    cdef Version *_delete(self, Version *live) except NULL nogil
    cdef bint _reads_newest(self, int64_t revision) noexcept nogil
    cdef void _reseek(self, Cursor *cursor) noexcept nogil
    cdef uint32_t _stop(self, Cursor *cursor) noexcept nogil
    cdef bint _pinned(self, int64_t first, int64_t limit) noexcept nogil
    cdef bint _sweep_begin(self) noexcept nogil
    cdef void _sweep_one(self, Version *version) noexcept nogil
    cdef void _sweep_end(self) noexcept nogil
    cdef void _store_hash(self, HashState *state) noexcept nogil
    cdef bint _is_leftover(self, const Version *version) noexcept
    cdef _check_version(self, const Version *version)
    cdef _check_hold(self, Version *version, where)
