"""db.compact, db.retention and what is refused: nothing is dropped that should not be."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import mldb
from mldb.compaction import compactor, install, plan, rewrite
from mldb.compaction.compactor import COMPACTION_LOCK
from mldb.history.events import MetadataSet, RetentionSet, TensorStored
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.segment import segment_name
from tests.support.compacting import (
    compact_all,
    depth_of,
    kept_of,
    made_up_deltas,
    owners_in,
    refer,
    versions_of,
    view_of,
)
from tests.support.directories import made_at_once
from tests.support.files import contents_of
from tests.support.segments import segment_names


def filled(
    fs: MemoryFileSystem, epochs: int = 12, *, size: int = 400, **options: Any
) -> mldb.MLDatabase:
    """A store of so many epochs in segments of a few."""
    db = mldb.MLDatabase.on(fs, **{"segment_bytes": 8_000, "durability": "os", **options})
    for epoch in range(epochs):
        with db.transaction(epoch) as txn:
            txn.store_tensor("w", np.arange(size) + epoch, {"epoch": epoch})
            txn.store_tensor("b", np.full(3, epoch))
    return db


def files_of(fs: MemoryFileSystem) -> list[str]:
    return sorted(f"segments/{name}" for name in fs.list("segments"))


def kinds(db: mldb.MLDatabase) -> list[int]:
    return [info.kind for info in db._log.state.manifest.segments]


# --- what it does ---------------------------------------------------------------------------------


def test_a_plan_tells_what_comes_back_and_changes_nothing() -> None:
    fs = MemoryFileSystem()
    db = filled(fs)
    db.retention.set(last=2)
    before = contents_of(fs)
    planned = db.compact(plan_only=True)
    assert contents_of(fs) == before
    assert planned.planned_only
    report = db.compact()
    assert not report.planned_only
    same = (
        *("bytes_before", "segments_before", "segments_after", "commits_kept", "commits_pruned"),
        *("versions_kept", "versions_dropped", "bytes_dropped", "names"),
    )
    for name in same:
        assert getattr(planned, name) == getattr(report, name), name
    assert report.bytes_after == db.stats()["bytes"]
    assert abs(planned.bytes_after - report.bytes_after) < 0.05 * report.bytes_before
    assert report.bytes_returned > 0.7 * report.bytes_before
    assert report.versions_dropped == 30  # of w, its metadata, and b: ten epochs each
    assert [item.name for item in report.names] == ["w", "b"]
    (w, b) = report.names
    assert (w.versions, w.dropped, w.bytes_dropped) == (24, 20, 10 * 3200)
    assert (b.versions, b.dropped, b.bytes_dropped) == (12, 10, 10 * 24)
    assert db.compact(plan_only=True).versions_dropped == 0


def test_the_disk_holds_little_more_than_what_retention_keeps() -> None:
    fs = MemoryFileSystem()
    db = filled(fs, 40, size=2000, segment_bytes=100_000)
    db.retention.set(every=4)
    pinned = db.at(3)
    db.compact()
    assert pinned["w"][0] == 3
    held = db.stats()["bytes"]
    pinned.close()
    db.compact()
    kept = len(kept_of(db)) - 1  # the newest commit set the retention
    assert kept == 10
    assert db.stats()["bytes"] <= 1.1 * (kept + 1) * 16_000 < held
    assert sum(len(data) for name, data in contents_of(fs).items() if "seg" in name) <= 1.1 * (
        (kept + 1) * 16_000
    )


def test_a_segment_with_an_eleventh_to_drop_is_rewritten() -> None:
    """It was left alone, as all below a tenth were: the disk held over 1.1 x of what stays."""
    fs = MemoryFileSystem()
    db = filled(fs, 19, size=20_000, segment_bytes=64 << 20)
    db.retention.set(every=2)
    db.pin(3)
    db.compact()
    assert db.stats()["bytes"] > 11 * 160_000
    db.unpin(3)
    db.compact()
    assert db.stats()["bytes"] <= 1.1 * 10 * 160_000


def test_small_segments_are_merged_and_what_is_merged_is_left_alone() -> None:
    fs = MemoryFileSystem()
    db = filled(fs, 40, size=10, segment_entries=6, segment_bytes=1 << 20)
    assert db.stats()["segments"] > 15
    db.compact()
    assert db.stats()["segments"] <= 3
    assert fmt.FILE_COMPACTED in kinds(db)
    names = segment_names(fs)
    assert db.compact().bytes_read == 0
    assert segment_names(fs) == names
    assert files_of(fs) == sorted(names)
    assert [int(db.query_tensor("b", as_of=epoch)[0]) for epoch in range(40)] == list(range(40))


def test_without_retention_every_commit_stays_and_every_event_is_told_as_before() -> None:
    fs = MemoryFileSystem()
    db = filled(fs, 9)
    db.create_relationship("w", "b", "k", {"n": 1})
    db.rewind(4)
    db.delete_tensor("b")
    events, kept = list(db.events()), kept_of(db)
    report = compact_all(db)
    assert report.versions_dropped == report.commits_pruned == 0
    assert list(db.events()) == events
    assert kept_of(db) == kept
    assert view_of(db).kept is None
    assert db.verify().ok
    db.close()
    with mldb.MLDatabase.on(fs, mode="r") as again:
        assert list(again.events()) == events
        assert again.verify().ok


def test_metadata_whose_tensor_was_dropped_is_still_told() -> None:
    """It was stored with a version that is gone, and is what later ones have."""
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs) as db:
        first = db.store_tensor("w", np.arange(3), {"kind": "weights"}, epoch=0)
        last = db.store_tensor("w", np.arange(4), epoch=1)
        db.retention.set(last=1)
        compact_all(db)
        assert db.metadata("w") == {"kind": "weights"}
        told = [event for event in db.events() if event.lsn in (first, last)]
        assert [type(event) for event in told] == [MetadataSet, TensorStored]
        assert told[0].metadata == {"kind": "weights"}  # type: ignore[attr-defined]
        assert db.verify().ok


def test_a_version_that_others_refer_to_outlives_its_own_commit() -> None:
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, durability="os") as db:
        db.store_tensor("owner", np.arange(50), epoch=0)
        (name, entry), *_ = owners_in(db)
        db.store_tensor("owner", np.arange(60), epoch=1)
        refer(db, "user", name, entry)
        db.store_tensor("owner", np.arange(70), epoch=2)
        db.retention.set(last=1)
        compact_all(db)
        assert len(versions_of(db)) == 4  # two of the owner, the user, the retention
        assert db["user"].tolist() == list(range(50))
        db.delete_tensor("user")
        db.store_tensor("x", np.arange(2), epoch=3)
        compact_all(db)
        assert (b"\x01owner", entry.commit_lsn) not in versions_of(db)
        assert db.verify().ok


def test_the_directory_fits_what_is_left_and_no_old_part_stays() -> None:
    fs = MemoryFileSystem()
    with made_at_once() as parts:
        db = filled(fs, 60, size=10, segment_entries=6, segment_bytes=1 << 20)
        assert db["b"][0] == 59
        assert parts
        assert db.stats()["directory"]["parts"]
        before = [name for name in fs.list("hints") if name.startswith("directory-")]
        assert before
        db.compact()
        left = [name for name in fs.list("hints") if name.startswith("directory-")]
        assert not set(before) & set(left)
        assert db.stats()["segments"] < 5
        assert [db.query_tensor("b", as_of=epoch)[0] for epoch in range(60)] == list(range(60))
        assert db.stats()["directory"]["distrusted"] == 0


def test_progress_is_told_up_to_the_end() -> None:
    db = filled(MemoryFileSystem(), 30)
    db.retention.set(every=2)
    told: list[tuple[int, int]] = []
    db.compact(progress=lambda done, total: told.append((done, total)))
    assert told
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(done <= total for done, total in told)


def test_a_backup_of_a_compacted_store_is_one(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "store", segment_bytes=8_000) as db:
        for epoch in range(12):
            db.store_tensor("w", np.arange(500) + epoch, epoch=epoch)
        db.retention.set(every=5)
        db.compact()
        kept = kept_of(db)
        db.backup(tmp_path / "copy")
    with mldb.open(tmp_path / "copy") as copy:
        assert copy.verify().ok
        assert kept_of(copy) == kept
        assert copy.query_tensor("w", as_of=5)[0] == 5
        with pytest.raises(mldb.VersionGoneError):
            copy.query_tensor("w", as_of=4)
        copy.store_tensor("w", np.arange(5), epoch=20)
        compact_all(copy)
        assert copy.query_tensor("w", as_of=10)[0] == 10
        assert copy.verify().ok


def test_a_backup_goes_on_when_segments_are_replaced_under_its_hands(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "store", segment_bytes=8_000) as db:
        for epoch in range(12):
            db.store_tensor("w", np.arange(500) + epoch, epoch=epoch)
        from mldb.log import backup

        carry, done = backup._carry, list[bytes]()

        def carry_late(source: Any, target: Any, info: Any) -> None:
            if len(done) == 1:
                compact_all(db)
            done.append(info.id)
            carry(source, target, info)

        with mock.patch.object(backup, "_carry", carry_late):
            db.backup(tmp_path / "copy")
    with mldb.open(tmp_path / "copy", mode="r") as copy:
        assert copy.verify().ok
        assert [copy.query_tensor("w", as_of=epoch)[0] for epoch in range(12)] == list(range(12))
    assert len(list((tmp_path / "copy" / "segments").iterdir())) == 2


# --- cold versions --------------------------------------------------------------------------------


def test_cold_versions_are_encoded_once_in_short_chains() -> None:
    with made_up_deltas():
        db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os")
        for epoch in range(12):
            db.store_tensor("w", nearly(epoch), epoch=epoch)
        assert db.compact().recoded == 0  # nothing is seven days old
        before = db.stats()["bytes"]
        report = db.compact(cold="all")
        assert report.recoded == 11  # the first is a keyframe, which does not pay
        assert db.stats()["bytes"] < 0.7 * before
        assert depth_of(db, "w") == [place.bit_count() for place in range(12)]
        for epoch in range(12):
            assert np.array_equal(db.query_tensor("w", as_of=epoch), nearly(epoch))
        assert db.verify().ok
        assert db.compact(cold="all").recoded == 0
        db.store_tensor("w", nearly(12), epoch=12)
        compact_all(db, cold="all")
        assert depth_of(db, "w")[-3:] == [2, 3, 2]
        assert np.array_equal(db["w"], nearly(12))


def nearly(epoch: int) -> np.ndarray[Any, Any]:
    """Values of which few differ from those of another epoch."""
    found = np.random.default_rng(0).integers(0, 1 << 60, 3000)
    found[:20] += epoch
    return found


def test_by_age_the_newest_the_tagged_the_pinned_and_three_checkpoints_stay_as_they_are() -> None:
    with made_up_deltas():
        db = filled(MemoryFileSystem(), 12, size=3000, segment_bytes=1 << 20)
        db.tag("best", 2)
        db.pin(4)
        for epoch in range(12, 17):
            db.checkpoint({"w": np.arange(3000) + epoch}, epoch=epoch, name=f"c{epoch}")
        db.compact(cold=timedelta(0))
        plain = {
            entry.commit_lsn
            for name, entry in owners_in(db, "w")
            if name == "w" and entry.encoding == fmt.ENCODING_RAW
        }
        epochs = {row.epoch for _, row in view_of(db).commits(1, fmt.LSN_MAX) if row.lsn in plain}
        assert epochs == {2, 4, 14, 15, 16}
        assert db.verify().ok


@pytest.mark.parametrize("cold", ["some", 7, timedelta(days=-1), b"all"])
def test_what_is_no_age_is_refused(cold: Any) -> None:
    wrong = mldb.InvalidValueError, mldb.InvalidTypeError
    with filled(MemoryFileSystem(), 1) as db, pytest.raises(wrong, match="cold"):
        db.compact(cold=cold)


# --- bad days -------------------------------------------------------------------------------------


def test_one_compaction_at_a_time_and_the_second_says_so() -> None:
    fs = MemoryFileSystem()
    with filled(fs) as db:
        lock = fs.lock(COMPACTION_LOCK)
        assert lock.try_acquire()
        with pytest.raises(mldb.LockedError, match=r"is compacting .* Nothing was done"):
            db.compact()
        assert db.compact(plan_only=True).planned_only
        lock.close()
        db.compact()


def test_a_store_that_is_only_read_can_be_planned_and_not_compacted() -> None:
    fs = MemoryFileSystem()
    filled(fs).close()
    with mldb.MLDatabase.on(fs, mode="r") as db:
        assert db.compact(plan_only=True).versions_dropped == 0
        with pytest.raises(mldb.ReadOnlyError):
            db.compact()
        with pytest.raises(mldb.ReadOnlyError):
            db.retention.set(last=1)


def test_a_full_disk_is_told_before_it_stops_the_writers() -> None:
    fs = MemoryFileSystem()
    with filled(fs) as db:
        db.retention.set(last=1)
        before = versions_of(db)
        with (
            mock.patch.object(fs, "free_bytes", return_value=5_000),
            pytest.raises(mldb.StorageFullError, match=r"needs up to \d+ bytes"),
        ):
            db.compact()
        assert versions_of(db) == before
        assert not [name for name in fs.list("pending") if name.endswith(".seg")]
        db.store_tensor("w", np.arange(3), epoch=99)
        db.compact()
        assert len(kept_of(db)) == 1


@pytest.mark.parametrize("where", ["write_group", "check_new", "install"])
def test_an_error_in_the_middle_leaves_no_trace(where: str) -> None:
    fs = MemoryFileSystem()
    with filled(fs) as db:
        db.retention.set(last=1)
        compact_all(db)
        for epoch in range(12, 20):
            db.store_tensor("w", np.arange(400) + epoch, epoch=epoch)
        before, names = versions_of(db), segment_names(fs)

        def fail(*args: Any, **more: Any) -> Any:
            raise mldb.StorageIOError("no")

        with mock.patch.object(compactor, where, fail), pytest.raises(mldb.StorageIOError):
            compact_all(db)
        assert versions_of(db) == before
        assert not [name for name in fs.list("pending") if name.endswith(".seg")]
        assert set(names) <= set(segment_names(fs))  # it may have sealed the active one
        assert files_of(fs) == sorted(segment_names(fs))
        assert db.verify().ok


def test_a_wrong_version_in_the_new_segment_is_found_before_it_is_installed() -> None:
    """A codec that does not give back what it was given, say."""
    fs = MemoryFileSystem()
    with made_up_deltas(), filled(fs, 6, size=3000, segment_bytes=1 << 20) as db:
        from tests.support import compacting as support

        encode = support._encode

        def wrong(attr: bytes, data: memoryview, base: memoryview | None) -> Any:
            found = encode(attr, data, base)
            if base is None or found is None:
                return found
            return found[0], b"\1" + found[1][1:]

        before = versions_of(db)
        with (
            mock.patch("mldb.write.compacting._encode", wrong),
            pytest.raises(mldb.CorruptError, match=r"has other bytes.*Nothing was changed"),
        ):
            db.compact(cold="all")
        assert versions_of(db) == before
        assert fmt.FILE_COMPACTED not in kinds(db)
        assert not [name for name in fs.list("pending") if name.endswith(".seg")]


def test_damage_stays_damage_and_is_not_given_new_checksums() -> None:
    fs = MemoryFileSystem()
    db = filled(fs, 12)
    db.close()
    name = segment_names(fs)[0]
    file = fs.open(name, "rw")
    at = file.pread(file.size(), 0).index(np.arange(400).tobytes()[800:]) + 80
    file.pwritev([b"\xff"], at)
    with mldb.MLDatabase.on(fs) as db:
        before = versions_of(db)
        with pytest.raises(mldb.CorruptError, match="damaged"):
            compact_all(db)
        assert versions_of(db) == before
        assert name in segment_names(fs)
        assert db.query_tensor("w", as_of=5)[0] == 5


def test_what_killed_compactions_left_is_swept_by_the_next() -> None:
    """Killed before the manifest, and behind it before the old files went."""
    fs = MemoryFileSystem()
    with filled(fs) as db:
        with (
            mock.patch.object(install, "remove_segment"),
            mock.patch.object(compactor, "discard"),
            mock.patch.object(install, "discard"),
        ):
            compact_all(db)
        assert len(files_of(fs)) > len(segment_names(fs)) + 2
    fs.kill()
    with mldb.MLDatabase.on(fs) as db:
        assert db.verify().ok
        db.compact()
        assert files_of(fs) == sorted(segment_names(fs))
    assert not fs.list("pending")


def test_a_segment_that_was_named_before_anything_was_announced_is_swept_too() -> None:
    """Killed between the two; a file of somebody else's in the folder is not touched."""
    fs = MemoryFileSystem()
    with filled(fs) as db:
        before = contents_of(fs)
        compact_all(db)
        after = contents_of(fs)
    (new,) = [name for name in after if name in segment_names(fs)[:-1]]
    state = MemoryFileSystem()
    for folder in ("segments", "pending", "readers", "hints", "lost+found"):
        state.mkdir(folder)
    for name, data in {**before, new: after[new], "segments/notes.seg": b"mine"}.items():
        if not name.startswith(("readers/", "pending/")):
            state.open(name, "create").pwritev([data], 0)
    with mldb.MLDatabase.on(state, durability="os") as db:
        assert new in files_of(state)
        db.compact(cold="none")
        assert files_of(state) == sorted([*segment_names(state), "segments/notes.seg"])
        assert db.verify().ok


