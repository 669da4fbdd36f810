"""The queue of checkpoints written behind: in order, bounded, and never waited for in vain.

What Ctrl-C does to it is in tests/crash/test_background_interrupts.py, and the end of the process
in tests/crash/test_exit.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow
from mldb.state import background as background_module
from mldb.state.background import Background, CopyBuffer
from mldb.state.checkpointing import CheckpointJob, make_job
from tests.support.faults import FaultFileSystem

STATE = {"w": np.ones(300)}


def job(name: str, value: int = 0) -> CheckpointJob:
    return make_job({"w": np.full(3, value)}, epoch=0, step=None, name=name, metrics=None)


def test_the_background_writes_in_order_and_raises_each_error_once() -> None:
    written: list[tuple[str, int]] = []

    def write(item: CheckpointJob) -> CommitRow:
        if item.name.startswith("bad"):
            raise mldb.StorageIOError(item.name)
        (buffer,) = item.tensors["w"].buffers
        written.append((item.name, int(np.frombuffer(buffer, "i8")[0])))
        return EMPTY_COMMIT

    background = Background(depth=3)
    assert not background.busy()
    for number in range(5):
        background.submit(job(f"good{number}", number), 0.0, write)
    background.drain()
    assert written == [(f"good{number}", number) for number in range(5)]
    bad = [background.submit(job(f"bad{number}"), 0.0, write) for number in range(2)]
    good = background.submit(job("good"), 0.0, write)
    with pytest.raises(mldb.StorageIOError, match="bad0"):
        background.drain()
    background.drain()
    background.raise_failed()
    assert good.done
    assert all(pending.error is not None for pending in bad)
    late = background.submit(job("bad late"), 0.0, write)
    with pytest.raises(mldb.StorageIOError, match="bad late"):
        late.result(10)
    background.close()
    background.close()
    assert not background.busy()


def test_what_is_copied_already_is_not_copied_again() -> None:
    """The bytes of a device tensor come through page-locked memory; one copy is enough."""
    plain, turned = np.ones((64, 64)), np.ones((64, 32)).T  # the second has to be gathered first
    job = make_job({"a": plain, "b": turned}, epoch=1, step=None, name=None, metrics=None)
    buffer = CopyBuffer()
    fixed = buffer.copy_of(job)
    assert buffer.data.nbytes == plain.nbytes
    assert fixed.tensors["b"] is job.tensors["b"]
    plain[:] = 0
    assert bytes(fixed.tensors["a"].buffers[0]) == np.ones((64, 64)).tobytes()
    assert list(fixed.tensors) == list(job.tensors)


def big(value: int) -> CheckpointJob:
    state = {f"t{number}": np.full(5 << 20, value, np.uint8) for number in range(9)}
    return make_job(state, epoch=0, step=None, name=None, metrics=None)


def who() -> str:
    return "caller" if threading.get_ident() == threading.main_thread().ident else "aside"


@pytest.mark.parametrize("kind", ["of their own", "views of one storage", "NumPy"])
def test_tiny_tensors_are_copied_by_two_threads(
    kind: str, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 524,288 of them on, a state ended the call with IndexError: the half was never reached.

    Each has 64 bytes of the buffer for its 4, so the halves are not those of the tensors' bytes.
    """
    monkeypatch.setattr(background_module, "_SPLIT_BYTES", 64)
    numbers = torch.arange(700, dtype=torch.float32)
    kinds: dict[str, Any] = {
        "of their own": [item.clone() for item in numbers],
        "views of one storage": list(numbers.unbind()),
        "NumPy": [np.array(float(item), np.float32) for item in numbers],
    }
    state = {"nested": [kinds[kind][:200], kinds[kind][200:]], "empty": torch.empty(0)}
    with mldb.open(store_path, segment_entries=64, segment_bytes=1 << 12) as db:
        db.checkpoint(state, epoch=1, wait=False).result()
        first = kinds[kind][0]
        first += 1
        db.checkpoint({"nested": [[first]]}, epoch=2, wait=False).result()
    with mldb.open(store_path) as db:
        loaded = db.load(None, as_of=1)["nested"]
        assert [float(item) for part in loaded for item in part] == [*range(700)]
        assert float(db["nested/0/0"]) == 1.0


