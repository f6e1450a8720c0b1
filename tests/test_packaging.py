"""What is distributed works without the checkout, and a checkout needs only its two commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
# What this test runs with; on PYTHONPATH the .pth file that leads to the checkout does not count.
DEPENDENCIES = sysconfig.get_path("purelib")
VERSION_LINES = ("etcd Version: 3.7.1", "Git SHA: ", "Go Version: ", "Go OS/Arch: linux/")


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """The command's stdout; its stderr is shown if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shows_the_version(text: str) -> bool:
    lines = text.splitlines()
    pairs = zip(lines, VERSION_LINES, strict=False)
    return len(lines) == 4 and all(line.startswith(start) for line, start in pairs)


def copy_sources(target: Path) -> Path:
    """A checkout without anything built, without the modules that cost minutes to compile."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "recordings", "results")
    for name in ("core", "frontends", "workers", "bench", "src", "tools"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
    for name in TOOLS:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target)
    return target


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it, not from the checkout."""
    source = copy_sources(tmp_path_factory.mktemp("checkout"))
    target = tmp_path_factory.mktemp("dist")
    python = "from setuptools import build_meta as b; import sys; print(b.build_sdist(sys.argv[1]))"
    run(sys.executable, "-c", python, target, cwd=source, QUORATE_MODULES="core._run")
    sdist = next(target.glob("*.tar.gz"))
    unpacked = tmp_path_factory.mktemp("unpacked")
    run("tar", "xf", sdist, cwd=unpacked)
    python = python.replace("build_sdist", "build_wheel")
    folder = next(unpacked.iterdir())
    run(sys.executable, "-c", python, target, cwd=folder, QUORATE_MODULES="core._run")
    return sdist, next(target.glob("*.whl"))


@pytest.mark.slow
def test_the_sdist_holds_files_not_links(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert {"src/quorate/core/_run.pyx", "src/quorate/core/_run.pxd", "setup.py"} <= names
    assert "LICENSE" in names
    assert {"src/quorate/core/config.py", "src/quorate/workers/__init__.py"} <= names
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert not [name for name in names if name.startswith(("core/", "bench/", "tests/"))]
    assert not [name for name in names if name.endswith((".so", ".c", ".pyc"))]


@pytest.mark.slow
def test_the_wheel_holds_modules_and_types(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"quorate"}
    for name in ("py.typed", "core/_run.pxd", "core/_run.pyi", "core/config.py", "api/__init__.py"):
        assert f"quorate/{name}" in names
    assert [name for name in names if name.startswith("quorate/core/_run.cpython")]
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


@pytest.mark.slow
def test_a_wheel_from_a_checkout_leaves_the_benchmark_out(tmp_path: Path) -> None:
    checkout, target = tmp_path / "checkout", tmp_path / "dist"
    target.mkdir()
    copy_sources(checkout)
    (checkout / "bench" / "_tiny.pyx").write_text("x = 1\n")
    python = "from setuptools import build_meta as b; import sys; b.build_wheel(sys.argv[1])"
    modules = "core._run bench._tiny"
    run(sys.executable, "-c", python, target, cwd=checkout, QUORATE_MODULES=modules)
    with zipfile.ZipFile(next(target.glob("*.whl"))) as archive:
        assert not [name for name in archive.namelist() if "_tiny" in name or "bench" in name]
        assert [name for name in archive.namelist() if name.endswith(".so")]


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    place, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    venv.create(place, symlinks=True, with_pip=False)
    pip = (sys.executable, "-m", "pip", "--python", place / "bin" / "python")
    run(*pip, "install", "-q", "--no-deps", distributions[1], cwd=empty)
    python, server = place / "bin" / "python", place / "bin" / "quorate"
    where = "import quorate.core._run as r; print(r.__file__)"
    found = run(python, "-c", where, cwd=empty, PYTHONPATH=DEPENDENCIES)
    assert found.startswith(str(place))
    assert shows_the_version(run(server, "--version", cwd=empty, PYTHONPATH=DEPENDENCIES))


def test_both_commands_of_the_checkout_are_the_same_server() -> None:
    direct = run(Path(sys.executable).parent / "quorate", "--version", cwd=ROOT)
    module = run(sys.executable, "-m", "quorate", "--version", cwd=ROOT)
    assert shows_the_version(direct)
    assert direct == module


def test_exit_codes_and_streams() -> None:
    server = Path(sys.executable).parent / "quorate"
    for arguments, code in ((["--bogus"], 2), (["start"], 2), (["--election-timeout=1"], 1)):
        done = subprocess.run([server, *arguments], capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr
    assert done.stderr.count("\n") == 1
    shown = run(server, "--help", cwd=ROOT)
    assert shown.startswith("Usage:")


@pytest.mark.parametrize("module", ["quorate", "bench", "bench.readme"])
def test_every_program_explains_itself(module: str) -> None:
    shown = run(sys.executable, "-m", module, "--help", cwd=ROOT)
    assert shown.lower().startswith("usage:")
    assert "--help" in shown


def test_the_generator_explains_itself(tmp_path: Path) -> None:
    shown = run(sys.executable, ROOT / "tools" / "generate-api", "--help", cwd=tmp_path)
    assert shown.startswith("usage: generate-api")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_fresh_start_costs_less_than_a_third_of_a_second(tmp_path: Path) -> None:
    """With a stamp that fits, tools/run starts no process of its own but the server."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    copy_sources(checkout)
    for pyx in [path for path in checkout.rglob("*.pyx") if path.is_file()]:
        pyx.with_suffix(".cpython-x.so").touch()
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "quorate"):
        (programs / name).write_text('#!/bin/sh\necho "$$ $*"\n')
        (programs / name).chmod(0o755)
    stamp = 'cd "$1"; source tools/provision; list_inputs; echo "$wanted" > .venv/.quorate-run'
    run("bash", "-c", stamp, "stamp", checkout, cwd=tmp_path)
    assert min(start_seconds(checkout) for _ in range(3)) < 0.3


def start_seconds(checkout: Path) -> float:
    """How long tools/run took until the server it became had ended."""
    started = time.monotonic()
    with subprocess.Popen(
        [checkout / "tools" / "run", "--name", "a b"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=checkout.parent,
    ) as process:
        shown, _ = process.communicate(timeout=20)
    assert shown == f"{process.pid} --name a b\n"
    return time.monotonic() - started


@pytest.mark.parametrize(
    "change",
    [
        "touch core/_run.pyx",
        "touch core/_new.pyx",
        "rm core/_run.*.so",
        "touch setup.py",
        "rm core/_run.pyx",
        "touch -d '3 hours ago' core/_old.pxd",
        "rm .venv/bin/quorate",
    ],
)
def test_a_change_makes_the_stamp_stale(tmp_path: Path, change: str) -> None:
    for folder in ("core", "tools", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "provision", tmp_path / "tools")
    for name in ("core/_run.pyx", "core/_run.pxd", "core/_run.x.so", "setup.py", "pyproject.toml"):
        (tmp_path / name).touch()
    for name in ("python", "quorate"):
        (tmp_path / ".venv/bin" / name).touch(mode=0o755)
    script = (
        'source tools/provision; list_inputs; echo "$wanted" > .venv/.quorate-run; '
        "is_fresh run && echo fresh; touch -d '1 hour ago' .venv/.quorate-run; "
        "find core setup.py pyproject.toml tools -type f -exec touch -d '2 hours ago' {} +; "
        f"is_fresh run && echo fresh; {change}; is_fresh run || echo stale"
    )
    assert run("bash", "-c", script, cwd=tmp_path).split() == ["fresh", "fresh", "stale"]
