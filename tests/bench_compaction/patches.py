"""Patches of rows: steps a second, bytes a step, and what a read costs behind many of them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_least, at_most
from tests.bench_compaction.runner import bytes_in
from tests.support.patched import links as links_of

ROWS = 64
DIM = 256


@dataclass(frozen=True)
class Sizes:
    """What is measured; ``asked``: the bounds are meant for these sizes."""

    rows: int = 1_000_000
    steps: int = 1000
    asked: bool = True


FULL = Sizes()
QUICK = Sizes(20_000, 100, asked=False)


def _rows(kind: str, sizes: Sizes, rng: np.random.Generator) -> NDArray[np.int64]:
    """The rows of one step: anywhere in the table, or in one fiftieth of it."""
    if kind == "random":
        return rng.choice(sizes.rows, ROWS, replace=False)
    return sizes.rows // 3 + rng.choice(sizes.rows // 50, ROWS, replace=False)


def steps(sizes: Sizes, kind: str) -> list[Row]:
    """Update some rows of a large table again and again, without sync; read it before and after."""
    rng = np.random.default_rng(31)
    values = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    chosen = [_rows(kind, sizes, rng) for _ in range(sizes.steps)]
    with fresh_folder() as root, mldb.open(root / "store", durability="os") as db:
        with db.create_tensor("table", (sizes.rows, DIM), np.float32) as writer:
            for low in range(0, sizes.rows, 10_000):
                writer[low : low + 10_000] = np.ones((10_000, DIM), np.float32)
        base, before = db.lsn, bytes_in(root)
        started = time.perf_counter()
        for rows in chosen:
            db.update_tensor("table", rows, values)
        rate = sizes.steps / (time.perf_counter() - started)
        taken = (bytes_in(root) - before) / (sizes.steps * values.nbytes)
        ratio = _reads(db, base)
        part = _part(db, sizes)
        links = _links(db)
        started = time.perf_counter()
        report = db.compact(cold="none")
        took = time.perf_counter() - started
        folded = (bytes_in(root) - before) / (sizes.steps * values.nbytes)
        ratio_folded, part_folded, links_folded = _reads(db, base), _part(db, sizes), _links(db)
    what = f"{sizes.steps} steps of {ROWS} {kind} rows"
    most = 6 if kind == "random" else 1.5
    asked = sizes.asked
    return [
        at_least(f"{what}, no sync", rate, "steps/s", 1000, asked=asked),
        at_most("  bytes", taken, "x of the rows", 1.2, asked=asked),
        at_most("  a full read afterwards", ratio, "x the base", most, asked=asked),
        Row("  64 neighbouring rows afterwards", part, "ms"),
        Row("  patches below a version, at most", links, ""),
        Row(f"  compaction: {report.recoded} of them folded", took, "s"),
        at_most("  patches below a version, at most", links_folded, "", 64, asked=asked),
        at_most("  bytes", folded, "x of the rows", 2.2, asked=asked),
        at_most("  a full read afterwards", ratio_folded, "x the base", most, asked=asked),
        Row("  64 neighbouring rows afterwards", part_folded, "ms"),
    ]


def _reads(db: mldb.MLDatabase, base: Any) -> float:
    """Seconds of a full read now against those of the base, in turns; all bytes are looked at."""
    spent: dict[Any, list[float]] = {base: [], None: []}
    for number in range(8):
        for as_of in (base, None) if number % 2 else (None, base):
            started = time.perf_counter()
            float(db.query_tensor("table", as_of=as_of).sum(dtype=np.float64))
            if number:
                spent[as_of].append(time.perf_counter() - started)
    return statistics.median(spent[None]) / statistics.median(spent[base])


def _links(db: mldb.MLDatabase) -> int:
    """How many patches the longest chain has."""
    return max(links_of(db, "table"))


def _part(db: mldb.MLDatabase, sizes: Sizes) -> float:
    found = []
    for number in range(7):
        low = (number * 99_991) % (sizes.rows - ROWS)
        started = time.perf_counter()
        db.tensor("table")[low : low + ROWS].sum()
        found.append(time.perf_counter() - started)
    return 1e3 * statistics.median(found)


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    sizes = QUICK if quick else FULL
    return [*steps(sizes, "random"), *steps(sizes, "clustered")]
