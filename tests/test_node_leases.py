"""Leases in a whole member on a simulated disk: the clock, the log, restarts, what is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quorate.core.admincalls import AdminCall
from quorate.core.boot import lease_seconds_min
from quorate.core.config import Config
from quorate.core.errors import TooManyRequestsError
from quorate.core.node import EXPIRE_STEP
from quorate.core.raft import Raft
from tests.core_driver import KEEP_ALIVE, request
from tests.messages import Message, decode, encode
from tests.node_driver import Member, new_disk
from tests.sim.disk import SimDisk
from tests.test_node import held


def grant(member: Member, lease: int, ttl: int) -> Message:
    return member.call("Lease/LeaseGrant", {"ID": lease, "TTL": ttl})


def left(member: Member, lease: int) -> int:
    return int(member.call("Lease/LeaseTimeToLive", {"ID": lease}).get("TTL", 0))


def listed(member: Member) -> list[int]:
    reply = member.call("Lease/LeaseLeases")
    return [one.get("ID", 0) for one in reply.get("leases", [])]


def test_a_lease_runs_out_by_the_nodes_clock() -> None:
    member = Member(new_disk())
    grant(member, 5, 10)
    member.call("KV/Put", {"key": b"k", "lease": 5})
    assert member.node.applier.lessor.due() == member.now + 10_000
    member.now += 9_999
    member.settle()
    assert listed(member) == [5]
    member.now += 1
    member.settle()
    assert listed(member) == []
    assert member.everything() == {}
    assert member.node.applier.lessor.due() is None
    member.check()


def test_a_slow_sync_takes_nothing_from_a_lease() -> None:
    """The clock is asked again when the sync is done: its answer says TTL from then on."""
    member = Member(new_disk())
    clock, wal = [1000], member.node.wal

    def now() -> int:
        """Five seconds go by with every sync."""
        return clock[0] + 5000 * wal.statistics().fsync_count

    member.node.clock = now
    grant(member, 5, 2)
    assert member.node.applier.lessor.due() == now() + 2000


def test_a_restart_gives_what_was_left_from_the_moment_it_leads() -> None:
    disk = new_disk()
    member = Member(disk)
    grant(member, 5, 1000)
    grant(member, 6, 20)
    for _ in range(3):
        member.now += 200_000
        member.settle()
        grant(member, 6, 20)
    member.node.wal.close()
    again = Member(disk, now=77)  # another clock
    assert left(again, 6) == 19
    assert 399 <= left(again, 5) <= 700
    assert again.keep_alive(5) == 1000
    again.node.wal.close()
    third = Member(disk, now=9_000_000)
    assert left(third, 5) == 999
    assert sorted(listed(third)) == [5, 6]
    third.check()


def test_a_revoke_of_time_is_in_the_log() -> None:
    disk = new_disk()
    member = Member(disk)
    grant(member, 5, 10)
    member.call("KV/Put", {"key": b"k", "lease": 5})
    member.now += 10_000
    member.settle()
    revision = member.revision
    member.node.wal.close()
    again = Member(disk)
    assert (listed(again), again.everything(), again.revision) == ([], {}, revision)


def ask_while_held(disk: SimDisk, member: Member, lease: int) -> int:
    """Keep a lease alive while what is proposed for it can't be synced; answers the TTL."""
    member.turn()  # something is proposed for the next turn
    with held(disk) as gate:
        asked = member.worker.start("Lease/LeaseKeepAlive", {"ID": lease})
        for _ in range(5):
            member.turn()
        call = member.worker.calls[asked]
        assert not call.messages, "answered before the log decided"
        gate.set()
        member.settle()
    [message] = call.messages
    del member.worker.calls[asked]
    return int(decode("LeaseKeepAliveResponse", message).get("TTL", 0))


def test_a_keep_alive_waits_for_the_checkpoint_on_its_way() -> None:
    """etcd renews at once; the checkpoint then says less than was promised, and a restart ends the
    lease early."""
    disk = new_disk()
    member = Member(disk)
    grant(member, 5, 600)
    member.now += 301_000
    assert ask_while_held(disk, member, 5) == 600
    member.node.wal.close()
    assert left(Member(disk), 5) == 599


