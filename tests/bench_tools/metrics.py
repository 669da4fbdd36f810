"""Metrics: what a call of ``db.log`` costs a loop, and what reading a long curve does.

Calls are measured in rounds. The bound is for the fastest, in which nothing else had the processor;
the median of the rounds and the processor time stand beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_most
from tests.bench_compaction.runner import bytes_in

VALUES = {"loss": 0.3, "lr": 1e-3, "grad/norm": 1.7, "acc": 0.5, "tokens": 4096.0}


@dataclass(frozen=True)
class Sizes:
    """What is measured; ``asked``: the bounds are meant for these sizes."""

    rounds: int = 20
    calls: int = 2000
    points: int = 1_000_000
    single: int = 100_000
    sets: int = 20_000
    asked: bool = True


FULL = Sizes()
QUICK = Sizes(3, 200, 5_000, 1_000, 500, asked=False)


@dataclass(frozen=True)
class Timing:
    """Microseconds of a call: of the fastest round, of the median one, and of the processor."""

    fastest: float
    median: float
    processor: float


def timed(sizes: Sizes, call: Callable[[int], object]) -> Timing:
    """Call it in rounds with a number that counts up."""
    wall: list[float] = []
    spent: list[float] = []
    step = 0
    for _ in range(sizes.rounds):
        started, processor = time.perf_counter(), time.thread_time()
        for _ in range(sizes.calls):
            call(step)
            step += 1
        spent.append((time.thread_time() - processor) / sizes.calls * 1e6)
        wall.append((time.perf_counter() - started) / sizes.calls * 1e6)
    return Timing(min(wall), statistics.median(wall), min(spent))


def logging(sizes: Sizes) -> list[Row]:
    """One call after another, stored at once and buffered."""
    found = []
    for figure, buffer, must in (
        ("db.log of 5 scalars, no fsync", False, 60),
        ("db.log of 5 scalars, buffered", True, 3),
    ):
        with fresh_folder() as root, mldb.open(root / "store", durability="os") as db:
            measured = timed(sizes, lambda step: db.log(VALUES, step=step, buffer=buffer))  # noqa: B023
        found += [
            at_most(figure, measured.fastest, "us", must, asked=sizes.asked),
            Row(f"{figure}: median of the rounds", measured.median, "us"),
            Row(f"{figure}: processor time", measured.processor, "us"),
        ]
    return found


def curve(sizes: Sizes) -> list[Row]:
    """A curve logged with a buffer, and one of commits: bytes, and time of a first read."""
    found = []
    for buffer, points in ((True, sizes.points), (False, sizes.single)):
        with fresh_folder() as root:
            path = root / "store"
            with mldb.open(path, durability="os") as db:
                for step in range(points):
                    db.log(VALUES, step=step, buffer=buffer)
            seconds, warm = _read(path, points)
            how = "buffered" if buffer else "a commit each"
            what = f"a curve of {points:,} points, {how}"
            found += [
                Row(f"{what}: first read", seconds * 1e3, "ms"),
                Row(f"{what}: read again", warm * 1e3, "ms"),
                Row(f"{what}: bytes of a call of 5", bytes_in(path) / points, "bytes"),
            ]
    return found


def _read(path: Path, points: int) -> tuple[float, float]:
    with mldb.open(path, mode="r") as db:
        spent = []
        for _ in range(3):
            started = time.perf_counter()
            columns = db.metrics("loss")
            spent.append(time.perf_counter() - started)
            assert len(columns) == points
    return spent[0], min(spent[1:])


def many_sets(sizes: Sizes) -> list[Row]:
    """Each call with another set of names: what a lookup by name costs then."""
    with fresh_folder() as root, mldb.open(root / "store", durability="os") as db:
        started = time.perf_counter()
        for step in range(sizes.sets):
            db.log({"loss": step, f"sample/{step}": 1.0}, step=step)
        logged = time.perf_counter() - started
        started = time.perf_counter()
        assert len(db.metrics("loss")) == sizes.sets
        read = time.perf_counter() - started
        started = time.perf_counter()
        assert len(db.metrics(f"sample/{sizes.sets - 1}")) == 1
        one = time.perf_counter() - started
    what = f"{sizes.sets:,} sets of names"
    return [
        Row(f"{what}: db.log of 2", logged / sizes.sets * 1e6, "us"),
        Row(f"{what}: the curve in all of them", read * 1e3, "ms"),
        Row(f"{what}: a curve in one", one * 1e3, "ms"),
    ]


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    sizes = QUICK if quick else FULL
    return [*logging(sizes), *curve(sizes), *many_sets(sizes)]
