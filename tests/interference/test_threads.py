"""Two threads of one handle at once: at every call of one's operation, one operation of the other.

The stories behind it: a thread that waited for another's fsync was told that its commit is stored
when that fsync failed; a handle was closed while another thread was inside a commit.
"""

from __future__ import annotations

import pytest

from tests.support.interference import CALM, Schedule, Tally, sweep
from tests.support.interference_cases import BUSY, FIRST, LEAST, RIVALS, TROUBLES, base_for


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize(
    "step", [2, pytest.param(1, marks=pytest.mark.large)], ids=["some", "every"]
)
def test_another_thread_comes_in_at_every_call(first: str, step: int, seed: int) -> None:
    tally = Tally()
    for number, second in enumerate(FIRST):
        schedule = Schedule("thread", first, second, 0, CALM, base_for(first, second))
        sweep(tally, schedule, seed=seed + number, step=step)
    tally.report(f"threads, {first}", seed, LEAST)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [name for name in TROUBLES if name[0] != "b"])
@pytest.mark.parametrize(
    "step", [73, pytest.param(1, marks=pytest.mark.large)], ids=["some", "every"]
)
def test_another_thread_comes_in_and_something_fails(trouble: str, step: int, seed: int) -> None:
    tally = Tally()
    for first in BUSY:
        for number, second in enumerate(RIVALS):
            base = base_for(first, second)
            schedule = Schedule("thread", first, second, 0, TROUBLES[trouble], base)
            sweep(tally, schedule, seed=seed + number, step=step, crashes=1)
    tally.report(f"threads, {trouble}", seed, LEAST)
