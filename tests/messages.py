"""etcd's messages as plain dicts: a table of fields and a small protobuf encoder and decoder.

Rules:
1. It shares no code with the server: they must not agree because both use one wrong table.
2. `encode` writes exactly the fields that the dict has, zeros too; `decode` leaves out zero
   scalars, save in a oneof (`?`), so that two equal messages give equal dicts.
3. `decode` raises ValueError on anything it does not know: a reply's unknown field is a finding.

A field of the table is `name:number:kind`; `*` before the kind means repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Message = dict[str, Any]

VARINT_KINDS = {"i64", "u64", "u32", "enum", "bool"}

TABLE = """
ResponseHeader cluster_id:1:u64 member_id:2:u64 revision:3:i64 raft_term:4:u64
KeyValue key:1:bytes create_revision:2:i64 mod_revision:3:i64 version:4:i64 value:5:bytes \
lease:6:i64
Event type:1:enum kv:2:KeyValue prev_kv:3:KeyValue
RangeRequest key:1:bytes range_end:2:bytes limit:3:i64 revision:4:i64 sort_order:5:enum \
sort_target:6:enum \
serializable:7:bool keys_only:8:bool count_only:9:bool min_mod_revision:10:i64 \
max_mod_revision:11:i64 \
min_create_revision:12:i64 max_create_revision:13:i64
RangeResponse header:1:ResponseHeader kvs:2:*KeyValue more:3:bool count:4:i64
RangeStreamResponse range_response:1:RangeResponse
PutRequest key:1:bytes value:2:bytes lease:3:i64 prev_kv:4:bool ignore_value:5:bool \
ignore_lease:6:bool
PutResponse header:1:ResponseHeader prev_kv:2:KeyValue
DeleteRangeRequest key:1:bytes range_end:2:bytes prev_kv:3:bool
DeleteRangeResponse header:1:ResponseHeader deleted:2:i64 prev_kvs:3:*KeyValue
RequestOp request_range:1:RangeRequest request_put:2:PutRequest \
request_delete_range:3:DeleteRangeRequest \
request_txn:4:TxnRequest
ResponseOp response_range:1:RangeResponse response_put:2:PutResponse \
response_delete_range:3:DeleteRangeResponse response_txn:4:TxnResponse
Compare result:1:enum target:2:enum key:3:bytes version:4:i64? create_revision:5:i64? \
mod_revision:6:i64? \
value:7:bytes? lease:8:i64? range_end:64:bytes
TxnRequest compare:1:*Compare success:2:*RequestOp failure:3:*RequestOp
TxnResponse header:1:ResponseHeader succeeded:2:bool responses:3:*ResponseOp
CompactionRequest revision:1:i64 physical:2:bool
CompactionResponse header:1:ResponseHeader
HashRequest
HashResponse header:1:ResponseHeader hash:2:u32
HashKVRequest revision:1:i64
HashKVResponse header:1:ResponseHeader hash:2:u32 compact_revision:3:i64 hash_revision:4:i64
SnapshotRequest
SnapshotResponse header:1:ResponseHeader remaining_bytes:2:u64 blob:3:bytes version:4:string
WatchRequest create_request:1:WatchCreateRequest cancel_request:2:WatchCancelRequest \
progress_request:3:WatchProgressRequest
WatchCreateRequest key:1:bytes range_end:2:bytes start_revision:3:i64 progress_notify:4:bool \
filters:5:*enum \
prev_kv:6:bool watch_id:7:i64 fragment:8:bool
WatchCancelRequest watch_id:1:i64
WatchProgressRequest
WatchResponse header:1:ResponseHeader watch_id:2:i64 created:3:bool canceled:4:bool \
compact_revision:5:i64 \
cancel_reason:6:string fragment:7:bool events:11:*Event
LeaseGrantRequest TTL:1:i64 ID:2:i64
LeaseGrantResponse header:1:ResponseHeader ID:2:i64 TTL:3:i64 error:4:string
LeaseRevokeRequest ID:1:i64
LeaseRevokeResponse header:1:ResponseHeader
LeaseKeepAliveRequest ID:1:i64
LeaseKeepAliveResponse header:1:ResponseHeader ID:2:i64 TTL:3:i64
LeaseTimeToLiveRequest ID:1:i64 keys:2:bool
LeaseTimeToLiveResponse header:1:ResponseHeader ID:2:i64 TTL:3:i64 grantedTTL:4:i64 keys:5:*bytes
LeaseCheckpoint ID:1:i64 remaining_TTL:2:i64
LeaseLeasesRequest
LeaseStatus ID:1:i64
LeaseLeasesResponse header:1:ResponseHeader leases:2:*LeaseStatus
Member ID:1:u64 name:2:string peerURLs:3:*string clientURLs:4:*string isLearner:5:bool
MemberAddRequest peerURLs:1:*string isLearner:2:bool
MemberAddResponse header:1:ResponseHeader member:2:Member members:3:*Member
MemberRemoveRequest ID:1:u64
MemberUpdateRequest ID:1:u64 peerURLs:2:*string
MemberListRequest linearizable:1:bool
MemberPromoteRequest ID:1:u64
MembersResponse header:1:ResponseHeader members:2:*Member
AlarmRequest action:1:enum memberID:2:u64 alarm:3:enum
AlarmMember memberID:1:u64 alarm:2:enum
AlarmResponse header:1:ResponseHeader alarms:2:*AlarmMember
StatusRequest
DowngradeInfo enabled:1:bool targetVersion:2:string
StatusResponse header:1:ResponseHeader version:2:string dbSize:3:i64 leader:4:u64 raftIndex:5:u64 \
raftTerm:6:u64 \
raftAppliedIndex:7:u64 errors:8:*string dbSizeInUse:9:i64 isLearner:10:bool \
storageVersion:11:string \
dbSizeQuota:12:i64 downgradeInfo:13:DowngradeInfo
DefragmentRequest
MoveLeaderRequest targetID:1:u64
DowngradeRequest action:1:enum version:2:string
DowngradeResponse header:1:ResponseHeader version:2:string
HeaderResponse header:1:ResponseHeader
AuthenticateRequest name:1:string password:2:string
AuthenticateResponse header:1:ResponseHeader token:2:string
AuthStatusResponse header:1:ResponseHeader enabled:2:bool authRevision:3:u64
UserAddOptions no_password:1:bool
Permission permType:1:enum key:2:bytes range_end:3:bytes
Empty
AuthUserAddRequest name:1:string password:2:string options:3:UserAddOptions hashedPassword:4:string
AuthUserNameRequest name:1:string
AuthUserGetResponse header:1:ResponseHeader roles:2:*string
AuthUserChangePasswordRequest name:1:string password:2:string hashedPassword:3:string
AuthUserGrantRoleRequest user:1:string role:2:string
AuthUserRevokeRoleRequest name:1:string role:2:string
AuthRoleNameRequest name:1:string
AuthRoleGetResponse header:1:ResponseHeader perm:2:*Permission
AuthRoleGrantPermissionRequest name:1:string perm:2:Permission
AuthRoleRevokePermissionRequest role:1:string key:2:bytes range_end:3:bytes
AuthListResponse header:1:ResponseHeader names:2:*string
LockRequest name:1:bytes lease:2:i64
LockResponse header:1:ResponseHeader key:2:bytes
UnlockRequest key:1:bytes
LeaderKey name:1:bytes key:2:bytes rev:3:i64 lease:4:i64
CampaignRequest name:1:bytes lease:2:i64 value:3:bytes
CampaignResponse header:1:ResponseHeader leader:2:LeaderKey
LeaderRequest name:1:bytes
LeaderResponse header:1:ResponseHeader kv:2:KeyValue
ProclaimRequest leader:1:LeaderKey value:2:bytes
ResignRequest leader:1:LeaderKey
HealthCheckRequest service:1:string
HealthCheckResponse status:1:enum
"""


class Field(NamedTuple):
    """One row of the table."""

    name: str
    number: int
    kind: str
    repeated: bool
    oneof: bool


class Method(NamedTuple):
    """One RPC: the names of its messages, and whether each side is a stream."""

    path: str
    request: str
    reply: str
    requests_stream: bool = False
    replies_stream: bool = False


def _fields(line: str) -> Iterator[Field]:
    for text in line.split()[1:]:
        name, number, kind = text.split(":")
        yield Field(name, int(number), kind.strip("*?"), kind.startswith("*"), kind.endswith("?"))


FIELDS: dict[str, tuple[Field, ...]] = {
    line.split()[0]: tuple(_fields(line)) for line in TABLE.strip().splitlines()
}
_BY_NAME = {name: {field.name: field for field in fields} for name, fields in FIELDS.items()}
_BY_NUMBER = {name: {field.number: field for field in fields} for name, fields in FIELDS.items()}

METHOD_TABLE = """
etcdserverpb.KV Range:RangeRequest:RangeResponse RangeStream:RangeRequest:>RangeStreamResponse \
Put:PutRequest:PutResponse DeleteRange:DeleteRangeRequest:DeleteRangeResponse \
Txn:TxnRequest:TxnResponse \
Compact:CompactionRequest:CompactionResponse
etcdserverpb.Watch Watch:>WatchRequest:>WatchResponse
etcdserverpb.Lease LeaseGrant:LeaseGrantRequest:LeaseGrantResponse \
LeaseRevoke:LeaseRevokeRequest:LeaseRevokeResponse \
LeaseKeepAlive:>LeaseKeepAliveRequest:>LeaseKeepAliveResponse \
LeaseTimeToLive:LeaseTimeToLiveRequest:LeaseTimeToLiveResponse \
LeaseLeases:LeaseLeasesRequest:LeaseLeasesResponse
etcdserverpb.Cluster MemberAdd:MemberAddRequest:MemberAddResponse \
MemberRemove:MemberRemoveRequest:MembersResponse \
MemberUpdate:MemberUpdateRequest:MembersResponse MemberList:MemberListRequest:MembersResponse \
MemberPromote:MemberPromoteRequest:MembersResponse
etcdserverpb.Maintenance Alarm:AlarmRequest:AlarmResponse Status:StatusRequest:StatusResponse \
Defragment:DefragmentRequest:HeaderResponse Hash:HashRequest:HashResponse \
HashKV:HashKVRequest:HashKVResponse \
Snapshot:SnapshotRequest:>SnapshotResponse MoveLeader:MoveLeaderRequest:HeaderResponse \
Downgrade:DowngradeRequest:DowngradeResponse
etcdserverpb.Auth AuthEnable:Empty:HeaderResponse AuthDisable:Empty:HeaderResponse \
AuthStatus:Empty:AuthStatusResponse \
Authenticate:AuthenticateRequest:AuthenticateResponse UserAdd:AuthUserAddRequest:HeaderResponse \
UserGet:AuthUserNameRequest:AuthUserGetResponse UserList:Empty:AuthListResponse \
UserDelete:AuthUserNameRequest:HeaderResponse \
UserChangePassword:AuthUserChangePasswordRequest:HeaderResponse \
UserGrantRole:AuthUserGrantRoleRequest:HeaderResponse \
UserRevokeRole:AuthUserRevokeRoleRequest:HeaderResponse \
RoleAdd:AuthRoleNameRequest:HeaderResponse RoleGet:AuthRoleNameRequest:AuthRoleGetResponse \
RoleList:Empty:AuthListResponse RoleDelete:AuthRoleNameRequest:HeaderResponse \
RoleGrantPermission:AuthRoleGrantPermissionRequest:HeaderResponse \
RoleRevokePermission:AuthRoleRevokePermissionRequest:HeaderResponse
v3lockpb.Lock Lock:LockRequest:LockResponse Unlock:UnlockRequest:HeaderResponse
v3electionpb.Election Campaign:CampaignRequest:CampaignResponse \
Proclaim:ProclaimRequest:HeaderResponse \
Leader:LeaderRequest:LeaderResponse Observe:LeaderRequest:>LeaderResponse \
Resign:ResignRequest:HeaderResponse
grpc.health.v1.Health Check:HealthCheckRequest:HealthCheckResponse \
Watch:HealthCheckRequest:>HealthCheckResponse
"""


def _methods() -> Iterator[Method]:
    for line in METHOD_TABLE.strip().splitlines():
        service, *rows = line.split()
        for row in rows:
            name, request, reply = row.split(":")
            yield Method(
                f"/{service}/{name}",
                request.strip(">"),
                reply.strip(">"),
                request.startswith(">"),
                reply.startswith(">"),
            )


METHODS: dict[str, Method] = {method.path: method for method in _methods()}
# `KV/Put` for `/etcdserverpb.KV/Put`: what tests write.
SHORT: dict[str, Method] = {
    path.split(".")[-1] if "Health" not in path else "Health/" + path.rsplit("/", 1)[1]: method
    for path, method in METHODS.items()
}


def method(name: str) -> Method:
    """The RPC with that full path or short name (`KV/Put`)."""
    return METHODS[name] if name.startswith("/") else SHORT[name]


def varint(number: int) -> bytes:
    """A protobuf varint; a negative number as its 64-bit two's complement."""
    number &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def delimited(number: int, data: bytes) -> bytes:
    """Field `number` holding `data`, with its length."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def _encode_one(field: Field, value: Any) -> bytes:
    if field.kind in VARINT_KINDS:
        return varint(field.number << 3) + varint(int(value))
    if field.kind == "bytes":
        return delimited(field.number, value)
    if field.kind == "string":
        return delimited(field.number, value.encode())
    return delimited(field.number, encode(field.kind, value))


def encode(name: str, message: Message) -> bytes:
    """The bytes of a message of that name. Raises KeyError for a field it does not have."""
    rows = _BY_NAME[name]
    out = []
    for key, value in message.items():
        field = rows[key]
        values = value if field.repeated else [value]
        out += [_encode_one(field, one) for one in values]
    return b"".join(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at that offset, and the offset behind it. Raises ValueError if cut or too long."""
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("cut varint")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def _scalar(kind: str, number: int) -> int | bool:
    if kind == "bool":
        return bool(number)
    if kind == "i64" and number >> 63:
        return number - (1 << 64)
    if kind == "enum":
        number &= 0xFFFFFFFF
        return number - (1 << 32) if number >> 31 else number
    return number


