"""Crashes and interrupts through merges and their undoing: all of a commit is there, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.consolidation import store
from mldb.log.fs.crash_states import Model as Persistence
from mldb.log.fs.crash_states import crash_states
from mldb.log.fs.memory import MemoryFileSystem
from tests.crash.test_interrupts import Interrupt
from tests.support.parts import one_of, some_and_many
from tests.support.splats import planted

pytestmark = pytest.mark.usefixtures("repeatable")

DIM = 12
FIELDS = ("mu", "norm", "kappa", "alpha", "min_cos")
State = dict[int, bytes]
"""A lake: all columns of its rows by id."""


def state_of(lake: Any) -> State:
    if not len(lake):
        return {}
    got = lake.get(fields=("id", *FIELDS))
    parts = zip(*(got[name] for name in FIELDS), strict=True)
    rows = (b"".join(value.tobytes() for value in row) for row in parts)
    return dict(zip(map(int, got["id"]), rows, strict=True))


def consolidated(fs: MemoryFileSystem, rng: np.random.Generator, durability: str) -> list[State]:
    """Add, merge and undo; return the states in order. A mark is set when one is acknowledged."""
    db = mldb.MLDatabase.on(fs, durability=durability, segment_bytes=9000)
    lake = db.lake(dim=DIM)
    states: list[State] = [{}]

    def note() -> None:
        states.append(state_of(lake))
        fs.mark(len(states) - 1)

    mu, _ = planted(rng, 12, DIM, 0.05)
    lake.add_splats(mu[:50])
    note()
    report = lake.consolidate()
    note()
    lake.add_splats(mu[50:70] if len(mu) > 60 else mu[:5])
    note()
    lake.undo(report)
    note()
    lake.consolidate(method="sandpile", budget=20)
    note()
    lake.consolidate(method="sandpile")
    note()
    lake.consolidate()
    note()
    db.close()
    return states


@pytest.mark.slow
@some_and_many("limit", 30, 60)
@pytest.mark.parametrize("large", [False, True], ids=["in memory", "written ahead"])
@pytest.mark.parametrize("persistence", ["posix", "process"])
def test_every_crash_leaves_whole_merges(
    large: bool,
    persistence: Persistence,
    limit: int,
    seed: int,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if large:
        monkeypatch.setattr(store, "_IN_MEMORY", 100)
    durability = "os" if large else "commit"
    fs = MemoryFileSystem(record=True)
    states = consolidated(fs, rng, durability)
    promised = durability == "commit" or persistence == "process"
    found = set()
    for disk in crash_states(fs, model=persistence, seed=seed, limit=limit):
        least = max((int(str(mark)) for mark in disk.marks), default=0) if promised else 0
        with mldb.MLDatabase.on(disk, durability=durability) as db:
            lake = db.lake(dim=DIM)
            state = state_of(lake)
            assert state in states[least:], disk.description
            found.add(states.index(state))
            if len(state):
                report = lake.consolidate(min_cos=0.9)
                if report.lsn is not None:
                    lake.undo(report)
                assert state_of(lake) == state
            assert db.verify().ok
    print(f"{limit} disks, {len(found)} of {len(states)} states")
    assert len(found) >= 4


class Late(Interrupt):
    """Raises behind the plan: at the *number*-th place since storing began."""

    begun = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        self.begun |= frame.f_code.co_name in ("store_merges", "undo_merges")
        if self.begun:
            super().__call__(frame, event, argument)


def interrupted(act: Callable[[], object], number: int) -> Interrupt:
    interrupt = Late(number)
    before = sys.getprofile()
    try:
        sys.setprofile(interrupt)
        try:
            act()
        finally:
            sys.setprofile(before)
    except KeyboardInterrupt:
        assert interrupt.place, "a real Ctrl-C"
    return interrupt


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@some_and_many("step", 24, 8)
@pytest.mark.parametrize("what", ["consolidate", "undo"])
def test_an_interrupt_anywhere_leaves_all_or_nothing(
    what: str, step: int, rng: np.random.Generator
) -> None:
    """At every few of the places where Python can raise it; this handle and others know which."""
    mu, _ = planted(rng, 8, DIM, 0.05)
    mu = mu[:30]
    outcomes, number = set(), 1
    while True:
        fs = MemoryFileSystem()
        with mldb.MLDatabase.on(fs, durability="os", lock_timeout=0.05) as db:
            lake = db.lake(dim=DIM)
            lake.add_splats(mu)
            before = state_of(lake)
            if what == "undo":
                report = lake.consolidate()
                before, after = state_of(lake), before
                interrupt = interrupted(partial(lake.undo, report), number)
                wanted = state_of(lake) == after
            else:
                interrupt = interrupted(lake.consolidate, number)
                wanted = len(lake) < len(before)
            state = state_of(lake)
            assert wanted or state == before, interrupt.place
            outcomes.add(wanted)
            with mldb.MLDatabase.on(fs, lock_timeout=0.05) as other:
                assert state_of(other.lake(dim=DIM)) == state, interrupt.place
            added = lake.add_splats(rng.standard_normal((2, DIM)))
            assert len(lake) == len(state) + 2
            assert not set(added.tolist()) & state.keys()
            assert db.verify().ok
        if not interrupt.place:
            assert wanted
            break
        number += step
    print(f"{one_of(step)} of {number} places")
    assert number > 100, "hardly anything was interrupted"
    assert outcomes == {True, False}
