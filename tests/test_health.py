"""The plain HTTP pages, compared with what etcd 3.7.1 answered."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from quorate.frontends.health import CORS, Facts, Page, Response, checks, health, plan, variables

PROBES = Path(__file__).parent / "recordings" / "probes.json.gz"
RECORDED: dict[str, dict[str, Any]] = json.loads(gzip.decompress(PROBES.read_bytes()))["http1"]
WELL = Facts(True, False, (), "", "")
NO_LEADER = WELL._replace(leader=False, linearizable_error="etcdserver: no leader")
# Not of this module: their bodies come from elsewhere.
ELSEWHERE = {"GET /metrics", "GET /debug/vars"}


def answer(method: str, target: str, facts: Facts = WELL) -> Response:
    page = plan(method, target)
    if isinstance(page, Response):
        return page
    return health(page, facts) if page.name == "health" else checks(page, facts)[0]


@pytest.mark.parametrize("line", sorted(set(RECORDED) - ELSEWHERE))
def test_pages_are_those_of_etcd(line: str) -> None:
    method, target = line.split(" ")
    response = answer(method, target)
    recorded = RECORDED[line]
    assert response.status == recorded["status"]
    assert dict((*CORS, *response.headers)) == recorded["headers"]
    assert method == "HEAD" or response.body.decode() == recorded["body"]


@pytest.mark.parametrize(
    ("target", "facts", "reason"),
    [
        ("/health", WELL._replace(alarms=(1,)), "ALARM NOSPACE"),
        ("/health", WELL._replace(alarms=(2,)), "ALARM CORRUPT"),
        ("/health", WELL._replace(alarms=(9,)), "ALARM UNKNOWN"),
        ("/health?exclude=NOSPACE", WELL._replace(alarms=(1, 2)), "ALARM CORRUPT"),
        ("/health?exclude=NOSPACE&exclude=CORRUPT", WELL._replace(alarms=(1, 2)), ""),
        ("/health", NO_LEADER, "RAFT NO LEADER"),
        ("/health?serializable=true", NO_LEADER, ""),
        ("/health", WELL._replace(linearizable_error="late"), "RANGE ERROR:late"),
        ("/health?serializable=true", WELL._replace(linearizable_error="late"), ""),
        ("/health?serializable=1", WELL._replace(linearizable_error="late"), "RANGE ERROR:late"),
        (
            "/health?serializable=true",
            WELL._replace(serializable_error="off", linearizable_error="off"),
            "RANGE ERROR:off",
        ),
    ],
)
def test_health_says_why_not(target: str, facts: Facts, reason: str) -> None:
    response = answer("GET", target, facts)
    said = json.loads(response.body)
    assert said == {"health": "false" if reason else "true", "reason": reason}
    assert response.status == (503 if reason else 200)


@pytest.mark.parametrize(
    ("target", "facts", "body"),
    [
        (
            "/readyz",
            NO_LEADER,
            "[+]data_corruption ok\n[+]serializable_read ok\n"
            "[-]linearizable_read failed: range error: etcdserver: no leader\n"
            "[+]non_learner ok\n\n",
        ),
        ("/readyz?exclude=linearizable_read", NO_LEADER, "ok\n"),
        ("/livez", NO_LEADER, "ok\n"),
        (
            "/readyz/data_corruption",
            WELL._replace(alarms=(2,)),
            "[-]data_corruption failed: alarm activated: CORRUPT\n\n",
        ),
        (
            "/readyz/non_learner?verbose",
            WELL._replace(learner=True),
            "[-]non_learner failed: not supported for learner\n\n",
        ),
        ("/livez/serializable_read?verbose", WELL, "[+]serializable_read ok\nok\n"),
        ("/livez/linearizable_read", WELL, "404 page not found\n"),
    ],
)
def test_checks_say_why_not(target: str, facts: Facts, body: str) -> None:
    response = answer("GET", target, facts)
    assert response.body.decode() == body
    assert response.status == (200 if body.endswith("ok\n") else 404 if "404" in body else 503)


def test_only_what_needs_it_asks_for_a_linearizable_read() -> None:
    asks = {
        target: page.linearizable
        for target in ("/health", "/health?serializable=true", "/livez", "/readyz", "/metrics",
                       "/readyz?exclude=linearizable_read", "/readyz/linearizable_read")
        if isinstance(page := plan("GET", target), Page)
    }  # fmt: skip
    assert [target for target, linearizable in asks.items() if linearizable] == [
        "/health",
        "/readyz",
        "/readyz/linearizable_read",
    ]


def test_the_gateway_is_said_to_be_missing() -> None:
    assert plan("POST", "/v3/kv/put") == Response(
        501,
        (("content-type", "application/json"),),
        b'{"code":12,"message":"etcdserver: not implemented"}',
    )
    nope = plan("POST", "/v3/nope")
    assert isinstance(nope, Response)
    assert (nope.status, nope.body) == (404, b'{"code":5,"message":"Not Found"}')


def test_variables_are_one_line_each() -> None:
    response = variables({"b": {"x": 1}, "a": [1]})
    assert response.body == b'{\n"a": [1],\n"b": {"x": 1}\n}\n'
    assert json.loads(response.body) == {"a": [1], "b": {"x": 1}}


@pytest.mark.parametrize("target", ["", "/", "//", "/%", "/%ff", "/health%00", "?", "/livez/", "*"])
def test_odd_targets_are_answered(target: str) -> None:
    response = answer("GET", target)
    assert response.status == 404
