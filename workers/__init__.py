"""The processes that own the clients' sockets.

One thread, one trio loop, one pump. The pump does what is hot, without Python; what it does not
know it hands over as events. A worker never opens the data directory and never sees the store: it
asks through its ring. Of `quorate.core` it may import what frontends may, and `config` and `logs`.

In reading order
    worker              the process: turns of the pump, events to whom they concern, commands
    _pump               all sockets in one epoll set: receive, feed, reply ring, one send each
    calls               gRPC calls with Python handlers; questions to the core
    cluster, maintenance, health    those handlers, one class per service
    snapshot            the backend file, piece by piece
    http1, pages        HTTP/1.1 on the same port: h11, and what each page must know
    processes           what the kernel says of core and workers, for the metrics
    _system             Linux calls that Python lacks
"""

if __name__ != "quorate.workers":
    raise ImportError(f"import quorate.workers, not {__name__!r}")
