"""core/node: nothing is acknowledged or read before it is durable, whatever the disk does."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from collections.abc import Callable, Iterator

import pytest

from quorate.core._disk import DiskError
from quorate.core.admincalls import AdminCall
from quorate.core.errors import (
    BY_ID,
    EtcdError,
    InvalidAlarmActionError,
    NoSpaceError,
    NotImplementedError,
    TooManyRequestsError,
)
from quorate.core.node import QUICK_SYNC_SECONDS
from tests.core_driver import Call, FakeWorker
from tests.messages import Message, decode, encode
from tests.node_driver import Member, new_disk
from tests.sim.disk import SimDisk

NOSPACE = {"alarm": 1, "memberID": 5}


@contextlib.contextmanager
def held(disk: SimDisk) -> Iterator[threading.Event]:
    """Syncs begin and do not end until the event is set."""
    disk.gate = threading.Event()
    try:
        yield disk.gate
    finally:
        disk.gate.set()
        disk.gate = None


def puts(worker: FakeWorker, prefix: bytes, count: int) -> list[Call]:
    """Ask for so many puts at once."""
    ids = [worker.start("KV/Put", {"key": prefix + b"%03d" % n}) for n in range(count)]
    return [worker.calls[request_id] for request_id in ids]


def read_beside(worker: FakeWorker) -> None:
    """A read, so that the sync of this turn's writes is not the turn's."""
    worker.start("KV/Range", {"key": b"beside", "serializable": True})


# --- syncs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 300])
def test_writes_alone_are_synced_and_answered_in_their_turn(count: int) -> None:
    member = Member(new_disk())
    before = member.node.wal.statistics().fsync_count
    calls = puts(member.worker, b"k", count)
    member.turn()
    assert all(call.ended for call in calls)
    assert not member.node.wal.syncing
    assert member.node.wal.statistics().fsync_count == before + 1


def test_no_turn_waits_for_a_disk_that_was_slow() -> None:
    disk = new_disk()
    member = Member(disk)
    with held(disk) as gate:
        slow = threading.Timer(0.2, gate.set)
        slow.start()
        member.put(b"a")
        slow.join()
    assert member.node.wal.last_sync_seconds > QUICK_SYNC_SECONDS
    with held(disk) as gate:
        [call] = puts(member.worker, b"b", 1)
        member.turn()
        assert member.node.wal.syncing
        gate.set()
        member.settle()
    assert call.ended


def test_many_requests_share_a_sync_and_nobody_is_answered_before_it_ends() -> None:
    disk = new_disk()
    member = Member(disk, workers=2)
    before = member.node.wal.statistics().fsync_count
    with held(disk) as gate:
        calls = [call for worker in member.workers for call in puts(worker, b"a", 100)]
        read_beside(member.worker)
        member.turn()
        assert member.node.wal.syncing
        late = [call for worker in member.workers for call in puts(worker, b"b", 50)]
        for _ in range(5):
            member.turn()
        assert not any(call.ended for call in calls + late)
        gate.set()
        member.settle()
    assert all(call.ended and not call.error for call in calls + late)
    assert member.node.wal.statistics().fsync_count == before + 2
    revisions = sorted(call.result()[0]["header"]["revision"] for call in calls + late)
    assert revisions == list(range(2, 302))
    member.check()


def test_a_lone_request_that_comes_during_a_sync_waits_for_the_next() -> None:
    disk = new_disk()
    member = Member(disk)
    with held(disk) as gate:
        first = puts(member.worker, b"a", 2)
        read_beside(member.worker)
        member.turn()
        [lone] = puts(member.worker, b"b", 1)
        member.turn()
        assert not lone.ended
        gate.set()
        member.settle()
    assert lone.result()[0]["header"]["revision"] == 4
    assert all(call.ended for call in first)


def test_reads_see_only_what_is_durable() -> None:
    disk = new_disk()
    member = Member(disk)
    revision = member.put(b"k", b"old")
    with held(disk) as gate:
        member.worker.start("KV/Put", {"key": b"k", "value": b"new"})
        member.worker.start("KV/Put", {"key": b"l", "value": b"new"})
        read_beside(member.worker)
        member.turn()
        for serializable in (False, True):
            asked = member.worker.start("KV/Range", {"key": b"k", "serializable": serializable})
            for _ in range(3):
                member.turn()
            call = member.worker.calls[asked]
            assert call.ended  # what is durable is committed: there is nothing to wait for
            [reply] = call.result()
            assert reply["kvs"][0]["value"] == b"old"
            assert reply["header"]["revision"] == revision
        gate.set()
        member.settle()
    assert member.everything()[b"k"] == (b"new", revision + 1)


def test_a_read_with_a_write_in_one_turn_sees_a_state_that_was() -> None:
    member = Member(new_disk())
    put = member.worker.start("KV/Put", {"key": b"k"})
    read = member.worker.start("KV/Range", {"key": b"k"})
    member.settle()
    written = member.worker.calls[put].result()[0]["header"]["revision"]
    [reply] = member.worker.calls[read].result()
    assert reply.get("count", 0) == (reply["header"]["revision"] >= written)


# --- crashes --------------------------------------------------------------------------------------


class Session:
    """A client that writes until the machine dies, and remembers what was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: dict[bytes, tuple[bytes, int]] = {}
        self.pairs: list[tuple[bytes, bytes]] = []
        self.revision = 0
        self.written = 0

    def run(self, disk: SimDisk, rounds: int = 6) -> None:
        """Start a member, look that all is there, write lone and gathered. Raises DiskError."""
        member = Member(disk)
        self.survived(member)
        for _ in range(rounds):
            self.write(member, 1)
            self.write(member, 3)

    def write(self, member: Member, count: int) -> None:
        """So many Txns in one turn, each of two keys."""
        asked = {}
        for _ in range(count):
            self.written += 1
            one, two = b"%d first" % self.written, b"%d second" % self.written
            self.pairs.append((one, two))
            message = {
                "success": [
                    {"request_put": {"key": one, "value": bytes(300)}},
                    {"request_put": {"key": two, "value": b"2"}},
                ]
            }
            asked[member.worker.start("KV/Txn", message)] = one, two
        try:
            member.settle()
        finally:
            member.worker.absorb()
            for request_id, (one, two) in asked.items():
                call = member.worker.calls.pop(request_id)
                if call.ended and not call.error:
                    self.revision = call.result()[0]["header"]["revision"]
                    self.acknowledged[one] = bytes(300), self.revision
                    self.acknowledged[two] = b"2", self.revision

    def survived(self, member: Member) -> None:
        """Every acknowledged write is there, none is half there, no revision went back."""
        found = member.everything()
        for key, written in self.acknowledged.items():
            assert found.get(key) == written, (key, written)
        for one, two in self.pairs:
            assert (one in found) == (two in found), (one, two)
        assert member.revision >= self.revision
        # What was there and is not acknowledged may stay: from now on it has to.
        self.acknowledged.update(found)
        self.revision = member.revision
        member.check()


