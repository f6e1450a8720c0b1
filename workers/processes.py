"""What the kernel knows of the server's processes: the core, this worker's parent, and its workers.

Everything is read from /proc when asked; a process that ends meanwhile counts as nothing.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def process_values(core: int, root: Path = PROC) -> dict[str, float]:
    """The `process_*` and `os_*` metrics of the server whose core has this process id."""
    processes = [core, *children(core, root)]
    descriptors = {process: count_descriptors(process, root) for process in processes}
    descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    memory_max = resource.getrlimit(resource.RLIMIT_AS)[0]
    received, sent = network_bytes(root / str(core) / "net" / "dev")
    return {
        "os_fd_limit": descriptors_max,
        "os_fd_used": descriptors[core],
        "process_cpu_seconds_total": sum(cpu_seconds(process, root) for process in processes),
        "process_max_fds": descriptors_max,
        "process_network_receive_bytes_total": received,
        "process_network_transmit_bytes_total": sent,
        "process_open_fds": sum(descriptors.values()),
        "process_resident_memory_bytes": resident_bytes(core, processes[1:], root),
        "process_start_time_seconds": start_seconds(core, root),
        "process_virtual_memory_bytes": pages(core, root)[0] * PAGE_BYTES,
        "process_virtual_memory_max_bytes": memory_max,
    }


def read(path: Path) -> str:
    """A file of /proc, empty if its process is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


def children(process: int, root: Path) -> list[int]:
    """The child processes of all threads of a process."""
    found: list[int] = []
    for path in sorted(root.glob(f"{process}/task/*/children")):
        found += [int(child) for child in read(path).split()]
    return found


def count_descriptors(process: int, root: Path) -> int:
    """How many descriptors a process has open."""
    try:
        return len(os.listdir(root / str(process) / "fd"))
    except OSError:
        return 0


def stat_fields(process: int, root: Path) -> list[str]:
    """The fields of /proc/<pid>/stat after the command's name, which may hold spaces."""
    return read(root / str(process) / "stat").rpartition(")")[2].split()


def cpu_seconds(process: int, root: Path) -> float:
    """The CPU time of a process and of its children that have ended."""
    fields = stat_fields(process, root)
    return sum(map(int, fields[11:15])) / TICKS


def start_seconds(process: int, root: Path) -> float:
    """When a process started, in Unix time."""
    fields = stat_fields(process, root)
    booted = [line.split()[1] for line in read(root / "stat").splitlines() if line[:5] == "btime"]
    return int(booted[0]) + int(fields[19]) / TICKS if booted and fields else 0.0


def pages(process: int, root: Path) -> tuple[int, int, int]:
    """Pages of a process: its whole address space, resident, and shared among the resident."""
    numbers = [int(number) for number in read(root / str(process) / "statm").split()[:3]]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else (0, 0, 0)


def resident_bytes(core: int, workers: list[int], root: Path) -> int:
    """Memory of the whole server: what the core has, and what its workers have for themselves.

    Pages that a worker still shares with the core since the fork are counted twice.
    """
    total = pages(core, root)[1]
    for worker in workers:
        _, resident, shared = pages(worker, root)
        total += resident - shared
    return total * PAGE_BYTES


def network_bytes(path: Path) -> tuple[int, int]:
    """Bytes received and sent over all interfaces."""
    received = sent = 0
    for line in read(path).splitlines()[2:]:
        numbers = line.partition(":")[2].split()
        received += int(numbers[0])
        sent += int(numbers[8])
    return received, sent
