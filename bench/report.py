"""What was measured, for people and for programs: JSON, a Markdown table, charts."""

import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

from bench.charts import bars
from bench.goals import Verdict, judge, unit
from bench.runner import Results, show
from bench.servers import Target
from bench.workloads import Rows, Settings

# What a chart shows of each row: the first of these that the row has.
CHARTED = ("per_second", "pss_mib", "seconds", "p99_us")


def machine() -> dict[str, str]:
    """What a reader must know of the machine."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def verdicts_of(results: Results) -> list[Verdict]:
    """The goals that these results can answer."""
    quorate = next((each for each in results.targets if each.is_quorate), None)
    etcds = [each for each in results.targets if not each.is_quorate]
    if quorate is None:
        return []
    newest = max(etcds, key=lambda each: each.version_key, default=None)
    return judge(
        results.medians(),
        quorate.name,
        etcds[0].name if etcds else None,
        newest.name if newest else None,
    )


def write(results: Results, settings: Settings, about: dict[str, str], folder: Path) -> Path:
    """Write all files of one benchmark into `folder`; answers the Markdown file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = time.strftime("%Y%m%d-%H%M%S")
    facts = {**machine(), **about}
    text = markdown(results, facts)
    document = {
        "machine": facts,
        "settings": asdict(settings),
        "targets": [{**asdict(each), "program": each.place} for each in results.targets],
        "rounds": results.rounds,
        "medians": results.medians(),
        "goals": [
            {"goal": str(v.goal), "row": v.goal.row, "metric": v.goal.metric, "value": v.value,
             "reached": v.reached}
            for v in verdicts_of(results)
        ],
        "unimplemented": results.unimplemented,
        "unmeasured": results.unmeasured,
        "problems": results.problems,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    for metric, drawing in charts(results).items():
        (folder / f"{name}-{metric}.svg").write_text(drawing)
    path = folder / f"{name}.md"
    path.write_text(text)
    return path


def markdown(results: Results, facts: dict[str, str]) -> str:
    """The whole report."""
    lines = ["# Benchmark", "", ", ".join(f"{k}: {v}" for k, v in facts.items()), ""]
    lines += table(results)
    verdicts = verdicts_of(results)
    if verdicts:
        reached = sum(each.reached for each in verdicts)
        lines += ["", f"## Goals: {reached} of {len(verdicts)} reached", ""]
        lines += ["| row | figure | goal | measured | |", "|---|---|---|---|---|"]
        lines += [_verdict_line(each) for each in verdicts]
    if results.unimplemented:
        lines += ["", "## Not implemented", "", *(f"- {each}" for each in results.unimplemented)]
    if results.unmeasured:
        lines += ["", "## Not measured", "", *(f"- {each}" for each in results.unmeasured)]
    if results.problems:
        lines += ["", "## Problems", "", *(f"- {each}" for each in results.problems)]
    return "\n".join(lines) + "\n"


def table(results: Results) -> list[str]:
    """Medians by row and figure, and how the first target compares with each other one."""
    medians = results.medians()
    names = [each.name for each in results.targets if each.name in medians]
    if not names:
        return ["Nothing was measured."]
    first, others = names[0], names[1:]
    head = ["row", "figure", *names, *(f"{first} ÷ {other}" for other in others)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row, metrics in _union(medians, names).items():
        for metric in metrics:
            values = [medians[name].get(row, {}).get(metric) for name in names]
            cells = ["-" if value is None else show(value, metric) for value in values]
            cells += [ratio(values[0], value) for value in values[1:]]
            lines.append(f"| {row} | {metric} | " + " | ".join(cells) + " |")
    return lines


def charts(results: Results) -> dict[str, str]:
    """One chart for each charted metric that was measured."""
    medians = results.medians()
    names = [each.name for each in results.targets if each.name in medians]
    drawings = {}
    for metric in CHARTED:
        rows: dict[str, dict[str, float]] = {}
        for row, metrics in _union(medians, names).items():
            if next((each for each in CHARTED if each in metrics), "") == metric:
                rows[row] = {
                    name: medians[name][row][metric]
                    for name in names
                    if metric in medians[name].get(row, {})
                }
        if rows:
            drawings[metric] = bars(metric.replace("_", " "), unit(metric), rows, names)
    return drawings


def _union(medians: dict[str, Rows], names: list[str]) -> dict[str, list[str]]:
    """Every row of any target, in the order of measuring, with its metrics."""
    rows: dict[str, list[str]] = {}
    for name in names:
        for row, metrics in medians[name].items():
            known = rows.setdefault(row, [])
            known += [metric for metric in metrics if metric not in known]
    return rows


def ratio(mine: float | None, other: float | None) -> str:
    """One figure divided by another, with a digit that says something however small it is."""
    if mine is None or not other:
        return "-"
    quotient = mine / other
    return f"{quotient:.2f}" if quotient >= 0.01 else f"{quotient:.1g}"


def _verdict_line(verdict: Verdict) -> str:
    goal = verdict.goal
    word = "reached" if verdict.reached else "**missed**"
    return f"| {goal.row} | {goal.metric} | {goal} | {verdict.value:,.3g} | {word} |"


def describe_targets(targets: list[Target]) -> str:
    """The programs under test, in one line."""
    return ", ".join(f"{each.name} ({each.place})" for each in targets)
