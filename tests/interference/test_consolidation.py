"""Merges beside processes that add and remove, and readers that hold what they began with."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import ConflictError, InvalidValueError
from mldb.history.events import SplatsAdded, SplatsConsolidated
from tests.support.processes import Child, Line
from tests.support.splats import planted

DIM = 12


def mass_of(lake: Any) -> float:
    return float(lake.get(fields=("alpha",))["alpha"].sum()) if len(lake) else 0.0


def add_copies(path: str, seed: int, rounds: int, line: Line) -> None:
    """Add copies of the same few rows, and now and then remove what is still there of them."""
    rng = np.random.default_rng(seed)
    mu, _ = planted(np.random.default_rng(5), 20, DIM, 0.05)
    with mldb.open(path, durability="os") as db:
        lake = db.lake(dim=DIM)
        for turn in range(rounds):
            some = mu[rng.integers(0, len(mu), 12)] + 0.001 * rng.standard_normal((12, DIM))
            ids = lake.add_splats(some)
            gone = 0
            if turn % 3 == 2:
                with mldb.open(path, mode="r") as other:
                    assert len(other.lake()) > 0
                try:
                    lake.remove(ids[:2])
                    gone = 2
                except mldb.MissingError:
                    pass  # a merge was faster
            line.say("added", 12 - gone)


def read_always(path: str, line: Line) -> None:
    """Hold snapshots and read them again and again: none changes, and all have whole mass."""
    with mldb.open(path, mode="r") as db, ExitStack() as held:
        seen: dict[int, tuple[Any, bytes]] = {}
        looks = 0
        line.say("ready")
        while db.lake().name and looks < 25:
            snapshot = held.enter_context(db.lake().at())
            mu = snapshot.get(fields=("mu", "alpha", "id"))
            seen[int(snapshot.lsn)] = (snapshot, mu["mu"].tobytes() + mu["id"].tobytes())
            for lsn, (old, data) in seen.items():
                again = old.get(fields=("mu", "id"))
                if again["mu"].tobytes() + again["id"].tobytes() != data:
                    line.say("changed", lsn)
                    return
            looks += 1
            line.say("looked", int(snapshot.lsn), float(mu["alpha"].sum()))


@pytest.fixture
def store(store_path: Path) -> str:
    with mldb.open(store_path, durability="os") as db:
        mu, _ = planted(np.random.default_rng(5), 20, DIM, 0.05)
        db.lake(dim=DIM).add_splats(mu[:100])
    return str(store_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sweep", "sandpile"])
def test_merges_beside_additions_removals_and_readers(store: str, method: Any) -> None:
    """Two processes add, one reads, this one merges and undoes: no row is lost or counted twice."""
    with (
        Child(lambda line: add_copies(store, 1, 25, line)) as first,
        Child(lambda line: add_copies(store, 2, 25, line)) as second,
        Child(lambda line: read_always(store, line)) as reader,
        mldb.open(store, durability="os") as db,
    ):
        lake = db.lake()
        assert reader.hear() == ["ready"]
        merged = 0
        for turn in range(12):
            try:
                report = lake.consolidate(method=method, min_cos=0.97, retries=0)
                merged += report.merged
                if turn % 4 == 3 and report.merged:
                    lake.undo(report)
            except ConflictError:
                continue  # a source was removed meanwhile
            except InvalidValueError:
                assert turn % 4 == 3  # all that it made was removed already
        mass = sum(float(words[1]) for child in (first, second) for words in child.rest())
        looks = list(reader.rest())
        assert looks
        assert all(words[0] == "looked" for words in looks)
        lake.consolidate()
        assert merged > 0
        total = sum(event.alpha_sum for event in db.events() if isinstance(event, SplatsAdded))
        start = next(event for event in db.events() if isinstance(event, SplatsAdded)).alpha_sum
        assert mass_of(lake) == start + mass <= total
        for event in db.events():
            if isinstance(event, SplatsConsolidated) and event.rows:
                made = np.arange(event.base, event.base + event.rows)
                sources = [lake.sources(int(i)) for i in made]
                assert sum(map(len, sources)) == event.sources
                assert len(np.unique(np.concatenate(sources))) == event.sources
        for words in looks[:: max(len(looks) // 4, 1)]:
            with lake.at(mldb.Lsn(int(words[1]))) as then:
                assert mass_of(then) == float(words[2])
        assert db.verify().ok
