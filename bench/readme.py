"""The README's table of measured ratios: `python -m bench.readme [results.json ...]`.

Rules:
1. The table stands between two comments of README.md; nothing else there is touched.
2. The first comment names the results that the table was made from, so that a test can make it
   again and compare. Without arguments these are the newest of `bench/results` that have a line's
   row at full size, in three rounds, of quorate beside an etcd; all of one machine and one etcd.
3. A line is of the first of these results that have its row. One that none has is left out.
4. Figures are medians; a ratio is quorate's figure divided by the etcd's.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import ratio
from bench.runner import show

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
ROUNDS_MIN = 3

REGION = re.compile(r"<!-- measured: ([^>]+) -->\n(.*?)<!-- end of measured -->\n", re.S)
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
    (
        "restart after SIGTERM, 1,000,000 keys of 256 bytes",
        "restart on 1,000,000 keys, after SIGTERM",
        "seconds",
    ),
    ("restart after kill -9", "restart on 1,000,000 keys, after kill -9", "seconds"),
    (
        "bytes on the disk for each of 1,000,000 new keys' bytes",
        "bytes of 1,000,000 new keys",
        "written_bytes_per_byte",
    ),
    (
        "anonymous memory of these, in the file",
        "memory of 1,000,000 keys in the file",
        "anonymous_mib",
    ),
    ("a snapshot of 1 GB", "snapshot of 1,000,000 keys of 1 KB", "seconds"),
    ("idle memory", "idle", "pss_mib"),
    ("start on an empty directory", "start", "seconds"),
)


Document = Mapping[str, Any]


def names(document: Document) -> list[str]:
    """The servers, quorate first."""
    targets = sorted(document["targets"], key=lambda each: not each["is_quorate"])
    return [each["name"] for each in targets]


def place(document: Document) -> str:
    """What was compared and where: figures of two places do not belong into one table."""
    machine = document["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['file system']}"
    return f"{' and '.join(names(document))} on {where}"


def has(document: Document, row: str) -> bool:
    """Whether these results may stand for the product in this row; see rule 2."""
    own = [each["is_quorate"] for each in document["targets"]]
    return (
        document["settings"]["scale"] == 1.0
        and len(own) > sum(own) == 1
        and all(
            len(document["rounds"].get(name, {}).get(row, ())) >= ROUNDS_MIN
            for name in names(document)
        )
    )


def newest(folder: Path) -> list[Path]:
    """The newest results that have all that any have; their names are their times."""
    missing = {row for _, row, _ in LINES}
    chosen: list[Path] = []
    where = ""
    for path in sorted(folder.glob("*.json"), reverse=True):
        document = json.loads(path.read_text())
        found = {row for row in missing if has(document, row)}
        if found and where in ("", place(document)):
            where = place(document)
            missing -= found
            chosen.append(path)
    return chosen


def table(documents: Sequence[Document]) -> str:
    """The table, in Markdown, with the machine it was measured on."""
    own, *others = names(documents[0])
    head = ["", own, *others, *(f"÷ {name}" for name in others)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for title, row, metric in LINES:
        found = next((document for document in documents if has(document, row)), None)
        if found is None:
            continue
        values = [found["medians"][name][row][metric] for name in (own, *others)]
        cells = [show(value, metric) for value in values]
        cells += [ratio(values[0], value) for value in values[1:]]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    where = place(documents[0]).partition(" on ")[2]
    lines += ["", f"Medians on {where}, load generator included, fsync on."]
    return "\n".join(lines) + "\n"


def region(paths: Sequence[Path]) -> str:
    """What stands in the README for these results, comments included."""
    named = " ".join(path.name for path in paths) or NOTHING
    body = table([json.loads(path.read_text()) for path in paths]) if paths else NOT_YET
    return f"<!-- measured: {named} -->\n{body}<!-- end of measured -->\n"


def fill(text: str, paths: Sequence[Path]) -> str:
    """The README's text with these results in it. Raises ValueError when it has no place."""
    if len(REGION.findall(text)) != 1:
        raise ValueError("README.md must have one `measured` region")
    return REGION.sub(lambda _: region(paths), text)


def main(arguments: Sequence[str]) -> int:
    """Fill the README; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme", description="Put measured ratios into README.md."
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULTS.json",
        help="of bench/results; default: the newest",
    )
    paths = parser.parse_args(arguments).results or newest(RESULTS)
    if not paths:
        sys.stderr.write(f"{RESULTS} has no full results: run `python -m bench` first\n")
        return 1
    for path in paths:
        if path.resolve().parent != RESULTS.resolve():
            sys.stderr.write(f"{path} is not in {RESULTS}, and the README may only name those\n")
            return 1
    README.write_text(fill(README.read_text(), paths))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
