# cython: language_level=3
"""Segments made ahead of their use by a thread of its own."""

from libc.stdint cimport int64_t, uint64_t

from quorate.core._disk cimport PATH_BYTES_MAX, Disk

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_getvalue(sem_t *semaphore, int *value)
    int sem_init(sem_t *semaphore, int shared, unsigned int value)
    int sem_destroy(sem_t *semaphore)
    int sem_post(sem_t *semaphore)
    int sem_wait(sem_t *semaphore)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef enum:
    FILL_STEP = 128 * 1024


cdef class Segments:
    cdef Disk disk
    cdef bytes directory
    cdef const char *directory_path  # into `directory`
    cdef uint64_t segment_bytes
    cdef object thread              # None: a segment is made when it is taken
    cdef int stopping               # atomic
    cdef int wanted                 # atomic: 1 while the thread is to make a segment
    cdef int urgent                 # atomic: 1 while the log waits for the next segment
    cdef sem_t work                 # posted for the thread
    cdef sem_t ready                # posted when `next_handle` is set
    cdef int number                 # of the `<number>.tmp` that is made next: 0 or 1
    cdef int64_t next_handle        # a segment that is ready, or -errno; -1 and no post: none
    cdef bint holds_next            # `next_handle` was made and not yet taken
    cdef pthread_mutex_t filling    # held while a step is written to the active segment
    cdef int64_t fill_handle        # the active segment; -1 when there is nothing to fill
    cdef uint64_t fill_next         # atomic: zeros go to no offset before this one
    cdef uint64_t fill_end
    cdef uint64_t log_end           # atomic: where the log ends in the active segment

    cdef int64_t take(self, char *path) noexcept nogil
    cdef void before_write(self, uint64_t end) noexcept nogil
    cdef void leave_active(self) noexcept nogil
    cdef void tmp_path(self, char *path, int number) noexcept nogil
    cdef int64_t make(self) noexcept nogil
    cdef int64_t fill_whole(self, int64_t handle) noexcept nogil
    cdef void await_log(self, uint64_t end) noexcept nogil
    cdef bint fill_step(self) noexcept nogil
    cdef void loop(self) noexcept nogil


cdef void wait_for(sem_t *semaphore) noexcept nogil
