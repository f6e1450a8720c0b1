"""Commands, flags and help as cobra has them; what is printed; and shells' completion."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from quorate.ctl import quorateutl
from quorate.ctl.commandline import Call, Command, CommandError, Flag, Tool, UsageError, distance
from quorate.ctl.completion import SHELLS, completion
from quorate.ctl.printing import Column, centered, human_bytes, printed
from quorate.ctl.progress import nobody, progress

GLOBAL = (Flag("write-out", "string", "the format", "simple", letter="w"),)


class Recorder:
    """A tool whose command says what it was asked."""

    def __init__(self) -> None:
        flags = (
            Flag("count", "int", "how many"),
            Flag("size", "uint", "how large", 7),
            Flag("force", "bool", "anyway", letter="f"),
            Flag("wait", "duration", "how long", 10.0, "10s"),
            Flag("dir", "string", "where", required=True),
        )
        below = (
            Command("start", "Begin", self.take, "FILE", flags),
            Command("stop", "End", self.take, exactly=1, values=("now", "later")),
            Command("status", "Tell", self.fail),
        )
        self.calls: list[Call] = []
        self.tool = Tool("tool", (Command("job", "Jobs", commands=below),), GLOBAL)

    def take(self, call: Call) -> None:
        self.calls.append(call)

    def fail(self, call: Call) -> None:
        raise CommandError("no", 5)

    def values(self, line: str) -> dict[str, object]:
        assert self.tool.run(line.split()) == 0
        return {**self.calls[-1].values, "arguments": self.calls[-1].arguments}


EMPTY = {"count": 0, "size": 7, "force": False, "wait": 10.0, "write-out": "simple", "help": False}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("job start --dir d", {}),
        ("job start x --dir=d y", {"arguments": ("x", "y")}),
        ("-w json job start --dir d", {"write-out": "json"}),
        ("-wjson job start --dir d", {"write-out": "json"}),
        ("job --write-out=json start --dir d", {"write-out": "json"}),
        ("job start -f -w=json --dir d", {"force": True, "write-out": "json"}),
        ("job start -fw json --dir d", {"force": True, "write-out": "json"}),
        ("job start --force=false --dir d --count -3 --size 9", {"count": -3, "size": 9}),
        ("job start --dir d --wait 1m30s", {"wait": 90.0}),
        ("job start --dir d -- --force -", {"arguments": ("--force", "-")}),
        ("job start --dir d -", {"arguments": ("-",)}),
        ("jo star --dir d", {}),
    ],
)
def test_what_is_read(line: str, expected: dict[str, object]) -> None:
    assert Recorder().values(line) == {**EMPTY, "dir": "d", "arguments": (), **expected}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("job start", 'required flag(s) "dir" not set'),
        ("job start --gone", "unknown flag: --gone"),
        ("job start -g", "unknown shorthand flag: 'g' in -g"),
        ("job start -fg", "unknown shorthand flag: 'g' in -fg"),
        ("job start --dir", "flag needs an argument: --dir"),
        ("job start -w", "flag needs an argument: 'w' in -w"),
        (
            "job start --count x",
            'invalid argument "x" for "--count" flag: strconv.ParseInt: parsing "x": '
            "invalid syntax",
        ),
        (
            "job start --size 18446744073709551616",
            'invalid argument "18446744073709551616" for "--size" flag: strconv.ParseUint: '
            'parsing "18446744073709551616": value out of range',
        ),
        (
            "job start --force=x",
            'invalid argument "x" for "-f, --force" flag: strconv.ParseBool: parsing "x": '
            "invalid syntax",
        ),
        (
            "job start --wait x",
            'invalid argument "x" for "--wait" flag: time: invalid duration "x"',
        ),
        ("job stop", "accepts 1 arg(s), received 0"),
        ("job stop x", 'invalid argument "x" for "tool job stop"'),
    ],
)
def test_what_is_refused(line: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    assert recorder.tool.run(line.split()) == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"Error: {text}\nUsage:\n  tool job st")
    assert told.err.endswith(f"\n\nError: {text}\n")
    assert (told.out, recorder.calls) == ("", [])


def test_a_word_that_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    tool = Recorder().tool
    assert tool.run(["jop"]) == 1
    text = 'Error: unknown command "jop" for "tool"\n\nDid you mean this?\n\tjob\n\n'
    assert capsys.readouterr().err == f"{text}Run 'tool --help' for usage.\n{text}"
    # Two commands begin so.
    assert tool.run(["job", "sta"]) == 0
    assert capsys.readouterr().out.startswith("Usage:\n  tool job [command]\n")


def test_what_a_command_can_t_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert Recorder().tool.run(["job", "status"]) == 5
    assert capsys.readouterr() == ("", "Error: no\n")


def test_an_interrupt_is_its_own_exit_code() -> None:
    def stop(call: Call) -> None:
        raise KeyboardInterrupt

    assert Tool("tool", (Command("a", "", stop),), ()).run(["a"]) == 5


START_HELP = """\
Usage:
  tool job start FILE [flags]

