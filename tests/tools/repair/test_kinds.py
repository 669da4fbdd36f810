"""mldb.repair, one kind of damage at a time: what is taken, and what is said of the rest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log import format as fmt
from mldb.tools.repair.report import RepairReport
from tests.support.recorded import all_shown, compact_with_retention, record_run
from tests.tools.replay.test_replay import ROOT, stored_in


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six epochs of two tensors and one that is written once, in several segments."""
    path = tmp_path / "store"
    with mldb.open(path, durability="os", segment_bytes=20_000, background_compaction=False) as db:
        db["once"] = np.arange(600)
        for epoch in range(1, 7):
            with db.transaction(epoch=epoch) as txn:
                txn["a"] = np.full(500, epoch)
                txn["b"] = np.full(700, -epoch)
            db.store_tensor("alone", np.full(400, epoch))
    return path


def segments(path: Path) -> list[Path]:
    """The segment files in the order of the log."""
    with mldb.open(path, mode="r") as db:
        view = db._log.head()
        names = [part.segment.name for part in view.sealed]
        names.append(view.segments[view.active_id].name)
    return [path / name for name in names]


def place(path: Path, name: str, as_of: Any) -> tuple[Path, Any]:
    """The file of a version, and its entry."""
    with mldb.open(path, mode="r") as db:
        scope = db._scope(as_of)
        entry = scope.tensor_entry(name)
        return path / scope.view.segments[entry.segment].name, entry


