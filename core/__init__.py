"""The replicated state machine, its disk, and the processes that serve it.

Only four kinds of module touch the world: rings, disk and log, the fleet of workers, and the
process itself (marked *). All else is bytes and numbers in, bytes and numbers out. Imports go
downward in this list; `tests/test_tidy.py` says no to a cycle.

To understand a write, read in this order: `node`, `_batch`, `raft`, `_wal`, `_apply`, `_mvcc`,
`_port`. docs/ARCHITECTURE.md walks through them with one Put.

Words that all share
    errors, _errors     every expected error: id, gRPC code, etcd's text
    limits              every maximum and its reason
    version             what we say we are
    _bytes, _protobuf   loads, stores, CRC, buffers; protobuf's primitives
    _record             what workers and core say to one another
    _request, _reply    KV messages as C structs: decoding and checks; encoding
    _leaserequest       the same of requests about leases
    admincalls          the numbers of what is asked in Python

The road of a request
    _ring *             rings and doorbells
    _eventring *        what is written, for all workers to read
    _atomic             loads and stores that other processes see
    _port               one worker as the core sees it, and replies that take long
    _batch              the requests of a turn: one run of entries, reads that wait
    _run                a run of entries in C memory
    _events             what was written, as events, for those who watch
    _catchup            what one watcher has missed
    node                the turn: drain, propose, store, apply, serve
    forcing             --force-new-cluster: a member of several goes on alone
    upkeep, compactor   what a member does by itself; when it compacts
    scrub               the background check for damage: its pace and the alarm
    _scrub, _scrubfile, _scrublog   what it looks at: memory, backend file, log

Consensus and disk
    raft, raftlog, readindex    the pure machine
    messages, protobuf          its values, and those of entries that Python applies
    _disk *             the contract of a disk, and the real one
    _wal *, _segments *         the log, and its segments made ahead
    _walframe, _walread, _waltail   its records, reading it back, judging its end
    _bolt, _boltwriter, _boltpage   etcd's backend file: read in place; written; its pages
    _boltfile           such a file as it is on the disk: read, not mapped
    _filesums           checksums of a file that only grows
    _boltscan           all of such a file, hashed or copied, for the tools

State
    apply               everything that entries made: store, members, alarms
    _apply              KV and lease entries, and read-only transactions, on the store
    members             members, their ids, alarms, cluster version
    _mvcc               the store: revisions, versions, compaction, hashes
    _version, _versionrecord    one version, in memory and in a file
    _keytree, _history   the tree of keys; versions in their order
    _arena              the memory of both
    _values, _mapping   where larger values lie; a file in memory
    _lessor, _leases    leases, their keys, and when they run out; what is answered of them
    _wholehash          the hash of the whole backend file
    _selection, _listing        what a Range selects, and how a long answer leaves in slices
    _storeview          the store for Python: tests and tools
    backend, _restore   etcd's backend file becomes the state
    checkpoints, _checkpoint    the store becomes such a file, or goes on with it
    _leasebucket, _leaserecord   leases in such a file, by what changed of them; one lease
    buckets             what else is in it
    snapshots           such files lent to clients
    snapfile            etcd's snapshot files, for the members that they name

The process *
    config, flags, configfile   what the user asked for
    logs, versiontext           what the user is told
    sockets, fleet      listening sockets; workers forked, watched, replaced
    boot                a data directory becomes a member
    admin, report       what is answered in Python
    main                everything together, until a signal
"""

if __name__ != "quorate.core":
    raise ImportError(f"import quorate.core, not {__name__!r}")