def operations_of(run: Callable[[SimDisk], None]) -> int:
    disk = new_disk()
    run(disk)
    return disk.operations


@pytest.mark.parametrize("how", ["nothing", "all", "prefix", "sectors"])
def test_every_acknowledged_write_survives_a_crash_at_any_operation(how: str) -> None:
    total = operations_of(lambda disk: Session().run(disk))
    assert total > 35
    for at in range(1, total + 1):
        disk, session = new_disk(at), Session()
        disk.die_at = at
        with pytest.raises(DiskError):
            session.run(disk)
        # A second crash, in the recovery or after it.
        disk = disk.crash(how)
        disk.die_at = 1 + at * 7 % total
        with contextlib.suppress(DiskError):
            session.run(disk)
        try:
            # The zeros that recovery puts over a torn tail are written sector by sector, whole.
            session.run(disk.crash("sectors" if how == "prefix" else how), rounds=1)
        except Exception as error:
            error.add_note(f"died at operation {at} of {total}")
            raise


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failing_operation_is_final_and_acknowledges_nothing(number: int) -> None:
    begin = operations_of(lambda disk: Session().run(disk, rounds=0))
    total = operations_of(lambda disk: Session().run(disk))
    failed = set()
    for at in range(begin + 1, total + 1):
        disk, session = new_disk(at), Session()
        disk.fail_at, disk.fail_errno = at, number
        with pytest.raises(DiskError) as caught:
            session.run(disk)
        assert caught.value.errno == number
        failed.add(caught.value.operation)
        session.run(disk.crash(), rounds=1)
    assert failed >= {"write", "fdatasync"}


@pytest.mark.parametrize("count", [1, 3])
def test_after_a_failed_sync_the_next_turn_fails_too(count: int) -> None:
    disk = new_disk()
    member = Member(disk)
    calls = puts(member.worker, b"a", count)
    disk.fail_at = disk.operations + 1
    with pytest.raises(DiskError):
        member.settle()
    calls += puts(member.worker, b"b", count)
    with pytest.raises(Exception, match=r".+"):
        member.settle()
    member.worker.absorb()
    assert not any(call.ended for call in calls)


# --- what is refused ------------------------------------------------------------------------------


