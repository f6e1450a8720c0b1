"""Answers as etcd's tools print them: simple, fields, json, protobuf, table.

Rules:
1. An answer is a table of one row and a few named values; every form is made of these.
2. What has no protobuf message has no such form: that is an error with etcd's text, exit 4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .commandline import EXIT_BAD_FEATURE, CommandError

FORMS = ("fields", "json", "protobuf", "simple", "table")
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


class Column(NamedTuple):
    """One value of an answer, by the names that it has in each form."""

    title: str  # of the table
    shown: str  # in table and simple
    field: str  # of fields
    key: str  # of json
    value: int | str


def printed(form: str, columns: Sequence[Column]) -> str:
    """The answer in that form. Raises CommandError."""
    if form == "protobuf":
        raise CommandError("protobuf not supported as output format", EXIT_BAD_FEATURE)
    return MAKERS[form](columns)


def check_form(form: str) -> None:
    """Refuse a form that there is not. Raises CommandError."""
    if form not in FORMS:
        raise CommandError("unsupported output format", EXIT_BAD_FEATURE)


def simple(columns: Sequence[Column]) -> str:
    """Values behind one another."""
    return ", ".join(column.shown for column in columns) + "\n"


def fields(columns: Sequence[Column]) -> str:
    """A line for each value."""
    return "".join(f'"{column.field}" : {column.value}\n' for column in columns)


def as_json(columns: Sequence[Column]) -> str:
    """One object."""
    value = {column.key: column.value for column in columns}
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n"


def table(columns: Sequence[Column]) -> str:
    """A head and a row in a box, as etcd draws it since 3.7."""
    widths = [max(len(column.title), len(column.shown)) for column in columns]
    bars = ["─" * (width + 2) for width in widths]
    titles = [centered(c.title.upper(), width) for c, width in zip(columns, widths, strict=True)]
    values = [c.shown.rjust(width) for c, width in zip(columns, widths, strict=True)]
    lines = (
        f"┌{'┬'.join(bars)}┐",
        f"│ {' │ '.join(titles)} │",
        f"├{'┼'.join(bars)}┤",
        f"│ {' │ '.join(values)} │",
        f"└{'┴'.join(bars)}┘",
    )
    return "".join(f"{line}\n" for line in lines)


def centered(text: str, width: int) -> str:
    """In the middle; of an odd rest the larger half comes after it."""
    before = (width - len(text)) // 2
    return " " * before + text + " " * (width - len(text) - before)


MAKERS: dict[str, Callable[[Sequence[Column]], str]] = {
    "simple": simple,
    "fields": fields,
    "json": as_json,
    "table": table,
}


def human_bytes(count: int) -> str:
    """A size in the unit that suits it, in powers of 1000: `20 kB`, `1.5 MB`."""
    if count < 10:
        return f"{count} B"
    power = 0
    while count >= 1000 ** (power + 1) and power < len(BYTE_UNITS) - 1:
        power += 1
    value = int(count / 1000**power * 10 + 0.5) / 10
    return f"{value:.1f} {BYTE_UNITS[power]}" if value < 10 else f"{value:.0f} {BYTE_UNITS[power]}"
