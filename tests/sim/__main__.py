"""`python -m tests.sim SEED`: simulate a server and its clients, as the seed decides.

Rules:
1. The same seed is the same run: every step, every byte. What fails prints its seed and how it came
   to that.
2. One process does nothing else: it makes the server's limits small.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence

from tests.sim.small import shrink


def main(arguments: Sequence[str]) -> int:
    """Run the seeds that are asked for; 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=main.__doc__)
    parser.add_argument("seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--count", type=int, default=1, help="so many seeds, from each SEED on")
    parser.add_argument("--steps", type=int, default=None, help="of each run")
    parser.add_argument("--trace", action="store_true", help="print every step, every byte")
    asked = parser.parse_args(arguments)
    shrink()
    world = importlib.import_module("tests.sim.world")
    options = {} if asked.steps is None else {"steps": asked.steps}
    if asked.trace:
        options["say"] = lambda line: sys.stdout.write(line + "\n")
    for seed in [start + at for start in asked.seeds for at in range(asked.count)]:
        run = world.World(seed, **options)
        try:
            digest = run.run()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            sys.stdout.write("\n".join(run.last) + "\n")
            sys.stdout.write("".join(traceback.format_exception(error)))
            steps = "" if asked.steps is None else f" --steps {asked.steps}"
            sys.stdout.write(f"FAILED: python -m tests.sim {seed}{steps}\n")
            return 1
        counts = ", ".join(f"{name} {count}" for name, count in sorted(run.counts.items()))
        sys.stdout.write(f"{seed} {digest} {run.steps} steps; {counts}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
