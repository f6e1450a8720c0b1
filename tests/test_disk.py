"""The disk contract: the real one, and a Python subclass through the same door."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.core._disk import Disk, DiskError, OsDisk
from tests.sim.disk import SimDisk


@pytest.fixture(params=["os", "sim"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    if request.param == "os":
        return OsDisk(), str(tmp_path)
    disk = SimDisk(random.Random(1))
    disk.make_directory("/d")
    return disk, "/d"


def test_one_contract(world: tuple[Disk, str]) -> None:
    disk, root = world
    disk.make_directory(f"{root}/sub")
    path = f"{root}/sub/file"
    handle = disk.open(path, True)
    disk.allocate(handle, 10_000)
    assert disk.size(handle) == 10_000
    disk.write(handle, b"hello", 4093)
    assert disk.read(handle, 7, 4092) == b"\0hello\0"
    assert disk.read(handle, 100, 9_999) == b"\0"
    assert disk.read(handle, 0, 0) == b""
    disk.allocate(handle, 5)
    assert disk.size(handle) == 10_000
    disk.fill(handle, 4095, 5_905)
    assert disk.read(handle, 7, 4092) == b"\0he\0\0\0\0"
    disk.datasync(handle)
    disk.rename(path, f"{path}2")
    disk.sync_directory(f"{root}/sub")
    assert disk.list(f"{root}/sub") == ["file2"]
    assert disk.list(f"{root}/none") is None
    disk.close(handle)
    disk.remove(f"{path}2")
    assert disk.list(f"{root}/sub") == []


def test_one_lock_at_a_time(world: tuple[Disk, str]) -> None:
    disk, root = world
    first = disk.open(f"{root}/file", True)
    second = disk.open(f"{root}/file")
    disk.lock(first)
    with pytest.raises(DiskError, match="lock") as refused:
        disk.lock(second, "file")
    assert refused.value.errno == errno.EAGAIN
    disk.close(first)
    disk.lock(second)
    disk.close(second)


def missing(disk: Disk, root: str) -> list[Callable[[], object]]:
    return [
        lambda: disk.open(f"{root}/none"),
        lambda: disk.rename(f"{root}/none", f"{root}/other"),
        lambda: disk.remove(f"{root}/none"),
    ]


def test_a_failure_names_operation_path_and_errno(world: tuple[Disk, str]) -> None:
    disk, root = world
    for call in missing(disk, root):
        with pytest.raises(DiskError) as failed:
            call()
        assert failed.value.errno == errno.ENOENT
        assert failed.value.path == f"{root}/none"
        assert failed.value.operation in str(failed.value)
        assert os.strerror(errno.ENOENT) in str(failed.value)


def test_modes_are_etcds(tmp_path: Path) -> None:
    disk = OsDisk()
    disk.make_directory(f"{tmp_path}/sub")
    disk.close(disk.open(f"{tmp_path}/sub/file", True))
    assert os.stat(tmp_path / "sub").st_mode & 0o777 == 0o700
    assert os.stat(tmp_path / "sub" / "file").st_mode & 0o777 == 0o600
    with pytest.raises(DiskError, match="make directory"):
        disk.make_directory(f"{tmp_path}/sub")
    with pytest.raises(DiskError, match="sync directory"):
        disk.sync_directory(f"{tmp_path}/none")


def test_a_full_device_is_its_errno() -> None:
    disk = OsDisk()
    handle = disk.open("/dev/full")
    with pytest.raises(DiskError) as failed:
        disk.write(handle, b"x", 0, "/dev/full")
    assert failed.value.errno == errno.ENOSPC
    disk.close(handle)


@pytest.mark.parametrize("how", ["nothing", "all", "prefix", "sectors"])
def test_a_crash_loses_only_what_was_not_synced(how: str) -> None:
    for seed in range(50):
        disk = SimDisk(random.Random(seed))
        handle = disk.open("/file", True)
        disk.write(handle, b"a" * 2000, 0)
        disk.datasync(handle)
        disk.sync_directory("/")
        disk.write(handle, b"b" * 2000, 2000)
        after = disk.crash(how)
        data = bytes(after.file("/file").data)
        assert data[:2000] == b"a" * 2000
        assert set(data[2000:]) <= set(b"b\0")
        if how in ("nothing", "all"):
            assert len(data) == {"nothing": 2000, "all": 4000}[how]
