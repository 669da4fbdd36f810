"""Byte planes: a shuffle that gives back every byte, whatever the width and length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.compaction.planes import split_planes, spread_plane


@given(st.integers(1, 16), st.binary(max_size=64))
def test_planes_are_the_bytes_by_their_place_and_come_back(width: int, data: bytes) -> None:
    data = data * width
    planes = split_planes(data, width)
    assert bytes(planes) == b"".join(data[place::width] for place in range(width))
    made, count = bytearray(len(data)), len(data) // width
    for place in range(width):
        spread_plane(planes[place * count : (place + 1) * count], place, width, 0, made)
    assert bytes(made) == data


@pytest.mark.parametrize("count", [(1 << 14) - 1, 1 << 14, (1 << 15) + 1])
def test_they_are_joined_piece_by_piece(rng: np.random.Generator, count: int) -> None:
    """As they come out of a frame, a part of a plane at a time."""
    data = rng.integers(0, 256, 4 * count, dtype=np.uint8)
    made, planes = np.empty_like(data), split_planes(data, 4)
    for place in range(4):
        for start in range(0, count, 1 << 13):
            low, high = place * count + start, place * count + min(start + (1 << 13), count)
            spread_plane(planes[low:high], place, 4, start, made)
    assert np.array_equal(made, data)
