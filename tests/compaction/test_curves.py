"""Curves under retention: what compaction drops of a run, it does not drop of its curves.

The story behind it: a version stays if a kept commit sees it as the newest of its key, and of a
curve that was its last point.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.history.events import MetricsLogged
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.compacting import compact_all, kept_of


def run(db: mldb.MLDatabase, first: int, last: int) -> None:
    """Epochs of a tensor, five points each, and a metric of each tenth epoch."""
    for epoch in range(first, last):
        db.store_tensor("w", np.arange(100) + epoch, epoch=epoch)
        for step in range(5):
            db.log({"loss": epoch + step / 10, "lr": 1e-3}, step=epoch * 5 + step)
        if epoch % 10 == 0:
            db.log({"val/acc": epoch})


def small(fs: MemoryFileSystem) -> mldb.MLDatabase:
    return mldb.MLDatabase.on(fs, segment_bytes=6_000, durability="os")


def all_of(db: mldb.MLDatabase, name: str, **when: object) -> list[tuple[float, int, int, int]]:
    curve = db.metrics(name, **when)  # type: ignore[call-overload]
    columns = (curve.value, curve.step, curve.epoch, curve.lsn)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_retention_drops_commits_and_leaves_their_points() -> None:
    fs = MemoryFileSystem()
    db = small(fs)
    run(db, 0, 60)
    before = {name: all_of(db, name) for name in ("loss", "lr", "val/acc")}
    times = db.metrics("loss").time
    assert len(before["loss"]) == 300
    db.retention.set(last=2)
    report = db.compact()
    assert report.commits_pruned > 300
    assert report.versions_dropped >= 58  # of w
    assert {name: all_of(db, name) for name in before} == before
    assert (db.metrics("loss").time == times).all()
    with pytest.raises(mldb.VersionGoneError):
        db.metrics("loss", as_of=3)
    run(db, 60, 70)
    db.compact()  # what was compacted once, and more
    compact_all(db)
    assert len(all_of(db, "loss")) == 350
    assert all_of(db, "loss")[:300] == before["loss"]
    assert db.verify().ok
    db.close()
    again = mldb.MLDatabase.on(fs)
    assert all_of(again, "loss")[:300] == before["loss"]
    assert again.metrics() == ["loss", "lr", "val/acc"]


def test_a_kept_commit_has_the_curve_up_to_it() -> None:
    db = small(MemoryFileSystem())
    run(db, 0, 40)
    db.tag("middle", 17)
    at_17 = all_of(db, "loss", as_of=17)
    db.retention.set(last=1)
    db.compact()
    assert all_of(db, "loss", as_of="middle") == at_17
    assert len(at_17) == 18 * 5


def test_points_left_behind_by_a_rewind_go_with_the_last_of_their_commits() -> None:
    db = small(MemoryFileSystem())
    run(db, 0, 20)
    abandoned = db.lsn
    behind = all_of(db, "loss")
    db.rewind(9)
    run(db, 10, 12)
    ahead = all_of(db, "loss")
    assert ahead[:50] == behind[:50]
    db.compact(cold="none")
    assert all_of(db, "loss", as_of=abandoned) == behind  # nothing was to go so far
    db.pin(mldb.Lsn(behind[70][3]))
    db.retention.set(last=2, abandoned=timedelta(0))
    db.compact()
    with pytest.raises(mldb.VersionGoneError):
        db.metrics("loss", as_of=abandoned)
    assert all_of(db, "loss", as_of=mldb.Lsn(behind[70][3])) == behind[:71]
    assert all_of(db, "loss") == ahead
    stored = [event for event in db.events() if isinstance(event, MetricsLogged)]
    assert stored
    db.unpin(mldb.Lsn(behind[70][3]))
    compact_all(db)
    assert all_of(db, "loss") == ahead
    lsns = {entry.commit_lsn for key in (b"\x0b\x00loss\x00lr",)
            for entry in db._log.head().versions(key)}  # fmt: skip
    assert lsns == {lsn for *_, lsn in ahead}


def test_curves_count_for_what_the_store_may_take() -> None:
    db = small(MemoryFileSystem())
    run(db, 0, 30)
    points = all_of(db, "loss")
    db.retention.set(max_bytes=80_000)
    db.compact()
    assert all_of(db, "loss") == points
    assert db.stats()["bytes"] <= 80_000
    db.retention.set(max_bytes=20_000)
    with pytest.raises(mldb.InvalidValueError, match="max_bytes=20000 cannot be kept"):
        db.compact()
    assert all_of(db, "loss") == points


def test_a_snapshot_that_is_open_and_a_backup_keep_theirs(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "s", segment_bytes=6_000, durability="os") as db:
        run(db, 0, 30)
        with db.at(10) as snapshot:
            db.retention.set(last=1)
            db.compact()
            assert len(snapshot.metrics("loss")) == 55
        db.compact()
        db.backup(tmp_path / "b")
        points = all_of(db, "loss")
        assert len(kept_of(db)) < 20
    with mldb.open(tmp_path / "b", mode="r") as copy:
        assert all_of(copy, "loss") == points
        assert len(points) == 150
        assert copy.verify().ok
