"""Names: how many there are, lists of them, missing ones, their histories, and listings that hold.

Names are stored in random order, so that every segment has some of every range.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import mldb
from mldb.log.view import View
from mldb.write.rules import ReadCheck
from tests.bench.sections import fresh_folder
from tests.bench_growth.measure import (
    at_most,
    median_seconds,
    seconds,
    unbounded,
)
from tests.bench_growth.row import Row

SEGMENTS = 15
_STEP = 2_000
_VALUE = np.float32(1)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is grown: names, names beside missing ones, versions, segments of one version each."""

    names: tuple[int, ...]
    among: tuple[int, ...]
    versions: tuple[int, ...]
    segments: tuple[int, ...]


FULL = Sizes(
    (3_000, 30_000, 300_000),
    (2_000, 20_000, 200_000),
    (10_000, 100_000, 1_000_000),
    (20, 200, 2_000),
)
QUICK = Sizes((3_000, 30_000), (2_000, 20_000), (10_000, 100_000), (20, 200))


def rows(quick: bool) -> list[Row]:
    """Grow the stores and measure."""
    return measured(QUICK if quick else FULL)


def measured(sizes: Sizes) -> list[Row]:
    """Measure at these sizes; bounds are meant for the largest of the full run."""
    found: list[Row] = []
    for size in sizes.names:
        with fresh_folder() as root:
            found += _listings(root / "store", size)
    for size in sizes.among:
        with fresh_folder() as root:
            found += _missing(root / "store", size)
    for size in sizes.versions:
        with fresh_folder() as root:
            found += _history(root / "store", size)
    for size in sizes.segments:
        with fresh_folder() as root:
            found += _spread_history(root / "store", size)
    return found


def _name(number: int) -> str:
    return f"layer{number:07d}/weight"


def _grow(path: Path, count: int, entries: int | None = None) -> None:
    options: dict[str, Any] = {} if entries is None else {"segment_entries": entries}
    order = np.random.default_rng(9).permutation(count).tolist()
    with mldb.open(path, durability="os", **options) as db:
        for low in range(0, count, _STEP):
            with db.transaction() as txn:
                for number in order[low : low + _STEP]:
                    txn.store_tensor(_name(number), _VALUE)


def _listings(path: Path, size: int) -> Iterator[Row]:
    _grow(path, size, max(size // SEGMENTS, 1))
    full = FULL.names[-1]
    with mldb.open(path, durability="os") as db:
        first = seconds(lambda: len(db)) * 1e3
        yield at_most("len(db), first", size, first, "ms", 300, full)

        def count_one_more() -> None:
            db[_name(0)] = _VALUE
            assert len(db) == size

        again = median_seconds(count_one_more, 9) * 1e3
        yield at_most("a put and len(db), then", size, again, "ms", 5, full)
        names = median_seconds(db.names, 3) * 1e3
        yield at_most("db.names()", size, names, "ms", 600, full)
        begun = median_seconds(lambda: next(iter(db)), 9) * 1e3
        yield unbounded("first name of iter(db)", size, begun, "ms")
        few = median_seconds(lambda: db.names("layer00000"), 9) * 1e3
        yield unbounded("db.names(prefix) of 100", size, few, "ms")
        locked: list[float] = []
        whole = median_seconds(lambda: _list_and_store(db, locked), 3) * 1e3
        yield unbounded("a transaction that lists", size, whole, "ms")
        yield unbounded("of it under the commit lock", size, statistics.median(locked) * 1e3, "ms")


def _list_and_store(db: mldb.MLDatabase, locked: list[float]) -> None:
    """List all names, let others commit, and commit; note what the check takes under the lock."""
    check = ReadCheck.__call__
    spent: list[float] = []

    def timed(self: ReadCheck, view: View) -> None:
        started = time.perf_counter()
        check(self, view)
        spent.append(time.perf_counter() - started)

    with mock.patch.object(ReadCheck, "__call__", timed), db.transaction() as txn:
        assert sum(1 for _ in txn) >= 1
        txn[_name(0)] = _VALUE
        for number in range(10):
            db[_name(number)] = _VALUE
    locked.append(spent[-1])


def _missing(path: Path, size: int) -> Iterator[Row]:
    _grow(path, size)
    order = np.random.default_rng(10).permutation(size).tolist()
    with mldb.open(path, mode="r") as db:
        hits, misses = [], []
        for number in order[:2_000]:
            name = _name(number)
            hits.append(seconds(lambda: db.get(name)))  # noqa: B023 - called at once
            other = f"{name}x"
            misses.append(seconds(lambda: db.get(other)))  # noqa: B023
        hit, miss = statistics.median(hits), statistics.median(misses)
        yield unbounded("db.get of a name", size, hit * 1e6, "us")
        ratio = at_most("db.get of a missing name", size, miss / hit, "x a hit", 2, FULL.among[-1])
        yield ratio


def _history(path: Path, size: int) -> Iterator[Row]:
    with mldb.open(path, durability="os") as db:
        for number in range(size):
            db.store_tensor("x", _VALUE, epoch=number // 1_000)
    with mldb.open(path, mode="r") as db:
        spent = median_seconds(lambda: db.history("x"), 3)
        yield at_most("db.history of one name", size, spent, "s", 3, FULL.versions[-1])


def _spread_history(path: Path, size: int) -> Iterator[Row]:
    with mldb.open(path, durability="os", segment_entries=1) as db:
        for number in range(size):
            db.store_tensor("x", _VALUE, epoch=number)
    with mldb.open(path, mode="r", max_mapped=2 * size) as db:
        spent = median_seconds(lambda: db.history("x"), 5) * 1e3
        full = FULL.segments[-1]
        yield at_most("db.history, one version a segment", size, spent, "ms", 20, full)
