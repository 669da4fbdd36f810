"""Background workers of compaction in tests: stores that they find work in, and patience."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mldb
from mldb.compaction.status import load_status
from mldb.compaction.worker import WorkerOrder
from mldb.log.fs.child import Companion, plain_environment

PATIENCE_SECONDS = 60
EAGER: dict[str, Any] = {
    "background_compaction": True,
    "compaction_drops": True,
    "compaction_gain_bytes": 1,
    "compaction_gain_share": 0.1,
    "compaction_rate": 1 << 30,
    "segment_bytes": 1 << 20,
    "durability": "os",
    "deduplicate": False,
}
"""Options under which a worker starts at the first seal, on any machine."""

QUIET = {**EAGER, "background_compaction": False}
VALUES = 100_000
EPOCHS = 12


def value_of(epoch: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What :func:`fill` stores at an epoch: 400 kB that no codec makes smaller."""
    return np.random.default_rng(epoch).standard_normal(VALUES).astype(np.float32)


def fill(db: mldb.MLDatabase, *, keep: int | None = 2, epochs: int = EPOCHS) -> None:
    """Store some megabytes, of which retention keeps the newest epochs; None keeps all."""
    if keep is not None:
        db.retention.set(last=keep)
    for epoch in range(epochs):
        db.store_tensor("weight", value_of(epoch), epoch=epoch)


def filled(path: Path, **options: Any) -> Path:
    """A closed store with much to give back, in which no worker was started."""
    with mldb.open(path, **{**QUIET, **options}) as db:
        fill(db)
    return path


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def compaction(db: mldb.MLDatabase) -> dict[str, Any]:
    """What the stats say of compaction in the background."""
    found: dict[str, Any] = db.stats()["compaction"]
    return found


def start(db: mldb.MLDatabase) -> int:
    """Have the worker of a handle started where one is due; return its pid."""
    db._compaction.look()
    worker = db._compaction._worker
    assert worker is not None, compaction(db)
    return worker.pid


def paused(path: Path) -> mldb.MLDatabase:
    """A handle of a filled store, whose worker has come so far as to obey the pause."""
    db = mldb.open(path, **EAGER)
    db.pause_compaction()
    start(db)
    until(lambda: "paused" in state_of(db))
    return db


def state_of(db: mldb.MLDatabase) -> str:
    """What the worker said last that it does."""
    status = load_status(db._log.fs)
    return "" if status is None else status.state


def order_for(path: Path, **changes: Any) -> WorkerOrder:
    """An order of this process for a worker."""
    with mldb.open(path, mode="r") as db:
        store_id = db.stats()["store_id"]
    settings = {"store": str(path), "store_id": store_id, "parent": os.getpid(), "drops": True}
    return WorkerOrder(**{**settings, "gain_bytes": 1, "gain_share": 0.1, **changes})


def run_one(order: WorkerOrder, command: Sequence[str] = ("-m", "mldb.worker")) -> Companion:
    """Start a worker by hand."""
    environment = plain_environment() | {"PYTHONPATH": ":".join(map(os.path.abspath, sys.path))}
    return Companion([sys.executable, "-P", *command, order.text()], environment)


def status_of(worker: Companion) -> int:
    """Wait for its end."""
    until(lambda: worker.status() is not None)
    found = worker.status()
    assert found is not None
    return found


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
