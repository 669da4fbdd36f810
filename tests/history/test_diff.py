"""What changed between two moments is told by values, not by who stored something."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import mldb
from mldb.history import diff as module
from mldb.log.fs.memory import MemoryFileSystem


def by_name(found: Any) -> dict[str, mldb.TensorDiff]:
    return {item.name: item for item in found}


def test_a_step_is_told_by_norm_angle_and_largest_change(tmp_path: Path) -> None:
    before, after = np.array([3.0, 4.0, 0.0]), np.array([3.0, 4.0, 2.0])
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("w", before, epoch=1)
        db.store_tensor("gone", before, epoch=1)
        db.store_tensor("frozen", before, epoch=1)
        db.store_tensor("w", after, epoch=2)
        db.store_tensor("frozen", before.copy(), epoch=2)
        db.store_tensor("new", before, epoch=2)
        del db["gone"]
        found = by_name(db.diff(1, 2))
        assert [(name, item.change) for name, item in found.items()] == [
            *(("gone", "removed"), ("new", "added"), ("w", "changed")),
        ]
        item = found["w"]
        assert (item.norm, item.relative, item.largest) == (2.0, 0.4, 2.0)
        assert item.cosine == pytest.approx(25 / (5 * math.sqrt(29)))
        every = by_name(db.diff(1, 2, same=True))
        assert (every["frozen"].change, every["frozen"].cosine) == ("same", 1.0)
        assert list(by_name(db.diff(2, 2))) == []
        assert list(by_name(db.diff(1, prefix="n"))) == ["new"]
        assert math.isnan(by_name(db.diff(1, 2, values=False))["w"].norm)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.zeros(3), np.zeros((3, 1))),
        (np.zeros(3, bool), np.ones(3, bool)),
        (scipy.sparse.coo_array(np.eye(3)), scipy.sparse.coo_array(2 * np.eye(3))),
    ],
)
def test_what_has_no_difference_only_counts_as_changed(
    tmp_path: Path, before: Any, after: Any
) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("w", before, epoch=1)
        db.store_tensor("w", after, epoch=2)
        (item,) = db.diff(1, 2)
    assert item.change == "changed"
    assert all(map(math.isnan, (item.norm, item.relative, item.cosine, item.largest)))


def test_integers_that_float64_cannot_tell_apart_have_changed(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("w", np.array([2**53]), epoch=1)
        db.store_tensor("w", np.array([2**53 + 1]), epoch=2)
        (item,) = db.diff(1, 2)
    assert item.change == "changed"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_norms_are_those_of_float64_over_any_blocks(data: st.DataObject) -> None:
    dtype = data.draw(
        st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.complex64])
    )
    numbers = st.integers(-100, 100)
    one, two = (
        data.draw(arrays.arrays(np.float64, 23, elements=numbers)).astype(dtype) for _ in range(2)
    )
    with pytest.MonkeyPatch.context() as patch, mldb.MLDatabase.on(MemoryFileSystem()) as db:
        patch.setattr(module, "_AT_ONCE", data.draw(st.integers(1, 30)))
        db.store_tensor("w", one, epoch=1)
        db.store_tensor("w", two, epoch=2)
        found = list(db.diff(1, 2))
    wide = np.complex128 if dtype is np.complex64 else np.float64
    step = two.astype(wide) - one.astype(wide)
    if np.array_equal(one.view(np.uint8), two.view(np.uint8)):
        assert found == []
    else:
        assert found[0].norm == pytest.approx(np.linalg.norm(step))
        assert found[0].largest == pytest.approx(np.abs(step).max())


def test_nan_is_a_change_of_no_size(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("w", np.array([1.0, 2.0]), epoch=1)
        db.store_tensor("w", np.array([1.0, np.nan]), epoch=2)
        (item,) = db.diff(1, 2)
    assert item.change == "changed"
    assert math.isnan(item.norm)
    assert math.isnan(item.largest)


def test_both_moments_stay_readable_until_the_iterator_ends(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with mldb.open(path, durability="os") as db:
        for epoch in range(1, 4):
            with db.transaction(epoch=epoch) as txn:
                for name in "ab":
                    txn.store_tensor(name, np.full(4, float(epoch)))
        found = db.diff(1, 2)
        first = next(found)
        db.retention.set(last=1)
        db.compact()
        assert [item.norm for item in (first, *found)] == [2.0, 2.0]
        db.compact()
        with pytest.raises(mldb.VersionGoneError):
            db.diff(1, 2)


def test_an_abandoned_lineage_is_compared_by_lsn(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("w", 1.0, epoch=1)
        left = db.store_tensor("w", 2.0, epoch=2)
        db.rewind(1)
        db.store_tensor("w", 5.0, epoch=2)
        (item,) = db.diff(left, 2)
    assert item.norm == 3.0
