"""The pages are true: every name in them exists, every link leads somewhere, commands do what they
say, and the README's table is what the benchmark measured.

Rules for pages:
1. `path:name` is a name that this file defines, `path` a file or folder of the repository.
2. `Class.method` or `module.name` is defined somewhere in our code; a name with an underscore
   occurs in it.
3. A block `sh` must be a script that bash can read, of commands that exist. `sh run` is run in the
   root, and a `text` block right after it is its output. `sh server` is run until the page is over
   or another one takes its place and its directory. ETCD_* and ETCDCTL_* lead both to a free port
   and a directory that is empty at first.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from bench import goals, readme

from tests.needs import need
from tests.server import READY_SECONDS, Program, Server

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "bench" / "README.md",
    *sorted((ROOT / "changes").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
CODE_FOLDERS = ("core", "frontends", "workers", "bench", "tests", "tools", "src/quorate")
CODE_SUFFIXES = (".py", ".pyx", ".pxd", ".pyi", ".c", "")
# Words of other projects; a name with a dot is theirs if its first part is.
FOREIGN = frozenset({"trio", "epoll", "gc", "os", "grpc", "multiprocessing"}) | frozenset(
    {"MADV_DOFORK", "O_DIRECT", "O_DSYNC", "data_received", "io_uring"}
)
# Files that a user or a tool makes, and ends of names.
MADE = frozenset({"default.etcd", ".venv", ".hypothesis", "bench/results", "callgrind.out"})
SECONDS_MAX = 20

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
TICKED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"\.?[\w-]+(?:/[\w.-]+)*/?|[\w-]+(?:/[\w-]+)*\.\w+")
NAMED = re.compile(r"([\w./-]+\.\w+):([A-Za-z_][\w.]*)")
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
WORD = re.compile(r"[A-Za-z]\w*_\w+")
FILE_SUFFIXES = (".py", ".pyx", ".pxd", ".pyi", ".md", ".txt", ".toml", ".c")
CYTHON_CLASS = re.compile(r"^(?:cdef |cpdef )?(?:class|struct|enum|union) (\w+)", re.M)
CYTHON_FUNCTION = re.compile(
    r"^[ \t]*(?:async )?(?:def|cpdef|cdef)\b(?! (?:class|struct|enum|extern))[^=(\n]*?\b(\w+)\(",
    re.M,
)
CYTHON_NAME = re.compile(r"^(?:cdef [\w ]+ )?([A-Z][A-Z_0-9]+) *=", re.M)


# --- what the code defines


@cache
def code() -> dict[str, str]:
    """Every text file of code, by its name relative to the root."""
    found = {}
    for folder in CODE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and path.suffix in CODE_SUFFIXES and "__pycache__" not in name:
                found[name] = path.read_text(encoding="utf-8")
    return found


@cache
def defined(name: str) -> frozenset[str]:
    """What a file of code defines: names, and `Class.member`."""
    text = code()[name]
    if name.endswith((".pyx", ".pxd")):
        return frozenset(cython_names(text))
    try:
        return frozenset(python_names(ast.parse(text).body, ""))
    except SyntaxError:
        return frozenset()


def python_names(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield node.name
            yield from python_names(node.body, f"{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + each.id for each in targets if isinstance(each, ast.Name))


def cython_names(text: str) -> Iterator[str]:
    """Classes, structs and functions; a member belongs to the last class that began before it."""
    yield from CYTHON_NAME.findall(text)
    owner = ""
    for line in re.sub(r'"""[\s\S]*?"""', "", text).splitlines():
        if found := CYTHON_CLASS.match(line):
            owner = found[1]
            yield owner
        elif found := CYTHON_FUNCTION.match(line):
            inside = line[0] in " \t"
            owner = owner if inside else ""
            yield f"{owner}.{found[1]}" if inside and owner else found[1]


@cache
def all_names() -> frozenset[str]:
    """Every `Class.member`, and every name as `module.name`."""
    names = set()
    for file in code():
        stem = Path(file).stem
        for name in defined(file):
            names |= {name, f"{stem}.{name}"}
    return frozenset(names)


@cache
def all_words() -> frozenset[str]:
    """Every word of the code, this file's apart."""
    texts = [text for name, text in code().items() if name != "tests/test_docs.py"]
    texts.append((ROOT / "setup.py").read_text(encoding="utf-8"))
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


