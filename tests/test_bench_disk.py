"""The benchmark of the data directory: what comes from a server that lies, files, cases."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from bench import datadir, process, report, runner, storing, workloads
from bench._download import Download
from bench._keyspace import Keyspace
from bench._load import Load
from bench.servers import QUOTA_BYTES, Server, Target, find_target

from tests.depth import depth
from tests.fake_maintenance import DELETE_LIES, SNAPSHOT_LIES, FakeMaintenance
from tests.messages import encode
from tests.needs import need

PREFIX = b"/test/"
TARGET = Target("etcd 3.4.23", "/a", "3.4.23")
KEYS = 20


def stand_in(fake: FakeMaintenance) -> Server:
    """A server that is not started, on the fake's port."""
    server = Server(TARGET, Path("unused"))
    server.port = fake.port
    return server


# -- snapshots


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("size", [1, 31, 7968, 25_000])
def test_a_snapshot_is_read_to_its_end(size: int, check: bool) -> None:
    with FakeMaintenance(file=bytes(size)) as fake, Download(fake.port, check=check) as download:
        outcome = download.run(patience=5)
        assert outcome.good, outcome
        assert (outcome.succeeded, outcome.size, download.size) == (1, size + 32, size + 32)
        with pytest.raises(RuntimeError, match="used before"):
            download.run()
    with pytest.raises(RuntimeError, match="closed"):
        download.run()


# What is said of each lie, or the beginning of it.
PROBLEMS = {
    "digest": "the snapshot's digest is wrong",
    "short": "the snapshot is not whole",
    "more remains": "more remains than before",
    "something remains": "the snapshot is not whole",
    "no status": "the server ended the stream without a status",
    "bad status": "",
    "malformed": "a message is malformed",
    "compressed": "a message is compressed",
    "cut": "the last message is cut short",
    "reset": "the server ended the stream without a status",
    "no snapshot": "unknown service",
}


@pytest.mark.parametrize("lie", SNAPSHOT_LIES)
def test_no_lie_of_a_snapshot_is_believed(lie: str) -> None:
    with FakeMaintenance(lie) as fake, Download(fake.port) as download:
        outcome = download.run(patience=5)
    assert not outcome.good, outcome
    assert outcome.problem.startswith(PROBLEMS[lie])
    assert outcome.succeeded == 0
    assert outcome.unimplemented == (lie == "no snapshot")
    with pytest.raises(workloads.Unimplemented if lie == "no snapshot" else workloads.WrongAnswer):
        workloads.demand(outcome, "a snapshot")


def test_a_slow_reader_is_slow() -> None:
    # Within the windows of HTTP/2, so that only the reader's pace counts.
    with (
        FakeMaintenance(file=bytes(40_000)) as fake,
        Download(fake.port, pace=160_000) as download,
    ):
        outcome = download.run(patience=5)
    assert outcome.good, outcome
    assert 0.15 < outcome.elapsed < 5


def test_a_snapshot_is_left_when_there_was_enough_or_when_told() -> None:
    with FakeMaintenance(file=bytes(60_000)) as fake:
        with Download(fake.port, pace=100_000) as download:
            outcome = download.run(most=1, patience=5)
        assert (outcome.unfinished, outcome.failed, outcome.wrong) == (1, 0, 0)
        assert 0 < outcome.size < 60_000
        with Download(fake.port, pace=1) as download:
            thread = threading.Thread(target=download.run)
            thread.start()
            while thread.is_alive():
                download.stop()
                thread.join(0.01)


