"""The golden store of metrics, version 2: what it holds, and the history that writes it.

It stands beside ``format-2``, which was written before there were metrics. Run as a script, this
file writes ``tests/golden/format-2-metrics`` anew. Only a new format may change it::

    python -m tests.golden.logged
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np

import mldb
from mldb.write import metric_log
from tests.golden.second import fixed
from tests.golden.stores import METRICS, contents

OPTIONS: Final[dict[str, Any]] = {"segment_bytes": 2_000, "background_compaction": False}
MANY: Final = {f"layer {number:02}/{'x' * 200}": number / 4 for number in range(7)}
"""More names than one key holds."""
ODD: Final = {"inf": float("inf"), "-inf": -float("inf"), "nan": float("nan"), "-0": -0.0}


def write_history(folder: str) -> None:
    """Points of one name and of sets, alone, together and waiting, over several lineages."""
    with mldb.open(folder, **OPTIONS) as db:
        db.log({"loss": 2.5})
        db.log({"loss": 2.25, "lr": 0.001}, step=1, epoch=1)
        db.log({"lr": 0.002, "loss": 2.0, "val/acc": 0.5}, step=2)
        db.log(MANY, step=(1 << 63) - 1)
        db.log(ODD, epoch=2)
        for step in range(40):
            db.log({"loss": 2 - step / 32, "lr": 1e-4}, step=step, buffer=True)
        db.store_tensor("w", np.arange(4, dtype="<f4"), epoch=3)
        with db.transaction() as txn:
            txn.log({"loss": 0.5}, step=40)
            txn.store_tensor("w", np.arange(4, dtype="<f4") + 1)
            txn.log({"loss": 0.25, "ratio": 8.0}, step=41)
        db.tag("best")
    with mldb.open(folder, **OPTIONS) as db:
        db.log({"loss": 9.0}, epoch=4)
        db.rewind(2)
        db.log({"loss": 0.125}, step=3)
        for step in range(20):
            db.log({"after": step}, step=step, epoch=3 + step // 10, buffer=True)
            more = {"after": step / 2, "loss": -step}
            db.log(more, step=step, epoch=3 + step // 10, buffer=True)
        db.sync()
        db.store_tensor("last", np.array([1], "<i8"))


def write_golden(target: Path) -> None:
    """Write the store and keep what a copy keeps: neither locks nor empty folders."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, "store")
        with fixed(), patch.object(metric_log.MetricLog, "_start", lambda self: None):
            write_history(str(made))
        for name, data in contents(made).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)


if __name__ == "__main__":
    shutil.rmtree(METRICS, ignore_errors=True)
    write_golden(METRICS)
    sys.stdout.write(f"{METRICS}: {sum(map(len, contents(METRICS).values()))} bytes\n")
