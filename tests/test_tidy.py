"""The style is a test: layers, purity, sizes, docstrings, banned words, dead modules.

Every check is a function of a file's name and text, so the last test can show each something bad.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("core", "frontends", "workers", "bench", "tests", "tools", "src/quorate")
CODE = (".py", ".pyx", ".pxd", ".pyi")
# Not ours to shape: generated messages and what tests feed to programs of other languages.
FOREIGN = ("src/quorate/api/", "tests/recordings/")
LINKS = ("src/quorate/core/", "src/quorate/frontends/", "src/quorate/workers/")

LINES_MAX = 800
COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 70
# The one file whose size is argued for: the pure consensus machine in one piece.
LONG_FILES = {"core/raft.py": 1000}

SHARED_CORE = frozenset(
    {
        "admincalls",
        "_ring",
        "_eventring",
        "_record",
        "_bytes",
        "_protobuf",
        "_request",
        "_leaserequest",
        "_errors",
        "errors",
        "limits",
        "version",
    }
)
# What reads and writes files, and knows no server.
FILES_CORE = frozenset(
    {
        *("_bolt", "_boltscan", "_boltwriter", "_disk", "_run", "_wal", "_walread", "snapfile"),
        *("_mapping", "_mvcc", "_restore", "_storeview", "apply", "backend", "members", "messages"),
        *("config", "errors", "flags", "limits", "logs", "version"),
    }
)
# What each folder may import of quorate: whole folders, and single modules of core.
MAY_IMPORT: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "core": (frozenset({"core"}), frozenset()),
    "frontends": (frozenset({"frontends", "api"}), SHARED_CORE),
    "workers": (frozenset({"workers", "frontends", "api"}), SHARED_CORE | {"config", "logs"}),
    "src": (frozenset({"api", "client", "ctl"}), frozenset({"errors", "config"})),
    "ctl": (frozenset({"ctl"}), FILES_CORE),
    "bench": (frozenset(), frozenset()),
}
# The program's entry brings the core and the workers together; neither knows the other.
ENTRIES = {
    "src/quorate/__main__.py": frozenset({"core", "workers"}),
    # What workers ask in Python is asked in etcd's own messages.
    "core/admin.py": frozenset({"api"}),
}

PURE_NAMES = ("raft", "raftlog", "readindex", "quorum", "progress", "confchange", "apply")
PURE_CYTHON_NAMES = ("_mvcc", "_keytree", "_lessor", "_apply")
PURE = frozenset(
    [f"core/{name}.py" for name in PURE_NAMES]
    + [f"core/{name}{end}" for name in PURE_CYTHON_NAMES for end in (".pyx", ".pxd")]
)
WORLD = frozenset(
    {"asyncio", "datetime", "os", "random", "select", "socket", "threading", "time", "trio"}
)

# What may not be written, where, and what to write instead.
BANNED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (r"\b(FIXME|TODO|XXX|HACK)\b", FOLDERS, "do it now, or write it into an issue"),
    (
        r"(?<![\w.])print\(",
        ("core", "frontends", "workers", "src"),
        "core.logs, or sys.stdout.write",
    ),
    (r"\btime\.time\(", FOLDERS, "a clock that is an argument, or time.monotonic"),
    (r"^\s*except\s*:", FOLDERS, "the exceptions that are meant"),
    (r"\bunittest\.mock\b", ("tests",), "a fake with the same contract"),
    (r"\btime\.sleep\(", ("core", "frontends", "workers", "src"), "trio.sleep, or a deadline"),
)
# No file may know one machine, one registry or how it came to be written.
PRIVATE = re.compile(r"/work/(?:main|shared|notes)|/root/|pypi\.org|pythonhosted|deb\.debian\.org")

IMPORT_FROM = re.compile(r"^[ \t]*from\s+([\w.]+)\s+c?import\s+(\([^)]*\)|[^\n#]+)", re.M)
IMPORT = re.compile(r"^[ \t]*c?import\s+([\w., ]+)", re.M)
PYX_FUNCTION = re.compile(
    r"^([ \t]*)(?:async[ \t]+)?(?:def|cpdef|cdef)\b(?!\s+(?:class|extern))[^=\n]*\("
)


def files() -> Iterator[tuple[str, str]]:
    """Name, relative to the root, and text of every file of code that is ours."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    for path in [*paths, ROOT / "setup.py"]:
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in CODE and path.is_file() and not name.startswith((*FOREIGN, *LINKS)):
            yield name, path.read_text(encoding="utf-8")


