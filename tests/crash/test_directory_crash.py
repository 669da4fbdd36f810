"""Crashes while parts of the directory are made: nothing of it is synced, no answer needs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from tests.crash.test_crash import CASES, SHARES, least_of
from tests.support.crashes import PERSISTENCE, Seen, violation_in
from tests.support.directories import made_at_once
from tests.support.parts import one_of

LEAST = 60


pytestmark = pytest.mark.usefixtures("repeatable")


@pytest.fixture
def made() -> Iterator[list[int]]:
    """What was made."""
    with made_at_once(due=1) as parts:
        yield parts


@SHARES
@pytest.mark.slow
@pytest.mark.parametrize("durability", ["commit", "os"])
@pytest.mark.parametrize("name", ["seals", "rewinds"])
def test_every_crash_leaves_a_prefix_with_all_that_was_promised(
    name: str, durability: Literal["commit", "os"], share: int, seed: int, made: list[int]
) -> None:
    run = CASES[name].run(durability)
    assert sum(made) or name != "seals"
    seen: set[Seen] = set()
    limit = 90 // share
    for persistence in PERSISTENCE:
        wrong = violation_in(run, persistence, seed=seed, limit=limit, since=run.created, seen=seen)
        assert not wrong, wrong
    distinct = len({digest for digest, *_ in seen})
    print(f"{name}, {durability}, {one_of(share)}: {distinct} disks, {len(seen)} checks")
    assert distinct >= least_of(LEAST, share)
