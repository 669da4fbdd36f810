"""The content of a frame piece by piece: all of it, and nothing that was not asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.compaction import zstd
from mldb.compaction.zstd import FrameReader, UnpackError, zstd_module


def read_whole(frame: memoryview, size: int) -> bytes:
    """All that a frame gives, which ends then."""
    reader = FrameReader(frame)
    data = reader.take(size)
    reader.finish()
    return data


@given(st.binary(max_size=3000), st.lists(st.integers(0, 1000), max_size=6))
def test_pieces_of_any_size_are_the_content(data: bytes, sizes: list[int]) -> None:
    reader = FrameReader(memoryview(zstd_module().compress(data)))
    left, found = len(data), []
    for size in (*sizes, len(data)):
        found.append(reader.take(min(size, left)))
        assert len(found[-1]) == min(size, left)
        left -= len(found[-1])
    reader.finish()
    assert b"".join(found) == data


def test_a_frame_that_is_given_in_parts_is_read_across_them(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    data = rng.bytes(70_000) + bytes(200_000)
    frame = memoryview(zstd_module().compress(data))
    for fed in (1, 1000, 65_536, len(frame)):
        monkeypatch.setattr(zstd, "_FED", fed)
        reader = FrameReader(frame)
        assert reader.take(90_000) + reader.take(len(data) - 90_000) == data
        reader.finish()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda frame: frame[:-1], "cut"),
        (lambda frame: frame[:3], "cut"),
        (lambda frame: frame + b"x", "follow"),
        (lambda frame: frame + frame, "follow"),
        (lambda frame: b"abc" * 9, "."),
    ],
    ids=["end", "head", "more", "two", "none"],
)
@pytest.mark.parametrize("fed", [7, 1 << 18])
def test_a_frame_that_is_not_one_whole_frame_is_told(
    monkeypatch: pytest.MonkeyPatch, change: object, what: str, fed: int
) -> None:
    monkeypatch.setattr(zstd, "_FED", fed)
    options = {zstd_module().CompressionParameter.checksum_flag: 1}
    frame = zstd_module().compress(bytes(range(256)) * 9, options=options)
    assert callable(change)
    with pytest.raises(UnpackError, match=what):
        read_whole(memoryview(change(frame)), 256 * 9)


def test_more_or_less_content_than_is_asked_for_is_told() -> None:
    frame = memoryview(zstd_module().compress(bytes(100)))
    with pytest.raises(UnpackError, match="fewer"):
        FrameReader(frame).take(101)
    reader = FrameReader(frame)
    reader.take(99)
    with pytest.raises(UnpackError, match="more bytes than"):
        reader.finish()
