"""KV requests as C structs: decoding, and etcd's checks of what a client asks for.

Rules:
1. Decoding copies nothing: spans point into the message, which must outlive the request.
2. It takes exactly what Go's protobuf takes: unknown fields are passed over, a field given twice is
   merged or the last one wins, a known field of a wrong wire type counts as unknown, and messages
   nest at most PROTOBUF_DEPTH_MAX deep.
3. Nothing recurses on what a client sent: nesting is walked with an explicit stack.
4. The checks and their order are etcd's (server/etcdserver/api/v3rpc/key.go). They are cheap, and
   made twice: by the worker to answer at once, and by the core, because it trusts no worker. The
   one that is not cheap, of overlapping writes, is the worker's alone: what it lets pass harms
   nobody but its client.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from quorate.core._bytes cimport buffer_free, buffer_reserve
from quorate.core._errors cimport (
    ERROR_EMPTY_KEY, ERROR_INVALID_SORT_OPTION, ERROR_KEY_NOT_FOUND, ERROR_LEASE_PROVIDED,
    ERROR_MALFORMED, ERROR_NONE, ERROR_RANGE_STREAM_FILTER, ERROR_RANGE_STREAM_SORT, ERROR_TOO_DEEP,
    ERROR_TOO_MANY_OPS, ERROR_VALUE_PROVIDED,
)
from quorate.core._protobuf cimport (
    PROTOBUF_DEPTH_MAX, Reader, Span, WIRE_BYTES, WIRE_VARINT, read_bytes, read_tag, read_varint,
    skip_field,
)
from quorate.core._record cimport (
    METHOD_COMPACT, METHOD_DELETE_RANGE, METHOD_HASH, METHOD_HASH_KV, METHOD_PUT, METHOD_RANGE,
    METHOD_RANGE_STREAM, METHOD_TXN,
)


cdef struct Frame:
    # Of the decoder's stack: a TxnRequest or a RequestOp that is being read.
    Reader reader
    int32_t op
    bint is_txn


cdef uint16_t decode_request(
        KvRequest *request, uint32_t method, const uint8_t *data, size_t size) except? 0xffff nogil:
    """Decode a request of `method`: ERROR_NONE, _MALFORMED or _TOO_DEEP. Raises MemoryError."""
    cdef Reader reader
    cdef int32_t root
    reader.at = data
    reader.end = data + size
    request.ops.size = request.compares.size = 0
    root = _new_op(request)
    if method == METHOD_TXN:
        return _decode_txn(request, reader)
    if method == METHOD_RANGE or method == METHOD_RANGE_STREAM:
        return ERROR_NONE if _decode_range(op_at(request, root), &reader) else ERROR_MALFORMED
    if method == METHOD_PUT:
        return ERROR_NONE if _decode_put(op_at(request, root), &reader) else ERROR_MALFORMED
    if method == METHOD_DELETE_RANGE:
        return ERROR_NONE if _decode_delete_range(
            op_at(request, root), &reader) else ERROR_MALFORMED
    if method == METHOD_COMPACT or method == METHOD_HASH_KV or method == METHOD_HASH:
        return ERROR_NONE if _decode_revision(op_at(request, root), &reader) else ERROR_MALFORMED
    return ERROR_MALFORMED


cdef void request_free(KvRequest *request) noexcept nogil:
    """Give the request's memory back."""
    buffer_free(&request.ops)
    buffer_free(&request.compares)
    buffer_free(&request.frames)


# --- checks ---

cdef uint16_t check_request(
        KvRequest *request, uint32_t method, uint32_t txn_ops_max) noexcept nogil:
    """What etcd refuses before it looks at any data; ERROR_NONE when nothing is wrong."""
    cdef Op *op = op_at(request, 0)
    cdef uint16_t error
    if method == METHOD_PUT:
        return _check_put(op)
    if method == METHOD_RANGE:
        return _check_range(op)
    if method == METHOD_TXN:
        return _check_txn(request, 0, txn_ops_max)
    if method == METHOD_DELETE_RANGE:
        return ERROR_EMPTY_KEY if op.key.size == 0 else ERROR_NONE
    if method == METHOD_RANGE_STREAM:
        error = _check_range(op)
        if error:
            return error
        if not is_default_order(op):
            return ERROR_RANGE_STREAM_SORT
        return ERROR_RANGE_STREAM_FILTER if has_revision_filters(op) else ERROR_NONE
    return ERROR_NONE


