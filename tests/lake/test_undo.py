"""Taking merges back: what returns, what stays, and when it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb import Lsn
from mldb.errors import ConflictError, InvalidTypeError, InvalidValueError, MissingError
from mldb.history.events import ConsolidationUndone
from mldb.history.kinds.lakes import consolidation_undone
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.parts import examples
from tests.support.splats import planted

DIM = 8
FIELDS = ("mu", "norm", "kappa", "alpha", "min_cos", "id", "label")


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def fill(db: Any, rng: np.random.Generator, originals: int = 12, noise: float = 0.05) -> Any:
    mu, of = planted(rng, originals, DIM, noise)
    mu, of = mu[:120], of[:120]
    lake = db.lake(dim=DIM)
    for rows in np.array_split(np.arange(len(mu)), 3):
        lake.add_splats(mu[rows], labels=of[rows] % 2)
    return lake


def rows_of(lake: Any) -> dict[int, bytes]:
    if not len(lake):
        return {}
    got = lake.get(fields=FIELDS)
    return {
        int(row): b"".join(np.asarray(got[name][at]).tobytes() for name in FIELDS)
        for at, row in enumerate(got["id"])
    }


def in_order(lake: Any) -> bytes:
    return b"".join(lake.get(fields=(name,))[name].tobytes() for name in FIELDS)


def test_undo_returns_what_was_there_in_its_old_order(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    before, rows = in_order(lake), rows_of(lake)
    report = lake.consolidate()
    merged = in_order(lake)
    lsn = lake.undo(report)
    assert lsn == db.lsn
    assert in_order(lake) == before
    assert rows_of(lake) == rows
    with lake.at(report.lsn) as then:
        assert in_order(then) == merged
    event = list(db.events())[-1]
    assert isinstance(event, ConsolidationUndone)
    assert (event.lake, event.target) == ("default", report.lsn)
    assert (event.ended, event.restored) == (report.merged, report.sources)
    again = lake.consolidate()
    assert again.merged == report.merged
    lake.undo(Lsn(int(again.lsn)))
    assert in_order(lake) == before


def test_rows_added_since_stay(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    lake = fill(db, rng)
    before = rows_of(lake)
    report = lake.consolidate()
    added = lake.add_splats(rng.standard_normal((7, DIM)), labels=np.ones(7, int))
    late = {i: row for i, row in rows_of(lake).items() if i in added}
    lake.undo(report)
    assert rows_of(lake) == before | late


def test_splats_removed_since_stay_removed_with_their_sources(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    before = rows_of(lake)
    report = lake.consolidate()
    made = [i for i in lake.ids().tolist() if len(lake.sources(i))]
    lone = [i for i in lake.ids().tolist() if not len(lake.sources(i))]
    lost = {*lake.sources(made[0]).tolist(), *lake.sources(made[2]).tolist(), *lone[:1]}
    lake.remove([made[0], made[2], *lone[:1]])
    lake.undo(report)
    assert rows_of(lake) == {i: row for i, row in before.items() if i not in lost}
    assert len(lake) == len(before) - len(lost)


def test_undo_survives_reopening_and_lost_hints(rng: np.random.Generator, store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        lake = fill(db, rng)
        states = {int(db.lsn): rows_of(lake)}
        report = lake.consolidate()
        states[int(db.lsn)] = rows_of(lake)
        lake.undo(report)
        states[int(db.lsn)] = rows_of(lake)
        lake.consolidate(min_cos=0.99)
        states[int(db.lsn)] = rows_of(lake)
    for lost in (False, True):
        if lost:
            for hint in (store_path / "hints").iterdir():
                hint.unlink()
        with mldb.open(store_path, mode="r") as db:
            for lsn in [*states, *reversed(states)]:
                with db.lake().at(Lsn(lsn)) as then:
                    assert rows_of(then) == states[lsn]


def test_what_cannot_be_taken_back(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    lake = fill(db, rng, 20, noise=0.3)
    added = db.lsn
    report = lake.consolidate(min_cos=0.985)
    made = set(lake.ids().tolist())
    before = db.lsn

    def refused(error: type[Exception], match: str, what: Any) -> None:
        lsn = db.lsn
        with pytest.raises(error, match=match):
            lake.undo(what)
        assert db.lsn == lsn

    refused(MissingError, "merged nothing", added)
    refused(MissingError, "merged nothing", Lsn(2**40))
    refused(InvalidTypeError, "no commit", int(before))
    refused(InvalidTypeError, "no commit", "tag")
    wider = lake.consolidate(min_cos=0.9)
    lately = {s for i in lake.ids().tolist() if i not in made for s in lake.sources(i).tolist()}
    assert any(lake.sources(i).size for i in lately)  # of splats that the first run made
    refused(InvalidValueError, "undo that one first", report)
    lake.undo(wider)
    lake.undo(report)
    refused(InvalidValueError, "taken back", report)
    last = lake.consolidate()
    lake.remove([i for i in lake.ids().tolist() if len(lake.sources(i))])
    refused(InvalidValueError, "removed since", last)


def test_ids_that_were_given_again_stay_with_their_new_rows(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    report = lake.consolidate()
    made = next(i for i in lake.ids().tolist() if len(lake.sources(i)))
    reused = int(lake.sources(made)[0])
    lake.add_splats(rng.standard_normal((1, DIM)), ids=[reused], labels=[0])
    state = rows_of(lake)
    with pytest.raises(InvalidValueError, match=f"id {reused}, of a row"):
        lake.undo(report)
    lake.remove(reused)
    with pytest.raises(InvalidValueError, match=f"id {reused}, of a row"):
        lake.undo(report)
    state.pop(reused)
    assert rows_of(lake) == state


def test_a_rewind_behind_a_merge_forgets_it(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    lake = fill(db, rng)
    start, before = db.lsn, rows_of(lake)
    report = lake.consolidate()
    lake.undo(report)
    undone = db.lsn
    db.rewind(report.lsn)
    merged = rows_of(lake)
    assert merged != before
    lake.undo(report)
    assert rows_of(lake) == before
    db.rewind(start)
    with pytest.raises(MissingError, match="merged nothing"):
        lake.undo(report)
    with lake.at(undone) as then:
        assert rows_of(then) == before


def test_a_commit_in_between_is_seen(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = fill(db, rng)
    report = lake.consolidate()
    made = next(i for i in lake.ids().tolist() if len(lake.sources(i)))
    plain = consolidation_undone
    acts: list[Any] = [lambda: lake.remove(made)]

    def meddled(*args: Any) -> Any:
        if acts:
            acts.pop()()
        return plain(*args)

    monkeypatch.setattr("mldb.lake.consolidation.undo.consolidation_undone", meddled)
    with pytest.raises(ConflictError):
        lake.undo(report)
    acts.append(lambda: lake.add_splats(rng.standard_normal((2, DIM)), labels=[0, 0]))
    lake.undo(report)
    assert made not in lake.ids()
    assert len([i for i in lake.ids().tolist() if len(lake.sources(i))]) == 0


@examples(25)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from("amrucsw"), max_size=12))
def test_any_history_reads_as_a_dict_would(seed: int, acts: list[str]) -> None:
    """Additions, removals, merges, undone ones, runs of the sandpile and rewinds, in any order.

    Read at every commit, in any order, by the handle that wrote and by one without hints.
    """
    rng = np.random.default_rng(seed)
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, durability="os") as db:
        lake = fill(db, rng, 6)
        states = {int(db.lsn): rows_of(lake)}
        reports: list[Any] = []
        for act in acts:
            model = dict(rows_of(lake))
            if act == "a":
                mu = rng.standard_normal((3, DIM))
                for i in lake.add_splats(mu, labels=[0, 1, 1]).tolist():
                    model[i] = rows_of(lake)[i]
            elif act == "r" and model:
                gone = rng.choice(sorted(model), min(3, len(model)), replace=False)
                lake.remove(gone)
                model = {i: row for i, row in model.items() if i not in gone}
            elif act in "mcs" and model:
                method = "sandpile" if act == "s" else "sweep"
                report = lake.consolidate(min_cos=0.9 if act == "c" else 0.98, method=method)
                if report.merged:
                    reports.append((report, model))
                now = rows_of(lake)
                made = {i for i in now if i not in model}
                ended = {s for i in made for s in lake.sources(i).tolist()}
                assert ended <= model.keys()
                model = {i: r for i, r in model.items() if i not in ended}
                model |= {i: now[i] for i in made}
            elif act == "u" and reports:
                report, old = reports.pop()
                live = [i for i in model if i not in old and lake.sources(i).size]
                mine = set(lake.sources(live[0]).tolist()) if live else set()
                try:
                    lake.undo(report)
                except (InvalidValueError, MissingError):
                    assert rows_of(lake) == model
                else:
                    now = rows_of(lake)
                    back = now.keys() - model.keys()
                    assert all(now[i] == old[i] for i in back)
                    assert not mine or mine <= back or live[0] in now
                    model = now
            elif act == "w":
                target = int(rng.choice(sorted(states)))
                db.rewind(Lsn(target))
                model = states[target]
            assert rows_of(lake) == model
            assert len(lake) == len(model)
            states[int(db.lsn)] = model
        order = rng.permutation(sorted(states)).tolist()
        for lsn in order:
            with lake.at(Lsn(lsn)) as then:
                assert rows_of(then) == states[lsn]
        assert db.verify().ok
    for hint in fs.list("hints"):
        fs.unlink(f"hints/{hint}")
    with mldb.MLDatabase.on(fs, mode="r") as db:
        for lsn in order:
            with db.lake().at(Lsn(lsn)) as then:
                assert rows_of(then) == states[lsn]
