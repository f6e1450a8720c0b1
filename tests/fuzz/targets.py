"""What can be fuzzed: each target's seeds, its mutator, and what is done with an input."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import bolt, restore, snapshot, wal

CORPUS = Path(__file__).resolve().parent / "corpus"


@dataclass(frozen=True)
class Target:
    """One reader."""

    name: str
    seeds: Callable[[], dict[str, bytes]]
    mutate: Callable[[bytes, random.Random], bytes]
    run: Callable[[bytes], bool]

    @property
    def folder(self) -> Path:
        """Where its committed inputs are."""
        return CORPUS / self.name

    def corpus(self) -> list[bytes]:
        """Them, in the order of their names."""
        return [path.read_bytes() for path in sorted(self.folder.iterdir())]


TARGETS = {
    name: Target(name, module.seeds, module.mutate, module.run)
    for name, module in (
        ("bolt", bolt),
        ("wal", wal),
        ("snapshot", snapshot),
        ("restore", restore),
    )
}
