"""The fold of a lake that is kept: against the fold made anew, over histories that branch."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.errors import InvalidValueError, MissingError
from mldb.lake import states as states_module
from mldb.lake.augment.graph_store import GRAPH_NEIGHBOURS, lake_graph
from mldb.lake.rows import chain as chain_module
from mldb.lake.rows.chain import Chain
from mldb.lake.rows.growing import Growing
from mldb.lake.rows.ids import IdIndex
from mldb.lake.rows.live import Rows, rows_in
from mldb.lake.states import LakeStates
from mldb.log.hints import load_hint_bytes, save_hint
from mldb.sphere.graph import build_graph
from tests.support.threads import in_thread

DIM = 5


def rows_of(rng: np.random.Generator, count: int) -> Any:
    return rng.standard_normal((count, DIM))


def anew(db: mldb.MLDatabase, lsn: int) -> Rows:
    """The rows at a commit by a fold that knows nothing before."""
    return rows_in(db._scope(mldb.Lsn(lsn)), "default", LakeStates(1 << 20, saves=False))


def content(rows: Rows) -> dict[str, Any]:
    """Everything that can be asked of rows."""
    every = np.arange(len(rows))
    asked = np.arange(-2, 260)
    return {
        "count": len(rows),
        "ids": rows.ids().tolist(),
        "mu": rows.gather("mu", slice(0, len(rows))).tobytes(),
        "scattered": rows.gather("mu", every[::-1].copy()).tobytes(),
        "alpha": rows.gather("alpha", every[::-1].copy()).tobytes(),
        "scattered ids": rows.gather("id", every[::2].copy()).tolist(),
        "find": rows.find(asked).tolist(),
        "lsns": rows.lsns(every).tolist(),
        "columns": rows.columns,
        "version": rows.state.version,
    }


def check(db: mldb.MLDatabase, rows: Rows, lsn: int) -> None:
    """Rows that were kept and grown are those of a fold made anew, without any hint."""
    hints = Path(db.path) / "hints"
    away = hints.with_name("away")
    hints.rename(away)
    try:
        assert content(rows) == content(anew(db, lsn))
    finally:
        away.rename(hints)


class History:
    """A lake that is changed at random; it knows which ids are live at every commit."""

    def __init__(self, db: mldb.MLDatabase, rng: np.random.Generator) -> None:
        self.db = db
        self.rng = rng
        self.rows: list[int] = []  # ids in the order of rows, and whether each is live
        self.alive: list[bool] = []
        self.seen: dict[int, list[int]] = {}
        self.kept: dict[int, tuple[list[int], list[bool]]] = {}
        self.merges: dict[int, dict[int, list[int]]] = {}  # places of sources by that of a splat
        self.undone = 0
        self.lake = db.lake(dim=DIM)
        self._add()
        self.note()

    @property
    def live(self) -> list[int]:
        return [row for row, lives in zip(self.rows, self.alive, strict=True) if lives]

    def note(self) -> None:
        self.seen[int(self.db.lsn)] = self.live
        self.kept[int(self.db.lsn)] = list(self.rows), list(self.alive)

    def _add(self) -> None:
        x, rng = rows_of(self.rng, int(self.rng.integers(1, 7))), self.rng
        free = np.setdiff1d(np.arange(250), self.live)
        own = rng.choice(free, len(x), replace=False) if rng.random() < 0.5 else None
        labels = np.arange(len(x)) if rng.random() < 0.3 else None
        self._append(self.lake.add_splats(x, ids=own, labels=labels).tolist())

    def _append(self, ids: list[int]) -> None:
        self.rows += ids
        self.alive += [True] * len(ids)

    def _end(self, ids: list[int]) -> list[int]:
        """End the live rows of *ids*; return their places."""
        places = [at for at, row in enumerate(self.rows) if row in ids and self.alive[at]]
        for at in places:
            self.alive[at] = False
        return places

    def _merge(self) -> None:
        before = self.live
        report = self.lake.consolidate(min_cos=0.8)
        if report.lsn is None:
            return
        made = [i for i in self.lake.ids().tolist() if i not in before]
        places = [self._end(self.lake.sources(i).tolist()) for i in made]
        start = len(self.rows)
        self._append(made)
        self.merges[int(report.lsn)] = dict(enumerate(places, start))

    def _undo(self) -> None:
        """Take the newest merges of this lineage back, where nothing says that it cannot be."""
        for lsn, places in sorted(self.merges.items(), reverse=True):
            try:
                self.lake.undo(mldb.Lsn(lsn))
            except (InvalidValueError, MissingError):
                continue
            for splat, sources in places.items():
                if self.alive[splat]:
                    self.alive[splat] = False
                    for at in sources:
                        self.alive[at] = True
            self.undone += 1
            return

    def step(self) -> None:
        """Add, remove, merge, undo, rewind, or change something else."""
        choice = self.rng.random()
        if choice < 0.4 or len(self.live) < 2:
            self._add()
        elif choice < 0.55:
            count = int(self.rng.integers(1, max(2, len(self.live) // 2)))
            gone = self.rng.choice(self.live, count, replace=False).tolist()
            self.lake.remove(gone)
            self._end(gone)
        elif choice < 0.67:
            self._merge()
        elif choice < 0.8:
            self._undo()
        elif choice < 0.92:
            lsn = int(self.rng.choice(list(self.seen)))
            self.db.rewind(mldb.Lsn(lsn))
            rows, alive = self.kept[lsn]
            self.rows, self.alive = list(rows), list(alive)
        else:
            self.db["something"] = np.arange(3)
        self.note()


@pytest.mark.parametrize("saved", [True, False])
def test_states_that_are_grown_are_states_made_anew(
    store_path: Path, rng: np.random.Generator, saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Additions, removals, rewinds, reads of head and past in turn, and new handles in between."""
    monkeypatch.setattr(states_module, "SAVE_FROM", 2 if saved else 1 << 20)
    monkeypatch.setattr(chain_module, "_MAPPED_MAX", 7)
    db = mldb.open(store_path, durability="os", segment_bytes=1 << 16)
    history = History(db, rng)
    for number in range(70):
        history.step()
        if rng.random() < 0.6:
            assert history.lake.ids().tolist() == history.live
        lsn = int(rng.choice(list(history.seen)))
        with history.lake.at(mldb.Lsn(lsn)) as past:
            assert past.ids().tolist() == history.seen[lsn]
            if number % 3 == 0:
                check(db, past.rows(), lsn)
        if number % 3 == 1:
            check(db, history.lake.rows(), int(db.lsn))
        if number % 13 == 12:
            db.close()
            db = history.db = mldb.open(store_path, durability="os", segment_bytes=1 << 16)
            history.lake = db.lake()
    assert len(history.merges) > 2
    assert history.undone > 1
    stats = db.stats()["lakes"]
    assert (stats["loaded"] > 0) is saved
    for lsn, live in history.seen.items():
        with history.lake.at(mldb.Lsn(lsn)) as past:
            assert past.ids().tolist() == live
    db.close()


