"""core/upkeep: what a member does by itself, in a whole member on a simulated disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate.core._run import Run
from quorate.core.admincalls import AdminCall
from quorate.core.errors import BY_ID, NoSpaceError, TooManyRequestsError
from quorate.core.logs import Logger
from quorate.core.raft import Raft
from quorate.core.upkeep import Compaction
from tests.messages import Message, decode, encode
from tests.node_driver import Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_node import held, read_beside

MINUTE = 60_000


class Log:
    """A logger whose lines can be read back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.logger = Logger([self.descriptor], "info")

    def lines(self, about: str) -> list[dict[str, Any]]:
        """The fields of the lines whose message has this in it."""
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        for line in found:
            del line["ts"], line["caller"]
        return [line for line in found if about in line["msg"]]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "log")
    yield log
    os.close(log.descriptor)


def compacting(log: Log, mode: str, retention: str) -> Member:
    flags: dict[str, Any] = {"auto_compaction_mode": mode, "auto_compaction_retention": retention}
    return Member(new_disk(), logger=log.logger, **flags)


def compactions(member: Member) -> list[Compaction]:
    return [duty for duty in member.node.duties if isinstance(duty, Compaction)]


def pass_minutes(member: Member, minutes: int) -> None:
    """Minute by minute, with a put in each."""
    for _ in range(minutes):
        member.now += MINUTE
        member.put(b"k")
        member.settle()


def test_a_member_compacts_by_time(log: Log) -> None:
    member = compacting(log, "periodic", "10m")
    [compaction] = compactions(member)
    assert compaction.due() == member.now + MINUTE
    pass_minutes(member, 9)
    assert member.node.state.store.compact_revision == -1
    pass_minutes(member, 6)
    assert member.node.state.store.compact_revision == 1
    pass_minutes(member, 6)
    # What was there eleven minutes before, when the twentieth began.
    assert member.node.state.store.compact_revision == 10
    started = {"msg": "starting auto periodic compaction", "revision": 10}
    assert log.lines("auto")[2:] == [
        {"level": "info", **started, "compact-period": "10m0s"},
        {
            "level": "info",
            "msg": "completed auto periodic compaction",
            "revision": 10,
            "compact-period": "10m0s",
            "took": "0s",
        },
    ]
    member.check()


def test_a_member_compacts_by_revision(log: Log) -> None:
    member = compacting(log, "revision", "4")
    pass_minutes(member, 5)
    # The put of the fifth minute was in the turn that looked, before it.
    assert member.node.state.store.compact_revision == 2
    assert log.lines("auto")[0] == {
        "level": "info",
        "msg": "starting auto revision compaction",
        "revision": 2,
        "revision-compaction-retention": 4,
    }
    assert member.node.state.store.finished_revision == 2


def test_without_the_flag_nothing_is_compacted() -> None:
    member = Member(new_disk())
    assert compactions(member) == []
    pass_minutes(member, 130)
    assert member.node.state.store.compact_revision == -1


