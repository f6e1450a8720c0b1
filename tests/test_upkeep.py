"""core/upkeep: what a member does by itself, in a whole member on a simulated disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate.core.errors import TooManyRequestsError
from quorate.core.logs import Logger
from quorate.core.raft import Raft
from tests.node_driver import Member, new_disk

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
    flags = {"auto_compaction_mode": mode, "auto_compaction_retention": retention}
    return Member(new_disk(), logger=log.logger, flags=flags)


def pass_minutes(member: Member, minutes: int) -> None:
    """Minute by minute, with a put in each."""
    for _ in range(minutes):
        member.now += MINUTE
        member.put(b"k")
        member.settle()


def test_a_member_compacts_by_time(log: Log) -> None:
    member = compacting(log, "periodic", "10m")
    assert member.node.due() == member.now + MINUTE
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
    assert member.node.due() is None
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
    flags = {"auto_compaction_retention": "1"}
    member = Member(disk, logger=log.logger, flags=flags)
    pass_minutes(member, 59)
    member = Member(disk.crash("all"), logger=log.logger, flags=flags, now=member.now)
    pass_minutes(member, 59)
    assert log.lines("auto") == []
    pass_minutes(member, 1)
    assert len(log.lines("auto")) == 2
