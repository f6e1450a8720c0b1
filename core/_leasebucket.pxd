# cython: language_level=3
"""The bucket `lease` of a backend file, from one moment's leases. See `_leasebucket.pyx`."""

from libc.stdint cimport int64_t, uint64_t

from quorate.core._bolt cimport Bolt, Bucket, Cursor
from quorate.core._boltwriter cimport BoltWriter
from quorate.core._bytes cimport Buffer
from quorate.core._lessor cimport LeaseChange, LeaseWalk, Lessor, SavedLease
from quorate.core._protobuf cimport Span


# For qsort: of SavedLease, the order of the file; of LeaseChange, and then that of time.
cdef int by_id(const void *one, const void *other) noexcept nogil
cdef int by_change(const void *one, const void *other) noexcept nogil


cdef class LeaseBucket:
    cdef Lessor lessor
    cdef readonly bint is_whole         # all leases are written; else what changed in the file's
    cdef bint walking
    cdef LeaseWalk at
    cdef Buffer rows                    # SavedLease: all, as they were when the walk came by
    cdef Buffer changes                 # LeaseChange: what the log said of them up to the moment
    cdef LeaseChange *change            # the next one, of which all are sorted; `write` moves it
    cdef LeaseChange *changes_end

    cdef BoltWriter writer
    cdef readonly uint64_t written      # leases; those in leaves that stay do not count
    # The leaves of the file: the cursor is on the one above, where the bucket has branches.
    cdef Cursor leaves
    cdef int leaf_depth
    # Leases of some leaves in a row, as they are to be; bytes that they take in a page.
    cdef Buffer region
    cdef uint64_t region_size

    cdef int _write(self, bint found) except -1 nogil
    cdef void _sort(self) noexcept nogil
    cdef int _write_rows(self) except -1 nogil
    cdef int _merge_leaves(self) except -1 nogil
    cdef bint _most_change(self) except -1 nogil
    cdef int _merge_leaf(self, Span high) except -1 nogil
    cdef int _merge_row(self, const SavedLease *row) except -1 nogil
    cdef int _take_change(self) except -1 nogil
    cdef int _add(self, const SavedLease *lease) except -1 nogil
    cdef int _write_region(self, bint goes_on) except -1 nogil
    cdef int _push(self, const SavedLease *lease) except -1 nogil
    cdef bint _has_change(self, Span high) noexcept nogil
    cdef int _first_leaf(self) except -1 nogil
    cdef bint _next_leaf(self) except -1 nogil
    cdef Span _leaf_high(self) noexcept nogil