@pytest.mark.parametrize("cut", ["frame", "payload", "footer", "order"])
def test_damage_in_a_compacted_segment_is_found_and_named(cut: str) -> None:
    fs = MemoryFileSystem()
    db = filled(fs, 6)
    compact_all(db)
    db.store_tensor("later", np.arange(3))
    db.close()
    (info,) = [item for item in db._log.state.manifest.segments if item.kind == fmt.FILE_COMPACTED]
    name = segment_name(info.id)
    file = fs.open(name, "rw")
    data = bytearray(file.pread(file.size(), 0))
    place = {
        "frame": fmt.FILE_HEADER_SIZE + 60,
        "payload": data.index(np.arange(400).tobytes()) + 5,
        "footer": info.index_offset + 70,
        "order": fmt.FILE_HEADER_SIZE + 24,
    }[cut]
    data[place] ^= 1
    file.pwritev([bytes(data)], 0)
    with mldb.MLDatabase.on(fs, mode="r") as again:
        report = again.verify()
        assert not report.ok
        assert {problem.file for problem in report.problems} == {name}


# --- what comes between plan and install ----------------------------------------------------------


def between(db: mldb.MLDatabase, act: Any) -> list[str]:
    """Compact, and do *act* behind each rewrite until it was done once; return what was told."""
    done: list[str] = []
    write = rewrite.write_group

    def write_then(*args: Any, **more: Any) -> Any:
        made = write(*args, **more)
        if not done:
            done.append("acted")
            act()
        return made

    with mock.patch.object(compactor, "write_group", write_then):
        compact_all(db)
    return done


