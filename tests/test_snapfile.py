"""etcd's snapshot files: what is written is read again, and no crash leaves half a file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from quorate.core._disk import Disk, DiskError, OsDisk
from quorate.core.members import Cluster, Member
from quorate.core.messages import ConfState
from quorate.core.snapfile import (
    TEMPORARY,
    encode_tree,
    read_snapshot,
    snapshot_names,
    write_snapshot,
)
from tests.depth import depth, seed
from tests.sim.disk import SimDisk

CLUSTER = Cluster(
    (
        Member(7, ("http://a", "http://b"), name='<"one">', client_urls=("http://c",)),
        Member(0x10, ("http://d",), is_learner=True),
        Member(0xFFFFFFFFFFFFFFFF, (), name="nowhere"),
    ),
    (3, 0x20),
    "3.5.0",
)
STATE = ConfState((7, 0xFFFFFFFFFFFFFFFF), (0x10,))


def write(disk: Disk, directory: str, index: int = 9) -> None:
    write_snapshot(disk, directory, index, 2, CLUSTER, STATE)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(OsDisk(), str(tmp_path))
    [(index, term, name)] = snapshot_names(OsDisk(), str(tmp_path))
    assert (index, term, name) == (9, 2, "0000000000000002-0000000000000009.snap")
    assert read_snapshot(OsDisk(), str(tmp_path), name) == CLUSTER
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_is_read_of_a_cluster_without_members(tmp_path: Path) -> None:
    write_snapshot(OsDisk(), str(tmp_path), 1, 1, Cluster(), ConfState())
    [(_, _, name)] = snapshot_names(OsDisk(), str(tmp_path))
    assert read_snapshot(OsDisk(), str(tmp_path), name) == Cluster()


def test_the_tree_has_etcd_s_form() -> None:
    text = encode_tree(CLUSTER).decode()
    zero = '"ExpireTime":"0001-01-01T00:00:00Z","Value":""'
    assert text.startswith(
        f'{{"Root":{{"Path":"/","CreatedIndex":0,"ModifiedIndex":0,{zero},"Children":{{'
        f'"0":{{"Path":"/0","CreatedIndex":0,"ModifiedIndex":0,{zero},"Children":{{'
        f'"members":{{"Path":"/0/members","CreatedIndex":1,"ModifiedIndex":1,{zero},"Children":{{'
        f'"10":{{"Path":"/0/members/10","CreatedIndex":3,"ModifiedIndex":3,{zero},'
    )
    assert r'"Value":"{\"name\":\"\\u003c\\\"one\\\"\\u003e\",\"clientURLs\"' in text
    tree = json.loads(text)
    assert tree["CurrentIndex"] == 8
    assert list(tree["Root"]["Children"]["0"]["Children"]["removed_members"]["Children"]) == [
        "20",
        "3",
    ]
    events = tree["WatcherHub"]["EventHistory"]["Queue"]
    # etcd takes the list as it is, and writes into it at `Back`.
    assert (len(events["Events"]), events["Capacity"]) == (1000, 1000)


def test_what_an_interrupted_write_left_is_replaced(tmp_path: Path) -> None:
    write(OsDisk(), str(tmp_path))
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    (tmp_path / TEMPORARY).write_bytes(b"x" * 100_000)
    write(OsDisk(), str(tmp_path))
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(file, whole)]


def operations() -> int:
    disk = SimDisk(random.Random(0))
    disk.make_directory("/d")
    before = disk.operations
    write(disk, "/d")
    return disk.operations - before


@pytest.mark.parametrize("how", ["nothing", "all", "prefix", "sectors"])
def test_a_crash_leaves_the_whole_file_or_none(how: str) -> None:
    chance = random.Random(seed())
    for die_at in [*range(1, operations() + 2)] * depth(4, 100):
        disk = SimDisk(chance)
        disk.make_directory("/d")
        disk.sync_directory("/")
        disk.die_at = disk.operations + die_at
        try:
            write(disk, "/d")
        except DiskError:
            done = False
        else:
            done = True
        after = disk.crash(how)
        found = snapshot_names(after, "/d")
        assert found or not done, f"seed {seed()}, {how} at {die_at}"
        for _, _, name in found:
            assert read_snapshot(after, "/d", name) == CLUSTER
        write(after, "/d")
        assert len(snapshot_names(after, "/d")) == 1
