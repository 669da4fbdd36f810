"""``mldb report`` of a long run: how long it takes and how large the page is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mldb
from mldb.tools.report.build import make_report, write_page
from mldb.tools.report.states import MeasureCache
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_most

BLOCKS = 4
STEP = 0.002
DECAY = 0.98
MIB = 2**20


@dataclass(frozen=True)
class Amounts:
    """What is measured; ``asked``: the bounds are meant for these sizes."""

    epochs: int = 200
    width: int = 512
    words: int = 8192
    asked: bool = True


FULL = Amounts()
QUICK = Amounts(20, 32, 256, asked=False)


def shapes(amounts: Amounts) -> dict[str, tuple[int, ...]]:
    """The tensors of a small transformer: 10 M parameters at full size."""
    width = amounts.width
    found: dict[str, tuple[int, ...]] = {"embed.weight": (amounts.words, width)}
    for block in range(BLOCKS):
        found[f"blocks.{block}.attention.qkv.weight"] = (3 * width, width)
        found[f"blocks.{block}.attention.out.weight"] = (width, width)
        found[f"blocks.{block}.norm.weight"] = (width,)
    found["head.weight"] = (amounts.words * 3 // 8, width)
    return found


def record(path: Path, amounts: Amounts) -> int:
    """Record a run whose steps become smaller; return how many parameters it has."""
    rng = np.random.default_rng(21)
    state = {
        name: rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        for name, shape in shapes(amounts).items()
    }
    noise = {name: rng.standard_normal(value.shape, dtype=np.float32)
             for name, value in state.items()}  # fmt: skip
    with mldb.open(path, durability="os", background_compaction=False) as db:
        for layer in range(BLOCKS - 1):
            db.create_relationship(f"blocks.{layer}", f"blocks.{layer + 1}", "feeds_into")
        for epoch in range(amounts.epochs):
            scale = np.float32(STEP * DECAY**epoch * (-1) ** epoch)
            for name, value in state.items():
                value += scale * np.roll(noise[name], epoch, axis=0)
            metrics = {"loss": 2 * DECAY**epoch}
            db.checkpoint({"model": state}, epoch=epoch, step=100 * epoch, metrics=metrics)
    return sum(value.size for value in state.values())


def timed_page(path: Path, target: Path, cache: MeasureCache) -> tuple[float, float, int]:
    """Make a page; return seconds by the clock, those of the processor, and its bytes."""
    started, processor = time.perf_counter(), time.process_time()
    with mldb.open(path, mode="r") as db:
        made = make_report(db, cache=cache)
    write_page(target, made.html)
    return time.perf_counter() - started, time.process_time() - processor, len(made.html)


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    amounts = QUICK if quick else FULL
    with fresh_folder() as root:
        count = record(root / "store", amounts)
        cache = MeasureCache()
        first = timed_page(root / "store", root / "report.html", cache)
        again = timed_page(root / "store", root / "report.html", cache)
    what = f"report, {amounts.epochs} epochs of {count / 1e6:.1f} M parameters"
    asked = amounts.asked
    return [
        at_most(f"{what}: seconds", first[0], "s", 20, 5, asked=asked),
        Row("  of the processor", first[1], "s"),
        at_most("  size of the page", first[2] / MIB, "MiB", 5, asked=asked),
        Row("  anew, as --watch does", again[0], "s"),
    ]
