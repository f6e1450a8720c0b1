"""raftpb and etcdserverpb values against bytes that a real etcd wrote, and against broken bytes."""

from __future__ import annotations

import random

import pytest

from quorate.core.errors import MalformedError
from quorate.core.messages import (
    AlarmRequest,
    Attributes,
    ClusterMemberAttrSetRequest,
    ClusterVersionSetRequest,
    ConfChange,
    ConfChangeSingle,
    ConfChangeV2,
    ConfState,
    HardState,
    InternalRaftRequest,
    RequestHeader,
    RequestV2,
    SnapshotMetadata,
    WalMetadata,
    WalSnapshot,
    decode_request,
)
from quorate.core.protobuf import Encoded, encode_varint, fields

from .depth import depth
from .depth import seed as fresh_seed

MEMBER = 0x899E8D2EF409CCEB
MEMBER_JSON = b'{"id":9916518662318705899,"peerURLs":["http://127.0.0.1:52803"],"name":"alpha"}'

# Cut out of the WAL of Debian's etcd 3.4.23 (one member, `put a b`, `alarm list`).
WRITTEN_BY_ETCD: list[tuple[str, Encoded]] = [
    ("08eb99a7a0efa5a3cf890110eef9aafba7b1a0a407", WalMetadata(MEMBER, 524811788431834350)),
    ("08001000", WalSnapshot()),
    (
        "0800100018eb99a7a0efa5a3cf8901224f" + MEMBER_JSON.hex(),
        ConfChange(node_id=MEMBER, context=MEMBER_JSON),
    ),
    ("080110001801", HardState(1, 0, 1)),
    ("080210eb99a7a0efa5a3cf89011802", HardState(2, MEMBER, 2)),
    (
        "5200a2060b0886ec95b7dcbfe8f5cc01",
        InternalRaftRequest(alarm=AlarmRequest(), header=RequestHeader(0xCCEBA1FDC6E57606)),
    ),
]

# By hand, from raftpb's and etcdserverpb's definitions and gogo's rules.
WRITTEN_BY_HAND: list[tuple[str, Encoded]] = [
    ("080008052800", ConfState((0, 5))),
    ("080110021003180420052801", ConfState((1,), (2, 3), (4,), (5,), True)),
    ("0a022800100a1803", SnapshotMetadata(ConfState(), 10, 3)),
    ("080a10031a0408012800", WalSnapshot(10, 3, ConfState((1,)))),
    ("0800", ConfChangeV2()),
    (
        "0802120408011007120408031009" + "1a0178",
        ConfChangeV2(2, (ConfChangeSingle(1, 7), ConfChangeSingle(3, 9)), b"x"),
    ),
    (
        "aa510a080512060a0161120162",
        InternalRaftRequest(
            cluster_member_attr_set=ClusterMemberAttrSetRequest(5, Attributes("a", ("b",)))
        ),
    ),
    (
        "a251070a05332e372e30",
        InternalRaftRequest(cluster_version_set=ClusterVersionSetRequest("3.7.0")),
    ),
]
VALUES = WRITTEN_BY_ETCD + WRITTEN_BY_HAND


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_bytes_are_etcds(text: str, value: Encoded) -> None:
    assert value.encode().hex() == text
    assert type(value).decode(bytes.fromhex(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", HardState()),
        ("0803", HardState(3, 0, 0)),
        ("1807", HardState(0, 0, 7)),
        ("0a020107", ConfState((1, 7))),
        ("0a02010708081001", ConfState((1, 7, 8), (1,))),
        ("", ConfChange()),
        ("1805", ConfChange(node_id=5)),
        ("08011002", WalSnapshot(1, 2)),
    ],
)
def test_googles_form_is_read_too(text: str, value: Encoded) -> None:
    assert type(value).decode(bytes.fromhex(text)) == value


def test_unknown_fields_and_wrong_wire_types_are_passed_over() -> None:
    unknown = "200a" + "2d01020304" + "310102030405060708" + "3a0161"
    group = "4b" + "0801" + "53" + "0a0161" + "54" + "4c"
    data = bytes.fromhex(unknown + group + "0a0161" + "0805")
    assert HardState.decode(data) == HardState(term=5)


def test_bare_v2_request_of_etcd_3_4() -> None:
    text = "0884ec95b7dcbfe8f5cc0112035055541a0a2f302f76657273696f6e2205332e342e30"
    text += "2800320038004800500058006000680070007800800100"
    request = RequestV2(0xCCEBA1FDC6E57604, "PUT", "/0/version", "3.4.0")
    assert decode_request(bytes.fromhex(text)) == InternalRaftRequest(v2=request)


def test_wrapped_v2_request_of_etcd_3_5() -> None:
    request = InternalRaftRequest(
        v2=RequestV2(1, "PUT", "/0/version", "3.5.0"), header=RequestHeader(9)
    )
    assert decode_request(request.encode()) == request


def test_a_put_is_passed_over() -> None:
    data = bytes.fromhex("22060a0161120162a2060b0885ec95b7dcbfe8f5cc01")
    assert decode_request(data) == InternalRaftRequest(header=RequestHeader(0xCCEBA1FDC6E57605))


@pytest.mark.parametrize(
    "text",
    [
        "08",  # value missing
        "0880",  # varint cut
        "08ffffffffffffffffff02",  # more than 64 bits
        "08ffffffffffffffffffff01",  # eleven bytes
        "0001",  # field number 0
        "8080808010" + "00",  # field number 2**29
        "0a05aabb",  # length lies
        "0d010203",  # fixed32 cut
        "0b0801",  # group left open
        "0b080114",  # another group closed
        "0c",  # closed without being open
        "0e",  # no such wire type
        "0b" * 101 + "0c" * 101,  # deeper than anybody goes
        "0b0b0e0c0c",  # broken inside a group
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        HardState.decode(bytes.fromhex(text))


def test_text_is_utf_8() -> None:
    with pytest.raises(MalformedError):
        Attributes.decode(bytes.fromhex("0a01ff"))


@pytest.mark.parametrize(("value", "text"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02")])
def test_varint(value: int, text: str) -> None:
    assert encode_varint(value).hex() == text


def test_largest_varint() -> None:
    value = HardState((1 << 64) - 1, 0, 0)
    assert HardState.decode(value.encode()) == value
    with pytest.raises(AssertionError):
        encode_varint(1 << 64)


def test_nothing_but_malformed_is_raised() -> None:
    seed = fresh_seed()
    print(f"QUORATE_SEED={seed}")
    chance = random.Random(seed)
    samples = [(type(value), bytes.fromhex(text)) for text, value in VALUES]
    for _ in range(depth(2000, 200000)):
        kind, data = chance.choice(samples)
        broken = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            at = chance.randint(0, len(broken))
            broken[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
        try:
            decoded = kind.decode(bytes(broken))
        except MalformedError:
            continue
        assert kind.decode(decoded.encode()) == decoded, f"seed {seed}: {broken.hex()}"


def test_fields_are_seen_in_order() -> None:
    assert list(fields(bytes.fromhex("080110020a0161"))) == [(1, 0, 1), (2, 0, 2), (1, 2, b"a")]
