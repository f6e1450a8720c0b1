"""core/snapshots: who gets which file, how long files live, and what happens beyond the limits."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator

import pytest

from quorate.core._disk import DiskError
from quorate.core.errors import EtcdError, SnapshotFailedError, TooManyRequestsError
from quorate.core.limits import SNAPSHOT_FILES_MAX, SNAPSHOT_STREAMS_MAX
from quorate.core.logs import Logger
from quorate.core.snapshots import Loan, Snapshots, Source


class FakeMaking:
    """A source that takes three slices, then waits for its disk until `written`."""

    def __init__(self, member: FakeMember) -> None:
        self.index = member.index
        self.member = member
        self.slices = 3
        self.written = True
        self.failure: DiskError | None = None
        self.closed = False

    def step(self) -> bool:
        assert not self.closed
        if self.failure is not None:
            raise self.failure
        self.slices -= self.slices > 0
        return self.slices > 0

    def source(self) -> Source | None:
        if self.slices or not self.written:
            return None
        return Source(os.memfd_create("copy"), b"head", self.index, "3.7.0")

    def close(self) -> None:
        self.closed = True


class FakeMember:
    """A member that applies what the test says."""

    def __init__(self) -> None:
        self.index = 1
        self.now = 0
        self.made: list[FakeMaking] = []
        self.fails: DiskError | None = None
        self.snapshots = Snapshots(
            self.make, lambda: self.index, lambda: self.now, Logger((), "info")
        )

    def make(self) -> FakeMaking:
        if self.fails is not None:
            raise self.fails
        self.made.append(FakeMaking(self))
        return self.made[-1]

    def settle(self) -> None:
        for _ in range(100):
            if not self.snapshots.step():
                return
        raise AssertionError("it does not come to rest")


class Client:
    """An asker, who keeps what it is lent as a worker would."""

    def __init__(self, member: FakeMember) -> None:
        self.index = 0
        self.error: EtcdError | None = None
        self.descriptor = self.holder = -1
        member.snapshots.open_snapshot(self.done)

    def done(self, loan: Loan | EtcdError) -> None:
        assert not self.answered, "answered twice"
        if isinstance(loan, EtcdError):
            self.error = loan
            return
        self.index = loan.source.size
        self.descriptor, self.holder = os.dup(loan.source.descriptor), os.dup(loan.holder)

    @property
    def answered(self) -> bool:
        return self.index != 0 or self.error is not None

    @property
    def file(self) -> int:
        """Which file it has."""
        return os.fstat(self.descriptor).st_ino

    def end(self) -> None:
        """As when it has read all, or died."""
        if self.holder >= 0:
            os.close(self.holder)
            os.close(self.descriptor)
            self.holder = -1


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def member() -> Iterator[FakeMember]:
    # Members of other tests go with their descriptors at any time.
    gc.collect()
    before = descriptors()
    member = FakeMember()
    yield member
    member.snapshots.close()
    assert descriptors() == before, "descriptors are left"


@pytest.fixture
def clients(member: FakeMember) -> Iterator[list[Client]]:
    clients: list[Client] = []
    yield clients
    for client in clients:
        client.end()


def test_one_asks_and_gets_a_file(member: FakeMember, clients: list[Client]) -> None:
    clients.append(client := Client(member))
    assert not client.answered
    assert member.snapshots.step()
    member.settle()
    assert client.index == 1
    assert member.made[0].closed
    assert (member.snapshots.files, member.snapshots.under_way) == (1, 1)
    client.end()
    member.snapshots.tick()
    assert (member.snapshots.files, member.snapshots.under_way) == (0, 0)


def test_nothing_is_done_while_nobody_asks(member: FakeMember) -> None:
    assert not member.snapshots.step()
    assert member.made == []


def test_it_holds_all_that_was_applied_before(member: FakeMember, clients: list[Client]) -> None:
    """Who asks while one is made that began too early gets the next one, with all who came then."""
    clients.append(Client(member))
    member.snapshots.step()
    clients.append(Client(member))
    member.index = 2
    clients.append(Client(member))
    member.index = 3
    clients.append(Client(member))
    member.settle()
    assert [client.index for client in clients] == [1, 1, 3, 3]
    assert clients[0].file == clients[1].file != clients[2].file == clients[3].file
    assert len(member.made) == 2


def test_what_is_asked_for_again_is_lent_at_once(member: FakeMember, clients: list[Client]) -> None:
    """As long as nothing was applied, and somebody keeps the file."""
    clients.append(Client(member))
    member.settle()
    clients.append(Client(member))
    assert clients[1].file == clients[0].file
    clients[0].end()
    clients.append(Client(member))
    assert clients[2].file == clients[1].file
    member.index = 2
    clients.append(Client(member))
    assert not clients[3].answered
    member.settle()
    assert clients[3].file != clients[2].file
    assert len(member.made) == 2


def test_who_gave_up_keeps_no_file(member: FakeMember) -> None:
    """Whoever does not copy what is lent has let go of it already."""
    answers: list[Loan | EtcdError] = []
    member.snapshots.open_snapshot(answers.append)
    member.settle()
    assert len(answers) == 1
    assert (member.snapshots.files, member.snapshots.under_way) == (0, 0)


def test_beyond_the_files_there_may_be_askers_wait(
    member: FakeMember, clients: list[Client]
) -> None:
    for index in range(1, SNAPSHOT_FILES_MAX + 1):
        member.index = index
        clients.append(Client(member))
        member.settle()
    member.index += 1
    clients.append(late := Client(member))
    clients.append(Client(member))
    member.settle()
    member.snapshots.tick()
    member.settle()
    assert not late.answered
    assert len(member.made) == SNAPSHOT_FILES_MAX == member.snapshots.files
    # Any of them, not only the oldest.
    clients[1].end()
    member.settle()
    assert not late.answered, "it looks when time went by"
    member.snapshots.tick()
    member.settle()
    assert late.index == member.index
    assert clients[-1].file == late.file
    assert member.snapshots.files == SNAPSHOT_FILES_MAX


def test_beyond_the_streams_there_may_be_askers_are_refused(
    member: FakeMember, clients: list[Client]
) -> None:
    """Those who wait count as those who read."""
    clients += [Client(member) for _ in range(SNAPSHOT_STREAMS_MAX // 2)]
    member.settle()
    member.index = 2
    clients += [Client(member) for _ in range(SNAPSHOT_STREAMS_MAX // 2 - 1)]
    member.snapshots.step()
    member.index = 3
    clients.append(Client(member))
    assert member.snapshots.under_way == SNAPSHOT_STREAMS_MAX
    clients.append(refused := Client(member))
    assert isinstance(refused.error, TooManyRequestsError)
    clients[0].end()
    clients.append(Client(member))
    assert not clients[-1].answered
    member.settle()
    assert clients[-1].index == 3


@pytest.mark.parametrize("when", ["beginning", "slice", "end"])
def test_a_file_that_cannot_be_made(when: str, member: FakeMember, clients: list[Client]) -> None:
    failure = DiskError("write", "/d/db.tmp", errno.ENOSPC)
    clients.append(Client(member))
    if when == "beginning":
        member.fails = failure
        member.settle()
        member.fails = None
    else:
        member.snapshots.step()
        making = member.made[0]
        if when == "end":
            making.written = False
            member.settle()
        making.failure = failure
        member.index = 2
        clients.append(later := Client(member))
        member.settle()
        assert making.closed
        assert later.index == 2
    assert isinstance(clients[0].error, SnapshotFailedError)
    clients.append(again := Client(member))
    member.settle()
    assert again.index == member.index


def test_a_file_that_waits_for_its_disk(member: FakeMember, clients: list[Client]) -> None:
    clients.append(Client(member))
    member.snapshots.step()
    member.made[0].written = False
    member.settle()
    assert not member.snapshots.step()
    assert not clients[0].answered
    member.made[0].written = True
    member.settle()
    assert clients[0].index == 1


def test_the_time_that_it_took(member: FakeMember, clients: list[Client]) -> None:
    clients.append(Client(member))
    member.now = 25
    member.settle()
    assert member.snapshots.duration_seconds == 0.025
    assert [at for at, count in enumerate(member.snapshots.duration_counts) if count] == [2]
    assert len(member.snapshots.duration_counts) == 18


def test_an_end_amid_everything(member: FakeMember, clients: list[Client]) -> None:
    """The fixture sees whether anything is left."""
    clients.append(Client(member))
    member.settle()
    member.index = 2
    clients.append(Client(member))
    member.snapshots.step()
    clients.append(Client(member))
    member.snapshots.close()
    assert member.made[1].closed
    assert not clients[1].answered
