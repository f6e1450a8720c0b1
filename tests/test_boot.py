"""core/boot: new directories, restarts, first starts that never finished, and logs it refuses."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path

import pytest

from quorate.core._disk import DiskError
from quorate.core._eventring import EventReader, EventRing
from quorate.core._ring import Doorbell
from quorate.core._run import Run
from quorate.core._wal import Wal
from quorate.core.backend import open_backend, read_members
from quorate.core.boot import open_node, peer_urls_by_name, start_node
from quorate.core.config import Config
from quorate.core.errors import Fatal
from quorate.core.logs import Logger
from quorate.core.members import cluster_id, initial_members
from quorate.core.messages import (
    ClusterVersionSetRequest,
    ConfChange,
    ConfChangeType,
    EntryType,
    InternalRaftRequest,
    RequestHeader,
)
from tests.messages import delimited
from tests.node_driver import DATA, SEGMENT_BYTES, Member, new_disk
from tests.sim.disk import SimDisk

WAL = f"{DATA}/member/wal"


def append(disk: SimDisk, *entries: tuple[int, bytes], commit: bool = True) -> None:
    """Add entries to the log of a member that is stopped."""
    wal = Wal.open(disk, WAL, segment_bytes=SEGMENT_BYTES, ahead=False)
    for _ in wal.recover():
        pass
    run = Run.of(entries)
    run.assign(wal.last_index + 1, wal.term)
    wal.append(run, None)
    if commit:
        wal.append(None, (wal.term, wal.vote, run.last_index))
    wal.sync()
    wal.close()


def stopped(disk: SimDisk, keys: int = 5) -> Member:
    """A member that has written some keys and left."""
    member = Member(disk)
    for number in range(keys):
        member.put(b"k%d" % number)
    member.node.wal.close()
    return member


# --- first and later starts -----------------------------------------------------------------------


def test_a_new_member_leads_knows_itself_and_is_at_revision_one() -> None:
    member = Member(new_disk())
    [own] = initial_members({"default": ["http://localhost:2380"]}, "etcd-cluster")
    assert member.node.wal.node_id == member.node.raft.id == member.node.raft.leader == own.id
    assert member.node.wal.cluster_id == cluster_id([own.id])
    assert [one.id for one in member.node.state.members.list()] == [own.id]
    assert member.revision == 1
    assert member.node.raft.log.committed == member.node.applier.applied
    member.check()


def test_a_restart_finds_everything_and_begins_a_new_term() -> None:
    disk = new_disk()
    before = stopped(disk)
    after = Member(disk.crash("nothing"))
    assert after.everything().keys() == {b"k%d" % number for number in range(5)}
    assert after.revision == before.revision
    assert after.node.raft.term == before.node.raft.term + 1
    assert after.node.wal.node_id == before.node.wal.node_id
    assert after.put(b"next") == before.revision + 1
    after.check()


def test_workers_know_the_revision_before_the_first_turn() -> None:
    """Workers begin before the core turns. To one that was asked for a watch in between, the store
    was at revision 0: a watch from now on was told of the whole past, and two progress requests
    had the worker go round in a circle for ever."""
    disk = new_disk()
    before = stopped(disk)
    ring = EventRing(1 << 16)
    after = Member(disk.crash("nothing"), event_ring=ring)
    assert EventReader(ring).seen == after.revision == before.revision
    first = EventRing(1 << 16)
    Member(new_disk(), event_ring=first)
    assert EventReader(first).seen == 1


def test_many_restarts_and_segments_later_all_is_there() -> None:
    disk = new_disk()
    for round_ in range(5):
        member = Member(disk)
        for number in range(10):
            member.put(b"%d-%d" % (round_, number), bytes(2_000))
        member.node.wal.close()
        disk = disk.crash("nothing")
    assert len([name for name in disk.list(WAL) or () if name.endswith(".wal")]) > 3
    member = Member(disk)
    assert len(member.everything()) == 50
    assert member.revision == 51
    member.check()


def test_entries_of_another_etcd_that_are_not_known_to_be_committed_are_decided_by_raft() -> None:
    disk = new_disk()
    stopped(disk)
    put = delimited(4, b"\x0a\x01x")
    append(disk, (EntryType.NORMAL, put), commit=False)
    member = Member(disk.crash("all"))
    assert b"x" in member.everything()  # a lone voter's own log is a majority
    assert member.revision == 7


# --- what never finished --------------------------------------------------------------------------


def test_a_first_start_that_dies_anywhere_is_begun_again() -> None:
    disk = new_disk()
    Member(disk)
    total = disk.operations
    set_aside = 0
    for at in range(1, total + 1):
        for how in ("nothing", "all", "sectors"):
            dying = new_disk(at)
            dying.die_at = at
            with pytest.raises(DiskError):
                Member(dying)
            after = dying.crash(how)
            member = Member(after)
            assert member.put(b"k") == 2
            member.check()
            names = after.list(f"{DATA}/member") or []
            set_aside += any("interrupted" in name for name in names)
            member.node.wal.close()
            again = Member(after.crash("nothing"))
            assert again.everything().keys() == {b"k"}
    assert set_aside > 0


def test_two_unfinished_starts_are_both_kept() -> None:
    disk = new_disk()
    for _ in range(2):
        wal = Wal.create(disk, WAL, 1, 2, segment_bytes=SEGMENT_BYTES, ahead=False)
        wal.sync()
        wal.close()
        Member(disk).node.wal.close()
        disk.rename(WAL, f"{WAL}-{random.random()}")
    names = disk.list(f"{DATA}/member") or []
    assert {"wal.interrupted-0", "wal.interrupted-1"} <= set(names)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [1000, 1302])
def test_a_log_with_an_entry_of_a_later_version_is_refused(field: int) -> None:
    disk = new_disk()
    stopped(disk)
    append(disk, (EntryType.NORMAL, delimited(field, b"\x08\x01")))
    with pytest.raises(Fatal, match=f"field {field}"):
        Member(disk.crash("all"))


def test_a_log_that_holds_a_call_that_ends_etcd_opens() -> None:
    """T49's Txn, and an alarm with an unknown action (T50), committed by an etcd."""
    disk = new_disk()
    member = stopped(disk)
    from_key = delimited(3, delimited(3, b"\x0a\x01k\x12\x01\x00"))
    put = delimited(3, delimited(2, b"\x0a\x02k1\x28\x01"))
    append(
        disk,
        (EntryType.NORMAL, delimited(6, from_key + put)),
        (EntryType.NORMAL, delimited(10, b"\x08\x09\x18\x01")),
        (EntryType.NORMAL, b"\xff\xff no message"),
    )
    after = Member(disk.crash("all"))
    assert after.revision == member.revision
    assert len(after.everything()) == 5
    assert after.node.state.members.alarms() == []


