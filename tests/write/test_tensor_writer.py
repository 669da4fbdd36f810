"""Tensors written piece by piece: what leaves the block is whole, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import mldb


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        database.store_tensor("kept", np.arange(3), epoch=3)
        yield database


def pending(db: mldb.MLDatabase) -> list[Path]:
    return list((Path(db.path) / "pending").iterdir())


def test_nothing_is_visible_before_the_block_ends_and_then_all_of_it(db: mldb.MLDatabase) -> None:
    before = db.lsn
    with db.create_tensor("x", (4, 3), "<f8", {"k": 1}, epoch=4) as writer:
        writer[0:2] = np.ones((2, 3))
        assert not writer.lsn
        assert "x" not in db
        assert (db.lsn, db.epoch) == (before, 3)
        assert len(pending(db)) == 1
    assert (db.lsn, db.epoch) == (db.tensor("x").lsn, 4)
    assert db["x"].tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2  # rows never written are zero
    assert db.metadata("x") == {"k": 1}
    assert db.lsn == writer.lsn
    assert pending(db) == []
    assert db.verify().ok


def test_metadata_stay_unless_given(db: mldb.MLDatabase) -> None:
    db.set_metadata("kept", {"k": 1})
    with db.create_tensor("kept", (2,), "i4") as writer:
        writer[:] = 5
    assert (db["kept"].tolist(), db.metadata("kept")) == ([5, 5], {"k": 1})
    with db.create_tensor("kept", (2,), "i4", {}) as writer:
        writer[...] = 6
    assert (db["kept"].tolist(), db.metadata("kept")) == ([6, 6], {})


def test_a_commit_that_is_refused_at_the_end_leaves_nothing_behind(db: mldb.MLDatabase) -> None:
    """The epoch is looked at when the block ends, after all the bytes were written."""
    before = db.lsn
    with pytest.raises(mldb.EpochOrderError), db.create_tensor("x", (4,), "f4", epoch=2) as writer:
        writer[:] = 1
    assert (writer.lsn, db.lsn, list(db), pending(db)) == (None, before, ["kept"], [])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_exception_in_the_block_leaves_nothing_behind(
    db: mldb.MLDatabase, error: type[BaseException]
) -> None:
    before = db.lsn
    with pytest.raises(error), db.create_tensor("x", (4,), "f4") as writer:  # noqa: PT012
        writer[0:2] = 1
        raise error
    assert (db.lsn, list(db), pending(db)) == (before, ["kept"], [])
    db.store_tensor("x", 1)
    assert db.verify().ok


def test_a_refused_piece_leaves_the_others_as_they_were(db: mldb.MLDatabase) -> None:
    with db.create_tensor("x", (4, 2), "i4") as writer:
        writer[0:2] = [[1, 2], [3, 4]]
        pieces: list[tuple[Any, Any, type[mldb.MldbError]]] = [
            (slice(0, 2), np.ones((3, 2)), mldb.InvalidValueError),
            (slice(0, 2), [["a", "b"]], mldb.MldbError),
            (slice(0, 4, 2), 0, mldb.InvalidValueError),
            ((slice(0, 2), 1), 0, mldb.InvalidValueError),
            (slice(None, None, -1), 0, mldb.InvalidValueError),
            (4, 0, mldb.InvalidValueError),
            ((0, 0, 0), 0, mldb.InvalidValueError),
            ([0, 1], 0, mldb.InvalidValueError),
            (0, None, mldb.InvalidTypeError),
        ]
        for key, values, kind in pieces:
            with pytest.raises(kind):
                writer[key] = values
        writer[-1] = 9
        writer[2, 0:1] = 7
    assert db["x"].tolist() == [[1, 2], [3, 4], [7, 0], [9, 9]]


def test_a_writer_is_used_inside_its_block(db: mldb.MLDatabase) -> None:
    writer = db.create_tensor("x", (2,), "f4")
    assert pending(db) == []  # nothing is made before the block
    with pytest.raises(mldb.ClosedError, match="'x'"):
        writer[0] = 1
    with writer:
        writer[0] = 1
    with pytest.raises(mldb.ClosedError, match="outside its with block"):
        writer[0] = 2
    assert db["x"].tolist() == [1, 0]


def test_a_writer_inside_its_own_block_is_refused(db: mldb.MLDatabase) -> None:
    """The inner block committed, and the end of the outer one was an AssertionError."""
    writer = db.create_tensor("x", (2,), "f4")
    with pytest.raises(mldb.UsageError, match="'x' is open already"), writer, writer:
        writer[0] = 1
    assert "x" not in db
    assert pending(db) == []
    with writer:
        with pytest.raises(mldb.UsageError), writer:
            pass
        writer[1] = 2  # the outer block goes on
    assert db["x"].tolist() == [0, 2]


def test_two_writers_and_other_commits_go_on_beside_each_other(db: mldb.MLDatabase) -> None:
    with db.create_tensor("a", (2,), "i8") as a, db.create_tensor("b", (2,), "i8") as b:
        a[0] = 1
        db["between"] = 5
        b[1] = 2
        db["a"] = 3  # is overwritten by the writer, which commits later
    assert [db[name].tolist() for name in ("a", "b", "between")] == [[1, 0], [0, 2], 5]
    assert len(db.history("a")) == 2
    assert b.lsn is not None
    assert a.lsn is not None
    assert b.lsn < a.lsn


def test_what_cannot_be_created_is_refused_at_the_call(db: mldb.MLDatabase) -> None:
    calls: list[tuple[Callable[[], object], type[mldb.MldbError]]] = [
        (lambda: db.create_tensor("x", (2,), "nonsense"), mldb.InvalidTypeError),
        (lambda: db.create_tensor("x", "ab", "f4"), mldb.InvalidTypeError),  # type: ignore[arg-type]
        (lambda: db.create_tensor("x", (1.5,), "f4"), mldb.InvalidTypeError),  # type: ignore[arg-type]
        (lambda: db.create_tensor("x", (2,), "f4", {"k": object()}), mldb.InvalidTypeError),
        (lambda: db.create_tensor("x", (2,), "f4", epoch=-1), mldb.LimitError),
        (lambda: db.create_tensor("../x", (2,), "f4"), mldb.InvalidNameError),
    ]
    for call, kind in calls:
        with pytest.raises(kind):
            call()
    assert (list(db), pending(db)) == (["kept"], [])


def test_values_are_never_cast_into_others_unasked(db: mldb.MLDatabase) -> None:
    """300 was stored as 44 in int8, NaN as a number in int32, 1e300 as inf, 1+2j as 1."""
    dtypes: list[tuple[Any, Any]] = [
        ("int8", 300),
        ("int8", np.array([300, 1])),
        ("int32", [np.nan, 1.0]),
        ("float32", 1e300),
        ("float32", np.array([1e300, 1.0])),
        ("float64", np.array([1 + 2j, 2])),
        ("bool", np.array([3, 0])),
        ("int8", torch.tensor([300, 1])),
        ("bfloat16", np.array([1e300, 1.0])),
    ]
    for dtype, values in dtypes:
        with db.create_tensor("x", (2,), dtype) as writer:
            writer[:] = True
            with pytest.raises(mldb.UsageError, match=r"'x'.*These rows were not written"):
                writer[0:2] = values
        assert db["x"].tolist() == [1, 1]


def test_numbers_of_python_take_the_dtype_of_the_tensor(db: mldb.MLDatabase) -> None:
    for dtype in ("float32", "int8", "complex64", "bfloat16", "float16", "u1"):
        with db.create_tensor("x", (3,), dtype) as writer:
            writer[0] = 1
            writer[1:3] = [2, True]
        assert db["x"].tolist() == [1, 2, 1]


def test_a_wider_dtype_is_taken_when_the_writer_is_told_so(db: mldb.MLDatabase) -> None:
    values = np.array([0.1, 1e300])
    with db.create_tensor("x", (2,), "float32", casting="same_kind") as writer:
        with pytest.raises(mldb.InvalidValueError, match="would become inf"):
            writer[:] = values
        writer[0:1] = values[:1]
    assert db["x"].tolist() == [np.float32(0.1), 0]
    with db.create_tensor("x", (2,), "float32", casting="unsafe") as writer:
        writer[:] = values
    assert db["x"].tolist() == [np.float32(0.1), np.inf]
    with db.create_tensor("x", (2,), "float64", casting="no") as writer:
        writer[:] = values
        with pytest.raises(mldb.InvalidTypeError, match="casting='no'"):
            writer[:] = np.ones(2, "f4")
    assert db["x"].tolist() == values.tolist()
    with pytest.raises(mldb.InvalidValueError, match="casting='loose'"):
        db.create_tensor("x", (2,), "float32", casting="loose")  # type: ignore[arg-type]


def test_a_masked_piece_is_refused(db: mldb.MLDatabase) -> None:
    with db.create_tensor("x", (2,), "float64") as writer:
        for values in (np.ma.array([1.0, 2.0], mask=[False, True]), [1.0, np.ma.masked]):
            with pytest.raises(mldb.InvalidTypeError, match="lose its mask"):
                writer[:] = values
    assert db["x"].tolist() == [0, 0]


def test_a_dtype_may_be_given_by_any_of_its_names(db: mldb.MLDatabase) -> None:
    """The text "bfloat16" was refused unless the program had imported ml_dtypes before."""
    names: list[Any] = [
        *("bfloat16", "torch.bfloat16", torch.bfloat16, ml_dtypes.bfloat16),
        *("float8_e4m3fn", "int4", "torch.float32", "<f4", float, np.int8),
    ]
    for name in names:
        with db.create_tensor("x", (2,), name) as writer:
            writer[:] = 3
        assert db["x"].tolist() == [3, 3]
    for name in ("bfloat", "torch.bits8", object, 5, "a" * 10_000, "torch.", None.__class__):
        with pytest.raises(mldb.InvalidTypeError) as caught:
            db.create_tensor("x", (2,), name)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 500
