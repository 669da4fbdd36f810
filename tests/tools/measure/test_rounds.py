"""Medians, spreads and ratios of rounds that are given."""

from __future__ import annotations

import pytest

from mldb.tools.measure.rounds import TURNS_MAX, TURNS_MIN, in_turns, rate_of, time_of


def test_calls_are_made_in_turns_and_the_first_round_does_not_count() -> None:
    made: list[str] = []
    calls = {"a": lambda: made.append("a"), "b": lambda: made.append("b")}
    found = in_turns(calls, 0.0)
    assert made == ["a", "b"] * (TURNS_MIN + 1)
    assert [len(item) for item in found.values()] == [TURNS_MIN] * 2
    assert len(in_turns(calls, 60.0, warm_up=False)["a"]) == TURNS_MAX


def test_a_rate_is_compared_round_by_round() -> None:
    found = rate_of("save", 3_000_000, [1.0, 2.0, 3.0], ("file", [0.5, 2.0, 1.5]))
    assert (found.median, found.low, found.high) == (1.5, 1.0, 3.0)
    assert found.ratio == 0.5
    assert found.spread == pytest.approx(4 / 3)
    assert (found.unit, found.rounds, found.against) == ("MB/s", 3, "file")


def test_a_time_is_of_one_call() -> None:
    found = time_of("read", 1000, [0.001, 0.002, 0.003], ("now", [0.001, 0.001, 0.001]))
    assert (found.median, found.low, found.high, found.ratio) == (2.0, 1.0, 3.0, 2.0)
    assert time_of("read", 1, [1.0], None).ratio is None
