"""The requests of a turn: writes become one run of entries, reads wait for their read index.

Rules:
1. A record is copied before it is checked, because its worker could still change it, and checked as
   if no worker had: one that does not check is dropped and counted, and its worker gets no answer.
2. One client request that may change state is one entry: InternalRaftRequest {<the request's
   bytes>, header {ID}}.
3. Serializable reads are answered from what is applied; linearizable ones wait, all of a turn's
   together, until raft has told a read index and that index is applied.
4. Keep-alives are linearizable reads, so they are answered in their order: etcd, too, makes sure
   that it leads. One that has to be in the log first is an entry of the next run, and so are all
   that come after it until it is applied.
5. Leases run out at the end of a turn, after the keep-alives that were there: their revokes are
   entries of the next run, no more at a time than what a turn may take, and none before those of
   the time before are applied.
6. What needs room in the backend beyond the quota is refused. The first such request has an entry
   before its own that raises NOSPACE, so that the log refuses it, and its client finds the alarm;
   while the alarm is on, the next ones do not come to the log.
7. A turn takes at most TURN_BYTES_MAX from the rings and at most TURN_RECORDS_MAX records of each.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from quorate.core._apply cimport Applier
from quorate.core._bytes cimport buffer_append, buffer_free, buffer_reserve
from quorate.core._catchup cimport catch_up
from quorate.core._errors cimport ERROR_NO_SPACE
from quorate.core._eventring cimport EventRing
from quorate.core._events cimport Events
from quorate.core._leaserequest cimport LeaseRequest, decode_lease, is_lease_method
from quorate.core._leases cimport (
    LEASE_ENTRY_MAX, LeaseKeys, LeaseList, SHORT_KEYS_MAX, append_kept_alive, append_time_to_live,
    write_checkpoint, write_grant, write_revoke,
)
from quorate.core._lessor cimport Lease, Lessor, needs_log
from quorate.core._listing cimport Hashing, Listing, Stream
from quorate.core._mvcc cimport Store
from quorate.core._port cimport Port
from quorate.core._protobuf cimport varint_size, write_varint
from quorate.core._record cimport (
    METHOD_ADMIN, METHOD_CANCEL, METHOD_COMPACT, METHOD_DELETE_RANGE, METHOD_FOLLOW, METHOD_HASH,
    METHOD_HASH_KV, METHOD_LEASE_CHECKPOINT, METHOD_LEASE_GRANT, METHOD_LEASE_KEEP_ALIVE,
    METHOD_LEASE_LEASES, METHOD_LEASE_REVOKE, METHOD_NONE, METHOD_PULL, METHOD_PUT, METHOD_RANGE,
    METHOD_RANGE_STREAM, METHOD_TXN, METHOD_UNFOLLOW, METHOD_WATCH, REPLY_FIRST, REPLY_LAST,
    REPLY_SLICE_MAX, REPLY_WHOLE, WATCH_PREVIOUS, CatchUpRequest, Request,
)
from quorate.core._reply cimport (
    TAG_RANGE_COUNT, TAG_RANGE_KVS, append_header, append_key_value, append_number,
)
from quorate.core._request cimport (
    KvRequest, NO_INDEX, OP_PUT, OP_TXN, Op, check_request, has_revision_filters, decode_request,
    is_read_only, is_serializable, omitted, op_at, request_free,
)
from quorate.core._run cimport ENTRY_NORMAL, NO_SLOT, Run, Waiter
from quorate.core._selection cimport STEP_KEYS_MAX, Selection
from quorate.core._wholehash cimport WholeHash
from quorate.core.limits import EVENT_RING_BYTES_MIN

cdef enum:
    # InternalRaftRequest: tags of length-delimited fields, and of the header (field 100, 2 bytes).
    TAG_PUT = 34
    TAG_DELETE_RANGE = 42
    TAG_TXN = 50
    TAG_COMPACTION = 58
    TAG_LEASE_GRANT = 66
    TAG_LEASE_REVOKE = 74
    TAG_ALARM = 82
    TAG_LEASE_CHECKPOINT = 90
    # Tag, size, header tag, header size, ID tag, and the varints at their longest.
    ENTRY_OVERHEAD_MAX = 32
    # Bytes of requests taken in one turn: what one sync then writes. About 10 ms of a plain disk.
    TURN_BYTES_MAX = 4194304
    TURN_RECORDS_MAX = 4096
    # Leases in one checkpoint, as in etcd (maxLeaseCheckpointBatchSize).
    CHECKPOINTS_MAX = 1000
    # etcd's estimates of what a put, beside key and value, and a lease take in the backend.
    PUT_COST = 256
    LEASE_COST = 64
    # An AlarmRequest that raises an alarm.
    ALARM_BYTES_MAX = 16


cdef class Reads:
    """Reads that wait for one read index."""

    def __dealloc__(self):
        buffer_free(&self.requests)


cdef class Batch:
    """Takes requests out of the rings, a turn's worth at a time."""

    def __cinit__(
            self, list ports, Applier applier, size_t request_bytes_max, uint32_t txn_ops_max,
            EventRing event_ring=None):
        self.ports = ports
        self.applier = applier
        self.request_bytes_max = request_bytes_max
        self.txn_ops_max = txn_ops_max
        self.asked = []
        self.buckets = dict
        if event_ring is None:
            event_ring = EventRing(EVENT_RING_BYTES_MIN)
        self.events = Events(applier.store, event_ring, ports)

    def __dealloc__(self):
        request_free(&self.request)
        buffer_free(&self.copy)
        buffer_free(&self.reply)

    def drain(self):
        """Take a turn's requests, `taken` many; afterwards `run`, `reads` and `asked` hold what is
        to be done with them.

        Answers whether a ring may hold more.
        """
        cdef Port port
        cdef bint more = False
        self.run = self.late
        self.late = None
        self.reads = None
        self.asked = []
        self.taken = self.writes = 0
        self.raised = False
        for port in self.ports:
            if port is not None and not port.corrupt and self._drain_port(port):
                more = True
        return more

    def waiting(self):
        """Whether a ring holds requests that could be taken; to be asked once more before sleeping.
        """
        cdef Port port
        for port in self.ports:
            if port is None or port.corrupt or port.blocked():
                continue
            if not port.requests.empty():
                return True
        return False

    cdef bint _drain_port(self, Port port) except -1:
        cdef const uint8_t *data = NULL
        cdef size_t size = 0
        cdef size_t taken = 0
        cdef int records = 0
        cdef int got = 0
        while taken < TURN_BYTES_MAX and records < TURN_RECORDS_MAX and not port.blocked():
            got = port.requests.pop(&data, &size)
            if got <= 0:
                break
            self._take(port, data, size)
            taken += size
            records += 1
        if got < 0:
            port.corrupt = True
        if records:
            port.requests.release()
        self.taken += records
        return got > 0

    cdef int _take(self, Port port, const uint8_t *data, size_t size) except -1:
        cdef const Request *asked
        cdef size_t payload = size - sizeof(Request)
        if size < sizeof(Request) or payload > self.request_bytes_max:
            port.dropped += 1
            return 0
        self.copy.size = 0
        buffer_append(&self.copy, data, size)
        asked = <const Request *>self.copy.data
        data = self.copy.data + sizeof(Request)
        if asked.reserved != 0:
            port.dropped += 1
        elif asked.method == METHOD_CANCEL:
            port.cancel(asked.request_id)
        elif asked.method == METHOD_PULL:
            port.pull(asked.request_id, asked.extra)
        elif asked.method == METHOD_WATCH:
            return self._watch(port, asked, data, payload)
        elif asked.method == METHOD_FOLLOW:
            self.events.follow(
                port, asked.request_id, <int64_t>asked.extra, payload != 0 and data[0] != 0)
        elif asked.method == METHOD_UNFOLLOW:
            port.follows = port.wants_previous = False
        elif asked.method == METHOD_ADMIN:
            self.asked.append((port, asked.request_id, asked.extra, data[:payload]))
        else:
            return self._take_kv(port, asked, data, payload)
        return 0

    cdef int _take_kv(
            self, Port port, const Request *asked, const uint8_t *data, size_t size) except -1:
        cdef uint32_t method = asked.method
        cdef uint16_t error
        cdef Read read
        if is_lease_method(method):
            return self._take_lease(port, asked, data, size)
        error = decode_request(&self.request, method, data, size)
        if not error:
            error = check_request(&self.request, method, self.txn_ops_max)
        if error:
            # Its worker lets nothing of this kind pass.
            port.dropped += 1
            return 0
        if method == METHOD_PUT:
            return self._propose(port, asked, TAG_PUT, data, size, cost_of(&self.request, 0))
        if method == METHOD_DELETE_RANGE:
            return self._propose(port, asked, TAG_DELETE_RANGE, data, size, 0)
        if method == METHOD_COMPACT:
            return self._propose(port, asked, TAG_COMPACTION, data, size, 0)
        if method == METHOD_TXN and not is_read_only(&self.request):
            return self._propose(port, asked, TAG_TXN, data, size, cost_of(&self.request, 0))
        if method == METHOD_TXN:
            serializable = is_serializable(&self.request)
        else:
            serializable = op_at(
                &self.request, 0).serializable or method in (METHOD_HASH, METHOD_HASH_KV)
        if not serializable:
            return self._wait_to_read(port, asked, data, size)
        read.request_id = asked.request_id
        read.slot = port.slot
        read.method = method
        read.size = <uint32_t>size
        return self._read(port, &read, data)

    cdef int _watch(
            self, Port port, const Request *asked, const uint8_t *data, size_t size) except -1:
        """A watcher has fallen behind, or begins in the past."""
        cdef CatchUpRequest request
        if size < sizeof(CatchUpRequest):
            port.dropped += 1
            return 0
        memcpy(&request, data, sizeof(CatchUpRequest))
        size -= sizeof(CatchUpRequest)
        if request.key_size > size or request.revision < 0:
            port.dropped += 1
            return 0
        if request.flags & WATCH_PREVIOUS:
            port.wants_previous = True
        return port.start(catch_up(
            self.events, &self.applier.header, self.request_bytes_max, asked.request_id,
            &request, data + sizeof(CatchUpRequest), size))

    cdef int _propose(
            self, Port port, const Request *asked, uint8_t tag, const uint8_t *data,
            size_t size, uint64_t cost) except -1:
        """Make the request an entry of this turn's run; what it costs is room in the backend."""
        cdef Waiter waiter
        cdef uint64_t used
        if cost and self.applier.no_space:
            return port.refuse(asked.request_id, ERROR_NO_SPACE)
        if self.run is None:
            self.run = Run()
        if cost and self.quota_bytes:
            used = self.applier.store.db_size_in_use() + self.applier.promised
            if used + cost >= self.quota_bytes:
                self.refused_cost = cost
                self._raise_no_space()
            else:
                self.run.cost += cost
                self.applier.promised += cost
        waiter.request_id = asked.request_id
        waiter.slot = port.slot
        waiter.generation = port.generation
        waiter.method = asked.method
        self.writes += 1
        return self._add_entry(self.run, tag, data, size, &waiter)

    cdef int _raise_no_space(self) except -1:
        """Have NOSPACE on before what comes next in this turn's run is applied."""
        cdef uint8_t[ALARM_BYTES_MAX] alarm
        cdef uint8_t *at = alarm
        cdef Waiter waiter
        if self.raised:
            return 0
        self.raised = True
        # AlarmRequest {action ACTIVATE, memberID, alarm NOSPACE}
        at[0] = 0x08
        at[1] = 1
        at[2] = 0x10
        at = write_varint(at + 3, self.applier.header.member_id)
        at[0] = 0x18
        at[1] = 1
        waiter.method = METHOD_NONE
        return self._add_entry(self.run, TAG_ALARM, alarm, at + 2 - alarm, &waiter)

    cdef int _add_entry(
            self, Run run, uint8_t tag, const uint8_t *data, size_t size,
            const Waiter *waiter) except -1:
        """An InternalRaftRequest with this request."""
        cdef uint8_t *at
        cdef size_t id_size
        self.entry_id += 1
        id_size = varint_size(self.entry_id)
        at = run.add(1 + varint_size(size) + size + 4 + id_size, ENTRY_NORMAL)
        at[0] = tag
        at = write_varint(at + 1, size)
        if size:
            memcpy(at, data, size)
        at += size
        at[0] = 0xa2
        at[1] = 0x06
        at[2] = <uint8_t>(1 + id_size)
        at[3] = 0x08
        write_varint(at + 4, self.entry_id)
        return run.add_waiter(<Waiter *>waiter)

    cdef Run _late_run(self):
        """The run of the next turn."""
        if self.late is None:
            self.late = Run()
        return self.late

    def propose(self, encode, bint late=False):
        """Add Python's entry, `encode(entry id) -> bytes`, to this turn's run, or to that of the
        next; answers its id.
        """
        cdef Waiter waiter
        cdef bytes data
        cdef uint8_t *at
        cdef Run run
        self.entry_id += 1
        data = encode(self.entry_id)
        if self.run is None and not late:
            self.run = Run()
        run = self._late_run() if late else self.run
        at = run.add(len(data), ENTRY_NORMAL)
        memcpy(at, <const uint8_t *>data, len(data))
        waiter.method = METHOD_NONE
        run.add_waiter(&waiter)
        return self.entry_id

    def refuse_run(self, Run run, uint16_t error):
        """Answer those who wait for a run that was not taken or is lost."""
        cdef const Waiter *waiter = <const Waiter *>run.waiters.data
        cdef const Waiter *end = <const Waiter *>(run.waiters.data + run.waiters.size)
        cdef Port port
        self.applier.promised -= min(run.cost, self.applier.promised)
        while waiter < end:
            port = None
            if waiter.method != METHOD_NONE:
                self.applier.settle(waiter, error)
                port = self.ports[waiter.slot] if waiter.slot != NO_SLOT else None
            if port is not None and port.generation == waiter.generation:
                port.refuse(waiter.request_id, error)
            waiter += 1

    # --- leases ---

    def seed_leases(self, uint64_t start):
        """Where the choice of lease ids for clients begins."""
        self.lease_id = start

    cdef int64_t _choose_lease(self) noexcept:
        """A positive id that no lease has, for a client that leaves the choice to us."""
        cdef int64_t chosen = 0
        while chosen == 0 or self.applier.lessor.find(chosen) != NULL:
            self.lease_id += 1
            chosen = <int64_t>(self.lease_id << 1 >> 1)
        return chosen

    cdef int _take_lease(
            self, Port port, const Request *asked, const uint8_t *data, size_t size) except -1:
        cdef LeaseRequest request
        cdef uint8_t[LEASE_ENTRY_MAX] entry
        if decode_lease(&request, asked.method, data, size):
            port.dropped += 1
            return 0
        if asked.method == METHOD_LEASE_GRANT:
            size = write_grant(entry, request.id or self._choose_lease(), request.ttl)
            return self._propose(port, asked, TAG_LEASE_GRANT, entry, size, LEASE_COST)
        if asked.method == METHOD_LEASE_REVOKE:
            size = write_revoke(entry, request.id)
            return self._propose(port, asked, TAG_LEASE_REVOKE, entry, size, 0)
        return self._wait_to_read(port, asked, data, size)

    cdef int _read_lease(self, Port port, const Read *read, const uint8_t *data) except -1:
        """Answer what is asked of leases, or begin a long answer."""
        cdef LeaseRequest request
        cdef Store store = self.applier.store
        cdef const Lease *lease
        cdef LeaseKeys keys
        cdef LeaseList listing
        decode_lease(&request, read.method, data, read.size)
        if read.method == METHOD_LEASE_KEEP_ALIVE:
            return self._keep_alive(port, read, request.id)
        if read.method == METHOD_LEASE_LEASES:
            listing = LeaseList()
            listing.request_id = read.request_id
            listing.store = store
            listing.header = self.applier.header
            return port.start(listing)
        lease = store.lessor.find(request.id)
        if (request.keys and lease != NULL
                and store.lessor.count_keys(lease, SHORT_KEYS_MAX + 1) > SHORT_KEYS_MAX):
            keys = LeaseKeys()
            keys.request_id = read.request_id
            keys.store = store
            keys.header = self.applier.header
            keys.lease_id = request.id
            return port.start(keys)
        self.reply.size = 0
        append_time_to_live(
            &self.reply, &self.applier.header, store, request.id, request.keys)
        return port.reply_message(read.request_id, self.reply.data, self.reply.size)

    cdef int _keep_alive(self, Port port, const Read *read, int64_t lease_id) except -1:
        """Renew a lease at once, or through the log: rule 4."""
        cdef Lessor lessor = self.applier.lessor
        cdef Lease *lease = lessor.find(lease_id)
        cdef Waiter waiter
        cdef uint8_t[LEASE_ENTRY_MAX] entry
        if lessor.renewing or (lease != NULL and needs_log(lease)):
            waiter.request_id = read.request_id
            waiter.slot = port.slot
            waiter.generation = port.generation
            waiter.method = METHOD_LEASE_KEEP_ALIVE
            lessor.renewing += 1
            if lease != NULL:
                lessor.await_renewal(lease)
            return self._add_entry(
                self._late_run(), TAG_LEASE_CHECKPOINT, entry,
                write_checkpoint(entry, lease_id, 0), &waiter)
        self.reply.size = 0
        append_kept_alive(
            &self.reply, &self.applier.header, self.applier.store.revision, lease_id,
            lessor.renew(lease) if lease != NULL else 0)
        return port.reply(
            read.request_id, REPLY_FIRST | REPLY_LAST, 0, self.reply.size, self.reply.data,
            self.reply.size)

    def expire(self, uint64_t budget):
        """Propose, for the next turn, to revoke leases that have run out and to note what is left
        of others: about `budget` keys and leases. True when the next turn has entries to propose.
        """
        cdef Lessor lessor = self.applier.lessor
        cdef Lease *lease = NULL
        cdef Waiter waiter
        cdef uint8_t[LEASE_ENTRY_MAX] entry
        cdef uint64_t cost
        cdef int checkpoints = 0
        cdef uint32_t entries = 0
        waiter.slot = NO_SLOT
        waiter.generation = 0
        self.reply.size = 0
        while budget and not lessor.proposed and not self.applier.corrupt:
            lease = lessor.next_due()
            if lease == NULL:
                break
            if lease.expiry > lessor.now:
                buffer_append(
                    &self.reply, entry,
                    write_checkpoint(entry, lease.id, lessor.begin_checkpoint(lease)))
                checkpoints += 1
                cost = 1
                if checkpoints == CHECKPOINTS_MAX:
                    break
            else:
                waiter.method = METHOD_LEASE_REVOKE
                waiter.request_id = <uint64_t>lease.id
                cost = 1 + lessor.count_keys(lease, budget)
                lessor.expire(lease)
                self._add_entry(
                    self._late_run(), TAG_LEASE_REVOKE, entry, write_revoke(entry, lease.id),
                    &waiter)
                entries += 1
            budget -= min(cost, budget)
        if checkpoints:
            waiter.method = METHOD_LEASE_CHECKPOINT
            waiter.request_id = 0
            self._add_entry(
                self._late_run(), TAG_LEASE_CHECKPOINT, self.reply.data, self.reply.size, &waiter)
            entries += 1
        lessor.proposed += entries
        return self.late is not None

    # --- reads ---

    cdef int _wait_to_read(
            self, Port port, const Request *asked, const uint8_t *data, size_t size) except -1:
        cdef Read *read
        cdef size_t padded = (size + 7) & ~<size_t>7
        if self.reads is None:
            self.reads = Reads()
        buffer_reserve(&self.reads.requests, sizeof(Read) + padded)
        read = <Read *>(self.reads.requests.data + self.reads.requests.size)
        read.request_id = asked.request_id
        read.slot = port.slot
        read.generation = port.generation
        read.method = asked.method
        read.size = <uint32_t>size
        if size:
            memcpy(<uint8_t *>read + sizeof(Read), data, size)
        self.reads.requests.size += sizeof(Read) + padded
        self.reads.count += 1
        return 0

    def serve(self, Reads reads):
        """Answer reads whose read index is applied; those of one key together, and then in any
        order: their clients do not wait for each other.
        """
        cdef size_t at = 0
        cdef const Read *read
        cdef const uint8_t *data
        cdef Port port
        while at < reads.requests.size:
            read = <const Read *>(reads.requests.data + at)
            data = reads.requests.data + at + sizeof(Read)
            at += sizeof(Read) + ((read.size + 7) & ~<size_t>7)
            port = self.ports[read.slot]
            if port is None or port.generation != read.generation:
                continue
            if not is_lease_method(read.method):
                decode_request(&self.request, read.method, data, read.size)
                if read.method == METHOD_RANGE and is_get(op_at(&self.request, 0)):
                    self._gather(read)
                    continue
            self._read(port, read, data)
        self._get_gathered()

    def refuse(self, Reads reads, uint16_t error):
        """Answer reads that cannot be served."""
        cdef size_t at = 0
        cdef const Read *read
        cdef Port port
        while at < reads.requests.size:
            read = <const Read *>(reads.requests.data + at)
            port = self.ports[read.slot]
            if port is not None and port.generation == read.generation:
                port.refuse(read.request_id, error)
            at += sizeof(Read) + ((read.size + 7) & ~<size_t>7)

    cdef int _read(self, Port port, const Read *read, const uint8_t *data) except -1:
        """Answer a read that is decoded in `request`, or begin a long answer."""
        cdef uint16_t error
        if is_lease_method(read.method):
            return self._read_lease(port, read, data)
        if read.method == METHOD_RANGE:
            return self._range(port, read)
        if read.method == METHOD_RANGE_STREAM:
            return self._stream(port, read)
        if read.method != METHOD_TXN:
            return self._hash(port, read)
        error = self.applier.read(METHOD_TXN, data, read.size)
        if error:
            return port.refuse(read.request_id, error)
        return port.reply_message(read.request_id, self.applier.out.data, self.applier.out.size)

    cdef int _range(self, Port port, const Read *read) except -1:
        cdef Op *op = op_at(&self.request, 0)
        cdef Selection selection
        cdef Listing listing
        cdef uint16_t error
        if is_get(op):
            self._gather(read)
            return self._get_gathered()
        selection = Selection()
        error = selection.begin(self.applier.store, op, False)
        if error:
            return port.refuse(read.request_id, error)
        if selection.step(STEP_KEYS_MAX) and selection.kvs_size < REPLY_SLICE_MAX // 2:
            self.reply.size = 0
            selection.append_all(&self.reply, &self.applier.header)
            return port.reply(
                read.request_id, REPLY_WHOLE, 0, self.reply.size, self.reply.data, self.reply.size)
        selection.hold()
        listing = Listing()
        listing.request_id = read.request_id
        listing.selection = selection
        listing.header = self.applier.header
        return port.start(listing)

    cdef int _gather(self, const Read *read) except -1:
        """Remember a read of one key, which is decoded; its bytes stay until it is answered."""
        cdef const Op *op = op_at(&self.request, 0)
        cdef Get *get = &self.gets[self.gathered]
        cdef Probe *probe = &self.probes[self.gathered]
        get.request_id = read.request_id
        get.slot = read.slot
        get.omit = omitted(op)
        get.count_only = op.count_only
        probe.key = op.key.data
        probe.size = op.key.size
        self.gathered += 1
        if self.gathered == GETS_MAX:
            return self._get_gathered()
        return 0

    cdef int _get_gathered(self) except -1:
        """Answer the reads of one key that are gathered: the road of most reads."""
        cdef int count = self.gathered
        cdef int i
        self.gathered = 0
        self.applier.store.get_each(self.probes, count)
        for i in range(count):
            self._reply_get(&self.gets[i], <const Version *>self.probes[i].item)
        return 0

    cdef int _reply_get(self, const Get *get, const Version *version) except -1:
        cdef Port port = self.ports[get.slot]
        self.reply.size = 0
        append_header(&self.reply, &self.applier.header, self.applier.store.revision)
        if version != NULL:
            if not get.count_only:
                append_key_value(&self.reply, TAG_RANGE_KVS, version, get.omit)
            append_number(&self.reply, TAG_RANGE_COUNT, 1)
        return port.reply_message(get.request_id, self.reply.data, self.reply.size)

    cdef int _stream(self, Port port, const Read *read) except -1:
        cdef Selection selection = Selection()
        cdef Stream stream
        cdef uint16_t error = selection.begin(self.applier.store, op_at(&self.request, 0), False)
        if error:
            return port.refuse(read.request_id, error)
        selection.hold()
        stream = Stream()
        stream.request_id = read.request_id
        stream.selection = selection
        stream.header = self.applier.header
        stream.chunk_bytes = self.request_bytes_max
        return port.start(stream)

    cdef int _hash(self, Port port, const Read *read) except -1:
        cdef Hashing hashing
        cdef WholeHash whole
        cdef int error
        if read.method == METHOD_HASH:
            whole = WholeHash()
            whole.request_id = read.request_id
            whole.store = self.applier.store
            whole.header = self.applier.header
            whole.begin(self.buckets())
            return port.start(whole)
        hashing = Hashing()
        hashing.request_id = read.request_id
        hashing.store = self.applier.store
        hashing.header = self.applier.header
        error = hashing.store.hash_begin(&hashing.state, op_at(&self.request, 0).revision)
        if error:
            return port.refuse(read.request_id, <uint16_t>error)
        return port.start(hashing)


cdef inline bint is_get(const Op *op) noexcept nogil:
    """Whether a Range is of one key as it is now."""
    return op.range_end.size == 0 and op.revision <= 0 and not has_revision_filters(op)


cdef uint64_t cost_of(KvRequest *request, int32_t at) noexcept nogil:
    """What etcd expects the puts of a request to take in the backend: of a Txn's two lists the
    larger one.
    """
    cdef const Op *op = op_at(request, at)
    cdef uint64_t[2] sums
    cdef int i
    if op.kind == OP_PUT:
        return PUT_COST + op.key.size + op.value.size
    if op.kind != OP_TXN:
        return 0
    for i in range(2):
        sums[i] = 0
        at = op.failure.first if i else op.success.first
        while at != NO_INDEX:
            sums[i] += cost_of(request, at)
            at = op_at(request, at).next
    return max(sums[0], sums[1])
