"""What etcd 3.7.1 was recorded to answer, replayed in the core alone: reply by reply, byte by byte.

Rules:
1. The core is told the recorded ids and term, so a reply is equal to the last bit, headers too.
   Only a sort may have its ties in another order; then the decoded reply has to say the same.
2. What a worker refuses before the core hears of it is asked of the worker's own check.
3. Time stands still, so that no lease runs out, and what is left of one is not compared.
"""

from __future__ import annotations

import base64
import gzip
import json

import pytest

from quorate.core.errors import BY_ID
from quorate.frontends._kv import judge
from tests.compat.answers import difference, plain
from tests.compat.recordings import FOLDER, KV_FILES, Step, steps
from tests.core_driver import METHODS, Core
from tests.messages import Message, decode, encode, method

# Replies of all three files whose ties etcd showed in another order; any such order is right.
TIES_MAX = 30
# What these answer depends on the time that has gone by.
TIMED = {"Lease/LeaseTimeToLive", "Lease/LeaseLeases"}


class Replay:
    """A core that is asked what etcd was asked."""

    def __init__(self, file: str) -> None:
        with gzip.open(FOLDER / f"{file}.jsonl.gz", "rt") as lines:
            self.rows = [json.loads(line) for line in lines]
        header = next(row["answered"]["header"] for row in self.rows if "answered" in row)
        ids = int(header["cluster_id"]), int(header["member_id"]), int(header["raft_term"])
        self.core = Core(ids=ids)
        self.compared = 0
        self.ties = 0

    def step(self, step: Step) -> None:
        """One recorded call."""
        self.compare(step, self.rows[step.number])

    def compare(self, step: Step, row: Message) -> None:
        """Ask the same, and find the same answer."""
        self.compared += 1
        payload = base64.b64decode(row["request"])
        error = judge(METHODS[step.name], payload)
        if not error:
            call = self.core.finish(self.core.worker.send(step.name, payload))
            error = call.error
        if error:
            assert (BY_ID[error].code.value, BY_ID[error].text) == (step.code, step.text)
            return
        assert step.reply is not None, f"answered, recorded {step.code}: {step.text}"
        if call.messages == [base64.b64decode(row["reply"])]:
            return
        [reply] = [decode(method(step.name).reply, message) for message in call.messages]
        tied = "sort_target" in json.dumps(row["asked"])
        assert tied or step.name in TIMED, (reply, step.reply)
        found = difference(
            step.name, step.request, plain(step.name, reply), plain(step.name, step.reply)
        )
        assert not found, found
        self.ties += tied


@pytest.mark.parametrize("file", KV_FILES)
def test_the_core_answers_as_etcd_did(file: str) -> None:
    replay = Replay(file)
    for step in steps(file):
        try:
            replay.step(step)
        except AssertionError as error:
            error.add_note(f"{file} line {step.number + 1}: {step.name} {step.request!r}")
            raise
    replay.core.store.check()
    assert replay.compared == 2_000
    assert replay.ties <= TIES_MAX
    assert replay.core.worker.port.dropped == 0


def test_applying_the_same_entries_again_gives_the_same_store() -> None:
    """The log alone, applied to an empty store as at a restart, leads to the same state."""
    replay = Replay("kv-1")
    for step in steps("kv-1"):
        payload = encode(method(step.name).request, step.request)
        if not judge(METHODS[step.name], payload):
            replay.core.finish(replay.core.worker.send(step.name, payload))
    again = Core()
    ports, again.ports[:] = list(again.ports), [None]  # those who asked are not there any more
    for run in replay.core.runs:
        again.applier.apply(run)
    again.ports[:] = ports
    while again.applier.compact_step(1000):
        pass
    again.store.check()
    assert again.store.revision == replay.core.store.revision > 500
    assert again.everything()["kvs"] == replay.core.everything()["kvs"]
    leases = [core.call("Lease/LeaseLeases")["leases"] for core in (replay.core, again)]
    assert leases[0] == leases[1]
    hashes = [
        (reply["hash"], reply["compact_revision"])
        for core in (replay.core, again)
        for reply in [core.call("Maintenance/HashKV")]
    ]
    assert hashes[0] == hashes[1]
