"""Patches set the rows they name and no other byte, and trust nothing they read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log.patch import (
    PATCH_HEADER,
    Patch,
    PatchError,
    apply_patch,
    decode_patch,
    encode_patch,
    fold_patches,
    merge_patches,
)


def patch(rows: list[int], row_bytes: int, seed: int) -> Patch:
    numbers = np.array(sorted(set(rows)), np.int64)
    values = np.random.default_rng(seed).integers(0, 256, (len(numbers), row_bytes), np.uint8)
    return Patch(numbers, values, row_bytes)


def stored(given: Patch) -> memoryview:
    return memoryview(b"".join(map(bytes, encode_patch(given))))


COUNT = 40
patches = st.builds(
    patch, st.lists(st.integers(0, COUNT - 1)), st.just(12), st.integers(0, 1 << 20)
)


def naive(table: Any, given: Patch) -> None:
    for row, value in zip(given.rows.tolist(), given.values, strict=True):
        table[row] = value


@given(st.lists(patches, min_size=1, max_size=6), st.integers(0, COUNT), st.integers(0, COUNT))
def test_patches_one_after_another_or_folded_set_what_a_loop_sets(
    given_patches: list[Patch], low: int, high: int
) -> None:
    want = np.zeros((COUNT, 12), np.uint8)
    for one in given_patches:
        naive(want, one)
    low, high = sorted((low, high))
    found = bytearray((high - low) * 12)
    for one in given_patches:
        read = decode_patch(stored(one), COUNT * 12)
        assert np.array_equal(read.rows, one.rows)
        apply_patch(read, found, low)
    assert bytes(found) == want[low:high].tobytes()
    folded = fold_patches(given_patches)
    assert folded.rows.tolist() == sorted({row for p in given_patches for row in p.rows.tolist()})
    whole = bytearray(COUNT * 12)
    apply_patch(decode_patch(stored(folded), COUNT * 12), whole)
    assert bytes(whole) == want.tobytes()


def test_the_newer_of_two_patches_wins() -> None:
    older, newer = patch([1, 3], 4, 0), patch([3, 9], 4, 1)
    merged = merge_patches(older, newer)
    assert merged.rows.tolist() == [1, 3, 9]
    assert np.array_equal(merged.values, [older.values[0], *newer.values])


@pytest.mark.parametrize(("last", "width"), [(1 << 32, 8), ((1 << 32) - 1, 4)])
def test_row_numbers_are_as_wide_as_they_must_be(last: int, width: int) -> None:
    data = stored(patch([5, last], 1, 0))
    assert PATCH_HEADER.unpack_from(data)[1] == width
    assert decode_patch(data, 1 << 40).rows.tolist() == [5, last]


def damaged() -> dict[str, tuple[bytes, int]]:
    good = bytes(stored(patch([2, 5], 12, 0)))

    def header(version: int = 1, width: int = 4, count: int = 2, row_bytes: int = 12) -> bytes:
        return PATCH_HEADER.pack(version, width, count, row_bytes) + good[32:]

    def rows(*numbers: int) -> bytes:
        return good[:32] + np.array(numbers, "<u4").tobytes() + good[40:]

    return {
        "nothing": (b"", 480),
        "half a header": (good[:31], 480),
        "version": (header(version=2), 480),
        "width": (header(width=3), 480),
        "count": (header(count=3), 480),
        "huge count": (header(count=(1 << 64) - 1), 480),
        "no bytes in a row": (header(count=0, row_bytes=0), 480),
        "row bytes": (header(row_bytes=(1 << 64) - 1), 480),
        "another size": (good, 481),
        "too few rows": (good, 60),
        "cut": (good[:-1], 480),
        "longer": (good + b"x", 480),
        "descending": (rows(5, 2), 480),
        "twice": (rows(5, 5), 480),
        "outside": (rows(2, 40), 480),
    }


@pytest.mark.parametrize("kind", sorted(damaged()))
def test_damage_is_a_typed_error(kind: str) -> None:
    data, size = damaged()[kind]
    with pytest.raises(PatchError):
        decode_patch(memoryview(data), size)


def test_a_wide_number_that_is_negative_as_signed_is_refused() -> None:
    data = PATCH_HEADER.pack(1, 8, 1, 12) + b"\xff" * 8 + bytes(24) + bytes(12)
    with pytest.raises(PatchError):
        decode_patch(memoryview(data), 480)


@given(st.binary(max_size=200), st.integers(0, 500))
def test_any_bytes_are_a_patch_or_a_typed_error(data: bytes, size: int) -> None:
    try:
        found = decode_patch(memoryview(data), size)
    except PatchError:
        return
    table = bytearray(size)
    apply_patch(found, table)
