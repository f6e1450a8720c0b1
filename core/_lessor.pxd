# cython: language_level=3
"""Leases: their table, their keys, and when they run out. See `_lessor.pyx` for the rules."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from quorate.core._arena cimport Arena
from quorate.core._bytes cimport Buffer
from quorate.core._version cimport LeaseLink, Version

cdef enum LeaseFlag:
    LEASE_EXPIRING = 1      # its revoke is in the log, or on the way to it
    LEASE_CHECKPOINTING = 2     # so is a checkpoint

cdef enum:
    # etcd's buckets of the TTLs granted: 1 s, 2 s ... 2^23 s, and above.
    TTL_BUCKETS = 25
    LEASE_NO_PLACE = 0xffffffff


cdef struct Lease:
    int64_t id
    int64_t ttl             # seconds, as granted
    int64_t remaining       # seconds, of the newest checkpoint; 0 = none
    int64_t expiry          # milliseconds; TIME_FOREVER unless this member is the primary
    Lease *chain            # the next one of the same bucket
    LeaseLink keys          # the ring of its keys' newest versions
    uint32_t place          # in the heap, or LEASE_NO_PLACE
    uint32_t flags          # LeaseFlag


cdef struct Due:
    # When a lease is to be looked at; never after it has to be, often before.
    int64_t time
    Lease *lease


cdef struct KeyRow:
    uint64_t prefix         # eight bytes of the key after what all keys of the lease share
    Version *version


cdef struct LeaseRow:
    int64_t expiry
    int64_t id


cdef struct SavedLease:
    # What the log has of a lease.
    int64_t id
    int64_t ttl
    int64_t remaining


cdef struct LeaseChange:
    # What the log has of it since an entry; a TTL of 0: it is revoked.
    SavedLease lease
    uint64_t order          # among all that are noted


cdef struct LeaseWalk:
    uint64_t bucket         # the next one
    bint is_new             # of `buckets`: those of `old_buckets` are walked


cdef class Lessor:
    cdef readonly Arena arena
    cdef public int64_t now             # milliseconds of the core's monotonic clock
    cdef public int64_t ttl_min         # seconds; shorter leases are granted so long
    cdef readonly bint is_primary       # leases run out here
    cdef readonly uint64_t count
    cdef int64_t paused_until           # milliseconds: nothing runs out before
    # Entries that expiry made and that are neither applied nor refused.
    cdef uint32_t proposed
    # Keep-alives that went through the log and are neither applied nor refused.
    cdef uint32_t renewing

    # Since the start.
    cdef readonly uint64_t granted
    cdef readonly uint64_t revoked
    cdef readonly uint64_t checkpoints      # of what is left of one
    cdef readonly uint64_t renewed
    cdef readonly uint64_t expired
    cdef readonly uint64_t ttl_sum
    cdef uint64_t ttl_counts[TTL_BUCKETS]

    # The table; while it changes its size, buckets from `moved` on are still the old one's.
    cdef Lease *last_found              # or NULL; asked for again at once, as a rule
    cdef Lease **buckets
    cdef uint64_t bucket_count          # a power of two
    cdef Lease **old_buckets            # NULL at rest
    cdef uint64_t old_count
    cdef uint64_t moved
    cdef public uint64_t seed           # of the hash; set before the first lease, or never

    # For the next checkpoint; see rule 8.
    cdef Buffer changes                 # LeaseChange, in order
    cdef readonly bint noting           # they are all since the last checkpoint, or the walk began
    cdef public bint walking            # somebody walks

    cdef Due *heap                      # four children each
    cdef uint32_t heap_count
    cdef uint32_t heap_capacity

    # Applying.
    cdef Lease *find(self, int64_t lease_id) noexcept nogil
    # An ErrorId, or 0.
    cdef uint16_t grant(self, int64_t lease_id, int64_t ttl) except? 0xffff nogil
    cdef void remove(self, Lease *lease) noexcept nogil         # without keys any more
    cdef void checkpoint(self, Lease *lease, int64_t remaining) noexcept nogil
    cdef void attach(self, int64_t lease_id, Version *version) noexcept nogil

    # Time.
    cdef int64_t renew(self, Lease *lease) noexcept nogil       # answers the TTL
    cdef void await_renewal(self, Lease *lease) noexcept nogil
    cdef int64_t remaining(self, const Lease *lease) noexcept nogil     # seconds
    cdef Lease *next_due(self) noexcept nogil                   # NULL: none, for now
    cdef void expire(self, Lease *lease) noexcept nogil
    cdef void unexpire(self, int64_t lease_id) noexcept nogil
    cdef int64_t begin_checkpoint(self, Lease *lease) noexcept nogil    # the remaining seconds

    # Lists.
    cdef int append_rows(self, Buffer *rows) except -1          # LeaseRow, in no order
    cdef int append_saved(self, Buffer *rows) except -1         # SavedLease, in no order
    cdef bint walk(self, LeaseWalk *at, uint64_t budget, Buffer *rows) except -1 nogil
    cdef uint64_t count_keys(self, const Lease *lease, uint64_t at_most) noexcept nogil
    cdef size_t keys_size(self, const Lease *lease) noexcept nogil      # memory to list its keys
    cdef int append_keys(self, const Lease *lease, Buffer *rows) except -1      # KeyRow, sorted

    # Private.
    cdef uint64_t _hash(self, int64_t lease_id) noexcept nogil
    cdef Lease **_bucket(self, int64_t lease_id) noexcept nogil
    cdef void _resize(self, uint64_t count) noexcept nogil
    cdef void _move_some(self, uint64_t buckets) noexcept nogil
    cdef void _forget(self) noexcept nogil
    cdef void _note(self, const Lease *lease, int64_t ttl) noexcept nogil
    cdef int64_t _due(self, const Lease *lease) noexcept nogil
    cdef bint _reserve_heap(self, uint32_t count) noexcept nogil
    cdef void _push(self, Lease *lease) noexcept nogil
    cdef void _take_out(self, Lease *lease) noexcept nogil
    cdef void _sift_up(self, uint32_t at) noexcept nogil
    cdef void _sift_down(self, uint32_t at) noexcept nogil
    cdef list _check_chain(self, Lease *lease, uint64_t bucket, uint64_t count)
    cdef _check_lease(self, Lease *lease)


cdef bint needs_log(const Lease *lease) noexcept nogil
