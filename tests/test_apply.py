"""core/_apply and core/apply: what committed entries do, whatever they hold."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.core._run import Run
from quorate.core.apply import State
from quorate.core.errors import (
    CompactedError,
    CorruptError,
    Fatal,
    FutureRevisionError,
    KeyNotFoundError,
    LeaseNotFoundError,
    NoSpaceError,
)
from quorate.core.logs import Logger
from quorate.core.messages import (
    AlarmAction,
    AlarmMember,
    AlarmRequest,
    AlarmType,
    ClusterVersionSetRequest,
    EntryType,
    InternalRaftRequest,
    RequestHeader,
    RequestV2,
)
from quorate.frontends._kv import judge
from tests.core_driver import TXN, Core
from tests.messages import Message, delimited, encode

FROM_KEY = b"\0"
PUT_FIELD, DELETE_FIELD, TXN_FIELD, COMPACTION_FIELD = 4, 5, 6, 7


def put_op(key: bytes, value: bytes = b"new", **fields: Any) -> Message:
    return {"request_put": {"key": key, "value": value, **fields}}


def delete_op(key: bytes, end: bytes = b"", **fields: Any) -> Message:
    return {"request_delete_range": {"key": key, "range_end": end, **fields}}


def range_op(key: bytes, end: bytes = b"", **fields: Any) -> Message:
    return {"request_range": {"key": key, "range_end": end, **fields}}


def txn_op(*success: Message) -> Message:
    return {"request_txn": {"success": list(success)}}


def txn(core: Core, *success: Message) -> Message:
    return core.call("KV/Txn", {"success": list(success)})


def refused(core: Core, *success: Message) -> object:
    return core.refused("KV/Txn", {"success": list(success)})


def filled() -> Core:
    core = Core()
    for key in (b"a", b"b", b"c"):
        core.put(key, b"old " + key)
    return core


def state_of(core: Core) -> tuple[Message, Message]:
    return core.everything(), core.call("Maintenance/HashKV")


# --- revisions (T4) -------------------------------------------------------------------------------


def test_a_mutating_txn_is_one_revision_whatever_it_writes() -> None:
    core = filled()
    reply = txn(core, put_op(b"d"), delete_op(b"a", b"c"), put_op(b"e"), range_op(b"d"))
    assert reply["header"]["revision"] == 5
    inner = [next(iter(response.values())) for response in reply["responses"]]
    assert [response["header"] for response in inner] == [{"revision": 5}] * 4
    assert inner[1]["deleted"] == 2
    kvs = core.everything()["kvs"]
    assert [(kv["key"], kv["mod_revision"], kv["version"]) for kv in kvs] == [
        (b"c", 4, 1),
        (b"d", 5, 1),
        (b"e", 5, 1),
    ]


@pytest.mark.parametrize(
    "operation",
    [
        ("KV/Txn", {"success": [range_op(b"a")]}),
        ("KV/Txn", {}),
        ("KV/Txn", {"success": [txn_op(range_op(b"a"))]}),
        ("KV/Txn", {"success": [delete_op(b"missing")]}),
        ("KV/DeleteRange", {"key": b"missing"}),
        ("KV/Txn", {"success": [put_op(b"x"), put_op(b"y", lease=99)]}),
        ("KV/Put", {"key": b"missing", "ignore_value": True}),
        ("KV/Put", {"key": b"a", "lease": 99}),
        ("KV/Txn", {"compare": [{"key": b"a", "result": 0, "version": 9}], "success": []}),
    ],
)
def test_what_changes_nothing_makes_no_revision(operation: tuple[str, Message]) -> None:
    core = filled()
    before = state_of(core)
    core.refused(*operation)
    assert state_of(core) == before
    assert core.store.revision == 4
    core.store.check()


def test_versions_and_create_revisions_start_anew_after_a_deletion() -> None:
    core = Core()
    for _ in range(3):
        core.put(b"k")
    [kv] = core.range(b"k")["kvs"]
    assert (kv["create_revision"], kv["mod_revision"], kv["version"]) == (2, 4, 3)
    txn(core, delete_op(b"k"))
    core.put(b"k")
    [kv] = core.range(b"k")["kvs"]
    assert (kv["create_revision"], kv["mod_revision"], kv["version"]) == (6, 6, 1)


# --- nested Txns (T5) -----------------------------------------------------------------------------


def test_compares_of_nested_txns_see_the_store_as_it_was_before_the_txn() -> None:
    core = filled()
    nested = {
        "request_txn": {
            "compare": [{"key": b"n", "target": 0, "result": 0, "version": 0}],
            "success": [put_op(b"was", b"missing")],
            "failure": [put_op(b"was", b"there")],
        }
    }
    reply = txn(core, put_op(b"n"), nested)
    assert reply["responses"][1]["response_txn"]["succeeded"]
    assert core.range(b"was")["kvs"][0]["value"] == b"missing"


def test_operations_run_in_order_and_see_each_others_writes() -> None:
    core = filled()
    reply = txn(
        core,
        range_op(b"d"),
        put_op(b"d", b"1", prev_kv=True),
        txn_op(range_op(b"d"), delete_op(b"a", prev_kv=True), range_op(b"a", FROM_KEY)),
        range_op(b"a", revision=4),
        range_op(b"a", FROM_KEY, count_only=True),
    )
    first, second, nested, old, count = [next(iter(r.values())) for r in reply["responses"]]
    assert first["header"] == {"revision": 4}  # nothing was written yet
    assert "kvs" not in first
    assert "prev_kv" not in second
    assert nested["header"] == {}
    read, deleted, rest = [next(iter(r.values())) for r in nested["responses"]]
    assert read["kvs"][0]["value"] == b"1"
    assert deleted["prev_kvs"][0]["value"] == b"old a"
    assert [kv["key"] for kv in rest["kvs"]] == [b"b", b"c", b"d"]
    assert old["kvs"][0]["value"] == b"old a"
    assert count["count"] == 3


def test_a_txn_reads_old_revisions_but_none_that_is_not_there() -> None:
    core = filled()
    core.call("KV/Compact", {"revision": 3})
    writes = put_op(b"x")
    assert refused(core, writes, range_op(b"a", revision=2)) is CompactedError
    assert refused(core, writes, range_op(b"a", revision=5)) is FutureRevisionError
    assert refused(core, writes, range_op(b"a", revision=-1)) is CompactedError
    assert refused(core, range_op(b"a", revision=2)) is CompactedError
    assert refused(core, writes, txn_op(range_op(b"a", revision=5))) is FutureRevisionError
    assert core.store.revision == 4
    assert refused(core, writes, range_op(b"a", revision=3)) is None


def test_only_the_list_that_runs_is_checked() -> None:
    core = filled()
    message = {
        "compare": [{"key": b"a", "target": 0, "result": 0, "version": 1}],
        "success": [put_op(b"x")],
        "failure": [put_op(b"y", b"", ignore_value=True), range_op(b"a", revision=99)],
    }
    assert core.call("KV/Txn", message)["succeeded"]


# --- one call must never end a member (T49) -------------------------------------------------------

KEEPS = [{"ignore_value": True}, {"ignore_lease": True}]


@pytest.mark.parametrize("keeps", KEEPS)
@pytest.mark.parametrize(
    "deleted",
    [
        [delete_op(b"a", FROM_KEY)],
        [delete_op(b"b", FROM_KEY)],
        [txn_op(delete_op(b"a", FROM_KEY))],
        [put_op(b"z"), delete_op(b"\0", FROM_KEY), put_op(b"y")],
    ],
)
def test_a_put_that_keeps_what_an_earlier_delete_takes_is_key_not_found(
    deleted: list[Message], keeps: Message
) -> None:
    """etcd's duplicate check does not see from-key deletes, its apply then panics in the middle."""
    core = filled()
    before = state_of(core)
    put = put_op(b"b", b"" if "ignore_value" in keeps else b"v", **keeps)
    for ops in ([*deleted, put], [*deleted, txn_op(put)]):
        # The worker lets it pass, as etcd does.
        assert judge(TXN, encode("TxnRequest", {"success": ops})) == 0
        assert refused(core, *ops) is KeyNotFoundError
        assert state_of(core) == before


