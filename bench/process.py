"""CPU time, memory and disk writes of a process and all its descendants, from /proc.

Rules: a process that ends while it is looked at counts as nothing; CPU counts what the whole tree
used, also what children that already ended used and left to their parent.
"""

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MIB = 1024 * 1024
SAMPLE_SECONDS = 0.1


def tree(pid: int) -> list[int]:
    """This process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in _names(Path(f"/proc/{parent}/task")):
            found += [int(child) for child in _text(f"/proc/{parent}/task/{task}/children").split()]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree; ended children are in their parents' figures."""
    ticks = 0
    for member in tree(pid):
        # The command's name may hold blanks and brackets: fields count from after the last bracket.
        fields = _text(f"/proc/{member}/stat").rpartition(")")[2].split()
        if fields:
            ticks += sum(int(fields[place]) for place in (11, 12, 13, 14))
    return ticks / TICKS_PER_SECOND


def memory(pid: int) -> dict[str, float]:
    """Proportional memory of the tree in MiB: all of it, and what is not backed by a file.

    What is not can't be dropped by the system; `file_mib` is the part that can.
    """
    total = anonymous = 0
    for member in tree(pid):
        for line in _text(f"/proc/{member}/smaps_rollup").splitlines():
            name, _, rest = line.partition(":")
            if name == "Pss":
                total += int(rest.split()[0])
            elif name in ("Pss_Anon", "Pss_Shmem"):
                anonymous += int(rest.split()[0])
    return {
        "pss_mib": total / 1024,
        "anonymous_mib": anonymous / 1024,
        "file_mib": (total - anonymous) / 1024,
    }


def written_bytes(pid: int) -> int:
    """What the tree has written that goes to a disk, as the kernel counts it for a process.

    It counts when memory becomes dirty, and all of the piece of page cache that did: 4 KiB, or 128
    KiB where a file was written in such pieces before. What really goes out, the device knows.
    """
    total = 0
    for member in tree(pid):
        for line in _text(f"/proc/{member}/io").splitlines():
            name, _, rest = line.partition(":")
            if name == "write_bytes":
                total += int(rest)
    return total


def raise_descriptor_limit() -> None:
    """Let this process, and what it starts, open as many descriptors as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Peak:
    """The highest proportional memory seen so far, in MiB."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self.mib = memory(pid)["pss_mib"]

    def watch(self) -> None:
        """Look again and again until told that it is over."""
        while not self._over.wait(SAMPLE_SECONDS):
            self.mib = max(self.mib, memory(self._pid)["pss_mib"])

    def stop(self) -> None:
        """Let `watch` return."""
        self._over.set()


@contextmanager
def peak_memory(pid: int) -> Iterator[Peak]:
    """Watch the memory of a tree ten times a second while the block runs."""
    peak = Peak(pid)
    thread = threading.Thread(target=peak.watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak.stop()
        thread.join()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