@cache
def code_ends() -> frozenset[str]:
    """The last parts of the names of all files of code, each with its slash."""
    return frozenset(f"/{Path(name).name}" for name in code())


# --- the checks


def wrong_names(text: str) -> Iterator[str]:
    """The backticked names that nothing in the repository has."""
    for ticked in TICKED.findall(FENCE.sub("", text)):
        if not is_true(ticked):
            yield ticked


def is_true(ticked: str) -> bool:
    """Whether a backticked piece of a page names something, or claims nothing."""
    if found := NAMED.fullmatch(ticked):
        return found[1] in code() and found[2] in defined(found[1])
    if ticked.endswith(FILE_SUFFIXES) and not re.search(r"^\.|[*<]", ticked):
        return (ROOT / ticked).exists() or f"/{ticked}" in code_ends()
    first = ticked.split("/")[0]
    if "/" in ticked and PATH.fullmatch(ticked) and (ROOT / first).exists() and first:
        return (ROOT / ticked).exists() or ticked.rstrip("/") in MADE
    if DOTTED.fullmatch(ticked):
        return is_true_dotted(ticked)
    if WORD.fullmatch(ticked):
        return ticked in all_words() or ticked in FOREIGN
    return True


def is_true_dotted(ticked: str) -> bool:
    parts = ticked.split(".")
    if parts[0] in FOREIGN or ticked in MADE:
        return True
    if parts[0] in ("quorate", "bench", "tests"):
        path = "/".join(parts).replace("quorate/", "src/quorate/")
        return any((ROOT / (path + suffix)).exists() for suffix in ("", ".py", ".pyx"))
    return ".".join(parts[-2:]) in all_names()


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Links that lead nowhere: to a missing file, or to a heading that is not there."""
    anchors = {anchor(line) for line in FENCE.sub("", text).splitlines() if line[:1] == "#"}
    for link in LINK.findall(FENCE.sub("", text)):
        target, _, heading = link.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        if not (page.parent / target).exists() or (not target and heading not in anchors):
            yield link


def anchor(heading: str) -> str:
    """GitHub's name of a heading."""
    text = heading.lstrip("#").strip().lower()
    return re.sub(r"[^\w -]", "", text).replace(" ", "-")


def bad_commands(script: str) -> Iterator[str]:
    """What of a script bash cannot read, or what it starts of ours that is not there."""
    read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=10)
    if read.returncode:
        yield read.stderr
    for word in re.findall(r"(?<![\w/.-])(?:\./)?tools/[\w.-]+", script):
        if not os.access(ROOT / word, os.X_OK):
            yield word
    for path in re.findall(r"(?<![\w/])tests/[\w./]+", script):
        if not (ROOT / path).exists():
            yield path
    for module in re.findall(r"-m (bench[\w.]*|tests[\w.]*|quorate)", script):
        if not is_true_dotted(module):
            yield module
    for module in re.findall(r"tools/build +([\w.]+)", script):
        if not (ROOT / (module.replace(".", "/") + ".pyx")).exists():
            yield module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [*wrong_names(text), *broken_links(page, text)]
    for kind, script in FENCE.findall(text):
        wrong += bad_commands(script) if kind.split()[:1] == ["sh"] else []
    assert not wrong


