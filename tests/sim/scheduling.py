"""trio with an order of tasks that a seed decides. All of trio's private names are here."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator

import trio
import trio._core._run as scheduler
import trio.testing


@contextlib.contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Meanwhile tasks that could run at the same moment do so as the seed says."""
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]


def run(seed: int, main: Callable[[trio.testing.MockClock], Awaitable[None]]) -> None:
    """Run `main` by a clock that only it moves."""
    clock = trio.testing.MockClock()
    with deterministic(seed):
        trio.run(main, clock, clock=clock)
