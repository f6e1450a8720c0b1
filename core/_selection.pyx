"""What a Range selects: walked, filtered, sorted and measured in bounded steps.

Rules:
1. A selection reads one revision. Between two steps other requests run; then the selection must
   `hold` that revision, which keeps compaction from removing what it found (etcd holds a read
   transaction for the same reason).
2. A value is copied only when its slice is sent. In key order the range is walked twice, once to
   measure and once to send, and nothing is kept; only a sort keeps a pointer for each key-value.
3. etcd's rules of order, limit and filters (server/etcdserver/txn/range.go): filters and sorts see
   the whole range; a target with order NONE is sorted ascending, but the limit, and one more, was
   taken in key order before; `count` ignores limit and filters.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp, memcpy

from quorate.core._bytes cimport Buffer, buffer_append, buffer_free, buffer_reserve
from quorate.core._errors cimport ERROR_COMPACTED, ERROR_FUTURE_REVISION, ERROR_NONE
from quorate.core._mvcc cimport Store
from quorate.core._protobuf cimport varint_size
from quorate.core._reply cimport (
    Header, KEY_VALUE_OVERHEAD_MAX, TAG_RANGE_COUNT, TAG_RANGE_KVS, TAG_RANGE_MORE, append_header,
    append_key_value, append_key_value_part, append_number, key_value_size, number_size,
)
from quorate.core._request cimport (
    Op, SORT_DESCEND, TARGET_CREATE, TARGET_KEY, TARGET_MOD, TARGET_VERSION, has_revision_filters,
    is_default_order, omitted,
)
from quorate.core._version cimport (
    Version, version_key, version_key_size, version_value, version_value_size,
)


cdef class Selection:
    """The key-values of one Range, in the order of its reply."""

    def __dealloc__(self):
        buffer_free(&self.bounds)
        buffer_free(&self.chosen)
        buffer_free(&self.spare)

    cdef uint16_t begin(self, Store store, const Op *op, bint own_writes) except? 0xffff:
        """Start on a checked Range; answers etcd's error where its revision cannot be read."""
        cdef int64_t now = store.write_revision() if own_writes else store.revision
        if op.revision > now:
            return ERROR_FUTURE_REVISION
        if 0 < op.revision < store.compact_revision:
            return ERROR_COMPACTED
        self.store = store
        self.op = op[0]
        self.own_writes = own_writes
        self.sorts = op.sort_target != TARGET_KEY or op.sort_order == SORT_DESCEND
        self.header_revision = now
        self.revision = op.revision if op.revision > 0 else (0 if own_writes else now)
        self.count = 0
        self.counts = self.revision != 0 and self.revision != now
        if not self.counts:
            self.count = store.count(
                op.key.data, op.key.size, op.range_end.data, op.range_end.size, 0)
        self.phase = PHASE_WALK
        if op.count_only:
            self.phase = PHASE_COUNT if self.counts else PHASE_READY
        self._rewind()
        return ERROR_NONE

    cdef void _rewind(self) noexcept:
        """Put the cursor at the beginning of the range."""
        cdef Op *op = &self.op
        self.store.seek(
            &self.cursor, op.key.data, op.key.size, op.range_end.data, op.range_end.size,
            self.revision)

    cdef bint step(self, size_t keys) except -1:
        """Look at about `keys` more keys; True when the reply can be built."""
        if self.phase == PHASE_WALK:
            self._walk(keys)
        elif self.phase == PHASE_COUNT:
            self._count_rest(keys)
        elif self.phase == PHASE_SORT:
            self._sort(keys)
        if self.phase == PHASE_MEASURE:
            self._measure(keys)
        return self.phase == PHASE_READY

    cdef int hold(self) except -1:
        """Pin the revision, own the bounds: the selection may outlive this turn and its request."""
        cdef size_t key = self.op.key.size
        cdef size_t end = self.op.range_end.size
        assert not self.held and not self.own_writes
        buffer_reserve(&self.bounds, key + end + 1)
        memcpy(self.bounds.data, self.op.key.data, key)
        if end:
            memcpy(self.bounds.data + key, self.op.range_end.data, end)
        self.op.key.data = self.bounds.data
        self.op.range_end.data = self.bounds.data + key
        self.cursor.key = self.op.key.data
        self.cursor.end = self.op.range_end.data
        self.store.pin(self.revision)
        self.held = True
        return 0

    cdef void release(self) noexcept:
        """Let go of the revision."""
        if self.held:
            self.held = False
            self.store.unpin(self.revision)

    # --- the reply ---

    cdef size_t message_size(self, const Header *header) noexcept:
        """Bytes of the whole RangeResponse, known once the phase is READY."""
        cdef size_t head = number_size(<uint64_t>self.header_revision)
        if header != NULL:
            head += number_size(header.cluster_id) + number_size(header.member_id)
            head += number_size(header.raft_term)
        return 2 + head + self.kvs_size + number_size(self.more) + number_size(<uint64_t>self.count)

    cdef int append_head(self, Buffer *out, const Header *header) except -1:
        """Append what comes before the key-values."""
        return append_header(out, header, self.header_revision)

    cdef int append_some(self, Buffer *out, size_t stop, size_t size_max) except -1:
        """Append key-values, while `appended` < `stop`, until `out` has `size_max` bytes.

        One that does not fit is cut: its rest comes with the next call.
        """
        cdef int omit = omitted(&self.op)
        cdef size_t size
        while self.appended < stop and out.size < size_max:
            if self.current == NULL:
                self.current = self._next()
                self.current_sent = 0
            size = key_value_size(self.current, omit)
            if self.current_sent == 0 and out.size + size + KEY_VALUE_OVERHEAD_MAX <= size_max:
                append_key_value(out, TAG_RANGE_KVS, self.current, omit)
            else:
                size += 1 + varint_size(size)
                self.current_sent += append_key_value_part(
                    out, TAG_RANGE_KVS, self.current, omit, self.current_sent,
                    size_max - out.size)
                if self.current_sent < size:
                    return 0
            self.current = NULL
            self.appended += 1
        return 0

    cdef Version *_next(self) noexcept:
        """The version of the next key-value, which exists."""
        cdef Version *version
        if self.sorts:
            return (<Version **>self.chosen.data)[self.appended]
        version = self.store.next(&self.cursor)
        while _is_filtered(&self.op, version):
            version = self.store.next(&self.cursor)
        return version

    cdef size_t look_ahead(self, size_t keys, size_t size_max, size_t *size) noexcept:
        """How many of the next `keys` key-values make up `size_max` bytes, and how many they are.

        Only unfiltered, and between two key-values.
        """
        cdef Cursor ahead = self.cursor
        cdef Version *version
        cdef int omit = omitted(&self.op)
        cdef size_t count = 0
        cdef size_t one
        size[0] = 0
        keys = min(keys, self.total - self.appended)
        while count < keys and size[0] < size_max:
            if self.sorts:
                version = (<Version **>self.chosen.data)[self.appended + count]
            else:
                version = self.store.next(&ahead)
            one = key_value_size(version, omit)
            size[0] += 1 + varint_size(one) + one
            count += 1
        return count

    cdef int append_tail(self, Buffer *out) except -1:
        """Append what comes after the key-values."""
        append_number(out, TAG_RANGE_MORE, self.more)
        return append_number(out, TAG_RANGE_COUNT, <uint64_t>self.count)

    cdef int append_all(self, Buffer *out, const Header *header) except -1:
        """Append the whole reply at once; for short ones and within a Txn."""
        while not self.step(STEP_KEYS_MAX):
            pass
        self.append_head(out, header)
        self.append_some(out, self.total, <size_t>-1)
        return self.append_tail(out)

    # --- the phases ---

    cdef bint _walk(self, size_t keys) except -1:
        cdef Version *version
        cdef const Op *op = &self.op
        # In key order and unfiltered, one more than the limit tells whether there is more. etcd
        # takes that one more, and only then sorts a target with order NONE, and cuts.
        cdef size_t stop = <size_t>-1
        if op.limit > 0 and (not self.sorts or (
                is_default_order(op) and not has_revision_filters(op))):
            stop = <size_t>op.limit + self.sorts
        while keys:
            keys -= 1
            version = self.store.next(&self.cursor)
            if version == NULL:
                self._collected()
                return True
            self.count += self.counts
            if _is_filtered(op, version):
                continue
            if self.total == stop:
                self.more = not self.sorts
                if self.counts:
                    self.phase = PHASE_COUNT
                else:
                    self._collected()
                return True
            self._take(version)
        return False

    cdef int _take(self, const Version *version) except -1:
        """This version is part of the reply, or is to be sorted first."""
        cdef size_t size
        self.total += 1
        if self.sorts:
            return buffer_append(&self.chosen, <const uint8_t *>&version, sizeof(Version *))
        size = key_value_size(version, omitted(&self.op))
        self.kvs_size += 1 + varint_size(size) + size
        return 0

    cdef bint _count_rest(self, size_t keys) except -1:
        while keys:
            keys -= 1
            if self.store.next(&self.cursor) == NULL:
                self._collected()
                return True
            self.count += 1
        return False

    cdef void _collected(self) noexcept:
        """The walk is over: sort what it took, if the request wants another order than of keys."""
        self.run = 1
        if self.sorts:
            self.phase = PHASE_SORT
        else:
            self.phase = PHASE_READY
            self._rewind()

    cdef int _sort(self, size_t keys) except -1:
        """Merge neighbouring runs into `spare`, `keys` versions per call; swap after each pass."""
        cdef Buffer swap
        if self.spare.size == 0:
            buffer_reserve(&self.spare, self.chosen.size)
            self.spare.size = self.chosen.size
            self.right = min(self.run, self.total)
        while keys and self.run < self.total:
            keys = self._merge(keys)
            if self.merged == self.total:
                swap = self.chosen
                self.chosen = self.spare
                self.spare = swap
                self.run *= 2
                self.merged = self.left = 0
                self.right = min(self.run, self.total)
        if self.run >= self.total:
            self._cut()
        return 0

    cdef size_t _merge(self, size_t keys) noexcept:
        """Go on merging the pair of runs at `merged`; answers what is left of `keys`."""
        cdef Version **source = <Version **>self.chosen.data
        cdef Version **target = <Version **>self.spare.data
        cdef size_t start = self.merged // (2 * self.run) * (2 * self.run)
        cdef size_t middle = min(start + self.run, self.total)
        cdef size_t end = min(start + 2 * self.run, self.total)
        cdef int sign = -1 if self.op.sort_order == SORT_DESCEND else 1
        cdef bint take_left
        while keys and self.merged < end:
            if self.left == middle or self.right == end:
                take_left = self.left < middle
            else:
                take_left = sign * _compare(
                    self.op.sort_target, source[self.left], source[self.right]) <= 0
            if take_left:
                target[self.merged] = source[self.left]
                self.left += 1
            else:
                target[self.merged] = source[self.right]
                self.right += 1
            self.merged += 1
            keys -= 1
        if self.merged == end:
            self.left = end
            self.right = min(end + self.run, self.total)
        return keys

    cdef void _cut(self) noexcept:
        """Apply the limit to what was filtered and sorted as a whole."""
        if self.op.limit > 0 and self.total > <uint64_t>self.op.limit:
            self.total = <size_t>self.op.limit
            self.more = True
        buffer_free(&self.spare)
        self.phase = PHASE_MEASURE

    cdef void _measure(self, size_t keys) noexcept:
        cdef size_t size
        cdef int omit = omitted(&self.op)
        while keys and self.measured < self.total:
            size = key_value_size((<Version **>self.chosen.data)[self.measured], omit)
            self.kvs_size += 1 + varint_size(size) + size
            self.measured += 1
            keys -= 1
        if self.measured == self.total:
            self.phase = PHASE_READY


