"""core/sockets: what is listened on, and why not."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from quorate.core.errors import Fatal
from quorate.core.sockets import (
    close_listeners,
    open_listener,
    open_listeners,
    raise_descriptor_limit,
)


def connects(address: object, family: socket.AddressFamily = socket.AF_INET) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        return client.connect_ex(address) == 0  # type: ignore[arg-type]


def test_listeners_take_connections_and_do_not_block() -> None:
    listener = open_listener("http://127.0.0.1:0")
    assert connects(listener.getsockname())
    listener.accept()[0].close()
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not os.get_inheritable(listener.fileno())
    close_listeners([listener])


def test_localhost_is_ipv4_as_with_go() -> None:
    listener = open_listener("http://localhost:0")
    assert listener.family == socket.AF_INET
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


@pytest.mark.parametrize("url", ["http://[::1]:0", "http://[::]:0"])
def test_ipv6(url: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    listener = open_listener(url)
    assert listener.family == socket.AF_INET6
    listener.close()


def test_a_busy_port_is_one_clear_line_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            free = probe.getsockname()[1]
        urls = [f"http://127.0.0.1:{free}", f"http://127.0.0.1:{port}"]
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(Fatal) as caught:
            open_listeners(urls)
        assert str(caught.value) == f"listen tcp 127.0.0.1:{port}: bind: address already in use"
        assert len(os.listdir("/proc/self/fd")) == before
        assert not connects(("127.0.0.1", free))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://no-such-host.invalid:1", r"listen tcp no-such-host\.invalid:1: .+"),
        ("http://203.0.113.7:0", r"listen tcp 203\.0\.113\.7:0: bind: cannot assign"),
        ("http://127.0.0.1:99999", r"listen tcp 127\.0\.0\.1:99999: .+"),
        ("unix:///no/such/folder/socket", r"listen unix /no/such/folder/socket: bind: no such"),
        ("unix://" + "/long" * 40, r"listen unix .*: bind: .*path too long"),
    ],
)
def test_an_address_that_cannot_be_had(url: str, reason: str) -> None:
    with pytest.raises(Fatal, match=reason):
        open_listener(url)


def test_a_unix_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    open_listener(f"unix://{path}").close()
    assert path.exists()
    assert not connects(str(path), socket.AF_UNIX)
    listener = open_listener(f"unix://{path}")
    assert connects(str(path), socket.AF_UNIX)
    listener.close()


def test_a_unix_socket_in_use_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = open_listener(f"unix://{path}")
    with pytest.raises(Fatal, match="address already in use"):
        open_listener(f"unix://{path}")
    assert connects(str(path), socket.AF_UNIX)
    listener.close()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(Fatal, match="address already in use"):
        open_listener(f"unix://{path}")
    assert path.read_text() == "data"


def test_the_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
