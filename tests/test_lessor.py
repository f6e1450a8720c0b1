"""core/_lessor beside a plain model: who holds which key, what is left, what runs out and when.

The lessor is driven as the core drives it, through entries and reads, with a clock that the test
moves (`tests/core_driver.py`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import pytest
from sortedcontainers import SortedDict

from quorate.core.errors import (
    CorruptError,
    LeaseExistsError,
    LeaseNotFoundError,
    LeaseTtlTooLargeError,
    NoSpaceError,
)
from tests.core_driver import EXPIRE_STEP, Core
from tests.depth import depth, seed
from tests.messages import Message, delimited, encode

TTL_MAX = 9_000_000_000
TTL_MIN = 2
CHECKPOINT_SECONDS = 300
CHECKPOINT_FIELD, REVOKE_FIELD, GRANT_FIELD = 11, 9, 8
KEYS = [b"", *(b"/registry/%d" % at for at in range(12)), b"/registry/\xff", b"a", b"/"][1:]
IDS = [1, 2, 3, 5, -7, 1 << 62, -(1 << 63), 77]


def checkpoint_entry(lease: int, remaining: int) -> bytes:
    checkpoint = encode("LeaseCheckpoint", {"ID": lease, "remaining_TTL": remaining})
    return delimited(CHECKPOINT_FIELD, delimited(1, checkpoint))


def keys_of(core: Core, lease: int) -> list[bytes]:
    reply = core.call("Lease/LeaseTimeToLive", {"ID": lease, "keys": True})
    return list(reply.get("keys", []))


def left(core: Core, lease: int) -> int:
    return int(core.call("Lease/LeaseTimeToLive", {"ID": lease}).get("TTL", 0))


def listed(core: Core) -> list[int]:
    return [one.get("ID", 0) for one in core.call("Lease/LeaseLeases").get("leases", [])]


# --- the model ------------------------------------------------------------------------------------


@dataclass
class Held:
    """A lease as the model knows it."""

    ttl: int
    expiry: int  # milliseconds


class Pair:
    """A core, and the plainest thing that could be right."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        self.core = Core()
        self.leases: dict[int, Held] = {}
        self.keys: SortedDict[bytes, int] = SortedDict()
        self.revision = 1

    def step(self) -> None:
        """One random operation on both."""
        moves = [
            (6, self.grant),
            (2, self.revoke),
            (10, self.put),
            (4, self.delete),
            (3, self.txn),
            (4, self.keep_alive),
            (4, self.pass_time),
            (1, self.compact),
            (1, self.lead_again),
        ]
        weights = [weight for weight, _ in moves]
        [(_, move)] = self.random.choices(moves, weights)
        move()

    def grant(self) -> None:
        lease, ttl = self.random.choice(IDS), self.random.choice([-1, 0, 1, 3, 30, 900, TTL_MAX])
        error = self.core.refused("Lease/LeaseGrant", {"ID": lease, "TTL": ttl})
        assert error is (LeaseExistsError if lease in self.leases else None)
        if error is None:
            ttl = max(ttl, TTL_MIN)
            self.leases[lease] = Held(ttl, self.core.now + ttl * 1000)

    def revoke(self) -> None:
        lease = self.random.choice(IDS)
        error = self.core.refused("Lease/LeaseRevoke", {"ID": lease})
        assert error is (None if lease in self.leases else LeaseNotFoundError)
        self.lose(lease)

    def lose(self, *leases: int) -> None:
        """Those leases are gone, each with its keys in one revision."""
        for lease in leases:
            held = [key for key, holder in self.keys.items() if holder == lease]
            for key in held:
                del self.keys[key]
            self.revision += bool(held)
            self.leases.pop(lease, None)

    def put(self) -> None:
        key, lease = self.random.choice(KEYS), self.random.choice([0, *IDS])
        asked: Message = {"key": key, "value": b"v" * self.random.randrange(20), "lease": lease}
        if key in self.keys and self.random.random() < 0.2:
            asked, lease = {"key": key, "value": b"w", "ignore_lease": True}, self.keys[key]
        error = self.core.refused("KV/Put", asked)
        assert error is (LeaseNotFoundError if lease and lease not in self.leases else None)
        if error is None:
            self.keys[key] = lease
            self.revision += 1

    def delete(self) -> None:
        key = self.random.choice(KEYS)
        end = self.random.choice([b"", b"\0", key + b"\xff"])
        self.core.call("KV/DeleteRange", {"key": key, "range_end": end})
        gone = [one for one in self.keys if (one >= key if end == b"\0" else key <= one < end)]
        gone = gone if end else [key] * (key in self.keys)
        for one in gone:
            del self.keys[one]
        self.revision += bool(gone)

    def txn(self) -> None:
        """A key deleted and put again, in one revision, with another lease."""
        key, lease = self.random.choice(KEYS), self.random.choice([0, *self.leases])
        ops: list[Message] = [
            {"request_delete_range": {"key": key}},
            {"request_put": {"key": key, "value": b"t", "lease": lease}},
        ]
        self.core.call("KV/Txn", {"success": ops})
        self.keys[key] = lease
        self.revision += 1

    def keep_alive(self) -> None:
        leases = self.random.choices(IDS, k=self.random.randrange(1, 4))
        ttls = [self.leases[one].ttl if one in self.leases else 0 for one in leases]
        assert self.core.keep_alive(*leases) == ttls
        for one in set(leases) & self.leases.keys():
            self.leases[one].expiry = self.core.now + self.leases[one].ttl * 1000

    def pass_time(self) -> None:
        self.core.pass_time(self.random.choice([0.5, 1.0, 2.0, 29.999, 301.0, 1000.0]))
        self.lose(*[one for one, held in self.leases.items() if held.expiry <= self.core.now])

    def compact(self) -> None:
        self.core.refused("KV/Compact", {"revision": self.core.store.revision})

    def lead_again(self) -> None:
        """As after a restart: no lease has less than it had, and little more."""
        self.core.lessor.demote()
        self.core.pass_time(50.0)
        self.core.lessor.promote()
        for lease, held in self.leases.items():
            before = held.expiry - (self.core.now - 50_000)
            now = self.core.now + left(self.core, lease) * 1000 + 1000
            assert now - self.core.now >= before
            assert now - self.core.now <= before + (CHECKPOINT_SECONDS + 2) * 1000
            held.expiry = now

    def compare(self) -> None:
        """Both say the same."""
        self.core.store.check()
        kvs = self.core.everything()
        assert {kv["key"]: kv.get("lease", 0) for kv in kvs.get("kvs", [])} == self.keys
        assert kvs["header"]["revision"] == self.revision
        order = sorted(self.leases, key=lambda one: (self.leases[one].expiry, one))
        assert listed(self.core) == order
        for lease, held in self.leases.items():
            expected = [key for key, holder in self.keys.items() if holder == lease]
            assert keys_of(self.core, lease) == expected
            assert left(self.core, lease) == (held.expiry - self.core.now - 1) // 1000


