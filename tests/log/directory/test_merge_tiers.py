"""Which runs are merged: few parts, each version merged once a tier."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from mldb.log.directory import tiers
from mldb.log.directory.tiers import next_run, tier_of


def settle(sizes: list[int], fanout: int) -> int:
    """Merge until nothing is due; return how many versions were moved."""
    moved = 0
    while (run := next_run(sizes, fanout)) is not None:
        low, high = run
        total = sum(sizes[low:high])
        moved += total
        sizes[low:high] = [total]
    return moved


@given(st.integers(2, 6), st.integers(1, 400))
def test_equal_segments_end_in_few_parts_and_are_moved_once_a_tier(fanout: int, count: int) -> None:
    sizes: list[int] = []
    moved = 0
    for _ in range(count):
        sizes.append(fanout)
        moved += settle(sizes, fanout)
    rounds = math.log(count, fanout) + 1
    assert sum(sizes) == count * fanout
    assert len(sizes) <= (fanout - 1) * rounds + 1
    assert moved <= count * fanout * rounds


@given(st.integers(2, 5), st.lists(st.integers(0, 2000), max_size=60))
def test_whatever_the_sizes_a_run_is_due_only_where_a_tier_is_full(
    fanout: int, sizes: list[int]
) -> None:
    total = sum(sizes)
    settle(sizes, fanout)
    assert sum(sizes) == total
    assert next_run(sizes, fanout) is None
    highest = max(map(tier_of, sizes), default=0)
    assert len(sizes) <= (fanout * (highest + 2)) ** 2


def test_parts_of_the_greatest_size_are_left_alone() -> None:
    big = tiers.VERSIONS_MAX // 2
    assert next_run([big] * 9) is None
    assert next_run([big] * 9 + [1] * tiers.FANOUT) == (9, 9 + tiers.FANOUT)


def test_a_tier_is_the_number_of_digits() -> None:
    assert [tier_of(size, 4) for size in (0, 3, 4, 15, 16, 64)] == [0, 0, 1, 1, 2, 3]
