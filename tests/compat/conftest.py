"""The fixtures of the suites that speak to quorate as its users do."""

from __future__ import annotations

from tests.fixtures import (
    client,
    debian_etcd,
    newer_etcd,
    program,
    server,
    shared_client,
    shared_server,
)

__all__ = [
    "client",
    "debian_etcd",
    "newer_etcd",
    "program",
    "server",
    "shared_client",
    "shared_server",
]
