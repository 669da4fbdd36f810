"""What was read lately is not cold: noted by every handle, told in a hint that may be lost."""

from __future__ import annotations

import os
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import mldb
from mldb import keys
from mldb.compaction import reads
from mldb.compaction.reads import add_reads, load_reads, merge_reads, reads_of
from mldb.log import format as fmt
from mldb.log import hints, lone
from mldb.log.fs.posix import OsFileSystem
from mldb.log.hints import save_hint
from mldb.tensors import reads as notes
from tests.support.processes import Child, Line

DAY = 86_400 * 10**9
COUNT = 8
HINT = "hints/reads"


class ShiftedFileSystem(OsFileSystem):
    """A folder seen some days from now."""

    days = 0.0

    def time_ns(self) -> int:
        return time.time_ns() + int(self.days * DAY)


def opened(path: Path, days: float, **options: Any) -> mldb.MLDatabase:
    """A handle so many days from now."""
    fs = ShiftedFileSystem(str(path))
    fs.days = days
    options = {"durability": "os", "background_compaction": False, **options}
    return mldb.MLDatabase.on(fs, **options)


@pytest.fixture
def aged(store_path: Path, rng: np.random.Generator) -> Path:
    """A store of slowly changing versions, of which the last was stored 20 days ago."""
    store_path.mkdir()
    with opened(store_path, -20) as db:
        value = rng.standard_normal(2000).astype(np.float32)
        for epoch in range(COUNT):
            db.store_tensor("w", value, epoch=epoch)
            db.store_tensor("same", value, epoch=epoch)
            value = (value * (1 + 1e-3 * rng.standard_normal(2000))).astype(np.float32)
    return store_path


def whole(db: mldb.MLDatabase, name: str = "w") -> list[int]:
    """The versions of a name that compaction left raw, by number."""
    entries = db._scope().view.versions(keys.TENSORS + name.encode())
    return [number for number, one in enumerate(entries) if one.encoding == fmt.ENCODING_RAW]


def compacted(path: Path, days: float = 0.0) -> list[int]:
    """Which versions a default compaction of a copy leaves as they are, so many days from now."""
    copy = path.with_name(f"{path.name}-{days}-{len(os.listdir(path.parent))}")
    shutil.copytree(path, copy)
    with opened(copy, days) as db:
        db.compact()
        assert db.verify().ok
        assert not os.listdir(copy / "pending")
        return whole(db)


# --- what is cold ---------------------------------------------------------------------------------


def test_without_a_hint_age_decides(aged: Path) -> None:
    assert compacted(aged) == [COUNT - 1]  # the newest


@pytest.mark.parametrize("way", ["query", "handle", "slice", "torch", "snapshot", "held"])
def test_a_version_that_was_read_yesterday_is_not_cold(aged: Path, way: str) -> None:
    with opened(aged, -1) as db:
        if way == "query":
            db.query_tensor("w", as_of=3)
        elif way == "torch":
            pytest.importorskip("torch")
            db.tensor("w", as_of=3).torch()
        elif way == "handle":
            db.tensor("w", as_of=3).numpy()
        elif way == "slice":
            assert len(db.tensor("w", as_of=3)[5:9]) == 4
        elif way == "snapshot":
            with db.at(3) as snapshot:
                assert snapshot["w"].shape == (2000,)
        else:  # the newest when it was looked up, and not any more when it is read
            db.store_tensor("later", np.arange(3), epoch=COUNT)
            handle = db.tensor("w", as_of=3)
            handle.numpy()
        assert db.stats()["reads"]["untold"] == 1
    assert compacted(aged) == [3, COUNT - 1]


def test_a_version_that_was_read_eight_days_ago_is_cold(aged: Path) -> None:
    with opened(aged, -8) as db:
        db.query_tensor("w", as_of=3)
        db.query_tensor("w", as_of=4)
    with opened(aged, -6) as db:
        db.query_tensor("w", as_of=4)
    assert compacted(aged) == [4, COUNT - 1]
    assert compacted(aged, 2) == [COUNT - 1]


def test_settings_say_how_long_ago(aged: Path) -> None:
    with opened(aged, -1) as db:
        db.query_tensor("w", as_of=3)
    with opened(aged, 0) as db:
        db.compact(cold=timedelta(hours=12))
        assert whole(db) == [COUNT - 1]


