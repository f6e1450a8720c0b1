"""All checks, in the order in which they are quick to answer; with arguments, only pytest.

Rules:
1. All static checks run, even after one failed; pytest runs only if none did, so that its summary,
   the last line, is the verdict. It runs in four processes, because most tests wait for servers;
   with arguments in one.
2. Every tool's settings are in pyproject.toml.
3. The tools are this interpreter's own; cython-lint starts pycodestyle by its bare name, so PATH
   begins with their folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# Each line is a check's name and its command; folders are the real ones, not the links to them.
FOLDERS = ("core", "frontends", "workers", "src", "bench", "tests", "tools/check.py", "setup.py")
PARALLEL = ("--numprocesses=4", "--dist=worksteal", "--durations=10")
STATIC = {
    "format": ("ruff", "format", "--check", *FOLDERS),
    "lint": ("ruff", "check", *FOLDERS),
    "cython-lint": ("cython-lint", "core", "frontends", "workers", "bench", "tests"),
    "types": ("mypy",),
}


def main(arguments: list[str]) -> int:
    """Run the checks; the answer is the exit code, unless pytest takes over the process."""
    os.chdir(ROOT)
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    if not arguments:
        failed = [name for name, command in STATIC.items() if not passes(name, command)]
        if failed:
            print(f"failed: {', '.join(failed)}", flush=True)
            return 1
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *(arguments or PARALLEL)])


def passes(name: str, command: tuple[str, ...]) -> bool:
    """Run one static check and say how it went."""
    start = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL)
    verdict = "ok" if done.returncode == 0 else "FAILED"
    print(f"{name}: {verdict} ({time.monotonic() - start:.1f} s)", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
