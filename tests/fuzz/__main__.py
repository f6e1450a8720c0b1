"""`python -m tests.fuzz TARGET [--seconds N]`: fuzz one of the readers of files.

Under `tools/fuzz` the readers are built with coverage and sanitizers and Atheris leads; without it
a loop of our own makes inputs from the corpus. `--write-corpus` makes the corpus again.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENGINE = "QUORATE_FUZZ_ENGINE"
NAMES = ("bolt", "restore", "snapshot", "wal")
# Python that reads files, too: Atheris sees where it goes.
INSTRUMENTED = ["quorate.core.snapfile", "quorate.core.protobuf", "quorate.core.members"]


def main(arguments: Sequence[str]) -> int:
    """Fuzz; 1 when an input was not survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=NAMES, nargs="?")
    parser.add_argument("files", type=Path, nargs="*", help="inputs to run instead")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="N", help="input N of the seed alone")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="for what is found")
    parser.add_argument("--write-corpus", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.write_corpus:
        return write_corpus()
    if asked.target is None:
        parser.error("which target?")
    if os.environ.get(ENGINE) == "atheris" and not asked.files and asked.only is None:
        return with_atheris(asked)
    return without(asked)


def with_atheris(asked: argparse.Namespace) -> int:
    """libFuzzer's loop, which does not come back."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz import engines, targets
    target = targets.TARGETS[asked.target]
    engines.atheris_loop(target, asked.seed, asked.seconds, asked.folder / asked.target)
    return 0


def without(asked: argparse.Namespace) -> int:
    """Our own loop, or inputs that are given."""
    from tests.fuzz import engines
    from tests.fuzz.targets import TARGETS

    target = TARGETS[asked.target]
    for path in asked.files:
        say(f"{path}: {'accepted' if target.run(path.read_bytes()) else 'refused'}")
    if asked.only is not None:
        data = engines.make_input(target, target.corpus(), asked.seed, asked.only)
        asked.folder.mkdir(parents=True, exist_ok=True)
        place = asked.folder / f"{target.name}-{asked.seed}-{asked.only}"
        place.write_bytes(data)
        say(f"the input is in {place}")
        say("accepted" if target.run(data) else "refused")
    elif not asked.files:
        count, accepted = engines.loop(target, asked.seed, seconds=asked.seconds)
        say(f"{target.name}: {count} inputs, {accepted} accepted, {count - accepted} refused")
    return 0


def write_corpus() -> int:
    """The seeds of all targets, as files."""
    from tests.fuzz.targets import TARGETS

    for target in TARGETS.values():
        target.folder.mkdir(parents=True, exist_ok=True)
        for name, data in target.seeds().items():
            (target.folder / f"{name}.bin").write_bytes(data)
    return 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
