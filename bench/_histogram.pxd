# cython: language_level=3
"""Latency counts in log-linear buckets: the C half, which records without the GIL."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    # Linear steps in each power of two: a reading is at most 1/128 (0.8 %) above the truth.
    STEP_BITS = 7
    STEPS = 128
    BUCKETS = 7424          # STEPS * (64 - STEP_BITS) for the doubling steps, and STEPS exact ones


cdef extern from *:
    int leading_zeros "__builtin_clzll" (unsigned long long value) noexcept nogil


cdef struct Tally:
    uint64_t[BUCKETS] counts
    uint64_t total              # sum of all counts
    uint64_t sum                # of the recorded values
    int64_t smallest            # of what was recorded; meaningless while total is 0
    int64_t largest


cdef inline int bucket_of(uint64_t value) noexcept nogil:
    """Which bucket counts `value`."""
    cdef int shift
    if value < STEPS:
        return <int>value
    shift = 63 - leading_zeros(value) - STEP_BITS
    return ((shift + 1) << STEP_BITS) + <int>((value >> shift) - STEPS)


cdef inline void tally_record(Tally *tally, int64_t value) noexcept nogil:
    """Count one value; a negative one (a clock that stepped) counts as 0."""
    if value < 0:
        value = 0
    tally.counts[bucket_of(<uint64_t>value)] += 1
    if tally.total == 0 or value < tally.smallest:
        tally.smallest = value
    if tally.total == 0 or value > tally.largest:
        tally.largest = value
    tally.total += 1
    tally.sum += <uint64_t>value


cdef class Histogram:
    cdef Tally tally

    cdef int64_t value_at(self, double percent) noexcept nogil
