# cython: language_level=3
"""The requests of a turn: writes become one run of entries, reads wait for their read index."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from quorate.core._apply cimport Applier
from quorate.core._bytes cimport Buffer
from quorate.core._events cimport Events
from quorate.core._keytree cimport Probe
from quorate.core._port cimport Port
from quorate.core._record cimport Request
from quorate.core._request cimport KvRequest
from quorate.core._run cimport Run, Waiter
from quorate.core._version cimport Version

cdef enum:
    # Reads of one key that are looked up together.
    GETS_MAX = 16


cdef struct Read:
    # A read that waits; the request's bytes follow, padded to 8.
    uint64_t request_id
    uint32_t slot
    uint32_t generation
    uint32_t method
    uint32_t size


cdef struct Get:
    # A read of one key as it is now.
    uint64_t request_id
    uint32_t slot
    int omit
    bint count_only


cdef class Reads:
    # Reads that wait for one read index.
    cdef Buffer requests
    cdef readonly uint32_t count


cdef class Batch:
    cdef list ports                 # slot -> Port, or None while there is no worker
    cdef Applier applier
    cdef readonly Events events
    cdef size_t request_bytes_max   # of a message from a worker
    cdef uint32_t txn_ops_max
    cdef uint64_t entry_id          # of the request made an entry last
    cdef uint64_t lease_id          # chosen for a client last
    # Callable: name -> pairs of a backend file's small buckets, as they are hashed.
    cdef public object buckets
    cdef public uint64_t quota_bytes    # what the backend may take; 0 = as much as it wants
    cdef readonly uint64_t refused_cost     # of the request for which NOSPACE was raised last
    cdef bint raised                # NOSPACE is raised by an entry of this turn's run
    cdef readonly uint32_t taken    # records of this turn
    cdef readonly uint32_t writes   # how many of them became entries
    cdef Run late                   # entries for the next turn's run
    cdef readonly Run run           # the writes of this turn, or None
    cdef readonly Reads reads       # the linearizable reads of this turn, or None
    cdef readonly list asked        # (port, request id, call, payload) for Python, in order
    cdef Get[GETS_MAX] gets         # gathered while reads are served, `gathered` many
    cdef Probe[GETS_MAX] probes     # and where their keys are
    cdef int gathered
    cdef KvRequest request          # scratch
    cdef Buffer copy                # of the record under way: its worker could still change it
    cdef Buffer reply               # scratch

    cdef bint _drain_port(self, Port port) except -1
    cdef int _take(self, Port port, const uint8_t *data, size_t size) except -1
    cdef int _take_kv(
            self, Port port, const Request *asked, const uint8_t *data, size_t size) except -1
    cdef int _propose(
            self, Port port, const Request *asked, uint8_t tag, const uint8_t *data,
            size_t size, uint64_t cost) except -1
    cdef int _raise_no_space(self) except -1
    cdef int _watch(
            self, Port port, const Request *asked, const uint8_t *data, size_t size) except -1
    cdef Run _late_run(self)
    cdef int _add_entry(
            self, Run run, uint8_t tag, const uint8_t *data, size_t size,
            const Waiter *waiter) except -1
    cdef int _take_lease(
            self, Port port, const Request *asked, const uint8_t *data, size_t size) except -1
    cdef int64_t _choose_lease(self) noexcept
    cdef int _read_lease(self, Port port, const Read *read, const uint8_t *data) except -1
    cdef int _keep_alive(self, Port port, const Read *read, int64_t lease_id) except -1
    cdef int _wait_to_read(
            self, Port port, const Request *asked, const uint8_t *data, size_t size) except -1
    cdef int _read(self, Port port, const Read *read, const uint8_t *data) except -1
    cdef int _range(self, Port port, const Read *read) except -1
    cdef int _gather(self, const Read *read) except -1
    cdef int _get_gathered(self) except -1
    cdef int _reply_get(self, const Get *get, const Version *version) except -1
    cdef int _stream(self, Port port, const Read *read) except -1
    cdef int _hash(self, Port port, const Read *read) except -1
