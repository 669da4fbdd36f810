"""Two threads of one handle at once: at every call of one's operation, one operation of the other.

The stories behind it: a thread that waited for another's fsync was told that its commit is stored
when that fsync failed; a handle was closed while another thread was inside a commit.
"""

from __future__ import annotations

import itertools

import pytest

from tests.support.interference import CALM, Schedule, Tally, sweep
from tests.support.interference_cases import (
    APART,
    BUSY,
    FIRST,
    RIVALS,
    TROUBLES,
    Part,
    base_for,
    parts,
)


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
@parts(9, 2)
def test_another_thread_comes_in_at_every_call(first: str, part: Part, seed: int) -> None:
    tally = Tally()
    for number, second in enumerate(FIRST):
        schedule = Schedule("thread", first, second, 0, CALM, base_for(first, second))
        sweep(tally, schedule, seed=seed + number, step=part.step)
    tally.report(f"threads, {first}", seed, part.least, part.step)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [name for name in TROUBLES if name[0] != "b"])
@parts(211, 47)
def test_another_thread_comes_in_and_something_fails(trouble: str, part: Part, seed: int) -> None:
    tally = Tally()
    for number, (first, second) in enumerate(itertools.product(BUSY, RIVALS)):
        base = base_for(first, second)
        schedule = Schedule("thread", first, second, 0, TROUBLES[trouble], base)
        sweep(tally, schedule, seed=seed + APART * number, step=part.step, crashes=1)
    tally.report(f"threads, {trouble}", seed, part.least, part.step)
