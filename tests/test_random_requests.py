"""Random valid and nearly valid requests, straight into the core: every invariant of the member
holds while they come, and what a restart reads from the log is what they led to.

`tests/compat/test_no_call_ends.py` asks a whole server the same; only here can `check()` be called.
"""

from __future__ import annotations

from collections import Counter

from tests.compat.requests import Requests
from tests.core_driver import METHODS
from tests.depth import depth, seed
from tests.node_driver import Member, new_disk

BATCH = 50
BATCHES_PER_CHECK = 20
SEGMENT_BYTES = 1 << 20
DROPPED = -1


def test_no_request_breaks_an_invariant() -> None:
    start, total = seed(), depth(3000, 100_000)
    print(f"QUORATE_SEED={start}")
    requests, disk = Requests(start), new_disk()
    names = {f"/etcdserverpb.{name}": name for name in METHODS}
    member, outcomes = Member(disk, segment_bytes=SEGMENT_BYTES), Counter[int]()
    for number in range(total // BATCH):
        ids: list[int] = []
        while len(ids) < BATCH:
            call = requests.next()
            if call.method.path in names:
                ids.append(member.worker.send(names[call.method.path], call.data))
        member.settle()
        for request_id in ids:
            ended = member.worker.calls.pop(request_id)
            # A keep-alive is answered without an end.
            answered = ended.ended or ended.messages
            outcomes[ended.error if answered else DROPPED] += 1
        requests.sequence.revision = member.revision
        if number % BATCHES_PER_CHECK == 0:
            member.check()
    member.check()
    # Bytes that are no message at all: a worker refuses them, so a core that gets them drops them.
    assert member.worker.port.dropped == outcomes[DROPPED]
    assert not member.worker.port.corrupt
    assert outcomes[0] > total // 20, outcomes
    held = member.everything(), member.revision
    member.node.wal.close()
    after = Member(disk, segment_bytes=SEGMENT_BYTES)
    after.check()
    assert (after.everything(), after.revision) == held
