"""The worker itself: one of a store, behind all others, ended at any moment, told by its status."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

import mldb
from mldb.compaction.status import STATUS, WorkerStatus, load_status
from mldb.compaction.worker import Job, JobReport, WorkerOrder, run_worker
from mldb.log.fs.child import Companion
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import translate
from mldb.log.hints import save_hint
from mldb.worker import JOBS, WorkerDatabase
from tests.support.background import (
    EAGER,
    EPOCHS,
    QUIET,
    compaction,
    filled,
    order_for,
    paused,
    run_one,
    start,
    status_of,
    until,
    value_of,
)

_DISK_IS_FULL = """
import sys
from mldb.log.fs.posix import OsFileSystem
OsFileSystem.free_bytes = lambda self: 0
from mldb.worker import main
sys.exit(main())
"""


def said_last(worker: Companion) -> str:
    """The line that tells why it ended."""
    return worker.said().strip().splitlines()[-1]


def has_ended(db: mldb.MLDatabase) -> bool:
    """Whether no worker is at the store."""
    return not compaction(db)["running"]


# --- what it is -----------------------------------------------------------------------------------


def test_it_imports_neither_torch_nor_what_belongs_to_devices() -> None:
    code = "import mldb.worker, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "mldb" in loaded
    assert not loaded & {"torch", "scipy", "numba", "vulkan", "duckdb", "subprocess"}


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
def test_it_works_behind_all_others_but_for_what_holds_the_commit_lock(store_path: Path) -> None:
    with paused(filled(store_path)) as db:
        pid = start(db)
        policies = {
            int(thread): os.sched_getscheduler(int(thread))
            for thread in os.listdir(f"/proc/{pid}/task")
        }
        assert policies.pop(pid) == os.sched_getscheduler(0)
        assert set(policies.values()) == {os.SCHED_BATCH}
        (worker,) = policies
        assert os.getpriority(os.PRIO_PROCESS, worker) == 19
        assert os.getpgid(pid) == pid != os.getpgid(0)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        for number in (0, 1):
            assert os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/null"


def test_calls_that_hold_the_commit_lock_are_made_by_the_main_thread(store_path: Path) -> None:
    filled(store_path)
    code = """
import sys, threading
from mldb.log import outline
from mldb.log.lock import CommitLock
held = set()
hold = CommitLock.hold
def told(self, timeout=None):
    held.add(threading.current_thread() is threading.main_thread())
    return hold(self, timeout)
