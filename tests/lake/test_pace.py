"""Who makes a batch: who asks for it, or a thread where steps are long enough. Times are given."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import mldb
from mldb.lake.stream import streams
from mldb.lake.stream.pace import HAND_OVER, SURE, Pace
from mldb.lake.stream.prefetch import prefetch
from tests.support.lakes import data, db, fill, raw

__all__ = ["data", "db"]

LONG = 100 * HAND_OVER


class Clock:
    """A clock that steps move on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def steps_until_worth(clock: Clock, times: Iterator[tuple[float, float]], most: int) -> int | None:
    """The number of the batch behind which a thread is worth it; times of step and making."""
    pace = Pace(clock)
    for number, (step, making) in zip(range(most), times, strict=False):
        clock.now += step
        pace.asked()
        clock.now += making
        if pace.made():
            return number
    return None


@pytest.mark.parametrize(
    ("step", "making", "found"),
    [
        (LONG, LONG, 8),  # the first step is not seen
        (1.1 * SURE, LONG, 8),
        (0.9 * SURE, LONG, None),
        (0.5 * SURE, 0.9 * SURE, None),  # who drains a stream
        (0.95 * SURE, 0.9 * SURE, 8),
        (0.0, LONG, None),
        (LONG, 1.1 * HAND_OVER, 8),
        (LONG, 0.9 * HAND_OVER, None),  # views cost less than handing them over
    ],
)
def test_long_steps_and_long_makings_are_worth_a_thread(
    step: float, making: float, found: int | None
) -> None:
    assert steps_until_worth(Clock(), itertools.repeat((step, making)), 500) == found


def test_a_long_step_now_and_then_says_nothing() -> None:
    times = itertools.cycle([(LONG, LONG)] * 7 + [(0.0, LONG)])
    assert steps_until_worth(Clock(), times, 500) is None
    later = itertools.chain([(0.0, LONG)] * 100, itertools.repeat((LONG, LONG)))
    assert steps_until_worth(Clock(), later, 500) == 107


def test_the_thread_begins_where_the_pace_says_so() -> None:
    clock = Clock()

    def make() -> Iterator[tuple[int, str]]:
        for number in itertools.count():
            clock.now += LONG
            yield number, threading.current_thread().name

    batches = prefetch(make(), 3, first_here=True, pace=Pace(clock))
    here = threading.current_thread().name
    drained = list(itertools.islice(batches, 50))
    assert drained == [(number, here) for number in range(50)]
    found = []
    for _ in range(20):
        clock.now += LONG
        found.append(next(batches))
    batches.close()
    assert [number for number, _ in found] == list(range(50, 70))
    assert [name for _, name in found] == [here] * 8 + ["mldb-stream"] * 12
    assert list(batches) == []


def test_what_batches_hold_is_let_go_without_a_thread() -> None:
    let_go: list[str] = []

    def make() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            let_go.append("gone")

    for taken in (0, 1, 3, 5, 6):
        batches = prefetch(make(), 2, first_here=True, pace=Pace())
        assert list(itertools.islice(batches, taken)) == list(range(min(taken, 5)))
        batches.close()
        batches.close()
        # What never began holds nothing.
        assert let_go == ["gone"] * (taken > 0), taken
        assert list(batches) == []
        let_go.clear()


def test_an_error_ends_it_where_its_batch_would_come() -> None:
    def make() -> Iterator[int]:
        yield from range(3)
        raise IndexError("batch 3")

    got: list[int] = []
    batches = prefetch(make(), 2, first_here=True, pace=Pace())
    with pytest.raises(IndexError, match="batch 3"):
        got.extend(batches)
    assert got == [0, 1, 2]
    assert list(batches) == []


@pytest.mark.parametrize("parts", [1, 40])
def test_rows_that_are_verified_are_copied_by_who_drains_them(
    db: mldb.MLDatabase, data: dict[str, Any], parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that verifies, and a number that was asked for, have the thread from the start."""
    pytest.importorskip("torch")
    lake = fill(db, data, parts)

    def made(**options: Any) -> Any:
        return lake.export_to_dataloader(64, device="numpy", **options)

    paced: list[bool] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        paced.append(options.get("pace") is not None)
        return prefetch(*arguments, **options)

    monkeypatch.setattr(streams, "prefetch", noted)
    loader = made()
    first = raw(loader)
    second = raw(loader)
    loader.dataset.set_pass(0)
    assert raw(loader) == first != second
    assert paced == [False, True, True]
    paced.clear()
    for options in ({"prefetch": 3}, {"warm_bytes": 1 << 20}, {"generate_samples": True}):
        list(made(**options))
        loader = made(**options)
        list(loader)
        list(loader)
    assert not any(paced)
