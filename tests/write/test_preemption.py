"""Saving when a signal comes: at a safe point, once, in one process, and then as before.

The story behind this file: a handler that stored something itself, while a commit was running,
left 25 of 25 stores with small segments that no longer opened. Others failed to verify, lost a
commit that was acknowledged, or hung on a lock of their own thread.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log.frame import decode_commit
from mldb.log.fs.memory import MemoryFileSystem
from mldb.write import preemption
from mldb.write.safe_points import safe_point
from tests.support.processes import Child, Line

USR1, USR2, TERM = signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM
STATE = {"w": np.ones(3)}


class Former:
    """The handler that a program had before; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, FrameType | None]] = []

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.calls.append((signum, frame))


@pytest.fixture
def former() -> Iterator[Former]:
    """The handler of USR1 and USR2; everything is as it was when the test is over."""
    handler = Former()
    before = [(number, signal.signal(number, handler)) for number in (USR1, USR2)]
    yield handler
    for number, old in before:
        assert signal.getsignal(number) is handler, "the former handler was not put back"
        signal.signal(number, old)
    assert not preemption._heard
    assert not preemption._noted


@pytest.fixture
def db(former: Former) -> Iterator[mldb.MLDatabase]:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as database:
        yield database


class Saver:
    """A function for ``save_on_signal`` that takes a checkpoint and counts its runs."""

    def __init__(self, db: mldb.MLDatabase, **options: Any) -> None:
        self.db = db
        self.options = options
        self.taken: list[mldb.Checkpoint | mldb.PendingCheckpoint] = []

    def __call__(self) -> None:
        name = f"saved {len(self.taken)}"
        taken = self.db.checkpoint(STATE, epoch=1, name=name, **self.options)
        self.taken.append(taken)


def raise_often(count: int) -> None:
    for _ in range(count):
        signal.raise_signal(USR1)


def names(db: mldb.MLDatabase) -> list[str]:
    return [point.name for point in db.checkpoints()]


# --- safe points ----------------------------------------------------------------------------------


def test_a_signal_inside_a_checkpoint_is_served_when_that_is_stored(
    db: mldb.MLDatabase, former: Former, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(db)
    db.save_on_signal(USR1, saver)
    write, seen = db._write_job, []

    def interrupted(job: Any) -> Any:
        signal.raise_signal(USR1)
        row = write(job)
        seen.append((len(saver.taken), len(former.calls)))
        return row

    monkeypatch.setattr(db, "_write_job", interrupted)
    assert db.checkpoint(STATE, epoch=1, name="running").name == "running"
    assert seen == [(0, 0), (0, 0)]  # the running one was stored, and then the one that was saved
    assert len(saver.taken) == 1
    assert names(db) == ["running", "saved 0"]
    assert [call[0] for call in former.calls] == [USR1]


SAFE_POINTS: dict[str, Callable[[mldb.MLDatabase], object]] = {
    "checkpoint": lambda db: db.checkpoint(STATE, epoch=1, name="running"),
    "checkpoint behind": lambda db: db.checkpoint(STATE, epoch=1, name="running", wait=False),
    "safe_point": lambda db: db.safe_point(),
    "close": lambda db: db.close(),
}


@pytest.mark.parametrize("point", SAFE_POINTS)
def test_it_runs_at_each_safe_point_and_nowhere_else(former: Former, point: str) -> None:
    fs = MemoryFileSystem()
    db = mldb.MLDatabase.on(fs, durability="os")
    saver = Saver(db)
    db.save_on_signal(USR1, saver)
    signal.raise_signal(USR1)
    db["a"] = 1
    with db.transaction() as txn:
        txn["b"] = txn["a"]
    db.sync()
    assert (db["b"], saver.taken, former.calls) == (1, [], [])
    SAFE_POINTS[point](db)
    assert (len(saver.taken), len(former.calls)) == (1, 1)
    db.close()
    with mldb.MLDatabase.on(fs) as again:
        expected = ["running"] if "checkpoint" in point else []
        assert names(again) == [*expected, "saved 0"]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_serves_it_between_two_steps(
    store_path: Path, former: Former, rng: np.random.Generator, prefetch: int
) -> None:
    """The batch before is trained on and counted, the next one is not: the state says so."""
    pytest.importorskip("torch")
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=8)
        lake.add_splats(rng.standard_normal((100, 8)))
        loader = lake.export_to_dataloader(10, seed=3, device="numpy", prefetch=prefetch)
        steps: list[object] = []

        def save() -> None:
            state = {"steps": len(steps), "loader": loader.state_dict()}
            db.checkpoint(state, epoch=0, name="saved")

        db.save_on_signal(USR1, save)
        for batch in loader:
            assert len(former.calls) == (len(steps) >= 3)
            steps.append(batch)
            if len(steps) == 3:
                signal.raise_signal(USR1)
                assert former.calls == []
        saved = db.load(None, as_of="saved")
        assert (saved["steps"], len(steps)) == (3, 10)
        again = lake.export_to_dataloader(10, seed=3, device="numpy", prefetch=prefetch)
        again.load_state_dict(saved["loader"])
        rest = [batch.tolist() for batch in again]
        assert rest == [batch.tolist() for batch in steps[3:]]  # type: ignore[attr-defined]