@pytest.mark.parametrize("keeps", KEEPS)
def test_a_put_that_keeps_what_no_delete_takes_is_allowed(keeps: Message) -> None:
    core = filled()
    put = put_op(b"b", b"" if "ignore_value" in keeps else b"v", **keeps)
    reply = txn(core, delete_op(b"b\0", FROM_KEY), put)
    assert reply["header"]["revision"] == 5
    reply = txn(filled(), put, delete_op(b"a", FROM_KEY))  # before the delete, the key is there
    assert reply["responses"][1]["response_delete_range"]["deleted"] == 3


def test_a_plain_put_after_a_from_key_delete_is_allowed() -> None:
    core = filled()
    txn(core, delete_op(b"a", FROM_KEY), put_op(b"b"))
    [kv] = core.everything()["kvs"]
    assert (kv["key"], kv["value"], kv["create_revision"], kv["version"]) == (b"b", b"new", 5, 1)
    core.store.check()


def test_a_log_that_holds_such_an_entry_opens() -> None:
    core = filled()
    before = core.store.revision
    ops = [delete_op(b"a", FROM_KEY), put_op(b"b", b"", ignore_value=True)]
    core.apply(delimited(TXN_FIELD, encode("TxnRequest", {"success": ops})))
    assert core.store.revision == before
    core.store.check()


