"""What quorate wants to reach, as a table: which figure, compared with what, and how.

A goal compares a figure of quorate with one of `AGAINST`: the first etcd of the command line, the
newest etcd among them, quorate's own echo rate, another of its rows, or nothing (a plain number).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.watching import FAN_OUTS
from bench.workloads import SHAPES, Rows

AT_LEAST = ">="
AT_MOST = "<="


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    row: str
    metric: str
    relation: str
    bound: float
    against: str = ""
    """"etcd", "newest etcd", "quorate" (then with `other_row`), or nothing for a plain number."""
    other_row: str = ""

    def __str__(self) -> str:
        if not self.against:
            return f"{self.relation} {self.bound:g} {unit(self.metric)}".rstrip()
        of = self.other_row if self.against == "quorate" else self.against
        return f"{self.relation} {self.bound:g} x {of}"


@dataclass(frozen=True)
class Verdict:
    """A goal and what came of it."""

    goal: Goal
    value: float
    """In the goal's terms: a ratio, or the figure itself."""

    @property
    def reached(self) -> bool:
        """Whether the goal is met."""
        if self.goal.relation == AT_LEAST:
            return self.value >= self.goal.bound
        return self.value <= self.goal.bound


UNITS = {
    "per_second": "/s",
    "us": "µs",
    "mib": "MiB",
    "percent": "%",
    "seconds": "s",
    "mib_per_second": "MiB/s",
    "bytes_per_key": "bytes/key",
    "bytes_per_watch": "bytes/watch",
    "bytes_per_lease": "bytes/lease",
    "bytes_per_byte": "bytes/byte",
}


def unit(metric: str) -> str:
    """What a metric is counted in, from the end of its name."""
    for ending in sorted(UNITS, key=len, reverse=True):
        if metric.endswith(ending):
            return UNITS[ending]
    return ""


def _goals() -> tuple[Goal, ...]:
    goals = [Goal("put 1x1, one key", "p50_us", AT_MOST, 0.65, "etcd")]
    put_ratios = {(1, 100): (4.5, 0.40), (10, 10): (4.5, 0.40), (100, 10): (5.5, 0.65)}
    for shape in SHAPES:
        name = f"{shape[0]}x{shape[1]}"
        times, share = put_ratios[shape]
        for keys in ("one key", "100,000 keys"):
            row = f"put {name}, {keys}"
            echo = f"echo put {name}"
            goals += [
                Goal(row, "per_second", AT_LEAST, times, "etcd"),
                Goal(row, "per_second", AT_LEAST, share, "quorate", echo),
                Goal(row, "cpu_us", AT_MOST, 10),
            ]
        linearizable = f"get {name}, linearizable"
        goals.append(Goal(linearizable, "per_second", AT_LEAST, 7, "etcd"))
        for row in (linearizable, f"get {name}, serializable"):
            echo = f"echo get {name}"
            goals += [
                Goal(row, "per_second", AT_LEAST, 0.60, "quorate", echo),
                Goal(row, "cpu_us", AT_MOST, 6),
            ]
    goals += [
        Goal("txn 100x10", "per_second", AT_LEAST, 5, "etcd"),
        Goal("txn 100x10", "cpu_us", AT_MOST, 14),
        Goal("count of all", "p50_us", AT_MOST, 1000),
        Goal("list, limit 500", "p50_us", AT_MOST, 1000),
        Goal("five lists of all", "extra_peak_mib", AT_MOST, 64),
        Goal("put, five lists beside", "p99_us", AT_MOST, 2, "quorate", "put, no lists beside"),
        Goal("memory of 1,000,000 keys", "pss_mib", AT_MOST, 0.8, "newest etcd"),
        Goal("memory of 1,000,000 keys", "overhead_bytes_per_key", AT_MOST, 120),
        Goal(
            "put, compaction beside",
            "p999_us",
            AT_MOST,
            1.2,
            "quorate",
            "put, no compaction beside",
        ),
        Goal("idle", "pss_mib", AT_MOST, 45),
        Goal("idle", "cpu_percent", AT_MOST, 0.3),
        Goal("start", "seconds", AT_MOST, 0.5),
    ]
    return tuple(goals)


