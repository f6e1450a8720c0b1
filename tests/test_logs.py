"""Log lines are etcd's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.core.errors import Fatal
from quorate.core.logs import LEVELS, Logger, open_logger

# 2026-01-02T15:04:05.003456789 UTC.
MOMENT = 1_767_366_245_003_456_789


class Written:
    """A file that a logger writes to, and its lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "log")


def logger(written: Written, level: str = "info", form: str = "json") -> Logger:
    return Logger([written.descriptor], level, form, clock=lambda: MOMENT)


def test_a_json_line_is_etcds_to_the_byte(written: Written) -> None:
    logger(written).info("ready to serve client requests", local_member_id="8e9e05c52164694d", n=1)
    line = written.lines()[0]
    caller = json.loads(line)["caller"]
    assert line == (
        '{"level":"info","ts":"2026-01-02T15:04:05.003456Z",'
        f'"caller":"{caller}","msg":"ready to serve client requests",'
        '"local-member-id":"8e9e05c52164694d","n":1}'
    )


def test_the_caller_is_the_line_that_logged(written: Written) -> None:
    here = Path(__file__).read_text(encoding="utf-8").splitlines()
    logger(written).warn("a line to be found again")
    place = json.loads(written.lines()[0])["caller"]
    number = next(n for n, text in enumerate(here, 1) if "a line to be found again" in text)
    assert place == f"tests/test_logs.py:{number}"


def test_a_console_line_has_tabs(written: Written) -> None:
    logger(written, form="console").error("two\nlines", error="x", urls=["a", "b"])
    stamp, level, place, message, fields = written.lines()[0].split("\t")
    assert (stamp, level, message) == ("2026-01-02T15:04:05.003456Z", "error", "two\\nlines")
    assert place.startswith("tests/test_logs.py:")
    assert fields == '{"error": "x", "urls": ["a", "b"]}'


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error", "fatal"])
def test_a_level_lets_pass_itself_and_what_is_worse(written: Written, level: str) -> None:
    one = logger(written, level)
    calls: dict[str, Callable[[str], None]] = {
        "debug": one.debug,
        "info": one.info,
        "warn": one.warn,
        "error": one.error,
        "fatal": one.fatal,
    }
    for name, call in calls.items():
        call(name)
    levels = [json.loads(line)["level"] for line in written.lines()]
    assert levels == [name for name in calls if LEVELS[name] >= LEVELS[level]]


def test_odd_values_do_not_end_the_server(written: Written) -> None:
    logger(written).info("odd", key=b"\xff\x00a", path=Path("/x"), text="\ud800 ü \n", none=None)
    line = written.lines()[0]
    assert json.loads(line)["key"] == "\\xff\x00a"
    assert json.loads(line)["path"] == "/x"
    assert "ü" in line


def test_a_log_that_cannot_be_written_is_lost_silently(written: Written) -> None:
    os.close(written.descriptor)
    logger(written).info("into nothing")


def test_each_line_is_one_write(monkeypatch: pytest.MonkeyPatch, written: Written) -> None:
    sizes: list[int] = []
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        sizes.append(len(data))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    logger(written).info("x" * 10_000)
    assert sizes == [len(written.lines()[0]) + 1]


def test_the_second_is_shown_anew_when_it_changes(written: Written) -> None:
    times = iter([MOMENT, MOMENT + 1_000_000_000])
    one = Logger([written.descriptor], clock=lambda: next(times))
    one.info("a")
    one.info("b")
    stamps = [json.loads(line)["ts"] for line in written.lines()]
    assert stamps == ["2026-01-02T15:04:05.003456Z", "2026-01-02T15:04:06.003456Z"]


def test_outputs_of_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before\n")
    one = open_logger("info", ("stderr", str(path), "default", "stdout"), "json")
    assert (one.descriptors[0], one.descriptors[2]) == (2, 1)
    assert len(one.descriptors) == 3
    Logger([one.descriptors[1]]).info("after")
    os.close(one.descriptors[1])
    assert [line[:8] for line in path.read_text().splitlines()] == ["before", '{"level"']


def test_an_output_that_cannot_be_opened_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"^open .*/none/log: no such file or directory$"):
        open_logger("info", (str(tmp_path / "none" / "log"),), "json")
