"""Private mappings that a later pass has again: when they may be, and what a write to one does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import StorageIOError
from mldb.lake.rows import lent, windows
from mldb.lake.rows.block import MappedBlock
from mldb.lake.rows.lent import Lender
from mldb.lake.rows.windows import Windows

DIM = 32
ROWS = 1200


@pytest.fixture
def rows(store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(lent, "WINDOW_BYTES", 100 * 4 * DIM)
    monkeypatch.setattr(windows, "KEPT_BYTES_MIN", 0)
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        lake.add_splats(rng.standard_normal((ROWS, DIM)))
        yield lake.rows()


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first row of every window that is mapped."""
    firsts: list[int] = []
    private = MappedBlock.private_mu

    def note(block: MappedBlock, part: slice) -> Any:
        firsts.append(part.start)
        return private(block, part)

    monkeypatch.setattr(MappedBlock, "private_mu", note)
    return firsts


def a_pass(rows: Any, kept: Windows, step: Any = None, batch: int = 50) -> list[bytes]:
    """The bytes of every batch, of which *step* gets the array, and the one before is dropped."""
    lender, found = Lender(rows, kept), []
    for first in range(0, ROWS, batch):
        array = lender.take(slice(first, first + batch))
        found.append(array.tobytes())
        if step is not None:
            step(first, array)
        del array
    lender.close()
    return found


def test_windows_that_were_only_read_are_had_again(rows: Any, mapped: list[int]) -> None:
    """Where the kernel does not say, each pass maps anew."""
    view = memoryview(rows.block(0).private_mu(slice(0, 1)))
    knows = rows.log.fs.is_unwritten(view)
    mapped.clear()
    kept = Windows(rows.log.fs.is_unwritten)
    want = a_pass(rows, kept)
    assert mapped == list(range(0, ROWS, 100))
    assert a_pass(rows, kept) == want
    assert len(mapped) == (12 if knows else 24)


def test_a_write_reaches_no_later_pass(rows: Any, mapped: list[int]) -> None:
    kept = Windows(rows.log.fs.is_unwritten)
    want = a_pass(rows, kept)

    def write(first: int, array: Any) -> None:
        if first in (150, 600, 1150):
            array[-1, -1] = 7

    for _ in range(3):
        assert a_pass(rows, kept, write) == want
    assert a_pass(rows, kept) == want


def test_what_is_held_is_not_lent_again(rows: Any, mapped: list[int]) -> None:
    """Not even where it is written to after the pass, and not through what was made of it."""
    kept = Windows(lambda _: True)
    held: list[Any] = []

    def hold(first: int, array: Any) -> None:
        if first in (200, 750):
            held.append(memoryview(array[3]) if first == 200 else array.reshape(-1)[:5])

    want = a_pass(rows, kept, hold)
    mapped.clear()
    for part in held:
        part[0] = 99.0
    assert a_pass(rows, kept) == want
    assert mapped == [200, 700]


def test_the_last_batch_of_a_window_may_be_held_while_the_next_one_begins(rows: Any) -> None:
    """As a loop does, whose variable has it until the next batch is there."""
    kept = Windows(lambda _: True)
    held: list[Any] = []
    a_pass(rows, kept, lambda _first, array: held.__setitem__(slice(0, 1), [array]))
    held.clear()
    assert all(kept.take((0, first)) is not None for first in range(0, ROWS - 100, 100))
    assert kept.take((0, ROWS - 100)) is None


def test_few_windows_of_some_size_are_kept(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "KEPT_WINDOWS_MAX", 3)
    kept = Windows(lambda _: True)
    a_pass(rows, kept)
    assert sum(kept.take((0, first)) is not None for first in range(0, ROWS, 100)) <= 4
    monkeypatch.setattr(windows, "KEPT_BYTES_MIN", 1 << 20)
    a_pass(rows, kept)
    assert not kept.forget()


def test_they_are_let_go_where_there_is_no_room(
    rows: Any, mapped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Windows(lambda _: True)
    want = a_pass(rows, kept)
    counted, failures = MappedBlock.private_mu, [StorageIOError("no", errno=12)]

    def fail_once(block: MappedBlock, part: slice) -> Any:
        if failures:
            raise failures.pop()
        return counted(block, part)

    assert kept.take((0, 0)) is not None
    monkeypatch.setattr(MappedBlock, "private_mu", fail_once)
    assert a_pass(rows, kept) == want
    assert not failures
    assert kept.take((0, 1000)) is not None, "those of the new pass are kept"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked on Linux alone")
def test_a_stream_has_them_again_and_a_step_that_writes_changes_nothing(
    rows: Any, mapped: list[int], store_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    with mldb.open(store_path, mode="r") as db:
        loader = db.lake().export_to_dataloader(50, shuffle=False)
        passes = []
        for number in range(4):
            made = []
            for batch in loader:
                made.append(batch.numpy().tobytes())
                if number == 1:
                    batch.mul_(0)
                del batch
            passes.append(made)
        assert passes[0] == passes[1] == passes[2] == passes[3]
        assert isinstance(next(iter(loader)), torch.Tensor)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_its_own(rows: Any) -> None:
    """What a child writes is seen by no pass of its parent."""
    kept = Windows(rows.log.fs.is_unwritten)
    want = a_pass(rows, kept)
    child = os.fork()
    if not child:
        status = 1
        try:
            lender = Lender(rows, kept)
            lender.take(slice(0, 50))[:] = 3
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert a_pass(rows, kept) == want
