"""Rows in any order: those that were asked for, whatever their number, width and dtype."""

from __future__ import annotations

import numpy as np
import pytest

from mldb.lake.rows.take import take_rows


@pytest.mark.parametrize("shape", [(), (1,), (7,), (640,), (2, 300)])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<u8"])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 500])
def test_rows_are_those_of_fancy_indexing(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, count: int
) -> None:
    table = rng.integers(0, 1 << 20, (300, *shape)).astype(dtype)
    table.setflags(write=False)
    rows = rng.integers(0, 300, count)
    out = np.empty((count, *shape), dtype)
    take_rows(table, rows, out)
    assert out.tobytes() == table[rows].tobytes()


def test_numbers_outside_are_clipped(rng: np.random.Generator) -> None:
    table = rng.standard_normal((40, 640)).astype(np.float32)
    rows = np.array([*range(40), 40, 10_000, -1])
    out = np.empty((43, 640), np.float32)
    take_rows(table, rows, out)
    assert out.tobytes() == table[[*range(40), 39, 39, 0]].tobytes()


@pytest.mark.parametrize("width", [255, 256, 257, 319, 320, 2561])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 11, 1023, 1030])
def test_long_rows_of_any_width_and_number(
    rng: np.random.Generator, width: int, count: int
) -> None:
    """Several are copied in turn, line by line; their ends and the last rows are not of that."""
    table = rng.integers(0, 256, (60, width)).astype(np.uint8)
    rows = rng.integers(0, 60, count)
    memory = np.full(count * width + 64, 7, np.uint8)
    out = memory[: count * width].reshape(count, width)
    take_rows(table, rows, out)
    assert out.tobytes() == table[rows].tobytes()
    assert (memory[count * width :] == 7).all()
