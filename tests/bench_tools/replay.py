"""Replay of many small records: whole, of some names, and compared; repair of the same store.

What is measured is the call, with the opening of both stores in it. The records are one tensor of
64 bytes a commit, of a hundred names.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_least

NAMES = 100
VALUES = 16


@dataclass(frozen=True)
class Amounts:
    """How many records; ``asked``: the bounds are meant for these sizes."""

    records: int
    rounds: int
    asked: bool


FULL = Amounts(100_000, 3, asked=True)
QUICK = Amounts(2_000, 1, asked=False)


def record(path: Path, amounts: Amounts) -> None:
    """A store of so many commits."""
    with mldb.open(path, durability="os", background_compaction=False) as db:
        for number in range(amounts.records):
            value = np.full(VALUES, number, np.float32)
            db.store_tensor(f"layer{number % NAMES}.w", value, epoch=number // NAMES)


def best_rate(amounts: Amounts, root: Path, rounds: int, what: Callable[[Path], object]) -> float:
    """Records a second of the fastest round, each into a new folder."""
    seconds = []
    for number in range(rounds):
        target = root / f"{len(list(root.iterdir()))}-{number}"
        began = time.perf_counter()
        what(target)
        seconds.append(time.perf_counter() - began)
    return amounts.records / min(seconds)


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    amounts = QUICK if quick else FULL
    found = []
    with fresh_folder() as root:
        source = root / "source"
        record(source, amounts)

        def halved(name: str, array: Any, metadata: dict[str, Any]) -> Any:
            return name, array.astype(np.float16), metadata

        ways: dict[str, Callable[[Path], object]] = {
            "whole": lambda target: mldb.replay(source, target),
            "one name of ten": lambda target: mldb.replay(source, target, names="layer1"),
            "with --verify": lambda target: mldb.replay(source, target, verify=True),
            "another dtype": lambda target: mldb.replay(source, target, transform=halved),
            "repair": lambda target: mldb.repair(source, target),
        }
        for name, what in ways.items():
            # What has no bound is measured once: it takes ten times as long.
            rate = best_rate(amounts, root, amounts.rounds if name == "whole" else 1, what)
            figure = f"replay of {amounts.records} small records: {name}"
            if name == "whole":
                asked = amounts.asked
                found.append(at_least(figure, rate, "records/s", 50_000, 150_000, asked=asked))
            else:
                found.append(Row(f"  {name}", rate, "records/s"))
    return found