def test_leaving_its_block_is_a_safe_point_and_cancels(db: mldb.MLDatabase, former: Former) -> None:
    saver = Saver(db)
    with db.save_on_signal(USR1, saver) as save:
        assert " cancelled" not in repr(save)
        signal.raise_signal(USR1)
        assert saver.taken == []
    assert (len(saver.taken), len(former.calls)) == (1, 1)
    assert " cancelled" in repr(save)
    signal.raise_signal(USR1)
    db.safe_point()
    assert (len(saver.taken), len(former.calls)) == (1, 2)


def test_repeats_are_one_and_nothing_runs_inside_itself(
    db: mldb.MLDatabase, former: Former
) -> None:
    runs: list[int] = []

    def fn() -> None:
        signal.raise_signal(USR1)
        runs.append(len(runs))
        db.checkpoint(STATE, epoch=1, name=f"{len(runs)}")
        signal.raise_signal(USR1)
        db.safe_point()

    db.save_on_signal(USR1, fn, grace=0.0)
    db.transact(lambda txn: raise_often(5))
    db.safe_point()
    db.safe_point()
    assert (runs, names(db), len(former.calls)) == ([0], ["1"], 1)
    db.transact(lambda txn: raise_often(1))  # a new one is a new one
    db.safe_point()
    assert (runs, len(former.calls)) == ([0, 1], 2)


def test_a_thread_of_the_program_serves_no_signal(db: mldb.MLDatabase) -> None:
    saver = Saver(db)
    db.save_on_signal(USR1, saver)
    signal.raise_signal(USR1)
    raised: list[Exception] = []

    def work() -> None:
        db.checkpoint(STATE, epoch=1, name="of the thread")
        for call in (db.safe_point, lambda: db.save_on_signal(USR1, saver)):
            try:
                call()
            except mldb.UsageError as error:
                raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ["main thread" in str(error) for error in raised] == [True, True]
    assert saver.taken == []
    db.safe_point()
    assert names(db) == ["of the thread", "saved 0"]


# --- what comes afterwards ------------------------------------------------------------------------


def test_what_it_raises_comes_out_of_the_safe_point_and_the_commit_is_stored(
    db: mldb.MLDatabase, former: Former
) -> None:
    def fn() -> None:
        raise SystemExit(3)

    db.save_on_signal(USR1, fn)
    for number, options in enumerate([{"wait": True}, {"wait": False}]):
        signal.raise_signal(USR1)
        with pytest.raises(SystemExit):
            db.checkpoint(STATE, epoch=1, name=f"{number}", **options)  # type: ignore[call-overload]
    assert db.lsn  # nothing is left that could be raised again
    db["after"] = 1
    assert names(db) == ["0", "1"]
    assert former.calls == []


