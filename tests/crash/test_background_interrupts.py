"""Ctrl-C at every step of ``checkpoint(wait=False)``: the next call works, and nothing is half.

The story behind this file: the buffer of a checkpoint left its pool outside of any ``try``, and a
job was counted before it was queued. A Ctrl-C in between, and the next checkpoint waited for a
buffer that nobody had, or the next ``store_tensor`` and ``close`` for a job that nobody wrote.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.faults import FaultFileSystem
from tests.support.parts import one_of, some_and_many

# Interrupted between any two instructions; other code of mldb wherever Python can deliver a signal.
CLOSELY = (
    *("mldb.state.background", "mldb.state.checkpointing", "mldb.state.lost"),
    *("mldb.write.preemption", "mldb.write.safe_points", "mldb.database", "mldb.log.ownership"),
)
PATIENCE_SECONDS = 20


class InterruptAt:
    """A trace function that raises KeyboardInterrupt at the *number*-th step inside mldb."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.place = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = str(frame.f_globals.get("__name__"))
        if not name.startswith("mldb.") or self.place or ".fs." in name:
            return None
        if is_printed(frame):
            return None
        frame.f_trace_opcodes = name in CLOSELY
        frame.f_trace_lines = False
        if event in ("call", "opcode"):
            self.left -= 1
            if self.left == 0:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno} {event}"
                raise KeyboardInterrupt
        return self


def is_printed(frame: FrameType | None) -> bool:
    """Whether an exception here is printed instead of raised. What called ``run`` is no matter."""
    while frame is not None and frame.f_code is not run.__code__:
        if frame.f_code.co_name in ("<genexpr>", "__del__"):
            return True
        frame = frame.f_back
    return False


def run(db: mldb.MLDatabase, number: int) -> InterruptAt:
    """Take a checkpoint behind with an interrupt at the *number*-th step."""
    interrupt = InterruptAt(number)
    before = sys.gettrace()
    try:
        sys.settrace(interrupt)
        try:
            db.checkpoint({"w": np.full(500, 7)}, epoch=5, name="hit", wait=False)
        finally:
            sys.settrace(before)
    except KeyboardInterrupt:
        assert interrupt.place, "a real Ctrl-C"
    return interrupt


@contextmanager
def patience() -> Iterator[None]:
    """What hangs fails."""

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class SlowFileSystem(FaultFileSystem):
    """Its writes take a moment, so that the next checkpoint has to wait for memory."""

    def write(self, *arguments: Any) -> int:
        time.sleep(0.001)
        return super().write(*arguments)


NEXT: list[Callable[[mldb.MLDatabase], object]] = [
    lambda db: db.checkpoint({"w": np.full(500, 8)}, epoch=5, name="a", wait=False),
    lambda db: db.store_tensor("x", 1),
    lambda db: db.checkpoint({"w": np.full(500, 9)}, epoch=5, name="b", wait=False),
]
AFTER = {"a": 8, "b": 9}  # what these store


def is_stored(busy: bool, number: int) -> bool | None:
    """Whether a checkpoint interrupted at the *number*-th step is stored; None: it has fewer.

    Whatever became of it, what comes next works.
    """
    fs = MemoryFileSystem()
    db = mldb.MLDatabase.on(SlowFileSystem(fs) if busy else fs, durability="os")
    expected = {}
    if busy:
        expected["before"] = 3
        db.checkpoint({"w": np.full(500, 3)}, epoch=5, name="before", wait=False)
    interrupt = run(db, number)
    try:
        with patience():
            for turn in range(3):
                NEXT[(number + turn) % 3](db)
            db.close()
        with mldb.MLDatabase.on(fs) as again:
            found = {
                point.name: set(again.load(None, as_of=point.name)["w"].tolist())
                for point in again.checkpoints()
            }
            hit = found.pop("hit", None)
            assert hit in (None, {7})
            assert found == {name: {value} for name, value in (expected | AFTER).items()}
            assert again["x"] == 1
            assert again.verify().problems == ()
    except BaseException as error:
        raise AssertionError(f"interrupted at {interrupt.place or 'no place'}") from error
    if interrupt.place:
        return hit is not None
    assert hit == {7}
    return None


@pytest.mark.slow
@some_and_many("step", 2, 1)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_ctrl_c_leaves_the_next_checkpoint_the_next_write_and_close_working(
    busy: bool, step: int
) -> None:
    """Behind another checkpoint few are stored, by chance none of one in two: of the last steps."""
    outcomes = Counter[bool]()
    number = 1
    while (stored := is_stored(busy, number)) is not None:
        outcomes[stored] += 1
        number += step
    print(f"{one_of(step)}: {number // step} of {number} steps")
    assert number > 800, "hardly anything was interrupted"
    near, ends = number - 100, 0
    while True not in outcomes and ends < 20:  # how many steps there are depends on the waiting
        stored = is_stored(busy, near)
        if stored is None:
            near, ends = near - 60, ends + 1
        else:
            outcomes[stored] += 1
            near += 1
    assert set(outcomes) == {True, False}