def imported(name: str, text: str) -> set[str]:
    """Every module that the file imports or cimports, as full dotted names."""
    package = name.removeprefix("src/").rpartition("/")[0].replace("/", ".")
    if not package.startswith(("bench", "tests", "tools", "quorate")):
        package = f"quorate.{package}"
    if not name.endswith(".py"):
        text = re.sub(r'"""[\s\S]*?"""', '""', text)
    found = set()
    for module, names in IMPORT_FROM.findall(text):
        if module.startswith("."):
            up = len(module) - len(module.lstrip("."))
            base = package.split(".")[: len(package.split(".")) - up + 1]
            module = ".".join([*base, module.lstrip(".")]).rstrip(".")
        found.add(module)
        for part in names.strip("() \n\\").replace("\n", " ").split(","):
            if part.strip():
                found.add(f"{module}.{part.split()[0]}")
    for names in IMPORT.findall(text):
        found.update(part.split()[0] for part in names.split(",") if part.strip())
    return found


def breaks_layers(name: str, text: str) -> Iterator[str]:
    folder = "ctl" if name.startswith("src/quorate/ctl/") else name.partition("/")[0]
    if folder not in MAY_IMPORT:
        return
    folders, modules = MAY_IMPORT[folder]
    for module in sorted(imported(name, text)):
        parts = module.split(".")
        if parts[0] != "quorate" or len(parts) < 3 or parts[1] in ENTRIES.get(name, ()):
            continue
        if parts[1] not in folders and not (parts[1] == "core" and parts[2] in modules):
            yield f"{name} imports {module}"


def breaks_purity(name: str, text: str) -> Iterator[str]:
    if name in PURE:
        for module in sorted(imported(name, text)):
            if module.split(".")[0] in WORLD:
                yield f"{name} imports {module}"


def breaks_sizes(name: str, text: str) -> Iterator[str]:
    lines = text.splitlines()
    if len(lines) > LONG_FILES.get(name, LINES_MAX):
        yield f"{name} has {len(lines)} lines"
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS_MAX:
            yield f"{name}:{number} has {len(line)} columns"
    for number, length in functions(name, text):
        if length > FUNCTION_LINES_MAX:
            yield f"{name}:{number} has a function of {length} lines"


def functions(name: str, text: str) -> Iterator[tuple[int, int]]:
    """Line and length of every function."""
    if name.endswith((".py", ".pyi")):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1
        return
    lines = text.splitlines()
    for start, line in enumerate(lines):
        if found := PYX_FUNCTION.match(line):
            yield start + 1, cython_length(lines, start, len(found[1]))


def cython_length(lines: list[str], start: int, indent: int) -> int:
    """The lines of a Cython function: all that follow and are indented deeper."""
    last = start
    for place in range(start + 1, len(lines)):
        line = lines[place]
        if line.strip() and len(line) - len(line.lstrip()) <= indent and line.strip()[0] != ")":
            break
        if line.strip():
            last = place
    return last - start + 1


def lacks_docstring(name: str, text: str) -> Iterator[str]:
    if name.endswith(".pyi"):
        return
    code = re.sub(r"\A(?:[ \t]*(?:#[^\n]*)?\n)*", "", text)
    if not code.startswith(('"""', 'r"""')):
        yield f"{name} has no docstring"


def has_banned_words(name: str, text: str) -> Iterator[str]:
    if name == "tests/test_tidy.py":
        return
    for pattern, folders, instead in BANNED:
        if name.startswith(tuple(f"{folder}/" for folder in folders)):
            for found in re.finditer(pattern, text, re.M):
                line = text.count("\n", 0, found.start()) + 1
                yield f"{name}:{line} has {found[0].strip()!r}; instead: {instead}"


CHECKS = (breaks_layers, breaks_purity, breaks_sizes, lacks_docstring, has_banned_words)


@pytest.mark.parametrize("check", CHECKS)
def test_every_file_passes(check: Callable[[str, str], Iterator[str]]) -> None:
    bad = [complaint for name, text in files() for complaint in check(name, text)]
    assert not bad, "\n" + "\n".join(bad)


def test_every_pyx_has_a_pxd_and_a_pyi() -> None:
    names = {name for name, _ in files()}
    modules = [name.removesuffix(".pyx") for name in names if name.endswith(".pyx")]
    missing = [m + s for m in sorted(modules) for s in (".pxd", ".pyi") if m + s not in names]
    assert not missing