cdef bint _is_filtered(const Op *op, const Version *version) noexcept nogil:
    return ((op.max_mod_revision != 0 and version.mod_revision > op.max_mod_revision)
            or (op.min_mod_revision != 0 and version.mod_revision < op.min_mod_revision)
            or (op.max_create_revision != 0 and version.create_revision > op.max_create_revision)
            or (op.min_create_revision != 0 and version.create_revision < op.min_create_revision))


cdef int _compare(int target, const Version *a, const Version *b) noexcept nogil:
    if target == TARGET_MOD:
        return (a.mod_revision > b.mod_revision) - (a.mod_revision < b.mod_revision)
    if target == TARGET_CREATE:
        return (a.create_revision > b.create_revision) - (a.create_revision < b.create_revision)
    if target == TARGET_VERSION:
        return (a.version > b.version) - (a.version < b.version)
    if target == TARGET_KEY:
        return _compare_bytes(
            version_key(a), version_key_size(a), version_key(b), version_key_size(b))
    return _compare_bytes(
        version_value(a), version_value_size(a), version_value(b), version_value_size(b))


cdef int _compare_bytes(
        const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) noexcept nogil:
    cdef int order = memcmp(a, b, min(a_size, b_size))
    return order if order else (a_size > b_size) - (a_size < b_size)
