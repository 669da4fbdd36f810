"""How long ``mldb --help`` and ``mldb ls`` take, above a Python that only imports NumPy.

Each is a process of its own, as a shell starts it, with compiled modules at hand. Processes are
run in turn, so that a busy machine is busy for all; the median of the differences is told.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_most

_COMMANDS = ("-m", "mldb.tools")
_BASE = ("-c", "import numpy")


@dataclass(frozen=True, slots=True)
class CallSizes:
    """How many names of how many versions are listed, and how often each process is run."""

    names: int
    versions: int
    times: int
    asked: bool


FULL = CallSizes(1_000, 1_000, 21, asked=True)
QUICK = CallSizes(100, 20, 5, asked=False)


def rows(quick: bool) -> list[Row]:
    """Grow a store of small tensors, and run the commands on it."""
    sizes = QUICK if quick else FULL
    with fresh_folder() as root:
        grow(root / "store", sizes)
        environment = {
            name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
        }
        # Modules are compiled once, into a folder that is removed with the rest.
        environment |= {"PYTHONPYCACHEPREFIX": str(root / "compiled")}
        calls = {
            "mldb --help": (*_COMMANDS, "--help"),
            "mldb ls": (*_COMMANDS, "ls", str(root / "store")),
            "mldb ls --limit 10": (*_COMMANDS, "ls", str(root / "store"), "--limit", "10"),
            "mldb show of one name": (*_COMMANDS, "show", str(root / "store"), _name(0)),
        }
        above = above_base(calls, sizes.times, environment)
    records = sizes.names * sizes.versions
    return [
        at_most("mldb --help", above["mldb --help"], _UNIT, 100, asked=sizes.asked),
        at_most(
            f"mldb ls, {sizes.names:,} names, {records:,} records",
            *(above["mldb ls"], _UNIT, 250, 60),
            asked=sizes.asked,
        ),
        Row("  the first 10", above["mldb ls --limit 10"], _UNIT),
        Row("mldb show of one name, 40 points", above["mldb show of one name"], _UNIT),
    ]


_UNIT = "ms above import numpy"


def _name(number: int) -> str:
    return f"layer{number:04d}/weight"


def grow(path: Path, sizes: CallSizes) -> None:
    """A store of *names* tensors, all stored again in each epoch."""
    with mldb.open(path, durability="os") as db:
        for epoch in range(sizes.versions):
            with db.transaction(epoch=epoch) as txn:
                for number in range(sizes.names):
                    txn.store_tensor(_name(number), np.full(16, epoch + number, np.float32))


def above_base(
    calls: Mapping[str, Sequence[str]], times: int, environment: Mapping[str, str]
) -> dict[str, float]:
    """Milliseconds of each call above the base, as the median of *times* differences."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(times + 1):
        base = _milliseconds(_BASE, environment)
        for name, call in calls.items():
            taken = _milliseconds(call, environment) - base
            if turn:  # the first compiles
                spent[name].append(taken)
    return {name: statistics.median(taken) for name, taken in spent.items()}


def _milliseconds(words: Sequence[str], environment: Mapping[str, str]) -> float:
    started = time.perf_counter()
    command = [sys.executable, *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(environment))
    return (time.perf_counter() - started) * 1e3