def test_no_module_is_dead() -> None:
    used = {module for name, text in files() for module in imported(name, text)}
    dead = []
    for name, _ in files():
        module, _, suffix = name.removeprefix("src/").rpartition(".")
        stem = module.rpartition("/")[2]
        special = stem.startswith(("__", "test_", "conftest")) or suffix == "pyi"
        if special or name == "setup.py" or name.startswith("tools/"):
            continue
        dotted = module.replace("/", ".")
        if dotted not in used and f"quorate.{dotted}" not in used:
            dead.append(name)
    assert not dead


def test_core_imports_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for name, text in files():
        if name.startswith("core/") and name.endswith((".py", ".pyx", ".pxd")):
            module = "quorate." + name.rpartition(".")[0].replace("/", ".")
            graph.setdefault(module, set()).update(imported(name, text) - {module})
    assert find_cycle(graph) == []


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle of imports, or nothing."""
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done or module not in graph:
            return []
        path.append(module)
        for other in sorted(graph[module]):
            if cycle := visit(other):
                return cycle
        path.pop()
        done.add(module)
        return []

    return next((cycle for module in sorted(graph) if (cycle := visit(module))), [])


def test_no_file_knows_one_machine_or_registry() -> None:
    bad = []
    skipped = (".venv/", "build/", "dist/", ".git/", "tests/recordings/", *LINKS)
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(skipped) or "/." in f"/{name}".replace("/.ci/", "/") or path.is_dir():
            continue
        if name == "tests/test_tidy.py" or path.suffix in (".so", ".gz", ".png", ".svg", ".pyc"):
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        bad += [f"{name} has {found}" for found in PRIVATE.findall(text)]
    assert not bad


LONG_BODY = "    x = 1\n" * FUNCTION_LINES_MAX
BAD = (
    (breaks_layers, "core/_wal.pyx", "from quorate.frontends._http2 cimport Session"),
    (breaks_layers, "frontends/_kv.pyx", "from quorate.core cimport _mvcc"),
    (breaks_layers, "frontends/_kv.pyx", "from quorate.core import (\n    errors,\n    node,\n)"),
    (breaks_layers, "core/main.py", "from quorate.workers.worker import start"),
    (breaks_layers, "workers/worker.py", "import quorate.core.node"),
    (breaks_layers, "src/quorate/client/channel.py", "from quorate.workers import worker"),
    (breaks_layers, "src/quorate/ctl/status.py", "from quorate.core.node import Node"),
    (breaks_layers, "bench/runner.py", "from quorate.core.config import Config"),
    (breaks_purity, "core/raft.py", "import time"),
    (breaks_purity, "core/_mvcc.pyx", "from os import urandom"),
    (breaks_sizes, "core/a.py", "\n" * (LINES_MAX + 1)),
    (breaks_sizes, "core/a.py", "#" * (COLUMNS_MAX + 1)),
    (breaks_sizes, "core/a.py", f"def long():\n{LONG_BODY}"),
    (breaks_sizes, "core/_a.pyx", f"cdef int long(\n    int a,\n) except -1 nogil:\n{LONG_BODY}"),
    (lacks_docstring, "core/a.py", "import os"),
    (lacks_docstring, "core/_a.pxd", "# cython: language_level=3\ncdef int x"),
    (has_banned_words, "core/a.py", "# TODO: later"),
    (has_banned_words, "core/a.py", "    print(1)"),
    (has_banned_words, "tests/a.py", "now = time.time()"),
    (has_banned_words, "core/a.py", "try:\n    pass\nexcept:\n    pass"),
)
GOOD = (
    (breaks_layers, "frontends/_kv.pyx", "from quorate.core._ring cimport Ring\nimport h11"),
    (breaks_layers, "src/quorate/__main__.py", "from quorate.workers.worker import start"),
    (
        breaks_sizes,
        "core/_a.pyx",
        f"cdef int a()\ncdef int b() noexcept\n\ncdef class C:\n{LONG_BODY}",
    ),
    (breaks_sizes, "core/_a.pyx", "    cdef Store store = Store()\n" + LONG_BODY),
    (lacks_docstring, "core/_a.pyx", '# cython: language_level=3\n"""Purpose."""'),
    (has_banned_words, "core/a.py", "self.print(1)\nblueprint(2)"),
)


@pytest.mark.parametrize(("check", "name", "text"), BAD)
def test_the_checks_catch(check: Callable[..., Iterator[str]], name: str, text: str) -> None:
    assert list(check(name, text))


@pytest.mark.parametrize(("check", "name", "text"), GOOD)
def test_the_checks_let_pass(check: Callable[..., Iterator[str]], name: str, text: str) -> None:
    assert not list(check(name, text))


def test_a_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_private_words_are_found() -> None:
    assert PRIVATE.search("see /work/" + "shared/design.md")
