"""The RAM tier: the same rows as from the segments, within its budget, with true figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.rows.live import Rows
from mldb.lake.rows.tiers import CHUNK_ROWS, Segments, Tier, slots_of, warm_tier

DIM, ROWS = 8, 5 * CHUNK_ROWS + 100
CHUNK_BYTES = 4 * DIM * CHUNK_ROWS


@pytest.fixture
def rows(store_path: Path, rng: np.random.Generator) -> Iterator[Rows]:
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        for _ in range(3):
            lake.add_splats(rng.standard_normal((ROWS // 3 + 1, DIM)))
        lake.remove([0, 77])
        yield lake.rows()


def tier(rows: Rows, chunks: int) -> Tier:
    made = warm_tier(rows, chunks * CHUNK_BYTES, Segments(rows).gather)
    assert made is not None
    return made


@pytest.mark.parametrize("chunks", [1, 3, 6, 50])
def test_it_reads_what_the_segments_hold(rows: Rows, rng: np.random.Generator, chunks: int) -> None:
    warm = tier(rows, chunks)
    want = rows.gather("mu", slice(0, len(rows)))
    for turn in range(60):
        chosen: Any = rng.integers(0, len(rows), int(rng.integers(1, 400)))
        if turn % 3 == 0:
            low = int(rng.integers(0, len(rows) - 300))
            chosen = slice(low, low + 300)
        out = np.empty_like(want[chosen])
        warm.gather(chosen, out)
        assert out.tobytes() == want[chosen].tobytes()
        assert warm.stats.resident_bytes <= warm.stats.budget_bytes
    stats = warm.stats
    assert stats.hits + stats.misses > 0
    held = (warm._holder >= 0).sum()
    assert held <= chunks
    if chunks >= 6:
        assert (stats.misses, stats.evicted) == (0, 0)
        assert stats.resident_bytes == stats.moved_bytes == 4 * DIM * len(rows)


def test_a_scan_evicts_and_a_few_rows_do_not(rows: Rows) -> None:
    warm = tier(rows, 2)
    out = np.empty((256, DIM), np.float32)
    for low in range(0, 4 * CHUNK_ROWS, 256):
        warm.gather(slice(low, low + 256), out)
    assert warm.stats.evicted == 2
    before = warm.stats.evicted
    few = np.array([0, 1, 2])
    warm.gather(few, out[:3])
    assert (warm.stats.evicted, warm.stats.misses) == (before, 3)


def test_a_budget_below_one_chunk_is_no_tier(rows: Rows) -> None:
    assert warm_tier(rows, CHUNK_BYTES - 1, Segments(rows).gather) is None
    assert slots_of(rows, 3 * CHUNK_BYTES) == 3
    with pytest.raises(mldb.InvalidValueError):
        slots_of(rows, -1)


def test_the_budget_changes_what_moves_and_never_what_is_read(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        lake.add_splats(rng.standard_normal((3 * CHUNK_ROWS, DIM)))
        seen = []
        for budget in (0, CHUNK_BYTES, 8 * CHUNK_BYTES):
            loader = lake.export_to_dataloader(128, warm_bytes=budget)
            seen.append([batch.numpy().tobytes() for batch in loader])
            warm, moved = loader.stats()["warm"], loader.stats()["cold"]["moved_bytes"]
            assert (warm is None) == (budget == 0)
            if warm is not None:
                assert warm["resident_bytes"] <= budget
                assert warm["hits"] > 0
                assert moved == warm["moved_bytes"] + 4 * DIM * warm["misses"]
            else:
                assert moved == 4 * DIM * 3 * CHUNK_ROWS
        assert seen[0] == seen[1] == seen[2]


def test_the_hot_tier_is_filled_through_the_warm_one(
    store_path: Path, rng: np.random.Generator
) -> None:
    """On the CPU the device's memory is RAM; the way of the rows is the same."""
    pytest.importorskip("torch")
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        lake.add_splats(rng.standard_normal((3 * CHUNK_ROWS, DIM)))
        for augment in (False, True, mldb.Augmentation(copies=3, keep=True)):
            seen = []
            for hot, warm in ((0, 0), (CHUNK_BYTES, 0), (8 * CHUNK_BYTES, 2 * CHUNK_BYTES)):
                loader = lake.export_to_dataloader(
                    128, device="cpu", hot_bytes=hot, warm_bytes=warm, generate_samples=augment
                )
                seen.append([batch.numpy().tobytes() for batch in loader])
                stats = loader.stats()["hot"]
                assert (stats is None) == (hot == 0)
                if stats is not None:
                    assert stats["hits"] > 0
                    assert stats["resident_bytes"] <= hot
            assert seen[0] == seen[1] == seen[2]
