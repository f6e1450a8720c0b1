"""The replicated state: what committed entries have made of store, members and alarms.

Rules:
1. Apply is total: whatever a committed entry holds, every member does the same with it and goes on.
   The one exception is an entry that only a later version can apply: to skip it would make this
   member another than the others, so the process stops and says so.
2. KV and lease requests are applied by `_apply.pyx`, which no Python runs for; the rest comes
   through `apply_other`, one entry at a time, in its place in the order.
3. Who proposed an entry in Python hears of it here, by the entry's id, after it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ._apply import Applier
from ._mvcc import Store
from ._port import Port
from .errors import EtcdError, Fatal, MalformedError
from .logs import Logger
from .members import Cluster, Members
from .messages import (
    AlarmMember,
    AlarmType,
    ConfChangeV2,
    ConfState,
    EntryType,
    decode_request,
)
from .protobuf import fields

# Fields of InternalRaftRequest that this version cannot apply: auth, downgrades.
FIELDS_NOT_APPLIED = frozenset({*range(1000, 1300), 1302})

# Gets the alarms that a proposed AlarmRequest changed, or why it was not applied.
AlarmsDone = Callable[[Sequence[AlarmMember] | EtcdError], None]


# (bucket, key) -> the value that a checkpoint would write, and that of the file; None for none.
UnlikeRows = Mapping[tuple[bytes, bytes], tuple[bytes | None, bytes | None]]


class State:
    """The replicated state of one member. `ports` is where those who wait for entries are."""

    def __init__(self, ports: list[Port | None], logger: Logger) -> None:
        self.logger = logger
        self.store = Store()
        self.members = Members()
        self.applier = Applier(self.store, ports, self.apply_other)
        # Hears of every configuration change while it is being applied; raft, once there is one.
        self.conf_changed: Callable[[ConfChangeV2], object] = lambda change: None
        # What the backend file says otherwise; a checkpoint ends that. See `buckets.py`, rule 5.
        self.unlike_rows: UnlikeRows = {}
        self._waiting: dict[int, AlarmsDone] = {}

    @property
    def applied(self) -> int:
        """The raft index of the last entry applied."""
        return self.applier.applied

    def conf_state(self) -> ConfState:
        """The configuration that the applied entries left."""
        members = self.members.list()
        return ConfState(
            tuple(member.id for member in members if not member.is_learner),
            tuple(member.id for member in members if member.is_learner),
        )

    def await_entry(self, entry_id: int, done: AlarmsDone) -> None:
        """Call `done` when the entry with this id, proposed by this process, is applied."""
        self._waiting[entry_id] = done

    def refuse_entry(self, entry_id: int, error: EtcdError) -> None:
        """Tell who awaits an entry that it was not taken."""
        self._waiting.pop(entry_id)(error)

    def apply_other(self, entry_type: int, index: int, data: bytes) -> None:
        """Apply an entry that `_apply.pyx` leaves to Python. Raises Fatal, as rule 1 says."""
        if entry_type != EntryType.NORMAL:
            self.conf_changed(self.members.apply_conf_change(entry_type, data))
            return
        try:
            if index > self.applier.restored:
                refuse_unknown(index, data)
            request = decode_request(data)
        except MalformedError:
            self.logger.error("entry does not decode and changes nothing", index=index)
            return
        changed = self.members.apply_request(request)
        self.obey_alarms()
        if request.header is not None:
            done = self._waiting.pop(request.header.id, None)
            if done is not None:
                done(changed)

    def restore(
        self, index: int, restored: int, cluster: Cluster, alarms: Iterable[AlarmMember]
    ) -> None:
        """Go on behind `index`: the store has what entries up to `restored` did, see Applier."""
        self.members.restore(cluster, alarms)
        self.obey_alarms()
        self.applier.resume(index, restored)

    def obey_alarms(self) -> None:
        """Do what the alarms that are on forbid and allow."""
        self.applier.no_space = self.members.has_alarm(AlarmType.NOSPACE)
        self.applier.corrupt = self.members.has_alarm(AlarmType.CORRUPT)


def refuse_unknown(index: int, data: bytes) -> None:
    """Stop at an entry that this version cannot apply. Raises Fatal, MalformedError."""
    for number, _, _ in fields(data):
        if number in FIELDS_NOT_APPLIED:
            raise Fatal(
                f"entry {index} of the log holds a request (field {number}) that this version "
                "cannot apply; start the etcd that wrote it, or a newer quorate"
            )
