# cython: language_level=3
"""A wheel of timers in C memory: set and clear in constant time, however many calls wait."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    # A slot is 2**22 ns = 4.2 ms; a timer fires at most that much late and never early.
    SLOT_SHIFT = 22
    # With 4.2 ms each, a round of the wheel is 8.6 s; what lies beyond is placed anew once a round.
    SLOTS = 2048
    WORDS = 32          # of 64 slots each


cdef struct Timer:
    Timer *next
    Timer *previous
    void *owner         # whatever waits
    int64_t deadline    # ns of the caller's clock
    uint32_t kind       # the caller's own meaning
    uint32_t slot
    bint is_set


cdef struct Wheel:
    Timer *slots[SLOTS]
    uint64_t used[WORDS]      # bit per slot that is not empty
    int64_t tick                    # the first tick not yet looked at
    uint32_t count                  # timers set


cdef void wheel_set(Wheel *wheel, Timer *timer, int64_t deadline) noexcept nogil
cdef void wheel_clear(Wheel *wheel, Timer *timer) noexcept nogil
cdef Timer *wheel_pop(Wheel *wheel, int64_t now) noexcept nogil
cdef int64_t wheel_next(Wheel *wheel) noexcept nogil
