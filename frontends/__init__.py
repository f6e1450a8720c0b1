"""Protocols: bytes in, bytes out. No socket, no clock, no await.

Whoever owns the sockets feeds what came and drains what is to be sent; time is an argument. Of
`quorate.core` only what both ends of a ring must know is imported here.

Six layers of one object, each a Cython class or struct that extends the one below, because they
share a call's memory and a call between them must cost nothing. Read from the bottom:

    _nghttp2            the C declarations that we use
    _http2              one connection: frames, streams, limits against abuse
    _calls              calls as C structs: the table of those that live, what they owe the core
    _replies            replies and ends: slices from the core, DATA, statuses, trailers
    _fanout             events to those who watch
    _watches            watch streams: requests, progress, those who catch up
    _grpc               heads, messages, routes: who answers a call

Beside them
    _kv, _overlap       what a KV request is refused for at once
    _watchindex         which watchers an event concerns
    _watchrequest       a WatchRequest off the wire
    _metadata           gRPC's own headers
    _deadlines          a wheel of timers
    services, methods   which paths there are, and which road each takes
    status              error id -> code and text
    health, metrics, metricnames, counters      the plain HTTP pages, and what they count
"""

if __name__ != "quorate.frontends":
    raise ImportError(f"import quorate.frontends, not {__name__!r}")