@pytest.mark.large
def test_half_a_million_tiny_tensors_are_stored_behind(store_path: Path) -> None:
    """With a segment of the usual size; 2^19 was the first number that failed."""
    count = (1 << 19) + 1
    state = {"all": list(torch.arange(count, dtype=torch.float32).unbind())}
    with mldb.open(store_path, durability="os") as db:
        db.checkpoint(state, epoch=1, wait=False).result()
        db.checkpoint({"all": state["all"][:1]}, epoch=2)
    with mldb.open(store_path) as db, db.at(1) as snapshot:
        assert len(db) == len(snapshot) == count
        for number in (*range(0, count, 997), count - 1):
            assert float(snapshot[f"all/{number}"]) == number


def test_a_large_state_is_copied_by_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    taking_part = []
    copy = background_module._copy

    def counted(parts: list[Any]) -> None:
        taking_part.append((who(), len(parts)))
        copy(parts)

    monkeypatch.setattr(background_module, "_copy", counted)
    given = big(7)
    fixed = CopyBuffer().copy_of(given)
    assert sorted(taking_part) == [("aside", 4), ("caller", 5)]
    for name, tensor in given.tensors.items():
        assert bytes(fixed.tensors[name].buffers[0]) == bytes(tensor.buffers[0])


def test_what_fails_in_either_thread_of_a_copy_fails_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("caller", "aside"):

        def failing(parts: list[Any], name: str = name) -> None:
            if who() == name:
                raise MemoryError(name)

        monkeypatch.setattr(background_module, "_copy", failing)
        buffer = CopyBuffer()
        with pytest.raises(MemoryError, match=name):
            buffer.copy_of(big(1))
        assert buffer.data.nbytes == 0


def test_memory_that_may_still_be_copied_into_is_never_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second thread of a copy outlives a Ctrl-C: it would write the old state into the next."""
    buffer = CopyBuffer()
    buffer.copy_of(job("first"))
    old = buffer.data

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mldb.state.background._copy_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            buffer.copy_of(job("second"))
    fixed = buffer.copy_of(job("third"))
    assert not np.shares_memory(np.frombuffer(fixed.tensors["w"].buffers[0], "u1"), old)


def test_the_errors_of_others_are_notes_to_the_one_that_is_raised() -> None:
    background = Background(depth=3)

    def write(item: CheckpointJob) -> CommitRow:
        raise mldb.StorageFullError(f"no room for {item.name}")

    for name in "abc":
        background.submit(job(name), 0.0, write)
    with pytest.raises(mldb.StorageFullError, match="no room for a") as caught:
        background.drain()
    assert ["room for b" in note or "room for c" in note for note in caught.value.__notes__] == [
        True,
        True,
    ]
    background.close()


def test_it_leaves_no_thread_when_there_is_nothing_to_write() -> None:
    background = Background(depth=1, exit_timeout=5)
    before = threading.active_count()
    for number in range(20):
        background.submit(job(f"{number}"), 0.0, lambda item: EMPTY_COMMIT)
    background.close()
    for thread in threading.enumerate():
        if thread.name == "mldb-exit":
            thread.join(10)
    assert threading.active_count() == before


def test_who_comes_after_the_end_is_told_so() -> None:
    background = Background(depth=1)
    background.close()
    with pytest.raises(mldb.ClosedError, match="'late' was not stored"):
        background.submit(job("late"), 0.0, lambda item: EMPTY_COMMIT)
    assert not background.busy()


def test_without_a_thread_to_be_had_the_caller_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    background = Background(depth=1)
    written = []

    def write(item: CheckpointJob) -> CommitRow:
        if item.name == "interrupted":
            raise KeyboardInterrupt
        written.append(item.name)
        assert background.is_inside()
        return EMPTY_COMMIT

    assert background.submit(job("one"), 0.0, write).done
    with pytest.raises(KeyboardInterrupt):
        background.submit(job("interrupted"), 0.0, write)
    assert background.submit(job("two"), 0.0, write).done
    background.close()
    assert written == ["one", "two"]


# --- calls inside calls ---------------------------------------------------------------------------


class InsideFileSystem(FaultFileSystem):
    """Does something in the middle of the main thread's next write, as a signal handler would."""

    act: Callable[[], object] | None = None

    def write(self, *arguments: Any) -> int:
        act = self.act
        if act is not None and threading.current_thread() is threading.main_thread():
            self.act = None
            act()
        return super().write(*arguments)