@pytest.mark.parametrize("what", ["tag", "pin", "rewind", "snapshot", "refer", "retention"])
def test_what_gains_a_user_between_plan_and_install_stays(what: str) -> None:
    fs = MemoryFileSystem()
    db = filled(fs)
    db.retention.set(last=1)
    held: list[Any] = []
    owner = next((name, entry) for name, entry in owners_in(db, "w") if entry.commit_lsn < 12)

    def act() -> None:
        with mldb.MLDatabase.on(fs, mode="rw", durability="os") as other:
            if what == "tag":
                other.tag("t", 3)
            elif what == "pin":
                other.pin(3)
            elif what == "rewind":
                other.rewind(3)
            elif what == "refer":
                refer(other, "user", *owner)
            elif what == "retention":
                other.retention.set(last=12)
        if what == "snapshot":
            held.append(db.at(3))

    assert between(db, act) == ["acted"]
    assert db.verify().ok
    if what in ("tag", "pin", "rewind", "retention"):
        assert db.query_tensor("w", as_of="t" if what == "tag" else 3)[0] == 3
    elif what == "snapshot":
        assert held[0]["w"][0] == 3
    else:
        assert db["user"][0] == owner[1].commit_lsn // 4 - 1 or db["user"].size == 400
        assert np.array_equal(np.diff(db["user"]), np.ones(399))
    assert not [name for name in fs.list("pending") if name.endswith(".seg")]
    db.close()
    assert files_of(fs) == sorted(segment_names(fs))


