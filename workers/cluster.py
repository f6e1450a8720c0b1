"""The Cluster service: the list of members; changes of it are not built yet."""

from __future__ import annotations

from quorate.api.etcdserverpb import MemberListRequest, MemberListResponse
from quorate.api.etcdserverpb.services import ClusterBase
from quorate.core.admincalls import AdminCall
from quorate.workers.calls import Core


class Cluster(ClusterBase):
    """Asks the core for the members."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def member_list(self, message: MemberListRequest) -> MemberListResponse:
        """All members; the core waits for its read index if the request is linearizable."""
        reply = await self._core.ask(AdminCall.MEMBER_LIST, bytes(message))
        return MemberListResponse.parse(reply)