def test_an_ignored_signal_stays_ignored_and_ctrl_c_is_ctrl_c(db: mldb.MLDatabase) -> None:
    saver = Saver(db)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with db.save_on_signal(signal.SIGHUP, saver):
            signal.raise_signal(signal.SIGHUP)
            db.safe_point()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    save = db.save_on_signal(signal.SIGINT, saver)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        db.safe_point()
    save.cancel()
    with db.save_on_signal(signal.SIGINT, saver, then="continue"):
        signal.raise_signal(signal.SIGINT)
        db.safe_point()
    assert names(db) == ["saved 0", "saved 1", "saved 2"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_of_the_same_database_replaces_the_first(
    db: mldb.MLDatabase, former: Former
) -> None:
    first, second = Saver(db), Saver(db)
    old = db.save_on_signal(USR1, first)
    new = db.save_on_signal(USR1, second)
    assert (old.active, new.active) == (False, True)
    old.cancel()
    signal.raise_signal(USR1)
    db.safe_point()
    assert (len(first.taken), len(second.taken), len(former.calls)) == (0, 1, 1)
    assert "SIGUSR1" in repr(new)
    assert "cancelled" in repr(old)


def test_databases_are_served_in_their_order_whatever_one_raises(
    db: mldb.MLDatabase, former: Former, caplog: pytest.LogCaptureFixture
) -> None:
    order = []

    def failing(name: str) -> Callable[[], None]:
        def fn() -> None:
            order.append(name)
            raise RuntimeError(name)

        return fn

    with mldb.MLDatabase.on(MemoryFileSystem()) as other:
        db.save_on_signal(USR1, lambda: order.append("old"))
        other.save_on_signal(USR1, failing("other"))
        with mldb.MLDatabase.on(MemoryFileSystem()) as third:
            third.save_on_signal(USR1, failing("third"))
            db.save_on_signal(USR1, lambda: order.append("db"))
            signal.raise_signal(USR1)
            with pytest.raises(RuntimeError, match="other"):
                other.checkpoint(STATE, epoch=1)
            assert order == ["db", "other", "third"]
            assert "another function of save_on_signal" in caplog.text
    assert former.calls == []
    signal.raise_signal(USR1)
    db.safe_point()
    assert order[3:] == ["db"]
    assert len(former.calls) == 1


def test_signals_are_apart(db: mldb.MLDatabase, former: Former) -> None:
    one, two = Saver(db), Saver(db)
    db.save_on_signal(USR1, one)
    db.save_on_signal(USR2, two)
    signal.raise_signal(USR2)
    db.safe_point()
    assert (len(one.taken), len(two.taken)) == (0, 1)
    signal.raise_signal(USR1)
    signal.raise_signal(USR2)
    db.safe_point()
    assert (len(one.taken), len(two.taken)) == (1, 2)
    assert [call[0] for call in former.calls] == [USR2, USR1, USR2]


# --- cancelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in a thread"])
def test_a_noted_signal_is_handed_on_when_it_is_cancelled(
    db: mldb.MLDatabase, former: Former, elsewhere: bool
) -> None:
    saver = Saver(db)
    save = db.save_on_signal(USR1, saver)
    signal.raise_signal(USR1)
    if elsewhere:
        thread = threading.Thread(target=save.cancel)
        thread.start()
        thread.join()
    else:
        save.cancel()
    assert len(former.calls) == 1
    signal.raise_signal(USR1)
    assert (saver.taken, len(former.calls)) == ([], 2)
    save.cancel()
    db.save_on_signal(USR1, saver).cancel()  # the main thread puts the former one back


def test_a_function_may_cancel_itself(db: mldb.MLDatabase, former: Former) -> None:
    runs = []

    def fn() -> None:
        runs.append(1)
        save.cancel()

    save = db.save_on_signal(USR1, fn)
    for _ in range(2):
        raise_often(1)
        db.safe_point()
    assert (len(runs), len(former.calls)) == (1, 2)


def test_a_handler_put_on_top_may_call_ours(db: mldb.MLDatabase, former: Former) -> None:
    calls = []

    def on_top(signum: int, frame: FrameType | None) -> None:
        calls.append(signum)
        assert callable(ours)
        ours(signum, frame)

    saver = Saver(db)
    save = db.save_on_signal(USR1, saver)
    ours = signal.getsignal(USR1)
    signal.signal(USR1, on_top)
    signal.raise_signal(USR1)
    db.safe_point()
    assert (len(calls), len(saver.taken), len(former.calls)) == (1, 1, 1)
    save.cancel()
    assert signal.getsignal(USR1) is on_top  # not ours to take away
    signal.raise_signal(USR1)
    assert (len(calls), len(saver.taken), len(former.calls)) == (2, 1, 2)
    signal.signal(USR1, ours)
    db.save_on_signal(USR1, saver).cancel()


# --- arguments ------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], type[mldb.MldbError]]] = [
    ({"signum": "SIGTERM"}, mldb.InvalidTypeError),
    ({"signum": True}, mldb.InvalidTypeError),
    ({"signum": 0}, mldb.InvalidValueError),
    ({"signum": 4711}, mldb.InvalidValueError),
    ({"signum": signal.SIGKILL}, mldb.InvalidValueError),
    ({"signum": signal.SIGSEGV}, mldb.InvalidValueError),
    ({"fn": 5}, mldb.InvalidTypeError),
    ({"grace": "1"}, mldb.InvalidTypeError),
    ({"grace": True}, mldb.InvalidTypeError),
    ({"grace": -1}, mldb.InvalidValueError),
    ({"grace": float("nan")}, mldb.InvalidValueError),
    ({"grace": float("inf")}, mldb.InvalidValueError),
    ({"then": "stop"}, mldb.InvalidValueError),
]