def test_a_compaction_that_others_overtake_again_and_again_gives_up() -> None:
    fs = MemoryFileSystem()
    db = filled(fs)
    db.retention.set(last=1)
    before, count = versions_of(db), iter(range(100))
    write = rewrite.write_group

    def write_then(*args: Any, **more: Any) -> Any:
        made = write(*args, **more)
        db.retention.set(last=2 + next(count))
        return made

    with (
        mock.patch.object(compactor, "write_group", write_then),
        pytest.raises(mldb.ConflictError, match=r"gave up after \d plans.*try again"),
    ):
        compact_all(db)
    assert before.items() <= versions_of(db).items()
    assert db.verify().ok


# --- retention ------------------------------------------------------------------------------------


def test_a_retention_is_an_event_of_the_store_that_no_rewind_takes_back() -> None:
    fs = MemoryFileSystem()
    with filled(fs, 4) as db:
        assert db.retention.get() == mldb.Retention()
        assert db.retention.get().keeps_all
        first = db.retention.set(last=3, every=10, within=timedelta(hours=1))
        lsn = db.lsn
        db.rewind(1)
        second = db.retention.set(mldb.Retention(max_bytes=1 << 30, abandoned=timedelta(days=2)))
        assert db.retention.get() == second
        assert db.retention.get(as_of=lsn) == first
        assert db.retention.get(as_of=0) == mldb.Retention()
        assert [policy for _, policy in db.retention.history()] == [first, second]
        told = [event for event in db.events() if isinstance(event, RetentionSet)]
        assert [event.policy for event in told] == [first, second]
        assert "last=None" in repr(db.retention)
        db.retention.set()
        assert db.retention.get().keeps_all
    with mldb.MLDatabase.on(fs, mode="r") as again:
        assert [policy for _, policy in again.retention.history()][:2] == [first, second]


