# cython: language_level=3
"""Loads, stores and fences between processes that share memory, inline."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #define quorate_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define quorate_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define quorate_load_signed(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define quorate_store_signed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define quorate_exchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
    #define quorate_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #define quorate_fence_loads() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define quorate_fence_stores() __atomic_thread_fence(__ATOMIC_RELEASE)
    """
    uint64_t quorate_load(uint64_t *p) noexcept nogil
    void quorate_store(uint64_t *p, uint64_t value) noexcept nogil
    int64_t quorate_load_signed(int64_t *p) noexcept nogil
    void quorate_store_signed(int64_t *p, int64_t value) noexcept nogil
    uint32_t quorate_exchange(uint32_t *p, uint32_t value) noexcept nogil
    void quorate_fence() noexcept nogil
    void quorate_fence_loads() noexcept nogil
    void quorate_fence_stores() noexcept nogil
