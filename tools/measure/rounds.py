"""Rounds of measurements, taken in turns so that what slows the machine slows them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

TURNS_MIN: Final = 3
TURNS_MAX: Final = 15


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure: the median of some rounds, and the lowest and highest of them.

    ``unit`` is "MB/s" (10**6 bytes a second) or "µs" for each call. ``ratio`` is how many times the
    rate, or the time, of ``against`` it is, the median over rounds; None where it stands alone.
    """

    name: str
    unit: str
    median: float
    low: float
    high: float
    rounds: int
    against: str = ""
    ratio: float | None = None

    @property
    def spread(self) -> float:
        """How far the rounds lie apart: the highest less the lowest, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return max(time.perf_counter() - began, 1e-9)


def in_turns(
    calls: Mapping[str, Callable[[], object]], budget: float, warm_up: bool = True
) -> dict[str, list[float]]:
    """Make the calls one after another, round by round; return the seconds of each.

    At least TURNS_MIN rounds, and then as many as fit into *budget* seconds. The first round warms
    caches up and does not count, unless *warm_up* is False.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    if warm_up:
        for call in calls.values():
            call()
    began = time.perf_counter()
    for number in range(TURNS_MAX):
        if number >= TURNS_MIN and time.perf_counter() - began > budget:
            break
        for name, call in calls.items():
            found[name].append(seconds_of(call))
    return found


def rate_of(
    name: str, count: int, seconds: Sequence[float], against: tuple[str, Sequence[float]] | None
) -> Measurement:
    """A rate of *count* bytes a round, in MB/s."""
    rates = [count / item / 1e6 for item in seconds]
    return _measurement(name, "MB/s", rates, seconds, against, is_rate=True)


def time_of(
    name: str, calls: int, seconds: Sequence[float], against: tuple[str, Sequence[float]] | None
) -> Measurement:
    """The time of one of *calls* a round, in µs."""
    times = [item / calls * 1e6 for item in seconds]
    return _measurement(name, "µs", times, seconds, against, is_rate=False)


def _measurement(
    name: str,
    unit: str,
    values: Sequence[float],
    seconds: Sequence[float],
    against: tuple[str, Sequence[float]] | None,
    *,
    is_rate: bool,
) -> Measurement:
    ratio, other = None, ""
    if against is not None:
        other = against[0]
        pairs = [mine / its for mine, its in zip(seconds, against[1], strict=True)]
        ratio = statistics.median(1 / pair if is_rate else pair for pair in pairs)
    median = statistics.median(values)
    return Measurement(name, unit, median, min(values), max(values), len(values), other, ratio)