@pytest.mark.parametrize(
    "rules",
    [
        {"last": 0},
        {"every": -1},
        {"last": True},
        {"last": 2.0},
        {"within": 7},
        {"within": timedelta(0)},
        {"max_bytes": 0},
        {"checkpoints": 2},
        {"checkpoints": -1, "last": 1},
        {"abandoned": timedelta(days=-1)},
        {"newest": 3},
    ],
)
def test_a_retention_that_cannot_be_meant_is_refused_and_not_set(rules: dict[str, Any]) -> None:
    with filled(MemoryFileSystem(), 2) as db:
        before = db.lsn
        with pytest.raises(
            (mldb.InvalidValueError, mldb.InvalidTypeError), match=next(iter(rules))
        ):
            db.retention.set(**rules)
        with pytest.raises(mldb.InvalidValueError):
            db.retention.set(mldb.Retention(), last=1)
        with pytest.raises(mldb.InvalidTypeError):
            db.retention.set("all")  # type: ignore[arg-type]
        assert db.lsn == before


def test_a_cap_below_what_is_pinned_is_refused_and_nothing_is_dropped() -> None:
    with filled(MemoryFileSystem(), 12) as db:
        for epoch in range(8):
            db.pin(epoch)
        db.retention.set(max_bytes=30_000)
        before, kept = versions_of(db), kept_of(db)
        for only in (True, False):
            with pytest.raises(mldb.InvalidValueError, match=r"max_bytes=30000.*Nothing was drop"):
                db.compact(plan_only=only)
        assert (versions_of(db), kept_of(db)) == (before, kept)
        assert db.stats()["reclaimable"] is None
        for epoch in range(8):
            db.unpin(epoch)
        db.compact()
        assert db.stats()["bytes"] <= 30_000


