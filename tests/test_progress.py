"""A bar on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.test_restore import FILE


def test_a_terminal_sees_a_bar_and_the_answer_is_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILE)
    ours, theirs = pty.openpty()
    words = ("-m", "quorate.ctl.quorateutl", "snapshot", "status", path, "-w", "json")
    try:
        done = subprocess.run(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=30,
            env={**os.environ, "TERM": "xterm"},
        )
        shown = os.read(ours, 100_000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert done.stdout.startswith(b'{"hash":')
    assert b"checking pages" in shown