def test_snapshots_go_on_beside_a_block_and_a_bad_one_is_told() -> None:
    with FakeMaintenance() as fake:
        with storing.snapshots_beside(stand_in(fake), storing.FAST) as done:
            while len(done) < 3:
                # A list that another thread appends to, which cannot tell.
                time.sleep(0.01)
        assert storing.rate_of(done) > 0
    with FakeMaintenance("something remains") as fake:
        beside = storing.snapshots_beside(stand_in(fake), storing.FAST)
        done = beside.__enter__()
        while not done:
            # The same.
            time.sleep(0.01)
        with pytest.raises(workloads.WrongAnswer, match="not whole"):
            beside.__exit__(None, None, None)
    with FakeMaintenance("no snapshot") as fake, pytest.raises(workloads.Unimplemented):
        storing.demand_snapshots(stand_in(fake))


# -- deletes


def test_deletes_are_counted_and_what_was_deleted_is_not_there() -> None:
    with FakeMaintenance() as fake:
        keyspace = Keyspace(PREFIX, KEYS)
        with Load(fake.port, "put", keyspace, order="sequential") as load:
            assert load.run(requests=KEYS).good
        with Load(fake.port, "delete", keyspace, connections=2, streams=2) as load:
            assert load.run(requests=200).good
        assert keyspace.writes == fake.revision - 1
        assert len(fake.pairs) == 2 * KEYS - keyspace.writes < KEYS
        with Load(fake.port, "get", keyspace) as load:
            assert load.run(requests=100).good
        with Load(fake.port, "put", keyspace, order="sequential") as load:
            assert load.run(requests=KEYS).good


@pytest.mark.parametrize("lie", DELETE_LIES)
def test_no_lie_of_a_delete_is_believed(lie: str) -> None:
    with FakeMaintenance(lie) as fake:
        keyspace = Keyspace(PREFIX, KEYS)
        with Load(fake.port, "put", keyspace, order="sequential") as load:
            assert load.run(requests=KEYS).good
        with Load(fake.port, "delete", keyspace) as load:
            outcome = load.run(requests=1)
    assert outcome.wrong == 1
    assert outcome.problem.startswith("a delete's")


def test_the_mix_says_how_many_bytes_it_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "MIX_PER_SECOND", 100)

    class Compacting(FakeMaintenance):
        compacted = 0

        def _compact(self, message: bytes) -> bytes:
            self.compacted += 1
            return encode("CompactionResponse", {"header": self._header()})

    with Compacting() as fake:
        keyspace = Keyspace(PREFIX, 1000)
        server = stand_in(fake)
        with workloads.every_write_counted(server, keyspace):
            asked = storing.mix(server, keyspace, 2, 1)
        assert asked == 2 * (70 * keyspace.bytes_each + 30 * (keyspace.bytes_each - 256))
        assert fake.compacted == 2
        assert 140 <= keyspace.writes <= 200


# -- restarts


def test_the_first_answer_is_judged() -> None:
    with FakeMaintenance() as fake:
        keyspace = Keyspace(PREFIX, KEYS)
        server = stand_in(fake)
        with Load(fake.port, "put", keyspace, order="sequential") as load:
            assert load.run(requests=KEYS).good
        server.question = storing.question(keyspace.key(KEYS - 1))
        assert server._answers()
        storing.check_first_answer(server, keyspace)
        for lie, wrong in (("value", "has not the value"), ("old value", "")):
            fake.lie = lie
            assert server._answers()
            if wrong:
                with pytest.raises(workloads.WrongAnswer, match=wrong):
                    storing.check_first_answer(server, keyspace)
        fake.lie = ""
        fake.revision -= 1
        assert server._answers()
        with pytest.raises(workloads.WrongAnswer, match="of revision 20, the last write was of 21"):
            storing.check_first_answer(server, keyspace)


# -- files


