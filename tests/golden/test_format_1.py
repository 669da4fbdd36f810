"""A store of version 1 stays readable for ever, is left alone by who only looks, and goes on.

The first commit upgrades it: the old active segment is sealed as it is, and what follows stands in
a segment of version 2 under a manifest of version 2.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import mldb
from mldb.log import format as fmt
from mldb.log.checksum import digest128
from mldb.log.file_header import decode_file_header
from mldb.log.fs.posix import OsFileSystem
from mldb.log.manifest import Manifest, load_manifest, manifest_name
from mldb.log.newest import load_newest
from tests.golden.first import (
    LARGE,
    LSNS,
    OPTIONS,
    SINGLE,
    SMOOTH,
    SPILLED,
    STATE,
    check_all,
    check_checkpoint,
    check_events,
    check_graph,
    check_head,
    check_past,
)
from tests.golden.stores import FORMAT_1, contents, digest_of, same
from tests.support.seen import segments_of

DIGEST = "564c9e26ec138aa4a67866ec48b3fa94168d1ed54513700e1d52ff3e321c2921"
NEWEST = 13
OLD_ACTIVE = "segments/0000000009.seg"
Mode = Literal["r", "rw"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the golden store that a test may change."""
    return shutil.copytree(FORMAT_1, tmp_path / "golden")


def newest(folder: Path) -> Manifest:
    return load_newest(OsFileSystem(folder), [])


def version_of(path: Path) -> int:
    return decode_file_header(path.read_bytes()[: fmt.FILE_HEADER_SIZE], path.name).version


# --- what is there --------------------------------------------------------------------------------


def test_it_stays_byte_for_byte() -> None:
    """No version of mldb writes these bytes any more."""
    assert digest_of(FORMAT_1) == DIGEST
    assert all(version_of(FORMAT_1 / name) == 1 for name in contents(FORMAT_1))


def test_it_holds_what_it_is_meant_to() -> None:
    """Sealed segments with a footer, a side index, an active segment with a hint, a torn tail."""
    files = contents(FORMAT_1)
    manifest = newest(FORMAT_1)
    side = [info for info in manifest.segments if info.index_file]
    assert len(side) == 1
    assert side[0].index_file in files
    assert len(manifest.segments) - len(side) >= 3
    assert manifest.active not in {info.id for info in manifest.segments}
    assert f"hints/{fmt.id_text(manifest.active)}.idx" in files
    assert any(name.startswith("lost+found/") for name in files)
    assert manifest.jumps
    assert (manifest.number, manifest.version, manifest.base) == (NEWEST, 1, None)
    assert sum(map(len, files.values())) < 200 << 10


# --- looking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_everything_comes_back_and_nothing_changes(copy: Path, mode: Mode) -> None:
    """Opening, every read and closing leave each file as it is, and make none but the locks."""
    before = contents(copy)
    for _ in range(2):
        with mldb.open(copy, mode=mode) as db:
            assert db.recovery.clean
            assert db.recovery.distrusted == ()
            check_all(db)
            with db.at(1) as snapshot:
                same(snapshot["single"], SINGLE[:10])
        assert contents(copy) == before
        assert [*copy.glob("readers/*")] == []


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_hints_are_not_needed(copy: Path, mode: Mode) -> None:
    shutil.rmtree(copy / "hints")
    shutil.rmtree(copy / "lost+found")
    before = contents(copy)
    with mldb.open(copy, mode=mode) as db:
        assert db.recovery.clean
        check_head(db)
        check_past(db)
        check_graph(db)
    assert contents(copy) == before


def test_a_backup_of_it_is_the_same(copy: Path, tmp_path: Path) -> None:
    """Its old segments, under their old names, below a manifest of version 2."""
    before = contents(copy)
    with mldb.open(copy, mode="r") as db:
        db.backup(tmp_path / "backup")
    assert contents(copy) == before
    manifest = newest(tmp_path / "backup")
    assert (manifest.number, manifest.version) == (1, 2)
    assert [len(info.id) for info in manifest.segments] == [8] * 9
    assert len(manifest.active) == 16
    for mode in ("r", "rw"):
        with mldb.open(tmp_path / "backup", mode=mode) as db:
            check_all(db)
    with mldb.open(tmp_path / "backup") as db:
        assert db.store_tensor("more", [1]) > LSNS["end"]
        assert db.verify().ok


# --- going on -------------------------------------------------------------------------------------