def test_a_pruned_commit_names_its_neighbours_and_never_another_value() -> None:
    with filled(MemoryFileSystem(), 12) as db:
        lsns = [version.lsn for version in db.history("w")]
        db.retention.set(every=5)
        compact_all(db)
        for epoch, lsn in enumerate(lsns[:-1]):
            if epoch % 5 == 0:
                assert db.query_tensor("w", as_of=epoch)[0] == epoch
                continue
            for as_of in (epoch, lsn):
                with pytest.raises(mldb.VersionGoneError, match="pruned") as info:
                    db.query_tensor("w", as_of=as_of)
                low = epoch // 5 * 5
                assert info.value.below == lsns[low]
                assert info.value.above == (lsns[low + 5] if low < 10 else db.lsn)
        assert [version.epoch for version in db.history("w")] == [0, 5, 10, 11]
        with pytest.raises(mldb.VersionGoneError):
            db.rewind(4)
        with pytest.raises(mldb.VersionGoneError):
            db.at(4)


def test_the_checkpoint_that_a_kept_commit_sees_stays_whole() -> None:
    """Its state is read at its own commit, which no rule names."""
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        for epoch in range(4):
            db.checkpoint({"w": np.full(5, epoch)}, epoch=epoch, name=f"c{epoch}")
            db.store_tensor("other", np.arange(epoch), epoch=epoch)
            db.store_tensor("w", np.full(5, -1), epoch=epoch)
        db.retention.set(last=1, checkpoints=0)
        compact_all(db)
        assert len(kept_of(db)) == 2
        assert db.state_dict()["w"].tolist() == [3] * 5
        assert db["w"].tolist() == [-1] * 5
        assert [item.name for item in db.checkpoints()] == ["c0", "c1", "c2", "c3"]
        with pytest.raises(mldb.VersionGoneError, match="pruned"):
            db.state_dict(as_of="c1")


def test_stats_tell_what_would_come_back() -> None:
    with filled(MemoryFileSystem(), 12) as db:
        assert db.stats()["reclaimable"] == 0
        db.retention.set(last=1)
        told = db.stats()["reclaimable"]
        assert 0.5 * db.stats()["bytes"] < told < db.stats()["bytes"]
        with mock.patch.object(plan, "choose_groups", side_effect=AssertionError):
            assert db.stats()["reclaimable"] == told
        db.compact()
        assert db.stats()["reclaimable"] < 2_000