@pytest.mark.parametrize("round_", range(4))
def test_random_operations_do_what_the_model_does(round_: int) -> None:
    number = seed() + round_
    print(f"QUORATE_SEED={number - round_}")
    pair = Pair(number)
    for _ in range(depth(400, 20_000)):
        pair.step()
        pair.compare()


def test_the_table_grows_and_shrinks() -> None:
    """Beyond every change of size, in both directions, each lease is found."""
    core, chance = Core(), random.Random(seed())
    alive: set[int] = set()
    for goal in (3000, 20, 700, 0):
        while len(alive) != goal:
            if len(alive) < goal:
                lease = chance.randrange(1, 1 << 62)
                core.apply(delimited(GRANT_FIELD, encode("LeaseGrantRequest", {"ID": lease})))
                alive.add(lease)
            else:
                lease = alive.pop()
                core.apply(delimited(REVOKE_FIELD, encode("LeaseRevokeRequest", {"ID": lease})))
            if len(alive) % 97 == 0:
                core.lessor.check()
        core.lessor.check()
        assert sorted(listed(core)) == sorted(alive)
    assert core.lessor.memory() < 100_000


# --- what etcd says -------------------------------------------------------------------------------


def test_each_refusal_in_etcds_order() -> None:
    core = Core()
    core.grant(5)
    for asked, error in (
        ({"ID": 5, "TTL": 10}, LeaseExistsError),
        ({"ID": 5, "TTL": TTL_MAX + 1}, LeaseTtlTooLargeError),
        ({"ID": 6, "TTL": TTL_MAX + 1}, LeaseTtlTooLargeError),
        ({"ID": 6, "TTL": (1 << 63) - 1}, LeaseTtlTooLargeError),
    ):
        assert core.refused("Lease/LeaseGrant", asked) is error
    assert core.refused("Lease/LeaseRevoke", {}) is LeaseNotFoundError
    assert core.refused("Lease/LeaseRevoke", {"ID": -5}) is LeaseNotFoundError
    assert listed(core) == [5]
    assert core.store.revision == 1


