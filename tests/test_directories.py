"""What a data directory may be found in besides order: locked, read-only, with what others left."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quorate.core._disk import DiskError
from quorate.core.errors import Fatal
from tests.node_driver import DATA, Heard, Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_checkpoints import OFTEN, SNAP, Session, on_a_disk, told

WAL = f"{DATA}/member/wal"
BROKEN = f"{0:016x}-{0:016x}"


def stopped(disk: SimDisk) -> tuple[SimDisk, object]:
    """A directory with checkpoints, and its state."""
    member = Session(1).run(disk, rounds=20)
    found = told(member)
    member.node.close()
    return disk.crash("nothing"), found


@contextmanager
def flocked(path: Path) -> Iterator[None]:
    """Hold the lock that bbolt takes."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def test_a_backend_file_that_another_process_uses_is_refused_before_it_is_read(
    tmp_path: Path,
) -> None:
    member = on_a_disk(tmp_path, **OFTEN)
    for number in range(4):
        member.put(b"%d" % number)
    member.settle()
    db = tmp_path / "member" / "snap" / "db"
    with pytest.raises(BlockingIOError), flocked(db):
        pass
    member.node.close()
    heard = Heard()
    with (
        flocked(db),
        pytest.raises(Fatal, match=f"^{db}: another process uses this file .it is locked.$"),
    ):
        on_a_disk(tmp_path, logger=heard)
    assert "reading the backend file" not in heard.of("info")
    again = on_a_disk(tmp_path)
    assert len(again.everything()) == 4
    again.node.close()


def test_a_refused_start_leaves_no_lock(tmp_path: Path) -> None:
    member = on_a_disk(tmp_path, **OFTEN)
    member.put(b"k")
    member.put(b"k")
    member.settle()
    member.node.close()
    db, wal = tmp_path / "member" / "snap" / "db", tmp_path / "member" / "wal"
    kept = {path.name: path.read_bytes() for path in wal.iterdir()}
    for path in wal.iterdir():
        path.unlink()
    with pytest.raises(Fatal, match="whose log is missing"):
        on_a_disk(tmp_path)
    with flocked(db):
        pass
    for name, content in kept.items():
        (wal / name).write_bytes(content)
    on_a_disk(tmp_path).node.close()


class ReadOnly(SimDisk):
    """A disk that is mounted read-only: files are opened to be written, too."""

    def step(self, operation: str, path: str = "") -> None:
        if operation not in ("read", "lock"):
            raise DiskError(operation, path, errno.EROFS)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_read_only_directory_is_one_clear_line(is_old: bool) -> None:
    disk, _ = stopped(new_disk()) if is_old else (new_disk(), None)
    read_only = ReadOnly(disk.rng)
    read_only.names = disk.names
    with pytest.raises(Fatal, match=rf"^\S.* {DATA}/member/\S+: {os.strerror(errno.EROFS)}"):
        Member(read_only)


def test_what_was_left_over_is_removed_or_kept_and_changes_nothing() -> None:
    disk, expected = stopped(new_disk())
    removed = [f"{SNAP}/{name}" for name in ("db.tmp.checkpoint", "db.tmp.17", "tmp123456")]
    # Evidence: nobody but its owner removes it.
    kept = [
        *(f"{SNAP}/{name}" for name in ("db.broken", f"{BROKEN}.snap.broken", "notes")),
        *(f"{WAL}/{name}" for name in (f"{BROKEN}.wal.broken", "notes")),
    ]
    passing = [f"{WAL}/{name}" for name in ("0.tmp", "1.tmp")]
    for path in (*removed, *kept, *passing):
        handle = disk.open(path, create=True)
        disk.write(handle, b"half of something", 0)
        disk.close(handle)
    heard = Heard()
    member = Member(disk, logger=heard, **OFTEN)
    assert told(member) == expected
    assert heard.of("warn") == ["removed a file that was not finished"] * len(removed)
    for number in range(20):
        member.put(b"%d" % number, bytes(3000))
        member.now += 2000
    names = {*disk.names}
    assert not names & {*removed}
    assert names >= {*kept}
    member.check()


def test_a_long_start_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.core.logs.PROGRESS_SECONDS", 0)
    monkeypatch.setattr("quorate.core.backend.STEP", 1)
    disk, _ = stopped(new_disk())
    heard = Heard()
    Member(disk.copy(), logger=heard, snapshot_count=1 << 40).put(b"k")
    lines = [fields for _, message, fields in heard.lines if message.startswith("still reading")]
    assert [fields["pairs"] for fields in lines if "pairs" in fields][:3] == [1, 2, 3]
    assert any("applied_index" in fields for fields in lines)
    monkeypatch.undo()
    quick = Heard()
    Member(disk, logger=quick)
    assert not [message for message in quick.of("info") if message.startswith("still")]
