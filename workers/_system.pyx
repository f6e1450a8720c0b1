"""Linux calls that Python's library lacks."""

import os
import signal

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long argument)
    int PR_SET_PDEATHSIG


def die_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when the thread that forked it ends.

    False if `parent`, a process id, is gone already: the caller must end itself. Raises OSError.
    """
    if prctl(PR_SET_PDEATHSIG, <unsigned long>int(signal.SIGKILL)) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    return os.getppid() == parent
