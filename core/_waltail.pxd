# cython: language_level=3
"""The judgement on the bytes after the last good record."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum Verdict:
    TAIL_CLEAN = 0      # nothing but zeros: the log ends here
    TAIL_TORN = 1       # an interrupted write, never acknowledged: cut it
    TAIL_CORRUPT = 2    # damage to what may have been acknowledged: refuse


cdef struct Tail:
    uint8_t *data           # from the first bad frame to the end of the file; changed and restored
    size_t size
    uint64_t offset         # of `data` in its file
    uint32_t crc            # of the chain before it
    uint64_t next_index     # the raft index that the next entry would have had
    const char *reason      # out: why TAIL_CORRUPT


cdef Verdict judge_tail(Tail *tail) noexcept nogil
cdef bint is_zero(const uint8_t *data, size_t size) noexcept nogil