@pytest.mark.parametrize(("wrong", "kind"), WRONG, ids=[str(wrong) for wrong, _ in WRONG])
def test_arguments_that_cannot_be_meant_change_nothing(
    db: mldb.MLDatabase, wrong: dict[str, Any], kind: type[mldb.MldbError]
) -> None:
    arguments: dict[str, Any] = {"signum": USR1, "fn": print, **wrong}
    with pytest.raises(kind, match="|".join([*wrong, "SIG"])):
        db.save_on_signal(**arguments)
    assert not preemption._heard


def test_a_closed_database_takes_none(former: Former) -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem())
    db.close()
    with pytest.raises(mldb.ClosedError):
        db.save_on_signal(USR1, print)
    with pytest.raises(mldb.ClosedError):
        db.safe_point()


# --- grace ----------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool]) -> None:
    """Let the main thread do nothing, outside of mldb, until something has happened."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def commits_marked(db: mldb.MLDatabase) -> list[bool]:
    """For every commit of the log whether it says that it was interrupted."""
    view = db._log.head()
    return [
        decode_commit(view.segments[segment].frame(row.end)[1]).extra == {"interrupted": True}
        for segment, row in view.commits(0, db.lsn)
    ]


@pytest.mark.parametrize("wait", [True, False])
def test_after_the_grace_it_runs_in_the_middle_of_a_step_and_says_so(
    former: Former, wait: bool
) -> None:
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, durability="os") as db:
        saver = Saver(db, wait=wait)
        db.save_on_signal(USR1, saver, grace=0.1)
        began = time.monotonic()
        signal.raise_signal(USR1)
        wait_for(lambda: bool(former.calls))
        assert 0.1 <= time.monotonic() - began < 10
        (taken,) = saver.taken
        point = taken if isinstance(taken, mldb.Checkpoint) else taken.result(10)
        assert point.interrupted
        time.sleep(0.15)  # the signal is not sent again
        assert (len(saver.taken), len(former.calls)) == (1, 1)
        assert not db.checkpoint(STATE, epoch=1, name="whole").interrupted
        assert commits_marked(db) == [True, False]
        signal.raise_signal(USR1)
        db.safe_point()
    with mldb.MLDatabase.on(fs) as again:
        marks = {point.name: point.interrupted for point in again.checkpoints()}
    assert marks == {"saved 0": True, "whole": False, "saved 1": False}


def test_a_blocking_call_of_the_program_is_interrupted_for_it(
    db: mldb.MLDatabase, former: Former
) -> None:
    db.save_on_signal(USR1, Saver(db), grace=0.05)
    signal.raise_signal(USR1)
    began = time.monotonic()
    time.sleep(1)
    assert time.monotonic() - began >= 1  # and goes on afterwards
    assert len(former.calls) == 1
    assert [point.interrupted for point in db.checkpoints()] == [True]


def test_it_never_runs_inside_a_call_of_mldb(db: mldb.MLDatabase, former: Former) -> None:
    saver = Saver(db)
    db.save_on_signal(USR1, saver, grace=0.05)
    counts = []

    def long(txn: mldb.Transaction) -> None:
        signal.raise_signal(USR1)
        deadline = time.monotonic() + 0.4
        while time.monotonic() < deadline:
            time.sleep(0.005)
        counts.append(len(saver.taken))
        txn["a"] = 1

    db.transact(long)
    assert counts == [0]
    wait_for(lambda: bool(former.calls))
    assert [point.interrupted for point in db.checkpoints()] == [True]


def test_without_a_grace_it_runs_at_once_outside_of_mldb(
    db: mldb.MLDatabase, former: Former
) -> None:
    saver = Saver(db)
    db.save_on_signal(USR1, saver, grace=0)
    signal.raise_signal(USR1)
    assert (len(saver.taken), len(former.calls)) == (1, 1)


class SignalAt:
    """A profile function: the *number*-th place where Python could run a handler has a signal."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.place = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "c_return") or self.place or frame.f_code.co_name == "<genexpr>":
            return
        if str(frame.f_globals.get("__name__")).startswith("mldb."):
            self.left -= 1
            if self.left == 0:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno} {event}"
                signal.raise_signal(USR1)


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True], ids=["at once", "behind"])
def test_at_every_place_of_a_checkpoint_the_signal_waits_for_its_end(
    former: Former, behind: bool
) -> None:
    number = 1
    while True:
        fs = MemoryFileSystem()
        signalled = SignalAt(number)
        with mldb.MLDatabase.on(fs, durability="os", segment_entries=2, lock_timeout=1) as db:
            saver = Saver(db)
            save = db.save_on_signal(USR1, saver, grace=0)
            before = sys.getprofile()
            try:
                sys.setprofile(signalled)
                if behind:
                    db.checkpoint(STATE, epoch=1, name="running", wait=False)
                else:
                    db.checkpoint(STATE, epoch=1, name="running")
            finally:
                sys.setprofile(before)
            if signalled.place:
                # Right behind the safe point, at the end of the call, it waits for the next.
                save.__exit__(None, None, None)
                assert len(saver.taken) == 1, signalled.place
            assert not any(point.interrupted for point in db.checkpoints()), signalled.place
            assert sorted(names(db)) == sorted(["running", *["saved 0"] * bool(signalled.place)])
            assert db.verify().problems == (), signalled.place
        if not signalled.place:
            break
        number += 1
    assert number > 100, "hardly anything was interrupted"