# --- leases and alarms ----------------------------------------------------------------------------


def test_a_lease_must_exist() -> None:
    core = filled()
    assert core.refused("KV/Put", {"key": b"k", "lease": 7}) is LeaseNotFoundError
    core.grant(7)
    core.put(b"k", lease=7)
    core.call("KV/Put", {"key": b"k", "value": b"w", "ignore_lease": True})
    [kv] = core.range(b"k")["kvs"]
    assert (kv["lease"], kv["value"]) == (7, b"w")
    core.call("KV/Put", {"key": b"k", "ignore_value": True, "prev_kv": True})
    [kv] = core.range(b"k")["kvs"]
    assert (kv.get("lease", 0), kv["value"]) == (0, b"w")


def test_no_space_refuses_what_needs_room_and_nothing_else() -> None:
    core = filled()
    core.applier.no_space = True
    assert core.refused("KV/Put", {"key": b"k"}) is NoSpaceError
    for message in (
        {"success": [put_op(b"x")]},
        {"failure": [put_op(b"x")]},  # etcd looks at both lists
        {"success": [txn_op(put_op(b"x"))]},
    ):
        assert core.refused("KV/Txn", message) is NoSpaceError
    assert core.refused("KV/Txn", {"success": [delete_op(b"a")]}) is None
    assert core.refused("KV/DeleteRange", {"key": b"b"}) is None
    assert core.refused("KV/Compact", {"revision": 5}) is None
    assert core.everything()["count"] == 1
    core.applier.no_space = False
    assert core.refused("KV/Put", {"key": b"k"}) is None


def test_corrupt_refuses_every_write() -> None:
    core = filled()
    core.applier.corrupt = True
    for name, message in (
        ("KV/Put", {"key": b"k"}),
        ("KV/DeleteRange", {"key": b"k"}),
        ("KV/Txn", {"success": [put_op(b"k")]}),
        ("KV/Compact", {"revision": 2}),
    ):
        assert core.refused(name, message) is CorruptError
    assert core.store.revision == 4


# --- entries of any content -----------------------------------------------------------------------


