"""How long ``mldb --help`` and ``mldb ls`` take, above a Python that only imports NumPy.

Each is a process of its own, as a shell starts it, with compiled modules at hand. They are run in
turn, and the quickest run of each counts: what a busy machine adds is no part of the command.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_most

_COMMANDS = ("-m", "mldb.tools")
_BASE = ("-c", "import numpy")


class Spent(NamedTuple):
    """What a process took, in milliseconds: by the clock, and of processors."""

    wall: float
    cpu: float


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
    figures = [
        at_most("mldb --help", above["mldb --help"].wall, _UNIT, 100, asked=sizes.asked),
        at_most(
            f"mldb ls, {sizes.names:,} names, {records:,} records",
            *(above["mldb ls"].wall, _UNIT, 250, 60),
            asked=sizes.asked,
        ),
    ]
    figures += [Row(f"  {name}", spent.wall, _UNIT) for name, spent in list(above.items())[2:]]
    return figures + [
        Row(f"  processor time of {name}", spent.cpu, _UNIT) for name, spent in above.items()
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
) -> dict[str, Spent]:
    """What the quickest of *times* runs of each call takes above the quickest of the base."""
    spent: dict[str, list[Spent]] = {name: [] for name in ("", *calls)}
    for turn in range(times + 1):
        for name, call in (("", _BASE), *calls.items()):
            found = _run(call, environment)
            if turn:  # the first compiles
                spent[name].append(found)
    least = {name: Spent(*map(min, zip(*taken, strict=True))) for name, taken in spent.items()}
    base = least.pop("")
    return {
        name: Spent(found.wall - base.wall, found.cpu - base.cpu) for name, found in least.items()
    }


def _run(words: Sequence[str], environment: Mapping[str, str]) -> Spent:
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, env=dict(environment)
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return Spent(wall * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3)
