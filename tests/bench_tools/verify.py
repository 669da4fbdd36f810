"""Verifying a store beside reading and hashing its bytes: large tensors, small records, compacted.

What it is held against reads the same files piece by piece, in the same process, and puts each
piece through the hash that checksums are made with. The files are in the page cache for both. The
two take turns, so that a busy machine is busy for both; the median of the ratios is told. Small
records are bounded by their number, not by their bytes, so that they have no bound here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from xxhash import xxh3_64

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_least
from tests.support.compacting import compact_all

_PIECE_BYTES = 1 << 20
_NAMES = 8
_SMALL_NAMES = 100
_SMALL_VALUES = 16


@dataclass(frozen=True)
class Amounts:
    """How much is verified; ``asked``: the bounds are meant for these sizes.

    *epochs* of eight tensors of *large_values* floats; *records* of a small one; *rounds* of both.
    """

    epochs: int
    large_values: int
    records: int
    rounds: int
    asked: bool


FULL = Amounts(4, 8 << 20, 100_000, 7, asked=True)
QUICK = Amounts(2, 1 << 18, 2_000, 3, asked=False)


@dataclass(frozen=True)
class Found:
    """Medians of the rounds: ratios of wall and processor time, seconds; and the bytes."""

    ratio: float
    processor: float
    seconds: float
    bytes: int


def record_large(path: Path, amounts: Amounts) -> None:
    """Tensors that share nothing and do not compress."""
    rng = np.random.default_rng(12)
    with mldb.open(path, durability="os", background_compaction=False) as db:
        for epoch in range(amounts.epochs):
            with db.transaction(epoch=epoch) as txn:
                for number in range(_NAMES):
                    value = rng.standard_normal(amounts.large_values, dtype=np.float32)
                    txn.store_tensor(f"layer{number}.w", value)


def record_small(path: Path, amounts: Amounts) -> None:
    """One small tensor a commit."""
    with mldb.open(path, durability="os", background_compaction=False) as db:
        for number in range(amounts.records):
            value = np.full(_SMALL_VALUES, number, np.float32)
            db.store_tensor(f"layer{number % _SMALL_NAMES}.w", value, epoch=number // _SMALL_NAMES)


def compact(path: Path) -> None:
    """Rewrite every segment into one."""
    with mldb.open(path, durability="os", background_compaction=False) as db:
        compact_all(db)


def read_and_hash(path: Path) -> int:
    """Read every segment once, and hash it; returns the bytes."""
    buffer = bytearray(_PIECE_BYTES)
    view = memoryview(buffer)
    total = 0
    for item in sorted((path / "segments").iterdir()):
        hashed = xxh3_64()
        with item.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hashed.update(view[:count])
                total += count
    return total


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    started, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - processor


def _verified(path: Path) -> None:
    with mldb.open(path, mode="r") as db:
        assert db.verify().ok


def beside_reading(path: Path, rounds: int) -> Found:
    """Verify a store and read it, in turns."""
    size = read_and_hash(path)
    ratios, processor, seconds = [], [], []
    for _ in range(rounds):
        read, read_processor = _timed(lambda: read_and_hash(path))
        wall, spent = _timed(lambda: _verified(path))
        ratios.append(read / wall)
        processor.append(read_processor / spent)
        seconds.append(wall)
    median = statistics.median
    return Found(median(ratios), median(processor), median(seconds), size)


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    amounts = QUICK if quick else FULL
    asked = amounts.asked
    found: list[Row] = []
    with fresh_folder() as root:
        large, small = root / "large", root / "small"
        record_large(large, amounts)
        for what in ("large tensors", "large tensors, compacted"):
            if what.endswith("compacted"):
                compact(large)
            seen = beside_reading(large, amounts.rounds)
            figure = f"verify of {what}, {seen.bytes >> 20} MiB"
            unit = "x of reading and hashing"
            found += [
                at_least(figure, seen.ratio, unit, 0.6, 0.9, asked=asked),
                Row(f"{figure}: processor time", seen.processor, unit),
                Row(f"{figure}: a second", seen.bytes / seen.seconds / (1 << 30), "GiB"),
            ]
        record_small(small, amounts)
        for what in ("small records", "small records, compacted"):
            if what.endswith("compacted"):
                compact(small)
            seen = beside_reading(small, amounts.rounds)
            figure = f"verify of {amounts.records} {what}"
            found += [
                Row(figure, seen.ratio, "x of reading and hashing"),
                Row(f"{figure}: a second", amounts.records / seen.seconds, "records"),
            ]
    return found
