"""Seals among many segments, heads behind many rewinds, reads among many kept commits."""

from __future__ import annotations

import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from mldb.database import MLDatabase
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.log import Log
from mldb.log.manifest import Kept
from tests.bench_growth.row import Row
from tests.support.logs import open_log, store

_FEW = 10
_NAME = "a"
_SEED = 9


def rows(quick: bool) -> list[Row]:
    """Measure; *quick* at a tenth of the sizes."""
    by = 10 if quick else 1
    return [*_seals(10_000 // by), *_rewinds(6000 // by), *_kept(1_000_000 // by)]


def _at_most(figure: str, size: int, value: float, unit: str, limit: float) -> Row:
    return Row(figure, size, value, unit, f"<= {limit:g} {unit}", value <= limit)


def _timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# --- seals ----------------------------------------------------------------------------------------


def _seals(size: int) -> Iterator[Row]:
    """Every commit seals the segment before it; in memory, so that no disk hides the work.

    Two spans of ``CHANGES_MAX`` seals are compared, each with one whole manifest in it, and the
    seals of the two stores take turns.
    """
    few, many = (open_log(MemoryFileSystem(), segment_entries=1) for _ in range(2))
    for number in range(size):
        store(many, b"\x01%d" % (number % 7), b"x")
    at: dict[int, list[float]] = {_FEW: [], size: []}
    for number in range(fmt.CHANGES_MAX + 1):
        if number % _FEW == 0:
            few = open_log(MemoryFileSystem(), segment_entries=1)
            for _ in range(_FEW):
                store(few, b"\x01", b"x")
        for count, log in ((_FEW, few), (size, many)):
            at[count].append(_timed(partial(store, log, b"\x01", b"x")))
    for count, seconds in at.items():
        yield Row("seal + install", count, 1e3 * statistics.median(seconds), "ms", "", None)
    ratio = statistics.median(at[size]) / statistics.median(at[_FEW])
    yield _at_most(f"seal + install, against at {_FEW}", size, ratio, "x", 2)
    mean = 1e3 * statistics.fmean(at[size])
    yield Row("seal + install, mean with its whole manifest", size, mean, "ms", "", None)
    worst = 1e3 * max(at[size])
    yield Row("seal + install with the whole manifest", size, worst, "ms", "", None)
    yield Row("close", size, 1e3 * _timed(many.close), "ms", "", None)
    reopened: list[Log] = []
    opening = _timed(lambda: reopened.append(open_log(many.fs, "r")))
    yield Row("open", size, 1e3 * opening, "ms", "", None)


# --- rewinds --------------------------------------------------------------------------------------


@contextmanager
def _rewound(count: int, back: int | None) -> Iterator[MLDatabase]:
    """A store of so many rewinds, each *back* epochs, or all to the first commit."""
    with MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        epoch = 0
        db.store_tensor(_NAME, np.arange(2), epoch=epoch)
        for number in range(count):
            for _ in range(3):
                epoch += 1
                db.store_tensor(_NAME, np.full(2, number), epoch=epoch)
            _rewind(db, back)
            epoch = db.epoch
        yield db


def _rewind(db: MLDatabase, back: int | None) -> None:
    db.rewind(0 if back is None else max(db.epoch - back, 0))


def _rewinds(size: int) -> Iterator[Row]:
    for back, shape in ((1, "each one epoch back"), (None, "all to the first commit")):
        gc.collect()
        tracemalloc.start()
        with _rewound(size, back) as db:
            before = tracemalloc.get_traced_memory()[0]
            rng = random.Random(_SEED)
            for _ in range(5000):
                db.query_tensor(_NAME, as_of=rng.randrange(db.epoch + 1))
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] - before
            every = before + held
            tracemalloc.stop()
            yield from _of_rewound(db, size, shape, back, rng)
            yield _at_most(f"cache after 5,000 as_of, {shape}", size, held / 2**20, "MiB", 64)
            yield Row(f"all Python objects, {shape}", size, every / 2**20, "MiB", "", None)


def _of_rewound(
    db: MLDatabase, size: int, shape: str, back: int | None, rng: random.Random
) -> Iterator[Row]:
    more: list[float] = []
    for _ in range(60):
        db.store_tensor(_NAME, np.zeros(2), epoch=db.epoch + 1)
        more.append(_timed(lambda: _rewind(db, back)))
    yield _at_most(f"one more rewind, {shape}", size, 1e3 * statistics.median(more), "ms", 3)
    fresh: list[float] = []
    epochs = db.epoch
    for _ in range(200):
        db._log.head().epochs.clear()
        epoch = rng.randrange(epochs + 1)
        fresh.append(_timed(partial(db.query_tensor, _NAME, as_of=epoch)))
    yield _at_most(f"fresh as_of, {shape}", size, 1e3 * statistics.median(fresh), "ms", 0.3)
    versions = len(db._log.head().versions(b"\x01" + _NAME.encode()))
    seconds = min(_timed(lambda: db.history(_NAME)) for _ in range(3))
    with MLDatabase.on(MemoryFileSystem(), durability="os") as plain:
        for number in range(versions):
            plain.store_tensor(_NAME, np.full(2, number))
        straight = min(_timed(lambda: plain.history(_NAME)) for _ in range(3))
    yield Row(f"history, {shape}", size, 1e3 * seconds, "ms", "", None)
    figure = f"history of {versions} versions, {shape}, against without rewinds"
    yield _at_most(figure, size, seconds / straight, "x", 2)


# --- kept commits ---------------------------------------------------------------------------------


def _kept(size: int) -> Iterator[Row]:
    """As-of reads of one store, now with a kept set and now without."""
    with MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        for epoch in range(200):
            db.store_tensor(_NAME, np.full(2, epoch), epoch=epoch)
        state = db._log.state
        last = db.lsn
        own = [(lsn, lsn) for lsn in range(1, last + 1)]
        ranges: Kept = (*own, *((2 * lsn, 2 * lsn) for lsn in range(last, size)))
        plain = state.manifest
        pruned = replace(plain, kept=ranges)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(2000):
            state.manifest = pruned if turn % 2 else plain
            state.publish()
            read = _timed(partial(db.query_tensor, _NAME, as_of=turn // 10))
            seconds[turn % 2 == 1].append(read)
        state.manifest = plain
        state.publish()
    with_kept, without = (statistics.median(seconds[has]) for has in (True, False))
    yield Row("fresh as_of read", size, 1e6 * with_kept, "us", "", None)
    yield _at_most(
        "as_of read with kept commits, against none", size, with_kept / without, "x", 1.2
    )


if __name__ == "__main__":
    import sys

    for row in rows("quick" in sys.argv):
        print(row)
