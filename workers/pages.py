"""Answers the plain HTTP pages: asks what a page must know, and has `frontends/health` write it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import trio

from quorate.core.admincalls import AdminCall
from quorate.core.errors import EtcdError
from quorate.frontends.counters import (
    HEALTH_FAILURES,
    HEALTH_SUCCESS,
    METRICS_REQUESTS,
    Counters,
    check_name,
    unpack,
)
from quorate.frontends.health import (
    Facts,
    Page,
    Response,
    checks,
    error,
    health,
    plan,
    variables,
)
from quorate.workers.calls import Core
from quorate.workers.processes import process_values


class Pages:
    """The pages of one worker."""

    def __init__(self, core: Core, counters: Counters, publish: Callable[[], None]) -> None:
        self._core = core
        self._counters = counters
        self._publish = publish
        self._rendering = trio.CapacityLimiter(1)

    async def answer(self, method: str, target: str) -> Response:
        """The answer to a request line; it never fails, whatever the core does."""
        page = plan(method, target)
        if isinstance(page, Response):
            return page
        if page.name == "metrics":
            return await self._metrics()
        if page.name == "variables":
            return await self._variables()
        facts = await self._facts(page)
        if page.name == "health":
            response = health(page, facts)
            success = response.status == 200
            self._counters.named[HEALTH_SUCCESS if success else HEALTH_FAILURES] += 1
            return response
        response, results = checks(page, facts)
        for check, success in results.items():
            self._counters.named[check_name(page.kind, check, success)] += 1
        return response

    async def _facts(self, page: Page) -> Facts:
        known: dict[str, Any] = {"leader": False, "learner": False, "alarms": []}
        serializable_error = linearizable_error = ""
        try:
            known = json.loads(await self._core.ask(AdminCall.HEALTH, b"0"))
            if page.linearizable and known["leader"]:
                await self._core.ask(AdminCall.HEALTH, b"1")
            elif page.linearizable:
                linearizable_error = "etcdserver: no leader"
        except EtcdError as failed:
            linearizable_error = failed.text
            serializable_error = failed.text if not known["leader"] else ""
        return Facts(
            known["leader"],
            known["learner"],
            tuple(known["alarms"]),
            serializable_error,
            linearizable_error,
        )

    async def _metrics(self) -> Response:
        self._counters.named[METRICS_REQUESTS] += 1
        self._publish()
        try:
            core = json.loads(await self._core.ask(AdminCall.METRICS))
        except EtcdError as failed:
            return error(503, failed.text)
        # In a thread, because it takes some 20 ms; one at a time, because it takes CPU.
        headers, body = await trio.to_thread.run_sync(render, core, limiter=self._rendering)
        return Response(200, (("content-type", headers),), body)

    async def _variables(self) -> Response:
        try:
            core = json.loads(await self._core.ask(AdminCall.METRICS))
        except EtcdError as failed:
            return error(503, failed.text)
        figures, process = core["figures"], process_values(os.getppid())
        raft = {
            "id": f"{figures['member_id']:x}",
            "term": figures["raft_term"],
            "commit": figures["raft_index"],
            "applied": figures["raft_applied_index"],
            "lead": f"{figures['leader_id']:x}",
        }
        return variables(
            {
                "cmdline": command_line(os.getppid()),
                "file_descriptor_limit": process["os_fd_limit"],
                "memstats": {"Sys": process["process_resident_memory_bytes"]},
                "raft.status": raft,
            }
        )


def render(core: dict[str, Any]) -> tuple[str, bytes]:
    """The content type and the text of /metrics; loads prometheus-client when it is first asked."""
    from quorate.frontends.metrics import CONTENT_TYPE, exposition

    process = process_values(os.getppid())
    return CONTENT_TYPE, exposition(core, process, unpack(core["counters"]))


def command_line(process: int) -> list[str]:
    """The arguments that a process was started with."""
    try:
        with open(f"/proc/{process}/cmdline", encoding="utf-8", errors="replace") as file:
            return file.read().split("\0")[:-1]
    except OSError:
        return []
