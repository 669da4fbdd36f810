"""Rows alone start the worker that consolidates a lake whose stored policy asks for it."""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import mldb
from mldb import ConsolidationPolicy
from mldb.compaction import background, waiting
from mldb.compaction.gate import WorkerStopped
from mldb.compaction.status import has_worker, load_status
from mldb.compaction.waiting import WaitingLakes
from mldb.lake.consolidation import run, watch
from mldb.lake.consolidation.watch import PolicyWatch
from mldb.log.fs import machine
from mldb.log.fs.posix import OsFileSystem
from mldb.worker import RUNS_EACH
from tests.support.background import (
    compaction,
    is_alive,
    order_for,
    run_one,
    status_of,
    until,
)
from tests.support.processes import Child, Line

DIM = 16
ON: dict[str, Any] = {"background_compaction": True, "durability": "os"}
OFF: dict[str, Any] = {**ON, "background_compaction": False}
POLICY = ConsolidationPolicy(method="sweep", after_rows=100)


def copies(rng: np.random.Generator, count: int, kinds: int = 20) -> Any:
    """Rows of which there are so many kinds, each of them many times but for noise."""
    rows = np.random.default_rng(0).standard_normal((kinds, DIM))
    picked = rows[np.arange(count) % kinds]
    return picked + 1e-3 * rng.standard_normal((count, DIM))


def filled(path: Path, rng: np.random.Generator, policy: ConsolidationPolicy | None) -> Path:
    """A store whose lake was consolidated as its policy says, and waits for rows."""
    with mldb.open(path, **OFF) as db:
        lake = db.lake(dim=DIM)
        lake.add_splats(copies(rng, 20))
        if policy is not None:
            lake.policy = policy
            lake.run_policy()
            assert lake.run_policy() is None
    return path


def pid_of(db: mldb.MLDatabase) -> int:
    until(lambda: db._compaction._worker is not None)
    worker = db._compaction._worker
    assert worker is not None
    return worker.pid


