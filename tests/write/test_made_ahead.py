"""Calls that are made ahead of who needs what they return."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.write.made_ahead import MadeAhead


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 30))
def test_each_call_is_made_once_whoever_makes_it(wanted: list[bool], asked: int) -> None:
    """Also when it is closed before all results were asked for: then the rest may be left."""
    made: list[int] = []

    def call(number: int) -> int:
        made.append(number)
        return -number

    calls = [
        (lambda number=number: call(number)) if is_wanted else None
        for number, is_wanted in enumerate(wanted)
    ]
    ahead: MadeAhead[int] = MadeAhead(calls)
    for number, is_wanted in list(enumerate(wanted))[:asked]:
        assert ahead.result(number) == (-number if is_wanted else None)
    ahead.close()
    ended = sorted(made)
    everyone = [number for number, is_wanted in enumerate(wanted) if is_wanted]
    assert ended == everyone[: len(ended)]  # each once, and none left out
    assert len(ended) >= sum(wanted[:asked])


def test_who_asks_makes_calls_while_another_thread_is_busy() -> None:
    free, begun = threading.Event(), threading.Event()
    makers: dict[int, int] = {}

    def first() -> int:
        makers[0] = threading.get_ident()
        begun.set()
        assert free.wait(20)
        return 0

    def later(number: int) -> Callable[[], int]:
        def call() -> int:
            makers[number] = threading.get_ident()
            if number == 2:
                free.set()
            return number

        return call

    ahead: MadeAhead[int] = MadeAhead([first, later(1), later(2)])
    assert begun.wait(20)
    assert [ahead.result(number) for number in range(3)] == [0, 1, 2]
    ahead.close()
    assert makers[0] != makers[1] == makers[2] == threading.get_ident()


def test_nothing_is_under_way_once_it_is_closed() -> None:
    """Nobody may change the bytes while they are hashed."""
    begun, free = threading.Event(), threading.Event()
    ended: list[int] = []

    def slow() -> None:
        begun.set()
        assert free.wait(20)
        ended.append(1)

    ahead: MadeAhead[None] = MadeAhead([slow, lambda: ended.append(2)])
    assert begun.wait(20)
    threading.Timer(0.05, free.set).start()
    ahead.close()
    assert ended == [1]


def test_what_a_call_raises_is_raised_to_who_asks() -> None:
    def fails() -> int:
        raise MemoryError("no room")

    ahead: MadeAhead[int] = MadeAhead([lambda: 0, fails, lambda: 2])
    assert ahead.result(0) == 0
    with pytest.raises(MemoryError, match="no room"):
        ahead.result(1)
    assert ahead.result(2) == 2
    ahead.close()
