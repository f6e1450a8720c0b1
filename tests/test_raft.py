"""raft.py: the contract of its docstring, verb by verb, for a lone voter."""

from __future__ import annotations

import random

import pytest

from quorate.core._run import Run
from quorate.core.errors import Fatal, NoLeaderError, TooManyRequestsError
from quorate.core.limits import UNAPPLIED_BYTES_MAX
from quorate.core.messages import (
    ConfChangeSingle,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    EntryType,
    HardState,
    Message,
    MessageType,
)
from quorate.core.raft import NONE, Config, Raft, Role
from quorate.core.raftlog import RaftLog

from .depth import depth
from .depth import seed as fresh_seed
from .raft_driver import Disk, Driver, leader


def test_the_loop_of_the_docstring() -> None:
    driver = leader()
    driver.propose(b"a", b"b")
    driver.stabilize()
    driver.propose(b"c")
    driver.stabilize()
    assert [data for _, data in driver.applied[1:]] == [b"", b"a", b"b", b"c"]
    assert driver.raft.ready() is None
    assert driver.raft.log.applied == 5


def test_nothing_to_do_at_first() -> None:
    assert Driver().raft.ready() is None


def test_ready_is_the_same_until_advance() -> None:
    driver = leader()
    run = driver.propose(b"a")
    ready = driver.raft.ready()
    assert ready is not None
    assert driver.raft.ready() is ready
    assert ready.runs == [run]
    driver.raft.advance(ready)
    assert driver.raft.ready() is None


def test_nothing_comes_between_ready_and_advance() -> None:
    driver = leader()
    driver.propose(b"a")
    ready = driver.raft.ready()
    assert ready is not None
    for verb in (
        driver.raft.tick,
        driver.raft.campaign,
        lambda: driver.propose(b"b"),
        lambda: driver.raft.read_index(0),
        lambda: driver.raft.on_persisted(2, 3),
        lambda: driver.raft.on_applied(3),
    ):
        with pytest.raises(AssertionError, match="advance is owed"):
            verb()
    driver.raft.advance(ready)
    with pytest.raises(AssertionError, match="not the Ready"):
        driver.raft.advance(ready)


def test_a_follower_proposes_and_reads_nothing() -> None:
    driver = Driver()
    driver.bootstrap()
    driver.stabilize()
    run = Run.of([(0, b"a")])
    with pytest.raises(NoLeaderError):
        driver.raft.propose(run)
    assert run.first_index == 0
    with pytest.raises(NoLeaderError):
        driver.raft.read_index("r")


def test_proposals_are_refused_while_too_much_waits() -> None:
    driver = leader()
    size = 1 << 20
    for _ in range(UNAPPLIED_BYTES_MAX // size):
        driver.propose(bytes(size))
    with pytest.raises(TooManyRequestsError):
        driver.propose(b"a")
    driver.stabilize()
    driver.propose(b"a")


def test_several_appends_under_way() -> None:
    driver = leader()
    for data in (b"a", b"b", b"c"):
        driver.propose(data)
        ready = driver.take()
        assert ready is not None
        assert ready.must_sync
    assert len(driver.appending) == 3
    driver.persist()
    assert driver.raft.log.committed == 3
    driver.propose(b"d")
    driver.stabilize()
    assert [data for _, data in driver.applied[2:]] == [b"a", b"b", b"c", b"d"]


def test_one_answer_stands_for_those_before() -> None:
    driver = leader()
    for data in (b"a", b"b"):
        driver.propose(data)
        driver.take()
    last, _ = driver.appending[-1]
    driver.raft.on_persisted(last.term, last.index)
    assert driver.raft.log.committed == 4
    driver.raft.check()


def test_commit_alone_needs_no_sync() -> None:
    driver = leader()
    driver.propose(b"a")
    driver.take()
    driver.persist()
    ready = driver.take()
    assert ready is not None
    assert ready.hard_state == HardState(2, 1, 3)
    assert not ready.must_sync
    assert [run.last_index for run in ready.committed] == [3]


def test_storage_answers_as_messages() -> None:
    driver = leader()
    driver.propose(b"a")
    ready = driver.take()
    assert ready is not None
    answer = MessageType.STORAGE_APPEND_RESPONSE
    driver.raft.step(Message(answer, term=ready.term, index=ready.index))
    assert driver.raft.log.committed == 3
    driver.take()
    driver.raft.step(Message(MessageType.STORAGE_APPLY_RESPONSE, index=3))
    assert driver.raft.log.applied == 3


def test_an_answer_of_an_older_term_counts_for_nothing() -> None:
    driver = leader()
    driver.propose(b"a")
    driver.take()
    old, _ = driver.appending.pop()
    driver.raft.step(Message(MessageType.VOTE_RESPONSE, from_=9, term=7))
    driver.raft.on_persisted(old.term, old.index)
    assert driver.raft.log.stable == 2
    # The Ready that makes the newer term durable answers for the entry too.
    ready = driver.take()
    assert ready is not None
    assert (ready.must_sync, ready.term, ready.index) == (True, 7, 3)
    driver.persist()
    assert driver.raft.log.stable == 3


def test_an_answer_of_a_term_to_come_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="persisted in term 3, but the term is 2"):
        leader().raft.on_persisted(3, 2)


