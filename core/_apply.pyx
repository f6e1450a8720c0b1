"""Committed entries and reads -> the store and its leases, and the replies to them.

Rules:
1. Apply is total: whatever a committed entry holds, it is applied or has a deterministic error, on
   every member alike, and never raises. A MemoryError is not an answer: it stops the process.
2. A Txn is compared and checked whole before its first write: an error changes nothing. Compares
   see the store as it was before the Txn, nested ones too (etcd: compareToPath).
3. Where etcd's own check misses that an earlier delete of the same Txn takes the key that a put
   with `ignore_value` or `ignore_lease` needs, and panics midway, we answer `key not found`.
4. A reply is encoded once, here; workers only frame it.
5. A revoke deletes all keys of its lease in one revision, in the order of the keys.
6. A keep-alive that had to go through the log renews its lease here, if no revoke came before it.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memmove

from quorate.core._bytes cimport buffer_append, buffer_free, buffer_reserve, load_le32
from quorate.core._errors cimport (
    ERROR_COMPACTED, ERROR_CORRUPT, ERROR_EMPTY_KEY, ERROR_FUTURE_REVISION, ERROR_KEY_NOT_FOUND,
    ERROR_LEASE_NOT_FOUND, ERROR_MALFORMED, ERROR_NONE, ERROR_NO_SPACE,
)
from quorate.core._leaserequest cimport LeaseRequest, decode_lease
from quorate.core._leases cimport append_granted, append_kept_alive
from quorate.core._lessor cimport KeyRow, Lease
from quorate.core._listing cimport CompactionWait
from quorate.core._mvcc cimport Cursor, Store
from quorate.core._port cimport Port
from quorate.core._protobuf cimport (
    Reader, Span, WIRE_BYTES, WIRE_VARINT, read_bytes, read_tag, read_varint, skip_field,
)
from quorate.core._record cimport (
    METHOD_COMPACT, METHOD_DELETE_RANGE, METHOD_LEASE_CHECKPOINT, METHOD_LEASE_GRANT,
    METHOD_LEASE_KEEP_ALIVE, METHOD_LEASE_REVOKE, METHOD_NONE, METHOD_PUT, METHOD_RANGE, METHOD_TXN,
    REPLY_FIRST, REPLY_LAST,
)
from quorate.core._reply cimport (
    Header, OMIT_NOTHING, TAG_DELETE_DELETED, TAG_DELETE_PREV_KVS, TAG_PUT_PREV_KV,
    TAG_TXN_RESPONSES, TAG_TXN_SUCCEEDED, append_header, append_key_value, append_number,
    close_nested, open_nested,
)
from quorate.core._request cimport (
    COMPARE_CREATE, COMPARE_EQUAL, COMPARE_GREATER, COMPARE_LEASE, COMPARE_LESS, COMPARE_MOD,
    COMPARE_NOT_EQUAL, COMPARE_VALUE, COMPARE_VERSION, Compare, KvRequest, NO_INDEX,
    OP_DELETE_RANGE, OP_PUT, OP_RANGE, OP_TXN, Op, compare_at, decode_request, op_at, request_free,
)
from quorate.core._run cimport ENTRY_HEADER_SIZE, ENTRY_NORMAL, NO_SLOT, Run, Waiter
from quorate.core._selection cimport Selection
from quorate.core._version cimport (
    Version, version_lease, version_value, version_value_size,
)

cdef enum:
    # Scratch memory above this is given back after the request that needed it.
    SCRATCH_BYTES_MAX = 1048576
    # Bytes that stand before the responses of a Txn, at most: the header and `succeeded`.
    TXN_HEAD_MAX = 64


cdef class Applier:
    """Runs KV operations on the store and encodes what they answer."""

    def __cinit__(self, Store store, list ports, others):
        self.store = store
        self.ports = ports
        self.others = others
        self.lessor = store.lessor

    def __dealloc__(self):
        request_free(&self.request)
        buffer_free(&self.out)
        buffer_free(&self.deleted)
        buffer_free(&self.path)

    def identify(self, uint64_t cluster_id, uint64_t member_id):
        """Tell the ids that replies show."""
        self.header.cluster_id = cluster_id
        self.header.member_id = member_id

    def set_term(self, uint64_t term):
        """Tell the raft term that replies show."""
        self.header.raft_term = term

    def set_time(self, int64_t milliseconds):
        """Tell what time it is by the core's clock."""
        self.lessor.now = max(self.lessor.now, milliseconds)

    def figures(self):
        """(live keys, bytes of a checkpoint, bytes in use of these)."""
        return self.store.live_keys(), self.store.db_size(), self.store.db_size_in_use()

    def compact_step(self, uint64_t budget):
        """Remove about `budget` compacted versions; True while there is more to do at once."""
        return self.store.compact_step(budget)

    def resume(self, uint64_t index, uint64_t restored):
        """The next entry to come is behind `index`; the store has what those up to `restored` did.

        The others hear of these entries, too: what they made of them is not in the store.
        """
        assert self.applied == 0 and index <= restored, (self.applied, index, restored)
        self.applied = index
        self.restored = restored

    def apply(self, Run run):
        """Apply a committed run, whole, and answer those who wait for its entries."""
        cdef size_t at = 0
        cdef uint64_t index = run.first_index
        cdef const uint8_t *entry
        cdef size_t size
        cdef Waiter *waiter = <Waiter *>run.waiters.data
        assert index == self.applied + 1, (index, self.applied)
        self.promised -= min(run.cost, self.promised)
        while at < run.entries.size:
            entry = run.entries.data + at
            size = load_le32(entry)
            self._apply_entry(index, load_le32(entry + 4), entry + ENTRY_HEADER_SIZE, size, waiter)
            self.applied = index
            at += ENTRY_HEADER_SIZE + size
            index += 1
            if waiter != NULL:
                waiter += 1
        if (self.out.capacity + self.request.ops.capacity + self.deleted.capacity
                > SCRATCH_BYTES_MAX):
            buffer_free(&self.out)
            buffer_free(&self.deleted)
            request_free(&self.request)

    cdef int _apply_entry(
            self, uint64_t index, uint32_t entry_type, const uint8_t *data, size_t size,
            const Waiter *waiter) except -1:
        cdef Span request
        cdef uint32_t method = METHOD_NONE
        if size == 0 and entry_type == ENTRY_NORMAL:
            return 0    # a new leader's first entry
        if entry_type == ENTRY_NORMAL:
            method = _method_of(data, size, &request)
        if method == METHOD_NONE:
            self.others(entry_type, index, data[:size])
            return 0
        if index <= self.restored:
            return 0
        return self._answer(waiter, self.write(method, request.data, request.size))

    cdef int _answer(self, const Waiter *waiter, uint16_t error) except -1:
        """Tell who waits; a worker that was replaced meanwhile waits no more."""
        cdef Port port
        cdef CompactionWait wait
        if waiter == NULL or waiter.method == METHOD_NONE:
            return 0
        self.settle(waiter, error)
        if waiter.slot == NO_SLOT:
            return 0
        port = self.ports[waiter.slot]
        if port is None or port.generation != waiter.generation:
            return 0
        if waiter.method == METHOD_LEASE_KEEP_ALIVE:
            return self._answer_keep_alive(port, waiter)
        if error:
            return port.refuse(waiter.request_id, error)
        if waiter.method == METHOD_COMPACT and op_at(&self.request, 0).serializable:
            wait = CompactionWait()
            wait.request_id = waiter.request_id
            wait.store = self.store
            wait.header = self.header
            wait.revision = op_at(&self.request, 0).revision
            return port.start(wait)
        return port.reply_message(waiter.request_id, self.out.data, self.out.size)

    cdef void settle(self, const Waiter *waiter, uint16_t error) noexcept:
        """An entry of leases is applied or refused: take it off what is under way."""
        if waiter.slot == NO_SLOT:
            self.lessor.proposed -= min(self.lessor.proposed, 1u)
            if error and error != ERROR_LEASE_NOT_FOUND:
                self.lessor.unexpire(<int64_t>waiter.request_id)
        elif waiter.method == METHOD_LEASE_KEEP_ALIVE:
            self.lessor.renewing -= min(self.lessor.renewing, 1u)

    # --- one operation; the reply is left in `out` ---

    cdef uint16_t write(self, uint32_t method, const uint8_t *data, size_t size) except? 0xffff:
        """Run what a committed entry asks for; answers an ErrorId, and then nothing changed."""
        cdef uint16_t error
        cdef Op *op
        self.out.size = 0
        if method >= METHOD_LEASE_GRANT:
            return self._lease(method, data, size)
        error = decode_request(&self.request, method, data, size)
        op = op_at(&self.request, 0)
        if error:
            return error
        if self.corrupt:
            return ERROR_CORRUPT
        if method == METHOD_PUT:
            return self._put(op)
        if method == METHOD_TXN:
            return self._txn(True)
        if method == METHOD_DELETE_RANGE:
            return self._delete_range(op)
        if method == METHOD_COMPACT:
            return self._compact(op)
        return ERROR_NONE       # etcd once logged ranges; they change nothing

    cdef uint16_t read(self, uint32_t method, const uint8_t *data, size_t size) except? 0xffff:
        """Run a read-only Txn on what is applied."""
        cdef uint16_t error = decode_request(&self.request, method, data, size)
        self.out.size = 0
        if error:
            return error
        return self._txn(False)

    cdef uint16_t _put(self, const Op *op) except? 0xffff:
        cdef uint16_t error
        if self.no_space:
            return ERROR_NO_SPACE
        self.path.size = 0
        error = self._check_put(op)
        if error:
            return error
        self.store.begin()
        self._append_put(op, &self.header)
        self.store.end()
        return ERROR_NONE

    cdef int _append_put(self, const Op *op, const Header *header) except -1:
        cdef Version *previous = NULL
        cdef Span value = op.value
        cdef int64_t lease = op.lease
        if op.prev_kv or op.ignore_value or op.ignore_lease:
            previous = self.store.get(op.key.data, op.key.size, 0)
        if previous != NULL and op.ignore_value:
            value.data = version_value(previous)
            value.size = version_value_size(previous)
        if previous != NULL and op.ignore_lease:
            lease = version_lease(previous)
        self.store.put(op.key.data, op.key.size, value.data, value.size, lease)
        append_header(&self.out, header, self.store.write_revision())
        if previous != NULL and op.prev_kv:
            append_key_value(&self.out, TAG_PUT_PREV_KV, previous, OMIT_NOTHING)
        return 0

    cdef uint16_t _delete_range(self, const Op *op) except? 0xffff:
        if op.key.size == 0:
            return ERROR_EMPTY_KEY
        self.store.begin()
        self._append_delete(op, &self.header)
        self.store.end()
        return ERROR_NONE

    cdef int _append_delete(self, const Op *op, const Header *header) except -1:
        cdef Version **version
        cdef Version **end
        cdef int64_t deleted
        self.deleted.size = 0
        deleted = self.store.delete_range(
            op.key.data, op.key.size, op.range_end.data, op.range_end.size,
            &self.deleted if op.prev_kv else NULL)
        append_header(&self.out, header, self.store.write_revision())
        append_number(&self.out, TAG_DELETE_DELETED, <uint64_t>deleted)
        version = <Version **>self.deleted.data
        end = <Version **>(self.deleted.data + self.deleted.size)
        while version < end:
            append_key_value(&self.out, TAG_DELETE_PREV_KVS, version[0], OMIT_NOTHING)
            version += 1
        return 0

    cdef uint16_t _compact(self, const Op *op) except? 0xffff:
        cdef int error = self.store.compact(op.revision)
        if error:
            return <uint16_t>error
        append_header(&self.out, &self.header, self.store.revision)
        return ERROR_NONE

    # --- leases ---

    cdef uint16_t _lease(
            self, uint32_t method, const uint8_t *data, size_t size) except? 0xffff:
        cdef LeaseRequest request
        if method == METHOD_LEASE_CHECKPOINT:
            return self._checkpoint(data, size)
        if decode_lease(&request, method, data, size):
            return ERROR_MALFORMED
        self.lease_id = request.id
        if self.corrupt:
            return ERROR_CORRUPT
        if method == METHOD_LEASE_GRANT:
            return self._grant(request.id, request.ttl)
        return self._revoke(request.id)

    cdef uint16_t _grant(self, int64_t lease_id, int64_t ttl) except? 0xffff:
        cdef uint16_t error
        if self.no_space:
            return ERROR_NO_SPACE
        error = self.lessor.grant(lease_id, ttl)
        if error:
            return error
        append_granted(
            &self.out, &self.header, self.store.revision, lease_id, max(ttl, self.lessor.ttl_min))
        return ERROR_NONE

    cdef uint16_t _revoke(self, int64_t lease_id) except? 0xffff:
        cdef Lease *lease = self.lessor.find(lease_id)
        cdef const KeyRow *row
        cdef const KeyRow *end
        if lease == NULL:
            return ERROR_LEASE_NOT_FOUND
        self.deleted.size = 0
        self.lessor.append_keys(lease, &self.deleted)
        row = <const KeyRow *>self.deleted.data
        end = row + self.deleted.size // sizeof(KeyRow)
        self.store.begin()
        while row < end:
            self.store.delete_version(row.version)
            row += 1
        self.store.end()
        self.lessor.remove(lease)
        append_header(&self.out, &self.header, self.store.revision)
        return ERROR_NONE

    cdef uint16_t _checkpoint(self, const uint8_t *data, size_t size) noexcept:
        """Note what is left of each lease that is still there."""
        cdef Reader reader
        cdef Reader one
        cdef Span span
        cdef uint32_t field
        cdef int wire
        cdef uint64_t[2] values
        cdef Lease *lease
        reader.at = data
        reader.end = data + size
        while reader.at < reader.end:
            if not read_tag(&reader, &field, &wire):
                return ERROR_MALFORMED
            if field != 1 or wire != WIRE_BYTES:
                if not skip_field(&reader, field, wire):
                    return ERROR_MALFORMED
                continue
            if not read_bytes(&reader, &span):
                return ERROR_MALFORMED
            one.at = span.data
            one.end = span.data + span.size
            values[0] = values[1] = 0
            while one.at < one.end:
                if not read_tag(&one, &field, &wire):
                    return ERROR_MALFORMED
                if wire == WIRE_VARINT and field <= 2:
                    if not read_varint(&one, &values[field - 1]):
                        return ERROR_MALFORMED
                elif not skip_field(&one, field, wire):
                    return ERROR_MALFORMED
            self.lease_id = <int64_t>values[0]
            lease = self.lessor.find(self.lease_id)
            if lease != NULL:
                self.lessor.checkpoint(lease, <int64_t>values[1])
        return ERROR_NONE

    cdef int _answer_keep_alive(self, Port port, const Waiter *waiter) except -1:
        """The log decided: the lease is there and renewed, or it is gone."""
        cdef Lease *lease = self.lessor.find(self.lease_id)
        cdef int64_t ttl = 0
        if lease != NULL:
            ttl = self.lessor.renew(lease)
        self.out.size = 0
        append_kept_alive(&self.out, &self.header, self.store.revision, self.lease_id, ttl)
        return port.reply(
            waiter.request_id, REPLY_FIRST | REPLY_LAST, 0, self.out.size, self.out.data,
            self.out.size)

    # --- Txn ---

    cdef uint16_t _txn(self, bint writes) except? 0xffff:
        cdef uint16_t error
        self._compare(0)
        if writes and self.no_space and _has_put(&self.request):
            return ERROR_NO_SPACE
        self.path.size = 0
        error = self._check(0, writes)
        if error:
            return error
        if writes:
            self.store.begin()
        self._append_txn(0, &self.header, writes)
        if writes:
            self.store.end()
        return ERROR_NONE

    cdef void _compare(self, int32_t txn) noexcept:
        """Decide which list of a Txn runs, and of the nested ones in that list."""
        cdef Op *op = op_at(&self.request, txn)
        cdef Compare *compare
        cdef int32_t at = op.compares.first
        op.succeeded = True
        while at != NO_INDEX:
            compare = compare_at(&self.request, at)
            if not _holds(self.store, compare):
                op.succeeded = False
                break
            at = compare.next
        at = op.success.first if op.succeeded else op.failure.first
        while at != NO_INDEX:
            if op_at(&self.request, at).kind == OP_TXN:
                self._compare(at)
            at = op_at(&self.request, at).next

    cdef uint16_t _check(self, int32_t txn, bint writes) except? 0xffff:
        """Whatever can go wrong with the list that runs, in its order."""
        cdef Op *op = op_at(&self.request, txn)
        cdef int32_t at = op.success.first if op.succeeded else op.failure.first
        cdef uint16_t error = ERROR_NONE
        while at != NO_INDEX:
            op = op_at(&self.request, at)
            if op.kind == OP_RANGE:
                error = self._check_range(op)
            elif op.kind == OP_PUT:
                error = self._check_put(op)
            elif op.kind == OP_TXN:
                error = self._check(at, writes)
            elif op.kind == OP_DELETE_RANGE:
                error = ERROR_EMPTY_KEY if op.key.size == 0 else ERROR_NONE
                buffer_append(&self.path, <const uint8_t *>&at, sizeof(at))
            if error:
                return error
            at = op.next
        return ERROR_NONE

    cdef uint16_t _check_range(self, const Op *op) noexcept:
        # etcd's checkRange: a negative revision, too, is older than what was compacted.
        if op.revision == 0:
            return ERROR_NONE
        if op.revision > self.store.revision:
            return ERROR_FUTURE_REVISION
        return ERROR_COMPACTED if op.revision < self.store.compact_revision else ERROR_NONE

    cdef uint16_t _check_put(self, const Op *op) except? 0xffff:
        cdef int32_t *deleted = <int32_t *>self.path.data
        cdef size_t count = self.path.size // sizeof(int32_t)
        cdef size_t i
        if op.key.size == 0:
            return ERROR_EMPTY_KEY
        if op.lease != 0 and self.lessor.find(op.lease) == NULL:
            return ERROR_LEASE_NOT_FOUND
        if not op.ignore_value and not op.ignore_lease:
            return ERROR_NONE
        if self.store.get(op.key.data, op.key.size, 0) == NULL:
            return ERROR_KEY_NOT_FOUND
        for i in range(count):
            if _covers(op_at(&self.request, deleted[i]), op.key):
                return ERROR_KEY_NOT_FOUND
        return ERROR_NONE

    cdef int _append_txn(self, int32_t txn, const Header *header, bint writes) except -1:
        """Run a Txn and append its response; the header's revision is that after its writes."""
        cdef Op *op = op_at(&self.request, txn)
        cdef bint succeeded = op.succeeded
        cdef size_t start = self.out.size
        cdef size_t gap
        cdef size_t end
        # The header comes first and its revision is known last, but not its size: leave it room,
        # then close up.
        buffer_reserve(&self.out, TXN_HEAD_MAX)
        self.out.size += TXN_HEAD_MAX
        self._append_ops(op.success.first if succeeded else op.failure.first, writes)
        end = self.out.size
        self.out.size = start
        if header == NULL:
            append_header(&self.out, NULL, 0)   # etcd leaves the header of a nested Txn empty
        else:
            append_header(
                &self.out, header, self.store.write_revision() if writes else self.store.revision)
        append_number(&self.out, TAG_TXN_SUCCEEDED, succeeded)
        gap = start + TXN_HEAD_MAX
        memmove(self.out.data + self.out.size, self.out.data + gap, end - gap)
        self.out.size += end - gap
        return 0

    cdef int _append_ops(self, int32_t at, bint writes) except -1:
        cdef Op *op
        cdef Selection selection
        cdef size_t response
        cdef size_t inner
        while at != NO_INDEX:
            op = op_at(&self.request, at)
            response = open_nested(&self.out, TAG_TXN_RESPONSES)
            if op.kind:
                # ResponseOp's oneof has the numbers of OpKind.
                inner = open_nested(&self.out, <uint8_t>(op.kind << 3 | WIRE_BYTES))
                if op.kind == OP_PUT:
                    self._append_put(op, NULL)
                elif op.kind == OP_RANGE:
                    selection = Selection()
                    selection.begin(self.store, op, writes)
                    selection.append_all(&self.out, NULL)
                elif op.kind == OP_DELETE_RANGE:
                    self._append_delete(op, NULL)
                else:
                    self._append_txn(at, NULL, writes)
                close_nested(&self.out, inner)
            close_nested(&self.out, response)
            at = op_at(&self.request, at).next
        return 0


