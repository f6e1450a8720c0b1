"""Replies of the Lease API: short ones appended to a buffer, long ones in slices.

Rules:
1. Leases are listed in etcd's order: what runs out first is first. They are sorted while they are
   sent, so that no turn sorts a million.
2. A list shows the leases of one moment: their ids are copied in one step, 16 bytes each. So are
   the keys of a lease.
3. What such copies may take is bounded for all clients together (LEASE_REPLIES_BYTES_MAX); who
   comes later waits, and who then reads too slowly loses its reply.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from quorate.core import limits
from quorate.core._bytes cimport Buffer, buffer_append, buffer_free, buffer_reserve
from quorate.core._lessor cimport KeyRow, Lease, LeaseRow, Lessor
from quorate.core._mvcc cimport Store
from quorate.core._port cimport LongReply, Port, send_slice
from quorate.core._protobuf cimport varint_size, write_varint
from quorate.core._record cimport REPLY_END, REPLY_FIRST, REPLY_LAST, REPLY_SLICE_MAX
from quorate.core._reply cimport (
    Header, append_header, append_number, close_nested, open_nested, write_number,
)
from quorate.core._version cimport version_key, version_key_size

cdef enum:
    TAG_ID = 16             # of grant, keep-alive, time to live; ID is field 2
    TAG_TTL = 24
    TAG_GRANTED_TTL = 32
    TAG_KEYS = 42
    TAG_LEASES = 18
    # Of the requests in entries.
    TAG_FIRST = 8
    TAG_SECOND = 16
    TAG_CHECKPOINTS = 10
    # Bytes of a response header at most.
    HEADER_MAX = 64
    # Bytes of one lease in a list at most, and rows handled in one step: about 200 microseconds.
    ROW_MAX = 13
    STEP_ROWS = 2000

cdef size_t BUDGET = limits.LEASE_REPLIES_BYTES_MAX
cdef size_t budget_taken = 0
cdef uint64_t budget_waiting = 0    # replies that wait for some of it

# The slice under way; no turn encodes two at once.
cdef Buffer scratch


cdef size_t write_grant(uint8_t *out, int64_t lease_id, int64_t ttl) noexcept nogil:
    """A LeaseGrantRequest."""
    cdef uint8_t *at = write_number(out, TAG_FIRST, <uint64_t>ttl)
    return write_number(at, TAG_SECOND, <uint64_t>lease_id) - out


cdef size_t write_revoke(uint8_t *out, int64_t lease_id) noexcept nogil:
    """A LeaseRevokeRequest."""
    return write_number(out, TAG_FIRST, <uint64_t>lease_id) - out


cdef size_t write_checkpoint(uint8_t *out, int64_t lease_id, int64_t remaining) noexcept nogil:
    """One of a LeaseCheckpointRequest's checkpoints."""
    cdef uint8_t *at = write_number(out + 2, TAG_FIRST, <uint64_t>lease_id)
    at = write_number(at, TAG_SECOND, <uint64_t>remaining)
    out[0] = TAG_CHECKPOINTS
    out[1] = <uint8_t>(at - out - 2)
    return at - out


cdef int append_granted(
        Buffer *out, const Header *header, int64_t revision, int64_t lease_id,
        int64_t ttl) except -1:
    """A LeaseGrantResponse."""
    append_header(out, header, revision)
    append_number(out, TAG_ID, <uint64_t>lease_id)
    append_number(out, TAG_TTL, <uint64_t>ttl)
    return 0


cdef int append_kept_alive(
        Buffer *out, const Header *header, int64_t revision, int64_t lease_id,
        int64_t ttl) except -1:
    """A LeaseKeepAliveResponse; TTL 0 = there is no such lease."""
    return append_granted(out, header, revision, lease_id, ttl)


cdef int append_time_to_live(
        Buffer *out, const Header *header, Store store, int64_t lease_id, bint keys) except -1:
    """A LeaseTimeToLiveResponse; TTL -1 = there is no such lease."""
    cdef Lessor lessor = store.lessor
    cdef const Lease *lease = lessor.find(lease_id)
    cdef Buffer rows
    cdef const KeyRow *row
    cdef const KeyRow *end
    append_header(out, header, store.revision)
    append_number(out, TAG_ID, <uint64_t>lease_id)
    if lease == NULL:
        append_number(out, TAG_TTL, <uint64_t>-1)
        return 0
    append_number(out, TAG_TTL, <uint64_t>lessor.remaining(lease))
    append_number(out, TAG_GRANTED_TTL, <uint64_t>lease.ttl)
    if not keys:
        return 0
    rows.data = NULL
    rows.size = rows.capacity = 0
    try:
        lessor.append_keys(lease, &rows)
        row = <const KeyRow *>rows.data
        end = row + rows.size // sizeof(KeyRow)
        while row < end:
            append_key(out, version_key(row.version), version_key_size(row.version))
            row += 1
    finally:
        buffer_free(&rows)
    return 0


