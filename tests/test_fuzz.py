"""The readers of files against made-up ones: a bounded run of each target, and the fuzzer."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from quorate.core._bolt import Bolt
from tests.depth import depth, seed
from tests.fuzz import bolt, engines, mutations, restore, snapshot, wal
from tests.fuzz.targets import CORPUS, TARGETS, Target

CORPUS_BYTES_MAX = 300_000
# Inputs of an everyday run: about a second of each.
INPUTS = {"bolt": 1000, "wal": 400, "snapshot": 1500, "restore": 600}


@pytest.fixture(params=sorted(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


def test_whatever_the_bytes_readers_succeed_or_refuse(target: Target) -> None:
    inputs = depth(INPUTS[target.name], 1000 * INPUTS[target.name])
    count, accepted = engines.loop(target, seed(), inputs=inputs)
    assert count == inputs
    # One that refuses everything was not tested, and one that takes everything tests nothing.
    assert count // 100 < accepted < count


def test_the_corpus_is_what_the_seeds_make_and_most_is_accepted(target: Target) -> None:
    committed = {path.stem: path.read_bytes() for path in target.folder.iterdir()}
    assert committed == target.seeds(), "python -m tests.fuzz --write-corpus"
    accepted = [name for name, data in committed.items() if target.run(data)]
    assert len(accepted) > len(committed) // 2, accepted
    target.run(b"")


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.glob("*/*")) < CORPUS_BYTES_MAX


def test_an_input_is_made_again_from_its_seed(target: Target) -> None:
    corpus = target.corpus()
    made = [engines.make_input(target, corpus, 7, number) for number in range(20)]
    assert made == [engines.make_input(target, corpus, 7, number) for number in range(20)]
    assert len(set(made)) > 10


def test_a_reader_that_fails_is_told_with_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(data: bytes) -> bool:
        if data[:1] == b"\1":
            raise IndexError("a reader's own")
        return True

    broken = replace(TARGETS["bolt"], mutate=mutations.havoc, run=run)
    with pytest.raises(engines.FuzzError, match=r"tests\.fuzz bolt --seed 3 --only \d+: IndexE"):
        engines.loop(broken, 3, inputs=100_000)
    monkeypatch.setattr(engines, "SECONDS_MAX", 0.0)
    with pytest.raises(engines.FuzzError, match="it took"):
        engines.loop(TARGETS["bolt"], 3, inputs=1)


def test_a_reader_that_tells_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets compare with models: each comparison sees a reader that is wrong."""
    good = TARGETS["bolt"].seeds()["plain"]

    class Forgetful(Bolt):
        def items(self, bucket: bytes):  # type: ignore[no-untyped-def]
            return list(super().items(bucket))[1:]

    monkeypatch.setattr(bolt, "Bolt", Forgetful)
    with pytest.raises(AssertionError):
        bolt.run(good)

    told = iter(range(10))
    monkeypatch.setattr(wal, "entries_of", lambda *args: next(told))
    with pytest.raises(AssertionError, match="another log"):
        wal.run(TARGETS["wal"].seeds()["one"])

    monkeypatch.setattr(restore, "chains_of", lambda pairs: {b"a": [(2, (b"w", 2, 2, 1))]})
    with pytest.raises(AssertionError):
        restore.run(TARGETS["restore"].seeds()["keys"])


def test_mutators_keep_what_checksums_cover_right() -> None:
    """Else nearly nothing would come past the first checksum."""
    number = seed()
    rng = random.Random(number)
    for made in (bolt, wal, snapshot, restore):
        name = made.__name__.rpartition(".")[2]
        corpus = list(TARGETS[name].seeds().values())
        accepted = sum(made.run(made.mutate(rng.choice(corpus), rng)) for _ in range(200))
        assert accepted > 5, (name, accepted, number)