def test_messages_that_mean_nothing_are_passed_over() -> None:
    driver = leader()
    for message in (
        Message(77, term=2),
        Message(-1),
        Message(MessageType.HUP),
        Message(MessageType.VOTE_RESPONSE, from_=1, term=2),
        Message(MessageType.VOTE_RESPONSE, from_=1, term=1),
    ):
        driver.raft.step(message)
    assert driver.role() is Role.LEADER
    assert driver.raft.ready() is None


@pytest.mark.parametrize(
    "message",
    [
        Message(MessageType.VOTE_RESPONSE, from_=1, term=2, reject=True),
        Message(MessageType.VOTE_RESPONSE, from_=5, term=2),
        Message(MessageType.VOTE_RESPONSE, from_=1, term=0),
    ],
)
def test_votes_that_do_not_count(message: Message) -> None:
    driver = Driver()
    driver.bootstrap()
    driver.stabilize()
    driver.raft.campaign()
    driver.raft.step(message)
    assert driver.role() is Role.CANDIDATE


def test_soft_state_is_told_once() -> None:
    driver = Driver()
    driver.bootstrap()
    driver.stabilize()
    driver.raft.campaign()
    told = []
    while (ready := driver.take()) or driver.persist() or driver.apply():
        if ready is not None and ready.soft_state is not None:
            told.append(ready.soft_state)
    assert told == [(NONE, Role.CANDIDATE), (1, Role.LEADER)]


# --- reads


def test_read_at_the_commit_index() -> None:
    driver = leader()
    driver.propose(b"a")
    driver.raft.read_index("before")
    driver.stabilize()
    driver.raft.read_index("after")
    driver.stabilize()
    assert driver.reads == [("before", 2), ("after", 3)]


def test_reads_wait_for_the_first_commit_of_the_term() -> None:
    driver = leader().restart()
    driver.stabilize()
    driver.raft.campaign()
    driver.take()
    driver.persist()
    assert driver.role() is Role.LEADER
    driver.raft.read_index("r1")
    driver.raft.read_index("r2")
    driver.take()
    assert driver.reads == []
    driver.stabilize()
    assert driver.reads == [("r1", 3), ("r2", 3)]


def test_reads_that_wait_are_dropped_with_the_lead() -> None:
    driver = leader().restart()
    driver.stabilize()
    driver.raft.campaign()
    driver.take()
    driver.persist()
    driver.raft.read_index("r")
    driver.raft.step(Message(MessageType.VOTE_RESPONSE, from_=9, term=9))
    driver.stabilize()
    assert (driver.reads, driver.dropped) == ([], ["r"])
    driver.raft.campaign()
    driver.stabilize()
    assert (driver.reads, driver.dropped) == ([], ["r"])


# --- restart


def test_a_restart_goes_on() -> None:
    driver = leader()
    driver.propose(b"a", b"b")
    driver.stabilize()
    again = driver.restart()
    again.stabilize()
    again.raft.campaign()
    again.stabilize()
    assert again.raft.term == 3
    assert [data for _, data in again.applied[1:]] == [b"", b"a", b"b", b""]


def test_what_was_persisted_and_not_committed_is_committed_by_the_next_term() -> None:
    driver = leader()
    driver.propose(b"a")
    driver.take()
    driver.write()
    again = driver.restart()
    again.stabilize()
    assert [data for _, data in again.applied[1:]] == [b""]
    again.raft.campaign()
    again.stabilize()
    assert [data for _, data in again.applied[1:]] == [b"", b"a", b""]


def test_what_was_not_persisted_is_gone() -> None:
    driver = leader()
    driver.propose(b"a")
    driver.take()
    again = driver.restart()
    again.stabilize()
    again.raft.campaign()
    again.stabilize()
    assert [data for _, data in again.applied[1:]] == [b"", b""]


def test_restart_with_a_checkpoint_and_an_older_commit() -> None:
    run = Run.of([(0, b"a")])
    run.assign(11, 4)
    raft = Raft(
        Config(1),
        RaftLog([run], 10, 4),
        HardState(4, 1, 7),
        ConfState((1,)),
        random.Random(1),
    )
    raft.check()
    assert (raft.log.committed, raft.log.applied) == (10, 10)
    assert raft.promotable


@pytest.mark.parametrize("hard_state", [HardState(3, 1, 9), HardState(1, 1, 1)])
def test_a_log_that_does_not_fit_its_state_is_refused(hard_state: HardState) -> None:
    disk = leader().disk
    disk.hard_state = hard_state
    with pytest.raises(Fatal, match="the log ends at index 2 of term 2"):
        Driver(disk)


