"""Which operations meet in the tests of interference, what goes wrong, and how often at least.

A sweep has three parts: a usual run plays some of its places, ``-m large`` many and every one. The
counts are written down so that a change which makes operations meet in fewer places is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pytest

from tests.support.interference import BASES, CALM, Relation, Schedule, Tally, Trouble, sweep
from tests.support.interference_operations import OPERATIONS

FIRST: Final = [
    name for name in OPERATIONS if name not in {"found", "history", "compact", "patches"}
]
RIVALS: Final = (
    "commit",
    "transaction",
    "sync",
    "seal",
    "spill",
    "rewind",
    "snapshot",
    "reopen",
    "close",
)
BUSY: Final = (
    *("commit", "transaction", "sync", "seal", "spill", "create", "tag", "close"),
    "buffered",
)
MIDDLE: Final = ("commit", "seal", "spill", "close", "snapshot")
APART: Final = 83
"""Where the places that a stride takes begin goes on by so many from pair to pair."""
TROUBLES: Final[dict[str, Trouble]] = {
    "impatient": ("impatient", 0),
    "a sync alone": ("a sync alone", 1),
    "a sync lost": ("a sync lost", 1),
    "b sync lost": ("b sync lost", 1),
    "a sync_dir": ("a sync_dir", 1),
    "a full": ("a full", 1),
    "b full": ("b full", 1),
}


@dataclass(frozen=True)
class Part:
    """Every *step*-th place of a sweep, and of the guest's own places every *stop*-th, if any."""

    name: str
    step: int
    stop: int = 0

    @property
    def least(self) -> Counter[str]:
        """How many schedules it has at least, by the name of the sweep."""
        return Counter(SOME if self.name == "some" else MANY)


def parts(
    some: int, many: int, every: int = 1, *, stops: tuple[int, int, int] = (0, 0, 0)
) -> pytest.MarkDecorator:
    """Give a test its ``part``: each is one place out of so many."""
    steps = {"some": some, "many": many, "every": every}
    made = [Part(name, step, stop) for (name, step), stop in zip(steps.items(), stops, strict=True)]
    large = [pytest.param(part, marks=pytest.mark.large) for part in made[1:]]
    return pytest.mark.parametrize("part", [made[0], *large], ids=list(steps))


def base_for(first: str, second: str) -> str:
    """Every operation meets every kind of store, with a third of the others each."""
    return BASES[(FIRST.index(first) + FIRST.index(second)) % len(BASES)]


def meet(
    who: Relation,
    first: str,
    rivals: Sequence[str],
    trouble: Trouble = CALM,
    *,
    seed: int,
    part: Part,
) -> Tally:
    """Let each of *rivals* come in at some places of *first*, and report what was."""
    tally = Tally()
    for number, second in enumerate(rivals):
        schedule = Schedule(who, first, second, 0, trouble, base_for(first, second))
        sweep(tally, schedule, seed=seed + number, step=part.step, crashes=1)
    tally.report(f"{who}, {first}, {trouble[0]}", seed, Counter(), part.step)
    return tally


MANY: Final = {
    "forks, as of": 7,
    "forks, backup": 7,
    "forks, blind": 33,
    "forks, buffered": 63,
    "forks, close": 35,
    "forks, commit": 31,
    "forks, create": 72,
    "forks, head": 1,
    "forks, leave open": 14,
    "forks, listing": 13,
    "forks, log": 37,
    "forks, read": 9,
    "forks, reopen": 66,
    "forks, rewind": 19,
    "forks, seal": 88,
    "forks, snapshot": 14,
    "forks, spill": 70,
    "forks, sync": 33,
    "forks, tag": 33,
    "forks, transaction": 21,
    "forks, verify": 29,
    "handlers, as of": 633,
    "handlers, backup": 522,
    "handlers, blind": 53,
    "handlers, buffered": 180,
    "handlers, close": 110,
    "handlers, commit": 45,
    "handlers, create": 174,
    "handlers, head": 4,
    "handlers, leave open": 137,
    "handlers, listing": 70,
    "handlers, log": 84,
    "handlers, read": 178,
    "handlers, reopen": 213,
    "handlers, rewind": 45,
    "handlers, seal": 192,
    "handlers, snapshot": 138,
    "handlers, spill": 172,
    "handlers, sync": 41,
    "handlers, tag": 44,
    "handlers, transaction": 51,
    "handlers, verify": 215,
    "processes in the middle, a sync lost": 348,
    "processes in the middle, b sync alone": 282,
    "processes in the middle, b sync lost": 258,
    "processes in the middle, nothing fails": 127,
    "processes, a full": 361,
    "processes, a sync alone": 278,
    "processes, a sync lost": 231,
    "processes, a sync_dir": 185,
    "processes, as of": 65,
    "processes, b full": 530,
    "processes, b sync lost": 214,
    "processes, backup": 63,
    "processes, blind": 361,
    "processes, buffered": 670,
    "processes, close": 317,
    "processes, commit": 346,
    "processes, create": 675,
    "processes, head": 25,
    "processes, impatient": 68,
    "processes, leave open": 181,
    "processes, listing": 100,
    "processes, log": 440,
    "processes, read": 78,
    "processes, reopen": 422,
    "processes, rewind": 136,
    "processes, seal": 636,
    "processes, snapshot": 181,
    "processes, spill": 684,
    "processes, sync": 362,
    "processes, tag": 380,
    "processes, transaction": 183,
    "processes, verify": 173,
    "threads, a full": 572,
    "threads, a sync alone": 305,
    "threads, a sync lost": 366,
    "threads, a sync_dir": 202,
    "threads, as of": 72,
    "threads, backup": 70,
    "threads, blind": 494,
    "threads, buffered": 980,
    "threads, close": 448,
    "threads, commit": 477,
    "threads, create": 946,
    "threads, head": 18,
    "threads, impatient": 37,
    "threads, leave open": 234,
    "threads, listing": 126,
    "threads, log": 620,
    "threads, read": 91,
    "threads, reopen": 627,
    "threads, rewind": 177,
    "threads, seal": 886,
    "threads, snapshot": 235,
    "threads, spill": 951,
    "threads, sync": 498,
    "threads, tag": 539,
    "threads, transaction": 244,
    "threads, verify": 240,
    "two processes create one store": 188,
}
"""In the parts "many" and "every"."""

