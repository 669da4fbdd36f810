"""What goes ahead of a pass prepares what it reads, and changes nothing of it."""

from __future__ import annotations

import _thread
import gc
import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import CorruptError, StorageIOError
from mldb.lake.order.pass_order import Windowed
from mldb.lake.order.plan import BatchRows, Plan, Shard
from mldb.lake.rows import pieces as pieces_module
from mldb.lake.rows.block import MappedBlock
from mldb.lake.rows.pieces import Reach, Runs, Strata
from mldb.lake.stream import scout as scout_module
from mldb.lake.stream import streams
from mldb.lake.stream.scout import Scout
from mldb.log.fs import advice
from tests.lake.test_interrupted import Case
from tests.support.lakes import DIM, KINDS, db, raw, stream
from tests.support.parts import some_and_many

__all__ = ["db"]

torch = pytest.importorskip("torch")

ROWS = 5000
PIECE_ROWS = 40
OPTIONS: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in KINDS if kind not in ("langevin", "walk", "windowed")},
    "windowed": {"window_rows": 2048},
}


@pytest.fixture(autouse=True)
def _scouted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small lakes are scouted as large ones are."""
    monkeypatch.setattr(streams, "_SCOUTED_BYTES", 0)
    monkeypatch.setattr(pieces_module, "_PIECE_BYTES", 4 * DIM * PIECE_ROWS)
    monkeypatch.setattr(pieces_module, "_LEAST_BYTES", 0)


@pytest.fixture
def lake(db: mldb.MLDatabase, rng: np.random.Generator) -> Any:
    """Three blocks, of which rows were removed."""
    lake = db.lake(dim=DIM)
    for count in (3000, 1500, 500):
        lake.add_splats(rng.standard_normal((count, DIM)), alpha=rng.integers(1, 9, count))
    lake.remove(np.arange(0, ROWS, 7))
    return lake


def reopened(lake: Any, **options: Any) -> Any:
    """The lake as a process finds it that has verified nothing."""
    return mldb.open(lake._host.path, mode="r", **options).lake()


def prepared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Note the thread and the stored rows of every run that is prepared.

    Who reads waits for the first piece: on a busy machine it was through with all before the thread
    had its first turn.
    """
    runs: list[tuple[int, int, int]] = []
    prepare = MappedBlock.prepare
    begin = Scout._begin

    def begin_and_wait(scout: Scout) -> None:
        begin(scout)
        until(lambda: scout._done.qsize() > 0)

    def note(block: MappedBlock, rows: slice) -> None:
        prepare(block, rows)
        runs.append((threading.get_ident(), block.start + rows.start, block.start + rows.stop))

    monkeypatch.setattr(MappedBlock, "prepare", note)
    monkeypatch.setattr(Scout, "_begin", begin_and_wait)
    return runs


