"""Medians of what a call takes, and rows of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from tests.bench_growth.row import Row


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median_seconds(call: Callable[[], object], times: int) -> float:
    """The median of several calls, after one that is not counted."""
    call()
    return statistics.median(seconds(call) for _ in range(times))


def at_most(figure: str, size: int, value: float, unit: str, bound: float, at: int) -> Row:
    """A row with the bound ``value <= bound``, which is meant for *at* and larger sizes."""
    return Row(figure, size, value, unit, f"<= {bound:g}", value <= bound if size >= at else None)


def unbounded(figure: str, size: int, value: float, unit: str) -> Row:
    """A row without a bound."""
    return Row(figure, size, value, unit, "", None)
