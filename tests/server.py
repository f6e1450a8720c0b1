"""Starts real servers (quorate or any etcd) for black-box tests, and ends them by pid.

Rules:
1. Loopback only, on free ports below the ephemeral range: a client that reconnects while the server
   is down must never be given the server's own port (it would connect to itself). No port is given
   twice, nor to two processes of a test run: two servers once had the same, and the one that lived
   answered for the one that did not.
2. Whatever a test starts ends with it: `Server.close` kills the process and its descendants by pid,
   and `atexit` does so for a test run that is cut short.
3. Readiness is `/health` answering true, not a log line: etcd 3.4 writes none. For quorate a test
   asks for the line, too.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

QUORATE = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "quorate"
READY_SECONDS = 20.0
STOP_SECONDS = 15.0
PORTS = (20_000, 31_999)
READY_LINE = "ready to serve client requests"

# Which of the processes of a test run this is, and of how many.
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])

_random = random.SystemRandom()
_given: set[int] = set()
_living: set[Server] = set()


@dataclass(frozen=True)
class Program:
    """A server binary under test: `kind` is `quorate` or `etcd`."""

    kind: str
    path: Path
    version: tuple[int, int] = (3, 7)
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def is_quorate(self) -> bool:
        """Whether it is ours."""
        return self.kind == "quorate"

    def __str__(self) -> str:
        return self.kind if self.is_quorate else f"etcd-{self.version[0]}.{self.version[1]}"


def quorate() -> Program | None:
    """The checkout's own server, or the installed one; None when there is none."""
    if QUORATE.exists():
        return Program("quorate", QUORATE)
    found = shutil.which("quorate")
    return Program("quorate", Path(found)) if found else None


def etcd(path: str | None = None) -> Program | None:
    """Debian's etcd, or the one at `path`; None when there is none."""
    found = path or shutil.which("etcd")
    if found is None or not Path(found).exists():
        return None
    text = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    number = text.splitlines()[0].split()[-1].split(".")
    version = (int(number[0]), int(number[1]))
    flags = ("--logger=zap", "--log-outputs=stderr") if version < (3, 6) else ()
    return Program("etcd", Path(found), version, flags)


def subject() -> Program | None:
    """The server under test: quorate, or the etcd that `QUORATE_AGAINST` names."""
    against = os.environ.get("QUORATE_AGAINST")
    return etcd(against) if against else quorate()


def free_port() -> int:
    """A loopback port that nothing listens on, outside the range that clients get theirs from, and
    that this process was not given before.
    """
    for _ in range(1000):
        port = _random.randrange(*PORTS)
        if port in _given or port % PROCESSES != PROCESS:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise AssertionError(f"no free port in {PORTS}")


def children(pid: int) -> list[int]:
    """The pids of all living descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                state, parent = stat(int(entry))[:2]
                if state != "Z":
                    parents.setdefault(int(parent), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return sorted(found)


def stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: state, parent, …; raises OSError if the process is gone."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def started(pid: int) -> str:
    """When the process started, in the kernel's ticks: with the pid it names one process."""
    return stat(pid)[19]


class Server:
    """One server process on its own ports and data directory; start it again after it ended."""

    def __init__(self, program: Program, directory: Path, *flags: str) -> None:
        self.program = program
        self.directory = directory
        self.data = directory / "data"
        self.flags = flags
        self.port = free_port()
        self.peer_port = free_port()
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "log"
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def command(self) -> list[str]:
        """The command line: etcd's flags, the same for every program."""
        client = f"http://127.0.0.1:{self.port}"
        peer = f"http://127.0.0.1:{self.peer_port}"
        return [
            str(self.program.path),
            *("--name", "one", "--data-dir", str(self.data)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"one={peer}"),
            *self.program.flags,
            *self.flags,
        ]

    def launch(self) -> Server:
        """Start the process and do not wait for it."""
        assert self.process is None, "it runs already"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD")}
        environment |= self.program.environment | self.environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,
            )
        _living.add(self)
        return self

    def start(self, seconds: float = READY_SECONDS) -> Server:
        """Start the process and wait until it serves."""
        self.launch()
        self.wait_ready(seconds)
        return self

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when `/health` is true; raises AssertionError with the log's end."""
        end = time.monotonic() + seconds
        while True:
            healthy = self.healthy()
            assert self.process is not None
            code = self.process.poll()
            assert code is None, f"it ended with {code}:\n{self.tail()}"
            if healthy:
                return
            assert time.monotonic() < end, f"not ready after {seconds} s:\n{self.tail()}"
            time.sleep(0.01)

    def healthy(self, seconds: float = 1.0) -> bool:
        """Whether `/health` says true."""
        try:
            status, _, body = self.http("GET", "/health", seconds=seconds)
            return status == 200 and json.loads(body).get("health") == "true"
        except (OSError, ValueError, http.client.HTTPException):
            return False

    def http(
        self, verb: str, path: str, *, seconds: float = 5.0
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of a plain HTTP/1.1 request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(verb, path)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    @property
    def pid(self) -> int:
        """The process that was started: the core."""
        assert self.process is not None, "it does not run"
        return self.process.pid

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def workers(self) -> list[int]:
        """The pids of its children; none for etcd."""
        return children(self.pid)

    def identity(self) -> list[tuple[int, str]]:
        """Pid and start of the process and of each child: equal as long as none died."""
        return [(pid, started(pid)) for pid in [self.pid, *self.workers()]]

    def signal(self, number: int) -> None:
        """Send a signal to the core."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP to the core."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to the core."""
        self.signal(signal.SIGCONT)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for its end and return the exit code (-N for signal N)."""
        assert self.process is not None, "it does not run"
        code = self.process.wait(seconds)
        self.process = None
        return code

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, then the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """SIGKILL to the core; returns when it and its children are gone."""
        below = [(pid, started(pid)) for pid in self.workers()]
        self.signal(signal.SIGKILL)
        self.wait()
        end = time.monotonic() + 5
        while any(_runs(*one) for one in below):
            assert time.monotonic() < end, f"children outlive the core: {below}"
            time.sleep(0.002)

    def restart(self) -> Server:
        """Start it again on the same ports and data."""
        return self.start()

    def close(self) -> None:
        """End the process and everything below it, whatever its state."""
        if self.process is not None and self.process.poll() is None:
            below = [(pid, started(pid)) for pid in self.workers()]
            self.process.kill()
            self.process.wait()
            for pid, start in below:
                if _runs(pid, start):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        self.process = None
        _living.discard(self)

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def logged(self) -> list[dict[str, object]]:
        """The JSON lines of its log; any other line as `{"plain": line}`."""
        found: list[dict[str, object]] = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            found.append(record if isinstance(record, dict) else {"plain": line})
        return found

    def memory(self) -> int:
        """The proportional memory of the process and its children, in bytes."""
        return sum(proportional(pid) for pid in [self.pid, *self.workers()])


def proportional(pid: int) -> int:
    """One process's proportional set size in bytes; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _runs(pid: int, start: str) -> bool:
    """Whether that very process still runs (not a zombie, not a later owner of the pid)."""
    try:
        return started(pid) == start and stat(pid)[0] != "Z"
    except OSError:
        return False


@atexit.register
def _close_all() -> None:
    for server in list(_living):
        with contextlib.suppress(Exception):
            server.close()


assert sys.platform == "linux", "the harness reads /proc"
