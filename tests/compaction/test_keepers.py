"""Who keeps which bytes, compared with what comes back when they let go."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.compaction import keepers as module
from mldb.compaction.keepers import Keeper

_SIZE = 400_000


def _run(path: Path) -> mldb.MLDatabase:
    """Nine epochs of one tensor of 400 kB, of which the last two are kept."""
    db = mldb.open(path, durability="os", background_compaction=False)
    rng = np.random.default_rng(5)
    for epoch in range(1, 10):
        db.store_tensor("w", rng.random(_SIZE // 8), epoch=epoch)
    db.retention.set(last=2, abandoned=timedelta(0))
    return db


def _of(found: tuple[Keeper, ...], kind: str, name: str) -> Keeper:
    (keeper,) = (item for item in found if (item.kind, item.name) == (kind, name))
    return keeper


def test_where_everything_is_kept_that_is_the_one_rule(tmp_path: Path) -> None:
    with _run(tmp_path / "run") as db:
        db.retention.set()
        db.tag("old", 2)
        found = db.keepers()
        rule = _of(found, "rule", "all of the lineage")
        assert _of(found, "tag", "old").bytes == 0
        assert rule.commits == 11
        assert rule.bytes == pytest.approx(7 * _SIZE, rel=0.05)
        assert found[0] == rule


def test_a_tag_keeps_what_comes_back_without_it(tmp_path: Path) -> None:
    with _run(tmp_path / "run") as db:
        db.tag("old", 3)
        db.pin(5)
        db.tag("new", 9)
        found = db.keepers()
        old = _of(found, "tag", "old")
        assert (old.commits, old.alone) == (1, 1)
        assert old.bytes == pytest.approx(_SIZE, rel=0.05)
        assert _of(found, "pin", str(db.pins()[0])).bytes == pytest.approx(_SIZE, rel=0.05)
        db.compact()
        db.untag("old")
        back = db.compact().bytes_before - db.compact(plan_only=True).bytes_before
        assert back == pytest.approx(old.bytes, rel=0.05)


def test_what_two_keep_comes_back_for_neither(tmp_path: Path) -> None:
    with _run(tmp_path / "run") as db:
        db.tag("one", 3)
        db.tag("two", 3)
        found = db.keepers()
        for name in ("one", "two"):
            assert (_of(found, "tag", name).alone, _of(found, "tag", name).bytes) == (0, 0)


def test_a_process_keeps_all_from_the_commit_it_needs(tmp_path: Path) -> None:
    with _run(tmp_path / "run") as db:
        lowest = db.at(4).lsn
        keeper = _of(db.keepers({"abc": int(lowest)}), "process", "abc")
        assert keeper.bytes == pytest.approx(4 * _SIZE, rel=0.05)
        assert [item for item in db.keepers({"abc": 1 << 63}) if item.kind == "process"] == []


def test_checkpoints_and_rules_count_one_by_one(tmp_path: Path) -> None:
    with _run(tmp_path / "run") as db:
        db.checkpoint({"x": np.random.default_rng(1).random(_SIZE // 8)}, epoch=10)
        lsn = int(db.lsn)
        db.delete_tensor("x")
        db.checkpoint({"y": np.zeros(5)}, epoch=11)  # or a kept commit would need the first one
        db.store_tensor("w", np.zeros(4), epoch=12)
        db.store_tensor("w", np.zeros(5), epoch=14)
        db.retention.set(last=1, every=4, abandoned=timedelta(0))
        found = db.keepers()
        assert _of(found, "checkpoint", str(lsn)).alone == 1
        assert _of(found, "checkpoint", str(lsn)).bytes >= _SIZE  # type: ignore[operator]
        assert _of(found, "rule", "every=4").alone == 3
        assert _of(found, "rule", "every=4").bytes == pytest.approx(2 * _SIZE, rel=0.05)
        assert [item for item in found if item.name == "last=1"] == []


def test_what_a_rewind_left_behind_is_a_rule(tmp_path: Path) -> None:
    with _run(tmp_path / "run") as db:
        db.rewind(7)
        db.retention.set(last=1)
        found = db.keepers()
        keeper = _of(found, "rule", "what a rewind left behind")
        assert keeper.bytes == pytest.approx(2 * _SIZE, rel=0.05)


def test_of_many_only_the_first_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEASURED_MAX", 2)
    with _run(tmp_path / "run") as db:
        for epoch in range(1, 7):
            db.tag(f"t{epoch}", epoch)
        found = db.keepers()
        assert len(found) == 7
        assert sum(item.bytes is not None for item in found) == 2


def test_an_empty_store_keeps_nothing(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run") as db:
        assert db.keepers() == ()


def test_nobody_keeps_more_than_there_is(tmp_path: Path) -> None:
    """What a footer takes is estimated: of tiny versions that came to more than the store."""
    with mldb.open(tmp_path / "run", durability="os", background_compaction=False) as db:
        for epoch in range(1, 40):
            with db.transaction(epoch=epoch) as txn:
                for number in range(50):
                    txn.store_tensor(f"t{number}", np.float32(epoch))
        (keeper,) = db.keepers()
        assert keeper.bytes is not None
        assert keeper.bytes <= db.usage().file_bytes