cdef int append_key(Buffer *out, const uint8_t *key, size_t size) except -1:
    cdef uint8_t *at
    buffer_reserve(out, size + 11)
    at = out.data + out.size
    at[0] = TAG_KEYS
    out.size += write_varint(at + 1, size) - at
    return buffer_append(out, key, size)


cdef class LeaseReply(LongReply):
    """A reply that needs memory, of which all such replies share one budget."""

    cdef bint _take_budget(self, size_t size) noexcept:
        """Take what the reply needs, or wait; whoever is alone gets all that it needs."""
        global budget_taken, budget_waiting
        if budget_taken and budget_taken + size > BUDGET:
            if not self.is_waiting:
                budget_waiting += 1
            self.is_waiting = True
            self.waits = True
            return False
        if self.is_waiting:
            budget_waiting -= 1
        self.is_waiting = False
        self.budget = size
        budget_taken += size
        return True

    cdef bint hinders(self) noexcept:
        """Whether others wait for its memory."""
        return self.budget != 0 and budget_waiting != 0

    cdef void finish(self) noexcept:
        global budget_taken, budget_waiting
        if self.is_waiting:
            budget_waiting -= 1
        self.is_waiting = False
        budget_taken -= self.budget
        self.budget = 0


cdef class LeaseKeys(LeaseReply):
    """A LeaseTimeToLiveResponse with many keys."""

    def __dealloc__(self):
        buffer_free(&self.message)

    cdef bint step(self, Port port) except -1:
        cdef size_t size = 0
        cdef const Lease *lease
        if self.message.size == 0:
            lease = self.store.lessor.find(self.lease_id)
            if lease != NULL:
                size = self.store.lessor.keys_size(lease)
            if not self._take_budget(size + HEADER_MAX):
                return False
            append_time_to_live(&self.message, &self.header, self.store, self.lease_id, True)
        return send_slice(self, port, &self.message, &self.sent)


cdef class LeaseList(LeaseReply):
    """A LeaseLeasesResponse."""

    def __dealloc__(self):
        buffer_free(&self.rows)

    cdef bint step(self, Port port) except -1:
        cdef size_t room = min(<size_t>REPLY_SLICE_MAX, self.credit)
        cdef size_t last
        cdef uint16_t flags = 0
        if not self.began:
            if not self._take_budget(self.store.lessor.count * sizeof(LeaseRow) + HEADER_MAX):
                return False
            self._collect()
        last = self.unsorted - min(self.unsorted, <size_t>STEP_ROWS)
        while self.unsorted > last:
            self.unsorted -= 1
            self._sift_down(self.unsorted)
        if self.unsorted:
            return False
        if room < HEADER_MAX + ROW_MAX:
            self.waits = True
            return False
        scratch.size = 0
        if not self.sent_first:
            append_header(&scratch, &self.header, self.revision)
            flags = REPLY_FIRST
            self.sent_first = True
        self._append_some(room)
        if self.count == 0:
            flags |= REPLY_LAST | REPLY_END
        port.reply(self.request_id, flags, 0, self.message_size, scratch.data, scratch.size)
        self.credit -= scratch.size
        return self.count == 0

    cdef int _collect(self) except -1:
        """Copy what is to be listed, and measure the message."""
        cdef const LeaseRow *row
        cdef const LeaseRow *end
        self.store.lessor.append_rows(&self.rows)
        self.count = self.rows.size // sizeof(LeaseRow)
        self.unsorted = self.count // 2
        self.revision = self.store.revision
        scratch.size = 0
        append_header(&scratch, &self.header, self.revision)
        self.message_size = scratch.size
        row = <const LeaseRow *>self.rows.data
        end = row + self.count
        while row < end:
            self.message_size += 3 + varint_size(<uint64_t>row.id)
            row += 1
        self.began = True
        return 0

    cdef int _append_some(self, size_t room) except -1:
        """Take rows off the heap and append them, as many as a step may."""
        cdef LeaseRow *rows = <LeaseRow *>self.rows.data
        cdef size_t message
        cdef int left = STEP_ROWS
        buffer_reserve(&scratch, STEP_ROWS * ROW_MAX)
        while left and self.count and scratch.size + ROW_MAX <= room:
            message = open_nested(&scratch, TAG_LEASES)
            append_number(&scratch, TAG_FIRST, <uint64_t>rows[0].id)
            close_nested(&scratch, message)
            left -= 1
            self.count -= 1
            rows[0] = rows[self.count]
            self._sift_down(0)
        return 0

    cdef void _sift_down(self, size_t at) noexcept nogil:
        cdef LeaseRow *rows = <LeaseRow *>self.rows.data
        cdef LeaseRow row = rows[at]
        cdef size_t child
        while 2 * at + 1 < self.count:
            child = 2 * at + 1
            if child + 1 < self.count and comes_before(&rows[child + 1], &rows[child]):
                child += 1
            if not comes_before(&rows[child], &row):
                break
            rows[at] = rows[child]
            at = child
        rows[at] = row


cdef inline bint comes_before(const LeaseRow *a, const LeaseRow *b) noexcept nogil:
    return a.expiry < b.expiry or (a.expiry == b.expiry and a.id < b.id)
