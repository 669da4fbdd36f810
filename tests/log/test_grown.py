"""Lists that share their beginning: each is what was put into it, however they branch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log.grown import Grown


@given(st.data())
def test_each_is_the_list_that_was_put_into_it(data: st.DataObject) -> None:
    every: list[tuple[Grown[int], list[int]]] = [(Grown(), [])]
    for _ in range(data.draw(st.integers(0, 12))):
        grown, listed = data.draw(st.sampled_from(every))
        added = data.draw(st.lists(st.integers(0, 2), max_size=3))
        every.append((grown.then(added), [*listed, *added]))
    for grown, listed in every:
        assert list(grown) == listed == list(grown[:])
        assert list(reversed(grown)) == listed[::-1]
        assert (len(grown), bool(grown)) == (len(listed), bool(listed))
        assert grown == Grown(listed) == tuple(listed)
        assert hash(grown) == hash(Grown(listed))
        assert grown != (*listed, 9)
        for index in range(-len(listed), len(listed)):
            assert grown[index] == listed[index]
        for index in (len(listed), -len(listed) - 1):
            with pytest.raises(IndexError):
                grown[index]
        low, high, step = (data.draw(st.none() | st.integers(-5, 9)) for _ in range(3))
        assert grown[low : high : step or None] == tuple(listed[low : high : step or None])
        for other, its in every:
            assert grown.starts_with(other) == (listed[: len(its)] == its)


def test_what_follows_is_shared_and_what_was_read_again_too() -> None:
    first = Grown(range(1000))
    second = first.then([1, 2])
    assert second._items is first._items
    assert first.then([1, 2, 3])._items is first._items
    assert first.then([1, 3])._items is not first._items
    assert list(second) == [*range(1000), 1, 2]
    assert Grown.of(first) is first


def test_two_threads_that_extend_at_once_do_not_mix() -> None:
    """The second one's list holds other items than its own by the time that it looks."""

    class Busy(list[object]):
        def extend(self, items: object) -> None:
            super().extend([object()])
            super().extend(items)  # type: ignore[arg-type]

    first: Grown[object] = Grown([1])
    first._items = Busy([1])
    mine = object()
    assert list(first.then([mine])) == [1, mine]


def test_it_costs_nothing_to_compare_and_extend_what_is_shared() -> None:
    """The items are not even looked at."""

    class Silent:
        def __eq__(self, other: object) -> bool:
            raise AssertionError

        __hash__ = None  # type: ignore[assignment]

    first = Grown([Silent() for _ in range(100)])
    second = first.then([Silent()])
    assert second.starts_with(first)
    assert second != first
    assert first == first.then([])