def _text(kind: str, data: bytes) -> Any:
    if kind == "bytes":
        return data
    if kind == "string":
        return data.decode()
    return decode(kind, data)


def _decode_one(field: Field, data: bytes, at: int, wire: int) -> tuple[list[Any], int]:
    """The values there (several when packed) and the offset behind them."""
    if wire == 0 and field.kind in VARINT_KINDS:
        number, at = read_varint(data, at)
        return [_scalar(field.kind, number)], at
    if wire != 2:
        raise ValueError(f"field {field.name}: wire type {wire}")
    length, at = read_varint(data, at)
    if at + length > len(data):
        raise ValueError(f"field {field.name}: {length} bytes, but {len(data) - at} are left")
    part = data[at : at + length]
    if field.kind not in VARINT_KINDS:
        return [_text(field.kind, part)], at + length
    values, inner = [], 0
    while inner < length:
        number, inner = read_varint(part, inner)
        values.append(_scalar(field.kind, number))
    return values, at + length


def decode(name: str, data: bytes) -> Message:
    """The named message as a dict. Raises ValueError if unreadable or with unknown fields."""
    rows = _BY_NUMBER[name]
    message: Message = {}
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag >> 3 not in rows:
            raise ValueError(f"{name}: unknown field {tag >> 3}")
        field = rows[tag >> 3]
        values, at = _decode_one(field, data, at, tag & 7)
        if field.repeated:
            message.setdefault(field.name, []).extend(values)
        elif values and (values[-1] or field.oneof or isinstance(values[-1], dict)):
            message[field.name] = values[-1]
    return message