def test_the_first_commit_upgrades_it(copy: Path) -> None:
    before = contents(copy)
    old = newest(copy)
    with mldb.open(copy) as db:
        check_all(db)
        assert contents(copy) == before
        lsn = db.store_tensor("more", [1], epoch=6)
        middle = newest(copy)
        assert int(db["more"][0]) == 1
        same(db["single"], SINGLE + 1)
        same(db.query_tensor("single", as_of=0), SINGLE[:10])
    # LSNs go on without a gap, since the store was closed cleanly.
    assert lsn == LSNS["end"] + 2
    after = contents(copy)
    for name, data in before.items():
        if name.startswith(("segments/", "lost+found/")):
            assert after[name][: len(data)] == data
            assert name == OLD_ACTIVE or after[name] == data
    assert len(after[OLD_ACTIVE]) > len(before[OLD_ACTIVE])  # its footer
    for manifest in (middle, newest(copy)):
        assert manifest.version == 2
        assert [info.id for info in manifest.segments] == [fmt.number_id(n) for n in range(1, 10)]
        assert manifest.segments[:-1] == old.segments
        assert len(manifest.active) == 16
        assert manifest.store_id == old.store_id
        assert manifest.jumps == old.jumps
        assert manifest.lsn_ceiling > lsn
    first = load_manifest(OsFileSystem(copy), NEWEST + 1)
    assert first.base is not None
    assert first.base.number == first.number  # whole: no manifest of version 1 is a base
    assert first.predecessor == digest128(before[manifest_name(NEWEST)])
    assert version_of(segments_of(copy)[-1]) == 2
    for mode in ("r", "rw"):
        with mldb.open(copy, mode=mode) as db:
            assert db.recovery.clean
            assert int(db["more"][0]) == 1
            check_past(db)
            check_checkpoint(db)
            check_graph(db)
            assert db.verify().ok


@pytest.mark.parametrize("kind", ["one tensor", "transaction", "spilled", "checkpoint", "rewind"])
def test_every_kind_of_first_commit_upgrades_it(copy: Path, kind: str) -> None:
    with mldb.open(copy, **OPTIONS) as db:
        if kind == "one tensor":
            db["more"] = 1
        elif kind == "transaction":
            with db.transaction() as txn:
                txn["sum"] = txn["beside"] + 1
        elif kind == "spilled":
            with db.transaction() as txn:
                txn["large again"] = SPILLED
                txn["small"] = 2
        elif kind == "checkpoint":
            db.checkpoint({"w": np.arange(3)}, epoch=9)
        else:
            db.rewind("late")
    assert newest(copy).version == 2
    assert version_of(segments_of(copy)[-1]) == 2
    with mldb.open(copy, mode="r") as db:
        assert db.recovery.clean
        check_past_of_both(db)
        check_checkpoint(db)
        assert db.verify().ok
        if kind == "spilled":
            same(db["large again"], SPILLED)
        elif kind == "rewind":
            same(db["smooth"], SMOOTH)
            assert "spilled" not in db


def test_the_store_can_be_continued(copy: Path, rng: np.random.Generator) -> None:
    added = {f"new/{number}": rng.standard_normal((20, 30)) for number in range(8)}
    with mldb.open(copy, **OPTIONS) as db:
        last = db.lsn
        for epoch, (name, array) in enumerate(added.items(), 6):
            assert db.store_tensor(name, array, {"type": "new"}, epoch=epoch) > last
        db.rewind("late")
        db.checkpoint(STATE, epoch=9)
    with mldb.open(copy, mode="r") as db:
        same(db["smooth"], SMOOTH)
        same(db["large"], LARGE)
        assert db.epoch == 9
        assert [item.name for item in db.checkpoints()] == ["epoch-3-step-30", "epoch-9"]
        check_past_of_both(db)
        assert db.verify().ok
    with mldb.open(copy) as db:
        db.rewind(mldb.Lsn(last))
        db.store_tensor("end", np.zeros(1), epoch=5)
        assert {*db} >= {"spilled", "single", "end"}
        assert not any(name.startswith("new/") for name in db)


def check_past_of_both(db: mldb.MLDatabase) -> None:
    same(db.query_tensor("spilled", as_of=mldb.Lsn(LSNS["spilled"])), SPILLED)
    same(db.query_tensor("single", as_of=0), SINGLE[:10])


