"""How deep the randomised and destructive tests go: `QUORATE_DEPTH`.

Unset: the everyday depth, for a run of minutes. A number multiplies it, up to the deep figure.
`deep` takes the deep figure.
"""

from __future__ import annotations

import os
import random


def depth(everyday: int, deep: int) -> int:
    """How many: `everyday`, or more as the environment asks, `deep` at the most."""
    asked = os.environ.get("QUORATE_DEPTH", "1")
    if asked == "deep":
        return deep
    return max(1, min(deep, int(everyday * float(asked))))


def seed() -> int:
    """A fresh seed, or the one of `QUORATE_SEED`; the caller prints it."""
    given = os.environ.get("QUORATE_SEED")
    return int(given) if given else random.SystemRandom().randrange(1 << 32)
