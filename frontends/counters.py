"""Which counter of a worker's block counts what.

The block begins with METHOD_FIELDS counters for each method, in the order of `METHODS`: started,
messages received, messages sent, and handled for each gRPC code. NAMED follow. At the block's end
stand GAUGES, which say what is alive now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from quorate.core.limits import WORKER_COUNTERS_MAX, WORKER_GAUGES_MAX
from quorate.frontends.health import CHECKS
from quorate.frontends.methods import METHODS

CODES = 17
STARTED, RECEIVED, SENT, HANDLED = range(4)
METHOD_FIELDS = HANDLED + CODES

RECEIVED_BYTES = "received_bytes"
SENT_BYTES = "sent_bytes"
HEALTH_SUCCESS = "health_success"
HEALTH_FAILURES = "health_failures"
METRICS_REQUESTS = "metrics_requests"
WATCH_EVENTS = "watch_events"
WATCHERS = "watchers"
SLOW_WATCHERS = "slow_watchers"
WATCH_STREAMS = "watch_streams"


def check_name(kind: str, check: str, success: bool) -> str:
    """The counter of a check of /livez or /readyz."""
    return f"{kind}/{check}/{'success' if success else 'error'}"


NAMED: tuple[str, ...] = (
    RECEIVED_BYTES,
    SENT_BYTES,
    HEALTH_SUCCESS,
    HEALTH_FAILURES,
    METRICS_REQUESTS,
    WATCH_EVENTS,
    *(
        check_name(kind, check, success)
        for kind, names in CHECKS.items()
        for check in names
        for success in (True, False)
    ),
)
GAUGES = (WATCHERS, SLOW_WATCHERS, WATCH_STREAMS)
COUNT = len(METHODS) * METHOD_FIELDS + len(NAMED)
assert METHOD_FIELDS == 20, METHOD_FIELDS  # as in frontends/_grpc.pxd
GAUGES_AT = WORKER_COUNTERS_MAX - WORKER_GAUGES_MAX
assert COUNT <= GAUGES_AT, f"{COUNT} counters do not fit {GAUGES_AT}"
assert len(GAUGES) <= WORKER_GAUGES_MAX


@dataclass
class Counters:
    """Counters by name: of each method METHOD_FIELDS numbers; the NAMED ones and the GAUGES."""

    methods: dict[str, list[int]] = field(
        default_factory=lambda: {path: [0] * METHOD_FIELDS for path in METHODS}
    )
    named: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMED + GAUGES, 0))


def pack(counters: Counters) -> list[int]:
    """The numbers of a block."""
    numbers = [number for counts in counters.methods.values() for number in counts]
    numbers += [counters.named[name] for name in NAMED]
    numbers += [0] * (GAUGES_AT - len(numbers))
    return numbers + [counters.named[name] for name in GAUGES]


def unpack(numbers: Sequence[int]) -> Counters:
    """The counters of a block, or of a sum of blocks."""
    counters = Counters()
    for place, path in enumerate(METHODS):
        start = place * METHOD_FIELDS
        counters.methods[path] = list(numbers[start : start + METHOD_FIELDS])
    start = len(METHODS) * METHOD_FIELDS
    counters.named = dict(zip(NAMED, numbers[start : start + len(NAMED)], strict=True))
    counters.named.update(zip(GAUGES, numbers[GAUGES_AT : GAUGES_AT + len(GAUGES)], strict=True))
    return counters
