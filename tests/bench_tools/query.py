"""Queries on a catalogue of a million versions: warm, as of another epoch each time, and cold.

The store has 1,000 names and 1,000 epochs, in each of which every name is stored. Warm is one
handle; no epoch is asked about twice. Cold is the first query of a process that has opened the
store, imports of DuckDB and sqlglot included. The bounds are for the median; the processor time
stands beside it, since the machine may have other work.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_most

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
SHORT: Final = "SELECT tensors WHERE type=weights ORDER BY creation_time"

_COLD: Final = """
import json, sys, time
import numpy
import mldb

db = mldb.open(sys.argv[1], mode="r")
began, spent = time.perf_counter(), time.process_time()
names = db.query.execute_query(sys.argv[2])
wall, spent = time.perf_counter() - began, time.process_time() - spent
print(json.dumps([wall * 1e3, spent * 1e3, len(names)]))
"""


@dataclass(frozen=True)
class Sizes:
    """What is measured; ``asked``: the bounds are meant for these sizes."""

    names: int = 1_000
    epochs: int = 1_000
    repeats: int = 60
    processes: int = 9
    asked: bool = True


FULL = Sizes()
QUICK = Sizes(50, 20, 5, 1, asked=False)


def make_store(path: Path, sizes: Sizes) -> None:
    """Store every name in every epoch; half of them are weights."""
    value = np.zeros(4, "f4")
    names = [f"block{number // 10:03d}.layer{number % 10}.weight" for number in range(sizes.names)]
    with mldb.open(path, durability="os", background_compaction=False) as db:
        for epoch in range(sizes.epochs):
            with db.transaction(epoch=epoch) as txn:
                for number, name in enumerate(names):
                    value[0] = epoch * sizes.names + number
                    kind = "weights" if number % 2 else "biases"
                    layer = name.rpartition(".")[0]
                    fields = {"type": kind, "layer": layer, "position": number}
                    txn.store_tensor(name, value, None if epoch else fields)


def timed(sizes: Sizes, ask: Callable[[int], Any]) -> tuple[float, float]:
    """Milliseconds of a call: the median, and the median of the processor time."""
    wall, spent = list[float](), list[float]()
    for number in range(sizes.repeats):
        began, processor = time.perf_counter(), time.process_time()
        ask(number)
        wall.append((time.perf_counter() - began) * 1e3)
        spent.append((time.process_time() - processor) * 1e3)
    return statistics.median(wall), statistics.median(spent)


def warm(path: Path, sizes: Sizes) -> list[Row]:
    """Queries on one handle that has answered one before."""
    found = []
    with mldb.open(path, mode="r") as db:
        db.sql(SHORT)
        # 37 has no divisor in common with the number of epochs, so no epoch comes twice.
        epochs = [37 * number % sizes.epochs for number in range(4 * sizes.repeats)]
        asks: list[tuple[str, float, float, Callable[[int], Any]]] = [
            ("short form, names", 10, 3, lambda _: db.query.execute_query(SHORT)),
            ("short form, all columns", 10, 3, lambda _: db.sql(SHORT)),
            (
                *("AS OF an epoch, names", 30, 10),
                lambda n: db.query.execute_query(f"{SHORT} AS OF EPOCH {epochs[n]}"),
            ),
            (
                *("AS OF an epoch, all columns", 30, 10),
                lambda n: db.sql(f"{SHORT} AS OF EPOCH {epochs[n + sizes.repeats]}"),
            ),
        ]
        for figure, must, aim, ask in asks:
            median, spent = timed(sizes, ask)
            found.append(at_most(f"{figure}, warm", median, "ms", must, aim, asked=sizes.asked))
            found.append(Row(f"{figure}, warm: processor time", spent, "ms"))
        median, spent = timed(sizes, lambda _: db.sql("SELECT count(*) FROM versions"))
        found.append(Row("count of all versions, warm", median, "ms"))
    return found


def after_commits(path: Path, sizes: Sizes) -> list[Row]:
    """A query behind each of some commits: what is known is appended to."""
    spent = list[float]()
    with mldb.open(path, durability="os", background_compaction=False) as db:
        db.sql(SHORT)
        for number in range(sizes.repeats):
            db.store_tensor("block000.layer1.weight", np.full(4, number, "f4"))
            began = time.perf_counter()
            db.query.execute_query(SHORT)
            spent.append((time.perf_counter() - began) * 1e3)
    return [Row("short form, names, behind a commit", statistics.median(spent), "ms")]


def cold(path: Path, sizes: Sizes) -> list[Row]:
    """The first query of a process."""
    wall, spent = list[float](), list[float]()
    for _ in range(sizes.processes):
        done = subprocess.run(
            [sys.executable, "-c", _COLD, str(path), SHORT],
            capture_output=True,
            text=True,
            check=True,
            cwd=_ROOT,
        )
        one, processor, _ = json.loads(done.stdout)
        wall.append(one)
        spent.append(processor)
    return [
        at_most("short form, cold", statistics.median(wall), "ms", 400, asked=sizes.asked),
        Row("short form, cold: fastest", min(wall), "ms"),
        Row("short form, cold: processor time", statistics.median(spent), "ms"),
    ]


def rows(quick: bool) -> list[Row]:
    """All figures of queries."""
    sizes = QUICK if quick else FULL
    with fresh_folder() as root:
        path = root / "store"
        make_store(path, sizes)
        return [*warm(path, sizes), *cold(path, sizes), *after_commits(path, sizes)]
