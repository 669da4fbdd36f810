"""Metrics that wait to be stored: when they are, in which order, and what can come between."""

from __future__ import annotations

import _thread
import errno
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.history.events import MetricsLogged, Rewound, TensorStored
from mldb.log import batch, sequencer
from mldb.log.fs.memory import MemoryFileSystem
from mldb.write import metric_log
from tests.support.faults import FaultFileSystem
from tests.support.processes import Child, Line
from tests.support.threads import in_thread


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is stored behind; what is stored, a call did."""
    monkeypatch.setattr(metric_log, "FLUSH_SECONDS", 3600.0)


def store(**options: Any) -> mldb.MLDatabase:
    return mldb.MLDatabase.on(MemoryFileSystem(), **{"durability": "os", **options})


def shown(db: mldb.MLDatabase) -> list[Any]:
    """What is stored, event by event."""
    found: list[Any] = []
    for event in db.events():
        if isinstance(event, MetricsLogged):
            found.append((event.values["loss"], event.epoch))
        elif isinstance(event, TensorStored):
            found.append((event.name, event.epoch))
        else:
            found.append(type(event).__name__)
    return found


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- when -----------------------------------------------------------------------------------------


def test_what_waits_is_stored_behind_within_a_second() -> None:
    db = store()
    assert db.log({"loss": 1}, step=1, buffer=True) is None
    assert db.log({"loss": 2}, step=2, buffer=True) is None
    assert db.lsn == 0
    until(lambda: db.lsn)
    assert metric_log.FLUSH_SECONDS <= 1
    assert shown(db) == [(1, 0), (2, 0)]
    assert len({event.lsn for event in db.events()}) == 1  # one commit
    until(lambda: not db._metrics._runner)  # the thread ends
    db.log({"loss": 3}, buffer=True)
    until(lambda: len(shown(db)) == 3)


def test_there_is_one_thread_and_none_where_nothing_was_buffered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[object] = []
    start = _thread.start_new_thread

    def count(*arguments: Any) -> int:
        started.append(arguments)
        return start(*arguments)

    monkeypatch.setattr(_thread, "start_new_thread", count)
    db = store()
    db.log({"loss": 1})
    db.metrics("loss")
    db.sync()
    assert not started
    for number in range(2000):
        db.log({"loss": number}, buffer=True)
    assert len(started) == 1
    db.close()
    until(lambda: not db._metrics._runner)


@pytest.mark.usefixtures("_quiet")
def test_order_is_kept_before_every_other_commit() -> None:
    db = store()
    db.log({"loss": 1}, epoch=1, buffer=True)
    db.store_tensor("a", np.zeros(2), epoch=2)
    db.log({"loss": 2}, buffer=True)
    with db.transaction(epoch=3) as txn:
        txn.store_tensor("b", np.zeros(2))
        db.log({"loss": 3}, buffer=True)
    db.log({"loss": 4}, epoch=4, buffer=True)
    db.log({"loss": 5}, epoch=5, buffer=True)
    db.log({"loss": 6}, epoch=6)
    db.log({"loss": 7}, buffer=True)
    db.rewind(5)
    db.log({"loss": 8}, buffer=True)
    db.sync()
    assert shown(db) == [
        *((1, 1), ("a", 2), (2, 2), (3, 2), ("b", 3), (4, 4), (5, 5), (6, 6), (7, 6)),
        *("Rewound", (8, 5)),
    ]
    assert db.metrics("loss").value.tolist() == [1, 2, 3, 4, 5, 8]
    assert db.metrics("loss").epoch.tolist() == [1, 2, 2, 4, 5, 5]
    assert [type(event) for event in db.events()].count(Rewound) == 1


@pytest.mark.usefixtures("_quiet")
def test_reading_sync_and_close_store_what_waits(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "s") as db:
        db.log({"loss": 1}, buffer=True)
        assert db.metrics("loss").value.tolist() == [1]
        db.log({"loss": 2}, buffer=True)
        assert db.metrics() == ["loss"]
        db.log({"loss": 3}, buffer=True)
        db.sync()
        assert db.stats()["metrics"]["waiting"] == 0
        db.log({"loss": 4}, buffer=True)
        assert db.stats()["metrics"]["waiting"] == 1
    with mldb.open(tmp_path / "s") as db:
        assert db.metrics("loss").value.tolist() == [1, 2, 3, 4]
    with pytest.raises(mldb.ClosedError):
        db.log({"loss": 5}, buffer=True)


@pytest.mark.usefixtures("_quiet")
def test_many_calls_are_stored_by_the_one_that_is_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metric_log, "WAITING_MAX", 10)
    db = store()
    for number in range(25):
        db.log({"loss": number}, buffer=True)
        assert len(db._metrics.waiting) <= 10
    assert len(shown(db)) == 20
    assert db.metrics("loss").value.tolist() == list(range(25))


@pytest.mark.usefixtures("_quiet")
def test_more_points_than_one_commit_holds_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mldb.write.metric_plans.fmt.ATTR_BYTES_MAX", 24 * 10)
    db = store()
    for number in range(25):
        db.log({"loss": number}, buffer=True)
    db.sync()
    assert len({event.lsn for event in db.events()}) == 3
    with pytest.raises(mldb.LimitError, match="'loss'"), db.transaction() as txn:  # noqa: PT012
        for number in range(11):
            txn.log({"loss": number})
    assert db.metrics("loss").value.tolist() == list(range(25))


def test_a_flush_before_a_commit_is_durable_with_it(tmp_path: Path) -> None:
    """It waits for no sync of its own; where no commit followed, the thread behind syncs."""
    with mldb.open(tmp_path / "s") as db:
        db.log({"loss": 1}, buffer=True)
        db._metrics.flush_before()
        appended = db._metrics._appended
        assert appended == db.lsn
        until(lambda: db.stats()["durable_lsn"] >= appended)


@pytest.mark.usefixtures("_quiet")
def test_calls_of_an_epoch_each_are_not_looked_through_for_each_of_them() -> None:
    """The story: a flush of 64,000 such calls took 80 s, each commit a walk over all that wait."""
    looked: list[int] = []

    class Counted(list[Any]):
        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            looked.append(len(found) if isinstance(place, slice) else 1)
            return found

        def __iter__(self) -> Iterator[Any]:
            looked.append(len(self))
            return super().__iter__()

    db = store()
    db._metrics.waiting = Counted()
    for epoch in range(1000):
        db.log({"loss": epoch}, epoch=epoch, buffer=True)
    db.sync()
    assert db.metrics("loss").epoch.tolist() == list(range(1000))
    assert len({event.lsn for event in db.events()}) == 1000
    assert sum(looked) < 50 * 1000


# --- epochs, and checkpoints on their way ---------------------------------------------------------


@pytest.mark.usefixtures("_quiet")
def test_an_epoch_below_one_that_waits_is_refused() -> None:
    db = store()
    db.log({"loss": 1}, epoch=3, buffer=True)
    with pytest.raises(mldb.EpochOrderError, match="wait to be stored"):
        db.log({"loss": 2}, epoch=2, buffer=True)
    db.log({"loss": 3}, epoch=3, buffer=True)
    db.sync()
    assert shown(db) == [(1, 3), (3, 3)]


@pytest.mark.usefixtures("_quiet")
def test_points_whose_epoch_others_passed_are_told_by_the_next_call(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "s") as db, mldb.open(tmp_path / "s") as other:
        db.log({"loss": 1}, epoch=1, buffer=True)
        db.log({"loss": 2}, epoch=1, buffer=True)
        other.store_tensor("x", np.zeros(2), epoch=5)
        db.log({"loss": 3}, epoch=5, buffer=True)
        db.store_tensor("y", np.zeros(2))  # which is stored all the same
        with pytest.raises(mldb.EpochOrderError, match=r"2 buffered calls of db\.log were not"):
            db.log({"loss": 4})
        db.log({"loss": 5})
        assert db.metrics("loss").value.tolist() == [3, 5]


@pytest.mark.usefixtures("_quiet")
def test_a_checkpoint_on_its_way_is_no_reason_to_wait_and_keeps_its_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Points of a later epoch, stored before it, would make it impossible."""
    db = store()
    gate = threading.Event()
    write = type(db)._write_job
    monkeypatch.setattr(
        type(db), "_write_job", lambda self, job: (gate.wait(60), write(self, job))[1]
    )
    db.log({"loss": 1}, epoch=1, buffer=True)
    pending = db.checkpoint({"w": np.zeros(3)}, epoch=2, wait=False)
    db.log({"loss": 2}, buffer=True)  # of no epoch in particular: may go first
    db.log({"loss": 3}, epoch=3, buffer=True)
    db._metrics.flush()
    assert shown(db) == [(1, 1), (2, 1)]
    assert not pending.done
    gate.set()
    pending.result()
    db.close()
    db = mldb.MLDatabase.on(db._log.fs)
    assert shown(db) == [(1, 1), (2, 1), ("w", 2), "CheckpointTaken", (3, 3)]


