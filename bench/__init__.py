"""The benchmark: quorate and any etcd binaries, side by side, through the wire alone.

What calls what: `__main__` (command line) -> `runner` (rounds, fresh data directories, alternation)
-> `workloads` (what is measured) -> `servers` and `process` (start, end, CPU and memory of a
process tree) and the load generator: `_load` (connections and time) -> `_exchange` (one request and
the check of its answer) -> `_keyspace` (keys, values and what was acknowledged). `goals`, `report`
and `charts` turn figures into words and pictures.

Nothing here imports quorate: the benchmark believes only what comes back through the socket.
"""
