"""Statistics of tensors against NumPy, where they are kept, and what damage does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse

import mldb
from mldb.log.hints import load_hint_bytes
from mldb.query import statistics
from mldb.query.statistics_cache import HINT

COLUMNS = "mean, std, min, max, norm, zero_share, nan_share"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(tmp_path / "store", durability="os", background_compaction=False) as db:
        yield db


def told(db: mldb.MLDatabase, name: str) -> tuple[float | None, ...]:
    (row,) = db.sql(f"SELECT {COLUMNS} FROM tensors WHERE name = '{name}'")
    found: tuple[float | None, ...] = row
    return found


def expected(values: npt.NDArray[Any]) -> tuple[float, ...]:
    """What NumPy says of values, by the rules of ``mldb.query.statistics``."""
    flat = np.abs(values.ravel()) if values.dtype.kind == "c" else values.ravel()
    flat = flat.astype(np.float64)
    kept = flat[~np.isnan(flat)]
    shares = float((flat == 0).mean()), float(np.isnan(flat).mean())
    own = kept.mean(), kept.std(), kept.min(), kept.max(), math.sqrt(float(np.square(kept).sum()))
    return (*map(float, own), *shares)


@pytest.mark.parametrize(
    "dtype",
    [
        *("f2", "f4", "f8", ">f4", "i1", "u2", "i8", "bool", "c8", "c16"),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4),
    ],
)
def test_every_type_is_what_numpy_says(
    db: mldb.MLDatabase, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_BLOCK", 7)  # so that blocks are put together
    rng = np.random.default_rng(3)
    values = rng.integers(-3, 4, (5, 11)).astype("f4")
    values = np.abs(values) if np.dtype(dtype).kind == "u" else values
    values = values.astype(dtype)
    db["x"] = values
    assert told(db, "x") == pytest.approx(expected(values))


def test_rules_of_nan_infinity_and_nothing(db: mldb.MLDatabase) -> None:
    nan, inf = math.nan, math.inf
    db["some"] = np.array([nan, 0.0, 3.0, nan])
    db["all"] = np.array([nan, nan])
    db["none"] = np.zeros((0, 3))
    db["inf"] = np.array([inf, 1.0])
    db["both"] = np.array([inf, -inf])
    db["text"] = np.array(["a", "b"])
    db["scalar"] = np.array(2.0)
    assert told(db, "some") == (1.5, 1.5, 0.0, 3.0, 3.0, 0.25, 0.5)
    assert told(db, "all") == (None, None, None, None, None, 0.0, 1.0)
    assert told(db, "none") == (None,) * 7
    assert told(db, "inf") == (inf, None, 1.0, inf, inf, 0.0, 0.0)
    assert told(db, "both") == (None, None, -inf, inf, inf, 0.0, 0.0)
    assert told(db, "text") == (None,) * 7
    assert told(db, "scalar") == (2.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0)


def test_large_values_far_from_zero_keep_their_spread(db: mldb.MLDatabase) -> None:
    values = 1e8 + np.random.default_rng(0).standard_normal(500_000)
    db["x"] = values
    assert told(db, "x")[1] == pytest.approx(float(values.std()), rel=1e-9)


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
def test_sparse_tensors_count_as_the_dense_ones(db: mldb.MLDatabase, layout: str) -> None:
    rng = np.random.default_rng(1)
    dense = np.where(rng.random((6, 9)) < 0.3, rng.standard_normal((6, 9)), 0)
    db["x"] = scipy.sparse.csr_array(dense).asformat(layout)
    assert told(db, "x") == pytest.approx(expected(dense))


def test_coordinates_told_twice_are_added_up(db: mldb.MLDatabase) -> None:
    import torch

    places, values = np.array([[0, 0, 1], [1, 1, 2]]), np.array([1.0, -3.0, 5.0])
    db["scipy"] = scipy.sparse.coo_array((values, tuple(places)), shape=(3, 3))
    db["torch"] = torch.sparse_coo_tensor(
        torch.tensor(places), torch.tensor(values), (3, 3), check_invariants=True
    )
    dense = scipy.sparse.coo_array((values, tuple(places)), shape=(3, 3)).toarray()
    assert told(db, "scipy") == pytest.approx(expected(dense))
    assert told(db, "torch") == pytest.approx(expected(dense))


def test_only_rows_that_pass_are_looked_at_and_each_value_once(db: mldb.MLDatabase) -> None:
    for number in range(6):
        db.store_tensor(f"t{number}", np.full(3, number % 3), {"layer": str(number)}, epoch=number)
    known = db._queries()._known
    db.sql("SELECT name, std FROM tensors WHERE layer = '1'")
    assert known.computed == 1
    db.sql("SELECT name, std, mean FROM tensors")
    assert known.computed == 3, "two names of the same bytes"
    assert len(db.sql("SELECT mean FROM versions AS OF EPOCH 2")) == 3
    assert known.computed == 3
    db.sql("SELECT * FROM tensors")
    db.sql("SELECT name FROM tensors WHERE name IN (SELECT name FROM versions)")
    assert known.computed == 3, "a star names none"


def test_another_process_does_not_compute_them_again(tmp_path: Path) -> None:
    text = "SELECT name, mean, nan_share FROM tensors ORDER BY name"
    with mldb.open(tmp_path / "store", durability="os") as db:
        for number in range(5):
            db[f"t{number}"] = np.array([number, math.nan])
        first = db.sql(text).fetchall()
    with mldb.open(tmp_path / "store", mode="r") as db:
        assert db.sql(text).fetchall() == first
        assert db._queries()._known.computed == 0
    hint = tmp_path / "store" / "hints" / HINT
    data = bytearray(hint.read_bytes())
    data[-20] ^= 1
    hint.write_bytes(data)
    with mldb.open(tmp_path / "store", mode="r") as db:
        assert db.sql(text).fetchall() == first
        assert db._queries()._known.computed == 5
    hint.unlink()
    with mldb.open(tmp_path / "store", mode="r") as db:
        db.sql(text)
        assert load_hint_bytes(db._log.fs, HINT) is None, "a reader writes nothing"


def test_a_copy_of_a_store_takes_no_statistics_from_it(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "store", durability="os") as db:
        db["x"] = np.ones(3)
        db.sql("SELECT mean FROM tensors")
        db.backup(tmp_path / "copy")
    with mldb.open(tmp_path / "copy") as db:
        assert db.sql("SELECT mean FROM tensors").fetchall() == [(1.0,)]


def test_a_damaged_tensor_is_named_and_the_others_are_not_touched(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "store", durability="os") as db:
        for name in ("good", "bad"):
            db[name] = np.full(5000, 7.25 if name == "good" else 9.125, "f8")
    for path in (tmp_path / "store" / "segments").iterdir():
        data = bytearray(path.read_bytes())
        place = data.find(np.float64(9.125).tobytes() * 8)
        if place >= 0:
            data[place + 16] ^= 0xFF
            path.write_bytes(data)
    with mldb.open(tmp_path / "store", mode="r") as db:
        with pytest.raises(mldb.CorruptError) as caught:
            db.sql("SELECT name, mean FROM tensors")
        assert caught.value.key == "bad" or "bad" in str(caught.value)
        assert db.sql("SELECT mean FROM tensors WHERE name = 'good'").fetchall() == [(7.25,)]
        assert db.query.execute_query("SELECT tensors ORDER BY name") == ["bad", "good"]
