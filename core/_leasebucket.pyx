"""The bucket `lease` of a backend file, from one moment's leases.

Rules:
1. The moment is `take`. No turn copies all leases: a walk, in steps, copies each as it is when it
   comes by, and the lessor notes all changes meanwhile. The newest change of a lease counts, then
   what the walk saw.
2. There is no walk when the file is gone on with and the lessor noted all changes since: then those
   leaves are written anew in which a lease changed. The others stay, and are not even read.
3. Leaves that are written anew between others are evenly full, at least by half; one that would be
   less than a quarter takes the next one in. Where most leaves have changes, all are written, and
   as full as at first: an eighth is left for what comes.
4. `write` is all that takes long: sorting, reading, writing. It may run in another thread, without
   the GIL; nothing else touches what it works on.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort

from quorate.core import limits
from quorate.core._bolt cimport Bucket, Cursor, Frame
from quorate.core._boltpage cimport (
    ELEMENT_BYTES, HEADER_BYTES, branch_child, branch_key, leaf_key, leaf_value,
)
from quorate.core._boltwriter cimport node_size
from quorate.core._bytes cimport Buffer, buffer_append, buffer_free, buffer_reserve, load_be64
from quorate.core._leaserecord cimport (
    LEASE_KEY, LEASE_VALUE_MAX, compare_leases, read_lease, write_lease,
)
from quorate.core._protobuf cimport Span

from quorate.core.errors import Fatal

cdef enum:
    ROW_BYTES_MAX = ELEMENT_BYTES + LEASE_KEY + LEASE_VALUE_MAX

cdef uint64_t LEAF_BYTES = limits.LEASE_LEAF_BYTES
cdef const char *UNEVEN = b"the leaves of its bucket are not all equally deep"


cdef class LeaseBucket:
    """One checkpoint's leases."""

    def __init__(self, Lessor lessor not None, *, bint whole):
        """With `whole`, there is no file to go on with."""
        assert not lessor.walking, "leases are walked for another checkpoint"
        self.lessor = lessor
        self.is_whole = whole or not lessor.noting
        if self.is_whole:
            lessor.note_changes()
            lessor.walking = self.walking = True
            buffer_reserve(&self.rows, lessor.count * sizeof(SavedLease))

    def __dealloc__(self):
        buffer_free(&self.rows)
        buffer_free(&self.changes)
        buffer_free(&self.region)

    def close(self):
        """Give up, or give back what was needed."""
        if self.walking:
            self.walking = self.lessor.walking = False
        buffer_free(&self.rows)
        buffer_free(&self.changes)
        buffer_free(&self.region)
        self.leaves = None
        self.writer = None

    def step(self, uint64_t budget):
        """Walk on over so many buckets and leases; False when `take` may come."""
        cdef bint more = False
        if self.walking:
            with nogil:
                more = self.lessor.walk(&self.at, budget, &self.rows)
        return more

    def take(self):
        """What is written is the leases as they are now. Raises Fatal."""
        if not self.lessor.noting:
            raise Fatal(f"no memory for changes of leases beside {self.lessor.count} of these")
        if self.walking:
            self.walking = self.lessor.walking = False
        self.changes = self.lessor.changes
        self.lessor.changes = Buffer(NULL, 0, 0)

    def write(self, BoltWriter writer not None):
        """Write the bucket, unless it may stay as it is. Raises Fatal, DiskError."""
        cdef Bucket bucket
        cdef Span name = Span(<const uint8_t *>b"lease", 5)
        cdef bint found = False
        if not self.is_whole:
            if self.changes.size == 0:
                return
            found = writer.bolt.find_bucket(name, &bucket)
        if found:
            self.leaves = Cursor.__new__(Cursor)
            self.leaves.over(writer.bolt, bucket)
        self.writer = writer
        writer.begin(b"lease", leaf_size=LEAF_BYTES)
        with nogil:
            self._write(found)
        writer.end()
        self.close()

    cdef int _write(self, bint found) except -1 nogil:
        self._sort()
        if self.is_whole:
            return self._write_rows()
        if found:
            return self._merge_leaves()
        while self.change < self.changes_end:
            self._take_change()
        return self._write_region(True)

    cdef void _sort(self) noexcept nogil:
        """The newest change of each lease, in order of ids; rows, too."""
        cdef uint64_t count = self.changes.size // sizeof(LeaseChange)
        cdef LeaseChange *changes = <LeaseChange *>self.changes.data
        cdef LeaseChange *kept = changes
        cdef uint64_t i
        if self.rows.size:
            qsort(self.rows.data, self.rows.size // sizeof(SavedLease), sizeof(SavedLease), by_id)
        if count:
            qsort(changes, count, sizeof(LeaseChange), by_change)
        for i in range(count):
            if i + 1 == count or changes[i].lease.id != changes[i + 1].lease.id:
                kept[0] = changes[i]
                kept += 1
        self.change = changes
        self.changes_end = kept

    # --- all leases ---------------------------------------------------------------------------

    cdef int _write_rows(self) except -1 nogil:
        cdef const SavedLease *row = <const SavedLease *>self.rows.data
        cdef const SavedLease *end = row + self.rows.size // sizeof(SavedLease)
        while row < end:
            self._merge_row(row)
            row += 1
            # A lease that the table moved during the walk is there twice; both are the same, or
            # there is a change.
            while row < end and row.id == (row - 1).id:
                row += 1
            if self.region_size >= LEAF_BYTES:
                self._write_region(True)
        while self.change < self.changes_end:
            self._take_change()
        return self._write_region(True)

    # --- what changed -------------------------------------------------------------------------

    cdef int _merge_leaves(self) except -1 nogil:
        """Leaves with changes are written anew, others stay."""
        cdef Frame *above
        cdef Span high
        cdef bint more = True
        cdef bint is_refill = self._most_change()
        self._first_leaf()
        while more:
            high = self._leaf_high()
            if is_refill or self.region.size or self._has_change(high):
                self._merge_leaf(high)
            else:
                above = &self.leaves.frames[self.leaf_depth - 1]
                self.writer.keep_leaf(
                    branch_key(above.page, above.index), branch_child(above.page, above.index))
            more = self._next_leaf()
            if is_refill or not more:
                self._write_region(True)
            elif self.region_size >= LEAF_BYTES // 4:
                self._write_region(False)
        return 0

    cdef bint _most_change(self) except -1 nogil:
        """Whether more than half of the leaves have changes. The only one has."""
        cdef LeaseChange *first = self.change
        cdef Span high
        cdef uint64_t leaves = 0
        cdef uint64_t changed = 0
        cdef bint more = True
        self._first_leaf()
        while more:
            high = self._leaf_high()
            leaves += 1
            changed += self._has_change(high)
            while self._has_change(high):
                self.change += 1
            more = self._next_leaf()
        self.change = first
        return 2 * changed > leaves

    cdef int _merge_leaf(self, Span high) except -1 nogil:
        """A leaf of the file, with its changes, goes to the region."""
        cdef Frame root
        cdef Frame *leaf = &root
        cdef SavedLease row
        cdef const char *reason
        cdef uint32_t i
        if self.leaf_depth == 0:
            leaf = &self.leaves.frames[0]
        else:
            self.leaves.bolt.enter_child(leaf, &self.leaves.frames[self.leaf_depth - 1])
        if not leaf.is_leaf:
            self.leaves.bolt.refuse(leaf.id, UNEVEN)
        for i in range(leaf.count):
            reason = read_lease(leaf_key(leaf.page, i), leaf_value(leaf.page, i), &row)
            if reason != NULL:
                self.leaves.bolt.refuse(leaf.id, reason)
            self._merge_row(&row)
        while self._has_change(high):
            self._take_change()
        return 0

    cdef bint _has_change(self, Span high) noexcept nogil:
        """Whether the next change is below `high`."""
        if self.change == self.changes_end:
            return False
        # A key of another length is nobody's; what is read of the leaf then will tell.
        return (high.data == NULL or high.size != LEASE_KEY
                or <uint64_t>self.change.lease.id < load_be64(high.data))

    cdef int _first_leaf(self) except -1 nogil:
        self.leaves.to_first()
        # Of an empty bucket's page, too.
        self.leaf_depth = max(self.leaves.depth, 0)
        self.leaves.depth = self.leaf_depth - 1
        return 0

    cdef bint _next_leaf(self) except -1 nogil:
        """Go to the next leaf, without looking at it; False behind the last one."""
        cdef Frame *above
        while self.leaves.depth >= 0:
            above = &self.leaves.frames[self.leaves.depth]
            above.index += 1
            if above.index < above.count:
                break
            self.leaves.depth -= 1
        if self.leaves.depth < 0:
            return False
        while self.leaves.depth < self.leaf_depth - 1:
            self.leaves.down()
            if self.leaves.frames[self.leaves.depth].is_leaf:
                self.leaves.bolt.refuse(self.leaves.page(), UNEVEN)
        return True

    cdef Span _leaf_high(self) noexcept nogil:
        """What the keys of the leaf are below; no data: there is no bound."""
        cdef Frame *above
        if self.leaf_depth == 0:
            return Span(NULL, 0)
        above = &self.leaves.frames[self.leaf_depth - 1]
        if above.index + 1 < above.count:
            return branch_key(above.page, above.index + 1)
        return above.high

    # --- the region ---------------------------------------------------------------------------

    cdef int _merge_row(self, const SavedLease *row) except -1 nogil:
        """A lease that was there, and all changes up to its own."""
        while self.change < self.changes_end and compare_leases(&self.change.lease, row) < 0:
            self._take_change()
        if self.change < self.changes_end and self.change.lease.id == row.id:
            return self._take_change()
        return self._add(row)

    cdef int _take_change(self) except -1 nogil:
        cdef const LeaseChange *change = self.change
        self.change += 1
        return self._add(&change.lease) if change.lease.ttl else 0

    cdef int _add(self, const SavedLease *lease) except -1 nogil:
        cdef uint8_t[LEASE_KEY + LEASE_VALUE_MAX] pair
        self.region_size += ELEMENT_BYTES + (write_lease(pair, lease) - pair)
        return buffer_append(&self.region, <const uint8_t *>lease, sizeof(SavedLease))

    cdef int _write_region(self, bint goes_on) except -1 nogil:
        """Write the region: with leaves like others that follow at once, or evenly full ones."""
        cdef const SavedLease *lease = <const SavedLease *>self.region.data
        cdef const SavedLease *end = lease + self.region.size // sizeof(SavedLease)
        # As many leaves as are needed, and room for one lease more in each than comes to it.
        cdef uint64_t room = LEAF_BYTES - HEADER_BYTES - ROW_BYTES_MAX
        cdef uint64_t each = self.region_size // (self.region_size // room + 1) + HEADER_BYTES
        if goes_on:
            each = LEAF_BYTES - LEAF_BYTES // 8
        while lease < end:
            self._push(lease)
            lease += 1
            if node_size(&self.writer.leaf) >= each or (lease == end and not goes_on):
                self.writer.close_leaf()
        self.region.size = 0
        self.region_size = 0
        return self.writer.maybe_flush()

    cdef int _push(self, const SavedLease *lease) except -1 nogil:
        cdef uint8_t[LEASE_KEY + LEASE_VALUE_MAX] pair
        cdef const uint8_t *end = write_lease(pair, lease)
        self.written += 1
        return self.writer.push(
            Span(&pair[0], LEASE_KEY), Span(&pair[LEASE_KEY], end - &pair[LEASE_KEY]))


cdef int by_id(const void *one, const void *other) noexcept nogil:
    return compare_leases(<const SavedLease *>one, <const SavedLease *>other)


cdef int by_change(const void *one, const void *other) noexcept nogil:
    cdef const LeaseChange *left = <const LeaseChange *>one
    cdef const LeaseChange *right = <const LeaseChange *>other
    cdef int order = by_id(one, other)
    return order if order else (left.order > right.order) - (left.order < right.order)
