"""`python -m tests.sim`: fresh seeds pass; the same seed is the same run, byte by byte.

The simulation has a process of its own: it makes limits small and the scheduler deterministic.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.depth import depth, seed

ROOT = Path(__file__).resolve().parent.parent
SEED_SECONDS_MAX = 60


def simulate(*arguments: str, hash_seed: str = "random") -> str:
    """What the command says; its failure is the test's."""
    count = int(arguments[arguments.index("--count") + 1]) if "--count" in arguments else 1
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=SEED_SECONDS_MAX * (count + 1),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(SEED_SECONDS_MAX * 600)
def test_seeds_that_nobody_has_seen() -> None:
    start, count = seed(), depth(5, 500)
    print(f"QUORATE_SEED={start}")
    lines = simulate(str(start), "--count", str(count)).splitlines()
    assert [line.split()[0] for line in lines] == [str(start + at) for at in range(count)]


@pytest.mark.slow
def test_a_seed_is_the_same_run_in_any_process() -> None:
    """Two runs in one process, and one in another with other hashes, give one trace."""
    number = str(seed())
    print(f"QUORATE_SEED={number}")
    first = simulate(number, number, "--steps", "400", hash_seed="1").splitlines()
    assert first[0] == first[1]
    assert simulate(number, "--steps", "400", hash_seed="2").splitlines() == first[:1]
    other = simulate(str(int(number) + 1), "--steps", "400").split()[1]
    assert other != first[0].split()[1]
