# cython: language_level=3
"""KV requests as C structs: decoding, and etcd's checks of what a client asks for."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from quorate.core._bytes cimport Buffer
from quorate.core._protobuf cimport Reader, Span

cdef enum OpKind:
    OP_NONE = 0
    OP_RANGE = 1
    OP_PUT = 2
    OP_DELETE_RANGE = 3
    OP_TXN = 4

cdef enum:
    NO_INDEX = -1
    SORT_NONE = 0
    SORT_ASCEND = 1
    SORT_DESCEND = 2
    TARGET_KEY = 0
    TARGET_VERSION = 1
    TARGET_CREATE = 2
    TARGET_MOD = 3
    TARGET_VALUE = 4
    COMPARE_EQUAL = 0
    COMPARE_GREATER = 1
    COMPARE_LESS = 2
    COMPARE_NOT_EQUAL = 3
    COMPARE_VERSION = 0
    COMPARE_CREATE = 1
    COMPARE_MOD = 2
    COMPARE_VALUE = 3
    COMPARE_LEASE = 4


cdef struct OpList:
    int32_t first           # index of the first, NO_INDEX when empty
    int32_t last
    uint32_t count


cdef struct Op:
    # One operation of a request; spans point into the request's bytes.
    OpKind kind
    int32_t next            # the next operation of the same list, NO_INDEX at its end
    Span key
    Span range_end          # range, delete
    Span value              # put
    int64_t lease           # put
    bint prev_kv            # put, delete
    bint ignore_value       # put
    bint ignore_lease       # put
    int64_t limit           # range, from here
    int64_t revision
    int32_t sort_order
    int32_t sort_target
    bint serializable
    bint keys_only
    bint count_only
    int64_t min_mod_revision
    int64_t max_mod_revision
    int64_t min_create_revision
    int64_t max_create_revision
    OpList compares         # txn, from here; these index `Request.compares`
    OpList success
    OpList failure
    bint succeeded          # set when the compares were made: which list runs


cdef struct Compare:
    int32_t next
    int32_t result
    int32_t target
    int32_t operand_target  # the target that the operand was given for, NO_INDEX when none was
    int64_t operand
    Span value
    Span key
    Span range_end


cdef struct KvRequest:
    # A decoded request; zero it before first use, free it with `request_free`.
    Buffer ops              # Op; the request itself is the first
    Buffer compares         # Compare
    Buffer frames           # scratch of the decoder


cdef inline Op *op_at(KvRequest *request, int32_t index) noexcept nogil:
    """An operation by its index; valid until the next decode."""
    return &(<Op *>request.ops.data)[index]


cdef inline Compare *compare_at(KvRequest *request, int32_t index) noexcept nogil:
    """A compare by its index; valid until the next decode."""
    return &(<Compare *>request.compares.data)[index]


cdef inline bint is_default_order(const Op *op) noexcept nogil:
    """Whether a range's answer is in key order as it is (etcd: IsDefaultOrdering)."""
    return op.sort_order == SORT_NONE or (
        op.sort_target == TARGET_KEY and op.sort_order == SORT_ASCEND)


cdef inline bint has_revision_filters(const Op *op) noexcept nogil:
    """Whether a range drops keys by their revisions."""
    return (op.min_mod_revision != 0 or op.max_mod_revision != 0
            or op.min_create_revision != 0 or op.max_create_revision != 0)


cdef inline int omitted(const Op *op) noexcept nogil:
    """Which parts of a key-value a range leaves out (OMIT_*): with keys_only etcd reads its index
    alone and knows no lease, unless it sorts by value.
    """
    if not op.keys_only:
        return 0
    return 1 if op.sort_target == TARGET_VALUE else 3


cdef uint16_t decode_request(
        KvRequest *request, uint32_t method, const uint8_t *data, size_t size) except? 0xffff nogil
cdef uint16_t check_request(
        KvRequest *request, uint32_t method, uint32_t txn_ops_max) noexcept nogil
cdef bint is_read_only(KvRequest *request) noexcept nogil
cdef bint is_serializable(KvRequest *request) noexcept nogil
cdef void request_free(KvRequest *request) noexcept nogil
