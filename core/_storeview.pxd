# cython: language_level=3
"""The store for Python callers. See `_storeview.pyx`."""

from libc.stdint cimport uint8_t

from quorate.core._mvcc cimport Cursor, HashState, Store


cdef class StoreView:
    cdef readonly Store store


cdef class Walk:
    cdef Store store
    cdef bytes key
    cdef bytes range_end
    cdef Cursor cursor


cdef class Hash:
    cdef Store store
    cdef HashState state
