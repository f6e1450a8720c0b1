"""The servers under test: found, started on free loopback ports, asked, and ended by their pid.

Rules: every server gets a directory of its own and etcd's defaults, with a quota that no workload
reaches; ready means that a linearizable Range was answered over gRPC; every wait is bounded.
Each is told what to do by command line alone, and the same for every program.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench import process
from bench._load import Load
from bench.protobuf import encode_varint, last_field

ROOT = Path(__file__).resolve().parent.parent
# etcd reads a few hundred thousand keys a second.
READY_SECONDS_MAX = 300.0
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.002
QUOTA_BYTES = 8 * 1024**3
RANGE = "/etcdserverpb.KV/Range"
COMPACT = "/etcdserverpb.KV/Compact"
# RangeRequest{key: "\0"}: the smallest question that goes the whole road.
ANY_KEY = b"\x0a\x01\x00"


class ServerError(Exception):
    """A server did not start, did not answer, or ended; the message says where its log is."""


@dataclass(frozen=True)
class Target:
    """A program under test."""

    name: str
    program: str
    version: str
    is_quorate: bool = False

    @property
    def version_key(self) -> tuple[int, ...]:
        """The version as numbers, to find the newest."""
        return tuple(int(part) for part in self.version.split(".") if part.isdigit())

    @property
    def place(self) -> str:
        """The program's path as a report shows it: within this checkout from its root on."""
        return self.program.removeprefix(f"{ROOT}/")


def find_target(program: str, is_quorate: bool = False) -> Target:
    """Ask a program for its version; raises ServerError when it cannot be run."""
    path = shutil.which(program)
    if path is None:
        raise ServerError(f"{program}: no such program")
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"{program} --version: {error}") from error
    words = said.stdout.split()
    version = words[2] if words[:2] == ["etcd", "Version:"] else "unknown"
    if said.returncode != 0:
        raise ServerError(f"{program} --version: {said.stderr.strip() or 'failed'}")
    name = "quorate" if is_quorate else f"etcd {version}"
    return Target(name, path, version, is_quorate)


def revision_of(reply: bytes) -> int:
    """What the header of a reply says."""
    header = last_field(reply, 1)
    assert isinstance(header, bytes)
    revision = last_field(header, 3)
    assert isinstance(revision, int)
    return revision


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class Server:
    """One running server; use it as a context manager."""

    target: Target
    directory: Path
    echo: bool = False
    port: int = 0
    ready_seconds: float = 0.0
    quota_bytes: int = QUOTA_BYTES
    options: tuple[str, ...] = ()
    """More of the command line; a later start may have others."""
    question: bytes = ANY_KEY
    """The RangeRequest whose answer makes it ready."""
    first_answer: bytes = b""
    """What it answered to that."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process that was started."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        """Where the server's output goes."""
        return self.directory / "server.log"

    def start(self) -> None:
        """Start on what the data directory holds and wait until ready; sets `ready_seconds`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port, peer_port = free_ports(2)
        # Thousands of connections, at both ends.
        process.raise_descriptor_limit()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        if self.echo:
            environment["QUORATE_ECHO"] = "1"
        began = time.monotonic()
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self._command(peer_port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        try:
            while not self._answers():
                self._check_alive(began)
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.stop()
            raise
        self.ready_seconds = time.monotonic() - began

    def stop(self) -> float:
        """End the server politely, then firmly; how many seconds it took."""
        if self._process is None:
            return 0.0
        began = time.monotonic()
        members = process.tree(self.pid)
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            for member in members[1:]:
                _kill(member)
        self._process = None
        return time.monotonic() - began

    def kill(self) -> None:
        """End the server, all its processes at once, without a word."""
        assert self._process is not None
        for member in process.tree(self.pid):
            _kill(member)
        self._process.wait()
        self._process = None

    def call(self, path: str, message: bytes, seconds: float = 60.0) -> bytes:
        """One gRPC call; raises ServerError when its status is not 0."""
        with Load(self.port, "call", path=path, message=message) as load:
            outcome = load.run(requests=1, patience=seconds)
            if not outcome.good:
                raise ServerError(f"{self.target.name}: {path}: {outcome.problem}")
            return load.reply

    def revision(self) -> int:
        """The store's revision now."""
        return revision_of(self.call(RANGE, ANY_KEY))

    def compact(self, revision: int) -> None:
        """Compact physically at `revision`: the answer comes when the removal is done."""
        self.call(COMPACT, b"\x08" + encode_varint(revision) + b"\x10\x01", seconds=300.0)

    def _command(self, peer_port: int) -> list[str]:
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{peer_port}"
        return [
            self.target.program,
            "--name=bench",
            f"--data-dir={self.directory / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=bench={peer}",
            f"--quota-backend-bytes={self.quota_bytes}",
            *self.options,
        ]

    def _answers(self) -> bool:
        try:
            self.first_answer = self.call(RANGE, self.question, seconds=1.0)
        except (OSError, ServerError):
            return False
        return True

    def _check_alive(self, began: float) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            code = self._process.returncode
            raise ServerError(f"{self.target.name} ended with {code}\n{self._last_words()}")
        if time.monotonic() - began > READY_SECONDS_MAX:
            raise ServerError(f"{self.target.name} is not ready after {READY_SECONDS_MAX} s")

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
