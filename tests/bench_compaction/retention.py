"""The disk after a compaction against what retention keeps, before and after a pin is taken back.

The measure is a store that never held anything else: the checkpoints that are left are stored once
more in a folder of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction import dedupe
from tests.bench_compaction.row import Row, at_most
from tests.bench_compaction.runner import bytes_in

LAST, EVERY = 3, 10
PINNED = 4
FROZEN = 0.7


@dataclass(frozen=True)
class Amounts:
    """What is measured; ``asked``: the bound is meant for these sizes."""

    state: dedupe.Sizes = dedupe.FULL
    checkpoints: int = 40
    asked: bool = True


FULL = Amounts()
QUICK = Amounts(dedupe.QUICK, 20, asked=False)


def make_store(db: mldb.MLDatabase, amounts: Amounts) -> None:
    """Checkpoints of a run in which most of the state never changes, one of them pinned."""
    state, rng = dedupe.model(amounts.state), np.random.default_rng(18)
    frozen = dedupe.frozen_names(state, FROZEN)
    for epoch in range(amounts.checkpoints):
        for name in state.keys() - frozen if epoch else ():
            state[name] += rng.standard_normal(state[name].shape, dtype=np.float32)
        db.checkpoint({"model": state}, epoch=epoch)
    db.pin(PINNED)
    db.retention.set(last=LAST, every=EVERY, checkpoints=LAST)


def stored_again(store: Path, other: Path) -> int:
    """Store the checkpoints that are left in a new store; return how many there are."""
    count = 0
    with (
        mldb.open(store, mode="r") as db,
        mldb.open(other, durability="os", background_compaction=False) as copy,
    ):
        for item in db.checkpoints():
            try:
                state = db.load(None, as_of=item.lsn)
            except mldb.VersionGoneError:
                continue
            copy.checkpoint(state, epoch=item.epoch)
            count += 1
    return count


def returned(amounts: Amounts) -> list[Row]:
    """Compact under a retention with a pin, and again without it."""
    found = []
    with fresh_folder() as root:
        store = root / "store"
        with mldb.open(store, durability="os", background_compaction=False) as db:
            make_store(db, amounts)
        before = bytes_in(store)
        for is_pinned in (True, False):
            with mldb.open(store, durability="os", background_compaction=False) as db:
                if not is_pinned:
                    db.unpin(PINNED)
                db.compact(cold="none")
            other, after = root / f"{is_pinned}", bytes_in(store)
            count = stored_again(store, other)
            found.append((count, after / bytes_in(other), after / before))
    (pinned, ratio, of_all), last = found
    name, unit = f"retention, {amounts.checkpoints} checkpoints", "x of a store of these"
    figure = f"{name}: disk with the {last[0]} that stay, once unpinned"
    return [
        at_most(figure, last[1], unit, 1.1, asked=amounts.asked),
        Row("  of what all took", last[2], "x"),
        Row(f"  disk with the {pinned} that stay while one is pinned", ratio, unit),
        Row("  of what all took", of_all, "x"),
    ]


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    return returned(QUICK if quick else FULL)