def test_the_checks_catch() -> None:
    for bad in (
        "core/_wal.pyx:Wal.begone",
        "core/gone.py:run",
        "core/gone.py",
        "docs/gone/",
        "Store.begone",
        "limits.GONE_MAX",
        "BEGONE_MAX",
        "bench.gone",
    ):
        assert list(wrong_names(f"see `{bad}`.")) == [bad]
    for good in (
        "core/_wal.pyx:Wal.sync",
        "core/_record.pxd",
        "Store.put",
        "SEND_BYTES_MAX",
        "a b",
    ):
        assert not list(wrong_names(f"see `{good}`."))
    page = ROOT / "README.md"
    assert list(broken_links(page, "[a](docs/gone.md) [b](#gone) [c](docs) [d](#here)\n# Here"))
    for script in (
        "if",
        "tools/gone",
        "x tests/gone.py",
        "python -m bench.gone",
        "tools/build a.b",
    ):
        assert list(bad_commands(script))


def test_the_architecture_follows_the_put_through_thirteen_stations() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    stations = re.findall(r"^\| (\d+) \| [^|]+ \| (.+) \|$", text, re.M)
    assert [int(number) for number, _ in stations] == list(range(1, 14))
    assert all("`" in where for _, where in stations)


# --- the README's table


def test_the_readme_shows_what_was_measured() -> None:
    text = readme.README.read_text(encoding="utf-8")
    found = readme.REGION.search(text)
    assert found
    named = [] if found[1] == readme.NOTHING else found[1].split()
    paths = [readme.RESULTS / name for name in named]
    assert all(path.exists() for path in paths), "the results that the README names must be there"
    assert readme.fill(text, paths) == text, "run `python -m bench.readme`"


def whole_results() -> dict[str, object]:
    """What a full run would write, with round figures."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for target, value in (("quorate", 30.0), ("etcd 3.4.23", 10.0)):
        for _, row, metric in readme.LINES:
            figures.setdefault(target, {}).setdefault(row, {})[metric] = value
    return {
        "machine": {"processor": "a processor", "cores": "2", "file system": "ext4"},
        "settings": {"scale": 1.0},
        "targets": [
            {"name": "quorate", "is_quorate": True},
            {"name": "etcd 3.4.23", "is_quorate": False},
        ],
        "rounds": {
            target: {row: [metrics] * 3 for row, metrics in rows.items()}
            for target, rows in figures.items()
        },
        "medians": figures,
    }


def test_the_table_is_made_of_the_newest_results_of_each_row(tmp_path: Path) -> None:
    whole = whole_results()
    rounds, medians = whole["rounds"], whole["medians"]
    assert isinstance(rounds, dict)
    assert isinstance(medians, dict)
    row = "put 10x10, one key"
    part = {
        **whole,
        "rounds": {name: {row: rows[row]} for name, rows in rounds.items()},
        "medians": {name: {row: {"per_second": 7.0}} for name in medians},
    }
    once = {name: {row: rows[row][:1]} for name, rows in rounds.items()}
    unused = [
        {**part, "settings": {"scale": 0.05}},
        {**part, "targets": [{"name": "quorate", "is_quorate": True}]},
        {**part, "rounds": once},
        {**part, "machine": {"processor": "another", "cores": "2", "file system": "ext4"}},
        whole,
    ]
    for number, document in enumerate([part, whole, *unused], 1):
        if document is not unused[3]:
            name = f"203001{32 - number:02}-000000.json"
            (tmp_path / name).write_text(json.dumps(document))
    (tmp_path / "20291231-000000.json").write_text(json.dumps(unused[3]))
    paths = readme.newest(tmp_path)
    assert [path.name for path in paths] == ["20300131-000000.json", "20300130-000000.json"]
    text = readme.fill(
        "before\n<!-- measured: none -->\nold\n<!-- end of measured -->\nafter", paths
    )
    head = "<!-- measured: 20300131-000000.json 20300130-000000.json -->\n|  | quorate |"
    assert text.startswith("before\n" + head)
    assert "| put, 10x10 | 7 /s | 7 /s | 1.00 |\n" in text
    assert "| put, 100x10 | 30 /s | 10 /s | 3.00 |\n" in text
    assert "Medians on a processor, 2 cores, ext4" in text
    assert text.endswith("<!-- end of measured -->\nafter")
    assert readme.fill(text, paths) == text
    with pytest.raises(ValueError, match="one `measured` region"):
        readme.fill("no region", paths)


def test_the_table_has_rows_that_the_benchmark_makes() -> None:
    known = {(goal.row, goal.metric) for goal in goals.GOALS}
    others = {("restart", "seconds")}
    assert {(row, metric) for _, row, metric in readme.LINES} <= known | others


# --- commands


def scripts(text: str) -> list[tuple[str, str, str | None]]:
    """The runnable blocks of a page: kind, script, and the output that it shows."""
    found = []
    for fence in FENCE.finditer(text):
        if fence[1] in ("sh run", "sh server"):
            shown = FENCE.match(text, fence.end() + 1)
            output = shown[2] if shown and shown[1] == "text" else None
            found.append((fence[1].split()[1], fence[2], output))
    return found


def server_program(script: str) -> Program:
    """A real etcd, or `./tools/run` (or what it becomes, if it would have to build first)."""
    command = script.strip()
    if command == "etcd":
        return Program("etcd", Path(need("etcd")))
    assert command == "./tools/run", "a server block starts a server as users do"
    fresh = "source tools/provision; is_fresh run"
    if subprocess.run(["bash", "-c", fresh], cwd=ROOT, timeout=10).returncode == 0:
        return Program("quorate", ROOT / "tools" / "run")
    return Program("quorate", ROOT / ".venv" / "bin" / "quorate")


class Documented(Server):
    """A server whose command is the page's, without any flag: the environment says where."""

    def command(self) -> list[str]:
        return [str(self.program.path)]

    def start(self, seconds: float = READY_SECONDS) -> Server:
        url = f"http://127.0.0.1:{self.port}"
        self.environment["ETCD_LISTEN_CLIENT_URLS"] = url
        self.environment["ETCD_ADVERTISE_CLIENT_URLS"] = url
        self.environment["ETCD_DATA_DIR"] = str(self.data)
        self.environment["ETCD_LISTEN_PEER_URLS"] = f"http://127.0.0.1:{self.peer_port}"
        return super().start(seconds)


