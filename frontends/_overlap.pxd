# cython: language_level=3
"""The rule that one Txn writes a key at most once."""

from libc.stdint cimport uint16_t

from quorate.core._request cimport KvRequest


cdef uint16_t check_overlap(KvRequest *request) except? 0xffff nogil