def unscouted(lake: Any, kind: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[bytes]:
    with monkeypatch.context() as patch:
        patch.setattr(streams, "_SCOUTED_BYTES", 1 << 60)
        return raw(stream(lake, kind, **options))


@pytest.mark.parametrize("verify", ["first", "always", "never"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_pass_has_the_same_batches(
    lake: Any, kind: str, verify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS[kind]
    want = unscouted(lake, kind, monkeypatch, **options)
    runs = prepared(monkeypatch)
    fresh = reopened(lake, verify=verify)
    assert raw(stream(fresh, kind, **options)) == want
    others = {thread for thread, _, _ in runs} - {threading.get_ident()}
    small = kind in ("systematic", "bottom_k")  # draws of few rows leave most unread
    assert len(others) == (0 if small else 1)
    for _ in range(5):  # who reads may overtake the scout, and be done before all is prepared
        runs.clear()
        assert raw(stream(fresh, kind, **options)) == want
        if not runs or verify != "first" or kind != "sequential":
            break
    if verify == "first" and kind == "sequential":
        assert not runs, "what is verified is not prepared again"


REFUSALS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no such call": lambda patch: patch.setattr(advice, "_madvise", lambda: None),
    "the kernel refuses": lambda patch: patch.setattr(advice, "_madvise", lambda: lambda *_: -1),
    "nobody knows what is in memory": lambda patch: patch.setattr(advice, "_mincore", lambda: None),
    "nothing is in memory": lambda patch: patch.setattr(
        MappedBlock, "is_resident", lambda *_: False
    ),
    "an error of the disk": lambda patch: patch.setattr(MappedBlock, "prepare", _bad_disk),
    "no memory": lambda patch: patch.setattr(MappedBlock, "prepare", _no_memory),
    "asking fails": lambda patch: patch.setattr(MappedBlock, "read_ahead", _bad_disk),
    "no thread": lambda patch: patch.setattr(_thread, "start_new_thread", _no_thread),
}


def _bad_disk(*_: Any) -> None:
    raise StorageIOError("bad disk", errno=5)


def _no_memory(*_: Any) -> None:
    raise MemoryError


def _no_thread(function: Any, arguments: Any) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("kind", ["sequential", "permutation", "windowed"])
@pytest.mark.parametrize("why", REFUSALS)
def test_what_cannot_be_prepared_changes_nothing(
    lake: Any, kind: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = unscouted(lake, kind, monkeypatch, **OPTIONS[kind])
    fresh = reopened(lake)
    REFUSALS[why](monkeypatch)
    if why == "no thread":  # that of the stream is another matter
        monkeypatch.setattr(threading, "_start_new_thread", _real_start, raising=False)
    assert raw(stream(fresh, kind, **OPTIONS[kind])) == want


_real_start = _thread.start_new_thread


@pytest.mark.parametrize("kind", ["sequential", "permutation", "windowed"])
def test_damage_is_told_where_its_rows_come(
    lake: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread meets it first, ends, and says nothing."""
    fresh, *readers = (reopened(lake) for _ in range(3))
    block = fresh.rows().block(1)
    name = fresh.rows().scope.source.door.file(fresh.rows().scope.view, block.entry)
    place = block.entry.offset + block.column("mu").offset + 700 * 4 * DIM
    path = os.path.join(fresh.rows().log.fs.root, name)
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    found = []
    for reader, limit in zip(readers, (1 << 60, 0), strict=True):
        monkeypatch.setattr(streams, "_SCOUTED_BYTES", limit)
        got: list[bytes] = []
        damaged = stream(reader, kind, **OPTIONS[kind])
        with pytest.raises(CorruptError, match="is damaged"):
            got.extend(batch.numpy().tobytes() for batch in damaged)
        found.append(got)
    assert found[0] == found[1]


def test_nothing_is_prepared_where_no_thread_is_asked_for(
    lake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = prepared(monkeypatch)
    raw(stream(reopened(lake), prefetch=0))
    assert not runs


def test_ranks_that_read_little_of_what_lies_around_their_rows_prepare_nothing(
    lake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = prepared(monkeypatch)
    for kind, world in (("sequential", 2), ("permutation", 5)):
        raw(stream(reopened(lake), kind, rank=0, world=world))
    assert not runs
    raw(stream(reopened(lake), "permutation", rank=1, world=4))
    assert runs


class Counted:
    """Pieces that say what was asked of them; each waits for its turn."""

    def __init__(self, count: int, begins: int, reach: Callable[[int], Reach]) -> None:
        self.count, self.begins, self.reach = count, begins, reach
        self.done: list[int] = []
        self.here = True
        self.turn = threading.Semaphore(0)
        self.entered = threading.Event()

    def is_resident(self, piece: int) -> bool:
        return self.here

    def ask(self, first: int, stop: int) -> None:
        assert first < stop

    def prepare(self, piece: int) -> None:
        self.entered.set()
        self.turn.acquire()
        self.done.append(piece)


def batches(count: int, stride: int = 1) -> list[BatchRows]:
    return [BatchRows(stride * number, np.arange(10), None) for number in range(count)]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


def test_it_begins_behind_the_first_batch_and_stays_a_bounded_way_ahead() -> None:
    pieces = Counted(100, 1, lambda stop: Reach(stop // 10, stop // 10 + 3))
    scout = Scout(pieces, 10, 1)
    pieces.turn.release(100)
    watched = scout.watching(batches(50))
    next(watched)
    time.sleep(0.02)
    assert pieces.done == []
    for number in range(1, 20):
        next(watched)
        until(lambda number=number: pieces.done[-1:] == [number + 3])  # type: ignore[misc]
    assert pieces.done == list(range(2, 23))
    scout.close()
    scout.close()
    next(watched)
    time.sleep(0.02)
    assert pieces.done[-1] == 22


def test_pieces_that_were_read_meanwhile_are_passed_over() -> None:
    pieces = Counted(100, 0, lambda stop: Reach(stop // 10, stop // 10 + 3))
    scout = Scout(pieces, 10, 1)
    watched = scout.watching(batches(50))
    next(watched)
    assert pieces.entered.wait(10)
    for _ in range(19):
        next(watched)
    pieces.turn.release(100)
    until(lambda: len(pieces.done) >= 4)
    assert pieces.done == [1, 20, 21, 22]
    scout.close()


@pytest.mark.parametrize("here", [True, False])
def test_who_reads_waits_where_the_disk_has_what_it_needs(here: bool) -> None:
    pieces = Counted(8, 0, lambda stop: Reach(0, 8, 4))
    pieces.here = here
    scout = Scout(pieces, 10, 1)
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.append(next(scout.watching(batches(3))).number))
    reader.start()
    for _ in range(3):
        pieces.turn.release()
    until(lambda: len(pieces.done) == 3)
    if here:
        reader.join(10)
        assert got == [0]
    else:
        time.sleep(0.02)
        assert got == []
    pieces.turn.release(9)
    reader.join(10)
    assert got == [0]
    until(lambda: len(pieces.done) == 8)
    assert pieces.done == list(range(8))
    scout.close()


def test_a_wait_ends_with_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Counted(8, 0, lambda stop: Reach(0, 8, 4))
    pieces.here = False
    monkeypatch.setattr(pieces, "prepare", _bad_disk)
    scout = Scout(pieces, 10, 1)
    assert len(list(scout.watching(batches(3)))) == 3
    scout.close()


def test_closing_waits_for_the_piece_that_is_prepared_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scout_module, "_PATIENCE", 0.05)
    pieces = Counted(8, 0, lambda stop: Reach(0, 8))
    scout = Scout(pieces, 10, 1)
    next(scout.watching(batches(3)))
    assert pieces.entered.wait(10)
    begin = time.monotonic()
    scout.close()
    assert 0.05 <= time.monotonic() - begin < 5
    pieces.turn.release(9)
    until(lambda: len(pieces.done) == 1)
    monkeypatch.setattr(scout_module, "_PATIENCE", 60.0)
    scout._pid = -1  # as in a forked child, where there is no thread
    scout._prepared = 0
    scout.close()


def test_a_pass_that_is_left_leaves_no_thread(lake: Any) -> None:
    gc.collect()
    before = _thread._count()
    for kind, taken in itertools.product(("sequential", "permutation", "windowed"), (1, 2, 5)):
        iterator = iter(stream(reopened(lake), kind, **OPTIONS[kind]))
        raw(itertools.islice(iterator, taken))
        if taken == 5:
            iterator.close()
        del iterator
        gc.collect()
        until(lambda: _thread._count() <= before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of finalizers
@some_and_many("points", 30, 120)
@pytest.mark.parametrize("kind", ["sequential", "windowed"])
def test_ctrl_c_at_any_step(lake: Any, kind: str, points: int) -> None:
    """Nothing is verified when a pass begins, so that each is prepared."""

    class Fresh(Case):
        def loader(self) -> Any:
            return stream(reopened(lake), self.kind, **self.options)

    before = _thread._count()
    case = Fresh(lake, kind, **OPTIONS[kind])
    for number in case.points(points):
        case.run(number)
        gc.collect()
        until(lambda: _thread._count() <= before)


@pytest.mark.parametrize("verify", ["first", "always"])
def test_rows_that_were_prepared_are_not_asked_for_again(
    lake: Any, verify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = reopened(lake, verify=verify).rows().block(0)
    asked: list[slice] = []
    door = type(block._scope.source.door)
    part = door.part

    def note(self: Any, *place: Any) -> Any:
        asked.append(slice(place[4] // (4 * DIM), place[5] // (4 * DIM)))
        return part(self, *place)

    monkeypatch.setattr(door, "part", note)
    for first in (400, 800, 2000, 2400):
        block.prepare(slice(first, first + 400))
    asked.clear()
    for low, high in ((2000, 2800), (2100, 2101), (2799, 2801), (1999, 2001), (400, 500)):
        block.verify("mu", slice(low, high))
    known = [] if verify == "first" else [slice(2000, 2800), slice(2100, 2101)]
    assert asked == [*known, slice(2799, 2801), slice(1999, 2001), slice(400, 500)]
    assert not block.is_verified("mu")
    block.verify("kappa", slice(2000, 2800))
    block.prepare(slice(0, 3000))
    assert block.is_verified("mu") == (verify == "first")


# --- which pieces ---------------------------------------------------------------------------------


def test_runs_cover_all_rows_once(lake: Any) -> None:
    rows = lake.rows()
    runs = Runs(rows)
    numbers = [range(len(rows))[runs.rows_of(piece)] for piece in range(runs.count)]
    assert list(itertools.chain(*numbers)) == list(range(len(rows)))
    assert {len(part) for part in numbers[:-1]} == {PIECE_ROWS}
    assert Runs(rows, whole=True).reach(1) == Reach(0, runs.count)
    for stop in (1, PIECE_ROWS, PIECE_ROWS + 1, len(rows)):
        piece = (stop - 1) // PIECE_ROWS + 1
        assert runs.reach(stop) == Reach(piece, piece + 8)


@pytest.mark.parametrize("length", [1, 700, 1024, 5000, 6144, 9999])
def test_strata_are_prepared_before_a_window_reads_them(lake: Any, length: int) -> None:
    order = Windowed(length, 3, 1, 1024, 2)
    strata = Strata(lake.rows(), order)
    seen = [int(strata.rows_of(piece).start) // 1024 for piece in range(strata.count)]
    assert sorted(seen) == list(range(-(-length // 1024)))
    for batch in Plan(order=order, batch_size=64).read(0, Shard()):
        reach = strata.reach(batch.number * 64 + len(batch.rows))
        used = set((batch.rows // 1024).tolist())
        assert used <= set(seen[max(reach.first - 2, 0) : reach.stop])
        assert reach.first < reach.needed <= reach.stop


def test_parts_are_those_of_the_blocks(lake: Any) -> None:
    rows = lake.rows()
    live = rows.stored_numbers(np.arange(len(rows)))
    for low, high in ((0, 1), (0, len(rows)), (2500, 2600), (3900, 4285), (5, 5)):
        found = [
            range(block.start + part.start, block.start + part.stop)
            for block, part in rows.parts(slice(low, high))
        ]
        numbers = list(itertools.chain(*found))
        want = range(live[low], live[high - 1] + 1) if high > low else range(0)
        assert numbers == list(want)
        if found:
            assert len(found) <= 3
    assert [block.start for block, _ in rows.parts(slice(0, len(rows)), 1000)] == [0, 3000]
