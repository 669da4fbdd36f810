"""Lookups among many sealed segments, through the directory: warm, missing, in a new process.

Segments of a few versions, made in memory and copied to a folder, so that no disk takes part in
growing them.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

import mldb
from mldb.log.directory.merge import MergeInput, merge_indexes
from mldb.log.index.mapped import MappedIndex
from tests.bench.sections import fresh_folder
from tests.bench_growth.measure import at_most, median_seconds, seconds, unbounded
from tests.bench_growth.row import Row

FULL = (20, 200, 2_000)
QUICK = (20, 200)
_ENTRIES = 4
_NAMES = 65
_MERGED = (8, 1 << 15)  # segments of so many versions each, whose merging is timed
_TIERED = 4  # times as many segments, each of as many fewer versions, go through all tiers

_FIRST_READ = """
import json, sys, time
import mldb
with mldb.open(sys.argv[1], mode="r") as db:
    db["newest"]
    started = time.perf_counter()
    db["first"]
    print(json.dumps(time.perf_counter() - started))
"""


def rows(quick: bool) -> list[Row]:
    """Grow the stores and measure."""
    found: list[Row] = []
    for size in QUICK if quick else FULL:
        with fresh_folder() as root:
            found += _lookups(root / "store", size)
    per_segment = 1 << 12 if quick else _MERGED[1]
    with fresh_folder() as root:
        found += _merging(root, _MERGED[0], per_segment)
    return found


def _grow(path: Path, segments: int) -> None:
    """A name at the start, many names over all segments, one at the end; and a directory."""
    value = np.zeros(4, np.float32)
    with mldb.open(path, durability="os", segment_entries=_ENTRIES) as db:
        db["first"] = value
        for number in itertools.count():
            if len(db._state.parts.sealed) >= segments:
                break
            db[f"name{number % _NAMES}"] = value
        db["newest"] = value
        maker = db._log._maker
        assert maker is not None
        maker.make()


def _lookups(path: Path, size: int) -> Iterator[Row]:
    _grow(path, size)
    full = FULL[-1]
    opened: list[mldb.MLDatabase] = []
    opening = seconds(lambda: opened.append(mldb.open(path, mode="r"))) * 1e3
    yield unbounded("open", size, opening, "ms")
    with opened.pop() as db:
        newest = median_seconds(lambda: db["newest"], 99) * 1e6
        first = median_seconds(lambda: db["first"], 99) * 1e6
        missing = median_seconds(lambda: "none" in db, 99) * 1e6
        fresh = map("none{}".format, itertools.count())
        other = median_seconds(lambda: next(fresh) in db, 99) * 1e6
        bound = 3 * newest + 20
        yield unbounded("a name of the newest segment, warm", size, newest, "us")
        yield at_most("a name written once at the start, warm", size, first, "us", bound, full)
        yield at_most("a missing name, warm", size, missing, "us", bound, full)
        yield unbounded("another missing name each time", size, other, "us")
        listing = median_seconds(db.names, 9) * 1e3
        yield unbounded(f"a listing of {_NAMES + 2} names", size, listing, "ms")
        past = median_seconds(lambda: db.history("name1"), 9) * 1e3
        yield unbounded("the history of a name", size, past, "ms")
        figures = db.stats()["directory"]
        touched = figures["touched"] / max(figures["lookups"], 1)
        yield unbounded("parts that a lookup touches", size, touched, "parts")
    found = [_first_read(path) for _ in range(3)]
    yield at_most("the first of these in a new process", size, sorted(found)[1], "ms", 5, full)


def _first_read(path: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_READ, str(path)], check=True, capture_output=True, text=True
    )
    return 1e3 * float(json.loads(done.stdout))


def _merging(root: Path, segments: int, versions: int) -> Iterator[Row]:
    """What making a part costs, and what a sealed version holds in memory."""
    total = segments * versions
    _grow_equal(root / "same", segments, versions, _same_name)
    _grow_equal(root / "own", segments, versions, _own_name)
    with mldb.open(root / "same", mode="r") as db:
        # Each version is merged once a tier; four segments of this size make the next one.
        spent = median_seconds(partial(merge_indexes, _inputs(db)), 3) * 1e6 / total
        yield at_most("making a part, for each version and tier", total, spent, "us", 3, total)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for name in range(0, versions, max(versions // 2_000, 1)):
            assert f"layer{name}/weight" in db
        held = (tracemalloc.get_traced_memory()[0] - before) / total
        tracemalloc.stop()
        yield at_most("private memory of a sealed version", total, held, "bytes", 64, total)
    with mldb.open(root / "own", mode="r") as db:
        spent = median_seconds(partial(merge_indexes, _inputs(db)), 3) * 1e6 / total
        figure = "the same, names of their own in each segment"
        yield at_most(figure, total, spent, "us", 3, total)
    for kind, name_of in (("the same names", _same_name), ("names of their own", _own_name)):
        count, size = _TIERED * segments, versions // _TIERED
        worked = _grow_equal(root / kind, count, size, name_of) * 1e6 / total
        figure = f"the maker's work for {count} segments, {kind}, for each version"
        yield at_most(figure, total, worked, "us", 3, total)


def _same_name(_segment: int, name: int) -> str:
    return f"layer{name}/weight"


def _own_name(segment: int, name: int) -> str:
    return f"layer{name}/run{segment}/weight"


def _grow_equal(
    path: Path, segments: int, versions: int, name_of: Callable[[int, int], str]
) -> float:
    """Seal so many segments, have parts made behind each, and return how long that took."""
    spent = 0.0
    with (
        mock.patch("mldb.log.directory.directory.DUE", 1 << 30),  # so that no thread makes them
        mldb.open(path, durability="os", segment_entries=versions) as db,
    ):
        maker = db._log._maker
        assert maker is not None
        for number in range(segments + 1):  # the last one stays open
            with db.transaction() as txn:
                for name in range(versions):
                    txn[name_of(number, (name * 7919 + number) % versions)] = np.float32(1)
            spent += seconds(maker.make)
        assert len(db._state.parts.sealed) == segments
        assert db.stats()["directory"]["made"] >= segments // 4
    return spent


def _inputs(db: mldb.MLDatabase) -> list[MergeInput]:
    indexes = [part.index for part in db._state.parts.sealed]
    mapped = [index for index in indexes if isinstance(index, MappedIndex)]
    return [MergeInput(index.columns(), number) for number, index in enumerate(mapped)]
