"""Ctrl-C at every place where Python can deliver it: the outcome is told, and nothing is left half.

Python raises KeyboardInterrupt at the beginning of a function and behind a call. A profile function
is called at the same places, so it can raise at each of them in turn; test_processes.py does the
same with real signals at random moments.

The story behind this file: an interrupt between the write of a batch and its entry in the index in
memory left the handle without a commit that every other process had. Its next commit then continued
from the one before, which took the lost one out of the lineage, and the footer that it wrote lacked
it: verify() found a damaged store. An interrupt while a segment was sealed ended in a KeyError.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import FileSystem
from tests.support.faults import FaultFileSystem
from tests.support.parts import one_of, some_and_many

ROOT = str(Path(__file__).resolve().parents[2])
Act = Callable[[mldb.MLDatabase], object]


class Interrupt:
    """Raises KeyboardInterrupt at the *number*-th place inside mldb; ``place`` says where."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.place = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "c_return") or self.place:
            return
        name = frame.f_code.co_filename
        if name.startswith((f"{ROOT}/mldb", f"{ROOT}/log")) and self.counts(frame):
            self.left -= 1
            if self.left == 0:
                self.place = f"{name.removeprefix(ROOT)}:{frame.f_lineno} {event}"
                raise KeyboardInterrupt

    @staticmethod
    def counts(frame: FrameType) -> bool:
        """Whether a real store can be interrupted here.

        The disk in memory is no part of one. In a generator expression that nobody
        finishes the interrupt would be printed instead of raised.
        """
        code = frame.f_code
        return not ("/fs/memory" in code.co_filename or code.co_name == "<genexpr>")


def run(act: Act, db: mldb.MLDatabase, number: int) -> Interrupt:
    """Run *act* with an interrupt at the *number*-th place.

    Python prints one that comes inside a finalizer, and goes on.
    """
    interrupt = Interrupt(number)
    before, hook = sys.getprofile(), sys.unraisablehook
    printed: list[type[BaseException] | None] = []
    sys.unraisablehook = lambda unraisable: printed.append(unraisable.exc_type)
    try:
        sys.setprofile(interrupt)
        try:
            act(db)
        finally:
            sys.setprofile(before)
    except KeyboardInterrupt:
        assert interrupt.place, "a real Ctrl-C"
    finally:
        sys.unraisablehook = hook
    assert printed in ([], [KeyboardInterrupt])
    return interrupt


def contents(db: mldb.MLDatabase) -> dict[str, Any]:
    return {name: array.tolist() for name, array in db.items()}


def check_handle(db: mldb.MLDatabase, fs: FileSystem, known: dict[str, Any]) -> None:
    """The handle that was interrupted, others, and later ones agree, and all of them go on."""
    with mldb.MLDatabase.on(fs, lock_timeout=0.05) as other:
        assert contents(db) == contents(other) == known
        assert db.last_commit == other.lsn
        other["from another"] = 1
        known = known | {"from another": 1}
        assert contents(db) == known
        db["later"] = 2
        known |= {"later": 2}
        assert contents(db) == contents(other) == known
        assert db.verify().problems == ()
        other["last"] = 3
        known |= {"last": 3}
        assert contents(db) == known
    db.close()
    with mldb.MLDatabase.on(fs) as again:
        assert contents(again) == known
        assert again.recovery.dropped_transactions == 0
        assert again.verify().problems == ()


def store_one(db: mldb.MLDatabase) -> None:
    db.store_tensor("b", [7, 7], epoch=5)


def store_both(db: mldb.MLDatabase) -> None:
    with db.transaction(epoch=5) as txn:
        txn["a"] = [7, 7]
        txn["b"] = np.full(3000, 7)


def store_streamed(db: mldb.MLDatabase) -> None:
    """The second one is written at its call, and with it the first; one is overwritten then."""
    with db.transaction(epoch=5) as txn:
        txn["a"] = np.full(9000, 3)
        txn["b"] = np.full(9000, 7)
        txn["a"] = [7, 7]


STORED: dict[Act, dict[str, Any]] = {
    store_one: {"a": [1], "b": [7, 7]},
    store_both: {"a": [7, 7], "b": [7] * 3000},
}
STORED[store_streamed] = {"a": [7, 7], "b": [7] * 9000}


