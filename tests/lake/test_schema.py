"""Columns whose blocks say different things: read in a dtype that holds them all, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.rows import live
from mldb.lake.rows.schema import schema_of

DIM, ROWS = 4, 60


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def added(db: mldb.MLDatabase, rng: np.random.Generator, *values: Any) -> Any:
    """A lake with one addition for each of *values*, the column "c" of its rows."""
    lake = db.lake(dim=DIM)
    for column in values:
        lake.add_splats(rng.standard_normal((len(column), DIM)), columns={"c": column})
    return lake


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        (("i4", "i8"), "i8"),
        (("i8", "i4"), "i8"),
        (("u1", "i1"), "i2"),
        (("?", "u2", "?"), "u2"),
        (("f2", "f4"), "f4"),
        (("f4", "f8", "f2"), "f8"),
        (("i2", "f2"), "f4"),
        (("u4", "f4"), "f8"),
    ],
)
def test_a_column_of_several_dtypes_is_read_in_one_that_holds_them_all(
    db: mldb.MLDatabase,
    rng: np.random.Generator,
    dtypes: tuple[str, ...],
    common: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was "no column in every block", though every block had it."""
    parts = [(np.arange(ROWS) % 2 * (3 + n)).astype(dtype) for n, dtype in enumerate(dtypes)]
    lake = added(db, rng, *parts)
    lake.remove([7])
    want = np.delete(np.concatenate(parts).astype(common), 7)
    assert lake.get(fields=["c"])["c"].dtype == want.dtype
    assert lake.get(fields=["c"])["c"].tolist() == want.tolist()
    rows = lake.rows()
    chosen = rng.permutation(len(want))
    for few in (1000, 0):  # of a scattered gather: block by block, or by the map of all blocks
        monkeypatch.setattr(live, "_FEW_ROWS", few)
        assert rows.gather("c", chosen).tolist() == want[chosen].tolist()
        assert rows.gather("c", chosen[:5]).tolist() == want[chosen[:5]].tolist()
        assert rows.gather("c", slice(50, 70)).tolist() == want[50:70].tolist()
    assert lake.get([8, 100], fields=["c"])["c"].tolist() == want[[7, 99]].tolist()
    assert lake.at(db.lsn).rows().columns["c"] == (want.dtype.str, ())


def test_streams_have_it_as_field_and_as_salience(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    lake = added(db, rng, np.ones(ROWS, np.int32), np.full(ROWS, 1 << 40, np.int64))
    loader = lake.export_to_dataloader(
        16,
        fields=("id", "c"),
        importance_sampling=mldb.Importance(gamma=1.0, floor=0.0, least_ess=0.0),
        salience="c",
        device="numpy",
    )
    batches = list(loader)
    values = torch.cat([batch.c for batch in batches])
    assert values.dtype == torch.int64
    assert set(values.tolist()) == {1 << 40}  # the others have a chance of 10^-12
    ids = torch.cat([batch.id for batch in batches])
    assert lake.get(ids, fields=["c"])["c"].tolist() == values.tolist()


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (np.ones(ROWS, np.int64), np.ones(ROWS, np.float32), "the dtypes int64 and float32, which"),
        (np.ones(ROWS, np.int64), np.ones(ROWS, np.uint64), "the dtypes int64 and uint64, which"),
        (np.ones((ROWS, 2)), np.ones((ROWS, 3)), r"rows of shapes \(2,\) and \(3,\)"),
        (np.ones(ROWS), np.ones((ROWS, 1)), r"rows of shapes \(\) and \(1,\)"),
    ],
)
def test_what_no_dtype_holds_is_refused_by_both_names(
    db: mldb.MLDatabase, rng: np.random.Generator, first: Any, second: Any, named: str
) -> None:
    lake = added(db, rng, first)
    before = db.lsn
    added(db, rng, second)
    reads: list[Callable[[], Any]] = [
        lambda: lake.get(fields=["c"]),
        lambda: lake.get([3], fields=["c"]),
        lambda: lake.rows().gather("c", [0]),
        lambda: lake.dataset(8, fields=("c",), device="numpy"),
        lambda: lake.dataset(
            8, salience="c", importance_sampling=mldb.Importance(gamma=1.0), device="numpy"
        ),
    ]
    for read in reads:
        with pytest.raises(mldb.InvalidTypeError, match=named):
            read()
    assert len(lake.get()["mu"]) == 2 * ROWS
    assert np.array_equal(lake.at(before).get(fields=["c"])["c"], first)


def test_a_column_that_a_block_lacks_is_missing_whatever_the_others_say(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = added(db, rng, np.ones(ROWS, np.int64), np.ones((ROWS, 2)))
    lake.add_splats(rng.standard_normal((5, DIM)))
    with pytest.raises(mldb.MissingError, match="no column 'c' in every block"):
        lake.get(fields=["c"])


def test_every_state_has_the_columns_of_its_own_blocks(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    """What was found of the state asked for last is kept, for states of one history."""
    forms: list[tuple[str, tuple[int, ...]] | None] = []
    commits = []
    for dtype, want in (("i4", "<i4"), ("i4", "<i4"), ("i8", "<i8"), ("f4", None)):
        lake = added(db, rng, np.ones(ROWS, dtype))
        commits.append(db.lsn)
        forms.append(None if want is None else (want, ()))
    for _ in range(3):
        for number in rng.permutation(len(commits)):
            rows = lake.at(commits[number]).rows()
            assert rows.columns.get("c") == forms[number]


def test_the_schema_of_a_lake() -> None:
    assert schema_of([]) == ({}, {})
    labelled: list[list[tuple[str, str, tuple[int, ...]]]]
    labelled = [[("mu", "<f4", (3,)), ("label", "<i8", ())], [("mu", "<f4", (3,))]]
    assert schema_of(labelled).columns == {"label": ("<i8", ()), "mu": ("<f4", (3,))}
    assert "label" not in schema_of(labelled[1:]).columns
    assert schema_of([[("c", "|u1", ())]] * 2).columns == {"c": ("|u1", ())}
    every = [[("c", dtype, ())] for dtype in ("|i1", "<u4", "<f2")]
    assert schema_of(every).columns == {"c": ("<f8", ())}
