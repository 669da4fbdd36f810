"""Background compaction as who trains sees it: it starts where it is worth it, disturbs nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.compaction import background, worker
from mldb.compaction.background import OUTDATED_NS, size_due
from mldb.compaction.status import WorkerStatus, has_worker
from mldb.compaction.worker import WorkerOrder
from mldb.log.fs import machine
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from tests.support.background import (
    EAGER,
    EPOCHS,
    compaction,
    fill,
    filled,
    is_alive,
    paused,
    start,
    state_of,
    until,
    value_of,
)
from tests.support.processes import Child, Line

# --- when one is due ------------------------------------------------------------------------------


def test_a_store_nobody_looked_at_is_due_at_the_least_that_must_come_back() -> None:
    assert size_due(None, 0, 1000, 0.3) == 1000


@pytest.mark.parametrize("size, left", [(0, 0), (10_000, 0), (10_000, 500), (10_000, 9_000)])
def test_before_it_is_due_no_pass_can_be_worth_it(size: int, left: int) -> None:
    least, share = 1000, 0.3
    status = WorkerStatus(1, 1, looked=5, size=size, left=left)
    due = size_due(status, 6, least, share)
    if left >= max(least, share * size):
        assert due == size  # at once: what was found has not been given back
        return
    for total in (due - 1, due):
        returned = left + total - size  # all that came since, at best
        assert (returned >= max(least, share * total)) == (total == due)


def test_what_was_found_is_believed_for_a_day() -> None:
    status = WorkerStatus(1, 1, looked=1, size=10_000, left=0)
    assert size_due(status, OUTDATED_NS, 1000, 0.3) > 10_000
    assert size_due(status, OUTDATED_NS + 1, 1000, 0.3) == 1000
    assert size_due(status, 1 - OUTDATED_NS, 1000, 0.3) == 1000  # the clock was set back


def test_a_share_of_all_is_never_due() -> None:
    status = WorkerStatus(1, 1, looked=1, size=10_000)
    assert size_due(status, 2, 0, 1.0) == sys.maxsize


# --- where one may start --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, cores, local, reason",
    [
        ({}, 2.0, True, ""),
        ({}, 1.9, True, "1.9 cores are allowed, not 2"),
        ({}, 8.0, False, "the disk is not known to be local"),
        ({"background_compaction": True}, 1.0, False, ""),
        ({"background_compaction": False}, 8.0, True, "background_compaction=False"),
    ],
)
def test_auto_asks_for_two_cores_and_a_local_disk(
    store_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, bool],
    cores: float,
    local: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(machine, "allowed_cores", lambda: cores)
    monkeypatch.setattr(machine, "is_local", lambda folder: local)
    with mldb.open(store_path, **options) as db:  # type: ignore[arg-type]
        found = compaction(db)
    assert found["not_started_because"] == reason
    assert found["setting"] == options.get("background_compaction", "auto")
    assert (found["running"], found["last_error"]) == (False, "")


def test_none_starts_for_a_reader_nor_for_a_store_in_memory(store_path: Path) -> None:
    filled(store_path)
    with mldb.open(store_path, **{**EAGER, "mode": "r"}) as db:
        db._compaction.look()
        assert compaction(db)["not_started_because"] == "the store is open for reading"
        with pytest.raises(mldb.ReadOnlyError):
            db.pause_compaction()
    assert not (store_path / "hints" / "worker.lock").exists()
    with mldb.MLDatabase.on(MemoryFileSystem(), **EAGER) as db:
        fill(db)
        assert compaction(db)["not_started_because"] == "the store does not lie in a folder"
        assert not compaction(db)["running"]


def test_none_starts_for_less_than_the_gain_that_is_asked(store_path: Path) -> None:
    options = {**EAGER, "compaction_gain_bytes": 1 << 30}
    with mldb.open(store_path, **options) as db:
        fill(db)
        db._compaction.look()
        assert db._compaction._worker is None
    assert not (store_path / "hints" / "worker.lock").exists()


# --- what it does ---------------------------------------------------------------------------------


def test_a_seal_starts_a_worker_that_gives_back_what_retention_lets_go(store_path: Path) -> None:
    with mldb.open(store_path, **EAGER) as db:
        fill(db)
        until(lambda: db._compaction._worker is not None or compaction(db)["returned_bytes"])
        until(lambda: not compaction(db)["running"])
        before = db.stats()["bytes"]
        fill(db, keep=3, epochs=0)  # another policy: looked at anew
        db.store_tensor("weight", value_of(99), epoch=99)
        until(lambda: not compaction(db)["running"])
        found = compaction(db)
        assert found["returned_bytes"] >= 3_000_000
        assert found["last_error"] == ""
        assert found["last_reports"]["compaction"]["versions_dropped"] > 0
        assert db.stats()["bytes"] <= before + 500_000
        assert np.array_equal(db["weight"], value_of(99))
        with pytest.raises(mldb.VersionGoneError):
            db.query_tensor("weight", as_of=1)
        assert db.verify().ok


def test_by_default_a_worker_loses_nothing_whatever_the_retention(store_path: Path) -> None:
    with mldb.open(store_path, **{**EAGER, "compaction_drops": False}) as db:
        fill(db, keep=1)
        start(db)
        until(lambda: not compaction(db)["running"])
        assert compaction(db)["last_error"] == ""
        assert db.stats()["reclaimable"] > 3_000_000
        for epoch in range(EPOCHS):
            assert np.array_equal(db.query_tensor("weight", as_of=epoch), value_of(epoch))


def test_a_pause_holds_the_worker_and_ends_with_its_handle(store_path: Path) -> None:
    with paused(filled(store_path)) as db:
        found = compaction(db)
        assert found["running"]
        assert found["paused"]
        assert found["pid"] == start(db)
        assert found["job"] == "compaction"
        assert 0 < found["bytes_written"] <= found["bytes_to_write"]
        db.store_tensor("other", value_of(1))  # nobody waits for who is paused
        with mldb.open(store_path, **EAGER) as second:
            assert compaction(second)["paused"]
            second.pause_compaction()
            db.resume_compaction()
            db.resume_compaction()
            time.sleep(0.3)
            assert state_of(db) == "paused"
        until(lambda: not compaction(db)["running"])
        assert compaction(db)["returned_bytes"] > 0
        assert not [name for name in os.listdir(store_path / "hints") if "pause" in name]


def test_a_reader_cannot_tell_whether_one_runs_and_does_not_call_it_dead(
    store_path: Path,
) -> None:
    with paused(filled(store_path)), mldb.open(store_path, mode="r") as reader:
        found = compaction(reader)
        assert found["running"] is None
        assert found["last_error"] == ""


def test_one_that_died_in_the_middle_is_told_to_every_process(store_path: Path) -> None:
    with paused(filled(store_path)) as db, mldb.open(store_path, **EAGER) as other:
        pid = start(db)
        assert compaction(other)["pid"] == pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not compaction(other)["running"])
        assert compaction(other)["last_error"] == f"process {pid} ended in the middle of its work"


def test_workers_do_not_start_one_after_another(store_path: Path) -> None:
    with mldb.open(filled(store_path), **{**EAGER, "compaction_gain_share": 0.0}) as db:
        start(db)
        until(lambda: not compaction(db)["running"])
        for epoch in range(EPOCHS, EPOCHS + 8):
            db.store_tensor("weight", value_of(epoch), epoch=epoch)
        db._compaction.look()
        assert db._compaction._worker is None
        db.retention.set(last=1)  # what is wanted anew is looked at anew
        assert db._compaction._worker is not None


def test_who_compacts_is_given_way(store_path: Path) -> None:
    with paused(filled(store_path)) as db:
        report = db.compact()
        assert report.bytes_returned > 0
        assert db.compact(plan_only=True).versions_dropped == 0
        until(lambda: not compaction(db)["running"])
        assert compaction(db)["last_error"] == ""
        assert not os.listdir(store_path / "pending")


# --- what may go wrong ----------------------------------------------------------------------------


def test_what_cannot_be_started_is_seen_and_disturbs_nobody(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store_path)
    monkeypatch.setattr(sys, "executable", str(store_path / "no-python"))
    with mldb.open(store_path, **EAGER) as db:
        db._compaction.look()
        found = compaction(db)
        assert "FileNotFoundError" in found["last_error"]
        assert not found["running"]
        db.store_tensor("other", value_of(1))
        db._compaction.look()  # not again for a while
        assert db._compaction._worker is None


def test_a_worker_of_another_version_says_so(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store_path)
    monkeypatch.setattr(worker, "WorkerOrder", partial(WorkerOrder, version="mldb 9.9"))
    with mldb.open(store_path, **EAGER) as db:
        start(db)
        until(lambda: not compaction(db)["running"])
        error = compaction(db)["last_error"]
        assert error.startswith("FormatVersionError: mldb 9.9 (format 2) runs in process")
        assert "start the program again" in error


def test_a_worker_that_does_not_end_is_killed_in_time(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store_path)
    deaf = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(60)"
    monkeypatch.setattr(background, "_COMMAND", ("-c", deaf))
    monkeypatch.setattr(background, "STOP_SECONDS", 0.5)
    db = mldb.open(store_path, **EAGER)
    pid = start(db)
    began = time.monotonic()
    db.close()
    assert time.monotonic() - began < 10
    assert not is_alive(pid)


def test_a_worker_ends_with_the_handle_that_started_it(store_path: Path) -> None:
    db = paused(filled(store_path))
    pid = start(db)
    db.close()
    assert not is_alive(pid)
    assert not has_worker(OsFileSystem(store_path))
    with mldb.open(store_path, **{**EAGER, "background_compaction": False}) as after:
        assert after.verify().ok
        assert np.array_equal(after.query_tensor("weight", as_of=0), value_of(0))
        found = compaction(after)
        assert found["last_error"] == ""
        assert not found["running"]


def test_a_handle_that_is_dropped_leaves_no_worker(store_path: Path) -> None:
    db = paused(filled(store_path))
    pid = start(db)
    del db
    until(lambda: not is_alive(pid))


def test_a_killed_worker_is_told_of_and_the_next_one_goes_on(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(background, "EACH_SECONDS", 0.0)
    with paused(filled(store_path)) as db:
        os.kill(start(db), signal.SIGKILL)
        until(lambda: not compaction(db)["running"])
        assert "was ended by SIGKILL" in compaction(db)["last_error"]
        db.resume_compaction()
        start(db)
        until(lambda: not compaction(db)["running"])
        found = compaction(db)
        assert found["last_error"] == ""
        assert found["returned_bytes"] > 0
        assert not os.listdir(store_path / "pending")  # what the killed one left
        assert db.verify().ok


def test_a_forked_child_has_no_part_in_the_worker(store_path: Path) -> None:
    with paused(filled(store_path)) as db:
        pid = start(db)

        def act(line: Line) -> None:
            db.close()
            with pytest.raises(mldb.ClosedError):
                db.stats()
            db._compaction.close()
            line.say("closed")

        with Child(act) as child:
            assert child.hear() == ["closed"]
            assert child.wait() == 0
        assert is_alive(pid)
        db.resume_compaction()
        until(lambda: not compaction(db)["running"])
        assert compaction(db)["last_error"] == ""


_TRAINER = """
import signal, sys, time
from pathlib import Path
from tests.support.background import paused, start
import mldb
db = paused(Path(sys.argv[1]))
print(start(db), flush=True)
{rest}
"""


def _trainer(store: Path, rest: str) -> tuple[subprocess.Popen[str], int]:
    """A program of its own group whose worker is paused; *rest* is what it does then."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _TRAINER.format(rest=rest), str(filled(store))],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_ctrl_c_is_not_for_the_worker(store_path: Path) -> None:
    rest = """
try:
    print("waiting", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
time.sleep(60)
"""
    process, worker = _trainer(store_path, rest)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"  # Ctrl-C before is nobody's to catch
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        time.sleep(0.3)
        assert is_alive(worker)
    finally:
        process.kill()
        process.communicate()
    until(lambda: not is_alive(worker))  # nobody is left to work for
    with mldb.open(store_path) as db:
        assert db.verify().ok


def test_the_end_of_a_program_that_closes_nothing_ends_the_worker(store_path: Path) -> None:
    process, worker = _trainer(store_path, "")
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert not is_alive(worker)
