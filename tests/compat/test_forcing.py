"""--force-new-cluster on directories of etcd clusters of three: one goes on with what it knows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.compat.test_moving import contents, other, seen, use
from tests.depth import depth, seed
from tests.server import Program, Server
from tests.wire import Client, Refused

pytestmark = [pytest.mark.compat, pytest.mark.slow]

__all__ = ["other"]
NAMES = ("one", "two", "three")


@pytest.fixture
def three(other: Program, tmp_path: Path) -> Iterator[list[Server]]:
    """A cluster of three that serves."""
    servers = [Server(other, tmp_path / name) for name in NAMES]
    cluster = ",".join(
        f"{name}=http://127.0.0.1:{server.peer_port}"
        for name, server in zip(NAMES, servers, strict=True)
    )
    try:
        for name, server in zip(NAMES, servers, strict=True):
            server.flags = ("--name", name, "--initial-cluster", cluster, "--snapshot-count", "50")
            server.launch()
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.close()


def without_members(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "members"}


@pytest.mark.parametrize("number", range(depth(1, 9)))
def test_one_of_three_goes_on_alone(number: int, three: list[Server], program: Program) -> None:
    chance = random.Random(seed() + number)
    theirs = three[number % 3]
    with Client(theirs.port) as client:
        use(client, chance, 40 if number % 2 else 200)
        before = contents(client)
        assert len(before["members"]) == 3
    for server in three:
        if server is not theirs:
            server.kill()
    # The leader takes it and cannot have it committed; another one has nobody to send it to.
    with Client(theirs.port) as client, pytest.raises((Refused, TimeoutError)):
        client.call("KV/Put", {"key": b"never", "value": b"committed"}, seconds=2)
    theirs.kill()
    with Server(program, theirs.directory / "quorate") as ours:
        ours.data = theirs.data
        ours.launch()
        assert ours.wait() == 1
        assert "serves one member" in ours.tail()
        ours.close()
        ours.flags = ("--force-new-cluster",)
        found = seen(ours.start())
        assert without_members(found) == without_members(before)
        assert len(found["members"]) == 1
        assert found["members"][0] in before["members"]
        ours.kill()
        # With the flag or without, it is a member like any other now.
        for flags in ((), ("--force-new-cluster",)):
            ours.flags = flags
            with Client(ours.start().port) as client:
                assert contents(client) == found
                use(client, chance, 30)
                found = contents(client)
            ours.kill()
        theirs.flags = ()
        with Client(theirs.start().port) as client:
            assert contents(client) == found
            use(client, chance, 100)
            found = contents(client)
        theirs.stop()
        ours.flags = ()
        assert seen(ours.start()) == found


def test_what_etcd_forced_opens(three: list[Server], program: Program) -> None:
    """etcd writes its changes over what it discards, in the same term."""
    theirs = three[0]
    with Client(theirs.port) as client:
        use(client, random.Random(seed()), 60)
        before = contents(client)
    for server in three[1:]:
        server.kill()
    with Client(theirs.port) as client, pytest.raises((Refused, TimeoutError)):
        client.call("KV/Put", {"key": b"never", "value": b"committed"}, seconds=2)
    theirs.kill()
    theirs.flags = (*theirs.flags, "--force-new-cluster")
    assert without_members(seen(theirs.start())) == without_members(before)
    theirs.kill()
    with Server(program, theirs.directory / "quorate") as ours:
        ours.data = theirs.data
        found = seen(ours.start())
        assert without_members(found) == without_members(before)
        assert len(found["members"]) == 1
