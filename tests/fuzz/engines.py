"""Who makes the inputs: Atheris (libFuzzer), led by the coverage of our compiled code, or a loop.

Rules:
1. Both start from the corpus and use the target's mutator; Atheris mixes it with libFuzzer's own.
2. The loop's input number n of a seed is always the same: a failure names both.
3. An input may take SECONDS_MAX, and the process MEMORY_MAX more than it had.
"""

from __future__ import annotations

import importlib
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.targets import Target

SECONDS_MAX = 5.0
MEMORY_MAX = 1 << 30
INPUT_BYTES_MAX = 16384
STEPS_MAX = 4
# The loop forgets which inputs were accepted beyond so many: the memory is to be the reader's.
KEPT_MAX = 200


class FuzzError(Exception):
    """An input that a reader does not survive: how to make it again, and what happened."""


def loop(target: Target, seed: int, *, seconds: float = 0.0, inputs: int = 0) -> tuple[int, int]:
    """Run mutated inputs for so long, or so many; how many there were, and how many were accepted.

    Raises FuzzError.
    """
    end = time.monotonic() + seconds
    count = accepted = 0
    corpus = target.corpus()
    while count < inputs or (not inputs and time.monotonic() < end):
        data = make_input(target, corpus, seed, count)
        began = time.monotonic()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            accepted += target.run(data)
            check_cost(began, memory)
        except Exception as error:
            raise FuzzError(
                f"python -m tests.fuzz {target.name} --seed {seed} --only {count}: {error!r}"
            ) from error
        count += 1
    return count, accepted


def make_input(target: Target, corpus: list[bytes], seed: int, number: int) -> bytes:
    """Input `number` of a seed: one of the corpus, changed a few times."""
    rng = random.Random(f"{seed} {number}")
    data = rng.choice(corpus)
    for _ in range(rng.randint(1, STEPS_MAX)):
        data = target.mutate(data, rng)
    return data[:INPUT_BYTES_MAX]


def check_cost(began: float, memory: int) -> None:
    """Bounded time, bounded memory."""
    seconds = time.monotonic() - began
    assert seconds < SECONDS_MAX, f"it took {seconds:.1f} s"
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    assert more < MEMORY_MAX, f"it took {more >> 20} MiB"


def atheris_loop(target: Target, seed: int, seconds: float, folder: Path) -> None:
    """Let libFuzzer work on it; ends the process, with its exit code."""
    atheris: Any = importlib.import_module("atheris")

    def mutate(data: bytes, size_max: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.4:
            return bytes(atheris.Mutate(data, size_max))
        return target.mutate(bytes(data), rng)[:size_max]

    def run(data: bytes) -> None:
        target.run(bytes(data))

    folder.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds:.0f}",
        f"-seed={seed or 1}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={SECONDS_MAX * 4:.0f}",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
        f"-artifact_prefix={folder}/",
        str(folder / "found"),
        str(target.folder),
    ]
    (folder / "found").mkdir(exist_ok=True)
    atheris.Setup(arguments, run, custom_mutator=mutate)
    atheris.Fuzz()
