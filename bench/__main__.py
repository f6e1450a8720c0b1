"""The command line: `python -m bench [workload ...] [--etcd PATH ...]`; see bench/README.md."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import crosscheck, headline, report, runner
from bench.cases import CASES
from bench.servers import ServerError, Target, find_target
from bench.workloads import Case, Settings, WrongAnswer

ROOT = Path(__file__).resolve().parent.parent
GROUPS = tuple(dict.fromkeys(case.group for case in CASES))
SPECIAL = ("10k", "crosscheck")
# The largest workload writes a million keys ten times over, into WAL and data file.
FREE_BYTES_MIN = 12 * 1024**3
QUICK_SCALE = 0.05


def say(line: str) -> None:
    """Progress goes to stderr, so that stdout holds the report alone."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 when it makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="WORKLOAD",
        help=f"any of {' '.join(GROUPS)} (default: all), or one of {' '.join(SPECIAL)}; "
        'a case\'s full name ("put 10x10, one key") chooses it alone',
    )
    parser.add_argument(
        "--etcd",
        action="append",
        metavar="PATH",
        help="an etcd to compare with; may be repeated, the first is the baseline "
        "(default: etcd of the PATH)",
    )
    parser.add_argument(
        "--quorate", metavar="PATH", default=str(ROOT / ".venv/bin/quorate"), help="our server"
    )
    parser.add_argument("--no-quorate", action="store_true", help="measure only etcd")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 3, with --quick 1")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of each measured window; default 5, quick 1"
    )
    parser.add_argument(
        "--scale",
        type=float,
        metavar="S",
        help=f"what sizes of data sets are multiplied with; default 1, with --quick {QUICK_SCALE}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"short and small: data sets of {QUICK_SCALE:.0%}%; a first look, not a result",
    )
    parser.add_argument(
        "--dir", metavar="PATH", default=".", help="where data directories go (default: here)"
    )
    parser.add_argument(
        "--results", metavar="PATH", default=str(ROOT / "bench/results"), help="where reports go"
    )
    options = parser.parse_args(arguments)
    known = {*GROUPS, *SPECIAL, *(case.name for case in CASES)}
    for name in options.workloads:
        if name not in known:
            parser.error(f"no workload {name!r}; there are {' '.join((*GROUPS, *SPECIAL))}")
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1.0 if options.quick else 5.0)
    options.scale = options.scale or (QUICK_SCALE if options.quick else 1.0)
    if options.rounds < 1 or options.seconds <= 0 or not 0 < options.scale <= 1:
        parser.error("--rounds and --seconds are above 0, and --scale is above 0 and at most 1")
    return options


def find_targets(options: argparse.Namespace) -> list[Target]:
    """quorate first, then every etcd; raises ServerError when one is missing or none is left."""
    targets = [] if options.no_quorate else [find_target(options.quorate, is_quorate=True)]
    if options.etcd:
        targets += [find_target(path) for path in options.etcd]
    else:
        try:
            targets.append(find_target("etcd"))
        except ServerError as error:
            say(f"warning: {error}: nothing to compare with (--etcd PATH)")
    if not targets:
        raise ServerError("no server to measure")
    return distinct(targets)


def distinct(targets: list[Target]) -> list[Target]:
    """The same targets with names that differ: two builds of one version get their paths."""
    names = [each.name for each in targets]
    return [
        each
        if names.count(each.name) == 1
        else Target(f"{each.name} {each.place}", each.program, each.version, each.is_quorate)
        for each in targets
    ]


def check_disk(directory: Path, scale: float) -> None:
    """Raises ServerError where a figure would mean nothing, or the disk would run full."""
    if not directory.is_dir():
        raise ServerError(f"{directory}: no such directory")
    kind = runner.file_system_of(directory)
    if kind in runner.MEMORY_FILE_SYSTEMS:
        raise ServerError(
            f"{directory} is on {kind}: writes there are not durable; choose a disk with --dir"
        )
    needed = FREE_BYTES_MIN * scale
    if runner.free_bytes(directory) < needed:
        raise ServerError(f"{directory} has less than {needed / 2**30:.1f} GiB free")


def run_cases(options: argparse.Namespace, targets: list[Target], about: dict[str, str]) -> int:
    """Measure, write and print the report; 1 when an answer was wrong or a server failed."""
    settings = Settings(
        seconds=options.seconds,
        warmup=min(1.0, options.seconds / 2),
        scale=options.scale,
    )
    cases: list[Case] = [
        case
        for case in CASES
        if not options.workloads or {case.group, case.name} & set(options.workloads)
    ]
    results = runner.run_rounds(cases, targets, settings, options.rounds, Path(options.dir), say)
    path = report.write(results, settings, about, Path(options.results))
    sys.stdout.write(path.read_text())
    say(f"written to {path}")
    return 1 if results.problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    directory = Path(options.dir)
    try:
        check_disk(directory, options.scale)
        targets = find_targets(options)
        about = {
            "command": shlex.join(["python", "-m", "bench", *arguments]),
            "file system": runner.file_system_of(directory),
            "programs": report.describe_targets(targets),
        }
        if "10k" in options.workloads:
            for answer in headline.ask(targets, options.seconds, directory, say):
                sys.stdout.write(f"{answer}\n")
        if "crosscheck" in options.workloads:
            return run_crosscheck(options, targets)
        if not set(options.workloads) - set(SPECIAL) and options.workloads:
            return 0
        return run_cases(options, targets, about)
    except (ServerError, WrongAnswer, OSError) as error:
        say(f"error: {error}")
        return 1


def run_crosscheck(options: argparse.Namespace, targets: list[Target]) -> int:
    """Compare the generator with h2load on every target; 1 when they disagree."""
    agrees = True
    for target in targets:
        for echo in (False, True) if target.is_quorate else (False,):
            pairs = crosscheck.compare(
                target, round(options.seconds), options.rounds, Path(options.dir), say, echo
            )
            agrees = agrees and all(pair.agrees for pair in pairs)
            sys.stdout.writelines(f"{target.name}, {pair}\n" for pair in pairs)
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
