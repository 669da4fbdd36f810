"""Patches under compaction: what a kept version builds on stays, whatever else goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mldb
from mldb.errors import VersionGoneError
from mldb.log.fs.memory import MemoryFileSystem

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["rows", "rows", "rows", "whole", "epoch", "tag", "rewind", "compact"]),
        st.integers(0, 1 << 16),
    ),
    max_size=14,
)


def whole(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 5, (40, 300)).astype(np.float32)


@settings(deadline=None)
@given(STEPS, st.none() | st.integers(1, 3))
def test_any_order_of_patches_and_passes_reads_as_copies_would(
    steps: list[tuple[str, int]], last: int | None
) -> None:
    """The model keeps a whole array for every commit; what retention drops is named as gone."""
    fs = MemoryFileSystem()
    db = mldb.MLDatabase.on(fs, durability="os", segment_entries=4)
    model: dict[int, Any] = {}
    value, epoch = whole(0), 0
    model[int(db.store_tensor("w", value, epoch=0))] = value
    for kind, seed in [*steps, ("compact", 0)]:
        if kind == "rows":
            rows = np.random.default_rng(seed).permutation(40)[: 1 + seed % 4]
            value = value.copy()
            value[rows] = whole(seed)[: len(rows)]
            model[int(db.update_tensor("w", rows, value[rows]))] = value
        elif kind == "whole":
            value = whole(seed)
            model[int(db.store_tensor("w", value))] = value
        elif kind == "epoch":
            epoch += 1
            value = value + 1
            model[int(db.store_tensor("w", value, epoch=epoch))] = value
        elif kind == "tag":
            model[int(db.tag(f"t{seed}"))] = value
        elif kind == "rewind":
            kept = [lsn for lsn in model if _reads(db, lsn, model)]
            lsn = kept[seed % len(kept)]
            value = model[lsn]
            model[int(db.rewind(mldb.Lsn(lsn)))] = value
            epoch = db.epoch
        else:
            if last is not None:
                model[int(_set(db, last))] = value
            db.compact(cold="all" if seed % 2 else "none")
        assert np.array_equal(db["w"], value)
    readable = [lsn for lsn in model if _reads(db, lsn, model)]
    assert last is not None or len(readable) == len(model)
    assert db.verify().ok
    db.close()


def _set(db: mldb.MLDatabase, last: int) -> int:
    db.retention.set(last=last)
    return db.lsn


def _reads(db: mldb.MLDatabase, lsn: int, model: dict[int, Any]) -> bool:
    """Whether a commit is kept; then it reads as it was written, in parts too."""
    try:
        snapshot = db.at(mldb.Lsn(lsn))
    except VersionGoneError:
        return False
    with snapshot:
        assert np.array_equal(snapshot["w"], model[lsn])
        assert np.array_equal(snapshot.tensor("w")[7:20], model[lsn][7:20])
    return True


@pytest.mark.parametrize("cold", ["all", "none"])
def test_a_patch_is_not_decoded_to_be_compressed_and_its_base_may_be(
    store_path: Path, cold: Any
) -> None:
    with mldb.open(store_path, durability="os") as db:
        db["w"] = np.zeros((4000, 64), np.float32)
        for step in range(50):
            db.update_tensor("w", [step, step + 100], np.full((2, 64), step, np.float32))
        before = {version.lsn: version.stored_bytes for version in db.history("w")}
        want = np.array(db["w"])
        db.compact(cold=cold)
        after = {version.lsn: version.stored_bytes for version in db.history("w")}
        first = min(before)
        assert {lsn: size for lsn, size in after.items() if lsn != first} == {
            lsn: size for lsn, size in before.items() if lsn != first
        }
        assert (after[first] < before[first]) == (cold == "all")
        assert np.array_equal(db["w"], want)