def _watch_goals() -> tuple[Goal, ...]:
    slow = "quick watchers, 1,000 slow ones beside"
    goals = [Goal(row, "per_second", AT_LEAST, 5, "etcd") for row in FAN_OUTS]
    # With a connection for each watcher the system calls alone cost more.
    goals += [
        Goal(row, "cpu_us", AT_MOST, 0.6) for row in FAN_OUTS if row.endswith(" 10 connections")
    ]
    for row in ("put to event, 200 puts/s", "put to event, half of etcd's most"):
        goals += [
            Goal(row, "p50_us", AT_MOST, 0.7, "etcd"),
            Goal(row, "p99_us", AT_MOST, 0.3, "etcd"),
        ]
    goals += [
        Goal(
            "put 10x10, 100,000 watchers beside",
            "per_second",
            AT_LEAST,
            0.95,
            "quorate",
            "put 10x10, no watchers beside",
        ),
        Goal("put, a watcher behind", "p99_us", AT_MOST, 1.1, "quorate", "put, no watcher behind"),
        Goal("a watcher 500,000 behind", "seen_percent", AT_LEAST, 100),
        Goal(slow, "p99_us", AT_MOST, 1.2, "quorate", "quick watchers, no slow ones"),
        Goal("1,000 slow watchers", "extra_peak_mib", AT_MOST, 64),
        Goal("memory of 1,000,000 watches", "pss_mib", AT_MOST, 0.3, "etcd"),
    ]
    return tuple(goals)


def _lease_goals() -> tuple[Goal, ...]:
    return (
        Goal("keep-alive 10x10", "per_second", AT_LEAST, 5, "etcd"),
        Goal("100,000 leases due at once", "late_seconds", AT_MOST, 2),
        Goal("100,000 leases due at once", "ended_percent", AT_LEAST, 100),
        Goal("put, leases due", "p99_us", AT_MOST, 2, "quorate", "put, no leases due"),
        Goal("1,000,000 keys with a lease each", "bytes_per_lease", AT_MOST, 150),
        Goal("1,000,000 keys with a lease each", "more_seconds", AT_MOST, 1),
    )


def _disk_goals() -> tuple[Goal, ...]:
    goals = []
    for count in ("1,000,000", "5,000,000"):
        row = f"restart on {count} keys"
        goals += [
            Goal(f"{row}, after SIGTERM", "seconds", AT_MOST, 0.2, "etcd"),
            Goal(f"{row}, after kill -9", "seconds", AT_MOST, 0.5, "etcd"),
        ]
    for busy, quiet in (
        ("checkpoints beside", "no checkpoint beside"),
        ("a slow snapshot beside", "no snapshot beside"),
        ("fast snapshots beside", "no snapshot beside"),
    ):
        goals += [
            Goal(f"put, {busy}", "p99_us", AT_MOST, 1.2, "quorate", f"put, {quiet}"),
            Goal(
                f"put 10x10, {busy}", "per_second", AT_LEAST, 0.85, "quorate",
                f"put 10x10, {quiet}",
            ),
        ]  # fmt: skip
    for row in (
        "bytes of 1,000,000 new keys",
        "bytes of 1,000,000 overwrites",
        "bytes of a mix of 600 seconds",
    ):
        goals += [
            Goal(row, "unfilled_bytes_per_byte", AT_MOST, 0.75, "etcd"),
            Goal(row, "written_bytes_per_byte", AT_MOST, 1.1, "etcd"),
            Goal(row, "log_bytes_per_byte", AT_MOST, 1.25),
        ]
    large = "5,000,000 keys of 2 KB"
    goals += [
        Goal("memory of 1,000,000 keys in the file", "anonymous_mib", AT_MOST, 0.4 * 422),
        Goal(f"put 10x10, {large}", "per_second", AT_LEAST, 0.9, "quorate", EMPTY_PUT),
        Goal(f"get 10x10, {large}", "per_second", AT_LEAST, 0.9, "quorate", EMPTY_GET),
        Goal(f"memory of {large}", "anonymous_mib", AT_MOST, 1024),
        Goal("snapshot of 1,000,000 keys of 1 KB", "seconds", AT_MOST, 0.5, "etcd"),
    ]
    return tuple(goals)


EMPTY_PUT, EMPTY_GET = "put 10x10, an empty store", "get 10x10, an empty store"
GOALS = (*_goals(), *_watch_goals(), *_lease_goals(), *_disk_goals())


def judge(
    results: Mapping[str, Rows], quorate: str, etcd: str | None, newest: str | None
) -> list[Verdict]:
    """What came of each goal that the measured rows can answer; results are by target and row."""
    others = {"etcd": etcd, "newest etcd": newest, "quorate": quorate}
    verdicts = []
    for goal in GOALS:
        value = results.get(quorate, {}).get(goal.row, {}).get(goal.metric)
        if goal.against and value is not None:
            rows = results.get(others[goal.against] or "", {})
            other = rows.get(goal.other_row or goal.row, {}).get(goal.metric)
            value = value / other if other else None
        if value is not None:
            verdicts.append(Verdict(goal, value))
    return verdicts
