"""What all tests share. With QUORATE_CI=1 one that misses a program fails, it does not skip."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# Where files are kept in memory, and what a benchmark's small case may take there.
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 2 << 30
IN_CI = os.environ.get("QUORATE_CI") == "1"

# A shell starts what runs in the background with SIGINT ignored, and programs inherit that: those
# that tests interrupt would go on.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return judged(report) if IN_CI else report


def judged(report: pytest.TestReport) -> pytest.TestReport:
    """The report, failed if the test was skipped because it needs something that is not there."""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith("needs "):
            report.outcome = "failed"
            report.longrepr = f"in CI nothing may be missing: {reason}"
    return report


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is room: for what must not depend on the disk's pace.

    A benchmark's case takes no error for an answer, and etcd gives up a request after seven
    seconds; a disk that the other tests keep busy has let it wait for longer.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < MEMORY_BYTES_MIN:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="quorate-", dir=MEMORY) as name:
        yield Path(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write what came out into tests/interaction/*.txt; commit it only if you know why",
    )
