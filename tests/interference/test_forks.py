"""A forked child in the middle of an operation: whatever it leaves, its parent's store stays as is.

The story behind it: a child that left a ``with`` block rewrote the registration of its parent, and
removed the file into which the parent was writing a large tensor.
"""

from __future__ import annotations

import pytest

from tests.support.interference import CALM, Schedule, Tally, sweep
from tests.support.interference_cases import FIRST, Part, parts


@pytest.mark.slow
@pytest.mark.usefixtures("_frozen")
@pytest.mark.parametrize("first", FIRST)
@parts(5, 2)
def test_a_child_of_any_moment_changes_nothing(first: str, part: Part, seed: int) -> None:
    """It leaves the blocks by an exception, or as if all went well."""
    tally = Tally()
    for number, leaving in enumerate(("raise", "return")):
        schedule = Schedule("fork", first, leaving, 0, CALM, "clean")
        sweep(tally, schedule, seed=seed + number, step=part.step)
    tally.report(f"forks, {first}", seed, part.least, part.step)
