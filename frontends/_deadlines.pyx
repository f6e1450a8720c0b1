"""A wheel of timers in C memory.

Rules:
1. Times are nanoseconds of one monotonic clock that the caller reads; nothing here knows the time.
2. A timer belongs to its owner's memory; the wheel only links it. Clear it before that memory goes.
3. `wheel_pop` answers expired timers one at a time, already cleared; the owner may set them again.
"""

from libc.stdlib cimport calloc, free

cdef extern from *:
    int __builtin_ctzll(unsigned long long x) noexcept nogil


cdef void wheel_set(Wheel *wheel, Timer *timer, int64_t deadline) noexcept nogil:
    """Let the timer fire once `deadline` has passed, instead of whatever it was set to before."""
    cdef int64_t tick = (deadline >> SLOT_SHIFT) + 1
    cdef uint32_t slot
    if timer.is_set:
        wheel_clear(wheel, timer)
    if tick < wheel.tick:
        tick = wheel.tick
    if tick > wheel.tick + SLOTS - 1:
        tick = wheel.tick + SLOTS - 1
    slot = <uint32_t>(tick & (SLOTS - 1))
    timer.deadline = deadline
    timer.slot = slot
    timer.is_set = True
    timer.previous = NULL
    timer.next = wheel.slots[slot]
    if timer.next != NULL:
        timer.next.previous = timer
    wheel.slots[slot] = timer
    wheel.used[slot >> 6] |= <uint64_t>1 << (slot & 63)
    wheel.count += 1


cdef void wheel_clear(Wheel *wheel, Timer *timer) noexcept nogil:
    """Take the timer out; nothing happens when it is not set."""
    if not timer.is_set:
        return
    if timer.previous != NULL:
        timer.previous.next = timer.next
    else:
        wheel.slots[timer.slot] = timer.next
        if timer.next == NULL:
            wheel.used[timer.slot >> 6] &= ~(<uint64_t>1 << (timer.slot & 63))
    if timer.next != NULL:
        timer.next.previous = timer.previous
    timer.is_set = False
    wheel.count -= 1


cdef Timer *wheel_pop(Wheel *wheel, int64_t now) noexcept nogil:
    """One timer whose deadline has passed, or NULL when there is none."""
    cdef int64_t last = now >> SLOT_SHIFT
    cdef Timer *timer
    while wheel.tick <= last:
        if wheel.count == 0:
            wheel.tick = last + 1
            return NULL
        timer = wheel.slots[wheel.tick & (SLOTS - 1)]
        if timer == NULL:
            wheel.tick += 1
            continue
        wheel_clear(wheel, timer)
        if timer.deadline <= now:
            return timer
        wheel_set(wheel, timer, timer.deadline)
    return NULL


cdef int64_t wheel_next(Wheel *wheel) noexcept nogil:
    """When to look again, in ns; -1: no timer is set. At most one slot after the next deadline."""
    cdef uint32_t start = <uint32_t>(wheel.tick & (SLOTS - 1))
    cdef uint32_t word = start >> 6
    cdef uint64_t bits = wheel.used[word] >> (start & 63) << (start & 63)
    cdef uint32_t slot
    cdef int _step
    if wheel.count == 0:
        return -1
    for _step in range(WORDS + 1):
        if bits:
            slot = word * 64 + <uint32_t>__builtin_ctzll(bits)
            return (wheel.tick + ((slot - start) & (SLOTS - 1))) << SLOT_SHIFT
        word = (word + 1) % WORDS
        bits = wheel.used[word]
    return -1


cdef class Deadlines:
    """Timers by number, for tests of the wheel."""

    cdef Wheel *_wheel
    cdef dict _timers

    def __cinit__(self):
        self._timers = {}
        self._wheel = <Wheel *>calloc(1, sizeof(Wheel))
        if self._wheel == NULL:
            raise MemoryError("no memory for a wheel")

    def __dealloc__(self):
        for address in self._timers.values():
            free(<void *><size_t>address)
        free(self._wheel)

    def set(self, size_t number, int64_t deadline):
        """Set timer `number`."""
        cdef Timer *timer
        if number not in self._timers:
            timer = <Timer *>calloc(1, sizeof(Timer))
            if timer == NULL:
                raise MemoryError("no memory for a timer")
            timer.owner = <void *>number
            self._timers[number] = <size_t>timer
        wheel_set(self._wheel, <Timer *><size_t>self._timers[number], deadline)

    def clear(self, size_t number):
        """Clear timer `number`."""
        wheel_clear(self._wheel, <Timer *><size_t>self._timers[number])

    def pop(self, int64_t now):
        """The numbers of all timers that expired."""
        cdef Timer *timer = wheel_pop(self._wheel, now)
        result = []
        while timer != NULL:
            result.append(<size_t>timer.owner)
            timer = wheel_pop(self._wheel, now)
        return result

    def next(self):
        """When to look again, -1 for never."""
        return wheel_next(self._wheel)
