"""Byte planes: a shuffle that gives back every byte, whatever the width and length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.compaction.planes import join_planes, split_planes


@given(st.integers(1, 16), st.binary(max_size=64))
def test_planes_are_the_bytes_by_their_place_and_come_back(width: int, data: bytes) -> None:
    data = data * width
    planes = split_planes(data, width)
    assert bytes(planes) == b"".join(data[place::width] for place in range(width))
    made = bytearray(len(data))
    join_planes(planes, width, made)
    assert bytes(made) == data


@pytest.mark.parametrize("count", [(1 << 14) - 1, 1 << 14, (1 << 15) + 1])
def test_they_are_joined_piece_by_piece(rng: np.random.Generator, count: int) -> None:
    data = rng.integers(0, 256, 4 * count, dtype=np.uint8)
    made = np.empty_like(data)
    join_planes(split_planes(data, 4), 4, made)
    assert np.array_equal(made, data)
