"""What etcd 3.7.1 was recorded to answer is what quorate answers: 6,000 calls in order."""

from __future__ import annotations

import time
from itertools import islice

import pytest
from tests.compat.answers import difference, plain
from tests.compat.lease_shadow import LeaseShadow
from tests.compat.recordings import KV_FILES, Step, steps
from tests.depth import depth
from tests.messages import Message
from tests.server import Program, Server
from tests.wire import Client, Refused

pytestmark = pytest.mark.compat

# gRPC's code for a method that the server does not have.
UNIMPLEMENTED = 12
# Debian's 3.4.23 differs in so many of each file: new fields, new codes, HashKV where compacted.
ETCD_34_DIFFERENCES = 100
# The shortest lease lives two seconds.
REFRESH_SECONDS = 0.5


def has_leases(client: Client) -> bool:
    """Whether the server grants leases; nothing of the history is touched by asking."""
    try:
        client.call("Lease/LeaseLeases")
    except Refused as error:
        return error.code != UNIMPLEMENTED
    return True


def replay(client: Client, file: str, shadow: LeaseShadow | None) -> tuple[int, list[str]]:
    """Make the calls of one recording: how many were compared, and each difference."""
    found, compared = [], 0
    leases = LeaseShadow()
    refreshed = time.monotonic()
    for step in steps(file):
        if shadow is None and time.monotonic() - refreshed > REFRESH_SECONDS:
            refresh(client, leases)
            refreshed = time.monotonic()
        call = shadow.call(step) if shadow else (step.name, step.request)
        if call is not None:
            compared += 1
            text = compare(client, step, call, shadow)
            if text:
                found.append(f"{file} line {step.number + 1}: {text}: {step.name} {call[1]!r}")
        (shadow or leases).follow(step)
    return compared, found


def refresh(client: Client, shadow: LeaseShadow) -> None:
    """Keep leases alive: in the recording none ran out, and a busy machine is slower than that."""
    living = [{"ID": lease} for lease in sorted(shadow.leases)]
    replies = client.stream("Lease/LeaseKeepAlive", living)
    assert all(reply["TTL"] > 0 for reply in islice(replies, len(living)))


def compare(
    client: Client, step: Step, call: tuple[str, Message], shadow: LeaseShadow | None
) -> str:
    """Make one call; how its answer differs from the recorded one, or nothing."""
    try:
        answer = client.call(*call)
    except Refused as error:
        same = (error.code, error.text) == (step.code, step.text)
        return "" if same else f"{error}, recorded {step.code}: {step.text or step.reply!r}"
    if step.reply is None:
        return f"{answer!r}, recorded {step.code}: {step.text}"
    expected = shadow.expected(step) if shadow else step.reply
    if call[0] != step.name:
        answer, expected = {"header": answer["header"]}, {"header": expected["header"]}
    elif step.name == "Maintenance/HashKV" and "hash" not in expected:
        answer.pop("hash", None)
    return difference(call[0], call[1], plain(call[0], answer), plain(step.name, expected))


@pytest.mark.parametrize("file", KV_FILES)
def test_each_recorded_call_is_answered_as_recorded(
    file: str, server: Server, client: Client, program: Program
) -> None:
    shadow = None if has_leases(client) else LeaseShadow()
    compared, found = replay(client, file, shadow)
    assert compared == 2000 if shadow is None else compared > 1800
    if program.is_quorate:
        assert not found, f"{len(found)} of {compared} differ:\n" + "\n".join(found[:10])
    else:
        assert len(found) <= ETCD_34_DIFFERENCES, "\n".join(found[:10])


@pytest.mark.parametrize("file", KV_FILES[: depth(1, len(KV_FILES))])
def test_the_lease_shadow_changes_no_answer(
    file: str, debian_etcd: Program, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A real etcd differs from the recording in the same calls with its leases and without."""
    lines = []
    for shadow in (None, LeaseShadow()):
        with (
            Server(debian_etcd, tmp_path_factory.mktemp("etcd")) as server,
            Client(server.start().port) as client,
        ):
            compared, found = replay(client, file, shadow)
        assert compared > 1800
        lines.append({text.split(":")[0] for text in found})
    assert lines[1] <= lines[0], lines[1] - lines[0]
