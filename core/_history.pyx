"""All versions of all keys in order of (revision, sub), and the sweep that takes some out.

Rules:
1. Versions are appended in ascending order and stand in parts of a fixed size. The history points
   to versions; it does not own them.
2. A sweep goes over the versions from the oldest on. What it keeps moves together into new parts,
   so that what it drops leaves no holes; parts used up are freed. Appends may go on meanwhile.
3. A cursor is a place in the order, not a place in memory: it finds its way again after a sweep
   moved versions. Appends move nothing.
4. Invariant: no part is empty but the one a sweep fills; none exists before the first append.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from quorate.core._arena cimport Arena
from quorate.core._version cimport Version


cdef inline bint is_before(const Version *version, int64_t revision, uint32_t sub) noexcept nogil:
    if version.mod_revision != revision:
        return version.mod_revision < revision
    return version.sub < sub


cdef class History:
    """The versions of a store in the order in which they were written."""

    def __cinit__(self, Arena arena not None):
        self.arena = arena

    def __dealloc__(self):
        # The parts themselves go with the arena.
        free(self.parts)

    cdef bint reserve(self) noexcept nogil:
        """Make room for one `append`."""
        if self.part_count and self.parts[self.part_count - 1].end < HISTORY_PART_SLOTS:
            # The part that a sweep fills is closed to appends.
            if not self.sweeping or self.sweep_part != self.part_count - 1:
                return True
        return self._insert_part(self.part_count) != NULL

    cdef void append(self, Version *version) noexcept nogil:
        """Add the newest version; `reserve` went before."""
        cdef HistoryPart *part = self.parts[self.part_count - 1]
        part.slots[part.end] = version
        part.end += 1
        self.count += 1

    cdef Version *last(self) noexcept nogil:
        """The newest version, or NULL."""
        cdef HistoryPart *part
        cdef size_t i = self.part_count
        while i:
            i -= 1
            part = self.parts[i]
            if part.begin < part.end:
                return part.slots[part.end - 1]
        return NULL

    cdef void seek(self, HistoryCursor *cursor, int64_t revision, uint32_t sub) noexcept nogil:
        """Go to the first version that is not before (revision, sub). O(log n)."""
        cdef size_t low = 0
        cdef size_t high = self.part_count
        cdef size_t middle, probe
        cdef uint32_t first, limit, half
        cdef HistoryPart *part
        cursor.revision = revision
        cursor.sub = sub
        cursor.changes = self.changes
        # The last part that begins before the place wanted; an empty one is like the next.
        while low < high:
            middle = (low + high) // 2
            probe = middle
            while probe < self.part_count and self.parts[probe].begin == self.parts[probe].end:
                probe += 1
            if probe < self.part_count:
                part = self.parts[probe]
                if is_before(part.slots[part.begin], revision, sub):
                    low = middle + 1
                    continue
            high = middle
        cursor.part = low - 1 if low else 0
        cursor.slot = 0
        if cursor.part < self.part_count:
            part = self.parts[cursor.part]
            first, limit = part.begin, part.end
            while first < limit:
                half = (first + limit) // 2
                if is_before(part.slots[half], revision, sub):
                    first = half + 1
                else:
                    limit = half
            cursor.slot = first

    cdef Version *next(self, HistoryCursor *cursor) noexcept nogil:
        """The version at the cursor, which goes on behind it; NULL at the end, for now."""
        cdef HistoryPart *part
        cdef Version *version
        if cursor.changes != self.changes:
            self.seek(cursor, cursor.revision, cursor.sub)
        while cursor.part < self.part_count:
            part = self.parts[cursor.part]
            if cursor.slot < part.begin:
                cursor.slot = part.begin
            if cursor.slot < part.end:
                version = part.slots[cursor.slot]
                cursor.slot += 1
                cursor.revision = version.mod_revision
                cursor.sub = version.sub + 1
                return version
            if cursor.part + 1 == self.part_count:
                break
            cursor.part += 1
            cursor.slot = 0
        return NULL

    cdef bint sweep_begin(self) noexcept nogil:
        """Start at the oldest version."""
        if self._insert_part(0) == NULL:
            return False
        self.sweeping = True
        self.sweep_part = 0
        return True

    cdef Version *sweep_peek(self) noexcept nogil:
        """The version that the sweep has come to."""
        cdef HistoryPart *part
        if self.sweep_part + 1 == self.part_count:
            return NULL
        part = self.parts[self.sweep_part + 1]
        return part.slots[part.begin] if part.begin < part.end else NULL

    cdef bint sweep_reserve(self) noexcept nogil:
        """Make room for one `sweep_keep`."""
        if self.parts[self.sweep_part].end == HISTORY_PART_SLOTS:
            if self._insert_part(self.sweep_part + 1) == NULL:
                return False
            self.sweep_part += 1
        return True

    cdef void sweep_keep(self) noexcept nogil:
        """Leave the version in the history; `sweep_reserve` went before."""
        cdef HistoryPart *source = self.parts[self.sweep_part + 1]
        cdef HistoryPart *target = self.parts[self.sweep_part]
        target.slots[target.end] = source.slots[source.begin]
        target.end += 1
        self._swept()

    cdef void sweep_drop(self) noexcept nogil:
        """Take the version out of the history."""
        self.count -= 1
        self._swept()

    cdef void sweep_end(self) noexcept nogil:
        """Stop here: what was not looked at stays."""
        cdef HistoryPart *part = self.parts[self.sweep_part]
        self.sweeping = False
        if part.begin == part.end:
            self._remove_part(self.sweep_part)

    cdef void _swept(self) noexcept nogil:
        cdef HistoryPart *part = self.parts[self.sweep_part + 1]
        self.changes += 1
        part.begin += 1
        if part.begin == part.end:
            self._remove_part(self.sweep_part + 1)

    cdef HistoryPart *_insert_part(self, size_t at) noexcept nogil:
        """A new empty part before part `at`; NULL when memory is exhausted."""
        cdef HistoryPart *part
        cdef void *table
        cdef size_t capacity = self.part_capacity
        if self.part_count == capacity:
            capacity = capacity * 2 + 16
            table = realloc(self.parts, capacity * sizeof(HistoryPart *))
            if table == NULL:
                return NULL
            self.parts = <HistoryPart **>table
            self.part_capacity = capacity
        part = <HistoryPart *>self.arena.allocate(sizeof(HistoryPart))
        if part == NULL:
            return NULL
        part.begin = part.end = 0
        memmove(
            &self.parts[at + 1], &self.parts[at], (self.part_count - at) * sizeof(HistoryPart *)
        )
        self.parts[at] = part
        self.part_count += 1
        if at + 1 < self.part_count:
            self.changes += 1
        return part

    cdef void _remove_part(self, size_t at) noexcept nogil:
        self.arena.release(self.parts[at], sizeof(HistoryPart))
        self.part_count -= 1
        memmove(
            &self.parts[at], &self.parts[at + 1], (self.part_count - at) * sizeof(HistoryPart *)
        )
        self.changes += 1

    def check(self):
        """Walk it all; AssertionError when order, parts or count are wrong. Answers the parts."""
        cdef size_t i
        cdef uint32_t slot
        cdef HistoryPart *part
        cdef Version *version
        cdef int64_t revision = -1
        cdef uint32_t sub = 0
        count = 0
        for i in range(self.part_count):
            part = self.parts[i]
            filled = part.begin < part.end <= HISTORY_PART_SLOTS
            if not filled and not (self.sweeping and i == self.sweep_part):
                raise AssertionError(f"history part {i}: {part.begin}..{part.end}")
            for slot in range(part.begin, part.end):
                version = part.slots[slot]
                if not (version.mod_revision > revision
                        or (version.mod_revision == revision and version.sub > sub)):
                    raise AssertionError(f"history order at {revision}, {sub}")
                revision, sub = version.mod_revision, version.sub
                count += 1
        if count != self.count:
            raise AssertionError(f"history count {self.count}, found {count}")
        return self.part_count
