# cython: language_level=3
"""What a worker checks of a KV request before the core sees it."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef struct CheckLimits:
    size_t request_bytes_max    # --max-request-bytes: of one raft proposal
    uint32_t txn_ops_max        # --max-txn-ops


cdef uint16_t check(
    uint32_t method, const uint8_t *data, size_t size, const CheckLimits *limits) noexcept nogil
