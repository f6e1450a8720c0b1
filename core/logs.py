"""Log lines as etcd writes them: zap's JSON, or its console form.

Rules:
1. One line is one write(2) per output, so that lines of the core and of its workers never mix.
2. Writing never raises and never waits for anything but the descriptor: a log that can't be written
   is lost, the server goes on.
3. A level that is off costs one comparison. Time stamps are UTC, in microseconds.

`{"level":"info","ts":"2026-01-02T15:04:05.123456Z","caller":"core/main.py:42","msg":"...",...}`
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from quorate.core.errors import Fatal

if TYPE_CHECKING:
    from types import FrameType

# zap's order. A logger writes its own level and everything after it.
LEVELS = {"debug": 0, "info": 1, "warn": 2, "error": 3, "dpanic": 4, "panic": 5, "fatal": 6}
STDERR, STDOUT = 2, 1
# Between two lines of one thing that goes on: often enough for who waits for it.
PROGRESS_SECONDS = 10
# Systemd's journal takes what a service writes to stderr.
NAMED_OUTPUTS = {"default": STDERR, "stderr": STDERR, "systemd/journal": STDERR, "stdout": STDOUT}


class Logger:
    """Where lines go and which; the methods are the levels, keywords are the line's fields.

    A keyword's underscores become dashes, as etcd spells its fields.
    """

    def __init__(
        self,
        descriptors: Iterable[int] = (STDERR,),
        level: str = "info",
        form: str = "json",
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.descriptors = tuple(descriptors)
        self._threshold = LEVELS[level]
        self._console = form == "console"
        self._clock = clock
        self._second = -1  # the second that _stamp shows
        self._stamp = ""

    def debug(self, message: str, **fields: object) -> None:
        """What helps a developer."""
        if self._threshold <= 0:
            self._write("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        """What an operator may want to know."""
        if self._threshold <= 1:
            self._write("info", message, fields)

    def warn(self, message: str, **fields: object) -> None:
        """What an operator should look at."""
        if self._threshold <= 2:
            self._write("warn", message, fields)

    def error(self, message: str, **fields: object) -> None:
        """What went wrong while the server goes on."""
        if self._threshold <= 3:
            self._write("error", message, fields)

    def fatal(self, message: str, **fields: object) -> None:
        """The last line before the caller ends the process."""
        self._write("fatal", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, object]) -> None:
        place = caller(sys._getframe(2))
        named = {name.replace("_", "-"): value for name, value in fields.items()}
        if self._console:
            parts = [self.now(), level, place, message.replace("\n", "\\n")]
            if named:
                parts.append(json.dumps(named, ensure_ascii=False, default=text_of))
            line = "\t".join(parts)
        else:
            record = {"level": level, "ts": self.now(), "caller": place, "msg": message, **named}
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=text_of)
        data = (line + "\n").encode("utf-8", "backslashreplace")
        for descriptor in self.descriptors:
            try:
                os.write(descriptor, data)
            except OSError:
                continue

    def now(self) -> str:
        """The time as etcd writes it, e.g. `2026-01-02T15:04:05.123456Z`."""
        second, nanoseconds = divmod(self._clock(), 1_000_000_000)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._stamp}.{nanoseconds // 1000:06}Z"


class Progress:
    """Says how far something has come that may take long; nothing, when it is quick."""

    def __init__(
        self, logger: Logger, message: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._message = message
        self._clock = clock
        self._due = clock() + PROGRESS_SECONDS

    def come(self, **fields: object) -> None:
        """It has come so far."""
        if (now := self._clock()) >= self._due:
            self._due = now + PROGRESS_SECONDS
            self._logger.info(self._message, **fields)


def open_logger(level: str, outputs: Iterable[str], form: str) -> Logger:
    """A logger of the flags --log-level, --log-outputs and --log-format.

    Files are appended to and made if need be. Raises Fatal if one can't be opened.
    """
    descriptors: dict[int, None] = {}
    for output in outputs:
        descriptor = NAMED_OUTPUTS.get(output)
        if descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            try:
                descriptor = os.open(output, flags, 0o600)
            except OSError as error:
                raise Fatal(f"open {output}: {(error.strerror or str(error)).lower()}") from None
        descriptors[descriptor] = None
    return Logger(descriptors, level, form)


def caller(frame: FrameType) -> str:
    """Folder, file and line of a frame, as zap's short caller shows them."""
    path = frame.f_code.co_filename
    folder, _, name = path.rpartition("/")
    return f"{folder.rpartition('/')[2]}/{name}:{frame.f_lineno}"


def text_of(value: object) -> str:
    """What JSON has no form for: bytes as text, anything else as Python shows it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    return str(value)