cdef uint32_t _method_of(const uint8_t *data, size_t size, Span *request) noexcept nogil:
    """Which request an InternalRaftRequest carries; METHOD_NONE: one for Python, or malformed."""
    cdef Reader reader
    cdef uint32_t field
    cdef uint32_t method = METHOD_NONE
    cdef int wire
    reader.at = data
    reader.end = data + size
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return METHOD_NONE
        if wire == WIRE_BYTES and field == 2:
            # A request of the v2 API, in its field or, up to etcd 3.4, bare: then 2 is its method,
            # and what follows only looks like the fields below. etcd, too, asks for it first.
            return METHOD_NONE
        if wire == WIRE_BYTES and 3 <= field <= 11 and field != 10:
            if not read_bytes(&reader, request):
                return METHOD_NONE
            method = METHODS[field - 3]
        elif not skip_field(&reader, field, wire):
            return METHOD_NONE
    return method


# By the number of its field; 10 is an alarm.
cdef uint32_t[9] METHODS
METHODS[:] = [
    METHOD_RANGE, METHOD_PUT, METHOD_DELETE_RANGE, METHOD_TXN, METHOD_COMPACT, METHOD_LEASE_GRANT,
    METHOD_LEASE_REVOKE, METHOD_NONE, METHOD_LEASE_CHECKPOINT,
]


