"""Rows that are asked for by number: those that are none are refused by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mldb
from mldb.lake.rows import live

DIM = 4


@pytest.fixture(params=[(1, False), (1, True), (3, False), (3, True)], ids=str)
def lake(request: pytest.FixtureRequest, store_path: Path, rng: np.random.Generator) -> Any:
    """One block or several, with all rows live or not: each is read another way."""
    blocks, removes = request.param
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        for _ in range(blocks):
            lake.add_splats(rng.standard_normal((60, DIM)), labels=np.arange(60))
        if removes:
            lake.remove([3, 11])
        yield lake


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
def test_a_row_out_of_range_is_refused_and_not_the_last_one(
    lake: Any, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N gave the last row, -1 the first one or "restore from a backup"."""
    rows, total = lake.rows(), len(lake)
    if not few:
        monkeypatch.setattr(live, "_FEW_ROWS", 1)
    for bad in (total, total + 7, -1, -total - 1, 1 << 40):
        for asked in ([bad], [0, 1, bad, 2], np.array([5, bad], np.int64)):
            place = list(asked).index(bad)
            for ask in (partial(rows.gather, "mu"), rows.lsns):
                with pytest.raises(mldb.InvalidValueError, match=f"row {bad}, .* place {place}"):
                    ask(asked)
    for bad_run in (slice(0, total + 1), slice(-1, 3), slice(4, 3)):
        with pytest.raises(mldb.InvalidValueError, match=f"which has {total}"):
            rows.gather("id", bad_run)


@pytest.mark.parametrize(
    "asked",
    [[1.0], [True], [[1, 2]], 3, "3", slice(None), slice(0, 4, 2), slice(0.0, 2), slice(None, 3)],
    ids=repr,
)
def test_what_is_no_row_number_is_refused(lake: Any, asked: Any) -> None:
    for ask in (partial(lake.rows().gather, "label"), lake.rows().lsns):
        with pytest.raises(mldb.InvalidTypeError, match="give"):
            ask(asked)


def test_whole_numbers_of_any_type_are_rows(lake: Any) -> None:
    rows, total = lake.rows(), len(lake)
    ids = rows.ids()
    for asked in ([], [0], [total - 1, 0, 7], np.arange(total, dtype=np.uint8), (1, 2)):
        assert rows.gather("id", asked).tolist() == ids[list(asked)].tolist()
        assert len(rows.lsns(asked)) == len(asked)
        out = np.empty((len(asked), DIM), np.float32)
        assert rows.gather("mu", asked, out) is out
    whole = slice(np.int64(0), np.int32(total))
    assert rows.gather("id", whole).tolist() == ids.tolist()


_FLOATS = [
    name
    for name in dir(ml_dtypes)
    if name.startswith(("bfloat", "float")) and isinstance(getattr(ml_dtypes, name), type)
]


@pytest.mark.parametrize("name", _FLOATS)
def test_rows_of_ml_dtypes_are_taken_as_torch_ones_are(
    name: str, store_path: Path, rng: np.random.Generator
) -> None:
    given = (rng.integers(1, 3, (40, DIM)) * 2.0).astype(getattr(ml_dtypes, name))
    want = given.astype(np.float32)
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM, geometry="euclid")
        lake.add_splats(given, columns={"again": given}, alpha=given[:, 0])
        got = lake.get(fields=("mu", "again", "alpha"))
        assert got["mu"].tolist() == got["again"].tolist() == want.tolist()
        assert got["alpha"].tolist() == want[:, 0].tolist()
        sphere = db.lake("sphere", dim=DIM)
        sphere.add_splats(given)
        assert sphere.augment(given, device="numpy").shape == given.shape
        assert sphere.get(fields=("norm",))["norm"] == pytest.approx(
            np.linalg.norm(want, axis=1), rel=1e-6
        )


def test_integers_and_complex_numbers_of_ml_dtypes_are_no_rows(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        for name in ("int4", "uint2", "complex32", "bcomplex32"):
            with pytest.raises(mldb.InvalidTypeError, match="rows are real numbers"):
                db.lake(dim=DIM).add_splats(np.ones((3, DIM), getattr(ml_dtypes, name)))
        assert db.lakes() == []