def test_a_log_of_several_voters_is_refused() -> None:
    disk = new_disk()
    stopped(disk)
    change = ConfChange(type=ConfChangeType.ADD_NODE, node_id=77, context=b'{"id":77}')
    append(disk, (EntryType.CONF_CHANGE, change.encode()))
    with pytest.raises((Fatal, AssertionError)):
        Member(disk.crash("all"))


def test_several_initial_members_are_refused() -> None:
    config = Config(data_dir=DATA, initial_cluster="default=http://a:1,other=http://b:2")
    with pytest.raises(Fatal, match="several members"):
        start_node(config, new_disk(), [None], Doorbell().fd, Logger((), "info"))


def test_one_member_may_have_several_urls() -> None:
    config = Config(initial_cluster="default=http://a:1, default=http://b:2 ,")
    assert peer_urls_by_name(config) == {"default": ["http://a:1", "http://b:2"]}


def test_a_damaged_log_is_refused() -> None:
    disk = new_disk()
    stopped(disk)
    disk = disk.crash("all")
    [name] = [name for name in disk.list(WAL) or () if name.endswith(".wal")]
    disk.flip(f"{WAL}/{name}", 8 * 60)
    with pytest.raises(Fatal, match=r"\.wal: offset \d+"):
        Member(disk)


# --- a real directory -----------------------------------------------------------------------------


def opened(path: Path) -> tuple[list[dict[str, str]], int]:
    """Open and close a member; its log lines, and its revision."""
    reading, writing = os.pipe()
    doorbell = Doorbell()
    config = Config(data_dir=str(path), unsafe_no_fsync=True)
    node = open_node(config, [None], doorbell.fd, Logger((writing,), "info"))
    node.wal.close()
    os.close(writing)
    with os.fdopen(reading) as lines:
        return [json.loads(line) for line in lines], node.raft.term