# --- threads, processes, forks --------------------------------------------------------------------


def test_threads_that_log_at_once_lose_nothing() -> None:
    db = store()

    def run(number: int) -> None:
        for step in range(500):
            db.log({"loss": number, f"of/{number}": step}, step=step, buffer=step % 5 > 0)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert db.metrics(f"of/{number}").value.tolist() == list(range(500))
    assert len(db.metrics("loss")) == 2000
    db.close()


def test_processes_that_log_at_once_lose_nothing(tmp_path: Path) -> None:
    mldb.open(tmp_path / "s", durability="os").close()

    def run(line: Line) -> None:
        with mldb.open(tmp_path / "s", durability="os") as db:
            for step in range(200):
                db.log({"loss": step, f"of/{os.getpid()}": step}, step=step, buffer=step % 3 > 0)
        line.say(os.getpid())

    with Child(run) as one, Child(run) as two:
        pids = [child.hear()[0] for child in (one, two)]
    with mldb.open(tmp_path / "s") as db:
        for pid in pids:
            assert db.metrics(f"of/{pid}").value.tolist() == list(range(200))
        assert len(db.metrics("loss")) == 400
        assert db.verify().ok


@pytest.mark.usefixtures("_quiet")
def test_a_forked_child_stores_nothing_of_its_parent(tmp_path: Path) -> None:
    """Neither at its end nor by a call; the parent stores it once."""
    db = mldb.open(tmp_path / "s", durability="os")
    db.log({"loss": 1}, buffer=True)

    def run(line: Line) -> None:
        assert not db._metrics.waiting
        assert not metric_log._active
        with pytest.raises(mldb.ClosedError, match="forked child"):
            db.log({"loss": 2}, buffer=True)
        metric_log.finish_metrics()
        db.close()
        with mldb.open(tmp_path / "s", durability="os") as own:
            own.log({"loss": 3}, buffer=True)
        line.say("done")

    with Child(run) as child:
        assert child.hear() == ["done"]
    assert db.metrics("loss").value.tolist() == [3, 1]
    db.close()


