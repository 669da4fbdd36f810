"""Where the parts of a distributed tensor go: names, long runs and short ones."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

from mldb.adapters.dcp.layout import (
    RUN_BYTES_MIN,
    Box,
    is_in_long_runs,
    name_of_fqn,
    name_of_part,
    place_tensor,
    runs,
)


def boxes_of(shape: tuple[int, ...], cuts: tuple[int, ...]) -> list[Box]:
    """*shape* cut into so many boxes along each axis, the last ones shorter."""
    axes = []
    for length, count in zip(shape, cuts, strict=True):
        step = -(-length // count)
        starts = range(0, length, step)
        axes.append([(start, min(step, length - start)) for start in starts])
    return [
        Box(tuple(at for at, _ in each), tuple(size for _, size in each)) for each in product(*axes)
    ]


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [
        ((), ()),
        ((7,), (3,)),
        ((5, 4), (2, 1)),
        ((5, 4), (1, 3)),
        ((4, 5, 6), (2, 3, 1)),
        ((4, 5, 6), (3, 1, 4)),
        ((3, 1, 2, 5), (1, 1, 2, 2)),
    ],
)
def test_runs_put_every_part_where_it_belongs(
    shape: tuple[int, ...], cuts: tuple[int, ...], rng: np.random.Generator
) -> None:
    whole = rng.integers(0, 1 << 30, shape, dtype=np.int32)
    file = bytearray(whole.nbytes)
    for box in boxes_of(shape, cuts):
        key = tuple(slice(at, at + size) for at, size in zip(*box, strict=True))
        data = np.ascontiguousarray(whole[key]).tobytes()
        taken = 0
        for at, start, length in runs(shape, box, 4):
            file[at : at + length] = data[start : start + length]
            taken += length
        assert taken == len(data)
    assert bytes(file) == whole.tobytes()


def test_an_empty_part_has_no_run() -> None:
    assert list(runs((4, 0), Box((0, 0), (4, 0)), 4)) == []
    assert list(runs((4,), Box((4,), (0,)), 4)) == []


def test_parts_in_long_runs_are_stored_whole() -> None:
    columns = RUN_BYTES_MIN // 4
    assert is_in_long_runs((10, 3), boxes_of((10, 3), (4, 1)), 4)
    assert is_in_long_runs((10, 2 * columns), boxes_of((10, 2 * columns), (1, 2)), 4)
    assert not is_in_long_runs((10, columns), boxes_of((10, columns), (1, 2)), 4)
    assert is_in_long_runs((1, columns), boxes_of((1, columns), (1, 2)), 4)  # one run each
    assert not is_in_long_runs((10, 3), boxes_of((10, 3), (4, 1))[1:], 4)  # not all of it
    whole = place_tensor("a", "<f4", (10, 3), boxes_of((10, 3), (4, 1)), 4)
    assert whole.is_whole
    assert whole.boxes == ((Box((0, 0), (10, 3)), "a"),)
    parts = place_tensor("a", "<f4", (10, 4), boxes_of((10, 4), (1, 2)), 4)
    assert not parts.is_whole
    assert [name for _, name in parts.boxes] == ["a/0.0", "a/0.2"]


def test_names_are_those_of_the_state_where_they_can_be() -> None:
    assert name_of_fqn("model.layers.0.weight") == "model.layers.0.weight"
    assert name_of_fqn("a/b") == "a%2Fb"
    assert name_of_fqn("") == "%"
    long = [name_of_fqn("ü" * 400 + end) for end in "ab"]
    assert len(set(long)) == 2
    far = Box((1 << 40,) * 9, (1,) * 9)
    assert all(len(name_of_part(name, far).encode()) <= 255 for name in long)
