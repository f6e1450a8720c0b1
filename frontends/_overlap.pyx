"""The rule that one Txn writes a key at most once (etcd: checkIntervals in api/v3rpc/key.go).

Rules, for each list of operations, nested ones from the inside out:
1. No two of its puts, nested ones included, are to one key; but the two branches of one nested Txn
   may overlap one another, for only one of them runs.
2. No put is to a key that the list itself deletes, nor a nested put to one that an earlier nested
   Txn deletes, nor an own put to one that any nested Txn deletes. A nested delete after a nested
   put is allowed, because etcd allows it.
3. A range whose end is not after its begin covers nothing. "\\0" as range end (from-key) is such a
   range here: etcd's check does not see it, and clients rely on a put after a from-key delete;
   apply copes with what it lets through.

A list of n writes costs O(n log n); writes nested d deep are sorted d times.
"""

from libc.stdint cimport int32_t, uint16_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp

from quorate.core._bytes cimport Buffer, buffer_free, buffer_reserve
from quorate.core._errors cimport ERROR_DUPLICATE_KEY, ERROR_NONE
from quorate.core._protobuf cimport Span
from quorate.core._request cimport KvRequest, NO_INDEX, OP_DELETE_RANGE, OP_PUT, OP_TXN, Op, op_at


cdef struct Deleted:
    # The deleted keys [begin, end), or `begin` alone where `is_point`; `reach` is the farthest end
    # up to here, once sorted.
    Span begin
    Span end
    bint is_point
    Span reach
    bint reach_is_point


cdef struct Writes:
    # Two stacks: what a list wrote lies on top when its walk returns.
    Buffer puts             # Span
    Buffer deletes          # Deleted


cdef uint16_t check_overlap(KvRequest *request) except? 0xffff nogil:
    """ERROR_DUPLICATE_KEY when a decoded and checked Txn breaks the rules. Raises MemoryError."""
    cdef Writes writes
    cdef uint16_t error
    cdef Op *root = op_at(request, 0)
    if root.success.count <= 1 and root.failure.count <= 1 and request.ops.size <= 3 * sizeof(Op):
        return ERROR_NONE
    writes.puts.data = writes.deletes.data = NULL
    writes.puts.size = writes.puts.capacity = writes.deletes.size = writes.deletes.capacity = 0
    try:
        error = _walk(request, &writes, root.success.first)
        if error:
            return error
        writes.puts.size = writes.deletes.size = 0
        return _walk(request, &writes, root.failure.first)
    finally:
        buffer_free(&writes.puts)
        buffer_free(&writes.deletes)


cdef uint16_t _walk(KvRequest *request, Writes *writes, int32_t first) except? 0xffff nogil:
    """One list; its writes stay on the stacks, sorted. The operations' budget bounds nesting."""
    cdef size_t puts = writes.puts.size
    cdef size_t deletes = writes.deletes.size
    cdef size_t own
    cdef Op *op
    cdef uint16_t error
    cdef int32_t at = first
    while at != NO_INDEX:
        op = op_at(request, at)
        if op.kind == OP_DELETE_RANGE:
            _push_delete(writes, op)
        at = op.next
    _sort_deletes(writes, deletes)
    at = first
    while at != NO_INDEX:
        op = op_at(request, at)
        if op.kind == OP_TXN:
            error = _walk_nested(request, writes, op, deletes)
            if error:
                return error
        at = op.next
    own = writes.puts.size
    at = first
    while at != NO_INDEX:
        op = op_at(request, at)
        if op.kind == OP_PUT:
            buffer_reserve(&writes.puts, sizeof(Span))
            (<Span *>(writes.puts.data + writes.puts.size))[0] = op.key
            writes.puts.size += sizeof(Span)
        at = op.next
    if _any_deleted(writes, own, deletes, writes.deletes.size):
        return ERROR_DUPLICATE_KEY
    return ERROR_DUPLICATE_KEY if _sort_puts(writes, puts, False) else ERROR_NONE


cdef uint16_t _walk_nested(
        KvRequest *request, Writes *writes, Op *txn, size_t level_deletes) except? 0xffff nogil:
    cdef size_t puts = writes.puts.size
    cdef size_t deletes = writes.deletes.size
    cdef uint16_t error = _walk(request, writes, txn.success.first)
    if not error:
        error = _walk(request, writes, txn.failure.first)
    if error:
        return error
    _sort_puts(writes, puts, True)
    if _any_deleted(writes, puts, level_deletes, deletes):
        return ERROR_DUPLICATE_KEY
    if writes.deletes.size > deletes:
        _sort_deletes(writes, level_deletes)
    return ERROR_NONE