CommitLock.hold = told
from mldb.worker import main
status = main()
print("held by", held, file=sys.stderr)
sys.exit(status)
"""
    worker = run_one(order_for(store_path), ("-c", code))
    assert status_of(worker) == 0
    assert said_last(worker) == "held by {True}"


def test_two_workers_at_once_are_one_and_the_other_says_nothing(store_path: Path) -> None:
    filled(store_path)
    workers = [run_one(order_for(store_path, rate=20_000_000)) for _ in range(3)]
    assert [status_of(worker) for worker in workers] == [0, 0, 0]
    assert [worker.said() for worker in workers] == ["", "", ""]
    status = load_status(OsFileSystem(store_path))
    assert status is not None
    assert status.pid in [worker.pid for worker in workers]
    assert (status.state, status.error) == ("ended", "")
    assert status.returned > 0


def test_two_handles_that_start_one_at_once_have_one(store_path: Path) -> None:
    filled(store_path)
    with mldb.open(store_path, **EAGER) as one, mldb.open(store_path, **EAGER) as two:
        for db in (one, two):
            db._compaction.look()
        for db in (one, two):
            until(partial(has_ended, db))
            assert compaction(db)["last_error"] == ""
            assert compaction(db)["returned_bytes"] > 0
        assert one.verify().ok


def test_the_jobs_are_done_in_turn_and_told_of(store_path: Path) -> None:
    filled(store_path)
    order = order_for(store_path)
    fs = OsFileSystem(store_path)
    seen: list[str] = []

    def first(store: WorkerDatabase, bench: object) -> JobReport:
        seen.append(f"first at epoch {store.epoch}")
        return JobReport(5, {"merged": 3})

    def second(store: WorkerDatabase, bench: object) -> None:
        seen.append("second")

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        jobs = (Job("first", first), Job("second", second))
        opened = lambda: WorkerDatabase.on(OsFileSystem(store_path), **QUIET)  # noqa: E731
        assert run_worker(fs, order, jobs, opened, lambda: False) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert seen == [f"first at epoch {EPOCHS - 1}", "second"]
    status = load_status(fs)
    assert status is not None
    assert (status.reports, status.returned) == ({"first": {"merged": 3}}, 5)
    assert [job.name for job in JOBS] == ["compaction", "consolidation"]


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [5, pytest.param(60, marks=pytest.mark.large)])
def test_it_may_be_killed_at_any_moment(
    store_path: Path, rng: np.random.Generator, kills: int
) -> None:
    filled(store_path, segment_bytes=500_000)
    fs = OsFileSystem(store_path)
    order = order_for(store_path, rate=4_000_000, segment_bytes=1_000_000)
    killed = 0
    for wait in rng.uniform(0, 0.3, kills):
        worker = run_one(order)
        until(partial(is_at_work, fs, worker))
        time.sleep(float(wait))
        worker.send(signal.SIGKILL)
        killed += status_of(worker) != 0
        with mldb.open(store_path, **QUIET) as db:
            assert db.recovery.clean
            for epoch in (EPOCHS - 2, EPOCHS - 1):
                assert np.array_equal(db.query_tensor("weight", as_of=epoch), value_of(epoch))
            assert db.verify().ok
            if not db.compact(plan_only=True).versions_dropped:  # it was done: more to do
                for number in range(EPOCHS):
                    db.store_tensor("other", value_of(number))
    assert killed
    with mldb.open(store_path, **QUIET) as db:
        db.compact()
        assert not os.listdir(store_path / "pending")
        segments = [name for name in os.listdir(store_path / "segments") if name.endswith(".seg")]
        assert len(segments) == db.stats()["segments"]


def is_at_work(fs: OsFileSystem, worker: Companion) -> bool:
    """Whether it has begun its job, or has ended already."""
    status = load_status(fs)
    begun = status is not None and (status.pid, status.state) == (worker.pid, "working")
    return begun or worker.status() is not None


def test_asked_to_end_it_leaves_nothing_behind(store_path: Path) -> None:
    with paused(filled(store_path)) as db:
        worker = db._compaction._worker
        assert worker is not None
        assert [name for name in os.listdir(store_path / "pending") if name.endswith(".seg")]
        worker.send(signal.SIGTERM)
        assert status_of(worker) == 0
        assert not os.listdir(store_path / "pending")
        assert not compaction(db)["running"]
        assert compaction(db)["last_error"] == ""


def test_one_that_has_nobody_left_to_work_for_ends(store_path: Path) -> None:
    filled(store_path)
    worker = run_one(order_for(store_path, parent=os.getpid() + 1))
    assert status_of(worker) == 0
    status = load_status(OsFileSystem(store_path))
    assert status is not None
    assert (status.state, status.returned) == ("ended", 0)


def test_a_full_disk_is_told_and_who_trains_goes_on(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store_path)
    monkeypatch.setattr("mldb.compaction.background._COMMAND", ("-c", _DISK_IS_FULL))
    with mldb.open(store_path, **EAGER) as db:
        start(db)
        until(lambda: not compaction(db)["running"])
        assert compaction(db)["last_error"].startswith("StorageFullError: compaction of")
        db.store_tensor("other", value_of(1))
        assert np.array_equal(db["other"], value_of(1))
        with mldb.open(store_path, mode="r") as second:  # every process is told
            assert "StorageFullError" in compaction(second)["last_error"]
        assert not os.listdir(store_path / "pending")


class ReadOnlyFolder(OsFileSystem):
    """A folder on a file system that is mounted for reading."""

    def lock(self, name: str) -> NoReturn:
        """As the real one does."""
        raise translate(OSError(errno.EROFS, "read-only"), "open", self.root, name, writing=True)


def test_where_nothing_can_be_written_it_says_so_and_changes_nothing(
    store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = order_for(filled(store_path))
    before = sorted(path for path in store_path.rglob("*"))

    def never() -> NoReturn:
        raise AssertionError("it is not opened")

    fs = ReadOnlyFolder(store_path)
    jobs: tuple[Job[WorkerDatabase], ...] = JOBS
    assert run_worker(fs, order, jobs, never, lambda: False) == 1
    assert "ReadOnlyError: open failed with EROFS" in capsys.readouterr().err
    assert sorted(path for path in store_path.rglob("*")) == before


# --- another store, none, another version ---------------------------------------------------------


def test_where_the_store_was_deleted_none_is_made(store_path: Path) -> None:
    order = order_for(filled(store_path))
    shutil.rmtree(store_path)
    worker = run_one(order)
    assert status_of(worker) == 1
    assert said_last(worker).startswith("StoreMovedError: there is no store at")
    assert not store_path.exists()
    store_path.mkdir()
    assert status_of(run_one(order)) == 1
    assert not os.listdir(store_path)


def test_another_store_in_its_place_is_not_touched(store_path: Path) -> None:
    order = order_for(filled(store_path))
    shutil.move(store_path, store_path.with_name("moved"))
    filled(store_path)
    worker = run_one(order)
    assert status_of(worker) == 1
    assert "StoreMovedError: another store lies at" in said_last(worker)
    with mldb.open(store_path, **QUIET) as db:
        assert db.compact(plan_only=True).versions_dropped > 0


def test_a_store_that_is_moved_meanwhile_ends_it_and_stays_whole(store_path: Path) -> None:
    db = paused(filled(store_path))
    db.store_tensor("other", value_of(1))
    moved = store_path.with_name("moved")
    store_path.rename(moved)
    db.resume_compaction()
    worker = db._compaction._worker
    assert worker is not None
    assert status_of(worker) in (0, 1)
    assert "Traceback" not in worker.said()
    assert not store_path.exists()
    with pytest.raises(mldb.StoreMovedError):
        db.close()
    with mldb.open(moved, **QUIET) as after:
        assert after.verify().ok
        assert np.array_equal(after["weight"], value_of(EPOCHS - 1))


@pytest.mark.parametrize("change", [{"version": "mldb 9.9"}, {"format": 3}])
def test_an_order_of_another_version_is_refused(
    store_path: Path, change: dict[str, object]
) -> None:
    order = replace(order_for(filled(store_path)), **change)  # type: ignore[arg-type]
    with pytest.raises(mldb.FormatVersionError, match="another version was installed meanwhile"):
        order.refuse_other()
    assert WorkerOrder.of(order.text()) == order
    known = json.loads(order.text())
    with pytest.raises(mldb.FormatVersionError, match="does not understand the order"):
        WorkerOrder.of(json.dumps({**known, "unheard": 1}))


def test_a_store_of_a_newer_format_is_told_in_the_status(store_path: Path) -> None:
    order = order_for(filled(store_path))
    code = """
