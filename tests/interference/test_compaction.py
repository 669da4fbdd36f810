"""A compaction and anything else at once: at every call of one, an operation of the other.

Whatever is read meanwhile, before and after is what was stored, and a compaction that lost the race
changes nothing.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.interference import BASES, CALM, Relation, Schedule, Tally, Trouble, sweep
from tests.support.interference_cases import FIRST

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
    step: int,
    seed: int,
) -> None:
    base = "patched" if "patches" in (first, second) else KINDS[seed % len(KINDS)]
    schedule = Schedule(relation, first, second, 0, trouble, base)
    sweep(tally, schedule, seed=seed, step=step, crashes=1)


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["process", "thread"])
@pytest.mark.parametrize(
    "step", [67, pytest.param(1, marks=pytest.mark.large)], ids=["some", "every"]
)
def test_others_come_in_while_a_store_is_compacted(
    relation: Relation, step: int, seed: int
) -> None:
    tally = Tally()
    for number, second in enumerate([*OTHERS, "compact"]):
        meet(tally, relation, "compact", second, CALM, step, seed + number)
    tally.report(f"{relation}, compact", seed, Counter())
    assert tally.runs > 40


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["process", "thread"])
@pytest.mark.parametrize(
    "step", [29, pytest.param(1, marks=pytest.mark.large)], ids=["some", "every"]
)
def test_a_compaction_comes_in_at_other_calls(relation: Relation, step: int, seed: int) -> None:
    tally = Tally()
    for number, first in enumerate(OTHERS):
        meet(tally, relation, first, "compact", CALM, step, seed + number)
    tally.report(f"compact comes in, {relation}", seed, Counter())
    assert tally.runs > 15


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [499, pytest.param(7, marks=pytest.mark.large)], ids=["some", "every"]
)
def test_a_handler_compacts_in_the_middle_of_a_call(step: int, seed: int) -> None:
    tally = Tally()
    for number, first in enumerate(("commit", "snapshot", "seal")):
        meet(tally, "handler", first, "compact", CALM, step, seed + number)
    tally.report("compact in a handler", seed, Counter())


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize(
    "step", [97, pytest.param(1, marks=pytest.mark.large)], ids=["some", "every"]
)
def test_something_fails_while_a_store_is_compacted(trouble: str, step: int, seed: int) -> None:
    tally = Tally()
    for number, second in enumerate(("commit", "snapshot")):
        meet(tally, "process", "compact", second, TROUBLES[trouble], step, seed + number)
    tally.report(f"compact, {trouble}", seed, Counter())
