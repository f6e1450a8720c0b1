# cython: language_level=3
"""Committed entries and reads of the KV API -> the store, and the replies to them."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from quorate.core._bytes cimport Buffer
from quorate.core._lessor cimport Lessor
from quorate.core._mvcc cimport Store
from quorate.core._port cimport Port
from quorate.core._reply cimport Header
from quorate.core._request cimport Compare, KvRequest, Op
from quorate.core._run cimport Run, Waiter
from quorate.core._selection cimport Selection
from quorate.core._version cimport Version


cdef class Applier:
    cdef readonly Store store
    cdef Header header              # of every reply; `raft_term` follows the leader
    cdef public bint no_space       # the NOSPACE alarm is on: what needs room is refused
    cdef public bint corrupt        # the CORRUPT alarm is on: what changes anything is refused
    cdef readonly uint64_t promised     # bytes that runs under way may take in the backend
    cdef readonly uint64_t applied  # raft index of the last entry applied
    cdef readonly uint64_t restored     # of the last one that the store had from a backend file
    cdef list ports                 # slot -> Port, or None while there is no worker
    cdef object others              # callable(entry type, index, data): entries that Python applies
    cdef readonly Lessor lessor     # the store's
    cdef int64_t lease_id           # of the checkpoint or revoke applied last
    cdef KvRequest request          # scratch
    cdef Buffer out                 # the reply under way
    cdef Buffer deleted             # Version * of the delete under way
    # Indexes of the deletes that a Txn runs, while its puts are checked.
    cdef Buffer path

    cdef uint16_t read(self, uint32_t method, const uint8_t *data, size_t size) except? 0xffff
    cdef uint16_t write(self, uint32_t method, const uint8_t *data, size_t size) except? 0xffff

    cdef int _apply_entry(
            self, uint64_t index, uint32_t entry_type, const uint8_t *data, size_t size,
            const Waiter *waiter) except -1
    cdef int _answer(self, const Waiter *waiter, uint16_t error) except -1
    cdef uint16_t _put(self, const Op *op) except? 0xffff
    cdef int _append_put(self, const Op *op, const Header *header) except -1
    cdef uint16_t _delete_range(self, const Op *op) except? 0xffff
    cdef int _append_delete(self, const Op *op, const Header *header) except -1
    cdef uint16_t _compact(self, const Op *op) except? 0xffff
    cdef uint16_t _lease(
            self, uint32_t method, const uint8_t *data, size_t size) except? 0xffff
    cdef uint16_t _grant(self, int64_t lease_id, int64_t ttl) except? 0xffff
    cdef uint16_t _revoke(self, int64_t lease_id) except? 0xffff
    cdef uint16_t _checkpoint(self, const uint8_t *data, size_t size) noexcept
    cdef int _answer_keep_alive(self, Port port, const Waiter *waiter) except -1
    cdef void settle(self, const Waiter *waiter, uint16_t error) noexcept
    cdef uint16_t _txn(self, bint writes) except? 0xffff
    cdef void _compare(self, int32_t txn) noexcept
    cdef uint16_t _check(self, int32_t txn, bint writes) except? 0xffff
    cdef uint16_t _check_put(self, const Op *op) except? 0xffff
    cdef uint16_t _check_range(self, const Op *op) noexcept
    cdef int _append_txn(self, int32_t txn, const Header *header, bint writes) except -1
    cdef int _append_ops(self, int32_t at, bint writes) except -1