cdef bint _has_put(KvRequest *request) noexcept nogil:
    """Whether any list of a Txn, nested too, has a put: it needs room (etcd: applierV3Capped)."""
    cdef Op *op = op_at(request, 0)
    cdef Op *end = op + request.ops.size // sizeof(Op)
    while op < end:
        if op.kind == OP_PUT:
            return True
        op += 1
    return False


cdef bint _covers(const Op *deleted, Span key) noexcept nogil:
    """Whether a delete takes the key."""
    cdef int order = _compare_spans(key, deleted.key)
    if deleted.range_end.size == 0:
        return order == 0
    if order < 0:
        return False
    if deleted.range_end.size == 1 and deleted.range_end.data[0] == 0:
        return True
    return _compare_spans(key, deleted.range_end) < 0


cdef int _compare_spans(Span a, Span b) noexcept nogil:
    cdef int order = memcmp(a.data, b.data, min(a.size, b.size)) if a.size and b.size else 0
    return order if order else (a.size > b.size) - (a.size < b.size)


cdef bint _holds(Store store, const Compare *compare) noexcept:
    """Whether a compare is true of all keys of its range; a missing key has zeros but no value."""
    cdef Cursor cursor
    cdef Version *version
    if compare.range_end.size == 0:
        version = store.get(compare.key.data, compare.key.size, 0)
        return _holds_for(compare, version)
    store.seek(
        &cursor, compare.key.data, compare.key.size, compare.range_end.data,
        compare.range_end.size, 0)
    version = store.next(&cursor)
    if version == NULL:
        return _holds_for(compare, NULL)
    while version != NULL:
        if not _holds_for(compare, version):
            return False
        version = store.next(&cursor)
    return True