import sys
from mldb.log import log
from mldb.errors import FormatVersionError
def refuse(fs, manifest):
    raise FormatVersionError("the store has a feature of a newer mldb")
log.refuse_to_write = refuse
from mldb.worker import main
sys.exit(main())
"""
    assert status_of(run_one(order, ("-c", code))) == 1
    status = load_status(OsFileSystem(store_path))
    assert status is not None
    assert status.state == "failed"
    assert status.error == "FormatVersionError: the store has a feature of a newer mldb"


# --- the status -----------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [None, [], {}, {"pid": 1}, {"pid": "1", "started": 2}])
def test_a_status_that_cannot_be_read_is_none(store_path: Path, found: object) -> None:
    mldb.open(store_path).close()
    fs = OsFileSystem(store_path)
    assert load_status(fs) is None
    save_hint(fs, STATUS, found)
    assert load_status(fs) is None
    with mldb.open(store_path) as db:
        assert compaction(db)["last_error"] == ""


def test_a_status_is_read_as_it_was_saved_and_what_is_unheard_of_is_left_out(
    store_path: Path,
) -> None:
    mldb.open(store_path).close()
    fs = OsFileSystem(store_path)
    status = WorkerStatus(7, 8, state="failed", error="x" * 5000, reports={"a": {"b": 1}})
    status.save(fs)
    assert load_status(fs) == replace(status, error="x" * 2000)
    save_hint(fs, STATUS, {"pid": 7, "started": 8, "of a later version": 1})
    assert load_status(fs) == WorkerStatus(7, 8)


# --- lakes that ask for it ------------------------------------------------------------------------


def test_a_lake_whose_policy_asks_is_consolidated_and_another_is_left_alone(
    store_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 16)).repeat(20, axis=0)
    rows += 1e-3 * rng.standard_normal(rows.shape)
    with mldb.open(store_path, **QUIET) as db:
        for name in ("asks", "quiet"):
            db.lake(name, dim=16).add_splats(rows)
        db.lake("asks").policy = mldb.ConsolidationPolicy(method="sweep", after_rows=10)
        before = db.lsn
    worker = run_one(order_for(store_path))
    assert status_of(worker) == 0, worker.said()
    with mldb.open(store_path, mode="r") as db:
        assert len(db.lake("asks")) == 20
        assert len(db.lake("quiet")) == 400
        assert len(db.lake("asks").at(before)) == 400
        reports = compaction(db)["last_reports"]
        assert reports["consolidation"]["asks"] == {"rows_before": 400, "rows_after": 20}
        assert db.verify().ok
    worker = run_one(order_for(store_path))  # nothing is due
    assert status_of(worker) == 0, worker.said()
    with mldb.open(store_path, mode="r") as db:
        assert len(db.lake("asks")) == 20
