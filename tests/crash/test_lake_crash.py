"""Crashes while a lake grows: an addition or removal is there as a whole, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.write import addition
from mldb.log.fs.crash_states import Model as Persistence
from mldb.log.fs.crash_states import crash_states
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.parts import some_and_many

pytestmark = pytest.mark.usefixtures("repeatable")

DIM = 24
State = dict[int, bytes]
"""A lake: the bytes of its rows by id."""


@pytest.fixture(autouse=True)
def _ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addition, "_IN_MEMORY", 4000)  # so that some blocks are written ahead


def state_of(lake: Any) -> State:
    if not len(lake):
        return {}
    got = lake.get(fields=("id", "mu"))
    return {int(i): row.tobytes() for i, row in zip(got["id"], got["mu"], strict=True)}


def grow(fs: MemoryFileSystem, rng: np.random.Generator, durability: str) -> list[State]:
    """Add and remove; return the states in order. A mark is set when a change was acknowledged."""
    db = mldb.MLDatabase.on(fs, durability=durability, segment_bytes=9000)
    lake = db.lake(dim=DIM)
    states: list[State] = [{}]

    def note() -> None:
        states.append(state_of(lake))
        fs.mark(len(states) - 1)

    for rows in (3, 60, 5, 80):
        lake.add_splats(rng.standard_normal((rows, DIM)))
        note()
        lake.remove(rng.choice(lake.ids(), 2, replace=False))
        note()
    lake.add_splats(rng.standard_normal((2, DIM)), ids=[900, 901])
    note()
    db.close()
    return states


@pytest.mark.slow
@some_and_many("limit", 40, 120)
@pytest.mark.parametrize("durability", ["commit", "os"])
@pytest.mark.parametrize("persistence", ["posix", "ordered", "process"])
def test_every_crash_leaves_whole_additions(
    durability: str, persistence: Persistence, limit: int, seed: int, rng: np.random.Generator
) -> None:
    fs = MemoryFileSystem(record=True)
    states = grow(fs, rng, durability)
    promised = durability == "commit" or persistence == "process"
    checked = 0
    for disk in crash_states(fs, model=persistence, seed=seed, limit=limit):
        checked += 1
        least = max((int(str(mark)) for mark in disk.marks), default=0) if promised else 0
        with mldb.MLDatabase.on(disk, durability=durability) as db:
            lake = db.lake(dim=DIM)
            found = state_of(lake)
            assert found in states[least:], disk.description
            before = len(found)
            ids = lake.add_splats(rng.standard_normal((3, DIM)))
            assert not set(ids.tolist()) & set(found)
            assert len(lake) == before + 3
            assert db.verify().ok
    print(f"{checked} disks")
    assert checked >= limit * 5 // 6


@some_and_many("limit", 150, 10_000)
@pytest.mark.parametrize(
    ("durability", "rows"),
    [
        pytest.param("commit", 3, id="commit-in memory"),
        pytest.param("os", 60, id="os-written ahead", marks=pytest.mark.large),
        pytest.param("commit", 60, id="commit-written ahead"),
        pytest.param("os", 3, id="os-in memory", marks=pytest.mark.large),
    ],
)
def test_a_killed_first_addition_leaves_no_lake(
    rows: int, durability: str, limit: int, seed: int, rng: np.random.Generator
) -> None:
    """Killed at any write or sync: the name is free for any dimension, or the lake has its rows."""
    fs = MemoryFileSystem(record=True)
    with mldb.MLDatabase.on(fs, durability=durability) as db:
        before = db.lsn
        db.lake("new", dim=DIM).add_splats(rng.standard_normal((rows, DIM)))
    found = {"nothing": 0, "the rows": 0}
    for disk in crash_states(fs, model="process", seed=seed, limit=limit):
        with mldb.MLDatabase.on(disk, durability=durability) as db:
            if db.lakes():
                found["the rows"] += 1
                assert len(db.lake("new")) == rows, disk.description
            else:
                found["nothing"] += 1
                assert db.lsn == before
                assert len(db.lake("new", dim=5).add_splats(rng.standard_normal((1, 5)))) == 1
            assert db.verify().ok
    print(f"{found} of at most {limit} disks")
    assert all(found.values()), found
