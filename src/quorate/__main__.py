"""`quorate` and `python -m quorate`: the command line, then the core.

Rules:
1. Exit code 0 after a clean stop, `--version` or `--help`; 1 if the server can't start or can't go
   on, with one line; 2 if the command line can't be read, with etcd's text and the usage.
2. Nothing heavy is imported before the command line is known to be good.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from quorate.core.config import Loaded, UsageError, load, parse_arguments
from quorate.core.errors import Fatal
from quorate.core.flags import USAGE, help_text
from quorate.core.logs import Logger, open_logger
from quorate.core.versiontext import version_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the answer is its exit code."""
    try:
        given = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        sys.stderr.write(f"{error}\n{USAGE}")
        return 2
    if given.get("help"):
        sys.stdout.write(help_text())
        return 0
    if given.get("version"):
        sys.stdout.write(version_lines())
        return 0
    logger = Logger()
    try:
        loaded = load(given, os.environ)
        config = loaded.config
        logger = open_logger(config.log_level, config.log_outputs, config.log_format)
    except Fatal as error:
        logger.warn("failed to verify flags", error=str(error))
        return 1
    return serve(loaded, logger)


def serve(loaded: Loaded, logger: Logger) -> int:
    """Warn of what the user asked for in vain, then be the server until it stops."""
    for warning in loaded.warnings:
        logger.warn(warning.message, **warning.fields)
    from quorate.core.main import run
    from quorate.workers.worker import worker_main

    try:
        run(loaded.config, logger, worker_main)
    except Fatal as error:
        logger.fatal("the server can't go on", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