@pytest.mark.parametrize("ttl", [0, 1, -1, -(1 << 63), TTL_MIN])
def test_a_short_lease_is_granted_for_the_least_time(ttl: int) -> None:
    assert Core().grant(9, ttl)["TTL"] == TTL_MIN


def test_the_longest_lease_lasts() -> None:
    core = Core()
    core.grant(9, TTL_MAX)
    core.pass_time(86_400 * 365 * 100)
    assert left(core, 9) == TTL_MAX - 86_400 * 365 * 100 - 1


def test_an_id_of_zero_is_chosen_positive_and_unused() -> None:
    core = Core()
    core.batch.seed_leases((1 << 63) - 2)  # the choice goes past the sign and zero
    core.grant(1)
    chosen = [core.grant(0)["ID"] for _ in range(4)]
    assert chosen == [(1 << 63) - 1, 2, 3, 4]


def test_in_the_log_an_id_of_zero_grants_nothing() -> None:
    core = Core()
    core.apply(delimited(GRANT_FIELD, encode("LeaseGrantRequest", {"TTL": 10})))
    assert core.lessor.count == 0


def test_an_unknown_lease_is_answered_in_three_manners() -> None:
    core = Core()
    assert core.keep_alive(77) == [0]
    reply = core.call("Lease/LeaseTimeToLive", {"ID": 77, "keys": True})
    assert (reply["TTL"], reply.get("grantedTTL", 0), reply["ID"]) == (-1, 0, 77)
    assert core.refused("Lease/LeaseRevoke", {"ID": 77}) is LeaseNotFoundError


def test_alarms_refuse_what_etcd_refuses() -> None:
    core = Core()
    core.grant(5, 10)
    core.applier.no_space = True
    assert core.refused("Lease/LeaseGrant", {"ID": 6, "TTL": 10}) is NoSpaceError
    core.applier.no_space, core.applier.corrupt = False, True
    assert core.refused("Lease/LeaseGrant", {"ID": 6, "TTL": 10}) is CorruptError
    assert core.refused("Lease/LeaseRevoke", {"ID": 5}) is CorruptError
    assert core.keep_alive(5) == [10]
    core.pass_time(100)  # nothing runs out, and nothing is proposed again and again
    assert listed(core) == [5]
    core.applier.corrupt = False
    core.pass_time(0)
    assert listed(core) == []


def test_a_revoke_is_one_revision_in_the_order_of_the_keys() -> None:
    core = Core()
    core.grant(5)
    keys = [b"/p/%d" % at for at in (9, 10, 1, 2)] + [b"/p", b"/p/\xff", b"/p/1\0", b"a"]
    for key in keys:
        core.put(key, lease=5)
    before = core.store.revision
    assert keys_of(core, 5) == sorted(keys)
    assert core.call("Lease/LeaseRevoke", {"ID": 5})["header"]["revision"] == before + 1
    assert core.everything().get("count", 0) == 0


def test_a_lease_without_keys_leaves_no_revision() -> None:
    core = Core()
    core.grant(5)
    assert core.call("Lease/LeaseRevoke", {"ID": 5})["header"]["revision"] == 1


def test_a_put_moves_keeps_and_detaches() -> None:
    """A key hangs on one lease at most; lease 0 detaches; ignore_lease keeps; delete detaches."""
    core = Core()
    core.grant(5)
    core.grant(6)
    core.put(b"k", lease=5)
    core.put(b"k", lease=6)
    assert (keys_of(core, 5), keys_of(core, 6)) == ([], [b"k"])
    core.call("KV/Put", {"key": b"k", "value": b"w", "ignore_lease": True})
    assert keys_of(core, 6) == [b"k"]
    core.put(b"k")
    assert keys_of(core, 6) == []
    core.put(b"k", lease=5)
    core.call("KV/DeleteRange", {"key": b"k"})
    core.put(b"k")
    core.call("Lease/LeaseRevoke", {"ID": 5})
    assert core.range(b"k")["count"] == 1
    core.store.check()


