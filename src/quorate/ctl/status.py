"""`snapshot status` and `hashkv`: what a backend file or a snapshot holds, in a few figures.

Rules:
1. Before any figure every page of the file is checked: what is damaged has no status.
2. The hash of `snapshot status` is over all of the file; that of `hashkv` is what a server answers
   to HashKV, and is computed by the server's own store.
"""

from __future__ import annotations

import re
import sys

from quorate.core._bolt import Bolt, BoltError, Check
from quorate.core._boltscan import Digest
from quorate.core._mvcc import Store
from quorate.core._restore import Restore
from quorate.core._storeview import Hash, StoreView
from quorate.core.backend import Backend
from quorate.core.errors import EtcdError

from .commandline import EXIT_BAD_ARGS, Call, CommandError
from .files import check_exists, open_backend_file
from .printing import Column, check_form, human_bytes, printed
from .progress import progress

# Between two looks at the bar.
PIECE_PAGES, PIECE_PAIRS, PIECE_HASHED = 4096, 10_000, 100_000
VERSION = re.compile(rb"\d{1,9}\.\d{1,9}\.\d{1,9}")


def status_command(call: Call) -> None:
    """`snapshot status FILE`. Raises CommandError, Fatal."""
    if len(call.arguments) != 1:
        raise CommandError("snapshot status requires exactly one argument", EXIT_BAD_ARGS)
    [path] = call.arguments
    form = call.text("write-out")
    check_exists(path)
    check_form(form)
    with open_backend_file(path, call.number("timeout")) as backend:
        check_pages(backend.bolt)
        columns = status(backend)
    sys.stdout.write(printed(form, columns))


def check_pages(bolt: Bolt) -> None:
    """Walk all pages. Raises CommandError, with the first page that is not right."""
    if bolt.warning:
        sys.stderr.write(f"Warning: {bolt.warning}\n")
    with progress("checking pages", bolt.high_water) as advance:
        try:
            check = Check(bolt)
            while not check.run(PIECE_PAGES):
                advance(check.pages_reached)
        except BoltError as error:
            text = f"snapshot file integrity check failed. 1 errors found.\n{error}"
            raise CommandError(text) from None


def status(backend: Backend) -> list[Column]:
    """The figures. Raises Fatal."""
    digest = Digest(backend.bolt)
    with progress("hashing", 0) as advance:
        while digest.step(PIECE_PAIRS):
            advance(digest.pairs)
    version = storage_version(backend.mark(b"storageVersion"))
    size = backend.size
    revision, keys = digest.revision, len(digest.keys)
    return [
        Column("hash", f"{digest.hash:x}", "Hash", "hash", digest.hash),
        Column("revision", str(revision), "Revision", "revision", revision),
        Column("total keys", str(keys), "Keys", "totalKey", keys),
        Column("total size", human_bytes(size), "Size", "totalSize", size),
        Column("version", version, "Version", "version", version),
    ]


def storage_version(value: bytes | None) -> str:
    """The storage version as text; nothing for a file of 3.5 and before."""
    return value.decode() if value is not None and VERSION.fullmatch(value) else ""


def hashkv_command(call: Call) -> None:
    """`hashkv FILE`. Raises CommandError, Fatal."""
    [path] = call.arguments
    form = call.text("write-out")
    check_form(form)
    with open_backend_file(path, call.number("timeout")) as backend:
        store = load(backend)
        value, compacted, revision = hash_kv(store, call.integer("rev"))
    columns = [
        Column("hash", str(value), "Hash", "hash", value),
        Column("hash revision", str(revision), "Hash revision", "hashRevision", revision),
        Column(
            "compact revision", str(compacted), "Compact revision", "compactRevision", compacted
        ),
    ]
    sys.stdout.write(printed(form, columns))


def load(backend: Backend) -> Store:
    """The file's keys and leases as a store. Raises Fatal."""
    store = Store()
    store.values.add_mapping(backend.mapping)
    pairs = Restore(backend.bolt, store, in_place=True)
    with progress("reading", 0) as advance:
        while pairs.step(PIECE_PAIRS):
            advance(pairs.pairs)
    scheduled = backend.revision(b"scheduledCompactRev")
    pairs.finish(scheduled, backend.revision(b"finishedCompactRev"))
    return store


def hash_kv(store: Store, revision: int) -> tuple[int, int, int]:
    """Hash, compacted and hashed revision. Raises CommandError."""
    try:
        run = Hash(StoreView(store), revision)
    except EtcdError as error:
        raise CommandError(str(error).removeprefix("etcdserver: ")) from None
    with progress("hashing", 0) as advance:
        done = 0
        while run.step(PIECE_HASHED):
            done += PIECE_HASHED
            advance(done)
    return run.close()
