"""What a worker refuses at once of the KV and Lease requests, so that the core never hears of it.

The message itself travels on unchanged: the core decodes it again, because it trusts no worker.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from quorate.core._errors cimport ERROR_NONE, ERROR_REQUEST_TOO_LARGE
from quorate.core._leaserequest cimport LeaseRequest, decode_lease, is_lease_method
from quorate.core._protobuf cimport varint_size
from quorate.core._record cimport METHOD_COMPACT, METHOD_DELETE_RANGE, METHOD_PUT, METHOD_TXN
from quorate.core._request cimport (
    KvRequest, check_request, decode_request, is_read_only, request_free,
)
from quorate.frontends._overlap cimport check_overlap

cdef enum:
    # A proposal is the request with its tag and size, and a header of about this many bytes.
    PROPOSAL_HEADER_SIZE = 14
    # Scratch memory above this is given back after the request that needed it.
    SCRATCH_BYTES_MAX = 1048576

cdef KvRequest scratch      # of this process's one pump


cdef uint16_t check(
        uint32_t method, const uint8_t *data, size_t size,
        const CheckLimits *limits) noexcept nogil:
    """The ErrorId that a request deserves before any look-up, ERROR_NONE to pass it on.

    Without memory for the check the request is passed on: the core decides.
    """
    cdef uint16_t error
    cdef LeaseRequest request
    if is_lease_method(method):
        return decode_lease(&request, method, data, size)
    error = _check(method, data, size, limits)
    if (scratch.ops.capacity + scratch.frames.capacity + scratch.compares.capacity
            > SCRATCH_BYTES_MAX):
        request_free(&scratch)
    return error


cdef uint16_t _check(
        uint32_t method, const uint8_t *data, size_t size,
        const CheckLimits *limits) except? 0xffff nogil:
    cdef uint16_t error = decode_request(&scratch, method, data, size)
    if not error:
        error = check_request(&scratch, method, limits.txn_ops_max)
    if not error and method == METHOD_TXN:
        error = check_overlap(&scratch)
    if error or not _is_proposal(method):
        return error
    if 1 + varint_size(size) + size + PROPOSAL_HEADER_SIZE > limits.request_bytes_max:
        return ERROR_REQUEST_TOO_LARGE
    return ERROR_NONE


cdef bint _is_proposal(uint32_t method) noexcept nogil:
    if method == METHOD_TXN:
        return not is_read_only(&scratch)
    return method == METHOD_PUT or method == METHOD_DELETE_RANGE or method == METHOD_COMPACT


def judge(
        uint32_t method, const uint8_t[::1] message, uint32_t txn_ops_max=128,
        size_t request_bytes_max=1572864):
    """`check` for tests: the id of the error that a message gets, 0 = none."""
    cdef CheckLimits limits
    limits.txn_ops_max = txn_ops_max
    limits.request_bytes_max = request_bytes_max
    return check(method, &message[0] if len(message) else NULL, len(message), &limits)
