"""The generated API: it is what the tool makes, it is light, and it reads as strictly as Go."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import betterproto2
import pytest
from grpclib.exceptions import GRPCError

from quorate.api.decoding import DEPTH_MAX, decode
from quorate.api.etcdserverpb import AlarmRequest, InternalRaftRequest, Member, StatusResponse
from quorate.api.etcdserverpb import AuthUserAddRequest as UserAdd
from quorate.api.etcdserverpb import WatchCreateRequest as WatchCreate
from quorate.api.etcdserverpb.services import (
    AuthBase,
    ClusterBase,
    KvBase,
    LeaseBase,
    MaintenanceBase,
    WatchBase,
)
from quorate.api.grpc.health.v1.services import HealthBase
from quorate.api.v3electionpb.services import ElectionBase
from quorate.api.v3lockpb.services import LockBase
from quorate.core.errors import EtcdError, MalformedError, TooDeepError
from quorate.frontends.methods import BIDI_STREAM, METHODS, SERVER_STREAM, UNARY
from tests import messages

ROOT = Path(__file__).parent.parent
BASES = [AuthBase, KvBase, LeaseBase, WatchBase, ClusterBase, MaintenanceBase]
OTHER_BASES = [HealthBase, ElectionBase, LockBase]


def load_tool() -> ModuleType:
    path = str(ROOT / "tools" / "generate-api")
    loader = importlib.machinery.SourceFileLoader("generate_api", path)
    spec = importlib.util.spec_from_loader("generate_api", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_committed_code_is_what_the_tool_makes() -> None:
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools")
    made = load_tool().generate()
    api = ROOT / "src" / "quorate" / "api"
    assert {name: (api / name).read_text() for name in made} == made
    ours = {"__init__.py", "service_base.py", "decoding.py"}
    found = {path.relative_to(api).as_posix() for path in api.rglob("*.py")}
    assert found == set(made) | ours


def test_services_have_the_paths_and_shapes_of_the_table() -> None:
    found = {}
    for base in BASES + OTHER_BASES:
        for path, handler in base().__mapping__().items():
            streams = handler.cardinality.value
            found[path] = {
                (False, False): UNARY,
                (False, True): SERVER_STREAM,
                (True, True): BIDI_STREAM,
            }[(streams.client_streaming, streams.server_streaming)]
    assert found == METHODS


def test_importing_the_api_loads_no_other_event_loop() -> None:
    code = (
        "import sys, quorate.api.etcdserverpb.services, quorate.api.grpc.health.v1.services\n"
        "heavy = {'asyncio', 'ssl', 'h2', 'grpclib.server', 'google.protobuf', 'dateutil'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_messages_agree_with_an_independent_table() -> None:
    kinds: dict[str, type[betterproto2.Message]] = {
        "Member": Member,
        "StatusResponse": StatusResponse,
        "WatchCreateRequest": WatchCreate,
    }
    for name, fields in {
        "Member": {"ID": 2**64 - 1, "name": "a", "peerURLs": ["x", "y"], "isLearner": True},
        "StatusResponse": {"version": "3.7.1", "dbSize": -1, "errors": ["e"], "raftTerm": 3},
        "WatchCreateRequest": {"key": b"k", "filters": [1, 0], "watch_id": -5, "fragment": True},
    }.items():
        data = messages.encode(name, fields)
        assert messages.decode(name, bytes(decode(kinds[name], data))) == fields


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # a tag without its value
        b"\x12\x05ab",  # fewer bytes than it says
        b"\x00\x01",  # field 0
        b"\x0f",  # wire type 7
        b"\x0e",  # wire type 6
        b"\x0b\x08\x01",  # a group that does not end
        b"\x0c",  # the end of a group that did not begin
        b"\x0b\x14",  # a group that ends as another
        b"\x08" + b"\xff" * 10 + b"\x01",  # 11 bytes of varint
        b"\x08" + b"\xff" * 9 + b"\x02",  # 65 bits
        b"\x0d\x01\x02",  # half a fixed32
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 2**64 - 1
    ],
)
def test_broken_messages_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(StatusResponse, data)


def test_what_go_takes_is_taken() -> None:
    # A group, an unknown field, and the version (a string) as a varint: all skipped.
    assert decode(StatusResponse, b"\x0b\x08\x01\x0c\xa0\x06\x01\x10\x05") == StatusResponse()
    assert decode(AlarmRequest, b"\x08\x09").action == 9
    assert decode(WatchCreate, b"\x2a\x02\x01\x00\x28\x01").filters == [1, 0, 1]
    with pytest.raises(MalformedError):
        decode(WatchCreate, b"\x2a\x02\x01\x80")
    with pytest.raises(MalformedError):
        decode(UserAdd, b"\x1a\x01\x08")  # cut inside a nested message


def test_text_that_is_not_utf8_is_refused_in_gos_words() -> None:
    with pytest.raises(GRPCError) as caught:
        decode(UserAdd, b"\x0a\x02\xff\xfe")
    text = "grpc: error unmarshalling request: string field contains invalid UTF-8"
    assert caught.value.message == text


def test_depth_is_bounded() -> None:
    data = b"\x08\x01"
    for _ in range(DEPTH_MAX // 2 + 2):  # txn.success.request_txn.success ...
        data = b"\x22" + length(data) + data
        data = b"\x12" + length(data) + data
    with pytest.raises(TooDeepError):
        decode(InternalRaftRequest, b"\x32" + length(data) + data)
    with pytest.raises(TooDeepError):
        decode(StatusResponse, b"\x0b" * (DEPTH_MAX + 2))


def length(data: bytes) -> bytes:
    size, out = len(data), b""
    while size >= 0x80:
        out += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return out + bytes((size,))


def test_random_bytes_are_read_or_refused() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    good = bytes(UserAdd(name="n", password="p", hashed_password="h"))
    for _ in range(2000):
        data = bytearray(good + chance.randbytes(chance.randrange(12)))
        data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            decode(UserAdd, bytes(data))
        except (EtcdError, GRPCError):
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}: {bytes(data).hex()}") from error
