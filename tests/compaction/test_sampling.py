"""What encoding would save, told from a sample, against what passes give back."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import mldb
from mldb.compaction import planning, sampling
from mldb.compaction.plan import Group, choose_groups
from mldb.compaction.sampling import sample_cold
from mldb.log.fs.memory import MemoryFileSystem
from mldb.write import reclaimable
from tests.support.background import QUIET, fill

DAY = 86_400 * 10**9
EPOCHS = 40


def slow(db: mldb.MLDatabase, rng: np.random.Generator, epochs: int = EPOCHS) -> None:
    """Store a value that changes slowly, and one that no codec makes smaller."""
    value = rng.standard_normal(50_000).astype(np.float32)
    for epoch in range(epochs):
        db.store_tensor("slow", value, epoch=epoch)
        db.store_tensor("noise", rng.bytes(100_000), epoch=epoch)
        value = value * np.float32(1 + 1e-6)


def reclaimed(db: mldb.MLDatabase) -> tuple[Any, dict[str, Any]]:
    found = db.stats()
    return found["reclaimable"], found["reclaimable_parts"]


@pytest.fixture
def fs() -> MemoryFileSystem:
    return MemoryFileSystem()


def on(fs: MemoryFileSystem, **options: Any) -> mldb.MLDatabase:
    return mldb.MLDatabase.on(fs, **{**QUIET, **options})


def test_stats_tell_what_encoding_would_give_back(
    fs: MemoryFileSystem, rng: np.random.Generator
) -> None:
    """It was 0 however much was cold: only what a retention lets go was counted."""
    with on(fs) as db:
        slow(db, rng)
        assert reclaimed(db)[0] == 0  # all of it is young
    fs.clock_ns += 8 * DAY
    with on(fs) as db:
        told, parts = reclaimed(db)
        assert parts["dropped"] == 0
        assert parts["encoded"] == told
        assert 0 < parts["cold_marks"] <= parts["marks"] == sampling.MARKS
        report = db.compact()
        assert report.recoded > 0
        assert told == pytest.approx(report.bytes_returned, rel=0.35)
        assert reclaimed(db)[0] < 0.05 * report.bytes_returned


def test_both_parts_are_told_and_none_counts_twice(
    fs: MemoryFileSystem, rng: np.random.Generator
) -> None:
    with on(fs) as db:
        slow(db, rng)
    fs.clock_ns += 8 * DAY
    with on(fs) as db:
        whole = reclaimed(db)[0]
        db.retention.set(last=EPOCHS // 2)
        told, parts = reclaimed(db)
        assert told == parts["dropped"] + parts["encoded"]
        assert parts["dropped"] > db.stats()["bytes"] // 4
        assert 0 < parts["encoded"] < 0.75 * whole
        report = db.compact()
        assert told == pytest.approx(report.bytes_returned, rel=0.35)


def test_what_is_hot_is_not_counted(fs: MemoryFileSystem, rng: np.random.Generator) -> None:
    with on(fs) as db:
        slow(db, rng, 12)
        for epoch in range(12):
            db.pin(epoch)
    fs.clock_ns += 8 * DAY
    with on(fs) as db:
        assert reclaimed(db)[1]["cold_marks"] == 0
        for pin in db.pins():
            db.unpin(pin)
    with on(fs) as db:
        assert reclaimed(db)[1]["cold_marks"] > 0
        for epoch in range(12):
            db.query_tensor("slow", as_of=epoch)
            db.query_tensor("noise", as_of=epoch)
    with on(fs) as db:
        assert reclaimed(db)[1]["cold_marks"] == 0


def test_what_was_abandoned_by_a_rewind_is_cold_and_what_is_seen_is_not(
    fs: MemoryFileSystem, rng: np.random.Generator
) -> None:
    with on(fs) as db:
        value = rng.standard_normal(200_000).astype(np.float32)
        db.store_tensor("base", value, epoch=0)
        for epoch in range(1, 8):
            db.store_tensor("base", value * np.float32(1 + epoch * 1e-6), epoch=epoch)
        db.rewind(0)
        db.store_tensor("end", rng.bytes(2_000_000), epoch=1)
    fs.clock_ns += 8 * DAY
    with on(fs) as db:
        view = db._log.head()
        rules = db._event_rules()
        look = sampling._Look(view, rules, fs.clock_ns - 7 * DAY)
        entries = view.versions(b"\x01base")
        planned = planning.make_plan(db._log, rules, 7 * DAY, with_active=True)
        table = planned.plan.table
        cold = {int(table.commit[item.row]) for item in planned.plan.cold}
        assert len(cold) >= 6
        for entry in entries:
            assert look.is_cold(b"\x01base", entry) == (entry.commit_lsn in cold)


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_calls_cold_what_a_plan_does(fs: MemoryFileSystem, seed: int) -> None:
    """Under rewinds, tags, checkpoints and reads; but for those that two lineages share."""
    rng = np.random.default_rng(seed)
    with on(fs, segment_bytes=1 << 14) as db:
        for epoch in range(60):
            fs.clock_ns += int(rng.integers(0, DAY // 2))
            name = f"t{rng.integers(3)}"
            db.store_tensor(name, rng.standard_normal(300), epoch=epoch)
            if rng.random() < 0.1:
                db.tag(f"tag{epoch}")
            if rng.random() < 0.1:
                db.checkpoint({"m": rng.standard_normal(50)}, epoch=epoch)
            if rng.random() < 0.2:
                old = int(rng.integers(db.epoch + 1))
                for read in [one for one in db.names() if one.startswith("t")]:
                    if any(version.epoch <= old for version in db.history(read)):
                        db.query_tensor(read, as_of=old)
        rules, age = db._event_rules(), 5 * DAY
        everything = mock.patch.object(planning, "choose_groups", _all_groups)
        with everything:
            plan = planning.make_plan(db._log, rules, age, with_active=True).plan
        cold = {(plan.table.key_of(one.row), int(plan.table.commit[one.row])) for one in plan.cold}
        view = db._log.head()
        look = sampling._Look(view, rules, fs.clock_ns - age)
        seen = set()
        for name in db.names():
            key = b"\x01" + name.encode()
            for entry in view.versions(key):
                if entry.commit_lsn <= look._last_old and entry.length and look.is_cold(key, entry):
                    seen.add((key, entry.commit_lsn))
        assert cold
        assert seen == cold


def _all_groups(table: Any, *args: Any, **options: Any) -> Any:
    assert choose_groups(table, *args, **options) is not None
    return tuple(Group(place, 1) for place in range(len(table.sizes)))


def test_a_store_of_nothing_and_one_of_lakes_alone_have_no_cold_bytes(
    fs: MemoryFileSystem, rng: np.random.Generator
) -> None:
    with on(fs) as db:
        assert reclaimed(db) == (0, {**reclaimed(db)[1], "marks": 0, "cold_marks": 0})
        lake = db.lake(dim=64)
        for _ in range(8):
            lake.add_splats(rng.standard_normal((4000, 64)))
    fs.clock_ns += 30 * DAY
    with on(fs) as db:
        assert reclaimed(db)[0] == 0
        assert reclaimed(db)[1]["marks"] == sampling.MARKS


def test_the_sample_is_bounded_whatever_the_store_has(
    store_path: Path, rng: np.random.Generator
) -> None:
    with mldb.open(store_path, **{**QUIET, "segment_bytes": 1 << 14}) as db:
        for epoch in range(60):
            db.store_tensor("w", rng.standard_normal(1000), epoch=epoch)
        assert len(db._log.head().sealed) > 20
        with (
            mock.patch.object(sampling, "columns_of", wraps=planning.columns_of) as columns,
            mock.patch.object(sampling._Trial, "encoded", return_value=(10, 4)) as trials,
        ):
            found = sample_cold(db._log, db._event_rules(), 0, lambda key, commit: True)
        assert found.cold > 64
        assert found.share == pytest.approx(0.6)
        assert columns.call_count == sampling.SAMPLED_SEGMENTS
        assert trials.call_count == sampling.TRIAL_PIECES
        distances = [call.kwargs["distance"] for call in trials.call_args_list]
        assert distances == [1, 2, 1, 4, 1, 2, 1, 8, 1, 2, 1, 4]


def test_the_figure_is_found_anew_when_it_no_longer_holds(store_path: Path) -> None:
    with mldb.open(store_path, **QUIET) as db:
        fill(db, keep=None)
        with mock.patch.object(reclaimable, "_find", wraps=reclaimable._find) as find:
            for _ in range(3):
                reclaimed(db)
            assert find.call_count == 1
            db.retention.set(last=1)
            assert reclaimed(db)[1]["dropped"] > 0
            assert find.call_count == 2
            db.compact()  # the segments that it was told of are gone
            reclaimed(db)
            assert find.call_count == 3
            with mock.patch.object(reclaimable, "COST", 0):
                fill(db, keep=None, epochs=0)
                for epoch in range(20, 26):
                    db.store_tensor("weight", np.arange(500_000.0) + epoch, epoch=epoch)
                reclaimed(db)
                assert find.call_count == 4
            with mock.patch.object(reclaimable, "ANEW_SECONDS", 0.0):
                reclaimed(db)
            assert find.call_count == 5


def test_damage_makes_no_error_of_stats(store_path: Path, rng: np.random.Generator) -> None:
    damaged = mldb.CorruptError("the index is damaged")
    with mldb.open(store_path, **QUIET) as db:
        slow(db, rng, 20)
        with mock.patch.object(sampling, "columns_of", side_effect=damaged):
            told, parts = reclaimed(db)
        assert (told, parts["encoded"]) == (None, None)
        assert reclaimed(db)[0] == 0


def test_a_version_that_is_damaged_is_no_trial(
    fs: MemoryFileSystem, rng: np.random.Generator
) -> None:
    damaged = mldb.CorruptError("the payload is damaged")
    with on(fs) as db:
        slow(db, rng)
    fs.clock_ns += 8 * DAY
    with on(fs) as db, mock.patch.object(sampling._Trial, "_piece", side_effect=damaged):
        told, parts = reclaimed(db)
        assert told == 0
        assert parts["cold_marks"] > 0
