"""The wheel against a dict of deadlines."""

from __future__ import annotations

import random

from quorate.frontends._deadlines import Deadlines

SLOT = 1 << 22


def test_the_wheel_agrees_with_a_dict() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    wheel, model, now = Deadlines(), dict.fromkeys(range(50), 0), 10**12
    for number in model:
        wheel.set(number, 0)
    assert sorted(wheel.pop(now)) == sorted(model)
    model.clear()
    for _ in range(20_000):
        number = chance.randrange(50)
        step = chance.random()
        if step < 0.5:
            model[number] = now + chance.choice([0, -5, 10**6, 10**7, 10**9, 2 * 10**10])
            wheel.set(number, model[number])
        elif step < 0.7:
            model.pop(number, None)
            wheel.clear(number)
        else:
            due = wheel.next()
            assert (due == -1) == (not model)
            assert not model or due <= max(now, min(model.values())) + SLOT + 1
            now += chance.choice([10**5, 10**7, 10**9, 10**10])
            for expired in wheel.pop(now):
                assert model.pop(expired) <= now
            # Nothing is more than a slot late.
            assert all(deadline > now - SLOT for deadline in model.values())
