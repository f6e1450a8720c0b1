"""`quorateutl check`: the whole is told, damage is found with its place and the way out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.core._bolt import Bolt
from quorate.core._disk import OsDisk
from quorate.core._restore import checksum
from quorate.core._wal import make_directories
from quorate.core.members import Cluster
from quorate.core.snapfile import write_snapshot
from quorate.ctl import quorateutl
from quorate.ctl.checking import check_directory
from quorate.ctl.restore import Plan, restore, write_log
from tests.node_driver import Member
from tests.sim.disk import SimDisk
from tests.test_backend import revision
from tests.test_restore import FILE, MEMBERS, PLAN, source
from tests.walmodel import varint


def key_value(at: int) -> bytes:
    """The pair of that revision with its fields in the order in which etcd writes them."""
    name, size = b"k%d" % at, varint(300)
    numbers = bytes([16, at, 24, at, 32, 1])
    return bytes([10, len(name)]) + name + numbers + b"*" + size + bytes(300)


HASH = checksum(b"key" + b"".join(revision(at) + key_value(at) for at in range(2, 32)))
SEGMENT = f"{0:016x}-{0:016x}.wal"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory that is whole."""
    plan = Plan(MEMBERS, "two", str(tmp_path / "data"))
    restore(OsDisk(), Bolt(FILE), plan, segment_bytes=8192)
    return tmp_path / "data"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = quorateutl.main([str(word) for word in words])
    told = capsys.readouterr()
    return code, told.out, told.err


def files(data: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}


def test_what_is_whole(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(data)
    code, out, err = run(capsys, "check", "--data-dir", data)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{data}/member/snap/db: 7 pages of 4096 bytes, 0 free, 41 pairs, up to entry 2",
        f"{data}/member/snap: 1 snapshot files, the newest of entry 2",
        f"{data}/member/wal: 1 segments, up to entry 2",
        f"replayed: entry 2, term 1, revision 31, compacted -1, hash {HASH}",
        "ok",
    ]
    code, out, _ = run(capsys, "check", "--data-dir", data, "-w", "json")
    assert json.loads(out) == {
        "hash": HASH,
        "revision": 31,
        "compactRevision": -1,
        "index": 2,
        "term": 1,
    }
    assert files(data) == before


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def spoil_page(data: Path) -> None:
    flip(data / "member" / "snap" / "db", 3 * 4096 + 8)


def spoil_pair(data: Path) -> None:
    """In its form the page is whole; what is in it is no key-value."""
    path = data / "member" / "snap" / "db"
    content = path.read_bytes()
    at = content.index(b"\x0a\x02k2")
    path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])


def spoil_snapshot(data: Path) -> None:
    flip(next((data / "member" / "snap").glob("*.snap")), 100)


def spoil_log(data: Path) -> None:
    flip(data / "member" / "wal" / SEGMENT, 100)


def lose_log(data: Path) -> None:
    (data / "member" / "wal" / SEGMENT).unlink()