def test_a_logs_end_is_found_by_its_zeros(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        datadir.find_log(tmp_path)
    folder = tmp_path / "member" / "wal"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        datadir.find_log(tmp_path)
    for size in (0, 1, datadir.CHUNK_BYTES, datadir.CHUNK_BYTES + 1, 3 * datadir.CHUNK_BYTES - 1):
        file = folder / f"{2:016x}-{77:016x}.wal"
        file.write_bytes(b"\1" * size + bytes(2 * datadir.CHUNK_BYTES))
        (folder / f"{1:016x}-{9:016x}.wal").write_bytes(b"\1")
        (folder / "0.tmp").write_bytes(b"\1")
        assert datadir.find_log(tmp_path) == datadir.Log(2, size)


def test_zeros_follow_the_log() -> None:
    segment, ahead = datadir.SEGMENT_BYTES, datadir.FILL_AHEAD_BYTES
    assert datadir.Log(0, 0).filled == ahead
    assert datadir.Log(0, 1000).filled == ahead + 3000
    assert datadir.Log(0, segment).filled == 2 * segment
    assert datadir.Log(1, 0).filled == 2 * segment
    assert datadir.Log(3, 5).filled == 4 * segment + 10
    assert datadir.Log(3, 5).size == 3 * segment + 5


def test_sizes_and_stamps_of_files(tmp_path: Path) -> None:
    snap, wal = tmp_path / "member" / "snap", tmp_path / "member" / "wal"
    snap.mkdir(parents=True)
    wal.mkdir()
    assert datadir.backend_stamp(tmp_path) == (0, 0)
    (snap / "db").write_bytes(b"x" * 2**20)
    (wal / "a").write_bytes(b"x" * 2**21)
    os.utime(snap / "db", ns=(1, 1))
    before = datadir.backend_stamp(tmp_path)
    os.utime(snap / "db", ns=(1, 2))
    assert datadir.backend_stamp(tmp_path) != before
    datadir.flush(tmp_path)
    datadir.warm(tmp_path)
    found = datadir.sizes(tmp_path)
    assert found["log_mib"] == pytest.approx(2, rel=0.1)
    assert found["files_mib"] == pytest.approx(1, rel=0.1)


def test_what_is_written_is_counted(tmp_path: Path) -> None:
    before = process.written_bytes(os.getpid())
    device = datadir.device_bytes(tmp_path)
    (tmp_path / "file").write_bytes(os.urandom(2**20))
    datadir.flush(tmp_path)
    counted = process.written_bytes(os.getpid()) - before
    if runner.file_system_of(tmp_path) not in runner.MEMORY_FILE_SYSTEMS:
        assert counted >= 2**20
    if device is not None:
        now = datadir.device_bytes(tmp_path)
        assert now is not None
        assert now - device >= 2**20


# -- cases


def test_a_disk_that_is_too_small_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "free_bytes", lambda directory: 3 * 2**30)
    cases = [case for case in storing.CASES if case.name == "much data"]
    lines: list[str] = []
    settings = workloads.Settings()
    results = runner.run_rounds(cases, [TARGET], settings, 1, tmp_path, lines.append)
    said = "etcd 3.4.23, much data: 31 GiB of disk are needed and 3 GiB are free"
    assert results.unmeasured == [said]
    assert not results.problems
    assert said in report.markdown(results, {})


def test_a_server_is_told_its_quota_and_more() -> None:
    server = Server(TARGET, Path("unused"))
    assert f"--quota-backend-bytes={QUOTA_BYTES}" in server._command(1)
    server.quota_bytes, server.options = 7, ("--snapshot-count=3",)
    assert server._command(1)[-2:] == ["--quota-backend-bytes=7", "--snapshot-count=3"]


@pytest.mark.compat
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [case.name for case in storing.CASES if case.name != "restart on 5,000,000 keys"][
        : depth(3, 9)
    ],
)
def test_a_case_runs_against_etcd(
    name: str, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "SETTLED_SECONDS", 0.2)
    target = find_target(need("etcd"))
    case = next(case for case in storing.CASES if case.name == name)
    settings = workloads.Settings(seconds=0.2, warmup=0.1, scale=0.001)
    rows = case.run(workloads.Stage(target, settings, quick_path))
    assert rows
    for metrics in rows.values():
        assert all(value >= 0 for value in metrics.values())
