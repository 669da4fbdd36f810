"""One measured value of a figure at one size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A figure at one size, in *unit*.

    ``must`` says the bound in words, "" when the figure has none; ``met`` tells whether this value
    keeps it, None where the bound is meant for another size.
    """

    figure: str
    size: int
    value: float
    unit: str
    must: str
    met: bool | None
