"""The benchmark: quorate and any etcd binaries, side by side, through the wire alone.

What calls what: `__main__` (command line) -> `runner` (rounds, fresh data directories, alternation)
-> `cases` (all of `workloads`, `watching`, `leasing`, `storing`: what is measured) -> `servers` and
`process` (start, end, CPU, memory and disk writes of a process tree), `datadir` (the server's
files), and the load generator. `goals`, `report` and `charts` turn figures into words and pictures.

The load generator has four kinds of clients, each of which works in one thread without the GIL:
`_load` (unary requests) -> `_exchange` (one request and the check of its answer); `_watchers`
(watches and the check of every event) and `_keepalives` -> `_pool` (connections with streams that
stay open) -> `_pipe` (one of those streams); `_download` (a snapshot).
Below them are `_link` (an HTTP/2 connection), `_keyspace` (keys, values and what was acknowledged),
`_moments` (which write was due when), `_protobuf` and `_histogram`.

Nothing here imports quorate: the benchmark believes only what comes back through the socket.
"""
