"""Waiting for what another process does and tells nobody."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS_MAX = 20.0
POLL_SECONDS = 0.005


def wait_until(what: Callable[[], object], told: str, seconds: float = SECONDS_MAX) -> None:
    """Return as soon as `what` is true; AssertionError naming it when it does not become so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"no {told} after {seconds} s"
        # It happens in another process or in /proc, and neither tells when.
        time.sleep(POLL_SECONDS)
