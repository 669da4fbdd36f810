"""Hints are saved while others come in: at every call of an operation that saves, another one.

What is frozen, merged, written and published between two commits must be as if nobody had done so,
whoever commits, seals, closes, forks or fails meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pytest

from tests.support.hints import hints_every
from tests.support.interference import CALM, Schedule, Tally, sweep
from tests.support.interference_cases import TROUBLES, Part, meet, parts

SAVING = ("commit", "transaction", "spill")
RIVALS = ("commit", "transaction", "seal", "close", "rewind", "reopen", "sync")


@pytest.fixture(autouse=True)
def _hints() -> Iterator[None]:
    """Each commit freezes what came before and saves it all at once, or some of it."""
    with hints_every(1, steps=70):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("first", SAVING)
@pytest.mark.parametrize("who", ["thread", "process"])
@parts(23, 7)
def test_another_comes_in_while_one_saves(
    first: str, who: Literal["thread", "process"], part: Part, seed: int
) -> None:
    meet(who, first, RIVALS, seed=seed, part=part)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["a sync lost", "a full", "a sync_dir"])
@parts(11, 5)
def test_something_fails_while_one_saves(trouble: str, part: Part, seed: int) -> None:
    meet("process", "commit", ("commit", "seal", "close"), TROUBLES[trouble], seed=seed, part=part)


@pytest.mark.slow
@parts(1201, 397, 31)
def test_a_handler_commits_while_one_saves(part: Part, seed: int) -> None:
    tally = Tally()
    schedule = Schedule("handler", "commit", "commit", 0, CALM, "clean")
    sweep(tally, schedule, seed=seed, step=part.step)
    tally.report("hints, handlers", seed, Counter(), part.step)