def test_a_lease_granted_again_has_no_old_keys() -> None:
    core = Core()
    core.grant(5)
    core.put(b"k", lease=5)
    core.put(b"k")
    core.call("Lease/LeaseRevoke", {"ID": 5})
    core.grant(5)
    assert keys_of(core, 5) == []
    core.call("Lease/LeaseRevoke", {"ID": 5})
    assert core.range(b"k")["count"] == 1


# --- time -----------------------------------------------------------------------------------------


def test_a_lease_ends_in_time_and_never_before() -> None:
    """T13."""
    core = Core()
    core.grant(5, 10)
    core.put(b"k", lease=5)
    core.pass_time(9.999)
    assert core.range(b"k")["count"] == 1
    core.pass_time(0.001)
    assert core.range(b"k").get("count", 0) == 0
    assert listed(core) == []


def test_a_clock_that_went_back_ends_nothing() -> None:
    core = Core()
    core.grant(5, 10)
    core.now -= 3_600_000
    core.pass_time(5)
    assert left(core, 5) == 9
    core.now = 1000
    core.pass_time(9.5)
    assert listed(core) == [5]


def test_a_keep_alive_before_the_revoke_is_in_the_log_renews() -> None:
    """The core stood still for longer than the lease; its keep-alive was waiting in the ring."""
    core = Core()
    core.grant(5, 10)
    core.now += 60_000
    assert core.keep_alive(5) == [10]
    core.pass_time(9.9)
    assert listed(core) == [5]


def test_a_keep_alive_behind_the_revoke_finds_nothing() -> None:
    core = Core()
    core.grant(5, 10)
    core.put(b"k", lease=5)
    core.now += 10_000
    core.turn()  # the revoke is proposed for the next turn
    revision = core.store.revision
    assert core.keep_alive(5) == [0]
    # etcd, too, answers only when the keys are gone.
    assert core.store.revision == revision + 1
    assert core.lessor.expired == 1


def test_an_id_granted_again_behind_its_revoke_lives() -> None:
    """The keep-alive that went through the log behind both renews the new lease."""
    core = Core()
    core.grant(5, 10)
    core.now += 10_000
    core.turn()
    granted = core.worker.start("Lease/LeaseGrant", {"ID": 5, "TTL": 20})
    assert core.keep_alive(5) == [20]
    core.worker.absorb()
    assert not core.worker.calls[granted].error
    core.pass_time(19.9)
    assert listed(core) == [5]


def test_writers_come_first_and_a_turn_revokes_few() -> None:
    core = Core()
    for lease in range(1, 501):
        core.grant(lease, 10)
    core.now += 10_000
    gone = [500]
    while core.turn():
        gone.append(core.lessor.count)
    steps = [before - after for before, after in pairwise(gone)]
    assert core.lessor.count == 0
    assert max(steps) <= EXPIRE_STEP


def test_a_lease_with_many_keys_is_a_turn_by_itself() -> None:
    core = Core()
    for lease in (1, 2, 3):
        core.grant(lease, 10)
        for at in range(150):
            core.put(b"%d/%d" % (lease, at), lease=lease)
    core.now += 10_000
    core.turn()
    core.turn()
    assert core.lessor.count == 2


def test_nothing_runs_out_where_others_lead() -> None:
    core = Core()
    core.grant(5, 10)
    core.lessor.demote()
    core.pass_time(1000)
    assert listed(core) == [5]
    assert core.lessor.due() is None
    core.keep_alive(5)
    core.lessor.check()
    core.lessor.promote()
    assert left(core, 5) == 9
    core.lessor.check()


def test_what_is_left_is_kept_over_a_restart() -> None:
    """etcd#9888, #13294: a lease of an hour had an hour again after every change of the leader."""
    core = Core()
    core.grant(5, 3600)
    for _ in range(9):
        core.pass_time(301)
    again = restarted(core)
    assert 3600 - 9 * 301 - 1 <= left(again, 5) <= 3600 - 8 * 301
    again.pass_time(3600 - 8 * 301 + 1)
    assert listed(again) == []


