"""Clients of other languages, from their registries: Go's official one, jetcd, etcd3, grpcio."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.needs import need
from tests.server import Program, Server
from tests.wire import Client

pytestmark = pytest.mark.compat

SOURCES = Path(__file__).with_name("clients")
# A first build compiles grpc-go and all else that etcd's client needs.
BUILD_SECONDS = 400
# What the builds say when they can't reach their registry.
NETWORK_WORDS = ("dial", "network", "registry", "proxy", "could not transfer")


def build(directory: Path, *command: str) -> None:
    """Run a build there; the test is skipped if it fails for want of the registry."""
    environment = os.environ | {"CGO_ENABLED": "0"}
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        output = done.stdout + done.stderr
        assert any(word in output.lower() for word in NETWORK_WORDS)
        pytest.skip(f"needs its registry: {output[-500:]}")


def talk(*command: str) -> None:
    """Run a client, which says ok or what is wrong."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stdout + done.stderr


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the programs, to build in."""
    return Path(shutil.copytree(SOURCES, tmp_path / "clients"))


@pytest.mark.slow
@pytest.mark.timeout(BUILD_SECONDS + 100)
def test_go(sources: Path, server: Server) -> None:
    build(sources / "go", need("go"), "build", "-o", "client", ".")
    talk(str(sources / "go" / "client"), f"127.0.0.1:{server.port}")


@pytest.mark.slow
@pytest.mark.timeout(BUILD_SECONDS + 100)
def test_node(sources: Path, server: Server) -> None:
    node = need("node")
    folder = sources / "node"
    build(folder, need("npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts")
    talk(node, str(folder / "main.js"), f"127.0.0.1:{server.port}")


@pytest.mark.slow
@pytest.mark.timeout(BUILD_SECONDS + 100)
def test_java(sources: Path, server: Server) -> None:
    folder = sources / "java"
    download = "dependency:copy-dependencies"
    build(folder, need("mvn"), "-q", "-B", download, "-DoutputDirectory=lib")
    build(folder, need("javac"), "-cp", "lib/*", "Main.java")
    path = f"{folder}/lib/*:{folder}"
    talk(need("java"), "-cp", path, "Main", f"http://127.0.0.1:{server.port}")


def test_grpcio(server: Server) -> None:
    with Client(server.port) as client:
        assert client.put(b"k", b"v")["header"]["revision"] == 2
        assert client.get(b"k")["kvs"][0]["value"] == b"v"
        assert client.delete(b"k")["deleted"] == 1


def test_grpcio_with_compression(server: Server, program: Program) -> None:
    if program.version < (3, 5):
        pytest.skip("etcd 3.4 has no gzip")
    gzip = 2
    with Client(server.port, ("grpc.default_compression_algorithm", gzip)) as client:
        client.put(b"k", b"v" * 10_000)
        assert client.get(b"k")["kvs"][0]["value"] == b"v" * 10_000
