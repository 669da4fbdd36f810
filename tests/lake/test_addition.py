"""The first rows make the lake: in one commit, whatever fails and whoever else writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.history.events import LakeCreated, SplatsAdded
from mldb.lake.write import addition
from mldb.lake.write.block import block_of as block_of_rows
from tests.golden.second import make_lake_alone
from tests.support.lakes import db

__all__ = ["db"]

DIM = 6


def rows_of(rng: np.random.Generator, count: int, dim: int = DIM) -> Any:
    return rng.standard_normal((count, dim))


def test_a_first_addition_that_fails_leaves_no_lake(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truly nothing: not even the lake, whose name may get another dimension."""
    bad = rows_of(rng, 40)
    bad[7] = np.nan
    start = db.lsn
    for at_most in (1 << 24, 100):  # in memory; written ahead
        monkeypatch.setattr(addition, "_IN_MEMORY", at_most)
        with pytest.raises(mldb.InvalidValueError, match="row 7"):
            db.lake("new", dim=DIM).add_splats(bad)
        with pytest.raises(mldb.MldbError):
            db.lake("new", dim=DIM).add_splats(rows_of(rng, 2), epoch=-1)
        assert (db.lsn, db.lakes(), list(db.events())) == (start, [], [])
    db.lake("new", dim=3).add_splats(rows_of(rng, 4, 3))
    assert db.lake("new").dim == 3


@pytest.mark.parametrize("at_most", [1 << 24, 100], ids=["in memory", "written ahead"])
def test_the_first_rows_make_the_lake_in_one_commit(
    at_most: int,
    store_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other handles, every commit and the events see no lake, or the lake with its rows."""
    monkeypatch.setattr(addition, "_IN_MEMORY", at_most)
    with mldb.open(store_path) as db, mldb.open(store_path, mode="r") as other:
        db.store_tensor("x", 1)
        before = db.lsn
        lake = db.lake("new", dim=DIM)
        assert (other.lakes(), len(other.lake("new", dim=9))) == ([], 0)
        lake.add_splats(rows_of(rng, 40), ids=np.arange(100, 140))
        made, added = list(db.events())[-2:]
        assert isinstance(made, LakeCreated)
        assert isinstance(added, SplatsAdded)
        assert (made.lsn, added.lsn) == (db.lsn, db.lsn)  # that of their commit
        assert (other.lakes(), len(other.lake("new"))) == (["new"], 40)
        with pytest.raises(mldb.MissingError):
            lake.at(before)
        assert len(lake.at(db.lsn)) == 40
        assert lake.add_splats(rows_of(rng, 2)).tolist() == [140, 141]
        db.rewind(before)
        assert (other.lakes(), len(lake)) == ([], 0)
        assert lake.add_splats(rows_of(rng, 3)).tolist() == [0, 1, 2]
        assert db.verify().ok
    with mldb.open(store_path, mode="r") as db:
        assert len(db.lake("new")) == 3


@pytest.mark.parametrize("at_most", [1 << 24, 100], ids=["in memory", "written ahead"])
def test_two_handles_make_a_lake_at_once(
    at_most: int, store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes second adds to the lake that is there; rewound away, it is made again."""
    monkeypatch.setattr(addition, "_IN_MEMORY", at_most)
    meanwhile: list[Any] = []

    def block_of(given: Any, dim: int) -> Any:
        if meanwhile:
            meanwhile.pop()()
        return block_of_rows(given, dim)

    monkeypatch.setattr(addition, "block_of", block_of)
    with mldb.open(store_path) as one, mldb.open(store_path) as two:
        one.store_tensor("x", 1)
        before, mine = one.lsn, one.lake("new", dim=DIM)
        meanwhile.append(lambda: two.lake("new", dim=DIM).add_splats(rows_of(rng, 30)))
        assert mine.add_splats(rows_of(rng, 20)).tolist() == list(range(30, 50))
        assert [type(event) for event in one.events()].count(LakeCreated) == 1
        meanwhile.append(lambda: two.rewind(before))
        assert mine.add_splats(rows_of(rng, 25)).tolist() == list(range(25))
        assert (len(mine), len(two.lake("new"))) == (25, 25)
        meanwhile.append(lambda: two.lake("other", dim=3).add_splats(rows_of(rng, 5, 3)))
        with pytest.raises(mldb.InvalidValueError, match="made by another one in the meantime"):
            one.lake("other", dim=DIM).add_splats(rows_of(rng, 20))
        assert one.verify().ok


def test_a_lake_that_was_made_without_rows_stays_readable(
    store_path: Path, rng: np.random.Generator
) -> None:
    """Earlier writers made a lake in a commit of its own, and may have died behind it."""
    with mldb.open(store_path) as db:
        lake = db.lake("empty", dim=DIM, geometry="euclid")
        make_lake_alone(lake)
        assert (db.lakes(), len(lake), len(lake.ids())) == (["empty"], 0, 0)
    with mldb.open(store_path) as db:
        lake = db.lake("empty")
        assert (lake.dim, lake.geometry, len(lake)) == (DIM, "euclid", 0)
        with pytest.raises(mldb.InvalidValueError, match=f"dim={DIM}"):
            db.lake("empty", dim=DIM + 1)
        assert lake.add_splats(rows_of(rng, 2)).tolist() == [0, 1]
        assert db.verify().ok