def garbage() -> st.SearchStrategy[bytes]:
    """Bytes that are, or once were, entries."""
    key = st.sampled_from([b"", b"\0", b"a", b"b", b"zz"])
    number = st.sampled_from([0, 1, -1, 5, 2**62])
    put = st.fixed_dictionaries(
        {"key": key, "value": key},
        optional={"lease": number, "ignore_value": st.booleans(), "ignore_lease": st.booleans()},
    )
    delete = st.fixed_dictionaries({"key": key, "range_end": key, "prev_kv": st.booleans()})
    ranged = st.fixed_dictionaries(
        {"key": key, "range_end": key, "revision": number, "limit": number, "sort_order": number}
    )
    compare = st.fixed_dictionaries(
        {"key": key, "range_end": key, "target": number, "result": number},
        optional={"version": number, "value": key, "lease": number},
    )

    def txns(inner: st.SearchStrategy[Message]) -> st.SearchStrategy[Message]:
        op: st.SearchStrategy[Message] = (
            st.fixed_dictionaries({"request_put": put})
            | st.fixed_dictionaries({"request_delete_range": delete})
            | st.fixed_dictionaries({"request_range": ranged})
            | st.fixed_dictionaries({"request_txn": inner})
            | st.just({})
        )
        ops = st.lists(op, max_size=3)
        return st.fixed_dictionaries(
            {},
            optional={
                "compare": st.lists(compare, max_size=2),
                "success": ops,
                "failure": ops,
            },
        )

    txn_message: st.SearchStrategy[Message] = st.recursive(st.just({}), txns, max_leaves=4)
    compaction = st.fixed_dictionaries({"revision": number, "physical": st.booleans()})
    entries = st.one_of(
        put.map(lambda m: delimited(PUT_FIELD, encode("PutRequest", m))),
        delete.map(lambda m: delimited(DELETE_FIELD, encode("DeleteRangeRequest", m))),
        txn_message.map(lambda m: delimited(TXN_FIELD, encode("TxnRequest", m))),
        compaction.map(lambda m: delimited(COMPACTION_FIELD, encode("CompactionRequest", m))),
        st.binary(max_size=40),
        st.tuples(st.integers(0, 120), st.binary(max_size=20)).map(lambda p: delimited(*p)),
    )
    flips = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2)
    return st.tuples(entries, flips).map(lambda pair: damaged(*pair))


def damaged(entry: bytes, flips: list[tuple[int, int]]) -> bytes:
    data = bytearray(entry)
    for at, byte in flips:
        if at < len(data):
            data[at] = byte
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.lists(garbage(), max_size=12))
def test_apply_is_total_and_the_same_everywhere(entries: list[bytes]) -> None:
    members = [filled(), filled()]
    for core in members:
        core.apply(*entries)
        core.store.check()
        assert core.applier.applied == 3 + len(entries)
    assert members[0].others == members[1].others
    assert state_of(members[0]) == state_of(members[1])


def test_deep_nesting_is_an_answer_and_no_crash() -> None:
    core = filled()
    body = encode("TxnRequest", {"success": [put_op(b"deep")]})
    for _ in range(2_000):
        body = delimited(2, delimited(4, body))
    core.apply(delimited(TXN_FIELD, body))
    assert core.range(b"deep")["count"] == 1
    before = core.store.revision
    for _ in range(10_000):
        body = delimited(2, delimited(4, body))
    core.apply(delimited(TXN_FIELD, body))
    assert core.store.revision == before


def test_an_empty_entry_and_one_that_etcd_once_logged_change_nothing() -> None:
    core = filled()
    before = state_of(core)
    core.apply(b"", delimited(3, encode("RangeRequest", {"key": b"a"})), b"")
    assert state_of(core) == before
    assert core.others == []
    assert core.applier.applied == 6


def test_entries_that_are_not_of_the_kv_api_go_to_python_in_their_place() -> None:
    core = filled()
    alarm = delimited(10, b"\x08\x01")
    run = Run.of([(0, alarm), (2, b"conf"), (0, delimited(PUT_FIELD, b"\x0a\x01x")), (0, b"\x07")])
    core.commit(run)
    assert core.others == [(0, 4, alarm), (2, 5, b"conf"), (0, 7, b"\x07")]
    assert core.range(b"x")["count"] == 1