def test_what_raft_does_not_take_is_tried_again(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    member = compacting(log, "periodic", "10m")
    pass_minutes(member, 9)

    def refuse(raft: Raft, run: object) -> None:
        raise TooManyRequestsError

    member.now += MINUTE
    with monkeypatch.context() as patch:
        patch.setattr(Raft, "propose", refuse)
        member.settle()
    assert log.lines("failed") == [
        {
            "level": "warn",
            "msg": "failed auto periodic compaction",
            "revision": 1,
            "compact-period": "10m0s",
            "retry-interval": "1m0s",
            "error": TooManyRequestsError.text,
        }
    ]
    assert member.node.state.store.compact_revision == -1
    pass_minutes(member, 1)
    assert member.node.state.store.compact_revision == 1


def test_what_a_client_compacted_before_is_a_success(log: Log) -> None:
    member = compacting(log, "periodic", "10m")
    pass_minutes(member, 9)
    member.call("KV/Compact", {"revision": 9})
    pass_minutes(member, 1)
    assert [line["msg"] for line in log.lines("auto")] == [
        "starting auto periodic compaction",
        "completed auto periodic compaction",
    ]
    assert member.node.state.store.compact_revision == 9


def test_a_restart_begins_to_sample_anew(log: Log) -> None:
    disk = new_disk()
    flags: dict[str, Any] = {"auto_compaction_retention": "1"}
    member = Member(disk, logger=log.logger, **flags)
    pass_minutes(member, 59)
    member = Member(disk.crash("all"), logger=log.logger, **flags, now=member.now)
    pass_minutes(member, 59)
    assert log.lines("auto") == []
    pass_minutes(member, 1)
    assert len(log.lines("auto")) == 2


# --- the quota ------------------------------------------------------------------------------------

QUOTA = 400_000
VALUE = bytes(1000)
PUT_COST = 256
# Sizes are whole pages.
PAGE = 4096


def small(log: Log | None = None, quota: int = QUOTA, disk: SimDisk | None = None) -> Member:
    logger = log.logger if log else None
    return Member(disk or new_disk(), logger=logger, quota_backend_bytes=quota)


def used(member: Member) -> int:
    return member.node.applier.figures()[2]


def alarms(member: Member) -> list[Message]:
    asked = encode("AlarmRequest", {"action": 0})
    reply = decode("AlarmResponse", member.ask(AdminCall.ALARM, asked))
    return list(reply.get("alarms", []))


def change_alarm(member: Member, action: int, member_id: int, alarm: int = 1) -> None:
    asked = {"action": action, "memberID": member_id, "alarm": alarm}
    member.ask(AdminCall.ALARM, encode("AlarmRequest", asked))


def put(key: bytes, value: bytes = VALUE) -> Message:
    return {"key": key, "value": value}


def fill(member: Member) -> int:
    """Put until one is refused; answers how many were not."""
    for count in range(QUOTA // 1000):
        if refused := member.refused("KV/Put", put(b"%05d" % count)):
            assert refused is NoSpaceError
            return count
    raise AssertionError("nothing was refused")


def make_room(member: Member) -> None:
    """Delete all and compact, sweep and all."""
    member.call("KV/DeleteRange", {"key": b"\0", "range_end": b"\0"})
    member.call("KV/Compact", {"revision": member.revision})
    member.settle()


def test_what_goes_beyond_the_quota_is_refused_and_raises_the_alarm() -> None:
    member = small()
    count = fill(member)
    own = member.node.wal.node_id
    assert alarms(member) == [{"memberID": own, "alarm": 1}]
    # The one that was refused would have fitted, but for what etcd takes for granted.
    assert QUOTA - len(VALUE) - 5 - PUT_COST <= used(member) < QUOTA + 2 * PAGE
    assert member.call("KV/Range", {"key": b"\0", "range_end": b"\0", "count_only": True}) == {
        "header": member.call("KV/Range", {"key": b"\0"})["header"],
        "count": count,
    }
    member.check()


def test_the_request_that_raises_the_alarm_stands_behind_it_in_the_log() -> None:
    """So every member refuses it alike, and its client finds the alarm."""
    member = small(quota=1)
    applied = member.node.state.applied
    assert member.refused("KV/Put", put(b"k")) is NoSpaceError
    assert member.node.state.applied == applied + 2
    # The next ones do not come to the log.
    assert member.refused("KV/Put", put(b"k")) is NoSpaceError
    assert member.node.state.applied == applied + 2


def test_while_the_alarm_is_on_only_what_needs_room_is_refused() -> None:
    member = small()
    grant = {"ID": 7, "TTL": 60}
    member.call("Lease/LeaseGrant", grant)
    member.call("Lease/LeaseGrant", {"ID": 8, "TTL": 60})
    fill(member)
    tiny = {"request_put": put(b"k", b"")}
    compare = [{"result": 0, "target": 0, "key": b"00000", "version": 77}]
    assert member.refused("KV/Txn", {"success": [tiny]}) is NoSpaceError
    assert member.refused("KV/Txn", {"compare": compare, "success": [tiny]}) is NoSpaceError
    nested = {"success": [{"request_txn": {"failure": [tiny]}}]}
    assert member.refused("KV/Txn", nested) is NoSpaceError
    assert member.refused("Lease/LeaseGrant", {"ID": 9, "TTL": 60}) is NoSpaceError
    assert member.refused("KV/Put", put(b"00000", b"")) is NoSpaceError

    assert member.call("KV/Range", {"key": b"00001"})["count"] == 1
    deletes = [{"request_delete_range": {"key": b"00001"}}]
    assert member.call("KV/Txn", {"success": deletes})["succeeded"]
    assert member.call("KV/DeleteRange", {"key": b"00002"})["deleted"] == 1
    assert member.keep_alive(7) == 60
    member.call("Lease/LeaseRevoke", {"ID": 8})
    member.call("KV/Compact", {"revision": member.revision})
    assert alarms(member)
    member.check()


def test_requests_that_gather_do_not_go_beyond_the_quota_together() -> None:
    disk = new_disk()
    member = small(disk=disk)
    calls = []
    with held(disk):
        for turn in range(8):
            calls += [member.worker.start("KV/Put", put(b"%d %d" % (turn, n))) for n in range(100)]
            read_beside(member.worker)
            member.turn()
        assert member.node.applier.promised > QUOTA // 2
    member.settle()
    ends = [member.worker.calls[call].error for call in calls]
    assert {error and BY_ID[error] for error in ends} == {0, NoSpaceError}
    assert QUOTA // 2 < used(member) < QUOTA + 2 * PAGE
    assert ends.index(NoSpaceError.id) == ends.count(0), "one was taken after one was refused"
    assert member.node.applier.promised == 0


def test_the_alarm_clears_when_there_is_room_again(log: Log) -> None:
    member = small(log)
    count = fill(member)
    # Not yet: a part of a tenth is no room.
    member.call("KV/DeleteRange", {"key": b"00000", "range_end": b"%05d" % (count // 12)})
    member.call("KV/Compact", {"revision": member.revision})
    member.settle()
    assert QUOTA * 0.9 < used(member) < QUOTA * 0.95
    assert alarms(member)
    make_room(member)
    assert alarms(member) == []
    member.put(b"k")
    assert [line["msg"] for line in log.lines("alarm")] == [
        "alarm NOSPACE is on",
        "alarm NOSPACE is off",
    ]
    assert log.lines("alarm")[0]["quota-size-bytes"] == QUOTA
    # And once more.
    fill(member)
    assert alarms(member)


def test_a_large_request_stops_nobody_for_long() -> None:
    """It is refused, and does not fit again and again; what fits is taken."""
    member = small()
    for n in range(30):
        member.call("KV/Put", put(b"%d" % n, bytes(8000)))
    large = put(b"large", bytes(150_000))
    assert used(member) < QUOTA * 0.9
    assert member.refused("KV/Put", large) is NoSpaceError
    # It would fit if there was room for it, and there is not: small ones wait, as in etcd.
    assert alarms(member)
    make_room(member)
    assert alarms(member) == []
    member.call("KV/Put", large)
    # What can never fit raises the alarm for a moment only.
    assert member.refused("KV/Put", put(b"huge", bytes(QUOTA))) is NoSpaceError
    member.settle()
    assert alarms(member) == []
    member.put(b"k")


def test_leases_take_room_too() -> None:
    member = small(quota=40_000)
    grants = 0
    while member.refused("Lease/LeaseGrant", {"ID": grants + 1, "TTL": 60}) is None:
        grants += 1
        assert grants < 1000
    assert grants > 200
    for lease in range(1, grants + 1):
        member.call("Lease/LeaseRevoke", {"ID": lease})
    assert alarms(member) == []
    member.call("Lease/LeaseGrant", {"ID": 1, "TTL": 60})


def test_a_txn_costs_what_the_larger_of_its_lists_puts() -> None:
    member = small()
    before = member.node.applier.promised
    half = {"request_put": put(b"a", bytes(QUOTA // 2))}
    quarter = {"request_put": put(b"b", bytes(QUOTA // 4))}
    nested = {"request_txn": {"success": [quarter], "failure": [half]}}
    assert member.refused("KV/Txn", {"success": [half], "failure": [half]}) is None
    make_room(member)
    assert member.refused("KV/Txn", {"success": [nested, quarter]}) is None
    make_room(member)
    assert member.refused("KV/Txn", {"failure": [half, nested]}) is NoSpaceError
    assert member.node.applier.promised == before


def test_the_alarm_can_be_disarmed_and_comes_back() -> None:
    member = small()
    fill(member)
    own = member.node.wal.node_id
    change_alarm(member, 2, own)
    assert alarms(member) == []
    assert member.refused("KV/Put", put(b"l")) is NoSpaceError
    assert alarms(member) == [{"memberID": own, "alarm": 1}]


def test_an_alarm_without_reason_is_cleared_at_the_start_and_others_are_left_alone(
    log: Log,
) -> None:
    disk = new_disk()
    member = small(disk=disk, quota=1)
    assert member.refused("KV/Put", put(b"k")) is NoSpaceError
    change_alarm(member, 1, 5)
    assert len(alarms(member)) == 2
    # Without a quota there is always room, and what another member says is not ours to judge.
    member = small(log, quota=-1, disk=disk.crash("all"))
    member.settle()
    assert alarms(member) == [{"memberID": 5, "alarm": 1}]
    assert member.refused("KV/Put", put(b"k")) is NoSpaceError
    change_alarm(member, 2, 5)
    member.put(b"k")


def test_what_raft_does_not_take_costs_nothing_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member = small()
    fill(member)

    def refuse(raft: Raft, run: object) -> None:
        raise TooManyRequestsError

    def take_what_clients_ask(raft: Raft, run: Run) -> None:
        # An InternalRaftRequest whose alarm has the action DEACTIVATE.
        if not any(data[:1] + data[2:4] == b"\x52\x08\x02" for _, data in run.unpack()):
            propose(raft, run)
            return
        asked.append(member.now)
        raise TooManyRequestsError

    propose = Raft.propose
    asked: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Raft, "propose", take_what_clients_ask)
        make_room(member)
        assert len(asked) == 1
        assert member.node.due() == member.now + 1000
        assert member.refused("KV/Put", put(b"k")) is NoSpaceError
    member.now += 1000
    member.settle()
    assert alarms(member) == []
    with monkeypatch.context() as patch:
        patch.setattr(Raft, "propose", refuse)
        assert member.refused("KV/Put", put(b"k")) is TooManyRequestsError
    assert member.node.applier.promised == 0
    member.put(b"k")
