"""The cluster's members, their ids, its version and its alarms: what entries made of them.

Rules:
1. `apply_*` is total: whatever a committed entry holds, every member does the same with it and none
   stops. What makes no sense (an id that is not there, broken JSON, a version that is none) changes
   nothing. etcd panics at some of these, and then again at each restart.
2. An id once removed never returns.
3. Ids, JSON and their order are etcd's to the byte: entries, the backend's buckets and the
   configuration that joining members compare are made of them.
4. Lists are sorted, so that all members and all runs answer alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ._run import Run
from .errors import MalformedError
from .messages import (
    AlarmAction,
    AlarmMember,
    AlarmRequest,
    AlarmType,
    Attributes,
    ClusterMemberAttrSetRequest,
    ClusterVersionSetRequest,
    ConfChange,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    EntryType,
    InternalRaftRequest,
    RequestV2,
)

_VERSION = re.compile(r"(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})", re.ASCII)
_VERSION_PATH = "/0/version"
_ATTRIBUTES_PATH = re.compile(r"/0/members/([0-9a-fA-F]{1,16})/attributes", re.ASCII)

# What Go's encoding/json escapes and Python's does not.
_GO_ESCAPES = {
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def _cut(digest: bytes) -> int:
    """The first eight bytes as a number: how etcd makes ids of a SHA-1."""
    return int.from_bytes(digest[:8], "big")


def member_id(peer_urls: Iterable[str], cluster_token: str, unix_time: int | None = None) -> int:
    """A member's id; `unix_time` for one that is added to a running cluster."""
    text = "".join(sorted(peer_urls)) + cluster_token
    if unix_time is not None:
        text += str(unix_time)
    return _cut(hashlib.sha1(text.encode(), usedforsecurity=False).digest())


def cluster_id(member_ids: Iterable[int]) -> int:
    """The id of the cluster that begins with these members."""
    data = b"".join(id.to_bytes(8, "big") for id in sorted(member_ids))
    return _cut(hashlib.sha1(data, usedforsecurity=False).digest())


def go_json(value: object) -> str:
    """JSON as Go's encoding/json writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_GO_ESCAPES)


@dataclass(frozen=True, slots=True)
class Member:
    """One member, as MemberList shows it; without a name it has not started yet."""

    id: int
    peer_urls: tuple[str, ...] = ()
    is_learner: bool = False
    name: str = ""
    client_urls: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """etcd's JSON of the member: a change's context, and the value in the bucket `members`."""
        value: dict[str, object] = {"id": self.id, "peerURLs": self.peer_urls or None}
        if self.is_learner:
            value["isLearner"] = True
        if self.name:
            value["name"] = self.name
        if self.client_urls:
            value["clientURLs"] = self.client_urls
        return go_json(value).encode()


def member_from_json(data: bytes) -> tuple[Member, bool]:
    """The member in etcd's JSON, and whether the change is a learner's promotion.

    Raises MalformedError.
    """
    value = _json_object(data)
    id = value.get("id", 0)
    flags = [value.get(key, False) for key in ("isLearner", "isPromote")]
    if type(id) is not int or not 0 <= id < 1 << 64 or any(type(f) is not bool for f in flags):
        raise MalformedError
    peer_urls = _texts(value.get("peerURLs"))
    attributes = _attributes(value)
    member = Member(id, peer_urls, flags[0] is True, attributes.name, attributes.client_urls)
    return member, flags[1] is True


@dataclass(frozen=True, slots=True)
class Cluster:
    """What files say of members: those that are there, the ids of those removed, the version."""

    members: tuple[Member, ...] = ()
    removed: tuple[int, ...] = ()
    version: str = ""


def member_from_attributes(id: int, raft_attributes: str, attributes: str) -> Member:
    """The member in the two values that the v2 tree has of it. Raises MalformedError."""
    raft = _json_object(raft_attributes.encode("utf-8", "surrogatepass"))
    published = _attributes(_json_object(attributes.encode("utf-8", "surrogatepass")))
    return Member(
        id,
        _texts(raft.get("peerURLs")),
        raft.get("isLearner") is True,
        published.name,
        published.client_urls,
    )


def member_attributes(member: Member) -> tuple[str, str]:
    """These two values; the second is empty for a member that never started."""
    raft: dict[str, object] = {"peerURLs": member.peer_urls or None}
    if member.is_learner:
        raft["isLearner"] = True
    published: dict[str, object] = {}
    if member.name:
        published["name"] = member.name
    if member.client_urls:
        published["clientURLs"] = member.client_urls
    return go_json(raft), go_json(published) if published else ""


def _json_object(data: bytes) -> dict[str, object]:
    """A JSON object; raises MalformedError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedError from None
    if not isinstance(value, dict):
        raise MalformedError
    return value