def test_directories_are_private_and_a_second_start_is_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "member.etcd"
    lines, term = opened(path)
    assert not any(line["msg"] == "check file permission" for line in lines)
    for folder in (path, path / "member", path / "member" / "snap", path / "member" / "wal"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    lines, again = opened(path)
    assert again == term + 1
    assert any(line["msg"] == "recovered" for line in lines)


def test_a_directory_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(0o755)
    lines, _ = opened(path)
    [line] = [line for line in lines if line["msg"] == "check file permission"]
    assert line["level"] == "warn"
    assert '"755"' in line["error"]
    assert str(path) in line["error"]


def test_empty_directories_that_are_there_are_used(tmp_path: Path) -> None:
    for folder in ("d/member/wal", "d/member/snap", "d/lost+found"):
        (tmp_path / folder).mkdir(parents=True)
    _, term = opened(tmp_path / "d")
    _, again = opened(tmp_path / "d")
    assert again == term + 1


def test_a_log_is_not_begun_among_other_files(tmp_path: Path) -> None:
    wal = tmp_path / "d" / "member" / "wal"
    wal.mkdir(parents=True)
    (wal / "kept").touch()
    with pytest.raises(Fatal, match=f"{wal}: no place for a new log: .* not empty"):
        opened(tmp_path / "d")
    assert os.listdir(wal) == ["kept"]


@pytest.mark.parametrize("below", ["", "d"])
def test_a_file_is_no_data_directory(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / below
    with pytest.raises(Fatal, match=f"^list {path}: Not a directory"):
        opened(path)


def test_a_second_member_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path / "d"), unsafe_no_fsync=True)
    doorbell = Doorbell()
    node = open_node(config, [None], doorbell.fd, Logger((), "info"))
    try:
        with pytest.raises(Fatal):
            open_node(config, [None], doorbell.fd, Logger((), "info"))
    finally:
        node.wal.close()


# --- what a directory says of versions ------------------------------------------------------------


def version_entry(version: str) -> tuple[int, bytes]:
    """What a leader of that version writes first."""
    request = InternalRaftRequest(
        header=RequestHeader(id=1), cluster_version_set=ClusterVersionSetRequest(version)
    )
    return EntryType.NORMAL, request.encode()


def file_says(disk: SimDisk) -> tuple[str, str]:
    """The cluster's and the storage version of the backend file."""
    backend = open_backend(disk, f"{DATA}/member/snap")
    assert backend is not None
    return read_members(backend).version, (backend.mark(b"storageVersion") or b"").decode()


@pytest.mark.parametrize(("storage", "written"), [("3.5", ""), ("3.6", "3.6.0"), ("3.7", "3.7.0")])
def test_versions_are_lowered_when_that_is_asked_for(storage: str, written: str) -> None:
    disk = new_disk()
    stopped(disk)
    append(disk, version_entry("3.7.0"))
    member = Member(disk, snapshot_count=1)
    member.put(b"k")
    member.node.close()
    assert file_says(disk) == ("3.7.0", "3.7.0")
    member = Member(disk, storage_version=storage)
    index = member.node.applier.applied
    # What the file says, not what it is asked to say.
    assert member.report.figures().storage_version == "3.7.0"
    member.settle()
    assert member.report.figures().storage_version == f"{storage}.0"
    member.node.close()
    assert file_says(disk) == (f"{storage}.0", written)
    # All is lowered: a further start has nothing to do.
    member = Member(disk, storage_version=storage)
    assert member.node.state.members.cluster_version == f"{storage}.0"
    assert member.report.figures().storage_version == f"{storage}.0"
    assert member.node.applier.applied == index + 1  # of the new term
    assert member.node.checkpoints.wanted_index == 0
    member.check()


def test_a_crash_before_the_file_is_lowered_changes_nothing_about_that() -> None:
    disk = new_disk()
    stopped(disk)
    append(disk, version_entry("3.7.0"))
    member = Member(disk, snapshot_count=1)
    member.put(b"k")
    member.node.close()
    Member(disk, storage_version="3.6").node.wal.close()
    disk = disk.crash()
    assert file_says(disk) == ("3.7.0", "3.7.0")
    Member(disk, storage_version="3.6").node.close()
    assert file_says(disk) == ("3.6.0", "3.6.0")


def test_versions_are_not_raised() -> None:
    disk = new_disk()
    stopped(disk)
    append(disk, version_entry("3.4.0"))
    member = Member(disk)
    assert member.node.state.members.cluster_version == "3.4.0"
    assert member.node.checkpoints.wanted_index == 0
    member = Member(new_disk(), storage_version="3.5")
    assert member.node.state.members.cluster_version == ""