cdef uint16_t _check_range(const Op *op) noexcept nogil:
    if op.key.size == 0:
        return ERROR_EMPTY_KEY
    if (SORT_NONE <= op.sort_order <= SORT_DESCEND
            and TARGET_KEY <= op.sort_target <= TARGET_VALUE):
        return ERROR_NONE
    return ERROR_INVALID_SORT_OPTION


cdef uint16_t _check_put(const Op *op) noexcept nogil:
    if op.key.size == 0:
        return ERROR_EMPTY_KEY
    if op.ignore_value and op.value.size != 0:
        return ERROR_VALUE_PROVIDED
    if op.ignore_lease and op.lease != 0:
        return ERROR_LEASE_PROVIDED
    return ERROR_NONE


cdef uint16_t _check_txn(KvRequest *request, int32_t index, uint32_t budget) noexcept nogil:
    """A nested Txn has what its parents left of `budget`, which bounds the depth: `_check_list`."""
    cdef Op *op = op_at(request, index)
    cdef Compare *compare
    cdef int32_t at = op.compares.first
    cdef uint32_t most = max(op.compares.count, op.success.count, op.failure.count)
    cdef uint16_t error
    if most > budget:
        return ERROR_TOO_MANY_OPS
    while at != NO_INDEX:
        compare = compare_at(request, at)
        if compare.key.size == 0:
            return ERROR_EMPTY_KEY
        at = compare.next
    error = _check_list(request, op.success.first, budget - most)
    return error if error else _check_list(request, op.failure.first, budget - most)


cdef uint16_t _check_list(KvRequest *request, int32_t at, uint32_t budget) noexcept nogil:
    cdef Op *op
    cdef uint16_t error = ERROR_NONE
    while at != NO_INDEX:
        op = op_at(request, at)
        if op.kind == OP_PUT:
            error = _check_put(op)
        elif op.kind == OP_RANGE:
            error = _check_range(op)
        elif op.kind == OP_DELETE_RANGE:
            error = ERROR_EMPTY_KEY if op.key.size == 0 else ERROR_NONE
        elif op.kind == OP_TXN:
            error = _check_txn(request, at, budget)
        else:
            error = ERROR_KEY_NOT_FOUND
        if error:
            return error
        at = op.next
    return ERROR_NONE


cdef bint is_read_only(KvRequest *request) noexcept nogil:
    """Whether a Txn holds ranges alone (etcd: IsTxnReadonly; a nested Txn counts as a write)."""
    return _all_ranges(request, False)


cdef bint is_serializable(KvRequest *request) noexcept nogil:
    """Whether a Txn holds serializable ranges alone (etcd: IsTxnSerializable)."""
    return _all_ranges(request, True)


cdef bint _all_ranges(KvRequest *request, bint serializable) noexcept nogil:
    cdef Op *op
    cdef int32_t[2] lists
    cdef int32_t at
    lists[0] = op_at(request, 0).success.first
    lists[1] = op_at(request, 0).failure.first
    for at in lists:
        while at != NO_INDEX:
            op = op_at(request, at)
            if op.kind != OP_RANGE or (serializable and not op.serializable):
                return False
            at = op.next
    return True


# --- decoding ---

