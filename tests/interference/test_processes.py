"""Two processes at once: at every call of one's operation, one operation of the other.

The stories behind it: an fsync that failed and was forgotten; a durable commit that another process
dropped when its own fsync failed; a store that was created twice at once; an LSN that was shown to
a reader and then given again.
"""

from __future__ import annotations

import itertools

import pytest

from tests.support.interference import CALM, Schedule, Tally, sweep
from tests.support.interference_cases import (
    APART,
    BUSY,
    FIRST,
    MANY,
    MIDDLE,
    RIVALS,
    SOME,
    TROUBLES,
    Part,
    base_for,
    parts,
)


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
@parts(11, 3)
def test_another_process_comes_in_at_every_call(first: str, part: Part, seed: int) -> None:
    """Each run is also one in which power is lost right behind the other's operation."""
    tally = Tally()
    for number, second in enumerate(FIRST):
        schedule = Schedule("process", first, second, 0, CALM, base_for(first, second))
        sweep(tally, schedule, seed=seed + number, step=part.step, crashes=1)
    tally.report(f"processes, {first}", seed, part.least, part.step)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
@parts(181, 41)
def test_another_process_comes_in_and_something_fails(trouble: str, part: Part, seed: int) -> None:
    tally = Tally()
    for number, (first, second) in enumerate(itertools.product(BUSY, RIVALS)):
        base = base_for(first, second)
        schedule = Schedule("process", first, second, 0, TROUBLES[trouble], base)
        sweep(tally, schedule, seed=seed + APART * number, step=part.step, crashes=1)
    tally.report(f"processes, {trouble}", seed, part.least, part.step)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["", "a sync lost", "b sync alone", "b sync lost"])
@parts(71, 31, stops=(83, 43, 1))
def test_both_are_in_the_middle(trouble: str, part: Part, seed: int) -> None:
    """The other stops at any of its own calls as well, and goes on when the first is done.

    What a process acknowledges while another closes its segment early shows only so.
    """
    tally = Tally()
    for number, (first, second) in enumerate(itertools.product(MIDDLE, MIDDLE)):
        where = seed + APART * number
        schedule = Schedule("process", first, second, 0, (trouble, int(bool(trouble))))
        sweep(tally, schedule, seed=where, step=part.step, crashes=1, stop=part.stop)
    what = f"processes in the middle, {trouble or 'nothing fails'}"
    tally.report(what, seed, part.least, part.step)


def test_there_are_at_least_twenty_thousand_schedules_and_five_thousand_in_a_usual_run() -> None:
    assert sum(MANY.values()) >= 20_000
    assert set(SOME) <= set(MANY)
    assert sum(SOME.values()) >= 5_000


def test_two_processes_create_one_store(seed: int) -> None:
    tally = Tally()
    sweep(tally, Schedule("process", "found", "found", 0, CALM, "nothing"), seed=seed, crashes=2)
    sweep(tally, Schedule("process", "found", "found", 0, ("impatient", 0), "nothing"), seed=seed)
    tally.report("two processes create one store", seed, MANY)