def test_too_much_that_waits_for_the_disk_is_refused() -> None:
    disk = new_disk()
    member = Member(disk)
    with held(disk) as gate:
        calls: list[Call] = []
        read_beside(member.worker)
        while not any(call.ended for call in calls):
            for _ in range(3):
                asked = member.worker.start("KV/Put", {"key": b"k", "value": bytes(1_000_000)})
                calls.append(member.worker.calls[asked])
            member.turn()
            assert len(calls) < 100
        refused = [call for call in calls if call.ended]
        assert {call.error for call in refused} == {TooManyRequestsError.id}
        assert len(calls) - len(refused) > 60
        # An alarm of the same turn shares the run's fate, and its asker hears of it.
        alarm = encode("AlarmRequest", {"action": 1, **NOSPACE})
        asked = member.worker.admin(AdminCall.ALARM, alarm)
        member.turn()
        assert member.worker.calls[asked].error == TooManyRequestsError.id
        gate.set()
        member.settle()
    assert all(call.ended and not call.error for call in calls if call not in refused)
    assert member.put(b"after") == member.revision
    member.check()


# --- what Python answers --------------------------------------------------------------------------


def alarm(member: Member, **message: int) -> Message:
    asked = encode("AlarmRequest", dict(message))
    return decode("AlarmResponse", member.ask(AdminCall.ALARM, asked))


def error_of(member: Member, call: int, payload: bytes) -> type[EtcdError]:
    error = member.finish(member.worker.admin(call, payload)).error
    return BY_ID[error]


def test_status_tells_what_the_node_does() -> None:
    member = Member(new_disk())
    revision = member.put(b"k")
    status = decode("StatusResponse", member.ask(AdminCall.STATUS))
    assert status["header"]["revision"] == revision
    assert status["leader"] == status["header"]["member_id"] == member.node.wal.node_id
    assert status["raftIndex"] == status["raftAppliedIndex"] == member.node.applier.applied
    assert status["dbSize"] >= status["dbSizeInUse"] > 0


def test_members_alone_and_after_a_read_index() -> None:
    member = Member(new_disk())
    for linearizable in (False, True):
        asked = encode("MemberListRequest", {"linearizable": linearizable})
        [one] = decode("MembersResponse", member.ask(AdminCall.MEMBER_LIST, asked))["members"]
        assert one["ID"] == member.node.wal.node_id
        assert one["name"] == "default"
        assert one["peerURLs"] == ["http://localhost:2380"]


def test_alarms_are_proposed_applied_and_kept_over_a_restart() -> None:
    disk = new_disk()
    member = Member(disk)
    assert alarm(member, action=1, **NOSPACE)["alarms"] == [NOSPACE]
    assert member.refused("KV/Put", {"key": b"k"}) is NoSpaceError
    member = Member(disk.crash("nothing"))
    assert member.refused("KV/Put", {"key": b"k"}) is NoSpaceError
    assert alarm(member, action=0)["alarms"] == [NOSPACE]
    assert alarm(member, action=0, alarm=2).get("alarms", []) == []
    assert alarm(member, action=2, **NOSPACE)["alarms"] == [NOSPACE]
    assert member.refused("KV/Put", {"key": b"k"}) is None
    assert alarm(member, action=2, **NOSPACE).get("alarms", []) == []


def test_nonsense_from_a_worker_is_an_error_and_proposes_nothing() -> None:
    member = Member(new_disk())
    index = member.node.raft.log.last_index
    asked = encode("AlarmRequest", {"action": 9, **NOSPACE})
    assert error_of(member, AdminCall.ALARM, asked) is InvalidAlarmActionError
    assert error_of(member, 99, b"") is NotImplementedError
    for call in (AdminCall.ALARM, AdminCall.MEMBER_LIST, AdminCall.HEALTH):
        assert error_of(member, call, b"\x07\xff") is not None
    assert error_of(member, 2**64 - 1, b"x") is NotImplementedError
    assert member.node.raft.log.last_index == index


def test_health_and_metrics() -> None:
    member = Member(new_disk())
    member.put(b"k")
    for payload in (b"0", b"1"):
        health = json.loads(member.ask(AdminCall.HEALTH, payload))
        assert health == {"leader": True, "learner": False, "alarms": []}
    metrics = json.loads(member.ask(AdminCall.METRICS))
    assert metrics["metrics"]["etcd_debugging_mvcc_keys_total"] == 1
    assert metrics["figures"]["revision"] == 2
    assert decode("HashResponse", member.ask(AdminCall.DEFRAGMENT))["header"]["revision"] == 2


def test_an_answer_in_python_waits_for_its_read_index_and_the_sync_before_it() -> None:
    disk = new_disk()
    member = Member(disk)
    with held(disk) as gate:
        puts(member.worker, b"a", 2)
        read_beside(member.worker)
        member.turn()
        asked = member.worker.admin(
            AdminCall.ALARM, encode("AlarmRequest", {"action": 1, **NOSPACE})
        )
        member.turn()
        assert not member.worker.calls[asked].ended
        gate.set()
        member.settle()
    assert member.worker.calls[asked].ended


def test_ticks_change_nothing_for_a_lone_leader() -> None:
    member = Member(new_disk())
    term = member.node.raft.term
    for _ in range(100):
        member.node.tick(1000)
        member.turn()
    assert member.node.raft.term == term
    assert member.put(b"k") == 2
    member.check()
