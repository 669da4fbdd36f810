"""Planes of bytes, joined by both modes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.compaction.deltas import XOR, DeltaError, decode_deltas, encode_delta
from mldb.compaction.planes import split_planes
from mldb.log import native
from mldb.tensors.encoding import ENCODING_ZSTD, decode_bytes, encode_bytes

needs_twin = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")


@st.composite
def versions(draw: st.DrawFn) -> tuple[int, list[np.ndarray]]:
    """A width, and versions of some numbers, each near the one before."""
    width = draw(st.sampled_from([1, 2, 4, 8]))
    count = draw(st.integers(64, 300_000 // width))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    values = [rng.integers(0, 1 << (8 * width - 1), count, f"u{width}")]
    for _ in range(draw(st.integers(1, 3))):
        change = rng.integers(0, 3, count).astype(f"u{width}")
        values.append(values[-1] ^ change if draw(st.booleans()) else values[-1] + change)
    return width, values


@needs_twin
@given(versions(), st.data())
def test_deltas_are_decoded_alike(made: tuple[int, list[np.ndarray]], data: st.DataObject) -> None:
    width, values = made
    parts = [memoryview(value.tobytes()) for value in values]
    deltas = [encode_delta(new, old, width) for old, new in pairwise(parts)]
    chain = [memoryview(delta) for delta in deltas if delta is not None]
    if len(chain) < len(deltas):
        return
    size = len(parts[0])
    start = data.draw(st.integers(0, size // 8 - 1)) * 8
    decoded = []
    for off in (False, True):
        into = np.empty(size - start, np.uint8)
        base = parts[0][start:]
        if data.draw(st.booleans()):  # in place
            into[:] = np.frombuffer(base, np.uint8)
            base = into.data
        if off:
            with native.switched_off():
                decode_deltas(chain, size, base, into.data, start)
        else:
            decode_deltas(chain, size, base, into.data, start)
        decoded.append(into.tobytes())
    assert decoded[0] == decoded[1] == bytes(parts[-1][start:])


@needs_twin
@given(st.sampled_from([1, 2, 3, 4, 8, 16]), st.integers(0, 1 << 32), st.integers(300, 40_000))
def test_compressed_values_are_decoded_alike(width: int, seed: int, count: int) -> None:
    values = np.random.default_rng(seed).integers(0, 4, (count, width), np.uint8)
    packed = encode_bytes([values.tobytes()], width)
    assert packed is not None
    found = decode_bytes(memoryview(packed), ENCODING_ZSTD, values.nbytes, "file", 0, "key")
    with native.switched_off():
        same = decode_bytes(memoryview(packed), ENCODING_ZSTD, values.nbytes, "file", 0, "key")
    assert bytes(found) == bytes(same) == values.tobytes()


@needs_twin
def test_what_does_not_fit_is_not_mine() -> None:
    fold = native.twin.fold_planes
    planes, made = bytes(64), np.zeros(64, np.uint8)
    assert fold(planes, 4, 0, False, 0, None, made) is True
    assert fold(planes, 3, 0, False, 0, None, made) is None
    assert fold(bytes(63), 4, 0, False, 0, None, made) is None
    assert fold(planes, 4, 1, False, 0, None, made) is None  # one number too many
    assert fold(planes, 4, -1, False, 0, None, made) is None
    assert fold(planes, 4, 0, False, 0, bytes(60), made) is None
    assert fold(planes, 4, 0, False, 0, None, made[:62]) is None
    longer = np.zeros(68, np.uint8)
    assert fold(planes, 4, 0, False, 0, longer[4:], longer[:-4]) is None  # they overlap
    with pytest.raises(BufferError):
        fold(planes, 4, 0, False, 0, None, bytes(64))


@needs_twin
def test_it_takes_numbers_that_are_not_aligned() -> None:
    rng = np.random.default_rng(7)
    difference = rng.integers(0, 1 << 32, 1000, np.uint32)
    base = np.zeros(4001, np.uint8)
    base[1:] = rng.integers(0, 256, 4000, np.uint8)
    made = np.zeros(4003, np.uint8)
    planes = bytes(split_planes(difference.tobytes(), 4))
    assert native.twin.fold_planes(planes, 4, 0, False, 5, base[1:], made[3:])
    wanted = base[1:].view("<u4") + difference - np.uint32(5)
    assert made[3:].tobytes() == wanted.tobytes()
    assert native.twin.fold_planes(planes, 4, 0, True, 0, made[3:], made[3:])
    assert made[3:].tobytes() == (wanted ^ difference).tobytes()


def test_a_cut_chunk_is_damage_in_both_modes() -> None:
    values = np.arange(5000, dtype="<u4")
    base = memoryview(values.tobytes())
    stored = encode_delta(memoryview((values ^ 1).tobytes()), base, 4)
    assert stored is not None
    assert stored[0] in (1, XOR)
    into = np.empty(len(base), np.uint8)
    cut = [memoryview(stored[:-1])]
    with pytest.raises(DeltaError):
        decode_deltas(cut, len(base), base, into.data)
    with native.switched_off(), pytest.raises(DeltaError):
        decode_deltas(cut, len(base), base, into.data)
