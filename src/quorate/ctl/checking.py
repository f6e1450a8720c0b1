"""`check`: all of a data directory is read as a start would, and nothing in it is changed.

Rules:
1. Every page of the backend file, every snapshot file, every record of the log from where a start
   reads it; then the log is replayed on the file's state, in memory. What it gives is told.
2. If the log goes back to the cluster's first entry and the directory was not restored, the log
   alone is replayed, too: both must give the same. So a file that is whole in its form and wrong in
   what it says is found as well.
3. What is wrong is told with file and page or offset, and with the way out; one thing that is wrong
   does not keep the others from being looked at. The exit code is then 1.
4. A torn end of the log is nothing wrong: a start cuts it. It is told.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections import deque
from dataclasses import dataclass, field

from quorate.core._bolt import BoltError, Check
from quorate.core._disk import Disk, OsDisk
from quorate.core._restore import BackendError
from quorate.core._run import Run
from quorate.core._walread import SEGMENT_NAME, WalReader
from quorate.core.apply import State
from quorate.core.backend import Backend, Start, find_start, open_backend, restore
from quorate.core.errors import Fatal
from quorate.core.logs import Logger
from quorate.core.snapfile import SnapshotError, read_snapshot, snapshot_names

from .commandline import Call, CommandError
from .files import check_exists, lock_backend, opened
from .printing import Column, check_form, printed
from .progress import progress
from .status import PIECE_PAGES, hash_kv
from .untouched import Untouched

BACKEND_WAY_OUT = (
    "keep a copy of the data directory; then restore a snapshot, or remove this member and add it "
    "again with an empty one"
)
LOG_WAY_OUT = (
    "look for it (--wal-dir), or make a directory of the backend file with `snapshot restore "
    "--skip-hash-check`"
)
SNAPSHOT_WAY_OUT = "move it away: the one before it takes its place"
# What a log begins with that `snapshot restore` made; no other has a snapshot of that term.
RESTORED_TERM = 1


@dataclass
class Replayed:
    """What file and log give."""

    state: State
    reader: WalReader
    index: int = 0
    term: int = 0


@dataclass
class Findings:
    """What was seen and what is wrong."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)


def check_command(call: Call) -> None:
    """`check`. Raises CommandError."""
    form = call.text("write-out")
    check_form(form)
    data_dir = call.text("data-dir")
    member = os.path.join(data_dir, "member")
    check_exists(member)
    wal_dir = call.text("wal-dir") or os.path.join(member, "wal")
    findings = check_directory(os.path.join(member, "snap"), wal_dir, call.number("timeout"))
    if form == "simple":
        sys.stdout.write("".join(f"{line}\n" for line in findings.lines))
    for problem in findings.problems[:-1]:
        sys.stderr.write(f"Error: {problem}\n")
    if findings.problems:
        raise CommandError(findings.problems[-1])
    sys.stdout.write("ok\n" if form == "simple" else printed(form, findings.columns))


def check_directory(snap: str, wal: str, seconds: float) -> Findings:
    """Look at all of it. Raises CommandError when another process has it."""
    disk, findings = OsDisk(), Findings()
    path = os.path.join(snap, "db")
    if "db" not in (disk.list(snap) or ()):
        findings.lines.append(f"{path}: there is none")
        check_rest(disk, snap, wal, findings)
        return findings
    with opened(path) as descriptor:
        lock_backend(descriptor, path, seconds, fcntl.LOCK_SH)
        check_rest(disk, snap, wal, findings)
    return findings


def check_rest(disk: OsDisk, snap: str, wal: str, findings: Findings) -> None:
    """The same, where nobody else has it."""
    backend: Backend | None = None
    try:
        backend = open_backend(disk, snap)
        if backend is not None:
            findings.lines.append(check_backend(backend))
        if first_index(disk, wal) < 0:
            raise Fatal(f"{wal}: there is no log, without which no server starts; {LOG_WAY_OUT}")
        start = find_start(backend, disk, snap, wal)
    except (BoltError, BackendError) as error:
        findings.problems.append(f"{error}; {BACKEND_WAY_OUT}")
        start = None
    except Fatal as error:
        findings.problems.append(str(error))
        start = None
    check_snapshots(disk, snap, findings)
    if start is None:
        backend, start = None, Start()
        if first_index(disk, wal) != 0:
            findings.lines.append(f"{wal}: not read, for its beginning is in the backend file")
            return
    try:
        check_log(Untouched(), wal, backend, start, findings)
    except (BoltError, BackendError) as error:
        findings.problems.append(f"{error}; {BACKEND_WAY_OUT}")
    except Fatal as error:
        findings.problems.append(str(error))