# --- other processes ------------------------------------------------------------------------------


def test_a_forked_child_treats_the_signal_as_before(db: mldb.MLDatabase, former: Former) -> None:
    saver = Saver(db)
    db.save_on_signal(USR1, saver)
    db.save_on_signal(TERM, saver, then="continue")
    signal.raise_signal(USR1)  # noted here, and no business of the child

    def child(line: Line) -> None:
        line.say(signal.getsignal(USR1) is former, signal.getsignal(TERM) is signal.SIG_DFL)
        safe_point()
        signal.raise_signal(USR1)
        line.say(len(saver.taken), len(former.calls))
        try:
            db.safe_point()
        except mldb.ClosedError:
            line.say("closed")
        line.hear()
        os.kill(os.getpid(), TERM)
        line.say("alive")

    with Child(child) as forked:
        assert forked.hear() == ["True", "True"]
        assert forked.hear() == ["0", "1"]
        assert forked.hear() == ["closed"]
        forked.say("go on")
        assert list(forked.rest()) == []
        assert forked.wait() == -TERM
    assert (saver.taken, former.calls) == ([], [])
    db.safe_point()
    assert (len(saver.taken), len(former.calls)) == (1, 1)


def train(path: Path, grace: float, line: Line) -> None:
    """Commit in segments of a few entries until told to stop; every signal stores one more."""
    db = mldb.open(path, durability="os", segment_entries=2, lock_timeout=5)
    saved: list[int] = []

    def save() -> None:
        saved.append(len(saved))
        db.store_tensor(f"saved/{saved[-1]}", np.full(50, saved[-1]))
        db.checkpoint({"w": np.full(9, saved[-1])}, epoch=0, name=f"saved {saved[-1]}")

    db.save_on_signal(TERM, save, grace=grace, then="continue")
    line.say("ready")
    number = 0
    while len(saved) < STORM:
        db.store_tensor(f"x{number}", np.full(20, number))
        if number % 7 == 0:
            name = f"trained {number}"
            if number % 2:
                db.checkpoint({"w": np.full(9, number)}, epoch=0, name=name, wait=False)
            else:
                db.checkpoint({"w": np.full(9, number)}, epoch=0, name=name)
        number += 1
        line.say(number, len(saved))
    db.close()
    line.say("end", number, len(saved))


STORM = 25


@pytest.mark.slow
@pytest.mark.parametrize("grace", [20.0, 0.0])
def test_a_storm_of_signals_in_the_middle_of_commits_loses_nothing(
    store_path: Path, grace: float, rng: np.random.Generator
) -> None:
    mldb.open(store_path).close()
    with Child(lambda line: train(store_path, grace, line)) as child:
        assert child.hear() == ["ready"]
        served = 0
        last: list[str] = []
        child.kill(TERM)
        for words in child.rest():
            last = words
            if words[0] != "end" and served < int(words[1]) < STORM:
                served = int(words[1])
                time.sleep(float(rng.uniform(0, 0.004)))
                child.kill(TERM)
        assert last[0] == "end"
        number, count = int(last[1]), int(last[2])
        assert child.wait() == 0
    assert count >= STORM
    with mldb.open(store_path) as db:
        assert db.verify().problems == ()
        assert db.recovery.clean
        for index in range(number):
            assert (db[f"x{index}"] == index).all()
        points = {point.name: point for point in db.checkpoints()}
        for index in range(count):
            assert (db[f"saved/{index}"] == index).all()
            assert not points[f"saved {index}"].interrupted or grace == 0
            assert (db.load(None, as_of=f"saved {index}")["w"] == index).all()
        assert {f"trained {index}" for index in range(0, number, 7)} <= set(points)
