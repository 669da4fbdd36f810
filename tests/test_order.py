"""Tests of this run, dealt out to workers: none is lost, and those that take long come first."""

from __future__ import annotations

import pytest

from tests.support.order import dealt


def is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_no_test_is_lost_and_each_worker_begins_with_slow_files(
    workers: int, request: pytest.FixtureRequest
) -> None:
    items = request.session.items
    order = dealt(items, workers)
    assert sorted(map(id, order)) == sorted(map(id, items))
    length = len(items) // workers
    slow = len({item.path for item in items if is_slow(item)})
    seen: dict[object, set[int]] = {}
    for place, item in enumerate(order):
        seen.setdefault(item.path, set()).add(min(place // max(length, 1), workers - 1))
    assert sum(len(parts) - 1 for parts in seen.values()) <= 2 * workers, "files are torn apart"
    for number in range(workers if slow >= workers and len(items) > 1000 else 0):
        first = order[number * length].path
        assert any(is_slow(item) for item in items if item.path == first)