SOME: Final[dict[str, int]] = {
    "forks, as of": 2,
    "forks, backup": 1,
    "forks, blind": 12,
    "forks, buffered": 23,
    "forks, close": 13,
    "forks, commit": 10,
    "forks, create": 27,
    "forks, head": 1,
    "forks, leave open": 5,
    "forks, listing": 5,
    "forks, log": 13,
    "forks, read": 3,
    "forks, reopen": 25,
    "forks, rewind": 8,
    "forks, seal": 32,
    "forks, snapshot": 6,
    "forks, spill": 26,
    "forks, sync": 13,
    "forks, tag": 12,
    "forks, transaction": 8,
    "forks, verify": 12,
    "handlers, as of": 211,
    "handlers, backup": 180,
    "handlers, blind": 24,
    "handlers, buffered": 54,
    "handlers, close": 48,
    "handlers, commit": 18,
    "handlers, create": 67,
    "handlers, head": 1,
    "handlers, leave open": 44,
    "handlers, listing": 21,
    "handlers, log": 26,
    "handlers, read": 58,
    "handlers, reopen": 76,
    "handlers, rewind": 16,
    "handlers, seal": 71,
    "handlers, snapshot": 45,
    "handlers, spill": 68,
    "handlers, sync": 18,
    "handlers, tag": 18,
    "handlers, transaction": 16,
    "handlers, verify": 71,
    "processes in the middle, a sync lost": 144,
    "processes in the middle, b sync alone": 147,
    "processes in the middle, b sync lost": 104,
    "processes in the middle, nothing fails": 36,
    "processes, a full": 125,
    "processes, a sync alone": 94,
    "processes, a sync lost": 102,
    "processes, a sync_dir": 46,
    "processes, as of": 17,
    "processes, b full": 111,
    "processes, b sync lost": 58,
    "processes, backup": 15,
    "processes, blind": 91,
    "processes, buffered": 168,
    "processes, close": 81,
    "processes, commit": 90,
    "processes, create": 175,
    "processes, head": 6,
    "processes, impatient": 26,
    "processes, leave open": 49,
    "processes, listing": 27,
    "processes, log": 111,
    "processes, read": 19,
    "processes, reopen": 109,
    "processes, rewind": 36,
    "processes, seal": 164,
    "processes, snapshot": 46,
    "processes, spill": 174,
    "processes, sync": 94,
    "processes, tag": 96,
    "processes, transaction": 45,
    "processes, verify": 51,
    "threads, a full": 159,
    "threads, a sync alone": 113,
    "threads, a sync lost": 114,
    "threads, a sync_dir": 52,
    "threads, as of": 17,
    "threads, backup": 16,
    "threads, blind": 104,
    "threads, buffered": 198,
    "threads, close": 94,
    "threads, commit": 100,
    "threads, create": 198,
    "threads, head": 3,
    "threads, impatient": 20,
    "threads, leave open": 52,
    "threads, listing": 28,
    "threads, log": 128,
    "threads, read": 19,
    "threads, reopen": 135,
    "threads, rewind": 38,
    "threads, seal": 186,
    "threads, snapshot": 51,
    "threads, spill": 200,
    "threads, sync": 106,
    "threads, tag": 114,
    "threads, transaction": 52,
    "threads, verify": 56,
}
"""In the part "some"."""
