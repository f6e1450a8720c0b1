"""Leases: their table, their keys, and when they run out; no I/O, no clock.

Rules:
1. A lease is one block of 64 bytes; there is no Python object for it. It is found by its id in a
   hash table with chains, half full at most, which grows and shrinks some buckets at a time.
2. A key hangs on at most one lease. The newest versions of a lease's keys are a ring through the
   versions themselves and the lease (`core/_version.pxd`), so that a key leaves without a search.
   The store keeps the rings right (`Store.put`, `delete_range`, `delete_version`).
3. Time is `now`, which the caller moves on; it never goes back. Only the primary lessor, that of
   the leader, lets leases run out: elsewhere they last for ever. `promote` gives each lease what
   its newest checkpoint left it, or all of its TTL, from now on.
4. The heap tells which lease to look at next. A keep-alive does not touch it: a lease that is
   looked at too early goes to where it belongs by then. What is to be done is read from the lease.
5. A lease is to be looked at when it runs out, or when its log says CHECKPOINT_SECONDS more than is
   true: then a checkpoint is due, so that a restart does not give it that time again. A lease that
   is kept alive more often than that needs none.
6. `expire` marks a lease: its revoke is on the way into the log. Until that is applied, or refused,
   nothing is proposed for it again, for a client may grant the same id anew behind it.
7. A lease whose checkpoint is in the log, or on the way, has less time there than a keep-alive
   would promise: its keep-alive has to go through the log, too (`needs_log`). One that came in
   time counts from then on (`await_renewal`): no revoke is put behind it into the log meanwhile.
8. What the log says of leases is noted, change by change, for the file that has all that came
   before (`note_changes`). When that becomes too much beside the leases themselves, all is dropped
   (`forget_changes`): then somebody has to walk over all leases again. While somebody does, every
   change is noted, and the table does not begin to change its size, so that none is passed by.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memcmp

from quorate.core import limits
from quorate.core._arena cimport Arena
from quorate.core._bytes cimport (
    Buffer, buffer_append, buffer_free, buffer_reserve, load_be64,
)
from quorate.core._errors cimport (
    ERROR_LEASE_EXISTS, ERROR_LEASE_NOT_FOUND, ERROR_LEASE_TTL_TOO_LARGE, ERROR_NONE,
)
from quorate.core._keytree cimport compare_keys
from quorate.core._version cimport (
    Version, link_at, ring_add, ring_open, version_is_tombstone, version_key,
    version_key_size, version_lease,
)

cdef enum:
    BUCKETS_MIN = 256
    # Eight pointers are a cache line.
    LINE_BITS = 3
    LINE_MASK = 7
    # Buckets moved with every grant or revoke while the table changes its size: done before the
    # next change can begin.
    MOVED_PER_STEP = 8
    HEAP_MIN = 256
    CHILDREN = 4
    # Tag and size of a key in a reply, about.
    KEY_OVERHEAD = 4
    # How long nothing runs out after a revoke was refused, because the log is full.
    REFUSED_MILLISECONDS = 200
    # etcd's interval of checkpoints (defaultLeaseCheckpointInterval).
    CHECKPOINT_SECONDS = 300
    # Changes noted before their memory grows for the first time.
    CHANGES_FIRST = 128
    # They may be one for so many leases, and LEASE_CHANGES_MIN in any case.
    LEASES_PER_CHANGE = 4

cdef int64_t TTL_MAX = 9000000000       # seconds; etcd's MaxLeaseTTL
cdef int64_t TIME_FOREVER = 0x7fffffffffffffff
cdef uint64_t CHANGES_MIN = limits.LEASE_CHANGES_MIN


cdef class Lessor:
    """All leases of a member."""

    def __cinit__(self):
        self.arena = Arena()
        self.ttl_min = 1
        self.bucket_count = BUCKETS_MIN
        self.buckets = <Lease **>calloc(BUCKETS_MIN, sizeof(Lease *))
        if self.buckets == NULL:
            raise MemoryError("no memory for a table of leases")
        # An address, which no client knows: nobody can fill one bucket with chosen ids. All that
        # depends on it is the order in which leases go that run out at the same moment.
        self.seed = <uintptr_t>self.buckets

    def __dealloc__(self):
        free(self.buckets)
        free(self.old_buckets)
        free(self.heap)
        buffer_free(&self.changes)

    # -- applying

    cdef Lease *find(self, int64_t lease_id) noexcept nogil:
        """The lease, or NULL."""
        cdef Lease *lease = self.last_found
        if lease != NULL and lease.id == lease_id:
            return lease
        lease = self._bucket(lease_id)[0]
        while lease != NULL and lease.id != lease_id:
            lease = lease.chain
        if lease != NULL:
            self.last_found = lease
        return lease

    cdef uint16_t grant(self, int64_t lease_id, int64_t ttl) except? 0xffff nogil:
        """Make a lease; answers an ErrorId or 0. etcd's order of checks."""
        cdef Lease *lease
        cdef Lease **bucket
        cdef int at = 0
        if lease_id == 0:
            return ERROR_LEASE_NOT_FOUND
        if ttl > TTL_MAX:
            return ERROR_LEASE_TTL_TOO_LARGE
        if self.find(lease_id) != NULL:
            return ERROR_LEASE_EXISTS
        lease = <Lease *>self.arena.allocate(sizeof(Lease))
        if lease == NULL or (self.is_primary and not self._reserve_heap(self.heap_count + 1)):
            with gil:
                raise MemoryError(f"no memory for a lease beside {self.count} others")
        bucket = self._bucket(lease_id)
        lease.id = lease_id
        lease.ttl = max(ttl, self.ttl_min)
        lease.remaining = 0
        lease.expiry = TIME_FOREVER
        lease.place = LEASE_NO_PLACE
        lease.flags = 0
        lease.chain = bucket[0]
        bucket[0] = lease
        ring_open(&lease.keys)
        self.count += 1
        self.granted += 1
        self.ttl_sum += <uint64_t>lease.ttl
        while at < TTL_BUCKETS - 1 and lease.ttl > <int64_t>1 << at:
            at += 1
        self.ttl_counts[at] += 1
        if self.is_primary:
            lease.expiry = self.now + lease.ttl * 1000
            self._push(lease)
        self._note(lease, lease.ttl)
        self._move_some(MOVED_PER_STEP)
        if self.count * 2 > self.bucket_count:
            self._resize(self.bucket_count * 2)
        return ERROR_NONE

    cdef void remove(self, Lease *lease) noexcept nogil:
        """The lease is revoked and its keys are deleted."""
        cdef Lease **at = self._bucket(lease.id)
        while at[0] != lease:
            at = &at[0].chain
        at[0] = lease.chain
        self.last_found = NULL
        self._take_out(lease)
        if lease.flags & LEASE_EXPIRING:
            self.expired += 1
        self.count -= 1
        self.revoked += 1
        self._note(lease, 0)
        self.arena.release(lease, sizeof(Lease))
        self._move_some(MOVED_PER_STEP)
        if self.count * 16 < self.bucket_count and self.bucket_count > BUCKETS_MIN:
            self._resize(self.bucket_count // 2)

    cdef void checkpoint(self, Lease *lease, int64_t remaining) noexcept nogil:
        """What the log says is left of it; counts when this member is next promoted."""
        cdef int64_t due
        self.checkpoints += 1
        lease.remaining = remaining
        lease.flags &= ~<uint32_t>LEASE_CHECKPOINTING
        self._note(lease, lease.ttl)
        if lease.place == LEASE_NO_PLACE:
            return
        due = self._due(lease)
        if due < self.heap[lease.place].time:
            self.heap[lease.place].time = due
            self._sift_up(lease.place)

    cdef void attach(self, int64_t lease_id, Version *version) noexcept nogil:
        """Hang a key's newest version, which names the lease, on it."""
        cdef Lease *lease = self.find(lease_id)
        if lease != NULL:
            ring_add(&lease.keys, version)

    # -- time

    def promote(self):
        """Be the primary from now on: every lease has what its checkpoint left it, from now on."""
        cdef uint64_t i
        cdef uint32_t at
        cdef Lease *lease
        self.is_primary = True
        self.proposed = self.renewing = 0
        self.heap_count = 0
        if not self._reserve_heap(<uint32_t>self.count):
            raise MemoryError(f"no memory for a heap of {self.count} leases")
        for i in range(self.old_count + self.bucket_count):
            lease = self.old_buckets[i] if i < self.old_count else self.buckets[i - self.old_count]
            while lease != NULL:
                lease.expiry = self.now + recorded(lease) * 1000
                lease.flags = 0
                lease.place = self.heap_count
                self.heap[self.heap_count].lease = lease
                self.heap[self.heap_count].time = self._due(lease)
                self.heap_count += 1
                lease = lease.chain
        for at in range(self.heap_count // CHILDREN + 1, 0, -1):
            if at - 1 < self.heap_count:
                self._sift_down(at - 1)

    def demote(self):
        """Let others say when leases run out."""
        cdef uint64_t i
        cdef Lease *lease
        self.is_primary = False
        self.heap_count = 0
        for i in range(self.old_count + self.bucket_count):
            lease = self.old_buckets[i] if i < self.old_count else self.buckets[i - self.old_count]
            while lease != NULL:
                lease.expiry = TIME_FOREVER
                lease.place = LEASE_NO_PLACE
                lease = lease.chain

    def due(self):
        """When to come back at the latest, in milliseconds of the clock; None: there is no lease.
        """
        if self.heap_count == 0:
            return None
        return max(self.heap[0].time, self.paused_until)

    def hold_back(self, int64_t milliseconds):
        """Nothing runs out for so long."""
        self.paused_until = max(self.paused_until, self.now + milliseconds)

    cdef int64_t renew(self, Lease *lease) noexcept nogil:
        """All of its TTL again; the heap learns of it when it looks."""
        if self.is_primary:
            lease.expiry = self.now + lease.ttl * 1000
        self.renewed += 1
        return lease.ttl

    cdef void await_renewal(self, Lease *lease) noexcept nogil:
        """A keep-alive is on its way into the log; it counts from now on, unless it comes too late.
        """
        if self.is_primary and not lease.flags & LEASE_EXPIRING:
            lease.expiry = self.now + lease.ttl * 1000

    cdef int64_t remaining(self, const Lease *lease) noexcept nogil:
        """Whole seconds that are left; as in etcd less than was granted, from the first moment on.
        """
        cdef int64_t left = lease.expiry - self.now
        return (left - 1) // 1000 if left > 0 else 0

    cdef Lease *next_due(self) noexcept nogil:
        """A lease that has run out or wants a checkpoint, which the caller then sees to."""
        cdef Lease *lease
        cdef int64_t due
        if self.now < self.paused_until:
            return NULL
        while self.heap_count and self.heap[0].time <= self.now:
            lease = self.heap[0].lease
            due = self._due(lease)
            if due <= self.now:
                return lease
            self.heap[0].time = due
            self._sift_down(0)
        return NULL

    cdef void expire(self, Lease *lease) noexcept nogil:
        """Its revoke is on the way: nothing renews it any more."""
        lease.flags |= LEASE_EXPIRING
        self._take_out(lease)

    cdef void unexpire(self, int64_t lease_id) noexcept nogil:
        """Its revoke was refused: look again, but not at once, for it may be again."""
        cdef Lease *lease = self.find(lease_id)
        self.paused_until = max(self.paused_until, self.now + REFUSED_MILLISECONDS)
        if lease != NULL and lease.flags & LEASE_EXPIRING:
            lease.flags &= ~<uint32_t>LEASE_EXPIRING
            if self.is_primary and self._reserve_heap(self.heap_count + 1):
                self._push(lease)

    cdef int64_t begin_checkpoint(self, Lease *lease) noexcept nogil:
        """A checkpoint is on the way; one that never arrives is made again after the interval."""
        lease.flags |= LEASE_CHECKPOINTING
        self.heap[lease.place].time = min(lease.expiry, self.now + CHECKPOINT_SECONDS * 1000)
        self._sift_down(lease.place)
        return (lease.expiry - self.now + 999) // 1000

    cdef int64_t _due(self, const Lease *lease) noexcept nogil:
        """When to look at it: rule 5."""
        cdef int64_t seconds = recorded(lease)
        if seconds <= CHECKPOINT_SECONDS:
            return lease.expiry
        return lease.expiry - (seconds - CHECKPOINT_SECONDS) * 1000

    # -- lists

    cdef int append_rows(self, Buffer *rows) except -1:
        """Expiry and id of every lease, in no order."""
        cdef uint64_t i
        cdef Lease *lease
        cdef LeaseRow *row
        buffer_reserve(rows, self.count * sizeof(LeaseRow))
        row = <LeaseRow *>(rows.data + rows.size)
        rows.size += self.count * sizeof(LeaseRow)
        for i in range(self.old_count + self.bucket_count):
            lease = self.old_buckets[i] if i < self.old_count else self.buckets[i - self.old_count]
            while lease != NULL:
                row.expiry = lease.expiry
                row.id = lease.id
                row += 1
                lease = lease.chain
        return 0

    cdef int append_saved(self, Buffer *rows) except -1:
        """What the log has of every lease, in no order."""
        cdef LeaseWalk at = LeaseWalk(0, False)
        buffer_reserve(rows, self.count * sizeof(SavedLease))
        self.walk(&at, <uint64_t>-1, rows)
        return 0

    cdef bint walk(self, LeaseWalk *at, uint64_t budget, Buffer *rows) except -1 nogil:
        """What the log has of the leases of some buckets more; False when all were walked.

        Not all of one moment, and some twice: rule 8. Buckets and leases count, about 50 ns each.
        """
        cdef SavedLease saved
        cdef Lease *lease
        while budget:
            if not at.is_new and at.bucket >= self.old_count:
                at.is_new = True
                at.bucket = 0
            if at.is_new and at.bucket == self.bucket_count:
                return False
            lease = self.buckets[at.bucket] if at.is_new else self.old_buckets[at.bucket]
            at.bucket += 1
            budget -= 1
            while lease != NULL:
                saved = SavedLease(lease.id, lease.ttl, lease.remaining)
                buffer_append(rows, <const uint8_t *>&saved, sizeof(SavedLease))
                lease = lease.chain
                budget -= 1 if budget else 0
        return True

    # -- changes

    def note_changes(self):
        """There is a file with all up to now: note what comes from now on."""
        self._forget()
        self.noting = True

    def forget_changes(self):
        """There is no such file."""
        self._forget()

    cdef void _forget(self) noexcept nogil:
        self.noting = False
        buffer_free(&self.changes)

    cdef void _note(self, const Lease *lease, int64_t ttl) noexcept nogil:
        """Note what the log has of a lease now. Without memory all is forgotten."""
        cdef Buffer *changes = &self.changes
        cdef uint64_t count = changes.size // sizeof(LeaseChange)
        cdef size_t capacity = max(2 * changes.capacity, CHANGES_FIRST * sizeof(LeaseChange))
        cdef uint8_t *data
        if not self.noting:
            return
        if count >= max(CHANGES_MIN, self.count // LEASES_PER_CHANGE) and not self.walking:
            self._forget()
            return
        if changes.size == changes.capacity:
            data = <uint8_t *>realloc(changes.data, capacity)
            if data == NULL:
                self._forget()
                return
            changes.data = data
            changes.capacity = capacity
        (<LeaseChange *>(changes.data + changes.size))[0] = LeaseChange(
            SavedLease(lease.id, ttl, lease.remaining), count)
        changes.size += sizeof(LeaseChange)

    cdef uint64_t count_keys(self, const Lease *lease, uint64_t at_most) noexcept nogil:
        """How many keys hang on it; counts no further than `at_most`."""
        cdef uintptr_t place = lease.keys.next
        cdef uint64_t count = 0
        while not place & 1 and count < at_most:
            count += 1
            place = link_at(place).next
        return count

    cdef size_t keys_size(self, const Lease *lease) noexcept nogil:
        """Bytes of memory that it takes to list its keys."""
        cdef uintptr_t place = lease.keys.next
        cdef size_t size = 0
        while not place & 1:
            size += sizeof(KeyRow) + version_key_size(<const Version *>place) + KEY_OVERHEAD
            place = link_at(place).next
        return size

    cdef int append_keys(self, const Lease *lease, Buffer *rows) except -1:
        """The keys that hang on it, sorted, so that all members delete them in the same order."""
        cdef size_t first = rows.size
        cdef size_t count
        cdef size_t shared = 0
        cdef uintptr_t place = lease.keys.next
        cdef KeyRow *row
        cdef Version *version
        while not place & 1:
            version = <Version *>place
            buffer_reserve(rows, sizeof(KeyRow))
            row = <KeyRow *>(rows.data + rows.size)
            row.version = version
            if rows.size == first:
                shared = version_key_size(version)
            else:
                shared = shared_prefix((<KeyRow *>(rows.data + first)).version, version, shared)
            rows.size += sizeof(KeyRow)
            place = link_at(place).next
        row = <KeyRow *>(rows.data + first)
        count = (rows.size - first) // sizeof(KeyRow)
        for i in range(count):
            row[i].prefix = prefix_of(row[i].version, shared)
        if count > 1:
            qsort(row, count, sizeof(KeyRow), compare_rows)
        return 0

    # -- the table

    cdef uint64_t _hash(self, int64_t lease_id) noexcept nogil:
        # The last steps of MurmurHash3, which spread all bits; but ids that follow one another, as
        # those that the server chooses do, share a cache line of buckets.
        cdef uint64_t x = (<uint64_t>lease_id >> LINE_BITS) ^ self.seed
        x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu
        x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u
        return (x ^ (x >> 33)) << LINE_BITS | (<uint64_t>lease_id & LINE_MASK)

    cdef Lease **_bucket(self, int64_t lease_id) noexcept nogil:
        """Where the chain with this id begins."""
        cdef uint64_t hashed = self._hash(lease_id)
        if self.old_buckets != NULL and (hashed & (self.old_count - 1)) >= self.moved:
            return &self.old_buckets[hashed & (self.old_count - 1)]
        return &self.buckets[hashed & (self.bucket_count - 1)]

    cdef void _resize(self, uint64_t count) noexcept nogil:
        """Begin to change the table's size; without memory it stays as it is, only slower."""
        cdef Lease **buckets
        if self.old_buckets != NULL or self.walking:
            return
        buckets = <Lease **>calloc(count, sizeof(Lease *))
        if buckets == NULL:
            return
        self.old_buckets = self.buckets
        self.old_count = self.bucket_count
        self.buckets = buckets
        self.bucket_count = count
        self.moved = 0

    cdef void _move_some(self, uint64_t buckets) noexcept nogil:
        """Go on with a change of size."""
        cdef Lease *lease
        cdef Lease *following
        cdef Lease **bucket
        if self.old_buckets == NULL:
            return
        while buckets and self.moved < self.old_count:
            lease = self.old_buckets[self.moved]
            self.old_buckets[self.moved] = NULL
            self.moved += 1
            buckets -= 1
            while lease != NULL:
                following = lease.chain
                bucket = self._bucket(lease.id)
                lease.chain = bucket[0]
                bucket[0] = lease
                lease = following
        if self.moved == self.old_count:
            free(self.old_buckets)
            self.old_buckets = NULL
            self.old_count = 0

    # -- the heap

    cdef bint _reserve_heap(self, uint32_t count) noexcept nogil:
        """Room for so many; False without memory."""
        cdef uint32_t capacity = max(self.heap_capacity, <uint32_t>HEAP_MIN)
        cdef Due *heap
        while capacity < count:
            capacity *= 2
        if capacity == self.heap_capacity:
            return True
        heap = <Due *>realloc(self.heap, capacity * sizeof(Due))
        if heap == NULL:
            return False
        self.heap = heap
        self.heap_capacity = capacity
        return True

    cdef void _push(self, Lease *lease) noexcept nogil:
        """Into the heap, which has room."""
        cdef uint32_t at = self.heap_count
        self.heap_count += 1
        self.heap[at].lease = lease
        self.heap[at].time = self._due(lease)
        lease.place = at
        self._sift_up(at)

    cdef void _take_out(self, Lease *lease) noexcept nogil:
        """Out of the heap, if it is there; a heap that is nearly empty gives memory back."""
        cdef uint32_t at = lease.place
        cdef Due *heap
        if at == LEASE_NO_PLACE:
            return
        lease.place = LEASE_NO_PLACE
        self.heap_count -= 1
        if at < self.heap_count:
            self.heap[at] = self.heap[self.heap_count]
            self.heap[at].lease.place = at
            self._sift_up(at)
            self._sift_down(self.heap[at].lease.place)
        if self.heap_capacity > HEAP_MIN and self.heap_count < self.heap_capacity // 8:
            heap = <Due *>realloc(self.heap, self.heap_capacity // 2 * sizeof(Due))
            if heap != NULL:
                self.heap = heap
                self.heap_capacity //= 2

    cdef void _sift_up(self, uint32_t at) noexcept nogil:
        cdef Due due = self.heap[at]
        cdef uint32_t parent
        while at:
            parent = (at - 1) // CHILDREN
            if self.heap[parent].time <= due.time:
                break
            self.heap[at] = self.heap[parent]
            self.heap[at].lease.place = at
            at = parent
        self.heap[at] = due
        due.lease.place = at

    cdef void _sift_down(self, uint32_t at) noexcept nogil:
        cdef Due due = self.heap[at]
        cdef uint32_t child
        cdef uint32_t least
        cdef uint32_t end
        while True:
            least = at * CHILDREN + 1
            if least >= self.heap_count:
                break
            end = min(least + CHILDREN, self.heap_count)
            for child in range(least + 1, end):
                if self.heap[child].time < self.heap[least].time:
                    least = child
            if self.heap[least].time >= due.time:
                break
            self.heap[at] = self.heap[least]
            self.heap[at].lease.place = at
            at = least
        self.heap[at] = due
        due.lease.place = at

    # -- figures and invariants

    def metrics(self):
        """What was granted, revoked, renewed and expired, and TTLs granted by bucket."""
        return (
            self.granted, self.revoked, self.renewed, self.expired,
            [self.ttl_counts[i] for i in range(TTL_BUCKETS)], self.ttl_sum,
        )

    def memory(self):
        """Bytes for all leases: blocks, table and heap."""
        return (
            self.arena.used_bytes + (self.bucket_count + self.old_count) * sizeof(Lease *)
            + self.heap_capacity * sizeof(Due) + self.changes.capacity
        )

    def check(self):
        """Walk everything; AssertionError when a rule is broken."""
        cdef uint64_t i
        cdef uint32_t at
        cdef uint32_t parent
        cdef uint64_t known
        ids = []
        for i in range(self.old_count):
            ids += self._check_chain(self.old_buckets[i], i, self.old_count)
            _check(i >= self.moved or self.old_buckets[i] == NULL, "a bucket was not moved", i)
        for i in range(self.bucket_count):
            ids += self._check_chain(self.buckets[i], i, self.bucket_count)
        known = <uint64_t>len(set(ids))
        _check(len(ids) == len(set(ids)) and known == self.count, "count", (ids, self.count))
        _check(self.arena.blocks == self.count, "blocks", (self.arena.blocks, self.count))
        for at in range(self.heap_count):
            _check(self.heap[at].lease.place == at, "place", at)
            _check(self.heap[at].time <= self._due(self.heap[at].lease)
                   or self.heap[at].lease.flags & LEASE_CHECKPOINTING, "looked at too late", (
                       self.heap[at].time, self.heap[at].lease.id))
            parent = (at - 1) // CHILDREN if at else 0
            _check(self.heap[parent].time <= self.heap[at].time, "heap", at)
        self.arena.check()

    cdef list _check_chain(self, Lease *lease, uint64_t bucket, uint64_t count):
        ids = []
        while lease != NULL:
            _check(self._hash(lease.id) & (count - 1) == bucket, "bucket", lease.id)
            _check(self.find(lease.id) == lease, "a lease is not found", lease.id)
            self._check_lease(lease)
            ids.append(lease.id)
            lease = lease.chain
        return ids

    cdef _check_lease(self, Lease *lease):
        cdef uintptr_t place = lease.keys.next
        cdef uintptr_t prior = <uintptr_t>&lease.keys | 1
        cdef Version *version
        in_heap = lease.place != LEASE_NO_PLACE
        expected = self.is_primary and not lease.flags & LEASE_EXPIRING
        _check(in_heap == expected, "in the heap", lease.id)
        _check(self.is_primary or lease.expiry == TIME_FOREVER, "expiry", lease.id)
        _check(not in_heap or self.heap[lease.place].lease == lease, "place", lease.id)
        while not place & 1:
            version = <Version *>place
            _check(link_at(place).prior == prior, "ring", lease.id)
            _check(version.newer == NULL and not version_is_tombstone(version), "old key", lease.id)
            _check(version_lease(version) == lease.id, "lease of a key", lease.id)
            prior = place
            place = link_at(place).next
        _check(link_at(place) == &lease.keys and lease.keys.prior == prior, "ring", lease.id)


cdef bint needs_log(const Lease *lease) noexcept nogil:
    """Whether a keep-alive must be in the log before it is answered: rule 7, and rule 6."""
    return lease.remaining > 0 or lease.flags != 0


cdef inline int64_t recorded(const Lease *lease) noexcept nogil:
    """The seconds that a restart would give it; a checkpoint may hold any number."""
    if lease.remaining > 0:
        return min(lease.remaining, TTL_MAX)
    return lease.ttl


cdef size_t shared_prefix(const Version *a, const Version *b, size_t at_most) noexcept nogil:
    """Bytes that two keys begin with alike, up to `at_most`."""
    cdef size_t i = 0
    at_most = min(at_most, version_key_size(b))
    if at_most == 0 or memcmp(version_key(a), version_key(b), at_most) == 0:
        return at_most
    while version_key(a)[i] == version_key(b)[i]:
        i += 1
    return i


cdef uint64_t prefix_of(const Version *version, size_t shared) noexcept nogil:
    """Eight bytes of the key after those that all share, for a quick comparison."""
    cdef uint64_t prefix = 0
    cdef size_t i
    cdef size_t size = version_key_size(version)
    if shared + 8 <= size:
        return load_be64(version_key(version) + shared)
    for i in range(8):
        prefix = prefix << 8 | (version_key(version)[shared + i] if shared + i < size else 0)
    return prefix


cdef int compare_rows(const void *a, const void *b) noexcept nogil:
    cdef const KeyRow *one = <const KeyRow *>a
    cdef const KeyRow *two = <const KeyRow *>b
    if one.prefix != two.prefix:
        return -1 if one.prefix < two.prefix else 1
    return compare_keys(
        version_key(one.version), version_key_size(one.version),
        version_key(two.version), version_key_size(two.version))


cdef _check(bint holds, what, where):
    """An `assert` that release builds keep."""
    if not holds:
        raise AssertionError(f"lessor: {what}: {where!r}")