cdef int _push_delete(Writes *writes, Op *op) except -1 nogil:
    cdef Deleted *deleted
    if op.range_end.size and _compare_spans(&op.range_end, &op.key) <= 0:
        return 0
    buffer_reserve(&writes.deletes, sizeof(Deleted))
    deleted = <Deleted *>(writes.deletes.data + writes.deletes.size)
    writes.deletes.size += sizeof(Deleted)
    deleted.begin = op.key
    deleted.is_point = op.range_end.size == 0
    deleted.end = op.key if deleted.is_point else op.range_end
    return 0


cdef void _sort_deletes(Writes *writes, size_t base) noexcept nogil:
    """Sort what lies above `base` by begin, and note how far the ranges up to each one reach."""
    cdef Deleted *deleted = <Deleted *>(writes.deletes.data + base)
    cdef size_t count = (writes.deletes.size - base) // sizeof(Deleted)
    cdef size_t i
    if count > 1:
        qsort(deleted, count, sizeof(Deleted), _compare_deletes)
    for i in range(count):
        deleted[i].reach = deleted[i].end
        deleted[i].reach_is_point = deleted[i].is_point
        if i and _compare_ends(&deleted[i - 1].reach, deleted[i - 1].reach_is_point,
                               &deleted[i].end, deleted[i].is_point) > 0:
            deleted[i].reach = deleted[i - 1].reach
            deleted[i].reach_is_point = deleted[i - 1].reach_is_point


cdef bint _any_deleted(Writes *writes, size_t puts, size_t begin, size_t end) noexcept nogil:
    """Whether a delete of [begin, end) of the sorted stack covers the key of a put above `puts`."""
    cdef Deleted *deleted = <Deleted *>(writes.deletes.data + begin)
    cdef size_t count = (end - begin) // sizeof(Deleted)
    cdef size_t low, high, middle
    cdef Deleted *before
    cdef Span *put = <Span *>(writes.puts.data + puts)
    cdef Span *last = <Span *>(writes.puts.data + writes.puts.size)
    if count == 0:
        return False
    while put < last:
        low = 0
        high = count
        while low < high:
            middle = (low + high) // 2
            if _compare_spans(&deleted[middle].begin, put) <= 0:
                low = middle + 1
            else:
                high = middle
        if low:
            before = &deleted[low - 1]
            if _compare_ends(put, False, &before.reach, before.reach_is_point) < 0:
                return True
        put += 1
    return False


cdef bint _sort_puts(Writes *writes, size_t base, bint merge) noexcept nogil:
    """Sort the puts above `base`; with `merge` drop what is there twice, else say if any is."""
    cdef Span *puts = <Span *>(writes.puts.data + base)
    cdef size_t count = (writes.puts.size - base) // sizeof(Span)
    cdef size_t kept = 1
    cdef size_t i
    if count < 2:
        return False
    qsort(puts, count, sizeof(Span), _compare_spans)
    for i in range(1, count):
        if _compare_spans(&puts[kept - 1], &puts[i]) != 0:
            puts[kept] = puts[i]
            kept += 1
        elif not merge:
            return True
    writes.puts.size = base + kept * sizeof(Span)
    return False


cdef int _compare_spans(const void *left, const void *right) noexcept nogil:
    cdef const Span *a = <const Span *>left
    cdef const Span *b = <const Span *>right
    cdef int order = memcmp(a.data, b.data, min(a.size, b.size)) if a.size and b.size else 0
    if order:
        return order
    return (a.size > b.size) - (a.size < b.size)


cdef int _compare_deletes(const void *left, const void *right) noexcept nogil:
    return _compare_spans(&(<const Deleted *>left).begin, &(<const Deleted *>right).begin)


cdef int _compare_ends(
        const Span *a, bint a_is_point, const Span *b, bint b_is_point) noexcept nogil:
    """Compare two range ends; that of a point is its key with a zero byte after it."""
    cdef int order = _compare_spans(a, b)
    if order == 0:
        return a_is_point - b_is_point
    if order < 0 and a_is_point and a.size < b.size and memcmp(a.data, b.data, a.size) == 0:
        # `a` is a prefix of `b`: a+"\0" against b.
        if b.data[a.size] == 0:
            return 0 if b.size == a.size + 1 and not b_is_point else -1
    if order > 0 and b_is_point and b.size < a.size and memcmp(a.data, b.data, b.size) == 0:
        if a.data[b.size] == 0:
            return 0 if a.size == b.size + 1 and not a_is_point else 1
    return order
