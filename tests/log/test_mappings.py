"""Mapped segments are bounded, and letting one go never hurts a reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.log.mappings import MappingBudget


class _Item:
    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


def test_the_longest_mapped_goes_first() -> None:
    budget = MappingBudget(2)
    items = [_Item() for _ in range(3)]
    for item in items:
        budget.note(item)
    assert [item.released for item in items] == [1, 0, 0]
    assert (len(budget), budget.released) == (2, 1)


def test_noting_again_does_not_count_twice() -> None:
    budget = MappingBudget(2)
    item, other = _Item(), _Item()
    for _ in range(5):
        budget.note(item)
    budget.note(other)
    assert (item.released, other.released, budget.released) == (0, 0, 0)


@pytest.mark.parametrize(("limit", "most"), [(2, 3), (64, 12)])
def test_a_store_maps_no_more_than_it_may(store_path: Path, limit: int, most: int) -> None:
    """The option changes how many segments stay mapped; every array stays right and alive."""
    with mldb.open(store_path, segment_bytes=40_000, durability="os") as db:
        for epoch in range(10):
            db.store_tensor("x", np.full(10_000, epoch, "f4"), epoch=epoch)
    with mldb.open(store_path, max_mapped=limit, map_bytes=1) as db:
        held = [db.query_tensor("x", as_of=epoch) for epoch in range(10)]
        held += [db.query_tensor("x", as_of=epoch) for epoch in reversed(range(10))]
        stats = db.stats()
        assert stats["max_mapped"] == limit
        assert stats["mapped_segments"] <= most
        assert (stats["mappings_released"] > 0) == (limit == 2)
    expected = [*range(10), *reversed(range(10))]
    assert [float(array[-1]) for array in held] == expected
