"""Partial reads: the same as NumPy's result, from no more bytes than needed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mldb.errors import InvalidValueError, MldbError
from mldb.tensors.codec import dense_descriptor, prepare, view_numpy
from mldb.tensors.slicing import index_array, slice_bytes


@st.composite
def indexed(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    """A shape and an index expression that NumPy takes for it."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6))
    basic = hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)
    kind = draw(st.sampled_from(["basic", "advanced", "mixed"]))
    if kind == "basic":
        return shape, draw(basic)
    rows = draw(st.lists(st.integers(-shape[-1], shape[-1] - 1), max_size=3))
    if kind == "advanced" or len(shape) == 1:
        first = draw(st.lists(st.integers(-shape[0], shape[0] - 1), max_size=3))
        return shape, draw(st.sampled_from([first, np.array(first, int), (np.array(first, int),)]))
    leading = [draw(st.integers(-size, size - 1) | st.slices(size)) for size in shape[:-1]]
    middle = [np.int16(item) if isinstance(item, int) else item for item in leading]
    chosen: list[Any] = draw(st.sampled_from([leading, middle]))
    return shape, (*chosen, np.array(rows, int))


@given(indexed())
@example(((4, 3), (slice(3, 0, -2), None, 1)))
@example(((4, 3), True))
@example(((4, 3, 5), (1, slice(0, 2), np.array([0, 4, 2]))))
@example(((4, 3), (2, Ellipsis, 1)))
@example(((4,), np.bool_(True)))
def test_a_partial_read_gives_what_numpy_gives(case: tuple[tuple[int, ...], Any]) -> None:
    shape, key = case
    array = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    prepared = prepare(array)
    payload = array.tobytes()
    part = slice_bytes(prepared.descriptor, key)
    expected = array[key]
    if part is None:
        got = index_array(view_numpy(prepared.descriptor, payload), key)
    else:
        assert 0 <= part.start <= part.stop <= len(payload)
        assert part.stop - part.start == part.descriptor.nbytes < len(payload)
        block = view_numpy(part.descriptor, payload[part.start : part.stop])
        got = index_array(block, part.residual)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("key", "start", "stop"),
    [
        (3, 96, 128),
        (-1, 224, 256),
        (slice(2, 5), 64, 160),
        (slice(6, None, -3), 0, 224),
        ((5, slice(1, 3)), 168, 184),
        ((5, 2), 176, 184),
        ((5, 2, 1), 180, 184),
        ((slice(1, 2), [0, 1]), 32, 64),
        ((5, [0, 1]), 160, 192),
        ((Ellipsis, 0), None, None),
        (slice(None), None, None),
        ((), None, None),
        ([0, 1], None, None),
        (slice(8, None), 0, 0),
    ],
)
def test_only_the_bytes_asked_for_are_read(key: Any, start: int | None, stop: int) -> None:
    part = slice_bytes(dense_descriptor((8, 4, 2), "<i4"), key)
    assert (None if part is None else part.start) == start
    assert part is None or part.stop == stop


@pytest.mark.parametrize("key", [8, -9, (0, 4), (0, 0, 0, 0), (slice(None),) * 4, slice("a")])
def test_an_index_out_of_range_is_an_invalid_value(key: Any) -> None:
    descriptor = dense_descriptor((8, 4, 2), "<i4")
    with pytest.raises(InvalidValueError):
        slice_bytes(descriptor, key)


@pytest.mark.parametrize("key", [1.5, "a", (slice(None), 99), [99]])
def test_what_numpy_refuses_is_a_typed_error(key: Any) -> None:
    array = np.zeros((4, 4))
    part = slice_bytes(prepare(array).descriptor, key)
    with pytest.raises(MldbError):
        index_array(array, key if part is None else part.residual)
