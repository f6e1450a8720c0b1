# cython: language_level=3
"""When writes were due and how many watchers have seen them: what a writer and watchers share.

Rule: both are of one thread. A write whose place in the ring was taken by a later one is unknown:
its latency is not counted.
"""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    # Writes that are remembered: at 10,000 a second, those of the last six seconds.
    RING = 65536


cdef struct Moment:
    uint64_t serial             # of the write; see bench/_keyspace.pyx
    int64_t due                 # ns: when it was to be sent; 0 when another thread wrote it
    int64_t revision            # that the reply or the first event showed; 0 before
    int64_t arrivals            # events of this write


cdef struct Moments:
    Moment *ring                # owned by the watchers
    int64_t arrivals_each       # how many events one write makes
    int64_t undelivered         # writes that not all watchers have seen
    int64_t undelivered_max     # above this a closed loop waits; 0 is no limit


cdef inline void moments_sent(Moments *moments, uint64_t serial, int64_t due) noexcept nogil:
    """A write leaves."""
    cdef Moment *moment = &moments.ring[serial % RING]
    moment.serial = serial
    moment.due = due
    moment.revision = moment.arrivals = 0
    moments.undelivered += 1


cdef inline Moment *moments_arrived(Moments *moments, uint64_t serial) noexcept nogil:
    """An event of this write came to one watcher; NULL when the write is unknown."""
    cdef Moment *moment = &moments.ring[serial % RING]
    if moment.serial > serial:
        return NULL
    if moment.serial < serial:
        moment.serial = serial
        moment.due = moment.revision = moment.arrivals = 0
    moment.arrivals += 1
    if moment.due and moment.arrivals == moments.arrivals_each:
        moments.undelivered -= 1
    return moment


cdef inline bint moments_answered(Moments *moments, uint64_t serial,
                                  int64_t revision) noexcept nogil:
    """The reply to a write came; False when its events showed another revision."""
    cdef Moment *moment = &moments.ring[serial % RING]
    if moment.serial != serial:
        return True
    if moment.revision == 0:
        moment.revision = revision
    return moment.revision == revision
