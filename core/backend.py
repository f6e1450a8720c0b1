"""The backend file `member/snap/db` becomes the state at its index.

Rules:
1. The file is etcd's: a bbolt file with etcd's buckets, of any release from 3.4 to 3.7. It is
   mapped and read, never written here.
2. Its `consistent_index` says up to which entry of the log it holds what entries did to keys,
   leases and alarms; none of these is applied to them again.
3. Up to 3.5 (a file without a storage version) etcd's members are in its snapshot files and in the
   log behind them; what the file says of members may be another cluster's. So the log is read from
   such a snapshot on, or from its beginning. The same where a tool of then has restored a newer
   file: it writes a snapshot and an index, and leaves members, term and version as they were.
4. What the file holds and this version cannot serve (users that are asked for passwords, a newer
   storage version) is refused before anything is changed.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ._bolt import Bolt
from ._disk import Disk, DiskError
from ._mapping import Mapping
from ._restore import BackendError, Restore
from ._walread import SEGMENT_NAME
from .apply import State
from .errors import Fatal, MalformedError
from .limits import BACKEND_REACH_MIN
from .logs import Logger, Progress
from .members import Cluster, member_from_json
from .messages import AlarmMember
from .snapfile import read_snapshot, snapshot_names

# Pairs restored between two looks at the clock: some milliseconds.
STEP = 10_000
STORAGE_VERSION_MAX = (3, 7)
_STORAGE_VERSION = re.compile(rb"(\d{1,9})\.(\d{1,9})\.\d{1,9}")
_MEMBER_KEY = re.compile(rb"[0-9a-f]{1,16}")


@dataclass(frozen=True)
class Start:
    """Whose members the log goes on from, and where."""

    index: int = 0
    term: int = 0
    """0: the log tells it."""
    cluster: Cluster = field(default_factory=Cluster)


@dataclass(frozen=True)
class Backend:
    """A backend file, opened and not yet read."""

    path: str
    bolt: Bolt
    mapping: Mapping

    @property
    def size(self) -> int:
        """Bytes of the file that mean something: what comes behind them is nobody's."""
        return self.bolt.high_water * self.bolt.page_size

    @property
    def index(self) -> int:
        """Of the last entry that it holds; 0 for a file that no entry has touched."""
        value = self.mark(b"consistent_index") or bytes(8)
        if len(value) != 8:
            raise BackendError(self.path, b"consistent_index", "a number has eight bytes")
        return int.from_bytes(value, "big")

    @property
    def has_members(self) -> bool:
        """Whether it is believed in what it says of members; see rule 3."""
        return self.mark(b"storageVersion") is not None

    def mark(self, key: bytes) -> bytes | None:
        """What is known of the file as a whole."""
        return dict(self.items(b"meta")).get(key)

    @property
    def storage_version(self) -> str:
        """As etcd tells it: 3.5 has no mark of it, but a term, which 3.4 has not."""
        version = self.mark(b"storageVersion")
        if version is not None:
            return version.decode(errors="replace")
        return "3.5.0" if any(self.mark(b"term") or b"") else ""

    def revision(self, key: bytes) -> int:
        """A revision among the marks; 0 when there is none. Raises BackendError."""
        value = self.mark(key)
        if value is None:
            return 0
        if len(value) != 17 or value[8:9] != b"_" or value[0] > 127:
            raise BackendError(self.path, key, "this is no revision")
        return int.from_bytes(value[:8], "big")

    def items(self, bucket: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of a small bucket; none if there is no such bucket."""
        if bucket in self.bolt.buckets():
            for key, value in self.bolt.items(bucket):
                yield key, value or b""


def open_backend(disk: Disk, directory: str) -> Backend | None:
    """The backend file of `member/snap`; None if there is none, or nothing in it. Raises Fatal."""
    path = f"{directory}/db"
    if "db" not in (disk.list(directory) or ()):
        return None
    handle = disk.open(path)
    try:
        size = disk.size(handle, path)
        if size == 0:
            return None
        mapping = map_backend(disk, handle, path)
        backend = Backend(path, Bolt.mapped(mapping, size), mapping)
    finally:
        disk.close(handle)
    if backend.index == 0:
        if next(backend.items(b"key"), None) is not None:
            raise BackendError(path, b"consistent_index", "there are keys and no index of the log")
        return None
    refuse_unserved(backend)
    return backend


def lock_backend(disk: Disk, directory: str) -> int:
    """Keep others from opening the file, as etcd does: a handle to be kept, or -1. Raises Fatal."""
    path = f"{directory}/db"
    if "db" not in (disk.list(directory) or ()):
        return -1
    handle = disk.open(path)
    try:
        disk.lock_as_bolt(handle, path)
    except DiskError as failure:
        disk.close(handle)
        if failure.errno == errno.EAGAIN:
            raise Fatal(f"{path}: another process uses this file (it is locked)") from None
        raise
    return handle


def map_backend(disk: Disk, handle: int, path: str) -> Mapping:
    """The file in memory, with room for what will be appended. Raises DiskError."""
    reach = max(BACKEND_REACH_MIN, 2 * disk.size(handle, path))
    return Mapping(disk, handle, path, reach)


def refuse_unserved(backend: Backend) -> None:
    """Stop at what this version cannot serve. Raises Fatal."""
    version = backend.mark(b"storageVersion")
    if version is not None:
        match = _STORAGE_VERSION.fullmatch(version)
        if match is None or (int(match[1]), int(match[2])) > STORAGE_VERSION_MAX:
            newest = ".".join(map(str, STORAGE_VERSION_MAX))
            raise Fatal(
                f"{backend.path}: storage version {version.decode(errors='replace')!r}: "
                f"this version reads those up to {newest}"
            )
    if dict(backend.items(b"auth")).get(b"authEnabled") == b"\1":
        raise Fatal(
            f"{backend.path}: authentication is enabled, and this version would serve everybody; "
            "disable it first, with etcd"
        )


def find_start(backend: Backend | None, disk: Disk, snap_path: str, wal_path: str) -> Start:
    """Where the log is to be read from. Raises Fatal.

    Not the newest snapshot, whose record may not have come to the log, but the oldest one that the
    log still covers: both tell the same.
    """
    if backend is None:
        return Start()
    term = int.from_bytes(backend.mark(b"term") or b"", "big")
    others = [at for index, at, _ in snapshot_names(disk, snap_path) if index == backend.index]
    if backend.has_members and (term == 0 or all(at == term for at in others)):
        return Start(backend.index, 0, read_members(backend))
    names = map(SEGMENT_NAME.fullmatch, disk.list(wal_path) or ())
    first = min(int(match[2], 16) for match in names if match)
    if first == 0:
        return Start()
    for index, term, name in snapshot_names(disk, snap_path):
        if first <= index <= backend.index:
            return Start(index, term, read_snapshot(disk, snap_path, name))
    raise Fatal(f"{snap_path}: no snapshot of an entry between {first} and {backend.index}")


def restore(backend: Backend, start: Start, state: State, logger: Logger) -> None:
    """Make the empty `state` what file and start say. Raises Fatal."""
    logger.info("reading the backend file", path=backend.path, consistent_index=backend.index)
    state.store.values.add_mapping(backend.mapping)
    if backend.bolt.warning:
        logger.warn(
            "one meta page of the backend file is damaged; the log covers what the other lacks",
            error=backend.bolt.warning,
        )
    pairs = Restore(backend.bolt, state.store, in_place=True)
    progress = Progress(logger, "still reading the backend file")
    while pairs.step(STEP):
        progress.come(pairs=pairs.pairs, revision=state.store.revision)
    scheduled = backend.revision(b"scheduledCompactRev")
    pairs.finish(scheduled, backend.revision(b"finishedCompactRev"))
    state.store.lessor.note_changes()
    state.restore(start.index, backend.index, start.cluster, read_alarms(backend))
    logger.info("read the backend file", pairs=pairs.pairs, revision=state.store.revision)


def read_alarms(backend: Backend) -> list[AlarmMember]:
    """The alarms that are on. Raises BackendError."""
    alarms = []
    for key, _ in backend.items(b"alarm"):
        try:
            alarms.append(AlarmMember.decode(key))
        except MalformedError:
            raise BackendError(backend.path, key, "a malformed alarm") from None
    return alarms


def read_members(backend: Backend) -> Cluster:
    """What the file says of members. Raises BackendError."""
    members = []
    for key, value in backend.items(b"members"):
        try:
            member, _ = member_from_json(value)
        except MalformedError:
            raise BackendError(backend.path, key, "a malformed member") from None
        if member.id != member_id_of(backend, key):
            raise BackendError(backend.path, key, "a member under another's id")
        members.append(member)
    removed = tuple(member_id_of(backend, key) for key, _ in backend.items(b"members_removed"))
    version = dict(backend.items(b"cluster")).get(b"clusterVersion", b"")
    return Cluster(tuple(members), removed, version.decode(errors="replace"))


def member_id_of(backend: Backend, key: bytes) -> int:
    """The id that a key of the members' buckets is. Raises BackendError."""
    if _MEMBER_KEY.fullmatch(key) is None:
        raise BackendError(backend.path, key, "this is no member's id")
    return int(key, 16)
