"""Maintenance.Hash: the CRC-32C of all that a backend file would hold now, as etcd computes it.

Rules:
1. Bucket by bucket in the order of their names: the name, then each key and its value, in order.
   The small buckets are the caller's (`core/buckets.py:hashed_buckets`), without the marks that
   etcd leaves out; leases and the history of the keys are the store's.
2. It is of one moment. Small buckets and leases are taken when it begins; the history is walked in
   steps, and what comes meanwhile is newer. Compactions that came after it began wait.
3. A compaction counts as done, whether or not its removal is.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport qsort

from quorate.core._bytes cimport (
    Buffer, buffer_append, buffer_free, crc32c,
)
from quorate.core._leasebucket cimport by_id
from quorate.core._leaserecord cimport LEASE_KEY, LEASE_VALUE_MAX, write_lease
from quorate.core._lessor cimport SavedLease
from quorate.core._port cimport Port
from quorate.core._record cimport REPLY_WHOLE
from quorate.core._reply cimport append_header, append_number
from quorate.core._version cimport version_is_tombstone
from quorate.core._versionrecord cimport crc_of_record

cdef enum:
    # Versions hashed per step.
    STEP_HASHES_MAX = 1000


cdef uint32_t crc_of(uint32_t crc, bytes data) noexcept:
    return crc32c(crc, <const uint8_t *><const char *>data, len(data))


cdef class WholeHash(LongReply):
    """A hash under way."""

    cdef int begin(self, dict buckets) except -1:
        """Take what has to be taken at once; `store` is set."""
        before = []
        behind = []
        for name in sorted([*buckets, b"key", b"lease"]):
            if name == b"lease":
                behind.append(self._leases())
                continue
            rows = before if name <= b"key" else behind
            rows.append(name)
            for key, value in buckets.get(name, ()):
                rows += (key, value)
        self.crc = crc_of(0, b"".join(before))
        self.rest = b"".join(behind)
        self.revision = self.store.revision
        self.compact_revision = self.store.compact_revision
        self.store.history_seek(&self.at, 0, 0)
        self.held = self.store.hold()
        self.holding = True
        return 0

    cdef bytes _leases(self):
        """The bucket `lease`."""
        cdef Buffer rows = Buffer(NULL, 0, 0)
        cdef Buffer out = Buffer(NULL, 0, 0)
        cdef uint8_t[LEASE_KEY + LEASE_VALUE_MAX] pair
        cdef uint8_t *end
        cdef size_t at = 0
        try:
            self.store.lessor.append_saved(&rows)
            qsort(rows.data, rows.size // sizeof(SavedLease), sizeof(SavedLease), by_id)
            buffer_append(&out, <const uint8_t *>b"lease", 5)
            while at < rows.size:
                end = write_lease(pair, <const SavedLease *>(rows.data + at))
                buffer_append(&out, pair, end - pair)
                at += sizeof(SavedLease)
            return out.data[:out.size]
        finally:
            buffer_free(&rows)
            buffer_free(&out)

    cdef bint step(self, Port port) except -1:
        cdef int budget = STEP_HASHES_MAX
        cdef const Version *version
        cdef Buffer out = Buffer(NULL, 0, 0)
        while budget:
            version = self.store.history_next(&self.at)
            if version == NULL or version.mod_revision > self.revision:
                break
            if self._is_wanted(version):
                self.crc = crc_of_record(self.crc, version)
            budget -= 1
        if budget == 0:
            return False
        try:
            append_header(&out, &self.header, self.store.revision)
            append_number(&out, 16, crc_of(self.crc, self.rest))
            port.reply(self.request_id, REPLY_WHOLE, 0, out.size, out.data, out.size)
        finally:
            buffer_free(&out)
        return True

    cdef bint _is_wanted(self, const Version *version) noexcept nogil:
        """Whether a compaction to `compact_revision` leaves it."""
        if version.mod_revision >= self.compact_revision:
            return True
        if version_is_tombstone(version):
            return False
        return version.newer == NULL or version.newer.mod_revision > self.compact_revision

    cdef void finish(self) noexcept:
        if self.holding:
            self.holding = False
            self.store.release_hold(self.held)