def _texts(value: object) -> tuple[str, ...]:
    """A list of strings; null and nothing are an empty one."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise MalformedError
    return tuple(_valid_text(text) for text in value)


def _valid_text(text: str) -> str:
    """Half of a surrogate pair is no character: as Go, take the replacement character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _attributes(value: Mapping[str, object]) -> Attributes:
    """Name and client URLs in a JSON object."""
    name = value.get("name", "")
    if not isinstance(name, str):
        raise MalformedError
    return Attributes(_valid_text(name), _texts(value.get("clientURLs")))


def initial_members(
    initial_cluster: Mapping[str, Sequence[str]], cluster_token: str
) -> list[Member]:
    """The members that --initial-cluster names, in etcd's order: by id.

    The peer URLs are what etcd makes of the flag's: parsed and written again.
    """
    members = [
        Member(member_id(urls, cluster_token), tuple(sorted(urls)), name=name)
        for name, urls in initial_cluster.items()
    ]
    return sorted(members, key=lambda member: member.id)


def bootstrap_runs(members: Sequence[Member]) -> tuple[list[Run], ConfState]:
    """A new cluster's first entries, each alone in its run, and what they configure."""
    changes = [
        ConfChange(type=ConfChangeType.ADD_NODE, node_id=member.id, context=member.to_json())
        for member in members
    ]
    runs = [Run.of([(EntryType.CONF_CHANGE, change.encode())]) for change in changes]
    return runs, ConfState(tuple(sorted(member.id for member in members)))


