"""S1: rows in memory become durable on disk. A row counts once every file is synced."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import mldb
from tests.bench.children import Result, Task
from tests.bench.limits import write_raw
from tests.bench.timing import sync_path
from tests.bench_lake.setting import KAPPA, LAKE, Data
from tests.bench_lake.worker import AbsentError

Write = Callable[[Path], float]


class Ingest:
    """Writes all rows to a fresh folder: the ``how`` of the task names the writer."""

    def __init__(self, task: Task) -> None:
        data = Data(**task["data"])
        self._rows = data.loaded()
        self._alpha = data.masses()
        writers: dict[str, Callable[[], Write]] = {
            "write": lambda: lambda folder: self._raw(folder, early=False),
            "early": lambda: lambda folder: self._raw(folder, early=True),
            "mldb": lambda: self._mldb,
            "lance": self._prepare_lance,
        }
        self._write = writers[task["how"]]()
        self.ready: Result = {"how": _HOW[task["how"]]}

    def turn(self, message: Task) -> Result:
        """Write once to ``message["into"]``."""
        return {"seconds": self._write(Path(message["into"]))}

    def close(self) -> None:
        """Nothing is open."""

    def _raw(self, folder: Path, *, early: bool) -> float:
        state: dict[str, Any] = {"rows": self._rows, "alpha": self._alpha}
        return write_raw(state, folder, allocate=False, early=early)

    def _mldb(self, folder: Path) -> float:
        with mldb.open(folder / "store", durability="commit") as db:
            lake = db.lake(LAKE, dim=self._rows.shape[1])
            begin = time.perf_counter()
            lake.add_splats(self._rows, kappa=KAPPA, alpha=self._alpha)
            seconds = time.perf_counter() - begin
            _check(len(lake), len(self._rows))
        return seconds

    def _prepare_lance(self) -> Write:
        if find_spec("lance") is None or find_spec("pyarrow") is None:
            raise AbsentError("not installed: pip install pylance")
        # By name: neither is a dependency, not even of development.
        arrow, lance = import_module("pyarrow"), import_module("lance")
        count, dim = self._rows.shape
        flat = arrow.array(self._rows.reshape(-1))
        columns = {
            "mu": arrow.FixedSizeListArray.from_arrays(flat, dim),
            "id": arrow.array(np.arange(count)),
            "kappa": arrow.array(np.full(count, KAPPA, np.float32)),
            "alpha": arrow.array(self._alpha),
        }
        table = arrow.table(columns)

        def write(folder: Path) -> float:
            begin = time.perf_counter()
            lance.write_dataset(table, str(folder / "rows.lance"))
            for path in sorted(folder.rglob("*")):
                sync_path(path)
            sync_path(folder)
            seconds = time.perf_counter() - begin
            _check(lance.dataset(str(folder / "rows.lance")).count_rows(), count)
            return seconds

        return write


_HOW = {
    "write": "one file, fdatasync at the end",
    "early": "one file, writeback started early, fdatasync at the end",
    "mldb": "add_splats: normalised, hashed, indexed, durability='commit'",
    "lance": "write_dataset, then fsync of every file and folder",
}


def _check(got: int, expected: int) -> None:
    if got != expected:
        raise RuntimeError(f"{got} of {expected} rows were stored: no figures")