@pytest.mark.slow
@pytest.mark.compat
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if scripts(page.read_text(encoding="utf-8"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_commands_do_what_the_page_says(page: Path, tmp_path: Path) -> None:
    environment = dict(os.environ)
    server: Documented | None = None
    try:
        for kind, script, shown in scripts(page.read_text(encoding="utf-8")):
            if kind == "server":
                # The next one takes the place of the one before: its directory.
                if server is not None:
                    server.stop()
                server = Documented(server_program(script), tmp_path / "server")
                server.start()
                environment["ETCDCTL_ENDPOINTS"] = f"http://127.0.0.1:{server.port}"
                environment["ETCD_DATA_DIR"] = str(server.data)
                continue
            if "etcdctl" in script:
                need("etcdctl")
            done = subprocess.run(
                ["bash", "-eu", "-c", script],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS_MAX,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert shown is None or done.stdout == shown
        assert server is None or server.stop() == 0 or not server.program.is_quorate
    finally:
        if server is not None:
            server.close()


# --- the maps


@pytest.mark.parametrize("folder", ["core", "frontends", "workers"])
def test_the_map_of_a_folder_is_complete(folder: str) -> None:
    """The docstring of the folder names every module, and nothing that is gone."""
    listed = mapped(ast.get_docstring(ast.parse(code()[f"{folder}/__init__.py"])) or "")
    there = {Path(name).stem for name in code() if name.startswith(f"{folder}/")}
    assert listed == there - {"__init__"}


def mapped(docstring: str) -> set[str]:
    """The names that begin the indented lines, without the marks of what touches the world."""
    found = set()
    for line in re.findall(r"^ {4}(\S.*?)(?: {3,}|$)", docstring, re.M):
        found |= set(re.findall(r"\w+", line))
    return found
