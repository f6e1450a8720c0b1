"""Claims of the Raft paper (extended version) that hold for one voter, each with its section."""

from __future__ import annotations

import random

import pytest

from quorate.core._run import Run
from quorate.core.errors import NoLeaderError
from quorate.core.messages import HardState, Message, MessageType
from quorate.core.raft import NONE, Role

from .raft_driver import Driver, leader


def follower() -> Driver:
    driver = Driver()
    driver.bootstrap()
    driver.stabilize()
    return driver


@pytest.mark.parametrize("role", list(Role))
def test_5_1_a_larger_term_makes_a_follower_of_anybody(role: Role) -> None:
    """If one server's current term is smaller than the other's, it updates it and is a follower."""
    driver = leader() if role is Role.LEADER else follower()
    if role is Role.CANDIDATE:
        driver.raft.campaign()
    assert driver.role() is role
    driver.raft.step(Message(MessageType.VOTE_RESPONSE, from_=2, term=9))
    assert (driver.role(), driver.raft.term, driver.raft.leader) == (Role.FOLLOWER, 9, NONE)
    assert driver.raft.vote == NONE


def test_5_1_a_stale_term_is_rejected() -> None:
    """If a server receives a request with a stale term number, it rejects the request."""
    driver = leader()
    driver.raft.step(Message(MessageType.STORAGE_APPEND_RESPONSE, term=1, index=99))
    assert driver.raft.log.stable == 2
    assert driver.raft.ready() is None


def test_5_2_servers_begin_as_followers() -> None:
    """When servers start up, they begin as followers."""
    assert follower().role() is Role.FOLLOWER
    assert leader().restart().role() is Role.FOLLOWER


def test_5_2_no_leader_for_an_election_timeout_begins_an_election() -> None:
    """To begin an election, a follower increments its term, votes for itself and is a candidate."""
    driver = follower()
    for _ in range(20):
        assert driver.role() is Role.FOLLOWER
        driver.raft.tick()
        if driver.role() is Role.CANDIDATE:
            break
    assert (driver.role(), driver.raft.term, driver.raft.vote) == (Role.CANDIDATE, 2, 1)


def test_5_2_a_candidate_that_does_not_win_stands_again() -> None:
    """Each candidate will time out and start a new election by incrementing its term."""
    driver = follower()
    driver.raft.campaign()
    for _ in range(20):
        driver.raft.tick()
    assert (driver.role(), driver.raft.term) == (Role.CANDIDATE, 3)


def test_5_2_election_timeouts_are_random_within_bounds() -> None:
    """Election timeouts are chosen randomly from a fixed interval."""
    seen = set()
    for seed in range(200):
        driver = Driver(follower().disk, seed=seed)
        driver.stabilize()
        ticks = 0
        while driver.role() is Role.FOLLOWER:
            driver.raft.tick()
            ticks += 1
        seen.add(ticks)
    assert seen == set(range(10, 20))


def test_5_2_a_leader_stays_until_it_fails() -> None:
    """The leader operates until it fails."""
    driver = leader()
    for _ in range(1000):
        driver.raft.tick()
    assert (driver.role(), driver.raft.term) == (Role.LEADER, 2)
    assert driver.raft.ready() is None


def test_5_2_one_vote_a_term_and_it_is_durable() -> None:
    """Figure 2: currentTerm and votedFor are updated on stable storage before responding."""
    driver = follower()
    driver.raft.campaign()
    ready = driver.take()
    assert ready is not None
    assert ready.must_sync
    assert ready.hard_state == HardState(2, 1, 1)
    assert [message.type for message in ready.responses] == [MessageType.VOTE_RESPONSE]
    assert ready.messages == ()
    assert driver.role() is Role.CANDIDATE, "its own vote counts only from the disk"
    driver.persist()
    assert driver.role() is Role.LEADER


def test_5_2_after_a_crash_the_vote_is_remembered() -> None:
    """Figure 2: votedFor is persistent, so that no term has two votes of one server."""
    driver = follower()
    driver.raft.campaign()
    driver.take()
    driver.write()
    again = driver.restart()
    assert (again.raft.term, again.raft.vote) == (2, 1)
    again.stabilize()
    again.raft.campaign()
    assert again.raft.term == 3


def test_5_3_the_leader_appends_to_its_log_with_index_and_term() -> None:
    """Each log entry stores a state machine command along with the term number."""
    driver = leader()
    run = driver.propose(b"a", b"b")
    assert (run.first_index, run.last_index, run.term) == (3, 4, 2)


def test_5_3_only_the_leader_takes_commands() -> None:
    """Clients of Raft send all of their requests to the leader."""
    with pytest.raises(NoLeaderError):
        follower().raft.propose(Run.of([(0, b"a")]))


def test_5_3_an_entry_is_committed_once_a_majority_has_stored_it() -> None:
    """A log entry is committed once it is replicated on a majority: here, on this disk."""
    driver = leader()
    driver.propose(b"a")
    driver.take()
    assert driver.raft.log.committed == 2
    driver.persist()
    assert driver.raft.log.committed == 3


def test_5_3_committed_entries_are_applied_in_order() -> None:
    """Once an entry is committed it is applied to the state machine, in log order."""
    driver = leader()
    for data in (b"a", b"b", b"c"):
        driver.propose(data)
    ready = driver.take()
    assert ready is not None
    assert ready.committed == ()
    driver.persist()
    ready = driver.take()
    assert ready is not None
    assert [run.first_index for run in ready.committed] == [3, 4, 5]


def test_5_4_2_entries_of_earlier_terms_are_committed_with_one_of_this() -> None:
    """Only entries from the leader's current term are committed by counting replicas."""
    driver = leader()
    driver.propose(b"a")
    driver.take()
    driver.write()
    again = driver.restart()
    again.stabilize()
    again.raft.campaign()
    again.take()
    again.persist()
    assert (again.role(), again.raft.log.stable) == (Role.LEADER, 3)
    assert again.raft.log.committed == 2, "on the disk, but of the term before"
    again.take()
    again.persist()
    assert again.raft.log.committed == 4


def test_5_4_3_leader_completeness() -> None:
    """A committed entry is in the logs of the leaders of all higher terms."""
    driver = leader()
    chance = random.Random(5)
    committed: list[bytes] = []
    for number in range(20):
        driver.propose(b"%d" % number)
        driver.stabilize()
        committed = [data for _, data in driver.applied]
        if chance.random() < 0.5:
            driver = driver.restart()
            driver.stabilize()
            driver.raft.campaign()
            driver.stabilize()
            assert [data for _, data in driver.applied][: len(committed)] == committed


def test_8_a_new_leader_commits_an_empty_entry_first() -> None:
    """A leader has a no-op entry committed at the start of its term."""
    driver = follower()
    driver.raft.campaign()
    driver.take()
    driver.persist()
    ready = driver.take()
    assert ready is not None
    assert [(run.term, run.unpack()) for run in ready.runs] == [(2, [(0, b"")])]


def test_8_reads_wait_until_the_leader_knows_what_is_committed() -> None:
    """A leader must have the latest information on which entries are committed."""
    driver = leader().restart()
    driver.stabilize()
    driver.raft.campaign()
    driver.take()
    driver.persist()
    driver.raft.read_index("r")
    ready = driver.take()
    assert ready is not None
    assert ready.read_states == ()
    driver.stabilize()
    assert driver.reads == [("r", 3)]
