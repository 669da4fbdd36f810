"""What a mapped index decodes by the block is what it decodes one by one, under damage too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any, Final

import numpy as np
import pytest

from mldb.errors import CorruptError
from mldb.log.index import mapped as mapped_module
from mldb.log.index import mapped_commits
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.columns import IndexImage, build_index
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import CommitField
from tests.support.logs import SEGMENT_ID, flat

KEYS: Final = [b"\x01a", b"\x01often", b"\x01some", b"\x02b"]
SHARES: Final = (0.02, 0.95, 0.2, 0.4)
COMMITS: Final = 230
HEAD: Final = COMMITS + 5


def image_of(rng: np.random.Generator) -> IndexImage:
    """Keys of a few and of many versions, so that blocks hold parts of one and of several keys."""
    rows = [
        CommitRow(lsn, lsn - 1, lsn // 2, lsn * 10, -lsn, lsn * 100, lsn * 100 + 50, bytes(16))
        for lsn in range(1, COMMITS + 1)
    ]
    entries = {}
    for key, share in zip(KEYS, SHARES, strict=True):
        lsns = (np.flatnonzero(rng.random(COMMITS) < share) + 1).tolist() or [1]
        entries[key] = [
            Entry(
                *(lsn, SEGMENT_ID, lsn * 100, lsn * 100 + 64, lsn, b"attr%d" % (lsn % 3)),
                *(lsn % 7 == 0, lsn % 2, 0, lsn.to_bytes(16, "big"), b"\x01a" if lsn % 5 else b""),
            )
            for lsn in lsns
        ]
    return build_index(entries, rows)


class Damaged:
    """The columns of an index in which some bytes fail and some attrs are not there."""

    def __init__(self, image: IndexImage, rng: np.random.Generator | None) -> None:
        """Nothing is damaged without *rng*."""
        self.image = image
        self.payload = memoryview(bytearray(flat(image)))
        self.bad = np.zeros(image.length, np.bool_)
        if rng is None:
            return
        place, count, _ = image.directory["row_attr"]
        assert isinstance(place, int)
        assert isinstance(count, int)
        attrs = np.frombuffer(self.payload[place : place + 4 * count], "<u4")
        attrs[rng.choice(count, rng.integers(0, 4), replace=False)] = 2**32 - 1
        for start in rng.integers(0, image.length, rng.integers(0, 6)).tolist():
            self.bad[start : start + int(rng.integers(1, 40))] = True

    def touch(self, low: int, high: int) -> None:
        if self.bad[low:high].any():
            raise CorruptError("a stored block is damaged", file="x", offset=low)

    def index(self) -> MappedIndex:
        reader = ColumnReader(self.payload, self.image.directory, "x", self.touch)
        return MappedIndex(reader, SEGMENT_ID)


def outcome(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except CorruptError:
        return "damaged"


@pytest.mark.parametrize("seed", range(12))
def test_versions_decoded_by_the_block_are_those_read_one_by_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng([13, seed])
    columns = Damaged(image_of(rng), rng)
    index = columns.index()
    asked = [(key, ((1, int(lsn)),)) for key in KEYS for lsn in rng.integers(0, HEAD, 60)]
    rng.shuffle(asked)
    found = [outcome(partial(index.newest, *question)) for question in asked]
    kept = index._entries
    monkeypatch.setattr(mapped_module, "_ONE_BY_ONE", 1 << 30)
    # An index that was never asked before decodes the one row, and keeps no block.
    alone = [outcome(partial(columns.index().newest, *question)) for question in asked]
    assert found == alone
    assert [outcome(partial(index.newest, *question)) for question in asked] == alone
    for row, entry in kept.items():
        assert entry == columns.index()._decode(row)


def test_damage_hits_some_of_these_and_not_all() -> None:
    """So that the test above compares both: what is damaged, and what stands beside it."""
    outcomes = set()
    for seed in range(12):
        rng = np.random.default_rng([13, seed])
        index = Damaged(image_of(rng), rng).index()
        for row in range(index.entry_count()):
            outcomes.add((seed, outcome(partial(index._decode, row)) == "damaged"))
    assert {True, False} == {damaged for _, damaged in outcomes}
    assert len(outcomes) >= 18


@pytest.mark.parametrize("seed", range(12))
def test_commits_decoded_by_the_block_are_those_read_one_by_one(seed: int) -> None:
    rng = np.random.default_rng([31, seed])
    columns = Damaged(image_of(rng), rng)
    index = columns.index()
    for at in rng.integers(-1, HEAD, 400).tolist():
        if rng.random() < 0.3:
            asked = methodcaller("commit_at", at)
        else:
            low, high = sorted(rng.integers(0, HEAD, 2).tolist()) if at % 3 else (1, HEAD)
            field, limit = ("epoch", at // 2) if at % 2 else ("time", at * 10)
            asked = methodcaller("last_commit", low, high, field, limit)
        found, alone = outcome(partial(asked, index)), outcome(partial(asked, columns.index()))
        # Once the columns are looked at as a whole, damage anywhere in them is told.
        assert found == alone or (found == "damaged" and index._asked_for >= 32), (at, found, alone)
    assert len(index._blocks) <= mapped_commits._BLOCKS_MAX


@pytest.mark.parametrize("limit", [-(2**70), -(2**63), 2**63 - 1, 2**63, 2**70])
def test_limits_that_no_commit_can_have_are_compared_too(limit: int) -> None:
    columns = Damaged(image_of(np.random.default_rng(5)), None)
    index = columns.index()
    for _ in range(2 * mapped_commits._ASKED_OFTEN):
        assert index.commit_at(7) is not None
    assert index._whole is not None
    fields: tuple[CommitField, ...] = ("epoch", "time")
    for field in fields:
        alone = columns.index().last_commit(1, HEAD, field, limit)
        assert index.last_commit(1, HEAD, field, limit) == alone


def test_blocks_of_commits_are_bounded_and_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_commits, "_BLOCKS_MAX", 2)
    rng = np.random.default_rng(8)
    columns = Damaged(image_of(rng), None)
    index = columns.index()
    rows = list(index.commits(1, HEAD))
    for lsn in rng.integers(1, COMMITS + 1, 300).tolist():
        assert index.commit_at(lsn) == rows[lsn - 1]
        assert len(index._blocks) <= 2


def test_a_key_of_many_versions_is_read_by_the_block_from_the_first_question_on() -> None:
    """Its versions are neighbours: each one by itself cost 8 us, a block of them six times that."""
    columns = Damaged(image_of(np.random.default_rng(9)), None)
    index = columns.index()
    assert index.newest(KEYS[1], ((1, COMMITS // 2),)) is not None
    assert len(index._entries) > mapped_module._ONE_BY_ONE
    few = columns.index()
    assert few.newest(KEYS[0], ((1, COMMITS),)) is not None
    assert len(few._entries) == 1
