"""grpc.health.v1: whether this member serves; the only service is the server itself, ''."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from quorate.api.grpc.health.v1 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthCheckResponseServingStatus,
    HealthListRequest,
    HealthListResponse,
)
from quorate.api.grpc.health.v1.services import HealthBase
from quorate.core.admincalls import AdminCall
from quorate.core.errors import EtcdError
from quorate.core.limits import HEALTH_WATCH_SECONDS
from quorate.workers.calls import Core

SERVING = HealthCheckResponseServingStatus.SERVING
NOT_SERVING = HealthCheckResponseServingStatus.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponseServingStatus.SERVICE_UNKNOWN


class Health(HealthBase):
    """SERVING while the core answers and knows a leader."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def check(self, message: HealthCheckRequest) -> HealthCheckResponse:
        """The status now. Raises NOT_FOUND for any service but ''."""
        if message.service:
            raise GRPCError(Status.NOT_FOUND, "unknown service")
        return HealthCheckResponse(status=await self._status())

    async def list(self, message: HealthListRequest) -> HealthListResponse:
        """The status now of the one service."""
        return HealthListResponse(statuses={"": HealthCheckResponse(status=await self._status())})

    async def watch(self, message: HealthCheckRequest) -> AsyncIterator[HealthCheckResponse]:
        """The status now, and again whenever it has changed."""
        if message.service:
            yield HealthCheckResponse(status=SERVICE_UNKNOWN)
            await trio.sleep_forever()
        told = None
        while True:
            status = await self._status()
            if status != told:
                yield HealthCheckResponse(status=status)
                told = status
            await trio.sleep(HEALTH_WATCH_SECONDS)

    async def _status(self) -> HealthCheckResponseServingStatus:
        try:
            health = json.loads(await self._core.ask(AdminCall.HEALTH, b"0"))
        except EtcdError:
            return NOT_SERVING
        return SERVING if health["leader"] else NOT_SERVING
