"""Debian's etcdctl watches, leases, locks, elects and mirrors with quorate as it does with etcd."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.compat.test_etcdctl import Etcdctl, words
from tests.needs import need
from tests.server import Program, Server
from tests.wire import Client

pytestmark = pytest.mark.compat

WAIT_SECONDS = 20.0
CONTENDERS = 4
ENVIRONMENT = "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE $ETCD_WATCH_REVISION"


class Running:
    """An etcdctl that goes on until it is interrupted; what it printed so far."""

    def __init__(self, server: Server, *arguments: str) -> None:
        self.output = ""
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [need("etcdctl"), f"--endpoints=127.0.0.1:{server.port}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
            text=True,
            errors="backslashreplace",
            bufsize=1,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join(WAIT_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def wait_lines(self, count: int) -> str:
        """Its output, once it has so many lines."""
        with self._changed:
            there = self._changed.wait_for(lambda: self.output.count("\n") >= count, WAIT_SECONDS)
            assert there, f"only {self.output!r}"
            return self.output

    def wait_for(self, text: str) -> str:
        """Its output, once that is in it."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.output, WAIT_SECONDS), self.output
            return self.output

    def interrupt(self) -> int:
        """SIGINT, and the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WAIT_SECONDS)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.output += line
                self._changed.notify_all()


@pytest.fixture(scope="module")
def pair(
    program: Program, debian_etcd: Program, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Etcdctl, Etcdctl]]:
    """etcdctl on quorate and etcd, with the same few writes."""
    with (
        Server(program, tmp_path_factory.mktemp("ours")) as ours,
        Server(debian_etcd, tmp_path_factory.mktemp("theirs")) as theirs,
    ):
        both = Etcdctl(ours.start()), Etcdctl(theirs.start())
        for one in both:
            with Client(one.server.port) as client:
                client.put(b"a", b"1")
                client.put(b"a", b"2")
                client.put(b"b/1", b"x")
                client.txn(
                    success=[
                        {"request_put": {"key": b"b/2", "value": b"y"}},
                        {"request_delete_range": {"key": b"a"}},
                    ]
                )
                client.put(b"c", b"\x00\xffbinary")
                client.delete(b"b/1")
        yield both


# With the lines that each prints of the writes above.
WATCHES = [
    ("watch a --rev=1", 8),
    ("watch a --rev=3", 5),
    ("watch a --rev=1 --prev-kv", 12),
    ("watch b/ --prefix --rev=1", 8),
    ("watch b/ --prefix --rev=1 --prev-kv", 10),
    ("watch a c --rev=2", 16),
    ("watch b/2 --rev=1 -w json", 1),
    ("watch a --rev=1 -w json --prev-kv", 1),
    ("watch b/1 --rev=1 -w fields", 17),
    ("watch c --rev=1 --hex", 3),
    ("watch '' --prefix --rev=1", 21),
    ("watch b c --rev=6", 3),
]


@pytest.mark.parametrize(("line", "least"), WATCHES)
def test_watch(line: str, least: int, pair: tuple[Etcdctl, Etcdctl]) -> None:
    command = words(line)
    with Running(pair[0].server, *command) as ours, Running(pair[1].server, *command) as theirs:
        ours.wait_lines(least)
        theirs.wait_lines(least)
        end = time.monotonic() + WAIT_SECONDS
        while True:
            # How many responses the events come in is not said anywhere.
            shown = [
                one.same(running.output.encode())
                for one, running in zip(pair, (ours, theirs), strict=True)
            ]
            if shown[0] == shown[1] or time.monotonic() > end:
                break
            time.sleep(0.02)
    assert shown[0] == shown[1]


def test_watch_interactively(pair: tuple[Etcdctl, Etcdctl]) -> None:
    shown = []
    for one in pair:
        with Running(one.server, "watch", "-i") as running:
            running.say("watch a --rev=1")
            running.wait_lines(9)
            running.say("watch b/2 --rev=1 --prev-kv")
            running.wait_lines(12)
            running.say("progress")
            # Each of its watches prints what the stream was told.
            shown.append(running.wait_lines(14))
            running.interrupt()
    assert shown[0] == shown[1]


def test_watch_runs_a_command(pair: tuple[Etcdctl, Etcdctl]) -> None:
    shown = []
    for one in pair:
        command = ("watch", "a", "--rev=1", "--", "sh", "-c", f'echo "{ENVIRONMENT}"')
        with Running(one.server, *command) as running:
            running.wait_for("DELETE")
            shown.append(sorted(running.wait_lines(12).splitlines()))
    assert shown[0] == shown[1]
    assert '"PUT" "a" "1" 7' in shown[0]


def test_watch_live(server: Server) -> None:
    """From now on: the key is put until the watch that is being made tells one of them."""
    with (
        Running(server, "watch", "live", "--prefix") as running,
        Client(server.port) as client,
    ):
        end = time.monotonic() + WAIT_SECONDS
        while "live/first" not in running.output:
            assert time.monotonic() < end, running.output
            client.put(b"live/first", b"v")
            time.sleep(0.02)
        client.put(b"live/last", b"the end")
        client.delete(b"live/last")
        output = running.wait_for("DELETE")
        assert output.endswith("PUT\nlive/last\nthe end\nDELETE\n") or "DELETE\nlive/last" in output


def test_watch_of_what_is_compacted(server: Server) -> None:
    with Client(server.port) as client:
        for number in range(5):
            client.put(b"k", b"%d" % number)
        client.call("KV/Compact", {"revision": 4})
    code, out, complaints = Etcdctl(server).run("watch", "k", "--rev=2")
    assert code != 0
    assert b"required revision has been compacted" in out + complaints


def test_watch_survives_a_restart(server: Server) -> None:
    with Running(server, "watch", "k", "--rev=1") as running:
        for number in range(3):
            with Client(server.port) as client:
                client.put(b"k", b"value %d" % number)
            running.wait_for(f"value {number}\n")
            server.kill()
            server.restart()
        assert re.findall(r"value (\d)", running.output) == ["0", "1", "2"]


LEASES = [
    "lease list",
    "lease grant 100",
    "lease grant 0",
    "lease grant -- -1",
    "lease timetolive 1234",
    "lease revoke 1234",
    "lease keep-alive --once 1234",
    "put k v --lease=1234",
    "lease timetolive notanumber",
]


@pytest.mark.parametrize("line", LEASES)
def test_lease_lines(line: str, pair: tuple[Etcdctl, Etcdctl]) -> None:
    ours, theirs = pair
    assert ours.shown(*words(line))[:2] == theirs.shown(*words(line))[:2]


@pytest.mark.parametrize("form", ["simple", "json", "fields", "table"])
def test_the_life_of_a_lease(form: str, pair: tuple[Etcdctl, Etcdctl]) -> None:
    shown = []
    for one in pair:
        _, out, _ = one.run("lease", "grant", "300")
        lease = out.decode().split()[1]
        lines = [
            f"put l/1 v --lease={lease}",
            f"lease timetolive {lease} --keys",
            f"lease keep-alive --once {lease}",
            f"lease revoke {lease}",
            f"lease timetolive {lease}",
            f"lease revoke {lease}",
            "get l/ --prefix --count-only -w json",
        ]
        told = [
            one.shown(*words(line), *(["-w", form] if "get" not in line else []))[:2]
            for line in lines
        ]
        shown.append(
            [
                (code, re.sub(r'(?i)"?(ttl|id|revision)"? ?: ?"?\d+', r"\1", text))
                for code, text in told
            ]
        )
    assert shown[0] == shown[1]


def test_a_lease_is_kept_alive(server: Server) -> None:
    control = Etcdctl(server)
    _, out, _ = control.run("lease", "grant", "3")
    lease = out.decode().split()[1]
    control.run("put", "k", "v", f"--lease={lease}")
    with Running(server, "lease", "keep-alive", lease) as running:
        running.wait_lines(5)
        assert f"lease {lease} keepalived with TTL(3)" in running.output
        assert control.run("get", "k")[1] == b"k\nv\n"
        running.interrupt()
    end = time.monotonic() + WAIT_SECONDS
    while control.run("get", "k")[1]:
        assert time.monotonic() < end, "the lease never ends"
        time.sleep(0.1)


def test_lock_excludes(server: Server, tmp_path: Path) -> None:
    """Contenders enter one at a time, each of them once."""
    log = tmp_path / "log"
    script = f"echo in >> {log}; sleep 0.05; echo out >> {log}"
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(Running(server, "lock", "l", "--", "sh", "-c", script))
            for _ in range(CONTENDERS)
        ]
        assert [one.process.wait(WAIT_SECONDS) for one in running] == [0] * CONTENDERS
    assert log.read_text().split() == ["in", "out"] * CONTENDERS


def test_lock_is_passed_on(server: Server) -> None:
    with Running(server, "lock", "l") as first:
        assert first.wait_lines(1).startswith("l/")
        with Running(server, "lock", "l", "echo", "mine") as second:
            with Client(server.port) as client:
                end = time.monotonic() + WAIT_SECONDS
                while client.get(b"l/", b"l0").get("count") != 2:
                    assert time.monotonic() < end, "the second never queues"
                    time.sleep(0.01)
            assert second.process.poll() is None
            first.interrupt()
            second.wait_for("mine")
            assert second.process.wait(WAIT_SECONDS) == 0


def test_lock_tells_the_code_of_its_command(server: Server) -> None:
    control = Etcdctl(server)
    assert control.run("lock", "l", "echo", "hello")[:2] == (0, b"hello\n")
    assert control.run("lock", "l", "--", "sh", "-c", "exit 3")[0] != 0
    assert control.run("lock", "l", "echo", "again")[:2] == (0, b"again\n")


def test_elect(server: Server) -> None:
    with Running(server, "elect", "e", "one") as first:
        assert first.wait_lines(2).splitlines()[1] == "one"
        with (
            Running(server, "elect", "-l", "e") as listener,
            Running(server, "elect", "e", "two") as second,
        ):
            listener.wait_for("one")
            first.interrupt()
            second.wait_for("two")
            listener.wait_for("two")
            assert re.fullmatch(r"e/\w+\none\ne/\w+\ntwo\n", listener.output)
            second.interrupt()


def test_make_mirror(server: Server, debian_etcd: Program, tmp_path: Path) -> None:
    """What is there, then what comes: to an etcd, and only the prefix."""
    with (
        Server(debian_etcd, tmp_path / "mirror") as mirror,
        Client(mirror.start().port) as copy,
        Client(server.port) as client,
    ):
        for number in range(50):
            client.put(b"m/%02d" % number, b"before")
        client.put(b"other", b"v")
        flags = ("--prefix", "m/", "--dest-prefix", "copy/", f"127.0.0.1:{mirror.port}")
        with Running(server, "make-mirror", *flags) as running:
            wanted = {b"copy/%02d" % number: b"before" for number in range(50)}
            wait_for_copy(copy, wanted, running)
            for number in range(10):
                client.put(b"m/%02d" % number, b"after")
                wanted[b"copy/%02d" % number] = b"after"
            client.delete(b"m/4", b"m/5")
            wanted = {key: value for key, value in wanted.items() if not key.startswith(b"copy/4")}
            client.txn(success=[{"request_put": {"key": b"m/t%d" % at}} for at in range(5)])
            wanted |= {b"copy/t%d" % at: b"" for at in range(5)}
            wait_for_copy(copy, wanted, running)
            running.interrupt()


def wait_for_copy(copy: Client, wanted: dict[bytes, bytes], running: Running) -> None:
    """Return once the mirror holds just that."""
    end = time.monotonic() + WAIT_SECONDS
    while (found := {kv["key"]: kv.get("value", b"") for kv in copy.all()}) != wanted:
        assert running.process.poll() is None, running.output
        assert time.monotonic() < end, f"{len(found)} pairs, {len(wanted)} wanted"
        time.sleep(0.05)