cdef bint _holds_for(const Compare *compare, const Version *version) noexcept nogil:
    cdef int64_t operand = compare.operand if compare.operand_target == compare.target else 0
    cdef int64_t stored = 0
    cdef int order = 0
    cdef Span value
    cdef Span wanted
    if compare.target == COMPARE_VALUE:
        if version == NULL:
            return False
        value.data = version_value(version)
        value.size = version_value_size(version)
        wanted = compare.value
        if compare.operand_target != COMPARE_VALUE:
            wanted.size = 0
        order = _compare_spans(value, wanted)
    elif COMPARE_VERSION <= compare.target <= COMPARE_LEASE:
        if version != NULL:
            stored = _number(compare.target, version)
        order = (stored > operand) - (stored < operand)
    if compare.result == COMPARE_EQUAL:
        return order == 0
    if compare.result == COMPARE_GREATER:
        return order > 0
    if compare.result == COMPARE_LESS:
        return order < 0
    return order != 0 if compare.result == COMPARE_NOT_EQUAL else True


cdef int64_t _number(int32_t target, const Version *version) noexcept nogil:
    if target == COMPARE_VERSION:
        return version.version
    if target == COMPARE_CREATE:
        return version.create_revision
    return version.mod_revision if target == COMPARE_MOD else version_lease(version)