def test_no_election_before_decided_changes_are_applied() -> None:
    driver = leader().restart()
    driver.take()
    driver.raft.campaign()
    assert driver.role() is Role.FOLLOWER
    driver.stabilize()
    driver.raft.campaign()
    assert driver.role() is Role.CANDIDATE


def test_a_voter_with_a_decided_change_to_apply_does_not_stand() -> None:
    change = Run.of([(EntryType.CONF_CHANGE, b"")])
    change.assign(11, 4)
    log = RaftLog([change], 10, 4)
    raft = Raft(Config(1), log, HardState(4, 1, 11), ConfState((1,)), random.Random(1))
    raft.campaign()
    assert raft.term == 4
    ready = raft.ready()
    assert ready is not None
    raft.advance(ready)
    raft.on_applied(11)
    raft.campaign()
    assert raft.term == 5


def test_a_message_of_an_older_term_is_passed_over() -> None:
    driver = leader().restart()
    driver.stabilize()
    driver.raft.step(Message(MessageType.HUP, term=1))
    assert (driver.role(), driver.raft.term) == (Role.FOLLOWER, 2)


# --- configuration


def test_who_is_no_voter_never_stands() -> None:
    driver = Driver()
    for _ in range(100):
        driver.raft.tick()
    driver.raft.campaign()
    assert driver.role() is Role.FOLLOWER
    assert driver.raft.ready() is None


@pytest.mark.parametrize(
    "single",
    [
        ConfChangeSingle(ConfChangeType.ADD_NODE, 1),
        ConfChangeSingle(ConfChangeType.UPDATE_NODE, 1),
        ConfChangeSingle(ConfChangeType.UPDATE_NODE, 2),
        ConfChangeSingle(ConfChangeType.ADD_NODE, NONE),
        ConfChangeSingle(ConfChangeType.REMOVE_NODE, 1),  # the last voter stays
        ConfChangeSingle(ConfChangeType.ADD_LEARNER_NODE, 1),
        ConfChangeSingle(ConfChangeType.REMOVE_NODE, 2),
        ConfChangeSingle(9, 1),
        ConfChangeSingle(9, 2),
    ],
)
def test_changes_that_leave_the_lone_voter(single: ConfChangeSingle) -> None:
    driver = leader()
    assert driver.raft.apply_conf_change(ConfChangeV2(0, (single,))) == ConfState((1,))
    assert driver.raft.apply_conf_change(ConfChangeV2()) == ConfState((1,))


@pytest.mark.parametrize(
    "single",
    [
        ConfChangeSingle(ConfChangeType.ADD_NODE, 2),
        ConfChangeSingle(ConfChangeType.ADD_LEARNER_NODE, 0xAB),
    ],
)
def test_a_second_member_is_refused_loudly(single: ConfChangeSingle) -> None:
    with pytest.raises(Fatal, match="this version serves one member"):
        leader().raft.apply_conf_change(ConfChangeV2(0, (single,)))


def test_a_state_of_several_members_is_refused_loudly() -> None:
    with pytest.raises(Fatal, match="a cluster of 1, ab;"):
        Raft(Config(1), RaftLog(), HardState(), ConfState((1, 0xAB)), random.Random(1))


def test_bootstrap_only_at_the_beginning() -> None:
    driver = leader()
    with pytest.raises(AssertionError, match="has begun"):
        driver.bootstrap()


# --- any order


@pytest.mark.parametrize("round_", range(depth(20, 2000)))
def test_random_steps_with_crashes(round_: int) -> None:
    """Whatever the order of answers and crashes: what was applied stays, in order, once."""
    seed = fresh_seed()
    print(f"QUORATE_SEED={seed}")
    chance = random.Random(seed)
    disk = Disk()
    driver = Driver(disk)
    driver.bootstrap()
    driver.stabilize()
    durable: list[bytes] = []
    proposed = 0
    for _ in range(400):
        step = chance.randrange(9)
        if step == 0:
            driver.raft.tick()
        elif step <= 2 and driver.role() is Role.LEADER:
            driver.propose(*(b"%d" % (proposed + n) for n in range(chance.randint(1, 4))))
            proposed += 4
        elif step == 3:
            driver.persist()
        elif step == 4:
            driver.apply()
        elif step <= 6:
            driver.take()
        elif step == 7 and driver.role() is Role.LEADER:
            driver.raft.read_index(driver.raft.log.committed)
        elif step == 8 and chance.random() < 0.1:
            driver = driver.restart()
            driver.raft.campaign()
        written = sum(run.count for run in disk.runs)
        assert driver.raft.log.committed <= driver.raft.log.stable <= written, f"seed {seed}"
        values = [data for _, data in driver.applied]
        shorter = min(len(values), len(durable))
        assert values[:shorter] == durable[:shorter], f"seed {seed}"
        durable = max(durable, values, key=len)
        for asked, index in driver.reads:
            assert isinstance(asked, int)
            assert index >= asked, f"seed {seed}"
        driver.raft.check()