class Members:
    """The replicated state of this file; its `apply_*` see committed entries only, in order."""

    __slots__ = ("_alarms", "_members", "_removed", "cluster_version")

    def __init__(self) -> None:
        self._members: dict[int, Member] = {}
        self._removed: set[int] = set()
        self._alarms: set[AlarmMember] = set()
        # "" until the first leader has set it.
        self.cluster_version = ""

    # --- what others ask

    def __contains__(self, id: int) -> bool:
        return id in self._members

    def get(self, id: int) -> Member | None:
        """The member of that id."""
        return self._members.get(id)

    def list(self) -> Sequence[Member]:
        """All members by id: what MemberList answers."""
        return sorted(self._members.values(), key=lambda member: member.id)

    def removed(self) -> Sequence[int]:
        """The ids that may never return."""
        return sorted(self._removed)

    def alarms(self, alarm: int = AlarmType.NONE) -> Sequence[AlarmMember]:
        """The alarms of that type, or all: by type, then by member."""
        wanted = [each for each in self._alarms if alarm in (AlarmType.NONE, each.alarm)]
        return sorted(wanted, key=lambda each: (each.alarm, each.member_id))

    def has_alarm(self, alarm: AlarmType) -> bool:
        """Whether any member raised it: then all obey it."""
        return any(each.alarm == alarm for each in self._alarms)

    # --- what entries do

    def restore(self, cluster: Cluster, alarms: Iterable[AlarmMember]) -> None:
        """Be what the entries up to some index left, as files say."""
        self._members = {member.id: member for member in cluster.members}
        self._removed = set(cluster.removed)
        self._alarms = {each for each in alarms if each.alarm != AlarmType.NONE}
        if _VERSION.fullmatch(cluster.version):
            self.cluster_version = cluster.version

    def apply_request(self, request: InternalRaftRequest) -> Sequence[AlarmMember]:
        """A normal entry's part for this file; answers the alarms that an AlarmResponse lists.

        Of several requests in one entry, which nobody writes, the first in etcd's order counts.
        """
        if request.v2 is not None:
            self._apply_v2(request.v2)
        elif request.cluster_version_set is not None:
            self.apply_cluster_version(request.cluster_version_set)
        elif request.cluster_member_attr_set is not None:
            self.apply_attributes(request.cluster_member_attr_set)
        elif request.alarm is not None:
            return self.apply_alarm(request.alarm)
        return ()

    def apply_alarm(self, request: AlarmRequest) -> Sequence[AlarmMember]:
        """Ask, raise or clear; an action that is none of these does nothing."""
        alarm = AlarmMember(request.member_id, request.alarm)
        if request.action == AlarmAction.GET:
            return self.alarms(request.alarm)
        if request.action == AlarmAction.ACTIVATE and request.alarm != AlarmType.NONE:
            self._alarms.add(alarm)
            return (alarm,)
        if request.action == AlarmAction.DEACTIVATE and alarm in self._alarms:
            self._alarms.remove(alarm)
            return (alarm,)
        return ()

    def apply_cluster_version(self, request: ClusterVersionSetRequest) -> None:
        """Take the version that the leader found all members to have."""
        if _VERSION.fullmatch(request.version):
            self.cluster_version = request.version

    def apply_attributes(self, request: ClusterMemberAttrSetRequest) -> None:
        """A member published itself."""
        member = self._members.get(request.member_id)
        attributes = request.member_attributes
        if member is not None and attributes is not None:
            self._members[member.id] = replace(
                member, name=attributes.name, client_urls=attributes.client_urls
            )

    def _apply_v2(self, request: RequestV2) -> None:
        """The two writes of the v2 API that tell of the cluster; the others went with the API."""
        if request.method != "PUT":
            return
        if request.path == _VERSION_PATH:
            self.apply_cluster_version(ClusterVersionSetRequest(request.value))
            return
        match = _ATTRIBUTES_PATH.fullmatch(request.path)
        if match is None:
            return
        try:
            attributes = _attributes(_json_object(request.value.encode()))
        except MalformedError:
            return
        self.apply_attributes(ClusterMemberAttrSetRequest(int(match[1], 16), attributes))

    def apply_conf_change(self, entry_type: int, data: bytes) -> ConfChangeV2:
        """A configuration change; answers what raft is to apply: nothing, when it is refused."""
        if entry_type != EntryType.CONF_CHANGE:
            # etcd writes no ConfChangeV2; what one would do to the members is not defined.
            return ConfChangeV2()
        try:
            change = ConfChange.decode(data)
            if self._change(change):
                return change.as_v2()
        except MalformedError:
            pass
        return ConfChangeV2()

    def _change(self, change: ConfChange) -> bool:
        """Change the members; False when that is refused. Raises MalformedError."""
        id = change.node_id
        before = self._members.get(id)
        if id == 0 or id in self._removed:
            return False
        if change.type == ConfChangeType.REMOVE_NODE:
            return before is not None and self._remove(before)
        member, is_promote = member_from_json(change.context)
        if member.id != id:
            return False
        if change.type == ConfChangeType.UPDATE_NODE:
            if before is None or self._peer_urls_in_use(member):
                return False
            # An update is of URLs: in etcd it can make a voter of a learner, unasked.
            self._members[id] = replace(before, peer_urls=member.peer_urls)
            return True
        if change.type == ConfChangeType.ADD_NODE and is_promote:
            if before is None or not before.is_learner:
                return False
            self._members[id] = replace(before, is_learner=False)
            return True
        if change.type in (ConfChangeType.ADD_NODE, ConfChangeType.ADD_LEARNER_NODE):
            return before is None and self._add(change, member)
        return False

    def _add(self, change: ConfChange, member: Member) -> bool:
        """Add a new member; what the change calls it, voter or learner, is what it is."""
        if self._peer_urls_in_use(member):
            return False
        is_learner = change.type == ConfChangeType.ADD_LEARNER_NODE
        self._members[member.id] = replace(member, is_learner=is_learner)
        return True

    def _remove(self, member: Member) -> bool:
        """Remove a member for good, with its alarms left to be cleared; never the last voter."""
        voters = [each for each in self._members.values() if not each.is_learner]
        if voters == [member]:
            return False
        del self._members[member.id]
        self._removed.add(member.id)
        return True

    def _peer_urls_in_use(self, member: Member) -> bool:
        """Whether another member has one of these URLs."""
        return any(
            url in other.peer_urls
            for other in self._members.values()
            if other.id != member.id
            for url in member.peer_urls
        )

    def check(self) -> None:
        """Walk every invariant; for tests and the debug build."""
        for id, member in self._members.items():
            assert id == member.id != 0, (id, member)
        assert not self._removed & self._members.keys(), self._removed
        assert all(each.alarm != AlarmType.NONE for each in self._alarms), self._alarms
