"""Consolidating a lake: what is stored, what is read of it now and before, and who made it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb import ConsolidationPolicy, ConsolidationReport, Importance
from mldb.compaction.soc.merging import merge_laws
from mldb.errors import (
    ConflictError,
    InvalidTypeError,
    InvalidValueError,
    MissingError,
    ReadOnlyError,
    UsageError,
)
from mldb.history.events import SplatsConsolidated
from mldb.lake.consolidation import store
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.splats import planted

DIM = 16
FIELDS = ("mu", "norm", "kappa", "alpha", "min_cos", "id", "label", "weight_of", "flag")


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def fill(
    db: Any, rng: np.random.Generator, originals: int = 30, parts: int = 3, noise: float = 0.05
) -> Any:
    """A lake of near-copies, in several additions, with labels and columns."""
    mu, of = planted(rng, originals, DIM, noise)
    mu, of = mu[:400], of[:400]
    lake = db.lake(dim=DIM)
    for rows in np.array_split(np.arange(len(mu)), parts):
        lake.add_splats(
            mu[rows] * rng.uniform(0.5, 2, (len(rows), 1)),
            alpha=rng.integers(1, 5, len(rows)),
            labels=of[rows] % 3,
            columns={"weight_of": rng.random(len(rows)), "flag": of[rows] % 2 == 0},
        )
    return lake


def columns_of(lake: Any) -> dict[str, bytes]:
    return {name: np.asarray(column).tobytes() for name, column in lake.get(fields=FIELDS).items()}


def by_id(lake: Any) -> dict[int, dict[str, Any]]:
    got = lake.get(fields=FIELDS)
    return {int(i): {n: got[n][at] for n in FIELDS} for at, i in enumerate(got["id"])}


def test_a_run_merges_copies_and_says_what_it_did(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    before, mass = by_id(lake), float(lake.get(fields=("alpha",))["alpha"].sum())
    report = lake.consolidate()
    assert isinstance(report, ConsolidationReport)
    assert report.lsn == db.lsn
    assert report.rows_before == len(before)
    assert report.rows_after == len(lake) < 0.5 * len(before)
    assert report.kept == len(lake) / len(before)
    assert report.mass == mass == lake.get(fields=("alpha",))["alpha"].sum()
    assert report.min_cos_true >= report.min_cos_certified >= 0.97
    assert 0 < report.displacement <= np.sqrt(2 * (1 - 0.97))
    assert report.energy_bound(100) == pytest.approx(100 * report.displacement)
    after = by_id(lake)
    made = {i: row for i, row in after.items() if i not in before}
    assert len(made) == report.merged
    for i in after.keys() & before.keys():
        assert all(np.array_equal(after[i][n], before[i][n]) for n in FIELDS)
        assert lake.sources(i).tolist() == []
    seen: list[int] = []
    for i, row in made.items():
        sources = lake.sources(i).tolist()
        seen += sources
        rows = [before[source] for source in sources]
        law = merge_laws(*(np.array([row[n] for row in rows]) for n in ("mu", "kappa", "alpha")))
        assert row["mu"] == pytest.approx(law.mu, abs=1e-6)
        assert row["kappa"] == pytest.approx(law.kappa, rel=1e-4)
        assert row["alpha"] == law.alpha
        masses = [source["alpha"] for source in rows]
        norms = np.average([source["norm"] for source in rows], weights=masses)
        assert row["norm"] == pytest.approx(norms, rel=1e-5)
        assert {source["label"] for source in rows} == {row["label"]}
        heaviest = rows[int(np.argmax(masses))]
        assert (row["weight_of"], row["flag"]) == (heaviest["weight_of"], heaviest["flag"])
        cosines = np.array([source["mu"] for source in rows]).astype(np.float64) @ row["mu"]
        assert cosines.min() >= row["min_cos"] - 1e-6
    assert sorted(seen) == sorted(before.keys() - after.keys())
    assert len(seen) == report.sources
    assert 0 < report.density_bound < sum(before[i]["alpha"] for i in seen) / mass
    assert db.verify().ok


def test_the_commit_before_has_the_rows_bit_for_bit(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    before, lsn = columns_of(lake), db.lsn
    with lake.at() as held:
        report = lake.consolidate()
        assert columns_of(held) == before
    with lake.at(lsn) as old, lake.at(report.lsn) as new:
        assert columns_of(old) == before
        assert columns_of(new) == columns_of(lake) != before


def test_nothing_to_merge_stores_nothing(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    lake = db.lake(dim=DIM)
    lake.add_splats(rng.standard_normal((20, DIM)))
    lsn = db.lsn
    report = lake.consolidate()
    assert (report.lsn, report.kept, report.merged) == (None, 1.0, 0)
    assert (report.min_cos_certified, report.displacement) == (1.0, 0.0)
    assert db.lsn == lsn
    with pytest.raises(InvalidValueError, match="stored nothing"):
        lake.undo(report)


def test_a_plan_stores_nothing_and_is_what_the_run_does(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    lsn, before = db.lsn, columns_of(lake)
    plan = lake.consolidate(plan_only=True)
    assert (plan.lsn, db.lsn, columns_of(lake)) == (None, lsn, before)
    report = lake.consolidate()
    assert report.rows_after == plan.rows_after
    assert report.min_cos_certified == plan.min_cos_certified
    with mldb.open(db.path, mode="r") as reader:
        assert reader.lake().consolidate(plan_only=True).kept == 1
        with pytest.raises(ReadOnlyError):
            reader.lake().consolidate()


def test_splats_are_merged_further_and_their_members_stay_certified(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng, noise=0.2)
    first = lake.get(fields=("id", "mu"))
    rows = dict(zip(first["id"].tolist(), first["mu"].astype(np.float64), strict=True))
    lake.consolidate(min_cos=0.995)
    report = lake.consolidate(min_cos=0.95)
    assert report.merged > 0
    deep = 0
    got = lake.get(fields=("id", "mu", "min_cos", "alpha"))
    for i, mu, min_cos in zip(got["id"].tolist(), got["mu"], got["min_cos"], strict=True):
        members = lake.sources(i, deep=True).tolist()
        deep += members != lake.sources(i).tolist()
        assert all(rows[member] @ mu >= min_cos - 1e-6 for member in members)
    assert deep > 0
    assert report.min_cos_certified >= 0.95


def test_a_run_is_an_event(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    lake = fill(db, rng)
    next_id = int(lake.ids().max()) + 1
    report = lake.consolidate(min_cos=0.98, seed=7, epoch=3)
    event = list(db.events())[-1]
    assert isinstance(event, SplatsConsolidated)
    assert (event.lsn, event.epoch, event.lake) == (report.lsn, 3, "default")
    assert (event.rows, event.sources, event.base) == (report.merged, report.sources, next_id)
    assert event.alpha_sum == sum(row["alpha"] for i, row in by_id(lake).items() if i >= event.base)
    assert event.run["method"] == "sweep"
    assert (event.run["min_cos"], event.run["seed"]) == (0.98, 7)


def test_the_same_state_and_seed_give_the_same_rows(rng: np.random.Generator) -> None:
    mu, _ = planted(rng, 40, DIM, 0.3)
    found = []
    for _ in range(2):
        with mldb.MLDatabase.on(MemoryFileSystem()) as db:
            lake = db.lake(dim=DIM)
            lake.add_splats(mu)
            lake.consolidate(min_cos=0.9, seed=11)
            found.append(lake.get(fields=("mu", "kappa", "min_cos", "id"))["mu"].tobytes())
    assert found[0] == found[1]


def test_streams_begun_before_go_on_and_new_ones_see_mass(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    pytest.importorskip("torch")
    lake = fill(db, rng)
    options: dict[str, Any] = {"seed": 3, "device": "numpy", "fields": ("mu", "id")}
    whole = [batch.mu.numpy().tobytes() for batch in lake.export_to_dataloader(16, **options)]
    loader = lake.export_to_dataloader(16, **options)
    running = iter(loader)
    begun = [next(running).mu.numpy().tobytes()]
    lake.consolidate()
    begun += [batch.mu.numpy().tobytes() for batch in running]
    assert begun == whole
    assert [batch.mu.numpy().tobytes() for batch in loader] != []  # the next pass, same commit
    new = lake.export_to_dataloader(16, **options)
    ids = np.concatenate([batch.id.numpy() for batch in new])
    assert sorted(ids.tolist()) == sorted(lake.ids().tolist())
    drawn = lake.export_to_dataloader(
        64, importance_sampling=Importance(beta=1.0, floor=0.0), draws=40_000, **options
    )
    counts = np.bincount(
        np.concatenate([batch.id.numpy() for batch in drawn]), minlength=int(lake.ids().max()) + 1
    )
    got = lake.get(fields=("id", "alpha"))
    share = got["alpha"] / got["alpha"].sum()
    assert np.abs(counts[got["id"].astype(int)] / counts.sum() - share).max() < 0.02


def test_a_share_of_rows_warns_where_it_goes_past_the_cap(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    with pytest.warns(mldb.PastCapWarning, match="min_cos"):
        report = lake.consolidate(target_keep=0.05, plan_only=True)
    assert report.rows_after == max(round(0.05 * report.rows_before), 1)
    assert report.level < 0.97
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lake.consolidate(target_keep=0.95, plan_only=True)


# --- beside other commits -------------------------------------------------------------------------


def between(monkeypatch: pytest.MonkeyPatch, act: Any, times: int = 1) -> None:
    """Have *act* done between the plan and the commit of the next runs."""
    left = [times]
    plain = store.store_merges

    def meddled(*args: Any) -> Any:
        if left[0]:
            left[0] -= 1
            act()
        return plain(*args)

    monkeypatch.setattr("mldb.lake.consolidation.run.store_merges", meddled)


def test_rows_added_meanwhile_stay(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = fill(db, rng)
    late: list[int] = []
    between(
        monkeypatch,
        lambda: late.extend(lake.add_splats(lake.get()["mu"][:5], labels=np.zeros(5, int),
            columns={"weight_of": np.ones(5), "flag": np.ones(5, bool)}).tolist()),
    )  # fmt: skip
    report = lake.consolidate(retries=0)
    assert set(late) <= set(lake.ids().tolist())
    assert len(lake) == report.rows_after + 5
    made = set(lake.ids().tolist()) - set(late)
    assert len(set(late) & made) == 0
    assert all(lake.sources(i).tolist() == [] for i in late)


def test_a_source_that_is_removed_meanwhile_has_the_run_planned_anew(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = fill(db, rng)
    lost = [int(i) for made in [lake.consolidate()] for i in lake.sources(int(lake.ids().max()))]
    lake.undo(mldb.Lsn(int(db.lsn)))
    between(monkeypatch, lambda: lake.remove(lost[0]), times=3)
    with pytest.raises(ConflictError, match="1 of the"):
        lake.consolidate(retries=0)
    ids = set(lake.ids().tolist())
    assert lost[0] not in ids
    assert lost[1] in ids
    monkeypatch.undo()
    between(monkeypatch, lambda: lake.remove(lost[1]))
    report = lake.consolidate()
    assert report.lsn == db.lsn
    assert lost[1] not in {i for made in lake.ids() for i in lake.sources(int(made)).tolist()}


def test_a_rewind_meanwhile_is_a_conflict(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = fill(db, rng)
    start = db.lsn
    lake.add_splats(lake.get()["mu"][:4], labels=np.zeros(4, int),
                    columns={"weight_of": np.ones(4), "flag": np.ones(4, bool)})  # fmt: skip
    between(monkeypatch, lambda: db.rewind(start))
    with pytest.raises(ConflictError, match="rewound"):
        lake.consolidate(retries=0)
    assert lake.consolidate().merged > 0


def test_large_merges_are_written_before_the_lock(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_IN_MEMORY", 1000)
    lake = fill(db, rng)
    before = columns_of(lake)
    report = lake.consolidate()
    after = columns_of(lake)
    path = db.path
    db.close()
    with mldb.open(path) as again:
        assert columns_of(again.lake()) == after
        assert again.verify().ok
        again.lake().undo(report)
        assert columns_of(again.lake()) == before


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"min_cos": 1.0}, InvalidValueError, "min_cos"),
        ({"method": "magic"}, InvalidValueError, "method"),
        ({"target_keep": 0}, InvalidValueError, "target_keep"),
        ({"target_keep": "half"}, InvalidTypeError, "target_keep"),
        ({"target_keep": 0.5, "method": "sandpile"}, InvalidValueError, "target_keep"),
        ({"k": 0}, InvalidValueError, "neighbours"),
        ({"p": 0}, InvalidValueError, "never end"),
        ({"budget": 0}, InvalidValueError, "budget"),
        ({"seed": -1}, InvalidValueError, "seed"),
        ({"retries": 1.5}, InvalidTypeError, "retries"),
    ],
)
def test_wrong_settings(
    options: dict[str, Any], error: type[Exception], match: str, db: mldb.MLDatabase,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    lake = fill(db, rng, 3)
    before = db.lsn
    with pytest.raises(error, match=match):
        lake.consolidate(**options)
    assert db.lsn == before


def test_lakes_that_cannot_be_consolidated(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    with pytest.raises(MissingError):
        db.lake("none").consolidate()
    flat = db.lake("flat", dim=4, geometry="euclid")
    flat.add_splats(rng.standard_normal((5, 4)))
    with pytest.raises(UsageError, match="sphere"):
        flat.consolidate()
    lake = fill(db, rng, 3)
    lake.remove(lake.ids())
    assert lake.consolidate().kept == 1
    with pytest.raises(MissingError, match="never had"):
        lake.sources(10**6)


def test_rows_without_labels_merge_among_themselves(db: mldb.MLDatabase) -> None:
    row = np.ones((4, DIM))
    lake = db.lake(dim=DIM)
    lake.add_splats(row)
    lake.add_splats(row[:2], labels=[7, 7])
    lake.consolidate()
    assert sorted(lake.get(fields=("label",))["label"].tolist()) == [-1, 7]
    bare = db.lake("bare", dim=DIM)
    bare.add_splats(row)
    bare.consolidate()
    assert len(bare) == 1
    assert "label" not in bare.rows().columns


# --- policies -------------------------------------------------------------------------------------


def test_a_policy_is_stored_with_the_lake(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    lake = fill(db, rng)
    assert lake.policy is None
    assert lake.run_policy() is None
    start = db.lsn
    policy = ConsolidationPolicy(method="sweep", min_cos=0.98, after_rows=10)
    lake.policy = policy
    assert db.lake().policy == policy
    event = list(db.events())[-1]
    assert (event.lake, event.policy) == ("default", policy.plain())  # type: ignore[attr-defined]
    with mldb.open(db.path, mode="r") as reader:
        assert reader.lake().policy == policy
    report = lake.run_policy()
    assert report is not None
    assert (report.method, report.min_cos) == ("sweep", 0.98)
    assert lake.run_policy() is None
    lake.policy = None
    assert lake.policy is None
    before = db.lsn
    lake.policy = None
    assert db.lsn == before
    lake.policy = policy
    db.rewind(start)
    assert lake.policy is None


def test_a_policy_goes_on_where_its_run_was_cut_off(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    lake.policy = ConsolidationPolicy(budget=100, after_rows=50)
    report, runs = lake.run_policy(), 0
    while report is not None:
        last, runs = report, runs + 1
        report = lake.run_policy()
    assert runs > 1
    assert last.is_relaxed
    copies(lake, rng, 49)
    assert lake.run_policy() is None
    copies(lake, rng, 1)
    assert lake.run_policy() is not None


def test_wrong_policies(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    with pytest.raises(MissingError):
        db.lake("none").policy = ConsolidationPolicy()
    lake = fill(db, rng, 3)
    with pytest.raises(InvalidTypeError, match="policy is a dict"):
        lake.policy = {"method": "sweep"}
    with pytest.raises(InvalidValueError, match="after_rows"):
        ConsolidationPolicy(after_rows=0)


# --- the sandpile ---------------------------------------------------------------------------------


def copies(lake: Any, rng: np.random.Generator, count: int) -> Any:
    """Add near-copies of rows of the lake."""
    got = lake.get(fields=("mu", "label"))
    of = rng.integers(0, len(got["mu"]), count)
    mu = got["mu"][of] + 0.01 * rng.standard_normal((count, DIM)) / np.sqrt(DIM)
    columns = {"weight_of": np.ones(count), "flag": np.ones(count, bool)}
    return lake.add_splats(mu, labels=got["label"][of], columns=columns)


def test_arrivals_drive_the_sandpile_run_after_run(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    lake.consolidate()
    mass = lake.get(fields=("alpha",))["alpha"].sum()
    first = lake.consolidate(method="sandpile")
    assert first.arrivals == first.rows_after + first.sources - first.merged - _made(lake, db)
    merged = 0
    for _ in range(4):
        added = copies(lake, rng, 60)
        mass += len(added)
        report = lake.consolidate(method="sandpile")
        assert report.arrivals == 60
        assert report.avalanches is not None
        assert report.avalanches.count == 60
        assert report.is_relaxed
        merged += report.sources - report.merged
        assert lake.get(fields=("alpha",))["alpha"].sum() == mass == report.mass
    assert merged >= 60
    quiet = lake.consolidate(method="sandpile")
    assert (quiet.lsn, quiet.arrivals, quiet.topplings) == (None, 0, 0)


def _made(lake: Any, db: mldb.MLDatabase) -> int:
    """Rows at the second merge that an earlier one made: none of them arrived."""
    events = [event for event in db.events() if isinstance(event, SplatsConsolidated)]
    return events[0].rows


@pytest.mark.parametrize("reopened", [False, True])
def test_stress_is_state(reopened: bool, rng: np.random.Generator, store_path: Path) -> None:
    """Two lakes that took the same arrivals, one read back between the runs, stay the same."""
    found = []
    for part in range(2):
        path = store_path / str(part)
        draws = np.random.default_rng(3)
        with mldb.open(path, durability="os") as db:
            fill(db, draws).consolidate(method="sandpile", budget=40)
        for _ in range(3):
            with mldb.open(path, durability="os") as db:
                lake = db.lake()
                if reopened and part:
                    for hint in (Path(db.path) / "hints").iterdir():
                        hint.unlink()
                copies(lake, draws, 30)
                lake.consolidate(method="sandpile", budget=40)
        with mldb.open(path, mode="r") as db:
            found.append(db.lake().get(fields=("mu", "id"))["mu"].tobytes())
    assert found[0] == found[1]


def test_a_run_that_is_cut_off_goes_on_without_arrivals(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = fill(db, rng)
    report = lake.consolidate(method="sandpile", budget=10)
    assert (report.topplings, report.is_relaxed) == (10, False)
    runs = 0
    while not report.is_relaxed:
        report = lake.consolidate(method="sandpile", budget=100)
        assert report.lsn is not None
        runs += 1
    assert runs > 1


def test_stress_told_whole_reads_no_further(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many runs cost what changed since stress was told whole, and know all of it."""
    from mldb.lake.consolidation import told

    lake = fill(db, rng)
    for _ in range(12):
        copies(lake, rng, 40)
        lake.consolidate(method="sandpile")
    read: list[int] = []
    plain = told.ToldMerge.__init__

    def counted(self: Any, rows: Any, commit: int, head: int) -> None:
        read.append(commit)
        plain(self, rows, commit, head)

    monkeypatch.setattr(told.ToldMerge, "__init__", counted)
    stress = told.told_stress(lake.rows())
    assert 1 <= len(read) < 12
    assert len(stress.ids) == len(set(stress.ids.tolist()))
    assert (stress.grains >= 0).all()


def test_m2m_consolidates(store_path: Path) -> None:
    config = mldb.M2MConfig(device="cpu", storage_path=str(store_path), latent_dim=DIM)
    with mldb.create_m2m(config) as m2m:
        m2m.add_splats(np.ones((5, DIM)))
        assert m2m.consolidate(min_cos=0.99).rows_after == len(m2m) == 1
