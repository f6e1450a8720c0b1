"""Fresh random calls to Debian's etcd and to quorate: both answer the same, field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.compat.answers import difference, plain
from tests.compat.sequences import Sequence
from tests.depth import depth, seed
from tests.messages import Message
from tests.server import Program, Server
from tests.wire import Client, Refused

pytestmark = pytest.mark.compat

CALLS = 1500
BAD_PUTS = {
    (5, "etcdserver: requested lease not found"),
    (3, "etcdserver: key not found"),
}
COMPACTED = (11, "etcdserver: mvcc: required revision has been compacted")
BAD_READS = {COMPACTED, (11, "etcdserver: mvcc: required revision is a future revision")}
Outcome = tuple[Message | None, int, str]


def ask(client: Client, name: str, request: Message) -> Outcome:
    """The plain reply, or the status."""
    try:
        return plain(name, client.call(name, request)), 0, ""
    except Refused as error:
        return None, error.code, error.text


def known(name: str, request: Message, old: Outcome, new: Outcome) -> bool:
    """Whether two answers differ only as 3.4 and 3.7 are known to.

    - 3.4's HashKV has no `hash_revision`.
    - 3.7 remembers the hash of a revision compacted to, with the compaction before it; 3.4 refuses.
    - A Txn that has both a put and a read that can't be done: 3.4 looks at all puts first, 3.7 at
      each op in its place (recording kv-3, lines 16 and 717).
    - A put in a Txn that lacks both its lease and its key: 3.4 misses the key first. No recording
      shows what 3.7 misses first there; of a plain Put it is the lease.
    """
    if name == "Maintenance/HashKV" and old[0] is not None and new[0] is not None:
        return {k: v for k, v in new[0].items() if k != "hash_revision"} == old[0]
    if name == "Maintenance/HashKV" and old[1:] == COMPACTED and new[0] is not None:
        asked = request.get("revision", 0)
        return bool(new[0]["hash_revision"] == asked > new[0].get("compact_revision", 0))
    if name == "KV/Txn":
        return old[1:] in BAD_PUTS and new[1:] in BAD_PUTS | BAD_READS
    return False


def shown(value: Any) -> Any:
    """The reply without the leases of pairs without a value: with keys_only 3.7 shows none."""
    if isinstance(value, list):
        return [shown(one) for one in value]
    if not isinstance(value, dict):
        return value
    left_out = {"lease"} if "mod_revision" in value and "value" not in value else set()
    return {key: shown(one) for key, one in value.items() if key not in left_out}


def differ(name: str, request: Message, old: Outcome, new: Outcome) -> str:
    """How the two answers differ beyond what is known; empty when they do not."""
    if old[0] is not None and new[0] is not None:
        text = difference(name, request, shown(old[0]), shown(new[0]))
    else:
        text = "" if old == new else f"{old!r} or {new!r}"
    return "" if not text or known(name, request, old, new) else text


@pytest.mark.parametrize("round_", range(depth(1, 60)))
def test_random_calls_are_answered_as_by_etcd(
    round_: int, program: Program, debian_etcd: Program, tmp_path: Path
) -> None:
    number = seed() + round_
    print(f"QUORATE_SEED={number}")
    with (
        Server(debian_etcd, tmp_path / "etcd") as theirs,
        Server(program, tmp_path / "ours") as ours,
    ):
        theirs.launch()
        ours.launch()
        theirs.wait_ready()
        ours.wait_ready()
        with Client(theirs.port) as old, Client(ours.port) as new:
            compare_round(number, old, new)


def compare_round(number: int, old: Client, new: Client) -> None:
    """One sequence on two empty stores; raises AssertionError at the first difference."""
    sequence = Sequence(number)
    refused = 0
    for at, (name, request) in zip(range(CALLS), sequence, strict=False):
        one, two = ask(old, name, request), ask(new, name, request)
        text = differ(name, request, one, two)
        assert not text, f"seed {number}, call {at}, {name} {request!r}: {text}"
        sequence.seen(name, request, one[0])
        refused += one[0] is None
    assert 0.03 * CALLS < refused < 0.6 * CALLS, f"{refused} of {CALLS} calls were refused"
    hashes = [client.call("Maintenance/HashKV") for client in (old, new)]
    assert hashes[0]["hash"] == hashes[1]["hash"], f"seed {number}: {hashes}"
    assert old.all() == new.all()