def test_a_handle_that_is_dropped_goes_and_what_waited_is_stored() -> None:
    fs = MemoryFileSystem()
    db: mldb.MLDatabase | None = mldb.MLDatabase.on(fs, durability="os")
    assert db is not None
    gone = weakref.ref(db)
    db.log({"loss": 1}, buffer=True)
    db = None
    gc.collect()
    assert gone() is None
    other = mldb.MLDatabase.on(fs, durability="os")
    until(other.metrics)


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_call_that_meets_the_close_of_another_thread_is_stored_or_refused(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Never one that is stored and said not to be, or one that is lost and said to be stored.

    The story: the call took itself off the list while the close was storing it, and what came
    behind it went with the batch.
    """
    fs = MemoryFileSystem()
    db = mldb.MLDatabase.on(fs, durability="os")
    db.log({"loss": 0}, buffer=True)
    ended: dict[int, str] = {}
    ready, go = threading.Event(), threading.Event()
    add, commit = metric_log.MetricLog.add, sequencer.Sequencer.commit

    def adds(self: Any, *arguments: Any) -> Any:
        if when == "before":
            ready.set()
            go.wait(60)
        item = add(self, *arguments)
        if when == "inside":
            ready.set()
            go.wait(60)
        return item

    def commits(self: Any, *arguments: Any) -> Any:
        go.set()  # the close has chosen what it stores, and the call goes on meanwhile
        late.join(0.3)
        return commit(self, *arguments)

    def run() -> None:
        try:
            db.log({"loss": 1}, buffer=True)
            ended[1] = "stored"
        except mldb.ClosedError:
            ended[1] = "refused"

    monkeypatch.setattr(metric_log.MetricLog, "add", adds)
    monkeypatch.setattr(sequencer.Sequencer, "commit", commits)
    late = threading.Thread(target=run)
    late.start()
    assert ready.wait(60)
    db.close()
    late.join(60)
    with mldb.MLDatabase.on(fs, mode="r") as left:
        expected = [0, 1] if ended[1] == "stored" else [0]
        assert left.metrics("loss").value.tolist() == expected
    assert not db._metrics.waiting


# --- signals --------------------------------------------------------------------------------------


@pytest.fixture
def _alarm() -> Iterator[None]:
    former = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, former)


@pytest.mark.usefixtures("_quiet", "_alarm")
def test_a_handler_inside_a_commit_may_buffer_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    db = store()
    refused: list[mldb.MldbError] = []
    encode = batch.encode_batch

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return encode(*arguments)

    def handle(signum: int, frame: FrameType | None) -> None:
        db.log({"loss": 2}, buffer=True)
        try:
            db.log({"loss": 3})
        except mldb.ReentryError as error:
            refused.append(error)

    signal.signal(signal.SIGUSR1, handle)
    monkeypatch.setattr(sequencer, "encode_batch", interrupted)
    db.log({"loss": 1})
    monkeypatch.undo()
    assert len(refused) == 1
    assert db.metrics("loss").value.tolist() == [1, 2]


@pytest.mark.usefixtures("_quiet", "_alarm")
def test_a_full_buffer_takes_what_a_handler_logs_inside_a_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metric_log, "WAITING_MAX", 1)
    db = store()
    encode = batch.encode_batch

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return encode(*arguments)

    signal.signal(signal.SIGUSR1, lambda *_: db.log({"loss": 2}, buffer=True))
    db.log({"loss": 0}, buffer=True)
    monkeypatch.setattr(sequencer, "encode_batch", interrupted)
    db.log({"loss": 1}, buffer=True)  # each commit logs another one: it ends all the same
    monkeypatch.setattr(sequencer, "encode_batch", encode)
    assert db.metrics("loss").value.tolist() == [0, 2, 1]


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("stored", [False, True])
def test_ctrl_c_inside_a_flush_neither_loses_nor_doubles(
    monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Between the commit and the list there is a step at which nobody knows yet."""
    db = store()
    append = sequencer.Sequencer.append

    def interrupted(self: Any, *arguments: Any) -> Any:
        if stored:
            append(self, *arguments)
        raise KeyboardInterrupt

    db.log({"loss": 1}, buffer=True)
    db.log({"loss": 2}, buffer=True)
    monkeypatch.setattr(sequencer.Sequencer, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        db.store_tensor("x", np.zeros(2))
    monkeypatch.setattr(sequencer.Sequencer, "append", append)
    db.log({"loss": 3}, buffer=True)
    assert db.metrics("loss").value.tolist() == [1, 2, 3]


def test_the_end_of_a_call_is_a_safe_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that a handler makes inside another call it is none."""
    db = store()
    with db.save_on_signal(signal.SIGUSR2, lambda: db.log({"saved": 1}), then="continue"):
        signal.raise_signal(signal.SIGUSR2)
        db.log({"loss": 1}, buffer=True)
        assert len(db.metrics("saved")) == 1
        commit = type(db)._commit

        def interrupted(self: Any, *arguments: Any, **named: Any) -> Any:
            monkeypatch.undo()
            signal.raise_signal(signal.SIGUSR2)
            db.log({"loss": 2}, buffer=True)
            assert len(db.metrics("saved")) == 1
            return commit(self, *arguments, **named)

        monkeypatch.setattr(type(db), "_commit", interrupted)
        db.log({"loss": 3})
        assert len(db.metrics("saved")) == 2


# --- disks that fail ------------------------------------------------------------------------------


@pytest.mark.usefixtures("_quiet")
def test_a_full_disk_is_told_by_the_next_call_and_what_waits_is_kept() -> None:
    fs = FaultFileSystem(MemoryFileSystem())
    db = mldb.MLDatabase.on(fs, durability="os")
    db.log({"loss": 0})
    for step in (1, 2):
        db.log({"loss": step}, buffer=True)
    fs.fail("pwritev", code=errno.ENOSPC)
    in_thread(db._metrics._flush_behind)
    with pytest.raises(mldb.StorageFullError):
        db.log({"loss": 3}, buffer=True)  # not taken, as it was told
    db.log({"loss": 4}, buffer=True)
    db.sync()
    assert db.metrics("loss").value.tolist() == [0, 1, 2, 4]


@pytest.mark.usefixtures("_quiet")
def test_a_disk_that_stays_full_is_told_at_close() -> None:
    fs = FaultFileSystem(MemoryFileSystem())
    db = mldb.MLDatabase.on(fs, durability="os")
    db.log({"loss": 0})
    for step in (1, 2, 3):
        db.log({"loss": step}, buffer=True)
    fs.fail("pwritev", code=errno.ENOSPC, forever=True)
    with pytest.raises(mldb.StorageFullError) as caught:
        db.close()
    assert caught.value.__notes__ == ["3 buffered calls of db.log were not stored."]


@pytest.mark.usefixtures("_quiet")
def test_a_failed_sync_behind_is_told(tmp_path: Path) -> None:
    fs = FaultFileSystem(MemoryFileSystem())
    db = mldb.MLDatabase.on(fs)
    db.log({"loss": 0})
    db.log({"loss": 1}, buffer=True)
    fs.fail("sync", code=errno.EIO)
    db._metrics._flush_behind()
    with pytest.raises(mldb.StorageIOError):
        db.log({"loss": 2}, buffer=True)
    with pytest.raises(mldb.ClosedError, match="an fsync failed"):
        db.close()
