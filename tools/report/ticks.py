"""Axes: where marks stand and what they say. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mldb.tools.report.markup import figure_text

_STEPS: Final = (1, 2, 2.5, 5, 10)
_DECADES_MOST: Final = 5
_LEAST, _MOST = 1e-290, 1e290
_APART: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Axis:
    """A line of numbers laid over pixels *start*..*stop*; logarithmic ones take what is above 0."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Pixel of a value."""
        if self.is_log:
            low = math.log(self.low)
            share = (math.log(value) - low) / (math.log(self.high) - low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, -1.0), 2.0) * (self.stop - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value can be placed."""
        return math.isfinite(value) and (value > 0 or not self.is_log)

    def ticks(self, count: int) -> list[float]:
        """About *count* round values inside."""
        if self.is_log:
            return _decades(self.low, self.high, count)
        return _round_values(self.low, self.high, count)


def axis_of(
    values: Sequence[float],
    start: float,
    stop: float,
    *,
    is_log: bool = False,
    with_zero: bool = False,
    whole: bool = False,
) -> Axis:
    """Return the axis of what is finite among *values*; a single value gets room around it."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
    if not found:
        return Axis(1, 10, start, stop, is_log) if is_log else Axis(0, 1, start, stop)
    low, high = min(found), max(found)
    if is_log:
        low, high = (min(max(end, _LEAST), _MOST) for end in (low, high))
        low, high = (low / 2, high * 2) if high <= low * 1.000001 else (low, high)
        return Axis(low, high, start, stop, is_log=True)
    if with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = max(low, -_MOST), min(high, _MOST)
    size = max(abs(low), abs(high))
    if high - low <= max(size * _APART, _LEAST):  # one value, as far as pixels can tell
        room = 1.0 if whole or size < _LEAST else size * 0.1
        low, high = (low, high + room) if with_zero and not low else (low - room, high + room)
    return Axis(low, high, start, stop)


def tick_text(value: float) -> str:
    """A short label."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, _, power = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else figure_text(value, 3)
    return f"{value:.4g}"


def _round_values(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [step for step in _STEPS if (power, step) != (1.0, 2.5)]  # whole numbers stay whole
    step = next(power * step for step in steps if power * step >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) if step > 1e-9 else index * step
            for index in range(first, min(last, first + 50) + 1)]  # fmt: skip


def _decades(low: float, high: float, count: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, -(-(last - first + 1) // max(count, 1)))
    found = [10.0**power for power in range(first, last + 1, stride)]
    if len(found) < 2 and high < low * 10.0**_DECADES_MOST:
        inside = [
            factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)
        ]
        found = [value for value in inside if low * 0.999 <= value <= high * 1.001]
    return found or [low, high]
