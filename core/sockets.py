"""The listening sockets: opened once, by the core, and inherited by every worker.

So a worker's death loses no connection waiting to be accepted, and a busy port is one clear error.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
from collections.abc import Iterable

from quorate.core.errors import Fatal
from quorate.core.flags import host_and_port

# Connections that may wait to be accepted; the kernel cuts it to net.core.somaxconn.
BACKLOG = 4096
PORT_MAX = 65535


def raise_descriptor_limit() -> None:
    """Let this process, and those it forks, open as many files as the hard limit allows.

    Every client takes a descriptor, and the usual soft limit of 1,024 is for programs that call
    select(), which this one never does. Go's runtime does the same, so etcd's users rely on it. A
    kernel that refuses leaves the limit as it was.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_listeners(urls: Iterable[str]) -> list[socket.socket]:
    """Listen on every URL, `http://host:port` or `unix://path`. Raises Fatal."""
    listeners: list[socket.socket] = []
    try:
        for url in urls:
            listeners.append(open_listener(url))
    except Fatal:
        close_listeners(listeners)
        raise
    return listeners


def open_listener(url: str) -> socket.socket:
    """Listen on one URL. Raises Fatal with one line that names the address and the reason."""
    scheme, _, place = url.partition("://")
    if scheme == "unix":
        return bind(socket.AF_UNIX, place, place)
    host, port = host_and_port(url)
    try:
        family, address = resolve(host, port)
    except (OSError, ValueError) as error:
        raise Fatal(f"listen tcp {place}: {error}") from error
    return bind(family, address, place)


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, object]:
    """The address to bind; of a name that has both kinds, the IPv4 one, as Go's net.Listen."""
    if port > PORT_MAX:
        raise ValueError(f"address {port}: invalid port")  # the C library would cut it
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return found[0][0], found[0][4]


def bind(family: socket.AddressFamily, address: object, place: str) -> socket.socket:
    """One non-blocking listening socket. Raises Fatal."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            remove_stale(str(address))
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it: replies leave at once, one send per wake-up.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        kind = "unix" if family == socket.AF_UNIX else "tcp"
        reason = (error.strerror or str(error)).lower()
        raise Fatal(f"listen {kind} {place}: bind: {reason}") from error
    return listener


def remove_stale(path: str) -> None:
    """Remove the socket that a server which is gone left behind; one that answers stays."""
    if not is_socket(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def is_socket(path: str) -> bool:
    """Whether there is a socket; any other file is somebody's data and stays."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def close_listeners(listeners: Iterable[socket.socket]) -> None:
    """Stop listening in this process."""
    for listener in listeners:
        listener.close()
