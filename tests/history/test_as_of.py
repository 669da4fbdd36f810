"""as_of, rewind, tags, pins, history: the timeline against a model that keeps every state."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.history.as_of import kept
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow
from mldb.log.view import View
from tests.support.parts import examples

NAMES = "abc"
LSN_NONE = mldb.Lsn(0)


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def contents(db: Any, as_of: Any = None) -> dict[str, int]:
    return {name: int(db.query_tensor(name, as_of=as_of)) for name in db.names(as_of=as_of)}


# --- a model of the timeline ----------------------------------------------------------------------


@dataclass
class Commit:
    """One commit of the model: where it came from, and everything that it shows."""

    parent: int
    epoch: int
    time: datetime
    state: dict[str, int]
    versions: dict[str, list[int]]


@dataclass
class Model:
    """Every commit that was ever made, and the names that the store has for some of them."""

    commits: dict[int, Commit] = field(default_factory=dict)
    head: int = 0
    tags: dict[str, int] = field(default_factory=dict)
    pins: set[int] = field(default_factory=set)

    @property
    def epoch(self) -> int:
        return self.commits[self.head].epoch if self.head else 0

    def state(self, lsn: int) -> dict[str, int]:
        return self.commits[lsn].state if lsn else {}

    def lineage(self, lsn: int) -> Iterator[int]:
        """From *lsn* back to the first commit."""
        while lsn:
            yield lsn
            lsn = self.commits[lsn].parent

    def by_epoch(self, epoch: int) -> int:
        return next((x for x in self.lineage(self.head) if self.commits[x].epoch <= epoch), 0)

    def by_time(self, moment: datetime) -> int:
        return next((x for x in self.lineage(self.head) if self.commits[x].time <= moment), 0)

    def commit(
        self, lsn: int, time: datetime, parent: int, epoch: int, name: str = "", value: int = 0
    ) -> None:
        """Add a commit that stores *value* under *name*; 0 deletes it, no name changes nothing."""
        state = dict(self.state(parent))
        versions = (
            {key: list(found) for key, found in self.commits[parent].versions.items()}
            if parent
            else {}
        )
        if name and value:
            state[name] = value
            versions.setdefault(name, []).append(lsn)
        elif name:
            del state[name]
        self.commits[lsn] = Commit(parent, epoch, time, state, versions)
        self.head = lsn


STEP = st.one_of(
    st.tuples(st.just("store"), st.sampled_from(NAMES), st.integers(0, 3)),
    st.tuples(st.just("store"), st.sampled_from(NAMES), st.just(0)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), st.just(0)),
    st.tuples(st.just("rewind_epoch"), st.just(""), st.integers(-1, 12)),
    st.tuples(st.just("rewind_lsn"), st.just(""), st.integers(0, 99)),
    st.tuples(st.just("tag"), st.sampled_from("xy"), st.integers(0, 99)),
    st.tuples(st.just("rewind_tag"), st.sampled_from("xy"), st.just(0)),
    st.tuples(st.just("pin"), st.just(""), st.integers(0, 99)),
    st.tuples(st.just("reopen"), st.just(""), st.just(0)),
)


class Run:
    """A store in memory whose segments are sealed after a few commits, and its model."""

    def __init__(self) -> None:
        self.fs = MemoryFileSystem()
        self.model = Model()
        self.counter = 0
        self.open()

    def open(self) -> None:
        self.db = mldb.MLDatabase.on(self.fs, durability="os", segment_entries=4)

    def any_commit(self, number: int) -> mldb.Lsn | None:
        known = sorted(self.model.commits)
        return mldb.Lsn(known[number % len(known)]) if known else None

    def step(self, verb: str, name: str, number: int) -> None:
        model, db = self.model, self.db
        match verb:
            case "store":
                self.counter += 1
                epoch = model.epoch + number
                lsn = db.store_tensor(name, self.counter, epoch=epoch if number else None)
                self.note(lsn, model.head, epoch, name, self.counter)
            case "delete" if name in model.state(model.head):
                self.note(db.delete_tensor(name), model.head, model.epoch, name)
            case "rewind_epoch":
                self.rewind(number, model.by_epoch(number))
            case "rewind_lsn" if (target := self.any_commit(number)) is not None:
                self.rewind(target, target)
            case "rewind_tag" if name in model.tags:
                self.rewind(name, model.tags[name])
            case "tag" if (target := self.any_commit(number)) is not None:
                assert db.tag(name, target) == target
                model.tags[name] = target
                self.note(db.lsn, model.head, model.epoch)
            case "pin" if (target := self.any_commit(number)) is not None:
                if target in model.pins:
                    db.unpin(target)
                else:
                    assert db.pin(target) == target
                model.pins ^= {target}
                self.note(db.lsn, model.head, model.epoch)
            case "reopen":
                db.close()
                self.open()

    def rewind(self, as_of: Any, target: int) -> None:
        lsn = self.db.rewind(as_of)
        self.note(lsn, target, self.model.commits[target].epoch if target else 0)

    def note(self, lsn: int, parent: int, epoch: int, name: str = "", value: int = 0) -> None:
        self.model.commit(int(lsn), self.db.at().time, parent, epoch, name, value)

    def check(self) -> None:
        model, db = self.model, self.db
        assert (db.lsn, db.epoch) == (model.head, model.epoch)
        assert contents(db) == model.state(model.head)
        highest = max((commit.epoch for commit in model.commits.values()), default=0)
        for epoch in range(-2, highest + 2):
            assert contents(db, epoch) == model.state(model.by_epoch(epoch)), epoch
            assert contents(db, np.int32(epoch)) == model.state(model.by_epoch(epoch))
        for lsn, commit in model.commits.items():
            assert contents(db, mldb.Lsn(lsn)) == commit.state, lsn
            with db.at(lsn=lsn) as snapshot:
                assert (snapshot.lsn, snapshot.epoch) == (lsn, commit.epoch)
                assert contents(snapshot) == commit.state
                for name in NAMES:
                    found = [version.lsn for version in snapshot.history(name)]
                    assert found == commit.versions.get(name, [])
            assert contents(db, commit.time) == model.state(model.by_time(commit.time)), lsn
        assert db.tags() == model.tags
        for tag, lsn in model.tags.items():
            assert contents(db, tag) == model.state(lsn)
        assert db.pins() == sorted(model.pins)


@given(steps=st.lists(STEP, max_size=20))
@examples(60)
def test_every_moment_of_every_lineage_reads_as_the_model_says(
    steps: list[tuple[str, str, int]],
) -> None:
    run = Run()
    for verb, name, number in steps:
        run.step(verb, name, number)
    run.check()
    run.step("reopen", "", 0)
    run.check()
    assert run.db.verify().ok
    run.db.close()


# --- the forms of as_of ---------------------------------------------------------------------------


def test_each_form_of_as_of(db: mldb.MLDatabase) -> None:
    lsns = [db.store_tensor("x", epoch, epoch=epoch * 10) for epoch in range(1, 4)]
    db.checkpoint({"w": np.zeros(2)}, epoch=30, name="best")
    db.tag("release", lsns[0])
    moments = [db.at(lsn=lsn).time for lsn in lsns]
    points: list[tuple[Any, int]] = [
        (10, 1),
        (19, 1),
        (np.uint8(20), 2),
        (np.int64(29), 2),
        (1 << 70, 3),
        (lsns[1], 2),
        (moments[1], 2),
        (moments[1].astimezone(timezone(timedelta(hours=-7))), 2),
        (moments[1] - timedelta(microseconds=1), 1),
        (datetime.max.replace(tzinfo=UTC), 3),
        ("release", 1),
        ("best", 3),
        (None, 3),
    ]
    for as_of, value in points:
        assert int(db.query_tensor("x", as_of=as_of)) == value, as_of
        assert int(db.tensor("x", as_of=as_of).numpy()) == value
        assert int(db.at(as_of)["x"]) == value
        assert db.names(as_of=as_of)[0] in ("w", "x")
    assert int(db.at(epoch=10)["x"]) == 1
    assert int(db.at(epoch=np.int16(10))["x"]) == 1  # type: ignore[call-overload]
    assert int(db.at(lsn=int(lsns[1]))["x"]) == 2
    assert int(db.at(time=moments[0])["x"]) == 1
    assert int(db.at(tag="release")["x"]) == 1


def test_before_the_first_commit_is_the_empty_state(db: mldb.MLDatabase) -> None:
    empties: list[Any] = [None, 0, 5, -1, LSN_NONE, datetime.now(UTC)]
    for as_of in empties:
        with db.at(as_of) as snapshot:
            assert (snapshot.lsn, snapshot.epoch, len(snapshot)) == (0, 0, 0)
            assert (snapshot.checkpoints(), snapshot.relationships()) == ([], [])
    db.store_tensor("x", 1, epoch=5)
    before: list[Any] = [4, -(1 << 70), LSN_NONE, datetime.min.replace(tzinfo=UTC)]
    for as_of in before:
        assert contents(db, as_of) == {}
        with pytest.raises(mldb.TensorNotFoundError, match="commit 0"):
            db.query_tensor("x", as_of=as_of)
    db.rewind(0)
    assert (db.epoch, len(db), db.history("x")) == (0, 0, [])


WRONG: list[tuple[Any, type[mldb.MldbError], str]] = [
    (True, mldb.InvalidTypeError, "bool"),
    (1.0, mldb.InvalidTypeError, "float"),
    (np.float64(1), mldb.InvalidTypeError, "float64"),
    (b"tag", mldb.InvalidTypeError, "bytes"),
    ([1], mldb.InvalidTypeError, "list"),
    (datetime(2026, 1, 1), mldb.InvalidValueError, "zone"),  # noqa: DTZ001 - naive on purpose
    ("nothing", mldb.MissingError, "'nothing'"),
    ("", mldb.MissingError, "''"),
    ("\ud800", mldb.MissingError, "ud800"),
    (mldb.Lsn(99_999), mldb.MissingError, "99999"),
    (mldb.Lsn(-3), mldb.MissingError, "-3"),
    (mldb.Lsn(1), mldb.MissingError, "no commit has LSN 1"),  # a record, not a commit
]


@pytest.mark.parametrize("as_of, error, words", WRONG)
def test_what_is_no_as_of_is_refused_everywhere(
    db: mldb.MLDatabase, as_of: Any, error: type[mldb.MldbError], words: str
) -> None:
    lsn = db.store_tensor("x", 1)
    calls: list[Any] = [
        lambda: db.query_tensor("x", as_of=as_of),
        lambda: db.tensor("x", as_of=as_of),
        lambda: db.at(as_of),
        lambda: db.rewind(as_of),
        lambda: db.tag("t", as_of),
        lambda: db.pin(as_of),
        lambda: db.events(as_of),
        lambda: db.checkpoints(as_of=as_of),
        lambda: db.relationships(as_of=as_of),
        lambda: db.state_dict(as_of=as_of),
        lambda: db.load(None, as_of=as_of),
    ]
    for call in calls:
        with pytest.raises(error, match=words):
            call()
    assert (db.lsn, db.tags()) == (lsn, {})


def test_at_takes_exactly_one_point_of_the_right_type(db: mldb.MLDatabase) -> None:
    lsn = db.store_tensor("x", 1)
    with pytest.raises(mldb.InvalidValueError, match="one of"):
        db.at(1, epoch=1)  # type: ignore[call-overload]
    wrong: list[dict[str, Any]] = [
        {"epoch": lsn},
        {"epoch": "1"},
        {"epoch": True},
        {"lsn": "x"},
        {"lsn": 1.5},
        {"lsn": True},
        {"time": 5},
        {"time": "now"},
        {"tag": 5},
    ]
    for options in wrong:
        with pytest.raises(mldb.InvalidTypeError, match=next(iter(options))):
            db.at(**options)
    assert int(db.at(lsn=int(lsn))["x"]) == 1


def test_times_follow_the_parents_when_the_clock_goes_back() -> None:
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, durability="os") as db:
        base = fs.clock_ns
        lsns = []
        for number, jump in enumerate([0, 10, -500, 0, 3, -10_000, 10_000_000]):
            fs.clock_ns = base + jump * 1_000_000
            fs.tick_ns = 0
            lsns.append(db.store_tensor("x", number))
        times = [version.time for version in db.history("x")]
        assert times == sorted(times)
        assert times[2] == times[3] == times[4] == times[5] == times[1]
        for number, moment in enumerate(times):
            newest = max(index for index, time in enumerate(times) if time <= moment)
            assert int(db.query_tensor("x", as_of=moment)) == newest, number
        db.rewind(lsns[0])
        assert db.at().time >= times[0]


# --- rewinding ------------------------------------------------------------------------------------


def test_rewind_leaves_what_is_abandoned_readable_by_lsn(db: mldb.MLDatabase) -> None:
    first = db.store_tensor("x", 1, epoch=1)
    second = db.store_tensor("x", 2, epoch=2)
    db.tag("old", second)
    db.pin(second)
    view = db.tensor("x")
    rewound = db.rewind(1)
    assert isinstance(rewound, mldb.Lsn)
    assert (db.lsn, db.epoch, int(db["x"])) == (rewound, 1, 1)
    third = db.store_tensor("x", 3, epoch=2)
    assert [int(db.query_tensor("x", as_of=as_of)) for as_of in (1, 2, 99)] == [1, 3, 3]
    assert [int(db.query_tensor("x", as_of=as_of)) for as_of in (first, second, third)] == [1, 2, 3]
    assert int(db.query_tensor("x", as_of="old")) == 2  # tags and pins are not rewound
    assert (db.tags(), db.pins()) == ({"old": second}, [second])
    assert [version.lsn for version in db.history("x")] == [first, third]
    assert [version.lsn for version in db.at(second).history("x")] == [first, second]
    assert int(view.numpy()) == 2
    # On to the abandoned lineage, and back again: nothing is ever lost.
    db.rewind(second)
    assert (int(db["x"]), db.epoch) == (2, 2)
    assert [version.lsn for version in db.history("x")] == [first, second]
    db.rewind(third)
    assert (int(db["x"]), [version.lsn for version in db.history("x")]) == (3, [first, third])
    db.rewind(rewound)
    assert (int(db["x"]), db.epoch) == (1, 1)
    db.rewind(None)
    assert (int(db["x"]), db.epoch) == (1, 1)


def test_rewind_takes_back_everything_but_tags_and_pins(db: mldb.MLDatabase) -> None:
    db.store_tensor("x", 1, {"k": 1}, epoch=1)
    db.create_relationship("a", "b", "k")
    db.checkpoint({"w": np.zeros(1)}, epoch=1, name="first")
    back = db.lsn
    db.set_metadata("x", {"k": 2})
    db.delete_relationship("a", "b", "k")
    db.create_relationship("b", "c", "k")
    db.checkpoint({"w": np.ones(1)}, epoch=2, name="second")
    late = db.lsn
    db.tag("t")
    db.rewind("first")
    assert db.metadata("x") == {"k": 1}
    assert [(r.source, r.target) for r in db.relationships()] == [("a", "b")]
    assert [c.name for c in db.checkpoints()] == ["first"]
    assert db.load(None)["w"].tolist() == [0]
    assert db.tags() == {"t": late}
    with pytest.raises(mldb.MissingError, match="second"):
        db.at("second")  # of this lineage no more
    assert db.load(None, as_of=late)["w"].tolist() == [1]
    assert db.at(back).metadata("x") == {"k": 1}


# --- tags and pins --------------------------------------------------------------------------------


def test_tags_move_end_and_stand_before_checkpoints(db: mldb.MLDatabase) -> None:
    with pytest.raises(mldb.MissingError, match="store something first"):
        db.tag("t")
    with pytest.raises(mldb.MissingError):
        db.pin(0)
    first = db.store_tensor("x", 1, epoch=1)
    second = db.store_tensor("x", 2, epoch=2)
    assert db.tag("t", first) == first
    snapshot = db.at()
    assert db.tag("t") != first
    assert int(db.query_tensor("x", as_of="t")) == 2
    assert db.tag("t", 1) == first
    assert db.tag("u", "t") == first
    assert snapshot.tags() == {"t": first}  # those of its beginning
    db.checkpoint({"w": np.zeros(1)}, epoch=3, name="t")
    assert int(db.query_tensor("x", as_of="t")) == 1
    db.untag("t")
    assert "w" in db.names(as_of="t")
    with pytest.raises(mldb.MissingError, match="'t'"):
        db.untag("t")
    assert db.tags() == {"u": first}
    for name in ("..", "", 5):
        with pytest.raises((mldb.InvalidNameError, mldb.InvalidTypeError)):
            db.tag(name)  # type: ignore[arg-type]
    assert db.pin(second) == db.pin(second) == second
    assert db.pins() == [second]
    db.unpin(second)
    with pytest.raises(mldb.MissingError, match=str(second)):
        db.unpin(second)
    assert db.pins() == []


# --- pruned commits -------------------------------------------------------------------------------


def pruned(*ranges: tuple[int, int]) -> View:
    """As much of a view as retention concerns: the ranges of commits that it left."""
    return cast(View, SimpleNamespace(kept=ranges))


def commit(lsn: int) -> CommitRow:
    return EMPTY_COMMIT._replace(lsn=lsn, epoch=3)


def test_a_pruned_commit_names_its_nearest_kept_neighbours() -> None:
    view = pruned((10, 10), (20, 25), (30, 30))
    for lsn in (10, 20, 23, 25, 30, 31, 50):
        row = commit(lsn)
        assert kept(view, row) is row
    assert kept(view, EMPTY_COMMIT) is EMPTY_COMMIT
    for lsn, below, above in ((5, None, 10), (15, 10, 20), (26, 25, 30), (29, 25, 30)):
        with pytest.raises(mldb.VersionGoneError, match="pruned by retention") as caught:
            kept(view, commit(lsn))
        assert (caught.value.below, caught.value.above) == (below, above)
        assert str(above) in str(caught.value)


def test_a_moment_that_leaves_out_later_commits_for_a_wrong_clock_is_told() -> None:
    """One commit of a machine whose clock was years ahead: as_of=now missed all that followed."""
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, durability="os") as db:
        base, day = fs.clock_ns, 86_400 * 10**9
        db.store_tensor("x", 0)
        fs.clock_ns = base + 5 * 365 * day
        odd = db.store_tensor("x", 1)
        for number in range(2, 20):
            fs.clock_ns = base + number * day
            last = db.store_tensor("x", number)
        now = datetime.fromtimestamp((base + 20 * day) / 1e9, UTC)
        fs.clock_ns = base + 20 * day
        assert 1e8 < db.stats()["head_ahead_seconds"] < 2e8
        leaves_out = pytest.warns(UserWarning, match=rf"leaves out commit {odd} and those after it")
        with leaves_out as told:
            assert int(db.query_tensor("x", as_of=now)) == 0  # time never goes back: FORMAT.md
        assert "as_of=None" in str(told[0].message)
        assert "mldb.Lsn" in str(told[0].message)
        with leaves_out:
            assert int(db.at(time=now)["x"]) == 0
        with leaves_out:  # a moment between those that followed
            db.query_tensor("x", as_of=datetime.fromtimestamp((base + 5 * day) / 1e9, UTC))
        assert int(db.query_tensor("x", as_of=last)) == 19
        assert int(db.query_tensor("x", as_of=db.tensor("x").time)) == 19
        with pytest.raises(mldb.MissingError):  # before all of them: nothing is left out
            db.query_tensor("x", as_of=datetime(2001, 1, 1, tzinfo=UTC))
        fs.clock_ns = base + 6 * 365 * day
        db.store_tensor("x", 20)
        assert db.stats()["head_ahead_seconds"] == 0


def test_clocks_that_differ_by_seconds_are_no_reason_to_warn() -> None:
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, durability="os") as db:
        base = fs.clock_ns
        for number, seconds in enumerate([0, 30, 1, 2, 3]):
            fs.clock_ns = base + seconds * 10**9
            db.store_tensor("x", number)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            moment = datetime.fromtimestamp((base + 4 * 10**9) / 1e9, UTC)
            assert int(db.query_tensor("x", as_of=moment)) == 0
