"""Scattered rows of many blocks: one copy a mapping, equal to what each block holds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.rows import mosaic
from mldb.lake.rows.live import Rows
from mldb.log.fs.memory import MemoryFileSystem

FIELDS = ("mu", "norm", "kappa", "alpha", "id", "label", "flag", "pair")


def fill(db: mldb.MLDatabase, rng: np.random.Generator, blocks: int, dim: int = 7) -> Any:
    """Blocks of every length, in several segments, with ids given and assigned, some unlabelled."""
    lake = db.lake(dim=dim)
    for number in range(blocks):
        count = int(rng.integers(1, 40))
        lake.add_splats(
            rng.standard_normal((count, dim)),
            ids=rng.permutation(count) + 10_000 * (number + 1) if number % 3 == 0 else None,
            labels=rng.integers(0, 5, count) if number % 2 else None,
            columns={
                "flag": rng.integers(0, 2, count).astype(np.bool_),
                "pair": rng.integers(-9, 9, (count, 3)).astype(np.int16),
            },
        )
    return lake


@pytest.fixture(params=["disk", "memory"])
def db(request: pytest.FixtureRequest, store_path: Path) -> Iterator[mldb.MLDatabase]:
    if request.param == "disk":
        with mldb.open(store_path, durability="os", segment_bytes=1 << 14) as database:
            yield database
    else:
        with mldb.MLDatabase.on(MemoryFileSystem(), segment_bytes=1 << 14) as database:
            yield database


def test_any_rows_in_any_order_are_those_of_the_blocks(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = fill(db, rng, 30)
    rows = lake.rows()
    whole = {name: rows.gather(name, slice(0, len(rows))) for name in FIELDS}
    for whole_bytes in (0, 1 << 16):
        monkeypatch.setattr(mosaic, "_WHOLE_BYTES", whole_bytes)
        again = lake.rows()
        for _ in range(20):
            some = rng.integers(0, len(rows), int(rng.integers(0, 150)))
            for name in FIELDS:
                assert again.gather(name, some).tobytes() == whole[name][some].tobytes(), name
    lake.remove(whole["id"][::3])
    rows = lake.rows()
    left = np.delete(np.arange(len(whole["id"])), np.s_[::3])
    some = rng.permutation(len(rows))
    for name in FIELDS:
        assert rows.gather(name, some).tobytes() == whole[name][left][some].tobytes(), name


def test_batches_of_many_blocks_are_one_copy(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once what they hold is verified, no block is asked any more."""
    with mldb.open(store_path, durability="os") as db:
        lake = fill(db, rng, 40)
        rows = lake.rows()
        rows.gather("mu", rng.permutation(len(rows)))

        def block(*_: Any) -> Any:
            raise AssertionError("a block was asked")

        monkeypatch.setattr(Rows, "block", block)
        monkeypatch.setattr("mldb.lake.rows.block.MappedBlock.gather", block)
        rows.gather("mu", rng.permutation(len(rows)))


def test_rows_beyond_the_lake_are_clipped_and_never_read(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    """Below the check of ``gather``, which refuses them, nothing outside of the lake is touched."""
    lake = fill(db, rng, 5)
    rows = lake.rows()
    for count in (1, 40):
        want = rows.gather("mu", np.array([0, len(rows) - 1] * count))
        beyond, out = np.array([-5, 1 << 40] * count), np.empty_like(want)
        assert rows.gather_checked("mu", beyond, out).tobytes() == want.tobytes()
        with pytest.raises(mldb.InvalidValueError):
            rows.gather("mu", beyond)


def test_threads_share_the_rows_of_a_lake(store_path: Path, rng: np.random.Generator) -> None:
    with mldb.open(store_path, durability="os", segment_bytes=1 << 14) as db:
        rows = fill(db, rng, 60).rows()
        want = rows.gather("mu", slice(0, len(rows)))
        sys.setswitchinterval(1e-5)
        try:
            for _ in range(10):
                shared = db.lake().rows()
                orders = [rng.permutation(len(rows)) for _ in range(4)]
                found: dict[int, bytes] = {}

                def read(
                    number: int,
                    shared: Rows = shared,
                    orders: list[Any] = orders,
                    found: dict[int, bytes] = found,
                ) -> None:
                    found[number] = shared.gather("mu", orders[number]).tobytes()

                threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert [found[i] for i in range(4)] == [want[order].tobytes() for order in orders]
        finally:
            sys.setswitchinterval(0.005)


def test_damage_in_one_of_many_blocks_is_found_when_it_is_read(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(store_path) as db:
        lake = db.lake(dim=160)
        for _ in range(6):
            lake.add_splats(rng.standard_normal((500, 160)))
        last = lake.rows().gather("mu", slice(2500, 2501))
    file = max((store_path / "segments").iterdir())
    data = bytearray(file.read_bytes())
    data[data.find(last.tobytes())] ^= 1
    file.write_bytes(data)
    with mldb.open(store_path, mode="r") as db:
        rows = db.lake().rows()
        rows.gather("mu", np.arange(0, 2500, 7))
        with pytest.raises(mldb.CorruptError, match="'default'"):
            rows.gather("mu", np.array([3, 2500] * 30))
        with pytest.raises(mldb.CorruptError, match="'default'"):
            rows.gather("mu", np.array([2500, 3] * 20))
        rows.gather("mu", np.array([3, 2900] * 20))
