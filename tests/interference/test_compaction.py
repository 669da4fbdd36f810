"""A compaction and anything else at once: at every call of one, an operation of the other.

Whatever is read meanwhile, before and after is what was stored, and a compaction that lost the race
changes nothing.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.interference import BASES, CALM, Relation, Schedule, Tally, Trouble, sweep
from tests.support.interference_cases import FIRST, Part, parts

OTHERS = [*(name for name in FIRST if name not in {"head", "read", "blind"}), "patches"]
KINDS = (*BASES, "patched")
TROUBLES: dict[str, Trouble] = {
    "a sync alone": ("a sync alone", 1),
    "a sync lost": ("a sync lost", 1),
    "a sync_dir": ("a sync_dir", 1),
    "a full": ("a full", 1),
    "b full": ("b full", 1),
}


def meet(
    tally: Tally,
    relation: Relation,
    first: str,
    second: str,
    trouble: Trouble,
    part: Part,
    seed: int,
) -> None:
    base = "patched" if "patches" in (first, second) else KINDS[seed % len(KINDS)]
    schedule = Schedule(relation, first, second, 0, trouble, base)
    sweep(tally, schedule, seed=seed, step=part.step, crashes=1)


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["process", "thread"])
@parts(67, 29)
def test_others_come_in_while_a_store_is_compacted(
    relation: Relation, part: Part, seed: int
) -> None:
    tally = Tally()
    for number, second in enumerate([*OTHERS, "compact"]):
        meet(tally, relation, "compact", second, CALM, part, seed + number)
    tally.report(f"{relation}, compact", seed, Counter(), part.step)
    assert tally.runs > 40


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["process", "thread"])
@parts(29, 13)
def test_a_compaction_comes_in_at_other_calls(relation: Relation, part: Part, seed: int) -> None:
    tally = Tally()
    for number, first in enumerate(OTHERS):
        meet(tally, relation, first, "compact", CALM, part, seed + number)
    tally.report(f"compact comes in, {relation}", seed, Counter(), part.step)
    assert tally.runs > 15


@pytest.mark.slow
@parts(499, 97, 7)
def test_a_handler_compacts_in_the_middle_of_a_call(part: Part, seed: int) -> None:
    tally = Tally()
    for number, first in enumerate(("commit", "snapshot", "seal")):
        meet(tally, "handler", first, "compact", CALM, part, seed + number)
    tally.report("compact in a handler", seed, Counter(), part.step)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
@parts(97, 41)
def test_something_fails_while_a_store_is_compacted(trouble: str, part: Part, seed: int) -> None:
    tally = Tally()
    for number, second in enumerate(("commit", "snapshot")):
        meet(tally, "process", "compact", second, TROUBLES[trouble], part, seed + number)
    tally.report(f"compact, {trouble}", seed, Counter(), part.step)
