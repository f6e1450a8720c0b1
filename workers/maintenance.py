"""The Maintenance service, without what is hot (Hash, HashKV) or not built yet."""

from __future__ import annotations

from grpclib.const import Cardinality, Handler

from quorate.api.etcdserverpb import (
    AlarmRequest,
    AlarmRequestAlarmAction,
    AlarmResponse,
    DefragmentRequest,
    DefragmentResponse,
    SnapshotRequest,
    SnapshotResponse,
    StatusRequest,
    StatusResponse,
)
from quorate.api.etcdserverpb.services import MaintenanceBase
from quorate.core.admincalls import AdminCall
from quorate.core.errors import InvalidAlarmActionError
from quorate.workers.calls import Core
from quorate.workers.snapshot import Snapshots

SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"


class Maintenance(MaintenanceBase):
    """Asks the core for its state."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._snapshots = Snapshots(core)

    async def alarm(self, message: AlarmRequest) -> AlarmResponse:
        """Raises InvalidAlarmActionError for an action that would end etcd."""
        if message.action not in list(AlarmRequestAlarmAction):
            raise InvalidAlarmActionError
        return AlarmResponse.parse(await self._core.ask(AdminCall.ALARM, bytes(message)))

    async def status(self, message: StatusRequest) -> StatusResponse:
        """Also of a member without a leader."""
        return StatusResponse.parse(await self._core.ask(AdminCall.STATUS, bytes(message)))

    async def defragment(self, message: DefragmentRequest) -> DefragmentResponse:
        """There is nothing to do, and the core says so at once."""
        return DefragmentResponse.parse(await self._core.ask(AdminCall.DEFRAGMENT, bytes(message)))

    def __mapping__(self) -> dict[str, Handler]:
        """Of each path; Snapshot's handler encodes its messages itself."""
        snapshot = Handler(
            self._snapshots.serve, Cardinality.UNARY_STREAM, SnapshotRequest, SnapshotResponse
        )
        return {**super().__mapping__(), SNAPSHOT: snapshot}
