"""Recipes of other languages' clients go on through restarts of the server: locks, elections.

The programs count up under a lock and watch what they count: a number that is missing, or comes
twice, or a lock that two hold, is what they print instead of ok.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from tests.compat.test_clients import BUILD_SECONDS, SOURCES, build
from tests.depth import depth, seed
from tests.needs import need
from tests.server import Server
from tests.wire import Client

pytestmark = [
    pytest.mark.compat,
    pytest.mark.slow,
    pytest.mark.timeout(BUILD_SECONDS + 600),
]

RESTARTS = depth(2, 50)
COUNTER = b"recipes/counter"
# So much is counted up between two restarts.
STEPS = 5
STEP_SECONDS = 30.0
END_SECONDS = 60.0


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the programs, to build in."""
    return Path(shutil.copytree(SOURCES, tmp_path / "clients"))


@pytest.fixture
def go(sources: Path) -> list[str]:
    """The command of the Go program, without the address."""
    build(sources / "go", need("go"), "build", "-o", "client", ".")
    return [str(sources / "go" / "client"), "ADDRESS", "recipes"]


@pytest.fixture
def node(sources: Path) -> list[str]:
    """That of the Node program."""
    program, folder = need("node"), sources / "node"
    build(folder, need("npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts")
    return [program, str(folder / "recipes.js"), "ADDRESS"]


def counted(server: Server) -> int:
    """How far the counter is."""
    with Client(server.port) as client:
        # A busy machine may not connect in the time of a first attempt.
        client.wait_connected()
        kvs = client.get(COUNTER).get("kvs", [])
    return int(kvs[0]["value"]) if kvs else 0


def wait_counted(server: Server, aim: int, process: subprocess.Popen[str]) -> int:
    """The counter, once it is so far."""
    end = time.monotonic() + STEP_SECONDS
    while (now := counted(server)) < aim:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"it stays at {now}, {aim} wanted"
        time.sleep(0.02)
    return now


def through_restarts(command: list[str], server: Server) -> None:
    """Run the program, kill the server again and again, and let the program judge."""
    number = seed()
    print(f"QUORATE_SEED={number}")
    chance = random.Random(number)
    address = f"127.0.0.1:{server.port}"
    with (server.directory / "complaints").open("w") as complaints:
        process = subprocess.Popen(
            [address if word == "ADDRESS" else word for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
    try:
        now = wait_counted(server, STEPS, process)
        for _ in range(RESTARTS):
            time.sleep(0.2 * chance.random())
            server.kill()
            server.restart()
            now = wait_counted(server, now + STEPS, process)
        output, _ = process.communicate("stop\n", END_SECONDS)
        assert output.strip() == "ok", output[-2000:]
    finally:
        process.kill()
        process.wait()
    with Client(server.port) as client:
        assert client.put(b"after", b"v")["header"]["revision"] > now


def test_go(go: list[str], server: Server) -> None:
    through_restarts(go, server)


def test_node(node: list[str], server: Server) -> None:
    through_restarts(node, server)