def test_a_keep_alive_that_waits_for_the_log_came_in_time() -> None:
    """It goes through the log, behind that of a lease whose revoke is on its way. While the disk
    hung its lease ran out, and the revoke was put behind it into the log: the client was told that
    the lease lives, and at the same moment it was gone."""
    disk = new_disk()
    member = Member(disk)
    grant(member, 5, 10)
    grant(member, 6, 12)
    member.now += 10_000
    member.turn()
    with held(disk) as gate:
        asked = [member.worker.start("Lease/LeaseKeepAlive", {"ID": lease}) for lease in (5, 6)]
        member.turn()
        member.now += 2_000
        for _ in range(5):
            member.turn()
        gate.set()
        member.settle()
    told = [member.worker.calls.pop(one).messages for one in asked]
    replies = [decode("LeaseKeepAliveResponse", one) for [one] in told]
    assert [reply.get("TTL", 0) for reply in replies] == [0, 12]
    assert listed(member) == [6]
    member.now += 12_000
    member.settle()
    assert listed(member) == []


def test_a_keep_alive_waits_for_the_revoke_on_its_way() -> None:
    disk = new_disk()
    member = Member(disk)
    grant(member, 5, 10)
    member.call("KV/Put", {"key": b"k", "lease": 5})
    member.now += 10_000
    assert ask_while_held(disk, member, 5) == 0
    assert member.everything() == {}


def test_keep_alives_behind_one_that_waits_wait_too() -> None:
    """One stream's answers come in the order of its requests."""
    disk = new_disk()
    member = Member(disk)
    grant(member, 5, 600)
    grant(member, 6, 60)
    member.now += 30_000
    assert member.keep_alive(6) == 60
    member.node.applier.lessor.check()
    member.now += 20_000
    for _ in range(5):
        assert member.keep_alive(6) == 60
        member.now += 55_000
        member.settle()
    with held(disk) as gate:
        asked = member.worker.start("Lease/LeaseKeepAlive", {"ID": 5})
        member.turn()
        for lease in (6, 77, 5):
            payload = encode("LeaseKeepAliveRequest", {"ID": lease})
            assert member.worker.push(request(asked, KEEP_ALIVE, payload))
            member.turn()
        call = member.worker.calls.pop(asked)
        gate.set()
        member.worker.calls[asked] = call
        member.settle()
    del member.worker.calls[asked]
    replies = [decode("LeaseKeepAliveResponse", message) for message in call.messages]
    assert [(one["ID"], one.get("TTL", 0)) for one in replies] == [
        (5, 600),
        (6, 60),
        (77, 0),
        (5, 600),
    ]


def test_many_leases_go_a_part_at_a_time() -> None:
    member = Member(new_disk())
    for lease in range(1, 2 * EXPIRE_STEP + 10):
        grant(member, lease, 10)
    member.now += 10_000
    lessor, steps = member.node.applier.lessor, []
    while member.turn():
        steps.append(lessor.count)
    member.settle()
    assert lessor.count == 0
    assert len(set(steps)) >= 2


class FullRaft:
    """A raft whose log takes nothing more."""

    def __init__(self, raft: Raft) -> None:
        self.raft = raft
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raft, name)

    def propose(self, run: object) -> None:
        """Refuse it."""
        self.refused += 1
        raise TooManyRequestsError


def test_a_refused_revoke_is_proposed_again_and_not_at_once() -> None:
    """The lease goes when there is room."""
    member = Member(new_disk())
    grant(member, 5, 10)
    full = FullRaft(member.node.raft)
    member.node.raft = full  # type: ignore[assignment]
    member.now += 10_000
    member.settle()
    assert full.refused == 1
    member.now += 1000
    member.settle()
    assert full.refused == 2
    member.node.raft = full.raft
    member.now += 1000
    member.settle()
    assert listed(member) == []
    member.check()


def test_what_is_counted() -> None:
    member = Member(new_disk())
    for lease, ttl in ((1, 2), (2, 3), (3, 1 << 24), (4, 60)):
        grant(member, lease, ttl)
    member.keep_alive(4)
    member.keep_alive(99)
    member.call("Lease/LeaseRevoke", {"ID": 3})
    member.now += 3000
    member.settle()
    metrics = json.loads(member.ask(AdminCall.METRICS))["metrics"]
    assert metrics["etcd_debugging_lease_granted_total"] == 4
    assert metrics["etcd_debugging_lease_revoked_total"] == 3
    assert metrics["etcd_debugging_lease_renewed_total"] == 1
    assert metrics["etcd_debugging_server_lease_expired_total"] == 2
    counts, total = metrics["etcd_debugging_lease_ttl_total"]
    assert (sum(counts), total) == (4, 2 + 3 + (1 << 24) + 60)
    assert (counts[1], counts[2], counts[6], counts[24]) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("heartbeat", "election", "seconds"),
    [(100, 1000, 2), (100, 500, 1), (50, 1010, 2), (500, 50_000, 75)],
)
def test_the_shortest_lease_is_one_and_a_half_elections(
    heartbeat: int, election: int, seconds: int
) -> None:
    config = Config(heartbeat_interval=heartbeat, election_timeout=election)
    assert lease_seconds_min(config) == seconds
