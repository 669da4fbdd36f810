"""On what cold versions build: few keyframes, short chains, and the same ones pass by pass."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb import keys
from mldb.log import format as fmt

KEY = keys.TENSORS + b"w"


def bases(db: mldb.MLDatabase) -> list[int | None]:
    """By version: the number of the one that it builds on, None for one that is whole."""
    entries = db._scope().view.versions(KEY)
    numbers = {entry.commit_lsn: number for number, entry in enumerate(entries)}
    return [
        numbers[entry.base] if entry.encoding == fmt.ENCODING_DELTA else None for entry in entries
    ]


def depths(found: list[int | None]) -> list[int]:
    made: list[int] = []
    for base in found:
        made.append(0 if base is None else made[base] + 1)
    return made


def steps(rng: np.random.Generator, count: int) -> list[Any]:
    values = [rng.standard_normal(2000).astype(np.float32)]
    for _ in range(count - 1):
        noise = 1 + 1e-3 * rng.standard_normal(2000)
        values.append((values[-1] * noise).astype(np.float32))
    return values


@pytest.mark.parametrize("passes", [1, 4])
def test_versions_build_on_one_another_as_a_fenwick_tree_however_many_passes_there_are(
    store_path: Path, rng: np.random.Generator, passes: int
) -> None:
    values = steps(rng, 40)
    with mldb.open(store_path, durability="os") as db:
        for part in np.array_split(np.arange(40), passes):
            for number in part.tolist():
                db.store_tensor("w", values[number], epoch=number)
            db.compact(cold="all")
        found = bases(db)
        assert found[:31] == [None, *(place & (place - 1) for place in range(1, 31))]
        assert found[31] is None
        assert found[32:] == [31 + (place & (place - 1)) for place in range(1, 9)]
        assert max(depths(found)) == 4
        for number, value in enumerate(values):
            assert np.array_equal(db.query_tensor("w", as_of=number), value)


def test_what_is_hot_is_left_and_what_is_next_builds_on_it(
    store_path: Path, rng: np.random.Generator
) -> None:
    values = steps(rng, 8)
    with mldb.open(store_path, durability="os") as db:
        for number, value in enumerate(values):
            db.store_tensor("w", value, epoch=number)
            if number == 3:
                db.tag("kept")
        db.compact(cold=timedelta(0))
        found = bases(db)
        assert found[3] is None  # tagged
        assert found[-1] is None  # the newest
        assert found[4:7] == [3, 3, 5]
        report = db.compact(cold=timedelta(0))
        assert report.bytes_after == report.bytes_before
        assert bases(db) == found


def test_another_shape_or_what_does_not_get_shorter_begins_anew(
    store_path: Path, rng: np.random.Generator
) -> None:
    values = steps(rng, 3)
    other = rng.standard_normal(3000).astype(np.float32)
    noise = rng.integers(0, 1 << 32, 2000, dtype=np.uint32).view(np.float32)
    with mldb.open(store_path, durability="os") as db:
        for value in (*values, other, other * np.float32(1.0001), noise):
            db["w"] = value
        db.compact(cold="all")
        found = bases(db)
        assert found == [None, 0, 0, None, 3, None]
        assert np.array_equal(np.asarray(db["w"]).view(np.uint32), noise.view(np.uint32))