def exchange_file(data: Path) -> None:
    """The file of another member, which is further on."""
    disk = SimDisk(random.Random(0))
    content = source({b"meta": {b"consistent_index": (9).to_bytes(8, "big")}}, disk)
    (data / "member" / "snap" / "db").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_page, ("db: page 3: ", "the file is damaged; keep a copy", "or remove this member")),
        (spoil_pair, ("db: key 0000", "malformed key-value", "keep a copy")),
        (spoil_snapshot, (".snap: its checksum is wrong", "move it away")),
        (spoil_log, (f"{SEGMENT}: offset ", "the log is refused: keep a copy")),
        (lose_log, ("wal: there is no log", "--skip-hash-check")),
        (exchange_file, ("db holds what entries up to 9 did", "ends at 2")),
    ],
)
def test_what_is_damaged(
    spoil: Callable[[Path], None],
    told: tuple[str, ...],
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(data)
    before = files(data)
    code, out, err = run(capsys, "check", "--data-dir", data)
    assert code == 1
    assert all(part in err for part in told), err
    assert "ok" not in out.splitlines()
    # The rest was looked at.
    assert "snapshot files" in out
    assert files(data) == before


def test_several_things_at_once(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for spoil in (spoil_page, spoil_snapshot, spoil_log):
        spoil(data)
    _, _, err = run(capsys, "check", "--data-dir", data)
    assert [line.startswith("Error: ") for line in err.splitlines()] == [True] * 3


def test_a_torn_end_is_told_and_left(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = data / "member" / "wal" / SEGMENT
    content = segment.read_bytes()
    end = len(content.rstrip(b"\0")) + 7 & ~7
    torn = content[:end] + bytes(range(1, 9)) + content[end + 8 :]
    word = (600).to_bytes(8, "little")
    segment.write_bytes(content[:end] + word + b"\x08\x02\x10\x07\x1a\xd0\x04" + torn[end + 15 :])
    before = files(data)
    code, out, _ = run(capsys, "check", "--data-dir", data)
    assert code == 0
    assert f"{SEGMENT}: offset {end}: " in out
    assert "bytes of a torn write, which the next start cuts" in out
    assert files(data) == before


def test_another_process_has_it(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = OsDisk()
    words = ("check", "--data-dir", data, "--timeout", "20ms")
    handle = disk.open(str(data / "member" / "wal" / SEGMENT))
    disk.lock(handle)
    assert "another process uses" in run(capsys, *words)[2]
    assert "another process uses" in run(capsys, "defrag", *words[1:])[2]
    disk.close(handle)
    handle = disk.open(str(data / "member" / "snap" / "db"))
    disk.lock_as_bolt(handle)
    assert "another process uses it (timeout after 0.02s)" in run(capsys, *words)[2]
    assert "another process uses it" in run(capsys, "defrag", *words[1:])[2]
    disk.close(handle)
    assert run(capsys, *words)[0] == run(capsys, "defrag", *words[1:])[0] == 0


def test_a_member_without_a_backend_file(tmp_path: Path) -> None:

    disk = OsDisk()
    for name in ("snap", "wal"):
        (tmp_path / name).mkdir()
    write_log(disk, str(tmp_path / "wal"), PLAN, 8192)
    findings = check_directory(str(tmp_path / "snap"), str(tmp_path / "wal"), 1)
    assert findings.problems == []
    assert findings.lines[0] == f"{tmp_path}/snap/db: there is none"
    assert findings.lines[-1].startswith("replayed: entry 2, term 1, revision 1,")


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "check", "--data-dir", tmp_path)
    assert (code, err) == (1, f"Error: stat {tmp_path}/member: no such file or directory\n")


def test_a_snapshot_without_a_record_does_no_harm(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    snap = str(data / "member" / "snap")
    write_snapshot(OsDisk(), snap, 9, 1, Cluster(MEMBERS), PLAN.conf_state)
    assert run(capsys, "check", "--data-dir", data)[0] == 0


def test_a_server_that_was_killed_is_whole(tmp_path: Path) -> None:
    """Its log has entries that no HardState commits yet; that the file has them says enough.

    `check` once called the directory of a killed server damaged: the log alone lacked an entry.
    """
    make_directories(OsDisk(), f"{tmp_path}/member/snap")
    member = Member(OsDisk(), data_dir=str(tmp_path), snapshot_count=3)
    for _ in range(9):
        member.put(b"k", bytes(100))
    member.call("KV/Compact", {"revision": 5})
    member.settle()
    member.node.checkpoints.close()
    # The last record of how far entries are committed was not synced.
    assert member.node.checkpoints.saved.index == member.node.applier.applied
    member.node.wal.close()
    found = check_directory(f"{tmp_path}/member/snap", f"{tmp_path}/member/wal", 1)
    assert found.problems == []
    assert any("the log alone" in line for line in found.lines), found.lines
