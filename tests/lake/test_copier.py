"""Rows that are verified are copied in one call: when there is one, and what it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.rows.copier import copier_of
from mldb.lake.rows.tiers import Segments
from mldb.log import native
from tests.support.lakes import DIM, data, db, fill

__all__ = ["data", "db"]


@pytest.mark.parametrize("parts", [1, 60])
def test_it_is_there_once_all_rows_are_verified(
    db: mldb.MLDatabase, data: dict[str, Any], parts: int
) -> None:
    """Over one block and over many, with rows removed in between; Python alone has none."""
    lake = fill(db, data, parts)
    for _ in range(2):
        rows = lake.rows()
        some = np.random.default_rng(3).permutation(len(rows))[:200]
        want = np.stack([rows.gather("mu", slice(row, row + 1))[0] for row in some.tolist()])
        rows.gather("mu", np.arange(len(rows)))
        copy, out = copier_of(rows, "mu"), np.zeros((200, DIM), np.float32)
        assert copy is not None
        assert copy(some, out) is (native.twin is not None)
        assert native.twin is None or out.tobytes() == want.tobytes()
        with native.switched_off():
            assert not copy(some, out)
        lake.remove(rows.ids()[::7])


@pytest.mark.parametrize("verify", ["first", "always"])
def test_what_is_not_verified_has_none(
    db: mldb.MLDatabase, data: dict[str, Any], verify: Any
) -> None:
    fill(db, data)
    path = db.path
    db.close()
    with mldb.open(path, mode="r", verify=verify) as again:
        rows = again.lake().rows()
        assert copier_of(rows, "mu") is None
        segments, out = Segments(rows), np.empty((40, DIM), np.float32)
        for start in (0, 40, 460, 0):
            some = np.arange(start, start + 40)[::-1].copy()
            segments.gather(some, out)
            assert out.tobytes() == rows.gather("mu", some).tobytes()
        rows.gather("mu", np.arange(len(rows)))
        assert (copier_of(rows, "mu") is None) == (verify == "always")
        assert segments.moved_bytes == 4 * out.nbytes


def test_ids_that_are_numbers_of_a_block_have_none(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    lake.add_splats(data["mu"])
    for rows in (lake.rows(), lake.rows()):
        rows.gather("id", np.arange(len(rows)))
        out = np.empty(3, np.int64)
        copy, some = copier_of(rows, "id"), np.array([2, 700, 999])
        if copy is not None and copy(some, out):
            assert out.tobytes() == rows.gather("id", some).tobytes()


def test_an_array_of_another_type_is_not_written_to(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    rows = fill(db, data).rows()
    rows.gather("mu", np.arange(len(rows)))
    out = np.zeros((2, DIM), np.int32)
    copy = copier_of(rows, "mu")
    assert copy is not None
    assert not copy(np.array([1, 2]), out)
    assert not out.any()
