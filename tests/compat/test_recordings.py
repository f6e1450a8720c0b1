"""What etcd 3.7.1 was recorded to answer is what quorate answers: 6,000 calls in order."""

from __future__ import annotations

import time
from itertools import islice

import pytest
from tests.compat.answers import difference, plain
from tests.compat.recordings import KV_FILES, Step, steps
from tests.server import Program
from tests.wire import Client, Refused

pytestmark = pytest.mark.compat

# Debian's 3.4.23 differs in so many of each file: new fields, new codes, HashKV where compacted.
ETCD_34_DIFFERENCES = 100
# The shortest lease lives two seconds.
REFRESH_SECONDS = 0.5


def replay(client: Client, file: str) -> tuple[int, list[str]]:
    """Make the calls of one recording: how many were compared, and each difference."""
    found, compared = [], 0
    leases: set[int] = set()
    refreshed = time.monotonic()
    for step in steps(file):
        if time.monotonic() - refreshed > REFRESH_SECONDS:
            refresh(client, leases)
            refreshed = time.monotonic()
        compared += 1
        text = compare(client, step)
        if text:
            found.append(f"{file} line {step.number + 1}: {text}: {step.name} {step.request!r}")
        if step.name == "Lease/LeaseGrant" and step.reply is not None:
            leases.add(step.reply["ID"])
        elif step.name == "Lease/LeaseRevoke" and step.reply is not None:
            leases.discard(step.request["ID"])
    return compared, found


def refresh(client: Client, leases: set[int]) -> None:
    """Keep leases alive: in the recording none ran out, and a busy machine is slower than that."""
    living = [{"ID": lease} for lease in sorted(leases)]
    replies = client.stream("Lease/LeaseKeepAlive", living)
    assert all(reply["TTL"] > 0 for reply in islice(replies, len(living)))


def compare(client: Client, step: Step) -> str:
    """Make one call; how its answer differs from the recorded one, or nothing."""
    try:
        answer = client.call(step.name, step.request)
    except Refused as error:
        same = (error.code, error.text) == (step.code, step.text)
        return "" if same else f"{error}, recorded {step.code}: {step.text or step.reply!r}"
    if step.reply is None:
        return f"{answer!r}, recorded {step.code}: {step.text}"
    return difference(
        step.name, step.request, plain(step.name, answer), plain(step.name, step.reply)
    )


@pytest.mark.parametrize("file", KV_FILES)
def test_each_recorded_call_is_answered_as_recorded(
    file: str, client: Client, program: Program
) -> None:
    compared, found = replay(client, file)
    assert compared == 2000
    if program.is_quorate:
        assert not found, f"{len(found)} of {compared} differ:\n" + "\n".join(found[:10])
    else:
        assert len(found) <= ETCD_34_DIFFERENCES, "\n".join(found[:10])
