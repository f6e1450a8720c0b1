"""Small limits, so that a simulation of some hundred steps meets them.

They are read when the modules that obey them are imported: `shrink` comes before that, in a process
that does nothing but simulate.
"""

from __future__ import annotations

import sys

from quorate.core import limits

SMALL = {
    "WATCH_SEND_BYTES_HIGH": 48 * 1024,
    "WATCH_SEND_BYTES_LOW": 6 * 1024,
    "WATCH_CONNECTION_BYTES_HIGH": 128 * 1024,
    "WATCH_WORKER_BYTES_HIGH": 256 * 1024,
    "WATCH_MESSAGE_BYTES_MAX": 12 * 1024,
    "WATCH_REVISION_BYTES_MAX": 32 * 1024,
    "WATCH_NOTES_MAX": 256,
    "STREAM_REQUESTS_MAX": 4,
}


def shrink() -> None:
    """Make every limit of SMALL small."""
    early = [name for name in sys.modules if name.startswith("quorate.frontends")]
    assert not early, f"already imported: {early}"
    for name, value in SMALL.items():
        assert getattr(limits, name) > value, name
        setattr(limits, name, value)
