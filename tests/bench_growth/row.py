"""One line of the table: a figure at one size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A value measured at a size, and what it must be; ``met`` is None where nothing is asked."""

    figure: str
    size: int
    value: float
    unit: str
    must: str
    met: bool | None
