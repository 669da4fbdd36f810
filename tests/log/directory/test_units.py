"""The units of a manifest: which of them are asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from mldb.log.directory.units import Unit, Units


def unit(first: int, last: int) -> Unit:
    """A unit that says of each commit that it holds it."""
    lookup = SimpleNamespace(commit_at=lambda lsn: ("commit", first, lsn))
    return cast(Unit, SimpleNamespace(first_lsn=first, last_lsn=last, lookup=lookup))


def test_an_empty_segment_hides_none_of_those_before_it() -> None:
    """It ends nowhere: whoever stopped at the first unit that is old enough missed the others."""
    old, middle, empty, new = unit(1, 4), unit(5, 8), unit(0, 0), unit(9, 12)
    units = Units(cast(Any, [old, middle, empty, new]), lambda sealed: cast(Any, sealed))
    assert units.above(8) == [new]
    assert units.above(4) == [new, middle]
    assert cast(Any, units.commit_at(6)) == ("commit", 5, 6)
    assert units.commit_at(20) is None
