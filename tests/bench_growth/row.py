"""One row of the table: a figure, at a size, and whether it is what it must be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measured *value* in *unit* at *size*; *must* says the bound in words.

    ``met`` is None where there is no bound, or where a quick run is too small for it.
    """

    figure: str
    size: int
    value: float
    unit: str
    must: str
    met: bool | None