INSIDE: dict[str, Callable[[mldb.MLDatabase, mldb.PendingCheckpoint], object]] = {
    "store": lambda db, pending: db.store_tensor("x", 1),
    "checkpoint": lambda db, pending: db.checkpoint(STATE, epoch=1, name="x"),
    "one more behind": lambda db, pending: db.checkpoint(STATE, epoch=1, name="x", wait=False),
    "transaction": lambda db, pending: db.transact(lambda txn: None),
    "result": lambda db, pending: pending.result(),
    "sync": lambda db, pending: db.sync(),
    "close": lambda db, pending: db.close(),
}


@pytest.mark.parametrize("call", INSIDE)
def test_who_would_wait_for_what_waits_for_him_is_told_instead(call: str) -> None:
    """The thread behind waits for the commit lock, which the commit that was interrupted holds."""
    inner = MemoryFileSystem()
    fs = InsideFileSystem(inner)
    db = mldb.MLDatabase.on(fs, durability="os")
    told: list[mldb.PendingCheckpoint] = []

    def handler() -> None:
        told.append(db.checkpoint(STATE, epoch=1, name="behind", wait=False))
        with pytest.raises(mldb.ReentryError, match="save_on_signal"):
            INSIDE[call](db, told[0])

    fs.act = handler
    db["outer"] = 5
    assert told[0].result(10).name == "behind"
    db["after"] = 6
    db.close()
    with mldb.MLDatabase.on(inner) as again:
        assert (again["outer"], again["after"], "x" in again) == (5, 6, False)
        assert [point.name for point in again.checkpoints()] == ["behind"]
        assert again.verify().problems == ()


def test_one_inside_the_copy_of_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of = CopyBuffer.copy_of
    with mldb.MLDatabase.on(MemoryFileSystem()) as db:

        def copy_and_more(buffer: CopyBuffer, item: CheckpointJob) -> CheckpointJob:
            monkeypatch.undo()
            with pytest.raises(mldb.ReentryError, match="queue of background checkpoints"):
                db.checkpoint(STATE, epoch=1, name="inner", wait=False)
            with pytest.raises(mldb.ReentryError):
                db.close()
            return copy_of(buffer, item)

        monkeypatch.setattr(CopyBuffer, "copy_of", copy_and_more)
        db.checkpoint(STATE, epoch=1, name="outer", wait=False)
        assert db.store_tensor("x", 1)
        assert [point.name for point in db.checkpoints()] == ["outer"]


def test_a_write_inside_the_thread_behind_waits_for_nothing() -> None:
    """A finalizer that the collector runs there, say."""
    with mldb.MLDatabase.on(MemoryFileSystem()) as db:
        stored = []

        def write(item: CheckpointJob) -> CommitRow:
            stored.append(db.store_tensor("from inside", 1))
            return db._write_job(item)

        pending = db._background.submit(job("outer"), 0.0, write)
        assert pending.result(10).lsn > stored[0]


def test_an_interrupted_close_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()
    background = Background(depth=1)
    wait = mldb.PendingCheckpoint.wait

    def write(item: CheckpointJob) -> CommitRow:
        assert opened.wait(10)
        return EMPTY_COMMIT

    def interrupted(pending: mldb.PendingCheckpoint, timeout: float | None = None) -> bool:
        monkeypatch.undo()
        opened.set()
        raise KeyboardInterrupt

    first = background.submit(job("first"), 0.0, write)
    monkeypatch.setattr(mldb.PendingCheckpoint, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.close()
    assert wait(first, 10)
    assert background.submit(job("second"), 0.0, write).wait(10)
    background.close()
