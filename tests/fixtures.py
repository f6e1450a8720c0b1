"""Fixtures of suites that speak to a server over the wire; each folder's conftest imports them.

`QUORATE_AGAINST=/path/to/etcd` runs the suites against that etcd instead of quorate: that is how
they themselves are tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import need, need_newer
from tests.server import Program, Server, etcd, subject
from tests.wire import Client


@pytest.fixture(scope="session")
def program() -> Program:
    """The server under test."""
    found = subject()
    if found is None:
        pytest.fail("quorate is not built: run ./tools/run --version")
    return found


@pytest.fixture(scope="session")
def debian_etcd() -> Program:
    """The real etcd that answers are compared with."""
    found = etcd(need("etcd"))
    assert found is not None
    return found


@pytest.fixture(scope="session")
def newer_etcd() -> Program:
    """A real etcd that is newer than Debian's."""
    found = etcd(need_newer("etcd"))
    assert found is not None
    return found


@pytest.fixture
def server(program: Program, tmp_path: Path) -> Iterator[Server]:
    """A fresh server, ready."""
    with Server(program, tmp_path / "server") as one:
        yield one.start()


@pytest.fixture(scope="module")
def shared_server(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a whole module, for tests that leave it as it was."""
    with Server(program, tmp_path_factory.mktemp("shared")) as one:
        yield one.start()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the fresh server."""
    with Client(server.port) as one:
        yield one


@pytest.fixture
def shared_client(shared_server: Server) -> Iterator[Client]:
    """A client of the module's server."""
    with Client(shared_server.port) as one:
        yield one