def test_all_takes_what_was_read_too(aged: Path) -> None:
    with opened(aged, 0) as db:
        db.query_tensor("w", as_of=3)
        db.compact(cold="all")
        assert whole(db) == []


def test_a_handle_that_compacts_knows_what_itself_has_read(aged: Path) -> None:
    with opened(aged, 0) as db:
        db.query_tensor("w", as_of=5)
        db.compact()
        assert whole(db) == [5, COUNT - 1]
        assert not (aged / HINT).exists()  # nothing was told yet


def test_the_owner_of_bytes_that_were_read_by_another_name_is_not_cold(
    store_path: Path, rng: np.random.Generator
) -> None:
    store_path.mkdir()
    with opened(store_path, -20, deduplicate=1) as db:
        values = [rng.standard_normal(2000).astype(np.float32)]
        values += [values[0] * np.float32(1 + 1e-6 * number) for number in range(1, 5)]
        for epoch, value in enumerate(values):
            db.store_tensor("owner", value, epoch=epoch)
        db.store_tensor("copy", values[2], epoch=5)
        db.store_tensor("copy", values[0] * 2, epoch=6)
        found = db._scope().view.versions(keys.TENSORS + b"copy")
        assert found[0].encoding == fmt.ENCODING_REFERENCE
    with opened(store_path, -1) as db:
        assert np.array_equal(db.query_tensor("copy", as_of=5), values[2])
    with opened(store_path, 0) as db:
        db.compact()
        assert whole(db, "owner") == [2, 4]


def test_what_was_the_newest_until_lately_counts_as_read_until_then(
    aged: Path, rng: np.random.Generator
) -> None:
    """Who reads the newest notes nothing: it is known by what was stored after it."""
    with opened(aged, -1) as db:
        assert db["w"].shape == (2000,)
        assert db.stats()["reads"]["noted"] == 0
        db.store_tensor("w", db["w"] * np.float32(1.001), epoch=COUNT)
    assert compacted(aged) == [COUNT - 1, COUNT]
    assert compacted(aged, 7) == [COUNT]


# --- many handles ---------------------------------------------------------------------------------


def test_several_handles_tell_one_hint(aged: Path) -> None:
    with (
        opened(aged, -1) as one,
        opened(aged, -2) as reader,
        opened(aged, -3) as other,
    ):
        one.query_tensor("w", as_of=2)
        reader.query_tensor("w", as_of=4)
        other.query_tensor("w", as_of=4)  # longer ago than the reader
        other.query_tensor("w", as_of=6)
    assert compacted(aged, 4.5) == [2, 4, COUNT - 1]


def test_who_finds_the_hint_taken_waits_and_then_keeps_what_it_has(aged: Path) -> None:
    with opened(aged, -1) as db:
        db.query_tensor("w", as_of=2)
        lock = db._log.fs.lock(reads.READS_LOCK)
        assert lock.try_acquire()
        with mock.patch.object(notes, "_PATIENCE", 0.05):
            db._source.reads.tell()
        assert db.stats()["reads"]["untold"] == 1
        lock.close()
        db._source.reads.tell()
        assert db.stats()["reads"]["untold"] == 0
        assert db.stats()["reads"]["told"] == 1


