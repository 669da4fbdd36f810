"""A page while the store changes: commits, rewinds and compactions of others do not disturb it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

import mldb
from mldb.tools.report.build import make_report
from mldb.tools.report.states import MeasureCache


def test_a_compacted_run_says_so_and_what_it_saved(store_path: Path) -> None:
    rng = np.random.default_rng(1)
    value = rng.standard_normal(100_000).astype(np.float32)
    options = {"durability": "os", "background_compaction": False, "segment_bytes": 1 << 20}
    with mldb.open(store_path, **options) as db:  # type: ignore[arg-type]
        for epoch in range(1, 13):
            value[::50] += np.float32(0.01)
            db.checkpoint({"w": value}, epoch=epoch)
        db.retention.set(last=3, every=4, checkpoints=2)
        before = make_report(db)
        db.compact()
        after = make_report(db)
    assert b"<title>compacted: commits" not in before.html
    assert b"<title>compacted: commits" in after.html
    assert after.epoch == before.epoch == 12
    assert after.epochs_shown < before.epochs_shown == 12
    assert after.problems[0].endswith("pruned by retention and are left out")


def test_writers_and_compaction_go_on_meanwhile(store_path: Path) -> None:
    """Segments are replaced and epochs pruned while pages are made: each is of one moment."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            with mldb.open(store_path, durability="os", background_compaction=False) as db:
                db.retention.set(last=4)
                epoch = 1
                while not stop.is_set():
                    epoch += 1
                    db.store_tensor("w", np.full(20_000, float(epoch)), epoch=epoch)
                    db.log({"loss": 1 / epoch})
                    if epoch % 8 == 0:
                        db.rewind(mldb.Lsn(db.history("w")[-2].lsn))
                        epoch = db.epoch
                    if epoch % 5 == 0:
                        db.compact()
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    with mldb.open(store_path, durability="os", background_compaction=False) as first:
        first.store_tensor("w", np.zeros(20_000), epoch=1)
    writer = threading.Thread(target=write)
    with mldb.open(store_path, mode="r") as db:
        cache = MeasureCache()
        writer.start()
        try:
            seen = []
            for _ in range(6):
                made = make_report(db, cache=cache)
                seen.append(made.lsn)
                assert made.tensors == 1
                assert made.epochs_shown >= 1
                assert all("pruned" in problem for problem in made.problems), made.problems
        finally:
            stop.set()
            writer.join()
    assert failed == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
