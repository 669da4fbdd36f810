"""Orders and places are those that NumPy and Python find one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mldb.log.directory.places import run_places, sorting_order

_VALUES = st.sampled_from([0, 1, 2, 2**32, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


@given(st.lists(_VALUES, max_size=200))
def test_equal_values_stay_in_their_order(values: list[int]) -> None:
    column = np.array(values, "<u8")
    found = sorting_order(column)
    assert found.dtype == np.dtype("<i8")
    assert found.tolist() == sorted(range(len(values)), key=values.__getitem__)


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 500, 1 << 40]))
def test_many_values_are_sorted_as_by_a_stable_sort(seed: int, different: int) -> None:
    column = np.random.default_rng(seed).integers(0, different, 3000, "<u8")
    assert (sorting_order(column) == np.argsort(column, kind="stable")).all()


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 5)), max_size=20))
def test_places_of_runs_follow_each_other(runs: list[tuple[int, int]]) -> None:
    firsts = np.array([first for first, _ in runs], "<i8")
    sizes = np.array([size for _, size in runs], "<u4")
    expected = [first + at for first, size in runs for at in range(size)]
    assert run_places(firsts, sizes).tolist() == expected
