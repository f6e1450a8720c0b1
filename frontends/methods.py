"""Every RPC of etcd's API and whether its two sides stream.

Rules:
1. The order is etcd's; metrics show every method from the start, called or not.
2. A path that is not here is answered as grpc-go does, `unknown_method_text` says how.
"""

from __future__ import annotations

UNARY = "unary"
SERVER_STREAM = "server_stream"
BIDI_STREAM = "bidi_stream"

SERVICES: dict[str, dict[str, str]] = {
    "etcdserverpb.KV": {
        "Range": UNARY,
        "RangeStream": SERVER_STREAM,
        "Put": UNARY,
        "DeleteRange": UNARY,
        "Txn": UNARY,
        "Compact": UNARY,
    },
    "etcdserverpb.Watch": {"Watch": BIDI_STREAM},
    "etcdserverpb.Lease": {
        "LeaseGrant": UNARY,
        "LeaseRevoke": UNARY,
        "LeaseKeepAlive": BIDI_STREAM,
        "LeaseTimeToLive": UNARY,
        "LeaseLeases": UNARY,
    },
    "etcdserverpb.Cluster": {
        "MemberAdd": UNARY,
        "MemberRemove": UNARY,
        "MemberUpdate": UNARY,
        "MemberList": UNARY,
        "MemberPromote": UNARY,
    },
    "etcdserverpb.Maintenance": {
        "Alarm": UNARY,
        "Status": UNARY,
        "Defragment": UNARY,
        "Hash": UNARY,
        "HashKV": UNARY,
        "Snapshot": SERVER_STREAM,
        "MoveLeader": UNARY,
        "Downgrade": UNARY,
    },
    "etcdserverpb.Auth": {
        "AuthEnable": UNARY,
        "AuthDisable": UNARY,
        "AuthStatus": UNARY,
        "Authenticate": UNARY,
        "UserAdd": UNARY,
        "UserGet": UNARY,
        "UserList": UNARY,
        "UserDelete": UNARY,
        "UserChangePassword": UNARY,
        "UserGrantRole": UNARY,
        "UserRevokeRole": UNARY,
        "RoleAdd": UNARY,
        "RoleGet": UNARY,
        "RoleList": UNARY,
        "RoleDelete": UNARY,
        "RoleGrantPermission": UNARY,
        "RoleRevokePermission": UNARY,
    },
    "v3lockpb.Lock": {"Lock": UNARY, "Unlock": UNARY},
    "v3electionpb.Election": {
        "Campaign": UNARY,
        "Proclaim": UNARY,
        "Leader": UNARY,
        "Observe": SERVER_STREAM,
        "Resign": UNARY,
    },
    "grpc.health.v1.Health": {"Check": UNARY, "List": UNARY, "Watch": SERVER_STREAM},
}

# `/service/method` -> unary, server_stream or bidi_stream.
METHODS: dict[str, str] = {
    f"/{service}/{method}": shape
    for service, methods in SERVICES.items()
    for method, shape in methods.items()
}


def unknown_method_text(path: str) -> str:
    """What grpc-go tells a client that calls a path that no service has."""
    service, slash, method = path[1:].rpartition("/")
    if path[:1] != "/" or not slash:
        return f'malformed method name: "{path}"'
    if service in SERVICES:
        return f"unknown method {method} for service {service}"
    return f"unknown service {service}"
