"""The plain HTTP pages of the client port: a request and what is known become status and body.

Rules:
1. `plan` decides from method and target alone: an answer, or a `Page` and what it must know.
2. Statuses, headers and bodies are etcd 3.7's to the byte; nothing here asks or waits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from quorate.core.version import CLUSTER_VERSION, SERVER_VERSION, STORAGE_VERSION

TEXT = ("content-type", "text/plain; charset=utf-8")
JSON = ("content-type", "application/json")
NO_SNIFF = ("x-content-type-options", "nosniff")
CORS = (
    ("access-control-allow-headers", "accept, content-type, authorization"),
    ("access-control-allow-methods", "POST, GET, OPTIONS, PUT, DELETE"),
    ("access-control-allow-origin", "*"),
)
ALARM_NAMES = {1: "NOSPACE", 2: "CORRUPT"}
NOT_IMPLEMENTED = b'{"code":12,"message":"etcdserver: not implemented"}'

DATA_CORRUPTION = "data_corruption"
SERIALIZABLE_READ = "serializable_read"
LINEARIZABLE_READ = "linearizable_read"
NON_LEARNER = "non_learner"
CHECKS: dict[str, tuple[str, ...]] = {
    "livez": (SERIALIZABLE_READ,),
    "readyz": (DATA_CORRUPTION, SERIALIZABLE_READ, LINEARIZABLE_READ, NON_LEARNER),
}


class Response(NamedTuple):
    """An HTTP answer without the headers that every answer has."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Facts(NamedTuple):
    """What the core says of itself."""

    leader: bool
    learner: bool
    alarms: tuple[int, ...]
    serializable_error: str  # empty: the member answers
    linearizable_error: str  # empty: the cluster answers; or nobody asked it


class Page(NamedTuple):
    """A page that needs to know something first: `name` is health, checks, metrics or variables."""

    name: str
    linearizable: bool = False  # needs a linearizable read
    checks: tuple[str, ...] = ()
    kind: str = ""  # livez or readyz
    verbose: bool = False
    excluded: frozenset[str] = frozenset()


def plan(method: str, target: str) -> Response | Page:
    """What to do for a request line."""
    if method == "OPTIONS":
        return Response(200, (), b"")
    path, _, query = target.partition("?")
    path = unquote(path)
    parameters = parse_qs(query, keep_blank_values=True)
    if path.startswith(("/v3/", "/v3beta/")):
        return gateway(method, path)
    page = page_of(path, parameters)
    if page is None:
        return error(404, "404 page not found")
    if method != "GET" and (isinstance(page, Response) or page.name in ("health", "checks")):
        return error(405, "Method Not Allowed", (("allow", "GET"),))
    return page


def page_of(path: str, parameters: Mapping[str, list[str]]) -> Response | Page | None:
    """The page at a path; None if there is none."""
    if path == "/version":
        return Response(200, (JSON,), version_body())
    if path == "/health":
        serializable = parameters.get("serializable", [""])[0] == "true"
        excluded = frozenset(parameters.get("exclude", ()))
        return Page("health", linearizable=not serializable, excluded=excluded)
    if path == "/metrics":
        return Page("metrics")
    if path == "/debug/vars":
        return Page("variables")
    kind, slash, check = path[1:].partition("/")
    if kind not in CHECKS or (slash and check not in CHECKS[kind]):
        return None
    excluded = frozenset(parameters.get("exclude", ()))
    names = (check,) if slash else tuple(c for c in CHECKS[kind] if c not in excluded)
    verbose = "verbose" in parameters
    return Page("checks", LINEARIZABLE_READ in names, names, kind, verbose)


def version_body() -> bytes:
    """The JSON of /version."""
    versions = {
        "etcdserver": SERVER_VERSION,
        "etcdcluster": CLUSTER_VERSION,
        "storage": STORAGE_VERSION,
    }
    return compact(versions)


def gateway(method: str, path: str) -> Response:
    """The JSON gateway is not built yet; what it refuses, it refuses in its own words."""
    if path.removeprefix("/v3beta").removeprefix("/v3") not in GATEWAY_PATHS:
        return Response(404, (JSON,), b'{"code":5,"message":"Not Found"}')
    if method != "POST":
        return Response(501, (JSON,), b'{"code":12,"message":"Method Not Allowed"}')
    return Response(501, (JSON,), NOT_IMPLEMENTED)


def health(page: Page, facts: Facts) -> Response:
    """The answer of /health."""
    reason = unhealthy_reason(page, facts)
    body = compact({"health": "false" if reason else "true", "reason": reason})
    if reason:
        return Response(503, (TEXT, NO_SNIFF), body + b"\n")
    return Response(200, (TEXT,), body)


def unhealthy_reason(page: Page, facts: Facts) -> str:
    """Why the member is not healthy; empty if it is. Alarms come first, then leader, then reads."""
    for alarm in facts.alarms:
        name = ALARM_NAMES.get(alarm, "UNKNOWN")
        if name not in page.excluded:
            return f"ALARM {name}"
    if page.linearizable and not facts.leader:
        return "RAFT NO LEADER"
    failed = facts.linearizable_error if page.linearizable else facts.serializable_error
    return f"RANGE ERROR:{failed}" if failed else ""


def checks(page: Page, facts: Facts) -> tuple[Response, dict[str, bool]]:
    """The answer of /livez, /readyz and their checks, and how each check went."""
    failures = {name: check_failure(name, facts) for name in page.checks}
    lines = "".join(
        f"[-]{name} failed: {failure}\n" if failure else f"[+]{name} ok\n"
        for name, failure in failures.items()
    )
    results = {name: not failure for name, failure in failures.items()}
    if any(failures.values()):
        return error(503, lines), results
    body = (lines if page.verbose else "") + "ok\n"
    return Response(200, (TEXT, NO_SNIFF), body.encode()), results


def check_failure(name: str, facts: Facts) -> str:
    """Why a check fails; empty if it does not."""
    if name == DATA_CORRUPTION:
        return "alarm activated: CORRUPT" if 2 in facts.alarms else ""
    if name == NON_LEARNER:
        return "not supported for learner" if facts.learner else ""
    serializable = name == SERIALIZABLE_READ
    failed = facts.serializable_error if serializable else facts.linearizable_error
    return f"range error: {failed}" if failed else ""


def variables(values: Mapping[str, Any]) -> Response:
    """The answer of /debug/vars: one line for each name, as Go's expvar writes them."""
    lines = ",\n".join(f'"{name}": {json.dumps(value)}' for name, value in sorted(values.items()))
    headers = (("content-type", "application/json; charset=utf-8"),)
    return Response(200, headers, f"{{\n{lines}\n}}\n".encode())


def error(status: int, text: str, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """An answer as Go's http.Error makes it."""
    return Response(status, (TEXT, NO_SNIFF, *headers), f"{text}\n".encode())


def compact(value: object) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


# Paths of the JSON gateway without their /v3.
GATEWAY_PATHS = frozenset(
    f"/{service}/{name}"
    for service, names in {
        "auth": "authenticate disable enable status",
        "auth/role": "add delete get grant list revoke",
        "auth/user": "add changepw delete get grant list revoke",
        "cluster/member": "add list promote remove update",
        "election": "campaign leader observe proclaim resign",
        "kv": "compaction deleterange put range txn lease/leases lease/revoke lease/timetolive",
        "lease": "grant keepalive leases revoke timetolive",
        "lock": "lock unlock",
        "maintenance": "alarm defragment downgrade hash hashkv snapshot status transfer-leadership",
    }.items()
    for name in names.split()
) | {"/watch"}
