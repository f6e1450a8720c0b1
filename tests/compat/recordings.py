"""Reads what etcd 3.7.1 was recorded to answer (`tests/recordings`)."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.messages import Message, decode, method

FOLDER = Path(__file__).resolve().parent.parent / "recordings"
KV_FILES = ("kv-1", "kv-2", "kv-3")


class Step(NamedTuple):
    """One recorded call: its reply, or else its status."""

    number: int
    name: str
    request: Message
    reply: Message | None
    code: int
    text: str


def steps(file: str) -> Iterator[Step]:
    """The recorded calls of one file, in order."""
    with gzip.open(FOLDER / f"{file}.jsonl.gz", "rt") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            rpc = method(row["method"])
            service, _, name = row["method"].rpartition("/")
            reply = None if "code" in row else decode(rpc.reply, base64.b64decode(row["reply"]))
            yield Step(
                number,
                f"{service.rpartition('.')[2]}/{name}",
                decode(rpc.request, base64.b64decode(row["request"])),
                reply,
                row.get("code", 0),
                row.get("message", ""),
            )


def probes() -> dict[str, Any]:
    """The answers to the calls that are not quite right."""
    with gzip.open(FOLDER / "probes.json.gz", "rt") as file:
        found: dict[str, Any] = json.load(file)
        return found
