"""Rules for all tests: with QUORATE_CI=1 a test that misses a program fails, it does not skip."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write what came out into tests/interaction/*.txt; commit it only if you know why",
    )
