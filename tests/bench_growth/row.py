"""One line of the table of growth: a figure at a size, and what it must be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """``met`` is None where nothing is asked of a figure. ``value`` is in ``unit``."""

    figure: str
    size: int
    value: float
    unit: str
    must: str
    met: bool | None
