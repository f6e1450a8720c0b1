"""The README's table of measured ratios: `python -m bench.readme [results.json]`.

Rules:
1. The table stands between two comments of README.md; nothing else there is touched.
2. The first comment names the results that the table was made from, so that a test can make it
   again and compare. Without an argument these are the newest of `bench/results` that are whole:
   full size, three rounds, quorate beside an etcd, a figure for every line.
3. A line that these results have no figure for is left out.
4. Figures are medians; a ratio is quorate's figure divided by the etcd's.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import ratio
from bench.runner import show

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
ROUNDS_MIN = 3

REGION = re.compile(r"<!-- measured: (\S+) -->\n(.*?)<!-- end of measured -->\n", re.S)
NOTHING = "none"
NOT_YET = "No full run of the benchmark is kept here yet; the command below makes one.\n"

# What a reader wants to know first: what it is called here, the report's row, its figure.
LINES = (
    ("put, 1 connection x 1 stream: p50", "put 1x1, one key", "p50_us"),
    ("put, 1x100", "put 1x100, one key", "per_second"),
    ("put, 10x10", "put 10x10, one key", "per_second"),
    ("put, 100x10", "put 100x10, one key", "per_second"),
    ("put, 100x10, 100,000 keys", "put 100x10, 100,000 keys", "per_second"),
    ("server CPU of such a put", "put 100x10, 100,000 keys", "cpu_us"),
    ("linearizable get, 100x10", "get 100x10, linearizable", "per_second"),
    ("serializable get, 100x10", "get 100x10, serializable", "per_second"),
    ("Kubernetes' update (txn), 100x10", "txn 100x10", "per_second"),
    ("count of 1,000,000 keys: p50", "count of all", "p50_us"),
    ("list of 500 out of 1,000,000 keys: p50", "list, limit 500", "p50_us"),
    ("five lists of 300 MB at once: extra memory", "five lists of all", "extra_peak_mib"),
    ("memory of 1,000,000 keys of 256 bytes", "memory of 1,000,000 keys", "pss_mib"),
    ("restart on these", "restart", "seconds"),
    (
        "events to 1,000 watchers, 10 connections",
        "watch 1 to 1,000, 10 connections",
        "per_second",
    ),
    ("server CPU of such an event", "watch 1 to 1,000, 10 connections", "cpu_us"),
    ("put to event, 100 watchers, 200 puts/s: p99", "put to event, 200 puts/s", "p99_us"),
    ("memory of 1,000,000 watches", "memory of 1,000,000 watches", "pss_mib"),
    ("lease keep-alive, 10x10", "keep-alive 10x10", "per_second"),
    ("100,000 leases due at once: the last one late", "100,000 leases due at once", "late_seconds"),
    ("idle memory", "idle", "pss_mib"),
    ("start on an empty directory", "start", "seconds"),
)


def is_whole(document: Any) -> bool:
    """Whether these results may stand for the product; see rule 2."""
    if document["settings"]["scale"] != 1.0:
        return False
    targets = document["targets"]
    names = [each["name"] for each in targets]
    own = [each["name"] for each in targets if each["is_quorate"]]
    rounds = document["rounds"]
    return (
        bool(own)
        and len(names) > len(own)
        and all(
            len(rounds.get(name, {}).get(row, ())) >= ROUNDS_MIN
            for name in names
            for _, row, _ in LINES
        )
    )


def newest(folder: Path) -> Path | None:
    """The newest whole results; their names are their times."""
    for path in sorted(folder.glob("*.json"), reverse=True):
        if is_whole(json.loads(path.read_text())):
            return path
    return None


def table(document: Any) -> str:
    """The table, in Markdown, with the machine it was measured on."""
    targets = document["targets"]
    own = next(each["name"] for each in targets if each["is_quorate"])
    others = [each["name"] for each in targets if not each["is_quorate"]]
    medians = document["medians"]
    head = ["", own, *others, *(f"÷ {name}" for name in others)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for title, row, metric in LINES:
        values = [medians.get(name, {}).get(row, {}).get(metric) for name in (own, *others)]
        if all(value is None for value in values):
            continue
        cells = ["-" if value is None else show(value, metric) for value in values]
        cells += [ratio(values[0], value) for value in values[1:]]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    machine = document["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['file system']}"
    rounds = len(next(iter(document["rounds"][own].values())))
    lines += ["", f"Medians of {rounds} rounds on {where}, load generator included, fsync on."]
    return "\n".join(lines) + "\n"


def region(path: Path | None) -> str:
    """What stands in the README for these results, comments included."""
    name = path.name if path else NOTHING
    body = table(json.loads(path.read_text())) if path else NOT_YET
    return f"<!-- measured: {name} -->\n{body}<!-- end of measured -->\n"


def fill(text: str, path: Path | None) -> str:
    """The README's text with these results in it. Raises ValueError when it has no place."""
    if len(REGION.findall(text)) != 1:
        raise ValueError("README.md must have one `measured` region")
    return REGION.sub(lambda _: region(path), text)


def main(arguments: Sequence[str]) -> int:
    """Fill the README; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme", description="Put measured ratios into README.md."
    )
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        metavar="RESULTS.json",
        help="of bench/results; default: the newest that are whole",
    )
    path = parser.parse_args(arguments).results or newest(RESULTS)
    if path is None:
        sys.stderr.write(f"{RESULTS} has no whole results: run `python -m bench` first\n")
        return 1
    if path.resolve().parent != RESULTS.resolve():
        sys.stderr.write(f"{path} is not in {RESULTS}: the README may only name what is there\n")
        return 1
    README.write_text(fill(README.read_text(), path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
