"""A bar for work that takes long: on stderr, and only when that is a terminal.

What is piped or logged never sees one, and `rich` is not even imported then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Gets how much is done of the total.
Advance = Callable[[int], None]


def nobody(done: int) -> None:
    """Where there is no terminal."""


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """A bar of `total`; call what this gives with how much is done."""
    if not sys.stderr.isatty():
        yield nobody
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=total or None)
        yield lambda done: bars.update(task, completed=done)
