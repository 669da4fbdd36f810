"""A signal handler or finalizer inside an operation of its own thread: at every bytecode.

It stores, which is refused or done; or it reads, which is always answered. The story behind it: a
preemption save while a commit was running let the commit's lock go inside it, and of 25 stores none
could be opened again.
"""

from __future__ import annotations

import pytest

from tests.support.interference import CALM, Schedule, Tally, sweep
from tests.support.interference_cases import APART, FIRST, Part, parts

SHORT = {"head", "read", "as of", "blind", "tag", "transaction", "commit"}
"""Operations of so few bytecodes that more of them are taken."""

HANDLERS = ("commit", "transaction", "head", "read", "listing", "snapshot")


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
@parts(2503, 997)
def test_a_handler_runs_at_every_bytecode(first: str, part: Part, seed: int) -> None:
    tally = Tally()
    step = min(part.step, 251 if part.name == "some" else 97) if first in SHORT else part.step
    for number, second in enumerate(HANDLERS):
        schedule = Schedule("handler", first, second, 0, CALM, "clean")
        sweep(tally, schedule, seed=seed + APART * number, step=step)
    tally.report(f"handlers, {first}", seed, part.least, step)