def restarted(core: Core) -> Core:
    """Another core that has read the same log."""
    again = Core()
    again.lessor.demote()
    again.ports[:] = [None]
    for run in core.runs:
        again.applier.apply(run)
    again.ports[:] = [again.worker.port]
    again.lessor.promote()
    again.store.check()
    return again


def test_a_lease_that_is_kept_alive_costs_the_log_nothing() -> None:
    core = Core()
    core.grant(5, 600)
    entries = len(core.runs)
    for _ in range(20):
        core.pass_time(200)
        assert core.keep_alive(5) == [600]
    assert len(core.runs) == entries


def test_a_keep_alive_after_a_checkpoint_is_in_the_log_before_its_answer() -> None:
    """Otherwise a restart gave the lease less than its client was promised: it would end early."""
    core = Core()
    core.grant(5, 600)
    core.pass_time(400)
    assert core.keep_alive(5) == [600]
    assert left(restarted(core), 5) == 599


def test_a_keep_alive_that_meets_a_checkpoint_on_its_way() -> None:
    """The checkpoint is proposed and not applied yet: what it says must not outlive the renewal."""
    core = Core()
    core.grant(5, 600)
    core.now += 301_000
    core.turn()  # proposes the checkpoint for the next turn
    assert core.keep_alive(5) == [600]
    assert left(restarted(core), 5) == 599


def test_keep_alives_of_a_stream_are_answered_in_their_order() -> None:
    """Some at once, some through the log, some of leases that are not there."""
    core = Core()
    for lease in range(1, 7):
        core.grant(lease, 600 if lease % 2 else 20)
    core.pass_time(10)
    core.keep_alive(2, 4, 6)
    core.lessor.check()
    core.apply(*(checkpoint_entry(lease, 300) for lease in (1, 3)))
    asked = [2, 1, 9, 4, 3, 3, 6, 5, 1, 2]
    assert core.keep_alive(*asked) == [20, 600, 0, 20, 600, 600, 20, 600, 600, 20]
    assert core.keep_alive(1, 2) == [600, 20]


@pytest.mark.parametrize("remaining", [-1, -(1 << 63), (1 << 63) - 1, TTL_MAX + 1, 0])
def test_a_checkpoint_may_hold_any_number(remaining: int) -> None:
    core = Core()
    core.grant(5, 10)
    core.apply(checkpoint_entry(5, remaining), checkpoint_entry(6, 5))
    core.lessor.check()
    again = restarted(core)
    assert left(again, 5) == (9 if remaining <= 0 else TTL_MAX - 1)


def test_checkpoints_go_together_and_in_parts() -> None:
    core = Core()
    for lease in range(1, 251):
        core.grant(lease, 1000)
    entries = len(core.runs)
    core.pass_time(301)
    assert len(core.runs) == entries + 3  # about EXPIRE_STEP leases each
    assert all(left(restarted(core), lease) < 700 for lease in (1, 250))


# --- long answers ---------------------------------------------------------------------------------


def test_a_long_list_of_leases_comes_in_slices_and_in_order() -> None:
    core, chance = Core(), random.Random(5)
    ttls = [chance.randrange(10, 1 << 32) for _ in range(30_000)]
    grants = [
        delimited(GRANT_FIELD, encode("LeaseGrantRequest", {"ID": at + 1, "TTL": ttl}))
        for at, ttl in enumerate(ttls)
    ]
    core.apply(*grants)
    call = core.finish(core.worker.start("Lease/LeaseLeases"))
    assert call.records > 3
    [reply] = call.result()
    found = [one["ID"] for one in reply["leases"]]
    assert found == sorted(range(1, 30_001), key=lambda lease: (ttls[lease - 1], lease))


def test_a_lease_with_many_keys_tells_them_in_slices() -> None:
    core = Core()
    core.grant(5)
    puts = [
        delimited(4, encode("PutRequest", {"key": b"/some/prefix/%06d" % at, "lease": 5}))
        for at in range(20_000)
    ]
    random.Random(5).shuffle(puts)
    core.apply(*puts)
    call = core.finish(core.worker.start("Lease/LeaseTimeToLive", {"ID": 5, "keys": True}))
    assert call.records > 3
    [reply] = call.result()
    assert reply["keys"] == [b"/some/prefix/%06d" % at for at in range(20_000)]
    assert core.call("Lease/LeaseRevoke", {"ID": 5})["header"]["revision"] == 20_002
    core.store.check()