cdef int32_t _new_op(KvRequest *request) except -2 nogil:
    cdef Op *op
    buffer_reserve(&request.ops, sizeof(Op))
    op = <Op *>(request.ops.data + request.ops.size)
    request.ops.size += sizeof(Op)
    _reset_op(op, OP_NONE)
    op.next = NO_INDEX
    return <int32_t>(request.ops.size // sizeof(Op)) - 1


cdef void _reset_op(Op *op, OpKind kind) noexcept nogil:
    """Empty the operation but for its place in its list."""
    cdef int32_t next = op.next
    memset(op, 0, sizeof(Op))
    op.next = next
    op.kind = kind
    op.compares.first = op.success.first = op.failure.first = NO_INDEX


cdef uint16_t _decode_txn(KvRequest *request, Reader reader) except? 0xffff nogil:
    cdef Frame *frame
    cdef uint32_t field
    cdef int wire
    cdef Span span
    cdef uint16_t error
    op_at(request, 0).kind = OP_TXN
    request.frames.size = 0
    _push_frame(request, reader, 0, True)
    while request.frames.size:
        frame = <Frame *>(request.frames.data + request.frames.size) - 1
        if frame.reader.at == frame.reader.end:
            request.frames.size -= sizeof(Frame)
            continue
        if not read_tag(&frame.reader, &field, &wire):
            return ERROR_MALFORMED
        if wire != WIRE_BYTES or not 1 <= field <= (3 if frame.is_txn else 4):
            if not skip_field(&frame.reader, field, wire):
                return ERROR_MALFORMED
            continue
        if not read_bytes(&frame.reader, &span):
            return ERROR_MALFORMED
        if request.frames.size // sizeof(Frame) >= PROTOBUF_DEPTH_MAX:
            return ERROR_TOO_DEEP
        error = _decode_txn_field(request, frame, field, span)
        if error:
            return error
    return ERROR_NONE


cdef uint16_t _decode_txn_field(
        KvRequest *request, Frame *frame, uint32_t field, Span span) except? 0xffff nogil:
    """A field of TxnRequest (compare, success, failure) or RequestOp (range, put, delete, txn)."""
    cdef Reader reader
    cdef int32_t index = frame.op
    cdef int32_t child
    cdef bint good = True
    cdef Op *op
    reader.at = span.data
    reader.end = span.data + span.size
    if frame.is_txn:
        if field == 1:
            return ERROR_NONE if _decode_compare(request, index, &reader) else ERROR_MALFORMED
        child = _new_op(request)
        op = op_at(request, index)
        _link(request, &op.success if field == 2 else &op.failure, child)
        _push_frame(request, reader, child, False)
        return ERROR_NONE
    op = op_at(request, index)
    # OpKind and the fields of RequestOp's oneof have the same numbers: the last one given wins, the
    # same one given twice is merged.
    if <uint32_t>op.kind != field:
        _reset_op(op, <OpKind>field)
    if field == OP_RANGE:
        good = _decode_range(op, &reader)
    elif field == OP_PUT:
        good = _decode_put(op, &reader)
    elif field == OP_DELETE_RANGE:
        good = _decode_delete_range(op, &reader)
    else:
        _push_frame(request, reader, index, True)
    return ERROR_NONE if good else ERROR_MALFORMED


cdef int _push_frame(KvRequest *request, Reader reader, int32_t op, bint is_txn) except -1 nogil:
    cdef Frame *frame
    buffer_reserve(&request.frames, sizeof(Frame))
    frame = <Frame *>(request.frames.data + request.frames.size)
    request.frames.size += sizeof(Frame)
    frame.reader = reader
    frame.op = op
    frame.is_txn = is_txn
    return 0


cdef void _link(KvRequest *request, OpList *target, int32_t child) noexcept nogil:
    if target.count == 0:
        target.first = child
    else:
        op_at(request, target.last).next = child
    target.last = child
    target.count += 1


cdef bint _decode_compare(KvRequest *request, int32_t txn, Reader *reader) except -1 nogil:
    cdef Compare *compare
    cdef OpList *target
    cdef uint32_t field
    cdef int wire
    cdef uint64_t value = 0
    cdef Span span
    cdef int32_t index = <int32_t>(request.compares.size // sizeof(Compare))
    buffer_reserve(&request.compares, sizeof(Compare))
    request.compares.size += sizeof(Compare)
    compare = compare_at(request, index)
    memset(compare, 0, sizeof(Compare))
    compare.next = compare.operand_target = NO_INDEX
    target = &op_at(request, txn).compares
    if target.count == 0:
        target.first = index
    else:
        compare_at(request, target.last).next = index
    target.last = index
    target.count += 1
    while reader.at < reader.end:
        if not read_tag(reader, &field, &wire):
            return False
        if wire == WIRE_VARINT and (field in (1, 2, 4, 5, 6, 8)):
            if not read_varint(reader, &value):
                return False
            _set_compare_number(compare, field, value)
        elif wire == WIRE_BYTES and (field == 3 or field == 7 or field == 64):
            if not read_bytes(reader, &span):
                return False
            _set_compare_bytes(compare, field, span)
        elif not skip_field(reader, field, wire):
            return False
    return True


cdef void _set_compare_number(Compare *compare, uint32_t field, uint64_t value) noexcept nogil:
    if field == 1:
        compare.result = <int32_t>value
    elif field == 2:
        compare.target = <int32_t>value
    else:
        compare.operand = <int64_t>value
        compare.operand_target = COMPARE_LEASE if field == 8 else <int32_t>field - 4


cdef void _set_compare_bytes(Compare *compare, uint32_t field, Span span) noexcept nogil:
    if field == 3:
        compare.key = span
    elif field == 64:
        compare.range_end = span
    else:
        compare.value = span
        compare.operand_target = COMPARE_VALUE


cdef bint _decode_put(Op *op, Reader *reader) noexcept nogil:
    cdef uint32_t field
    cdef int wire
    cdef uint64_t value = 0
    op.kind = OP_PUT
    while reader.at < reader.end:
        if not read_tag(reader, &field, &wire):
            return False
        if wire == WIRE_BYTES and (field == 1 or field == 2):
            if not read_bytes(reader, &op.key if field == 1 else &op.value):
                return False
        elif wire == WIRE_VARINT and 3 <= field <= 6:
            if not read_varint(reader, &value):
                return False
            if field == 3:
                op.lease = <int64_t>value
            elif field == 4:
                op.prev_kv = value != 0
            elif field == 5:
                op.ignore_value = value != 0
            else:
                op.ignore_lease = value != 0
        elif not skip_field(reader, field, wire):
            return False
    return True


cdef bint _decode_delete_range(Op *op, Reader *reader) noexcept nogil:
    cdef uint32_t field
    cdef int wire
    cdef uint64_t value = 0
    op.kind = OP_DELETE_RANGE
    while reader.at < reader.end:
        if not read_tag(reader, &field, &wire):
            return False
        if wire == WIRE_BYTES and (field == 1 or field == 2):
            if not read_bytes(reader, &op.key if field == 1 else &op.range_end):
                return False
        elif wire == WIRE_VARINT and field == 3:
            if not read_varint(reader, &value):
                return False
            op.prev_kv = value != 0
        elif not skip_field(reader, field, wire):
            return False
    return True


cdef bint _decode_range(Op *op, Reader *reader) noexcept nogil:
    cdef uint32_t field
    cdef int wire
    cdef uint64_t value = 0
    op.kind = OP_RANGE
    while reader.at < reader.end:
        if not read_tag(reader, &field, &wire):
            return False
        if wire == WIRE_BYTES and (field == 1 or field == 2):
            if not read_bytes(reader, &op.key if field == 1 else &op.range_end):
                return False
        elif wire == WIRE_VARINT and 3 <= field <= 13:
            if not read_varint(reader, &value):
                return False
            _set_range_number(op, field, value)
        elif not skip_field(reader, field, wire):
            return False
    return True


cdef void _set_range_number(Op *op, uint32_t field, uint64_t value) noexcept nogil:
    if field == 3:
        op.limit = <int64_t>value
    elif field == 4:
        op.revision = <int64_t>value
    elif field == 5:
        op.sort_order = <int32_t>value
    elif field == 6:
        op.sort_target = <int32_t>value
    elif field == 7:
        op.serializable = value != 0
    elif field == 8:
        op.keys_only = value != 0
    elif field == 9:
        op.count_only = value != 0
    elif field == 10:
        op.min_mod_revision = <int64_t>value
    elif field == 11:
        op.max_mod_revision = <int64_t>value
    elif field == 12:
        op.min_create_revision = <int64_t>value
    else:
        op.max_create_revision = <int64_t>value


cdef bint _decode_revision(Op *op, Reader *reader) noexcept nogil:
    """Compaction- and HashKVRequest: revision is field 1; `physical` (2) goes to `serializable`."""
    cdef uint32_t field
    cdef int wire
    cdef uint64_t value = 0
    while reader.at < reader.end:
        if not read_tag(reader, &field, &wire):
            return False
        if wire == WIRE_VARINT and (field == 1 or field == 2):
            if not read_varint(reader, &value):
                return False
            if field == 1:
                op.revision = <int64_t>value
            else:
                op.serializable = value != 0
        elif not skip_field(reader, field, wire):
            return False
    return True
