"""Tensors written piece by piece: what leaves the block is whole, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