def test_a_commit_and_a_snapshot_tell_what_was_read_now_and_then(
    aged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_told(db: mldb.MLDatabase) -> bool:
        deadline = time.monotonic() + 30
        while db.stats()["reads"]["untold"] and time.monotonic() < deadline:
            time.sleep(0.01)
        return bool(db.stats()["reads"]["told"])

    with opened(aged, -1) as db:
        db.query_tensor("w", as_of=2)
        db.store_tensor("other", np.arange(3), epoch=COUNT)
        assert db.stats()["reads"]["untold"] == 1  # not yet
        monkeypatch.setattr(notes, "TELL_SECONDS", 0.0)
        db.store_tensor("other", np.arange(3), epoch=COUNT)
        assert is_told(db)
    with opened(aged, -1) as db:
        db.query_tensor("w", as_of=3)
        with db.at(1):
            assert is_told(db)
    assert compacted(aged) == [2, 3, COUNT - 1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_not_written(aged: Path) -> None:
    folders = [aged, *(path for path in aged.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with opened(aged, -1, mode="r") as db:
            db.query_tensor("w", as_of=2)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert not (aged / HINT).exists()


def test_where_nothing_can_be_written_a_reader_closes_as_ever(
    aged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = OsFileSystem.lock

    def refused(self: OsFileSystem, name: str) -> Any:
        if name.startswith("hints/"):
            raise mldb.ReadOnlyError(f"{name} lies in a folder that is read-only")
        return lock(self, name)

    with opened(aged, -1) as db:
        db.query_tensor("w", as_of=2)
        monkeypatch.setattr(OsFileSystem, "lock", refused)
    assert not (aged / HINT).exists()


def test_a_forked_child_tells_nothing_of_its_parent(aged: Path) -> None:
    with opened(aged, -1) as db:
        db.query_tensor("w", as_of=2)
        handle = db.tensor("w", as_of=3)

        def act(line: Line) -> None:
            handle.numpy()
            db._source.reads.tell()
            notes._end()
            db.close()
            with opened(aged, -1) as own:
                own.query_tensor("w", as_of=5)
            line.say("done")

        with Child(act) as child:
            assert child.hear() == ["done"]
            assert child.wait() == 0
        assert len(load_reads(db._log.fs, db._log.store_id)) == 1
    assert compacted(aged) == [2, 5, COUNT - 1]


# --- a hint that is not to be believed ------------------------------------------------------------


def told(path: Path) -> None:
    with opened(path, -1) as db:
        db.query_tensor("w", as_of=3)
    assert (path / HINT).exists()


@pytest.mark.parametrize("harm", ["deleted", "empty", "cut", "flipped", "folder"])
def test_of_a_damaged_hint_nothing_is_believed(aged: Path, harm: str) -> None:
    told(aged)
    hint = aged / HINT
    data = bytearray(hint.read_bytes())
    hint.unlink()
    if harm == "empty":
        hint.write_bytes(b"")
    elif harm == "cut":
        hint.write_bytes(data[: len(data) // 2])
    elif harm == "flipped":
        data[-9] ^= 1
        hint.write_bytes(data)
    elif harm == "folder":
        hint.mkdir()
    assert compacted(aged) == [COUNT - 1]
    if harm != "folder":
        told(aged)  # and it is made anew


def test_every_byte_of_the_hint_is_checked(aged: Path) -> None:
    told(aged)
    with opened(aged, 0) as db:
        fs, store_id = db._log.fs, db._log.store_id
        data = (aged / HINT).read_bytes()
        right = load_reads(fs, store_id).tobytes()
        assert right
        for place in range(len(data)):
            (aged / HINT).write_bytes(
                data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
            )
            assert load_reads(fs, store_id).tobytes() in (b"", right)  # padding says nothing


def test_of_a_read_in_the_future_nothing_is_believed(aged: Path) -> None:
    with opened(aged, 30) as db:  # its clock was wrong
        db.query_tensor("w", as_of=3)
    assert compacted(aged) == [COUNT - 1]


def test_the_hint_of_another_store_says_nothing(aged: Path, tmp_path: Path) -> None:
    told(aged)
    other = tmp_path / "other"
    with opened(aged, 0) as db:
        db.backup(other)
    (other / "hints").mkdir(exist_ok=True)
    (other / HINT).write_bytes((aged / HINT).read_bytes())
    assert compacted(other) == [COUNT - 1]
    assert compacted(aged) == [3, COUNT - 1]


@pytest.mark.parametrize("value", [None, 5, [], [1, b"", 1], {"a": 1}, "newer"])
def test_the_hint_of_another_version_says_nothing(aged: Path, value: Any) -> None:
    with opened(aged, 0) as db:
        found = [2, db._log.store_id, 1] if value == "newer" else value
        save_hint(db._log.fs, reads.READS, found, bytes(24))
        assert len(load_reads(db._log.fs, db._log.store_id)) == 0
    assert compacted(aged) == [COUNT - 1]


def test_hostile_rows_keep_nothing_hot(aged: Path) -> None:
    rows = np.frombuffer(np.random.default_rng(1).bytes(24 * 1000), reads._ROW)
    with opened(aged, 0) as db:
        save_hint(db._log.fs, reads.READS, [1, db._log.store_id, 1000], rows.tobytes())
        assert len(load_reads(db._log.fs, db._log.store_id)) == 1000
    assert compacted(aged) == [COUNT - 1]


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_kill_in_mid_write_leaves_the_hint_before_it(aged: Path, step: str) -> None:
    told(aged)

    def act(line: Line) -> None:
        def dies(*arguments: Any, **options: Any) -> None:
            if step == "rename":
                write(*arguments, **options)
            else:
                fs, _, buffers = arguments
                write(fs, "0" * 32, buffers[:2], sync=False)
            os.kill(os.getpid(), signal.SIGKILL)

        write = lone.write_pending
        with opened(aged, -1) as db:
            db.query_tensor("w", as_of=5)
            line.say("read")
            with mock.patch.object(lone, "write_pending", dies):
                db._source.reads.tell()

    with Child(act) as child:
        assert child.hear() == ["read"]
        assert child.wait() == -signal.SIGKILL
    assert compacted(aged) == [3, COUNT - 1]
    assert hints.load_hint_bytes(OsFileSystem(str(aged)), reads.READS) is not None


# --- bounds ---------------------------------------------------------------------------------------


def rows_of(count: int, first: int = 0, second: int = 0) -> reads.Reads:
    return reads_of([(b"k%d" % number, 7, second) for number in range(first, first + count)])


def test_of_more_versions_than_fit_those_read_last_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "READS_MAX", 10)
    old, new = rows_of(8, second=100), rows_of(8, first=5, second=200)
    kept = merge_reads([new, old], 10**12)
    assert len(kept) == 10
    assert np.count_nonzero(kept["second"] == 200) == 8
    assert len(np.unique(kept["key"])) == 10
    assert merge_reads([kept, kept, rows_of(3, second=-5)], 10**12).tobytes() == kept.tobytes()


def test_a_handle_holds_no_more_than_its_bound(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "READS_MAX", 50)
    monkeypatch.setattr(notes, "FRESH_MAX", 20)
    with mldb.open(store_path, durability="os") as db:
        for epoch in range(2):
            with db.transaction(epoch=epoch) as txn:
                for number in range(100):
                    txn.store_tensor(f"t{number}", np.arange(number + epoch))
        for number in range(100):
            db.query_tensor(f"t{number}", as_of=0)
            assert db.stats()["reads"]["untold"] <= 70
        assert db.stats()["reads"]["noted"] == 100
        fs, store_id = db._log.fs, db._log.store_id
    assert len(load_reads(fs, store_id)) == 50


def test_one_version_read_again_and_again_is_noted_once_a_minute(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        for epoch in range(2):
            db.store_tensor("w", np.arange(5.0) + epoch, epoch=epoch)
        handle = db.tensor("w", as_of=0)
        for _ in range(50):
            handle.numpy()
            assert db.query_tensor("w", as_of=0)[0] == 0.0
        assert db.stats()["reads"]["noted"] == 1


def test_adding_to_the_hint_keeps_what_was_told_before(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        fs, store_id = db._log.fs, db._log.store_id
        assert add_reads(fs, store_id, rows_of(3, second=10), 0) == 3
        assert add_reads(fs, store_id, rows_of(3, first=2, second=20), 0) == 5
        found = load_reads(fs, store_id)
        assert sorted(found["second"].tolist()) == [10, 10, 20, 20, 20]


def test_who_reads_a_whole_history_once_notes_nothing(tmp_path: Path) -> None:
    # A replay or a report had kept every version of a store from being encoded for a week.
    path = tmp_path / "run"
    with mldb.open(path, durability="os") as db:
        for epoch in range(3):
            db.store_tensor("w", np.arange(4.0) + epoch, epoch=epoch)
    with mldb.open(path, note_reads=False) as db:
        assert [db.query_tensor("w", as_of=epoch)[0] for epoch in range(3)] == [0, 1, 2]
        assert db.stats()["reads"]["noted"] == 0
    with mldb.open(path, mode="r") as db:  # who only reads writes nothing, no hint either
        db.query_tensor("w", as_of=0)
    assert not (path / "hints" / "reads").exists()
    with mldb.open(path) as db:
        db.query_tensor("w", as_of=0)
    assert (path / "hints" / "reads").exists()
