"""Bytes by owner add up to what is in the files, and what was saved is said of who saved it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.compaction.usage import Usage


def _of(usage: Usage, name: str) -> dict[str, int]:
    place = usage.names.index(name)
    columns = ("versions", "stored", "decoded", "deduplicated", "deltas", "patches", "compressed")
    return {column: int(getattr(usage, column)[place]) for column in columns}


def test_an_empty_store_has_no_owners(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        usage = db.usage()
    assert (len(usage), usage.names, usage.file_bytes) == (0, (), 0)


def test_frames_and_versions_are_counted_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with mldb.open(tmp_path / "run", durability="os", background_compaction=False) as db:
        for epoch in range(1, 4):
            with db.transaction(epoch=epoch) as txn:
                txn.store_tensor("large", rng.random(50_000), {"type": "weights"})
                txn.store_tensor("small", rng.random(50))
        db.delete_tensor("small")
        db.lake("points", dim=8).add_splats(rng.random((100, 8), np.float32))
        db.create_relationship("a", "b", "feeds_into")
        db.tag("best", 2)
        usage = db.usage()
        large, small = _of(usage, "large"), _of(usage, "small")
        assert usage.names[0] == "large"
        assert set(usage.kinds) == {"tensor", "lake", "relationships", "tags and pins"}
        assert (large["versions"], small["versions"]) == (3, 3)
        assert large["decoded"] >= 3 * 400_000
        assert small["decoded"] >= 3 * 400
        assert 3 * 400_000 <= large["stored"] < 3 * 410_000
        assert _of(usage, "points")["versions"] == 1
        assert usage.stored.sum() <= usage.file_bytes
        read = mldb.open(tmp_path / "run", mode="r")
        assert read.usage().names == usage.names
        read.close()


def test_what_was_not_stored_twice_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    table = rng.random((1000, 64), np.float32)
    with mldb.open(tmp_path / "run", durability="os", background_compaction=False) as db:
        db.store_tensor("table", table, epoch=1)
        db.store_tensor("same", table, epoch=1)
        db.store_tensor("patched", table + 1, epoch=1)
        db.update_tensor("patched", [3, 5], table[:2])
        usage = db.usage()
        assert _of(usage, "same")["deduplicated"] == table.nbytes
        assert _of(usage, "table")["deduplicated"] == 0
        patched = _of(usage, "patched")
        assert table.nbytes - 2000 < patched["patches"] < table.nbytes
        for epoch in range(2, 8):
            table = table + rng.normal(0, 1e-6, table.shape).astype(np.float32)
            db.store_tensor("table", table, epoch=epoch)
        before = _of(db.usage(), "table")
        report = db.compact(cold="all")
        after = _of(db.usage(), "table")
        assert report.recoded > 0
        assert after["decoded"] == before["decoded"]
        assert after["deltas"] + after["compressed"] > 0
        assert before["stored"] - after["stored"] == pytest.approx(
            after["deltas"] + after["compressed"], abs=20_000
        )


def test_what_retention_dropped_is_gone(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os", background_compaction=False) as db:
        for epoch in range(1, 9):
            db.store_tensor("w", np.full(20_000, epoch, np.float64), epoch=epoch)
        db.retention.set(last=2, abandoned=timedelta(0))
        assert _of(db.usage(), "w")["versions"] == 8
        db.compact()
        assert _of(db.usage(), "w")["versions"] == 2