def test_scratch_memory_of_a_large_request_is_given_back_and_made_anew() -> None:
    core = Core()
    value = os.urandom(1_500_000)
    core.put(b"k", value)
    reply = txn(core, range_op(b"k"), put_op(b"l", b"small"))
    assert reply["responses"][0]["response_range"]["kvs"][0]["value"] == value
    assert txn(core, put_op(b"m"))["header"]["revision"] == 4


# --- the state around it --------------------------------------------------------------------------


def new_state() -> State:
    return State([None], Logger((), "info"))


def applied(state: State, *requests: InternalRaftRequest | bytes) -> State:
    entries = [one if isinstance(one, bytes) else one.encode() for one in requests]
    run = Run.of((EntryType.NORMAL, data) for data in entries)
    run.assign(state.applied + 1, 2)
    state.applier.apply(run)
    return state


def alarm(action: AlarmAction, kind: AlarmType, entry_id: int = 1) -> InternalRaftRequest:
    return InternalRaftRequest(
        header=RequestHeader(id=entry_id), alarm=AlarmRequest(action, 0xA1, kind)
    )


def test_alarms_switch_what_the_applier_refuses() -> None:
    state = new_state()
    for kind, name in ((AlarmType.NOSPACE, "no_space"), (AlarmType.CORRUPT, "corrupt")):
        applied(state, alarm(AlarmAction.ACTIVATE, kind))
        assert getattr(state.applier, name)
        applied(state, alarm(AlarmAction.DEACTIVATE, kind))
        assert not getattr(state.applier, name)


def test_who_proposed_an_alarm_hears_once_what_it_changed() -> None:
    state = new_state()
    heard: list[object] = []
    state.await_entry(7, heard.append)
    applied(state, alarm(AlarmAction.ACTIVATE, AlarmType.NOSPACE, 6))
    assert heard == []
    applied(state, alarm(AlarmAction.ACTIVATE, AlarmType.NOSPACE, 7))
    applied(state, alarm(AlarmAction.ACTIVATE, AlarmType.NOSPACE, 7))
    assert heard == [(AlarmMember(0xA1, AlarmType.NOSPACE),)]


@pytest.mark.parametrize("field", [1000, 1100, 1299, 1302])
def test_an_entry_that_only_a_later_version_can_apply_stops_the_process(field: int) -> None:
    with pytest.raises(Fatal, match=rf"entry 1 .*field {field}\b"):
        applied(new_state(), delimited(field, b""))


def test_entries_that_do_not_decode_change_nothing_and_are_applied() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    state = new_state()
    for _ in range(300):
        data = b"\x07" + rng.randbytes(rng.randrange(30))  # wire type 7 is none
        assert applied(state, data).store.revision == 1, f"seed {seed}"
    assert state.applied == 300


def test_entries_of_etcd_3_4_for_the_v2_api_reach_python() -> None:
    """Such an entry is a bare v2 request; its path and value have the numbers of range and put."""
    state = new_state()
    bare = RequestV2(id=5, method="PUT", path="/0/version", value="3.4.0").encode()
    assert applied(state, bare).members.cluster_version == "3.4.0"
    wrapped = InternalRaftRequest(v2=RequestV2(method="PUT", path="/0/version", value="3.5.0"))
    assert applied(state, wrapped).members.cluster_version == "3.5.0"
    own = InternalRaftRequest(cluster_version_set=ClusterVersionSetRequest("3.6.0"))
    assert applied(state, own).members.cluster_version == "3.6.0"


def test_empty_keys_within_an_entry_are_refused() -> None:
    core = filled()
    for field, message in (
        (PUT_FIELD, encode("PutRequest", {"value": b"v"})),
        (DELETE_FIELD, encode("DeleteRangeRequest", {"range_end": FROM_KEY})),
        (TXN_FIELD, encode("TxnRequest", {"success": [put_op(b""), put_op(b"x")]})),
        (TXN_FIELD, encode("TxnRequest", {"success": [delete_op(b"", FROM_KEY)]})),
    ):
        core.apply(delimited(field, message))
    assert core.store.revision == 4
    assert core.worker.receive() == []
