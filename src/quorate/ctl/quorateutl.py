"""`quorateutl`, also called as `etcdutl`: the offline tool on data directories and snapshots.

Rules:
1. Commands, flags, outputs and exit codes are those of etcd's etcdutl 3.7; `check` is our own.
2. Nothing heavy is imported before the command line is known to be good.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from quorate.core.errors import Fatal
from quorate.core.version import CLUSTER_VERSION, SERVER_VERSION

from .commandline import Call, Command, CommandError, Flag, Tool
from .completion import SHELLS, completion
from .printing import FORMS

NAME, ETCD_NAME = "quorateutl", "etcdutl"
# etcd's default of --initial-memory-map-size, which means nothing here.
MEMORY_MAP_BYTES = 10 * 1024**3

GLOBAL_FLAGS = (
    Flag(
        "timeout",
        "duration",
        "time to wait to obtain a file lock on db file, 0 to block indefinitely",
        10.0,
        "10s",
    ),
    Flag(
        "write-out",
        "string",
        "set the output format (fields, json, protobuf, simple, table)",
        "simple",
        letter="w",
        completes=FORMS,
    ),
)
RESTORE_FLAGS = (
    Flag("bump-revision", "uint", "How much to increase the latest revision after restore"),
    Flag("data-dir", "string", "Path to the output data directory"),
    Flag(
        "initial-advertise-peer-urls",
        "string",
        "List of this member's peer URLs to advertise to the rest of the cluster",
        "http://localhost:2380",
    ),
    Flag(
        "initial-cluster",
        "string",
        "Initial cluster configuration for restore bootstrap",
        "default=http://localhost:2380",
    ),
    Flag(
        "initial-cluster-token",
        "string",
        "Initial cluster token for the etcd cluster during restore bootstrap",
        "etcd-cluster",
    ),
    Flag(
        "initial-memory-map-size",
        "uint",
        "Initial memory map size of the database in bytes. It uses the default value if not "
        "defined or defined to 0",
        MEMORY_MAP_BYTES,
    ),
    Flag(
        "mark-compacted",
        "bool",
        "Mark the latest revision after restore as the point of scheduled compaction (required if "
        "--bump-revision > 0, disallowed otherwise)",
    ),
    Flag("name", "string", "Human-readable name for this member", "default"),
    Flag(
        "skip-hash-check",
        "bool",
        "Ignore snapshot integrity hash value (required if copied from data directory)",
    ),
    Flag("wal-dir", "string", "Path to the WAL directory (use --data-dir if none given)"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the answer is its exit code."""
    called = os.path.basename(sys.argv[0])
    name = ETCD_NAME if called == ETCD_NAME else NAME
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Of tables, whatever the locale says: so do etcd's tools.
        sys.stdout.reconfigure(encoding="utf-8")
    return tool(name).run(sys.argv[1:] if arguments is None else arguments)


def tool(name: str) -> Tool:
    """The table of commands."""
    snapshot = Command(
        "snapshot",
        "Manages etcd node snapshots",
        commands=(
            Command(
                "restore",
                "Restores an etcd member snapshot to an etcd directory",
                later("restore", "restore_command"),
                "<filename> --data-dir {output dir} [options]",
                RESTORE_FLAGS,
            ),
            Command(
                "status",
                "Gets backend snapshot status of a given file",
                later("status", "status_command"),
                "<filename>",
            ),
        ),
    )
    commands = (
        Command(
            "check",
            "Checks all of a data directory not in use, and changes nothing",
            later("checking", "check_command"),
            flags=(
                Flag("data-dir", "string", "Required. Path to the data directory", required=True),
                Flag("wal-dir", "string", "Path to the WAL directory, if it is elsewhere"),
            ),
        ),
        Command(
            "completion",
            "Generate completion script",
            lambda call: complete(name, call),
            "[bash|zsh|fish|powershell]",
            exactly=1,
            values=SHELLS,
            flags_in_form=False,
        ),
        Command(
            "defrag",
            "Defragments the storage of the etcd",
            later("rewriting", "defrag_command"),
            flags=(
                Flag(
                    "data-dir",
                    "string",
                    "Required. Defragments a data directory not in use by etcd.",
                    required=True,
                ),
            ),
        ),
        Command(
            "hashkv",
            "Prints the KV history hash of a given file",
            later("status", "hashkv_command"),
            "<filename>",
            (Flag("rev", "int", "maximum revision to hash (default: latest revision)"),),
            exactly=1,
        ),
        snapshot,
        Command("version", "Prints the version of etcdutl", version_command),
    )
    return Tool(name, commands, GLOBAL_FLAGS)


def later(module: str, function: str) -> Callable[[Call], None]:
    """A command whose module is imported when it runs; what stops it is told in one line."""

    def run(call: Call) -> None:
        try:
            getattr(import_module(f"quorate.ctl.{module}"), function)(call)
        except Fatal as error:
            raise CommandError(str(error)) from None

    return run


def version_command(call: Call) -> None:
    """etcd's two lines: of the release whose files this reads and writes."""
    api = ".".join(CLUSTER_VERSION.split(".")[:2])
    sys.stdout.write(f"etcdutl version: {SERVER_VERSION}\nAPI version: {api}\n")


def complete(name: str, call: Call) -> None:
    """The script of a shell."""
    sys.stdout.write(completion(tool(name), call.arguments[0]))


if __name__ == "__main__":
    sys.exit(main())