def test_rows_alone_start_a_worker_that_runs_the_policy(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(filled(store_path, rng, POLICY), **ON) as db:
        lake = db.lake()
        before = len(lake)
        lake.add_splats(copies(rng, 60))
        until(lambda: not len(db._compaction._waiting))
        assert db.stats()["policies"]["asked"] == 1  # and none was due
        assert compaction(db)["running"] is False
        lake.add_splats(copies(rng, 200))
        assert len(lake) == before + 260 or compaction(db)["last_reports"]
        until(lambda: "consolidation" in compaction(db)["last_reports"])
        until(lambda: not compaction(db)["running"])
        found = compaction(db)
        assert found["last_error"] == ""
        report = found["last_reports"]["consolidation"]["default"]
        assert report["rows_after"] == len(lake) == 20
        assert "compaction" not in found["last_reports"]  # nobody asked for a pass
        status = load_status(db._log.fs)
        assert status is not None
        assert status.looked == 0
        assert db.verify().ok


def test_a_policy_that_is_set_on_a_grown_lake_is_run(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(store_path, **ON) as db:
        lake = db.lake(dim=DIM)
        lake.add_splats(copies(rng, 200))
        assert db._compaction._worker is None
        lake.policy = POLICY
        until(lambda: len(db.lake()) == 20)


def test_a_policy_of_another_process_is_seen(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "POLICY_SECONDS", 0.0)
    with mldb.open(filled(store_path, rng, None), **ON) as db:
        lake = db.lake()
        lake.add_splats(copies(rng, 200))
        assert db.stats()["policies"]["lakes"] == 0
        with mldb.open(store_path, **OFF) as other:
            other.lake().policy = POLICY
        lake.add_splats(copies(rng, 200))
        assert db.stats()["policies"]["lakes"] == 1
        until(lambda: len(lake) == 20)


def test_without_a_policy_nothing_starts_and_nothing_is_asked(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(filled(store_path, rng, None), **ON) as db:
        lake = db.lake()
        with mock.patch.object(db._compaction, "look_for") as look_for:
            scopes = mock.Mock(wraps=db._lake_host)
            with mock.patch.object(db, "_lake_host", scopes):
                for _ in range(50):
                    lake.add_splats(copies(rng, 100))
            assert not look_for.called
        assert scopes.call_count <= 50 * 0.5  # the policy is looked for once a second
        assert db._compaction._worker is None
        assert db.stats()["policies"] == {
            **db.stats()["policies"],
            "lakes": 0,
            "asked": 0,
        }
    assert not (store_path / "hints" / "worker.lock").exists()


@pytest.mark.parametrize("options", [OFF, {**ON, "background_compaction": "auto"}])
def test_none_starts_where_the_gate_is_closed(
    store_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr(machine, "allowed_cores", lambda: 1.0)
    with mldb.open(filled(store_path, rng, POLICY), **options) as db:
        db.lake().add_splats(copies(rng, 300))
        assert not len(db._compaction._waiting)
        assert db._compaction._worker is None
    assert not (store_path / "hints" / "worker.lock").exists()


def test_a_pause_keeps_it_from_starting_and_it_starts_afterwards(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "ASK_SECONDS", 0.0)
    with (
        mldb.open(filled(store_path, rng, POLICY), **ON) as db,
        mldb.open(store_path, **OFF) as other,
    ):
        other.pause_compaction()
        lake = db.lake()
        for _ in range(5):
            lake.add_splats(copies(rng, 100))
            time.sleep(0.05)
        settled(db)
        assert compaction(db)["lakes_waiting"] == 1
        assert db._compaction._worker is None
        assert not has_worker(OsFileSystem(str(store_path)))
        assert len(lake) == 520
        other.resume_compaction()
        lake.add_splats(copies(rng, 1))
        until(lambda: len(lake) == 20)


def test_one_that_waits_is_started_by_a_checkpoint_too(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "ASK_SECONDS", 0.0)
    with waits(filled(store_path, rng, POLICY), rng) as db:
        db.resume_compaction()
        db.checkpoint({"w": np.arange(3)}, epoch=1)
        until(lambda: len(db.lake()) == 20)


def test_a_pause_holds_one_in_the_middle_of_its_run(
    store_path: Path, rng: np.random.Generator
) -> None:
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise WorkerStopped

    sandpile = ConsolidationPolicy(after_rows=10)
    for name, policy in (("sweep", POLICY), ("sandpile", sandpile)):
        path = store_path / name
        path.mkdir(parents=True)
        with mldb.open(filled(path, rng, policy), **OFF) as db:
            db.lake().add_splats(copies(rng, 300, kinds=200))
            before = len(db.lake()), db.lsn
            calls.clear()
            if name == "sweep":
                calls += [1]  # it is asked before each search: twice here
            with pytest.raises(WorkerStopped):
                run.run_policy(db._lake_host(), "default", stop)
            assert (len(db.lake()), db.lsn) == before  # nothing half-done
            assert run.run_policy(db._lake_host(), "default") is not None


def test_two_handles_start_one_worker(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "ASK_SECONDS", 0.0)
    filled(store_path, rng, POLICY)
    root = str(Path(__file__).resolve().parents[2])
    here = f"import sys; sys.path[:0] = [{root!r}]; import {__name__} as own; own.hold()"
    monkeypatch.setattr(background, "_COMMAND", ("-c", here))
    with mldb.open(store_path, **ON) as one, mldb.open(store_path, **ON) as two:
        one.lake().add_splats(copies(rng, 300))
        pid = pid_of(one)
        until(lambda: has_worker(one._log.fs))
        for _ in range(5):
            two.lake().add_splats(copies(rng, 100))
            time.sleep(0.05)
        settled(two)
        assert two._compaction._worker is None
        assert compaction(two)["running"]
        assert is_alive(pid)
    assert not is_alive(pid)


def hold() -> None:
    """What stands for a worker here: it has the lock, and stays."""
    import sys

    from mldb.compaction.status import WORKER_LOCK
    from mldb.compaction.worker import WorkerOrder

    lock = OsFileSystem(WorkerOrder.of(sys.argv[1]).store).lock(WORKER_LOCK)
    assert lock.try_acquire()
    time.sleep(60)


def test_rows_of_two_handles_together_are_enough(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "ASK_SECONDS", 0.0)
    with (
        mldb.open(filled(store_path, rng, POLICY), **ON) as one,
        mldb.open(store_path, **ON) as two,
    ):
        for db in (one, two):
            for _ in range(3):
                db.lake().add_splats(copies(rng, 26))
                until(lambda db=db: not len(db._compaction._waiting))  # type: ignore[misc]
        until(lambda: len(one.lake()) < 60)


def test_a_killed_worker_is_told_of(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_COMMAND", ("-c", "import time; time.sleep(60)"))
    with mldb.open(filled(store_path, rng, POLICY), **ON) as db:
        db.lake().add_splats(copies(rng, 300))
        os.kill(pid_of(db), signal.SIGKILL)
        until(lambda: compaction(db)["last_error"])
        assert "was ended by SIGKILL" in compaction(db)["last_error"]
        db.lake().add_splats(copies(rng, 300))  # no other for a while
        assert db._compaction._worker is None


def test_what_cannot_be_asked_is_told_and_adding_rows_goes_on(
    store_path: Path, rng: np.random.Generator
) -> None:
    damaged = mldb.CorruptError("the policy is damaged")
    with mldb.open(filled(store_path, rng, POLICY), **ON) as db:
        lake = db.lake()
        with mock.patch.object(run, "policy_due", side_effect=damaged):
            lake.add_splats(copies(rng, 300))
            until(lambda: compaction(db)["last_error"])
        assert compaction(db)["last_error"].startswith("CorruptError: the policy is damaged")
        lake.add_splats(copies(rng, 5))


def test_a_handle_that_waits_is_dropped_like_any_other(
    store_path: Path, rng: np.random.Generator
) -> None:
    """What is told to wait holds no handle: one that nobody has any more is gone at once."""
    db = waits(filled(store_path, rng, POLICY), rng)
    db.resume_compaction()
    gone = weakref.ref(db)
    del db
    assert gone() is None


def waits(path: Path, rng: np.random.Generator) -> mldb.MLDatabase:
    """A handle with a lake for which a pause lets no worker start."""
    db = mldb.open(path, **ON)
    db.pause_compaction()
    db.lake().add_splats(copies(rng, 300))
    settled(db)
    assert compaction(db)["lakes_waiting"] == 1
    return db


def settled(db: mldb.MLDatabase) -> None:
    """Wait for a look that may be under way."""
    time.sleep(0.05)
    with db._compaction._turn.hold():
        pass


def test_a_forked_child_starts_none(store_path: Path, rng: np.random.Generator) -> None:
    with waits(filled(store_path, rng, POLICY), rng) as db:
        db.resume_compaction()

        def act(line: Line) -> None:
            db._compaction.look_for("default", lambda: True)
            db._compaction.look()
            time.sleep(0.1)
            line.say(db._compaction._worker is None)

        with Child(act) as child:
            assert child.hear() == ["True"]
            assert child.wait() == 0


def test_a_run_that_its_budget_cut_off_goes_on_in_the_same_worker(
    store_path: Path, rng: np.random.Generator
) -> None:
    policy = ConsolidationPolicy(budget=100, after_rows=50)
    with mldb.open(store_path, **OFF) as db:
        db.lake(dim=DIM).add_splats(copies(rng, 300))
        db.lake().policy = policy
        before = db.lsn
    worker = run_one(order_for(store_path, job="consolidation"))
    assert status_of(worker) == 0, worker.said()
    with mldb.open(store_path, **OFF) as db:
        runs = [one for one in db.events(before) if type(one).__name__ == "SplatsConsolidated"]
        assert 1 < len(runs) <= RUNS_EACH
        assert len(runs) == RUNS_EACH or db.lake().run_policy() is None
        report = compaction(db)["last_reports"]["consolidation"]["default"]
        assert report == {"rows_before": 300, "rows_after": len(db.lake())}
        assert "compaction" not in compaction(db)["last_reports"]


# --- what waits -----------------------------------------------------------------------------------


def test_lakes_are_asked_once_and_one_that_is_due_takes_all_out() -> None:
    lakes = WaitingLakes()
    asked: list[str] = []

    def asks(name: str, answer: bool) -> Callable[[], bool]:
        def ask() -> bool:
            asked.append(name)
            return answer

        return ask

    assert not lakes.may_ask(0.0)
    lakes.add("a", asks("a", False))
    lakes.add("a", asks("a", False))
    assert lakes.may_ask(0.0)
    assert not lakes.may_ask(time.monotonic() + 60)
    assert not lakes.take_due()
    for name, answer in (("a", False), ("b", True), ("c", True)):
        lakes.add(name, asks(name, answer))
    lakes.note_refusal()
    assert not lakes.may_ask(0.0)
    assert lakes.take_due()
    assert len(lakes) == 0
    assert asked == ["a", "a", "b"]


def test_it_is_asked_when_a_fourth_of_the_rows_came() -> None:
    told: list[str] = []
    policies = PolicyWatch(lambda: None, lambda name, is_due: told.append(name))
    with mock.patch.object(policies, "_after_rows", return_value=100):
        for _ in range(24):
            policies.note_rows("lake", 1)
        assert told == []
        policies.note_rows("lake", 1)
        assert told == ["lake"]
        policies.note_rows("other", 1)
        assert told == ["lake"]
        policies.note_rows("other", None)
        assert told == ["lake", "other"]
