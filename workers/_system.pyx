"""Calls of Linux and glibc that Python's library lacks."""

import os
import signal

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long argument)
    int PR_SET_PDEATHSIG

cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    static inline void quorate_trim(void) { malloc_trim(0); }
    static inline void quorate_keep(int bytes) {
        mallopt(M_TRIM_THRESHOLD, bytes);
        mallopt(M_MMAP_THRESHOLD, bytes);
    }
    #else
    static inline void quorate_trim(void) { }
    static inline void quorate_keep(int bytes) { }
    #endif
    """
    void quorate_trim() nogil
    void quorate_keep(int bytes) nogil


def die_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when the thread that forked it ends.

    False if `parent`, a process id, is gone already: the caller must end itself. Raises OSError.
    """
    if prctl(PR_SET_PDEATHSIG, <unsigned long>int(signal.SIGKILL)) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    return os.getppid() == parent


def keep_memory(int size):
    """Keep up to so many bytes of free memory instead of giving them back to the kernel at once.

    What is sent is gone in a moment and comes again: by itself glibc asks the kernel for that
    memory, and clears it, anew for each burst. At most 32 MiB, which is glibc's own limit.
    """
    assert 0 < size <= 32 << 20, size
    quorate_keep(size)


def release_memory():
    """Give free memory back to the kernel, also what lies between blocks that are in use: glibc by
    itself keeps almost all that many small blocks ever took. Takes milliseconds per 100 MB.
    """
    with nogil:
        quorate_trim()
