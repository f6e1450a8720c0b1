"""Rounds: every case on every target, one after the other, each on a fresh data directory.

Rules: within a round the targets of one case come right after one another, and every round begins
with another target, so that a machine that changes its pace hits all of them alike. Data
directories are on a real disk and are removed when their case is over.
"""

import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.goals import unit
from bench.servers import ServerError, Target
from bench.workloads import (
    Case,
    Metrics,
    NotMeasured,
    Rows,
    Settings,
    Stage,
    Unimplemented,
    WrongAnswer,
)

MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


@dataclass
class Results:
    """All rounds of all targets."""

    targets: list[Target]
    rounds: dict[str, dict[str, list[Metrics]]] = field(default_factory=dict)
    """By target's name, then row's name."""
    problems: list[str] = field(default_factory=list)
    unimplemented: list[str] = field(default_factory=list)
    """Cases about something that a server does not have."""
    unmeasured: list[str] = field(default_factory=list)
    """Cases that this machine, or this round, could not measure."""

    def add(self, target: Target, rows: Rows) -> None:
        """Keep one round's rows."""
        kept = self.rounds.setdefault(target.name, {})
        for name, metrics in rows.items():
            kept.setdefault(name, []).append(metrics)

    def medians(self) -> dict[str, Rows]:
        """By target and row: the median over the rounds of every metric."""
        return {
            target: {
                row: {
                    metric: statistics.median(each[metric] for each in rounds if metric in each)
                    for metric in rounds[0]
                }
                for row, rounds in rows.items()
            }
            for target, rows in self.rounds.items()
        }


def file_system_of(directory: Path) -> str:
    """The type of the file system that holds a directory; "unknown" when Linux does not say."""
    best, kind = "", "unknown"
    path = str(directory.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def run_rounds(
    cases: Sequence[Case],
    targets: Sequence[Target],
    settings: Settings,
    rounds: int,
    directory: Path,
    say: Callable[[str], None],
) -> Results:
    """Run everything; a case that fails is a problem of the results and does not end the rest."""
    results = Results(list(targets))
    baseline = next((each for each in targets if not each.is_quorate), None)
    plan = [
        (number, case, target)
        for number in range(rounds)
        for case in cases
        for target in _turned(targets, number)
        if target.is_quorate or not case.quorate_only
    ]
    for place, (number, case, target) in enumerate(plan, 1):
        head = f"[{place}/{len(plan)}] round {number + 1}, {target.name}, {case.name}"
        try:
            with tempfile.TemporaryDirectory(prefix="bench-", dir=directory) as fresh:
                rows = case.run(Stage(target, settings, Path(fresh), baseline=baseline))
        except Unimplemented as error:
            results.unimplemented.append(f"{target.name}, {case.name}: {error}")
            say(f"{head}: not implemented: {error}")
            continue
        except NotMeasured as error:
            results.unmeasured.append(f"{target.name}, {case.name}: {error}")
            say(f"{head}: not measured: {error}")
            continue
        except (WrongAnswer, ServerError, OSError) as error:
            results.problems.append(f"{target.name}, {case.name}: {error}")
            say(f"{head}: FAILED: {error}")
            continue
        results.add(target, rows)
        for row, metrics in rows.items():
            say(f"{head} | {row}: {summary(metrics)}")
    return results


def summary(metrics: Metrics) -> str:
    """One row's figures in one line."""
    return ", ".join(f"{name} {show(value, name)}" for name, value in metrics.items())


def show(value: float, metric: str) -> str:
    """A figure with as many digits as mean something, and its unit."""
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit(metric)}".rstrip()


def free_bytes(directory: Path) -> int:
    """How much the disk of this directory can still take."""
    return shutil.disk_usage(directory).free


def _turned(targets: Sequence[Target], by: int) -> list[Target]:
    start = by % len(targets)
    return [*targets[start:], *targets[:start]]