@pytest.mark.slow
@some_and_many("stride", 3, 1)
@pytest.mark.parametrize(
    ("act", "options", "least", "step"),
    [
        (store_one, {}, 40, 1),
        (store_one, {"durability": "os"}, 40, 1),
        (store_one, {"segment_entries": 1}, 800, 7),
        (store_both, {}, 80, 1),
        (store_both, {"segment_entries": 2}, 800, 7),
        (store_both, {"segment_bytes": 20_000}, 100, 4),
        (store_streamed, {"spill_bytes": 100_000}, 800, 7),
    ],
    ids=["one", "one unsynced", "one sealed", "two", "two sealed", "two spilled", "streamed"],
)
def test_an_interrupted_commit_is_there_as_a_whole_or_not_at_all(
    act: Act, options: dict[str, Any], least: int, step: int, stride: int
) -> None:
    old = {"a": [1]}
    new = STORED[act]
    outcomes = set()
    number = 1
    while True:
        fs = MemoryFileSystem()
        db = mldb.MLDatabase.on(fs, lock_timeout=0.05, **options)
        db["a"] = [1]
        before = db.last_commit
        interrupt = run(act, db, number)
        stored = db.last_commit > before
        try:
            check_handle(db, fs, new if stored else old)
        except Exception as error:
            raise AssertionError(f"interrupted at {interrupt.place or 'no place'}") from error
        if not interrupt.place:
            assert stored
            break
        outcomes.add(stored)
        number += step * stride
    print(f"{one_of(step * stride)} of {number} places")
    assert number > least, "hardly anything was interrupted"
    assert outcomes == {False, True}


@pytest.mark.slow
@some_and_many("step", 7, 1)
@pytest.mark.parametrize(
    "act",
    [
        pytest.param(store_one, id="one"),
        pytest.param(store_both, id="two", marks=pytest.mark.large),
    ],
)
def test_a_failed_sync_that_is_interrupted_is_not_forgotten(act: Act, step: int) -> None:
    """The kernel tells a failure once. Whatever cuts off its handling, nothing is acknowledged.

    The failure was noted behind calls that an interrupt could end; then the next commit synced the
    file again, with success, and called durable what the kernel had thrown away.
    """

    def fails(db: mldb.MLDatabase) -> None:
        with pytest.raises(mldb.StorageIOError, match="closed for writing"):
            act(db)

    number, told = 1, 0
    while True:
        inner = MemoryFileSystem()
        fs = FaultFileSystem(inner)
        db = mldb.MLDatabase.on(fs, lock_timeout=0.05)
        db["a"] = [1]
        fails_at = fs.calls["sync"] + 1
        fs.fail("sync", effect="drop")
        interrupt = run(fails, db, number)
        was_told = fs.calls["sync"] >= fails_at
        told += was_told
        with pytest.raises(mldb.ClosedError if was_told else mldb.StorageIOError) as caught:
            db["later"] = 2
        assert "closed for writing" in str(caught.value), interrupt.place
        with pytest.raises(mldb.ClosedError, match="closed for writing"):
            db["later"] = 2
        db.close()
        with mldb.MLDatabase.on(inner) as again:
            assert again["a"].tolist() in ([1], [7, 7]), interrupt.place
            assert "later" not in again
            again["later"] = 3
        with mldb.MLDatabase.on(inner, mode="r") as reader:
            assert reader["later"].tolist() == 3
            assert reader.verify().problems == ()
        if not interrupt.place:
            break
        number += step
    print(f"{one_of(step)} of {number} places")
    assert told * step > 20, "the failure was hardly ever interrupted"


@some_and_many("step", 12, 4)
def test_an_interrupted_read_leaves_nothing_out_of_what_others_commit(step: int) -> None:
    """A handle that takes in other commits when the interrupt comes takes them in again."""
    number = 1
    while True:
        fs = MemoryFileSystem()
        db = mldb.MLDatabase.on(fs, lock_timeout=0.05)
        with mldb.MLDatabase.on(fs, segment_entries=2) as writer:
            for value in range(4):
                writer.store_tensor("a", [value])
        interrupt = run(lambda db: db["a"], db, number)
        try:
            check_handle(db, fs, {"a": [3]})
        except Exception as error:
            raise AssertionError(f"interrupted at {interrupt.place or 'no place'}") from error
        if not interrupt.place:
            break
        number += step
    print(f"{one_of(step)} of {number} places")
    assert number > 200, "hardly anything was interrupted"
