"""The fixtures of the suites that kill, stop and starve it."""

from __future__ import annotations

from tests.fixtures import (
    abilities,
    client,
    debian_etcd,
    leasing,
    program,
    server,
    shared_client,
    shared_server,
    watching,
)

__all__ = [
    "abilities",
    "client",
    "debian_etcd",
    "leasing",
    "program",
    "server",
    "shared_client",
    "shared_server",
    "watching",
]
