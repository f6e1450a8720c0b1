"""core/forcing: one of several members goes on alone, with what was committed."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

import pytest

from quorate.core._disk import DiskError
from quorate.core._run import Run
from quorate.core._storeview import StoreView
from quorate.core._wal import Wal
from quorate.core.apply import State
from quorate.core.errors import Fatal
from quorate.core.forcing import force_new_cluster
from quorate.core.logs import Logger
from quorate.core.members import Member as Listed
from quorate.core.messages import ConfChange, ConfChangeType, EntryType
from tests.messages import delimited, encode
from tests.node_driver import SEGMENT_BYTES, Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_boot import WAL, append, stopped

FORCE: dict[str, Any] = {"force_new_cluster": True}
OTHERS = (0x111, 0x222)
LOGGER = Logger((), "info")


def added(
    id: int, type: ConfChangeType = ConfChangeType.ADD_NODE, url: str = ""
) -> tuple[int, bytes]:
    """An entry that adds a member."""
    member = Listed(id, (url or f"http://127.0.0.1:{id}",))
    change = ConfChange(type=type, node_id=id, context=member.to_json())
    return EntryType.CONF_CHANGE, change.encode()


def put(key: bytes) -> tuple[int, bytes]:
    """An entry that puts a key."""
    return EntryType.NORMAL, delimited(4, encode("PutRequest", {"key": key}))


def of_three(*uncommitted: tuple[int, bytes]) -> SimDisk:
    """The disk of a member that has two others, and of what it knows not that it is committed."""
    disk = new_disk()
    stopped(disk)
    for id in OTHERS:
        append(disk, added(id))
    append(disk, put(b"committed"))
    if uncommitted:
        append(disk, *uncommitted, commit=False)
    return disk


def forced(disk: SimDisk) -> Member:
    return Member(disk, **FORCE)


def ids(member: Member) -> list[int]:
    return [one.id for one in member.node.state.members.list()]


def test_what_is_committed_is_kept_and_the_rest_discarded() -> None:
    disk = of_three(put(b"lost"), put(b"too"))
    disk = disk.crash("all")
    with pytest.raises(Fatal, match="this version serves one member"):
        Member(disk)
    disk = disk.crash("all")
    member = forced(disk)
    assert ids(member) == [member.node.wal.node_id]
    assert member.node.state.members.removed() == list(OTHERS)
    assert member.everything().keys() == {b"k%d" % n for n in range(5)} | {b"committed"}
    revision = member.put(b"next")
    member.check()
    # From now on it is a member like any other, with the flag and without.
    for flags in ({}, FORCE, FORCE, {}):
        member.node.wal.close()
        disk = disk.crash("nothing")
        member = Member(disk, **flags)
        assert member.revision == revision
        assert ids(member) == [member.node.wal.node_id]
        revision = member.put(b"next")
        member.check()


def test_what_the_backend_file_holds_is_committed() -> None:
    """Even if the log does not say so: a run is cut where the file ends."""
    disk = of_three(put(b"a"), put(b"b"), put(b"c"))
    state = State([], LOGGER)
    wal = Wal.open(disk, WAL, segment_bytes=SEGMENT_BYTES, ahead=False)
    waiting: deque[Run] = deque()
    for run in wal.recover():
        if run.last_index <= wal.commit:
            state.applier.apply(run)
        else:
            waiting.append(run)
    assert [run.count for run in waiting] == [3]
    force_new_cluster(wal, state, waiting, wal.commit + 2, LOGGER)
    assert [StoreView(state.store).get(key) is None for key in (b"a", b"b", b"c")] == [
        False,
        False,
        True,
    ]
    assert not waiting
    assert wal.commit == wal.last_index == state.applied


def test_a_member_that_is_alone_loses_nothing() -> None:
    """Its log decides, and does not say at its end that it did: what was acknowledged stays."""
    disk = new_disk()
    member = Member(disk)
    for number in range(20):
        member.put(b"k%d" % number)
    disk = disk.crash("nothing")
    wal = Wal.open(disk, WAL, segment_bytes=SEGMENT_BYTES, ahead=False)
    assert list(wal.recover())
    assert wal.commit < wal.last_index, "the log says it all"
    wal.close()
    member = forced(disk.crash("all"))
    assert len(member.everything()) == 20
    member.check()


def test_a_change_that_was_not_committed_is_discarded_too() -> None:
    disk = new_disk()
    stopped(disk)
    append(disk, added(OTHERS[0]), put(b"lost"), commit=False)
    disk = disk.crash("all")
    member = forced(disk)
    assert ids(member) == [member.node.wal.node_id]
    assert b"lost" not in member.everything()
    member.put(b"k")
    assert ids(Member(disk.crash("all"))) == ids(member)


def test_learners_are_removed_too() -> None:
    disk = of_three()
    append(disk, added(0x333, ConfChangeType.ADD_LEARNER_NODE))
    member = forced(disk.crash("all"))
    assert ids(member) == [member.node.wal.node_id]


def test_who_was_removed_stays_removed() -> None:
    disk = of_three()
    member_id = forced(disk.crash("all")).node.wal.node_id
    change = ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=member_id)
    append(disk, (EntryType.CONF_CHANGE, change.encode()))
    before = disk.crash("all")
    with pytest.raises(Fatal, match=f"member {member_id:x} was removed"):
        forced(before)


def test_a_crash_on_the_way_leaves_it_as_it_was_or_forced() -> None:
    disk = of_three(put(b"lost"))
    probe = disk.crash("all")
    forced(probe)
    total = probe.operations
    assert total > 5
    for how in ("nothing", "all", "prefix"):
        for at in range(1, total + 1):
            broken = disk.crash("all")
            broken.die_at = at
            with contextlib.suppress(DiskError):
                forced(broken)
            member = forced(broken.crash(how))
            assert ids(member) == [member.node.wal.node_id], (how, at)
            assert member.everything().keys() == {b"k%d" % n for n in range(5)} | {b"committed"}
            member.check()
