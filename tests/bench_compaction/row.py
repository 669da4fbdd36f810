"""One line of the table: a figure, what it must be and what it should be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A value measured; ``met`` is None where nothing is asked, as with small sizes."""

    figure: str
    value: float
    unit: str
    must: str = ""
    aim: str = ""
    met: bool | None = None


def at_most(
    figure: str, value: float, unit: str, must: float, aim: float | None = None, *, asked: bool
) -> Row:
    """A row that keeps its bound when it is not above *must*; unless it is not *asked* to."""
    aimed = "" if aim is None else f"<= {aim:g}"
    return Row(figure, value, unit, f"<= {must:g}", aimed, value <= must if asked else None)


def at_least(
    figure: str, value: float, unit: str, must: float, aim: float | None = None, *, asked: bool
) -> Row:
    """A row that keeps its bound when it is not below *must*; unless it is not *asked* to."""
    aimed = "" if aim is None else f">= {aim:g}"
    return Row(figure, value, unit, f">= {must:g}", aimed, value >= must if asked else None)
