"""The parts that views show: against making all of them anew, and that a seal makes one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.grown import Grown
from mldb.log.manifest import SegmentInfo
from mldb.log.mappings import MappingBudget
from mldb.log.parts import SealedParts
from mldb.log.sealed import SealedPart
from mldb.log.segment import Segment
from tests.support.logs import STORE_ID

FS = MemoryFileSystem()


def info(number: int) -> SegmentInfo:
    """A sealed segment; every fifth is empty."""
    lsn = 0 if number % 5 == 0 else 10 * number
    chain = number.to_bytes(16, "big")
    return SegmentInfo(chain, 1, STORE_ID, 900, "", 800, lsn, lsn, 0, 2, chain)


class Told(SealedPart):
    """A part that tells when it is released."""

    def __init__(self, *given: Any, released: Callable[[bytes], None]) -> None:
        super().__init__(*given)
        self._released = released

    def release(self) -> None:
        self._released(self.info.id)
        super().release()


class Made:
    """Parts, and how many were made and released."""

    def __init__(self) -> None:
        self.made = 0
        self.released: list[bytes] = []
        self.parts = SealedParts(self.make)

    def make(self, of: SegmentInfo) -> SealedPart:
        """Make a part."""
        self.made += 1
        return Told(FS, of, "first", MappingBudget(9), released=self.released.append)

    def follow(self, numbers: list[int], active: int) -> None:
        """Show these, and compare with what they must be."""
        infos = [info(number) for number in numbers]
        before = {part.info.id: part for part in self.parts.sealed}
        self.released.clear()
        segment = Segment(FS, info(active).id, STORE_ID, 64, grows=True)
        self.parts.follow(self.shared(infos), segment)
        sealed = self.parts.sealed
        assert [part.info for part in sealed] == infos
        assert self.parts.segments == {
            segment.id: segment,
            **{part.info.id: part.segment for part in sealed},
        }
        lsns = [item.last_lsn for item in infos]
        assert [part.until for part in sealed] == [
            max(lsns[: place + 1]) for place in range(len(lsns))
        ]
        assert self.parts.last_lsn == max(lsns, default=0)
        ids = {item.id for item in infos}
        assert set(self.released) == before.keys() - ids
        for part in sealed:
            assert before.get(part.info.id, part) is part

    def shared(self, infos: list[SegmentInfo]) -> Grown[SegmentInfo]:
        """The list as a manifest has it: it goes on from the one before where it can."""
        known = self.parts._infos
        if infos[: len(known)] == list(known):
            return known.then(infos[len(known) :])
        return Grown(infos)


def test_they_are_those_of_the_manifest_however_it_changes(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        made, numbers, new = Made(), list[int](), iter(range(1, 100))
        active = next(new)
        for _ in range(12):
            turn = rng.randrange(5)
            if turn == 0 and numbers:  # a few are replaced by one
                place = rng.randrange(len(numbers))
                numbers[place : place + 2] = [next(new)]
            elif turn == 1:  # an empty one is never sealed
                active = next(new)
            elif turn > 2:
                numbers.append(active)
                active = next(new)
            made.follow(numbers, active)


def test_a_seal_makes_one_part_and_leaves_the_views_what_they_have() -> None:
    made = Made()
    made.follow([*range(1, 1000)], 1000)
    view, segments, count = made.parts.sealed, made.parts.segments, made.made
    made.parts.follow(
        made.shared([*made.parts._infos, info(1000)]), Segment(FS, info(1001).id, STORE_ID, 64)
    )
    assert made.made == count + 1
    assert made.parts.sealed._items is view._items
    assert made.parts.segments is segments
    assert len(view) == 999


@pytest.mark.parametrize("field", ["sealed", "segments"])
def test_an_interrupt_leaves_what_the_next_call_can_begin_with(field: str) -> None:
    made = Made()
    made.follow([1, 2], 3)

    class Interrupted(SealedParts):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == field:
                raise KeyboardInterrupt

    made.parts.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        made.follow([1, 2, 3], 4)
    made.parts.__class__ = SealedParts
    made.follow([1, 2, 3], 4)
    made.follow([1, 2, 3, 4], 5)


def test_a_segment_that_is_described_otherwise_gets_another_part() -> None:
    made = Made()
    made.follow([1, 2], 3)
    changed = Grown([info(1), replace(info(2), length=950)])
    made.parts.follow(changed, Segment(FS, info(3).id, STORE_ID, 64))
    assert [part.info for part in made.parts.sealed] == list(changed)