Flags:
      --count int       how many
      --dir string      where
  -f, --force           anyway
  -h, --help            help for start
      --size uint       how large (default 7)
      --wait duration   how long (default 10s)

Global Flags:
  -w, --write-out string   the format (default "simple")
"""


@pytest.mark.parametrize("line", ["job start -h", "job start --help", "help job start"])
def test_help(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert Recorder().tool.run(line.split()) == 0
    assert capsys.readouterr() == (START_HELP, "")


def test_help_of_the_tool_and_of_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    tool = Recorder().tool
    assert tool.run([]) == tool.run(["help"]) == tool.run(["help", "gone"]) == 0
    told = capsys.readouterr()
    assert told.out.count("Available Commands:\n  help        Help about any command\n  job  ") == 3
    assert told.err == "Unknown help topic [`gone`]\n"


def test_distances() -> None:
    assert [distance(*pair) for pair in (("", "ab"), ("ab", "ab"), ("version", "versoin"))] == [
        2,
        0,
        2,
    ]


# --- printing


COLUMNS = [
    Column("hash", "ff", "Hash", "hash", 255),
    Column("total keys", "3", "Keys", "totalKey", 3),
    Column("version", "", "Version", "version", ""),
]


def test_forms() -> None:
    assert printed("simple", COLUMNS) == "ff, 3, \n"
    assert printed("fields", COLUMNS) == '"Hash" : 255\n"Keys" : 3\n"Version" : \n'
    assert printed("json", COLUMNS) == '{"hash":255,"totalKey":3,"version":""}\n'
    assert printed("table", COLUMNS) == (
        "┌──────┬────────────┬─────────┐\n"
        "│ HASH │ TOTAL KEYS │ VERSION │\n"
        "├──────┼────────────┼─────────┤\n"
        "│   ff │          3 │         │\n"
        "└──────┴────────────┴─────────┘\n"
    )
    with pytest.raises(CommandError, match="protobuf not supported as output format") as no:
        printed("protobuf", COLUMNS)
    assert no.value.code == 4
    assert centered("ab", 5) == " ab  "


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (9, "9 B"),
        (10, "10 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_949, "9.9 kB"),
        (9_950, "10 kB"),
        (20_480, "20 kB"),
        (999_999, "1000 kB"),
        (82_854_982, "83 MB"),
        (1_500_000_000, "1.5 GB"),
        (2**63, "9.2 EB"),
    ],
)
def test_sizes_as_people_read_them(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 10) as advance:
        advance(5)
    assert advance is nobody
    assert capsys.readouterr() == ("", "")


# --- the offline tool's table


def paths(tool: Tool) -> list[str]:
    found: list[str] = []
    todo: list[tuple[str, Sequence[Command]]] = [("", tool.root.commands)]
    while todo:
        above, commands = todo.pop()
        found += [f"{above} {each.name}".strip() for each in commands]
        todo += [(f"{above} {each.name}".strip(), each.commands) for each in commands]
    return sorted(found)


def test_the_commands_of_quorateutl(capsys: pytest.CaptureFixture[str]) -> None:
    assert paths(quorateutl.tool("quorateutl")) == [
        "check",
        "completion",
        "defrag",
        "hashkv",
        "help",
        "snapshot",
        "snapshot restore",
        "snapshot status",
        "version",
    ]
    assert quorateutl.main(["version"]) == 0
    assert capsys.readouterr().out == "etcdutl version: 3.7.1\nAPI version: 3.7\n"


def test_a_usage_error_has_a_command() -> None:
    with pytest.raises(UsageError) as refused:
        quorateutl.tool("quorateutl").parse(["defrag"])
    assert refused.value.command is not None


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_names_everything(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    tool = quorateutl.tool("quorateutl")
    text = completion(tool, shell)
    words = {word for path in paths(tool) for word in path.split()}
    for word in (*words, "skip-hash-check", "bump-revision", "powershell"):
        assert word in text
    assert quorateutl.main(["completion", shell]) == 0
    assert capsys.readouterr().out == text


def complete(*words: str, folder: Path) -> list[str]:
    """What bash offers behind these words."""
    script = completion(quorateutl.tool("quorateutl"), "bash")
    quoted = " ".join(f'"{word}"' for word in words)
    lines = f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _quorateutl\n"
    lines += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run(
        ["bash", "-c", lines], capture_output=True, text=True, check=True, timeout=10, cwd=folder
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    assert complete("quorateutl", "sn", folder=tmp_path) == ["snapshot"]
    assert complete("quorateutl", "snapshot", "s", folder=tmp_path) == ["status"]
    assert complete("quorateutl", "-w", "js", folder=tmp_path) == ["json"]
    assert complete(
        "quorateutl", "-w", "json", "snapshot", "restore", "--skip", folder=tmp_path
    ) == ["--skip-hash-check"]
    assert complete("quorateutl", "completion", "f", folder=tmp_path) == ["fish"]