def test_handles_that_have_it_open_follow_the_upgrade(copy: Path) -> None:
    with mldb.open(copy, mode="r") as reader, mldb.open(copy) as one, mldb.open(copy) as other:
        check_head(reader)
        one["by one"] = 1
        other["by other"] = 2
        one["again"] = 3
        for db in (reader, one, other):
            assert [int(db[name]) for name in ("by one", "by other", "again")] == [1, 2, 3]
            same(db["single"], SINGLE + 1)
        assert reader.verify().ok


# --- repairs --------------------------------------------------------------------------------------


def test_a_torn_tail_of_version_1_is_repaired_by_the_first_commit(copy: Path) -> None:
    with (copy / OLD_ACTIVE).open("ab") as file:
        file.write(fmt.FRAME_MAGIC + b"torn" * 10)
    before = contents(copy)
    for mode in ("r", "rw"):
        with mldb.open(copy, mode=mode) as db:
            check_head(db)
            check_past(db)
            assert contents(copy) == before
        assert contents(copy) == before
    with mldb.open(copy) as db:
        found = db.recovery
        assert (found.clean, found.dropped_bytes, found.file) == (False, 44, OLD_ACTIVE)
        assert found.saved_as == ""
        lsn = db.store_tensor("more", [1], epoch=6)
        saved = db.recovery.saved_as
    # Version 1 had no ceiling: what was given out behind the last LSN cannot be known.
    assert lsn > LSNS["end"] + (1 << 24)
    after = contents(copy)
    assert saved.startswith("lost+found/segment-0000000009-")
    assert after[saved].endswith(b"torn" * 10)
    assert version_of(copy / saved) == version_of(copy / "segments/0000000009.idx") == 1
    assert after[OLD_ACTIVE] == before[OLD_ACTIVE]
    info = newest(copy).segments[-1]
    assert info.length == len(before[OLD_ACTIVE]) - 44
    assert info.index_file == "segments/0000000009.idx"
    with mldb.open(copy) as db:
        assert db.recovery.clean
        assert int(db["more"][0]) == 1
        check_past(db)
        check_checkpoint(db)
        check_graph(db)
        assert db.verify().ok


def test_one_that_was_not_closed_goes_on_far_ahead(copy: Path) -> None:
    """Its last process was killed: without the manifest and hint of a clean close it is as then."""
    (copy / manifest_name(NEWEST)).unlink()
    shutil.rmtree(copy / "hints")
    with mldb.open(copy, mode="r") as db:
        assert db.recovery.clean
        check_all(db)
    with mldb.open(copy) as db:
        check_all(db)
        assert db.store_tensor("more", [1], epoch=6) == LSNS["end"] + (1 << 24) + 1
        assert db.verify().ok
    assert newest(copy).version == 2


def test_a_seal_whose_process_died_before_its_manifest_is_finished(copy: Path) -> None:
    """The footer of the upgrade is there and its manifest is not."""
    aside = shutil.copytree(copy, copy.parent / "aside")
    with mldb.open(aside) as db:
        db["more"] = 1
    os.replace(aside / OLD_ACTIVE, copy / OLD_ACTIVE)
    before = contents(copy)
    for mode in ("r", "rw"):
        with mldb.open(copy, mode=mode) as db:
            check_all(db)
        assert contents(copy) == before
    with mldb.open(copy) as db:
        assert db.store_tensor("more", [2], epoch=6) > LSNS["end"]
        check_past(db)
        assert db.verify().ok
    assert newest(copy).version == 2


def test_damage_in_it_is_found(copy: Path) -> None:
    """In front of the mark nothing is a torn tail, whatever version wrote it."""
    data = bytearray((copy / OLD_ACTIVE).read_bytes())
    data[200] ^= 1
    (copy / OLD_ACTIVE).write_bytes(data)
    shutil.rmtree(copy / "hints")
    before = contents(copy)
    modes: tuple[Any, ...] = ("r", "rw")
    for mode in modes:
        with pytest.raises(mldb.CorruptError, match=OLD_ACTIVE):
            mldb.open(copy, mode=mode)
    assert contents(copy) == before


def test_the_events_of_both_versions_come_in_one_order(copy: Path) -> None:
    with mldb.open(copy) as db:
        check_events(db)
        db.store_tensor("more", [1], epoch=6)
        found = list(db.events())
        assert [event.lsn for event in found] == sorted(event.lsn for event in found)
        assert type(found[-1]).__name__ == "TensorStored"