def check_backend(backend: Backend) -> str:
    """Walk all of its pages. Raises BoltError, BackendError."""
    bolt = backend.bolt
    with progress("checking pages", bolt.high_water) as advance:
        check = Check(bolt)
        while not check.run(PIECE_PAGES):
            advance(check.pages_reached)
    warning = f"; {bolt.warning}" if bolt.warning else ""
    return (
        f"{backend.path}: {bolt.high_water} pages of {bolt.page_size} bytes, "
        f"{check.pages_free} free, {check.pairs} pairs, up to entry {backend.index}{warning}"
    )


def check_snapshots(disk: OsDisk, snap: str, findings: Findings) -> None:
    """Read every snapshot file."""
    names = snapshot_names(disk, snap)
    for _, _, name in names:
        try:
            read_snapshot(disk, snap, name)
        except SnapshotError as error:
            findings.problems.append(f"{error}; {SNAPSHOT_WAY_OUT}")
        except Fatal as error:
            findings.problems.append(str(error))
    newest = f", the newest of entry {names[-1][0]}" if names else ""
    findings.lines.append(f"{snap}: {len(names)} snapshot files{newest}")


def first_index(disk: Disk, wal: str) -> int:
    """The entry before which the log begins; -1 when there is no log."""
    names = map(SEGMENT_NAME.fullmatch, disk.list(wal) or ())
    return min((int(match[2], 16) for match in names if match), default=-1)


def check_log(
    disk: Untouched, wal: str, backend: Backend | None, start: Start, findings: Findings
) -> None:
    """Replay the log on the file's state. Raises Fatal."""
    found = replay(disk, wal, backend, start)
    reader = found.reader
    line = f"{wal}: {len(reader.names)} segments, up to entry {reader.last_index}"
    if reader.torn_bytes:
        line += (
            f"; {reader.path}: offset {reader.offset}: {reader.torn_bytes} bytes of a torn write, "
            "which the next start cuts"
        )
    findings.lines.append(line)
    if backend is not None and reader.last_index < backend.index:
        raise Fatal(
            f"{backend.path} holds what entries up to {backend.index} did, and the log ({wal}) "
            f"ends at {reader.last_index}: one of them is not of this member"
        )
    value, compacted, revision = hash_kv(found.state.store, 0)
    findings.lines.append(
        f"replayed: entry {found.index}, term {found.term}, revision {revision}, "
        f"compacted {compacted}, hash {value}"
    )
    findings.columns = [
        Column("hash", str(value), "Hash", "hash", value),
        Column("revision", str(revision), "Revision", "revision", revision),
        Column(
            "compact revision", str(compacted), "Compact revision", "compactRevision", compacted
        ),
        Column("index", str(found.index), "Index", "index", found.index),
        Column("term", str(found.term), "Term", "term", found.term),
    ]
    restored = any(index and term == RESTORED_TERM for index, term in reader.snapshots)
    if backend is not None and first_index(disk, wal) == 0 and not restored:
        del found
        compare(disk, wal, backend.index, (value, compacted, revision), findings)


def compare(
    disk: Untouched, wal: str, index: int, expected: tuple[int, int, int], findings: Findings
) -> None:
    """Replay the log alone; entries up to `index` were committed, for the file has them."""
    try:
        found = replay(disk, wal, None, Start(), index)
    except Fatal as error:
        findings.lines.append(f"the log alone can't be replayed: {error}")
        return
    if found.index < index:
        findings.lines.append(
            f"the log alone was not compared: it knows entries up to {found.index} to be committed"
        )
        return
    alone = hash_kv(found.state.store, 0)
    if alone == expected:
        findings.lines.append("the log alone gives the same")
        return
    names = ("hash", "compacted", "revision")
    differs = ", ".join(
        f"{name} {one} and not {other}"
        for name, one, other in zip(names, alone, expected, strict=True)
        if one != other
    )
    findings.problems.append(
        f"the log alone gives {differs}: the backend file is not what the log made; "
        f"{BACKEND_WAY_OUT}"
    )


def replay(
    disk: Untouched, wal: str, backend: Backend | None, start: Start, committed: int = 0
) -> Replayed:
    """What the committed entries make of the file's state. Raises Fatal.

    Who was killed may not have written how far that goes: up to `committed` it is known otherwise.
    """
    quiet = Logger(())
    state = State([], quiet)
    reader = WalReader(disk, wal, start.index, start.term)
    try:
        if backend is not None:
            restore(backend, start, state, quiet)
        found = Replayed(state, reader)
        waiting: deque[Run] = deque()
        with progress("replaying the log", 0) as advance:
            for run in reader:
                waiting.append(run)
                while waiting and waiting[0].last_index <= max(reader.commit, committed):
                    found.term = waiting[0].term
                    state.applier.apply(waiting.popleft())
                    advance(state.applied)
        found.index = state.applied
        found.term = found.term or reader.start_term
    finally:
        reader.close()
    return found
