"""Results: rows, NumPy, other packages, how they look."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.query.result import QueryResult

TEXT = (
    "SELECT name, ndim, nbytes > 10 AS is_large, shape, time, rate, sum(nbytes) OVER () AS total, "
    "DATE '2026-01-31' AS day, NULL AS nothing FROM tensors ORDER BY name"
)


@pytest.fixture
def result(tmp_path: Path) -> Iterator[QueryResult]:
    with mldb.open(tmp_path / "store", durability="os") as db:
        db.store_tensor("a", np.zeros((2, 3)), {"rate": 0.5})
        db.create_relationship("a", "layer", "feeds_into")
        yield db.sql(TEXT)


def test_rows(result: QueryResult) -> None:
    assert result.columns == [
        *("name", "ndim", "is_large", "shape", "time", "rate", "total", "day", "nothing")
    ]
    rows = result.fetchall()
    assert len(result) == len(rows) == 2
    assert list(result) == rows
    assert rows[0][:4] == ("a", 2, True, [2, 3])
    assert rows[0][5:7] == (0.5, 48)
    assert rows[1] == ("layer", *[None] * 5, 48, rows[0][7], None)
    assert rows[0][4].tzinfo is UTC
    assert abs(rows[0][4] - datetime.now(UTC)).total_seconds() < 3600
    assert [result.fetchone(), result.fetchone(), result.fetchone()] == [*rows, None]


def test_numpy(result: QueryResult) -> None:
    columns = result.to_numpy()
    assert columns["ndim"].dtype == np.int64
    assert np.ma.getmaskarray(columns["ndim"]).tolist() == [False, True]
    assert columns["time"].dtype == np.dtype("M8[us]")
    assert columns["total"].tolist() == [48, 48]
    assert columns["name"].tolist() == ["a", "layer"]
    columns["total"][0] = 0
    assert result.fetchall()[0][6] == 48, "the arrays are the caller's own"


@pytest.mark.parametrize(
    ("package", "verb"), [("pandas", "to_pandas"), ("pyarrow", "to_arrow"), ("polars", "to_polars")]
)
def test_a_missing_package_is_told_with_its_install_line(
    result: QueryResult, package: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.import_module

    def missing(name: str, *more: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return find(name, *more)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(mldb.UsageError, match=f"pip install {package}"):
        getattr(result, verb)()


def test_pandas(result: QueryResult) -> None:
    pytest.importorskip("pandas")
    frame = result.to_pandas()
    assert list(frame.columns) == result.columns
    assert str(frame["ndim"].dtype) == "Int64"
    assert frame["is_large"].tolist()[0] is True
    assert frame["rate"].isna().tolist() == [False, True]
    assert str(frame["time"].dtype).startswith("datetime64")
    assert frame["total"].sum() == 96


def test_arrow(result: QueryResult) -> None:
    pytest.importorskip("pyarrow")
    table = result.to_arrow()
    assert table.column_names == result.columns
    assert table.column("shape").to_pylist() == [[2, 3], None]
    assert table.column("ndim").to_pylist() == [2, None]


def test_polars(result: QueryResult) -> None:
    pytest.importorskip("polars")
    frame = result.to_polars()
    assert frame.columns == result.columns
    assert frame["ndim"].to_list() == [2, None]
    assert frame["shape"].to_list() == [[2, 3], None]


def test_how_it_looks(result: QueryResult) -> None:
    lines = repr(result).splitlines()
    assert lines[0].split()[:3] == ["name", "ndim", "is_large"]
    assert lines[2].split()[:3] == ["a", "2", "True"]
    assert lines[-1] == "(2 rows)"


def test_hostile_values_are_escaped_and_long_ones_cut() -> None:
    names = np.array(["<script>alert(1)</script>", "\x1b[31mred\n", "x" * 300], object)
    found = QueryResult(["<b>"], [np.concatenate([names, names.repeat(20)])])
    page = found._repr_html_()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "43 not shown" in page
    text = repr(found)
    assert "\x1b" not in text
    assert "\\x1b[31mred\\n" in text
    assert max(map(len, text.splitlines())) <= 40
    assert text.splitlines()[-1] == "(63 rows, 43 not shown)"


def test_no_rows_and_two_columns_of_one_name(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "store") as db:
        none = db.sql("SELECT name, shape, time, nbytes FROM tensors")
        assert (none.fetchall(), len(none), none.fetchone()) == ([], 0, None)
        assert repr(none).splitlines()[-1] == "(0 rows)"
        assert set(none.to_numpy()) == {"name", "shape", "time", "nbytes"}
        db["x"] = np.zeros(2)
        assert db.sql("SELECT nbytes, nbytes FROM tensors").fetchall() == [(16, 16)]
