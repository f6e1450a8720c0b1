"""What `--version` prints: etcd's four lines."""

from __future__ import annotations

import os
import sys

from quorate.core.version import SERVER_VERSION

# Go's names of machines.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def version_lines() -> str:
    """etcd's four lines; there is no Go here, so the third names the interpreter."""
    machine = os.uname().machine
    python = ".".join(str(number) for number in sys.version_info[:3])
    return (
        f"etcd Version: {SERVER_VERSION}\n"
        f"Git SHA: {git_sha()}\n"
        f"Go Version: none (Python {python})\n"
        f"Go OS/Arch: {sys.platform}/{ARCHITECTURES.get(machine, machine)}\n"
    )


def git_sha() -> str:
    """The commit of the checkout that this module runs from, or etcd's words for having none."""
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    git = os.path.join(root, ".git")
    head = first_line(os.path.join(git, "HEAD"))
    if head.startswith("ref: "):
        name = head.removeprefix("ref: ")
        head = first_line(os.path.join(git, name)) or packed_sha(git, name)
    return head[:9] or "Not provided"


def packed_sha(git: str, name: str) -> str:
    """The commit of a reference that git has packed, or nothing."""
    try:
        with open(os.path.join(git, "packed-refs"), encoding="utf-8") as file:
            return next((line.split()[0] for line in file if line.split()[1:] == [name]), "")
    except OSError:
        return ""


def first_line(path: str) -> str:
    """The first line of a small file, or nothing."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return ""
