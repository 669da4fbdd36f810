"""What happens at once with a query: threads, commits, compaction, close, fork, Ctrl-C, limits."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.query import engine
from mldb.query.engine import Engine
from mldb.query.running import StoppableWork

# So many rows that no machine goes through them while a test runs.
ENDLESS = "SELECT count(*) FROM versions a0" + "".join(
    f" JOIN versions a{n} ON a{n}.lsn <> a{n - 1}.lsn + 1" for n in range(1, 8)
)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(tmp_path / "store", durability="os", background_compaction=False) as db:
        for number in range(40):
            db.store_tensor(f"t{number}", np.full(3, number), {"number": number}, epoch=number)
        yield db


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the engine was given the SQL of a query."""
    began, run = threading.Event(), Engine.run

    def told(self: Engine, *arguments: Any) -> Any:
        began.set()
        return run(self, *arguments)

    monkeypatch.setattr(Engine, "run", told)
    return began


def behind(began: threading.Event, act: Callable[[], object]) -> threading.Thread:
    """Do something once a query runs."""

    def wait() -> None:
        assert began.wait(60)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_threads_share_a_handle_while_it_changes(db: mldb.MLDatabase) -> None:
    problems: list[str] = []
    text = (
        "SELECT (SELECT count(*) FROM tensors), (SELECT count(*) FROM versions), "
        "(SELECT max(epoch) FROM versions), (SELECT max(lsn) FROM tensors AS OF EPOCH 39)"
    )
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            ((names, versions, epoch, lsn),) = db.sql(text)
            # Each commit stores one new name once, so these belong together in every snapshot.
            if not names == versions == epoch + 1 or lsn != 80:
                problems.append(f"{names} {versions} {epoch} {lsn}")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(40, 70):
        db.store_tensor(f"t{number}", np.zeros(2), epoch=number)
        if number % 7 == 0:
            db.compact()
        if number % 11 == 0:
            db.rewind(None)
    ended.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_query_that_runs_too_long_is_stopped_and_the_next_one_answers(
    db: mldb.MLDatabase,
) -> None:
    with pytest.raises(mldb.LimitError, match=r"ran longer than 0\.05 s"):
        db.sql(ENDLESS, timeout=0.05)
    assert db.sql("SELECT count(*) FROM tensors").fetchall() == [(40,)]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_timeouts_are_numbers_of_seconds(db: mldb.MLDatabase, timeout: float) -> None:
    with pytest.raises(mldb.InvalidValueError):
        db.sql("SELECT tensors", timeout=timeout)
    with pytest.raises(mldb.InvalidTypeError):
        db.sql("SELECT tensors", timeout="1")  # type: ignore[arg-type]


def test_ctrl_c_ends_a_query_and_the_next_one_answers(
    db: mldb.MLDatabase, running: threading.Event
) -> None:
    """DuckDB looks for signals between its own steps alone: it went on for minutes."""
    thread = behind(running, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        db.sql(ENDLESS, timeout=300)
    thread.join()
    assert db.sql("SELECT count(*) FROM tensors").fetchall() == [(40,)]


def test_a_handler_that_asks_inside_a_query_is_told_so(
    db: mldb.MLDatabase, running: threading.Event
) -> None:
    found: list[BaseException] = []

    def handler(signum: int, frame: object) -> None:
        with pytest.raises(mldb.ReentryError, match="query") as caught:
            db.sql("SELECT tensors")
        found.append(caught.value)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        thread = behind(running, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(mldb.LimitError):
            db.sql(ENDLESS, timeout=2)
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(found) == 1


def test_close_ends_a_query(db: mldb.MLDatabase, running: threading.Event) -> None:
    thread = behind(running, db.close)
    with pytest.raises(mldb.ClosedError, match="closed"):
        db.sql(ENDLESS, timeout=300)
    thread.join()
    with pytest.raises(mldb.ClosedError):
        db.sql("SELECT tensors")


def test_a_snapshot_refuses_behind_its_end_and_what_it_answered_stays(db: mldb.MLDatabase) -> None:
    with db.at(5) as snapshot:
        found = snapshot.sql("SELECT name FROM tensors ORDER BY lsn")
    with pytest.raises(mldb.ClosedError):
        snapshot.sql("SELECT tensors")
    db.close()
    assert found.fetchall() == [(f"t{number}",) for number in range(6)]


def test_a_forked_child_refuses_and_ends(db: mldb.MLDatabase) -> None:
    assert len(db.sql("SELECT tensors")) == 40
    child = os.fork()
    if child == 0:
        code = 1
        try:
            db.sql("SELECT tensors")
        except mldb.ClosedError:
            db._made_queries.clear()
            gc.collect()  # what frees the engine would wait for threads that are not there
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert len(db.sql("SELECT versions")) == 40


def test_memory_has_a_limit(db: mldb.MLDatabase) -> None:
    five = ", ".join(f"versions {letter}" for letter in "abcde")
    with pytest.raises(mldb.LimitError, match="MiB"):
        db.sql(f"SELECT list(a.name || b.name || c.name || d.name || e.name) FROM {five}")
    assert len(db.sql("SELECT tensors")) == 40


def test_an_answer_has_a_limit(db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DuckDB hands out it does not count: 24 M rows took 8 GB."""
    monkeypatch.setattr(engine, "RESULT_BYTES", 1 << 20)
    monkeypatch.setattr(engine, "_FEW_ROWS", 1000)
    text = "SELECT a.name, b.name AS other FROM versions a JOIN versions b ON a.lsn <> 0"
    assert len(db.sql(text)) == 1600
    with pytest.raises(mldb.LimitError, match="64,000 rows"):
        db.sql(text + " JOIN versions c ON c.lsn <> 0")
    assert db.sql(text + " ORDER BY a.lsn, b.lsn LIMIT 1").fetchall() == [("t0", "t0")]


def test_tables_that_were_used_longest_ago_make_room(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "KEPT_BYTES", 5000)
    for epoch in range(30):
        text = f"SELECT name, dtype FROM tensors AS OF EPOCH {epoch} ORDER BY lsn"
        assert len(db.sql(text)) == epoch + 1
    own = db._queries()._engine
    assert own is not None
    assert sum(size for _, size, _ in own._kept.values()) <= 5000
    (kept,) = own._connection.execute("SELECT count(*) FROM duckdb_tables()").fetchall()[0]
    assert kept == len(own._kept) < 30


def test_work_that_fails_is_told_to_who_waits() -> None:
    def fail(work: StoppableWork[None]) -> None:
        raise OSError("so")

    with pytest.raises(OSError, match="so"):
        StoppableWork(fail, lambda: None).answer(10)


def test_damaged_metadata_are_an_error_of_their_own(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(data: bytes) -> Any:
        raise mldb.CorruptError("metadata are damaged", key="t1")

    monkeypatch.setattr("mldb.query.catalogue.unpack_metadata", damaged)
    with pytest.raises(mldb.CorruptError):
        db.sql("SELECT tensors")
    assert len(db.sql("SELECT name FROM versions")) == 40
    monkeypatch.undo()
    assert len(db.sql("SELECT tensors")) == 40
