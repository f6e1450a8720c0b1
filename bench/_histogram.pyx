# cython: language_level=3
"""Latencies counted in log-linear buckets, as HdrHistogram does, in constant memory.

Rules:
- Values are whole nanoseconds. A percentile is the upper end of the bucket that holds it, so it
  never flatters, and is at most 0.8 % too high; it is never above the largest value recorded.
- Recording allocates nothing and needs no GIL (`tally_record` in the .pxd).
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

cimport cython


@cython.final
cdef class Histogram:
    """How often which latency was seen."""

    def __cinit__(self):
        self.clear()

    @property
    def total(self):
        """How many values were recorded."""
        return self.tally.total

    @property
    def mean(self):
        """The mean of what was recorded, exact; 0.0 of nothing."""
        return self.tally.sum / <double>self.tally.total if self.tally.total else 0.0

    @property
    def smallest(self):
        """The smallest value recorded; 0 of nothing."""
        return self.tally.smallest

    @property
    def largest(self):
        """The largest value recorded; 0 of nothing."""
        return self.tally.largest

    def record(self, int64_t value):
        """Count one value."""
        tally_record(&self.tally, value)

    def percentile(self, double percent):
        """The value that `percent` per cent of all do not exceed; 0 of nothing."""
        return self.value_at(percent)

    def merge(self, Histogram other not None):
        """Add all that `other` counted."""
        cdef int bucket
        if other.tally.total == 0:
            return
        if self.tally.total == 0 or other.tally.smallest < self.tally.smallest:
            self.tally.smallest = other.tally.smallest
        if other.tally.largest > self.tally.largest:
            self.tally.largest = other.tally.largest
        for bucket in range(BUCKETS):
            self.tally.counts[bucket] += other.tally.counts[bucket]
        self.tally.total += other.tally.total
        self.tally.sum += other.tally.sum

    def clear(self):
        """Forget everything."""
        memset(&self.tally, 0, sizeof(Tally))

    cdef int64_t value_at(self, double percent) noexcept nogil:
        """The upper end of the bucket that holds the wanted rank."""
        cdef uint64_t seen = 0
        cdef double wanted = self.tally.total * percent / 100.0
        cdef int64_t upper
        cdef int bucket, shift
        for bucket in range(BUCKETS):
            seen += self.tally.counts[bucket]
            if seen == 0 or seen < wanted:
                continue
            if bucket < STEPS:
                upper = bucket
            else:
                shift = (bucket >> STEP_BITS) - 1
                upper = ((<int64_t>(STEPS + (bucket & (STEPS - 1))) + 1) << shift) - 1
            return upper if upper < self.tally.largest else self.tally.largest
        return self.tally.largest
