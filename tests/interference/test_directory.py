"""Parts of the directory are made while others come in: at every call of a seal, another operation.

What is merged, written, named and removed must be as if nobody had done so, whoever commits, seals,
rewinds, closes or fails meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from tests.support.directories import made_at_once
from tests.support.interference_cases import TROUBLES, Part, meet, parts

MAKING = ("seal", "spill")
RIVALS = ("commit", "seal", "rewind", "close", "reopen", "listing")


@pytest.fixture(autouse=True)
def made() -> Iterator[list[int]]:
    """What was made."""
    with made_at_once(due=1) as parts:
        yield parts


@pytest.mark.slow
@pytest.mark.parametrize("first", MAKING)
@pytest.mark.parametrize("who", ["thread", "process"])
@parts(23, 9)
def test_another_comes_in_while_one_makes_a_part(
    first: str, who: Literal["thread", "process"], part: Part, seed: int, made: list[int]
) -> None:
    meet(who, first, RIVALS, seed=seed, part=part)
    assert sum(made), "no part was made"


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["a sync lost", "a full", "a sync_dir"])
@parts(37, 11)
def test_something_fails_while_one_makes_a_part(trouble: str, part: Part, seed: int) -> None:
    meet("process", "seal", ("commit", "seal", "close"), TROUBLES[trouble], seed=seed, part=part)