def test_head_and_past_do_not_push_each_other_out(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        for epoch in range(30):
            lake.add_splats(rows_of(rng, 2), epoch=epoch)
        with lake.at(10) as past:
            assert (len(lake), len(past)) == (60, 22)
            folded = db.stats()["lakes"]["folded"]
            for _ in range(5):
                assert (len(lake), len(past)) == (60, 22)
            lake.add_splats(rows_of(rng, 1))
            assert (len(lake), len(past)) == (61, 22)
            assert db.stats()["lakes"]["folded"] - folded == 1


def test_a_fold_that_was_interrupted_anywhere_goes_on(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between any two changes of a column leaves nothing that is believed."""
    with mldb.open(store_path, durability="os") as db:
        history = History(db, rng)
        while not (history.merges and history.undone and len(history.seen) > 12):
            history.step()
        plain, left = Growing.append, [0]

        def append(self: Growing, values: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            plain(self, values)
            if left[0] == -1:
                raise KeyboardInterrupt

        other = next(lsn for lsn in sorted(history.seen) if history.seen[lsn] != history.live)
        for cut in range(1, 30):
            for sign in (1, -1):
                known = LakeStates(1 << 20, saves=False)
                left[0] = cut if sign == 1 else cut - 2
                with monkeypatch.context() as patch:
                    patch.setattr(Growing, "append", append)
                    with suppress(KeyboardInterrupt):
                        rows_in(db._scope(), "default", known)
                assert (
                    rows_in(db._scope(mldb.Lsn(other)), "default", known).ids().tolist()
                    == (history.seen[other])
                )
                assert rows_in(db._scope(), "default", known).ids().tolist() == history.live


@pytest.mark.parametrize("head", [1 << 63, 1 << 40, 100])
def test_a_key_that_names_no_commit_before_its_own_is_damage(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, head: int
) -> None:
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        lake.add_splats(rows_of(rng, 3), epoch=1)
        wrong = keys.splats_prefix(b"default") + head.to_bytes(8, "big")
        with monkeypatch.context() as patch:
            patch.setattr(keys, "splats_key", lambda *_: wrong)
            lake.add_splats(rows_of(rng, 3), epoch=2)
        with pytest.raises(mldb.CorruptError, match="names no commit before its own"):
            len(lake)
        with lake.at(1) as past:
            assert past.ids().tolist() == [0, 1, 2]
        db["other"] = np.arange(3)


def test_a_lake_can_be_read_inside_the_call_that_folds_it(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler would."""
    with mldb.open(store_path, durability="os") as db:
        history = History(db, rng)
        for _ in range(15):
            history.step()
        plain, inside = Chain.learn_ids, list[Any]()

        def learn(self: Chain, scope: Any) -> None:
            if not inside:
                inside.append(None)
                inside[0] = history.lake.ids().tolist()
            plain(self, scope)

        monkeypatch.setattr(Chain, "learn_ids", learn)
        fresh = LakeStates(1 << 20, saves=False)
        db._lake_states[""] = fresh
        lake = history.lake = db.lake()
        assert lake.ids().tolist() == history.live == inside[0]


def test_threads_read_head_and_past_while_the_lake_changes(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(store_path, durability="os") as db:
        history = History(db, rng)
        wrong: list[Any] = []
        stop = threading.Event()

        def read(seed: int) -> None:
            own = np.random.default_rng(seed)
            while not stop.is_set():
                lsn = int(own.choice(list(history.seen)))
                with history.lake.at(mldb.Lsn(lsn)) as past:
                    ids = past.ids().tolist()
                    mu = past.get(fields=("mu", "id"))
                if ids != history.seen[lsn] or mu["id"].tolist() != ids:
                    wrong.append((lsn, ids, history.seen[lsn]))
                len(history.lake)

        def change() -> None:
            for _ in range(60):
                history.step()

        threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            in_thread(change)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not wrong
        check(db, history.lake.rows(), int(db.lsn))


# --- hints ----------------------------------------------------------------------------------------


def grown(store_path: Path, rng: np.random.Generator) -> tuple[list[int], dict[int, list[int]]]:
    """A store with a hint of its lake: live ids, and those of every commit."""
    with mldb.open(store_path, durability="os") as db:
        history = History(db, rng)
        for _ in range(25):
            history.step()
        len(history.lake)
        return history.live, history.seen


def hint(store_path: Path) -> Path:
    (found,) = (store_path / "hints").glob("lake-*.rows")
    return found


@pytest.fixture
def saves_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "SAVE_FROM", 1)


def _flip(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


@pytest.mark.usefixtures("saves_soon")
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", _flip, lambda data: data[:9]]
)
def test_a_hint_that_is_lost_or_damaged_costs_time_and_nothing_else(
    store_path: Path, rng: np.random.Generator, damage: Callable[[bytes], bytes]
) -> None:
    live, _ = grown(store_path, rng)
    hint(store_path).write_bytes(damage(hint(store_path).read_bytes()))
    with mldb.open(store_path, mode="r") as db:
        assert db.lake().ids().tolist() == live
        assert db.stats()["lakes"]["loaded"] == 0


@pytest.mark.usefixtures("saves_soon")
def test_a_hint_serves_readers_and_is_extended_by_what_came_after(
    store_path: Path, rng: np.random.Generator
) -> None:
    live, seen = grown(store_path, rng)
    old = hint(store_path).read_bytes()
    with mldb.open(store_path, durability="os") as db:
        more = db.lake().add_splats(rows_of(rng, 3)).tolist()
        rows = db.lake().rows()
        assert rows.ids().tolist() == live + more
    hint(store_path).write_bytes(old)
    with mldb.open(store_path, mode="r") as db:
        assert db.lake().ids().tolist() == live + more
        stats = db.stats()["lakes"]
        assert (stats["loaded"] > 1, stats["folded"]) == (True, 1)
        for lsn, ids in seen.items():
            assert db.lake().at(mldb.Lsn(lsn)).ids().tolist() == ids


@pytest.mark.usefixtures("saves_soon")
def test_the_hint_of_another_store_is_not_taken(
    store_path: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Two copies of a store go on, each in its way, with the same lake id and the same numbers."""
    with mldb.open(store_path, durability="os") as db:
        db.lake(dim=DIM).add_splats(rows_of(rng, 4))
    copy = tmp_path / "copy"
    shutil.copytree(store_path, copy)
    for place, first in ((store_path, 100), (copy, 200)):
        with mldb.open(place, durability="os") as db:
            for number in range(3):
                db.lake().add_splats(rows_of(rng, 1), ids=[first + number])
                len(db.lake())
    shutil.copy(hint(store_path), hint(copy))
    with mldb.open(copy, mode="r") as db:
        assert db.lake().ids().tolist() == [0, 1, 2, 3, 200, 201, 202]
        assert db.stats()["lakes"]["loaded"] == 0


@pytest.mark.usefixtures("saves_soon")
def test_a_hint_of_an_abandoned_lineage_serves_as_far_as_it_is_shared(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        for epoch in range(6):
            lake.add_splats(rows_of(rng, 2), epoch=epoch)
        lake.remove([1, 3])
        len(lake)
        kept = hint(store_path).read_bytes()
        db.rewind(3)
        lake.add_splats(rows_of(rng, 1), ids=[77])
        want = lake.ids().tolist()
    hint(store_path).write_bytes(kept)
    with mldb.open(store_path, mode="r") as db:
        assert db.lake().ids().tolist() == want == [*range(8), 77]
        assert db.stats()["lakes"]["loaded"] == 7
        check(db, db.lake().rows(), int(db.lsn))


@pytest.mark.usefixtures("saves_soon")
def test_a_hint_that_contradicts_itself_is_not_believed(
    store_path: Path, rng: np.random.Generator
) -> None:
    """Whatever number of it is another one, with checksums that fit: refused, or of no effect."""
    live, _ = grown(store_path, rng)
    with mldb.open(store_path, mode="r") as db:
        found = load_hint_bytes(db._log.fs, hint(store_path).name)
    assert found is not None
    value, payload = found
    assert isinstance(value, list)
    for place in range(len(value)):
        others: list[Any] = [None, -1, 1 << 50, [], "x"]
        for other in others:
            with mldb.open(store_path, durability="os") as db:
                changed = [*value[:place], other, *value[place + 1 :]]
                save_hint(db._log.fs, hint(store_path).name, changed, payload)
                assert db.lake().ids().tolist() == live, (place, other)
    with mldb.open(store_path, durability="os") as db:
        save_hint(db._log.fs, hint(store_path).name, value, bytes(len(payload)))
        assert db.lake().ids().tolist() == live


def test_a_read_only_handle_saves_nothing(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mldb.open(store_path, durability="os") as db:
        db.lake(dim=DIM).add_splats(rows_of(rng, 4))
    monkeypatch.setattr(states_module, "SAVE_FROM", 1)
    with mldb.open(store_path, mode="r") as db:
        len(db.lake())
    assert not list((store_path / "hints").glob("lake-*"))


# --- graphs ---------------------------------------------------------------------------------------


def test_graphs_follow_a_lake_that_branches(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mldb.lake.augment.graph_store._SAVE_SHARE", 1 << 20)
    with mldb.open(store_path, durability="os") as db:
        history = History(db, rng)
        for number in range(40):
            history.step()
            lsn = int(rng.choice(list(history.seen))) if number % 3 == 2 else int(db.lsn)
            rows = history.lake.rows_at(db._scope(mldb.Lsn(lsn)))
            if len(rows) < 2:
                continue
            graph, fresh = lake_graph(rows, rows.table()), build_graph(rows.table(), 30)
            assert graph.neighbours.tobytes() == fresh.neighbours.tobytes()
            assert graph.cosines.tobytes() == fresh.cosines.tobytes()
            if number % 7 == 6:
                db._known_lakes().derived.clear()
        assert GRAPH_NEIGHBOURS == 30


# --- ids ------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 40), max_size=6, unique=True), max_size=25), st.data())
def test_the_newest_row_of_an_id_is_found_in_every_state(
    parts: list[list[int]], data: st.DataObject
) -> None:
    index, stored = IdIndex(), []
    for part in parts:
        index.add(np.array(part, np.int64))
        stored += part
    count = data.draw(st.integers(0, len(stored)))
    asked = np.arange(-2, 44)
    want = [
        max((row for row in range(count) if stored[row] == value), default=-1)
        for value in asked.tolist()
    ]
    assert index.newest(asked, count).tolist() == want
    assert index.in_order(count).tolist() == stored[:count]
    lengths = [len(run.ids) for run in index.runs]
    assert sum(lengths) == index.count == len(stored)


def test_runs_stay_few(rng: np.random.Generator) -> None:
    random, ascending = IdIndex(), IdIndex()
    for number in range(500):
        random.add(rng.integers(0, 1 << 40, 10))
        ascending.add(np.arange(10) + 10 * number)
    assert len(random.runs) <= 12
    assert len(ascending.runs) == 1