def change(file: Path, offset: int, new: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(new)


def lost_names(report: RepairReport) -> list[tuple[str, str, int | None]]:
    return [(lost.what, lost.name, lost.epoch) for lost in report.lost]


def test_a_damaged_payload_loses_its_version_and_never_shows_the_one_before(
    store: Path, tmp_path: Path
) -> None:
    file, entry = place(store, "alone", 3)
    change(file, entry.offset + 8, b"\xff")
    report = mldb.repair(store, tmp_path / "new")
    assert lost_names(report) == [("tensor", "alone", 3)]
    (lost,) = report.lost
    assert (lost.lsn, lost.file) == (entry.commit_lsn, str(file.relative_to(store)))
    assert lost.offset == entry.frame
    assert not report.ok
    with mldb.open(tmp_path / "new") as db:
        assert int(db.query_tensor("alone", as_of=2)[0]) == 2
        with pytest.raises(mldb.TensorNotFoundError):
            db.query_tensor("alone", as_of=3)
        assert int(db.query_tensor("alone", as_of=4)[0]) == 4
        assert int(db.query_tensor("a", as_of=3)[0]) == 3
        assert db.verify().ok


def test_of_a_pack_only_what_was_hit_is_lost(store: Path, tmp_path: Path) -> None:
    """Both tensors of a transaction share a block; the digest tells which one is whole."""
    file, entry = place(store, "a", 4)
    change(file, entry.offset, b"\xff")
    report = mldb.repair(store, tmp_path / "new")
    assert lost_names(report) == [("tensor", "a", 4)]
    with mldb.open(tmp_path / "new", mode="r") as db:
        assert int(db.query_tensor("b", as_of=4)[0]) == -4


@pytest.mark.parametrize("where", ["header", "body"])
def test_a_damaged_frame_is_named_by_the_index(store: Path, tmp_path: Path, where: str) -> None:
    file, entry = place(store, "alone", 3)
    at = entry.frame + (10 if where == "header" else fmt.FRAME_HEADER_SIZE + 3)
    change(file, at, b"\xff\xff")
    report = mldb.repair(store, tmp_path / "new")
    assert lost_names(report) == [("tensor", "alone", 3)]
    with mldb.open(tmp_path / "new", mode="r") as db, mldb.open(store, mode="r") as old:
        assert db.history("a") == old.history("a")


def test_without_an_index_the_commit_is_named(store: Path, tmp_path: Path) -> None:
    file, entry = place(store, "alone", 6)
    assert file == segments(store)[-1]
    shutil.rmtree(store / "hints")
    change(file, entry.frame + fmt.FRAME_HEADER_SIZE + 3, b"\xff\xff")
    report = mldb.repair(store, tmp_path / "new")
    assert [(lost.what, lost.lsn) for lost in report.lost] == [("unknown", entry.commit_lsn)]


def test_a_damaged_commit_frame_costs_nothing_where_an_index_has_it(
    store: Path, tmp_path: Path
) -> None:
    shown = all_shown(store)
    with mldb.open(store, mode="r") as db:
        row = db._log.head().commit_at(int(db.at(3).lsn))
        assert row is not None
        file, _ = place(store, "alone", 3)
    change(file, row.end + 4, b"\xff\xff")
    report = mldb.repair(store, tmp_path / "new")
    assert report.lost == ()
    assert report.damage != ()
    assert all_shown(tmp_path / "new") == shown


def test_what_refers_to_what_is_lost_is_lost_with_it(tmp_path: Path) -> None:
    path, data = tmp_path / "store", np.random.default_rng(1).random(5000)
    with mldb.open(path, durability="os", deduplicate=1, background_compaction=False) as db:
        db.store_tensor("owner", data, epoch=1)
        db.store_tensor("refers", data, epoch=2)
        db.store_tensor("patched", data + 1, epoch=2)
        db.update_tensor("patched", [3], np.array([0.0]))
        db.store_tensor("after", data + 2, epoch=3)
    for name in ("owner", "patched"):
        with mldb.open(path, mode="r") as db:
            version = db.history(name)[0].lsn
        file, entry = place(path, name, version)
        change(file, entry.offset + 80, b"\xff")
    report = mldb.repair(path, tmp_path / "new")
    assert sorted({lost.name for lost in report.lost}) == ["owner", "patched", "refers"]
    assert len(report.lost) == 4
    assert [lost.why for lost in report.lost if lost.name == "refers"] == [
        "it has its bytes from 'owner' of commit 2, which is lost"
    ]
    with mldb.open(tmp_path / "new", mode="r") as db:
        assert db.names() == ["after"]


def test_a_segment_that_is_gone_is_named_by_its_commits(store: Path, tmp_path: Path) -> None:
    gone = segments(store)[1]
    with mldb.open(store, mode="r") as db:
        info = db._log.head().sealed[1].info
    gone.unlink()
    report = mldb.repair(store, tmp_path / "new")
    (lost,) = [item for item in report.lost if item.what == "unknown"]
    assert (lost.lsn, lost.last_lsn) == (info.first_lsn, info.last_lsn)
    assert (lost.epoch, lost.file) == (info.first_epoch, str(gone.relative_to(store)))
    assert report.reattached
    with mldb.open(tmp_path / "new", mode="r") as db:
        assert (db["once"] == np.arange(600)).all()
        assert int(db["a"][0]) == 6


@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_manifests_and_footers_need_not_be_there(store: Path, tmp_path: Path, how: str) -> None:
    shown = all_shown(store)
    for file in store.glob("MANIFEST-*"):
        if how == "deleted":
            file.unlink()
        else:
            change(file, 130, b"\xff\xff\xff")
    for file in segments_by_name(store):
        data = file.read_bytes()
        change(file, len(data) - 200, b"\xff" * 200)
    report = mldb.repair(store, tmp_path / "new")
    assert report.uncertain
    assert not report.ok
    assert all_shown(tmp_path / "new")["commits"] == {
        lsn: content for lsn, content in shown["commits"].items() if lsn <= report_last(tmp_path)
    }


def segments_by_name(path: Path) -> list[Path]:
    """The sealed ones: those whose name no hint has."""
    active = {file.stem for file in (path / "hints").glob("*.idx")}
    return [file for file in (path / "segments").glob("*.seg") if file.stem not in active]


def report_last(tmp_path: Path) -> int:
    with mldb.open(tmp_path / "new", mode="r") as db:
        return int(db.lsn)


def test_swapped_foreign_and_strange_files(store: Path, tmp_path: Path) -> None:
    shown = all_shown(store)
    one, two, *_ = segments(store)
    aside = tmp_path / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    with mldb.open(tmp_path / "foreign", durability="os") as db:
        db["foreign"] = 1
    foreign = next((tmp_path / "foreign" / "segments").glob("*.seg"))
    shutil.copy(foreign, store / "segments")
    (store / "segments" / "notes.txt").write_text("x")
    for name in ("LOCK", "readers/strange", "hints/directory"):
        (store / name).write_bytes(b"garbage")
    (store / "outside").symlink_to(tmp_path)
    report = mldb.repair(store, tmp_path / "new")
    assert report.lost == ()
    assert all_shown(tmp_path / "new") == shown
    assert set(report.unused) == {f"segments/{foreign.name}", "segments/notes.txt", "outside"}
    assert sum("swapped" in note for note in report.notes) == 2


def test_a_torn_tail_is_no_commit(store: Path, tmp_path: Path) -> None:
    file, entry = place(store, "alone", 6)
    with file.open("r+b") as opened:
        opened.truncate(entry.offset + 100)
    report = mldb.repair(store, tmp_path / "new")
    assert {lost.what for lost in report.lost} <= {"tensor", "unknown", "commit"}
    with mldb.open(tmp_path / "new", mode="r") as db:
        assert int(db["a"][0]) == 6
        assert db.lsn <= entry.commit_lsn


def test_a_lake_with_a_hole_ends_there(tmp_path: Path, rng: np.random.Generator) -> None:
    """Rows that should be removed must not be back because the removal was lost."""
    path = tmp_path / "store"
    with mldb.open(path, durability="os", background_compaction=False) as db:
        lake = db.lake(dim=4)
        ids = lake.add_splats(rng.standard_normal((20, 4)), epoch=1)
        before = db.lsn
        lake.remove(ids[:5])
        removal = db.lsn
        lake.add_splats(rng.standard_normal((3, 4)), epoch=2)
        db.store_tensor("w", 1)
        view = db._log.head()
        (batch,) = db._log.batches(view, removal, removal)
        frame, _ = batch.frames[0]
        file = path / batch.file
    change(file, frame.payload_offset, b"\xff")
    report = mldb.repair(path, tmp_path / "new")
    assert {lost.what for lost in report.lost} == {"rows of a lake", "lake"}
    with mldb.open(tmp_path / "new", mode="r") as db:
        assert db.lakes() == []
        assert db.lakes(as_of=before) == ["default"]
        assert len(db.lake().at(before)) == 20
        assert int(db["w"]) == 1


@pytest.mark.parametrize("name", ["format-1", "format-2", "format-2-backup"])
def test_stores_of_format_1_and_copies_are_salvaged_whole(tmp_path: Path, name: str) -> None:
    old = tmp_path / name
    shutil.copytree(ROOT / "tests/golden" / name, old)
    report = mldb.repair(old, tmp_path / "new")
    assert report.ok, report.lost
    assert stored_in(tmp_path / "new") == stored_in(old)


def test_nothing_to_salvage_and_targets_that_cannot_be(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(mldb.CorruptError, match="nothing to salvage"):
        mldb.repair(tmp_path / "empty", tmp_path / "new")
    for target in (store, store / "in"):
        with pytest.raises(mldb.InvalidValueError, match="lies inside it"):
            mldb.repair(store, target)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(mldb.InvalidValueError, match="is not empty"):
        mldb.repair(store, tmp_path / "full")


def test_an_interrupted_repair_is_no_store_and_begins_anew(store: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mldb.repair(store, tmp_path / "new", progress=stop)
    with pytest.raises(mldb.FormatVersionError, match="not finished"):
        mldb.open(tmp_path / "new")
    assert mldb.repair(store, tmp_path / "new").ok
    assert all_shown(tmp_path / "new") == all_shown(store)


def test_without_its_manifest_nobody_knows_what_retention_left(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """A pruned commit that could be visited would show older values in silence."""
    path = tmp_path / "store"
    record_run(path, rng, epochs=5)
    compact_with_retention(path)
    for file in path.glob("MANIFEST-*"):
        os.unlink(file)
    report = mldb.repair(path, tmp_path / "new")
    assert report.lost == ()
    assert any("retention" in note for note in report.notes)
    with mldb.open(tmp_path / "new", mode="r") as db:
        with pytest.raises(mldb.VersionGoneError):
            db.at(2)
        assert db["decoder.w"].shape == (20, 16)
