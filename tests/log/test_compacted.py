"""Compacted segments as they are written: the bytes of FORMAT.md section 4, and who reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.checksum import digest128
from mldb.log.file_header import decode_file_header
from mldb.log.frame import check_body, decode_entries, decode_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.index.mapped import MappedIndex
from mldb.log.lock import LOCK
from mldb.log.manifest import manifest_name
from mldb.log.newest import load_newest
from mldb.log.orphans import orphans
from mldb.log.segment import segment_name
from tests.support.compacting import compact_all, kept_of, view_of
from tests.support.files import contents_of, read_file
from tests.support.logs import counted_ids
from tests.support.segments import segment_names

DIGEST = "dbad07293b7ad74c99355f4621f5cb90"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> MemoryFileSystem:
    """A store with one compacted segment: tensors, metadata, a rewind, a tag, pruned commits."""
    monkeypatch.setattr(os, "urandom", np.random.default_rng(7).bytes)
    fs = MemoryFileSystem()
    with counted_ids(), mldb.MLDatabase.on(fs) as db:
        for epoch in range(4):
            with db.transaction(epoch) as txn:
                txn.store_tensor("w", np.full(30_000, epoch, "<f4"), {"epoch": epoch})
                txn.store_tensor("b", np.arange(3, dtype="<i2") + epoch)
        db.tag("first", 0)
        db.rewind(2)
        db.store_tensor("w", np.zeros(2, "<f8"), epoch=3)
        db.retention.set(last=1)
        compact_all(db)
        db.store_tensor("later", np.zeros(1, "<f8"), epoch=4)
    return fs


def compacted(fs: MemoryFileSystem) -> tuple[Any, bytes]:
    (info,) = load_newest(fs, []).segments
    assert info.kind == fmt.FILE_COMPACTED
    return info, read_file(fs, segment_name(info.id))


def test_a_compacted_segment_is_written_in_the_same_bytes(small: MemoryFileSystem) -> None:
    """Change this digest together with FORMAT.md and the version."""
    _, data = compacted(small)
    assert digest128(data).hex() == DIGEST


def test_a_compacted_segment_is_as_the_page_says(small: MemoryFileSystem) -> None:
    info, data = compacted(small)
    header = decode_file_header(data[: fmt.FILE_HEADER_SIZE], "x")
    manifest = load_newest(small, [])
    assert (header.kind, header.id, header.store_id) == (2, info.id, manifest.store_id)
    assert header.published <= manifest.number
    assert header.base_lsn == 1
    assert len(data) == info.length
    seed, offset = fmt.file_seed(info.origin, info.id), fmt.FILE_HEADER_SIZE
    heads, keyed, unkeyed = [chain_start(info.origin, info.id)], [], []
    while offset < info.index_offset:
        frame = decode_header(data, offset, seed, len(data))
        body = check_body(data, frame)
        heads.append(data[offset : offset + fmt.FRAME_HEADER_SIZE])
        if frame.header.flags & fmt.FLAG_KEYED:
            drafts, _ = decode_entries(body, frame)
            keyed.append((drafts[0].key, frame.header.lsn, frame.header.commit_lsn))
        else:
            assert not keyed
            unkeyed.append(frame.header.kind & ~fmt.MUST_UNDERSTAND)
        offset = frame.end
    assert unkeyed == [28]  # the rewind
    assert keyed == sorted(keyed)
    assert info.chain == digest128(b"".join(heads))
    with mldb.MLDatabase.on(small, mode="r") as db:
        (part,) = view_of(db).sealed
        index = part.index
        assert isinstance(index, MappedIndex)
        rows = {
            (key, entry.commit_lsn): index.reader.value("row_lsn", number)
            for number, (key, entry) in enumerate(
                (key, entry) for key in index.keys(b"") for entry in index.versions(key)
            )
        }
        assert {(key, commit): lsn for key, lsn, commit in keyed}.items() <= rows.items()
        commits = list(index.commits(1, fmt.LSN_MAX))
        assert len(commits) == 8
        assert sum(row.start != row.end for row in commits) == 1
        assert len(kept_of(db)) == 5  # of the tag, of epochs and head; the abandoned one


def test_an_orphan_that_is_a_copy_is_removed_and_one_that_is_not_is_an_error(
    small: MemoryFileSystem, tmp_path: Path
) -> None:
    """A compaction was killed before its manifest; or the manifest was deleted behind it."""
    with mldb.MLDatabase.on(small, durability="os") as db:
        before = contents_of(small)
        compact_all(db)
        after = contents_of(small)
    new = sorted(name for name in after.keys() - before.keys() if name.startswith("segments/"))
    # Its manifest is not there, what it replaces is.
    state = MemoryFileSystem()
    for folder in ("segments", "pending", "readers", "hints", "lost+found"):
        state.mkdir(folder)
    for name, data in {**before, new[0]: after[new[0]]}.items():
        if not name.startswith(("readers/", "pending/")):
            state.open(name, "create").pwritev([data], 0)
    number = load_newest(state, []).number
    lock = state.open(LOCK, "rw")
    lock.pwritev([bytes(1)], number)  # announced
    assert [item.kind for item in orphans(state, load_newest(state, []))][:1]
    with mldb.MLDatabase.on(state, durability="os") as db:
        db.store_tensor("x", np.arange(2))
        assert db.verify().ok
        db.compact()
    assert sorted(segment_names(state)) == sorted(
        f"segments/{name}" for name in state.list("segments")
    )
    assert not state.list("lost+found")


def test_a_store_whose_newest_manifest_was_deleted_behind_a_compaction_says_so(
    tmp_path: Path,
) -> None:
    with mldb.open(tmp_path / "s", segment_bytes=4000) as db:
        for epoch in range(8):
            db.store_tensor("w", np.arange(200) + epoch, epoch=epoch)
        compact_all(db)
        newest = db.stats()["manifest"]
    fs = OsFileSystem(tmp_path / "s")
    for number in range(newest, newest + 9):
        fs.unlink(manifest_name(number))
    with pytest.raises(CorruptError, match=r"manifest|missing"):
        mldb.open(tmp_path / "s")


def test_an_active_segment_that_was_sealed_and_compacted_meanwhile_is_followed() -> None:
    """A reader that slept for a whole compaction, and one that opens in the middle of it."""
    fs = MemoryFileSystem()
    db = mldb.MLDatabase.on(fs, durability="os")
    db.store_tensor("w", np.arange(5))
    reader = mldb.MLDatabase.on(fs, mode="r")
    array = reader["w"]
    held = load_newest(fs, [])
    compact_all(db)
    db.store_tensor("w", np.arange(6))
    compact_all(db)
    assert not fs.exists(segment_name(held.active))
    assert len(reader["w"]) == 6
    assert array.tolist() == list(range(5))
    db.store_tensor("w", np.arange(7))
    target = segment_name(load_newest(fs, []).active)
    calls: list[str] = []

    class Late(MemoryFileSystem):
        def open(self, name: str, mode: Any) -> Any:
            if name == target and not calls:
                calls.append(name)
                compact_all(db)
            return super().open(name, mode)

    fs.__class__ = Late
    fresh = mldb.MLDatabase.on(fs, mode="r")
    assert calls
    assert len(fresh["w"]) == 7
    assert fresh.verify().ok
    fs.__class__ = MemoryFileSystem


def test_who_registers_waits_for_a_manifest_that_is_being_made(tmp_path: Path) -> None:
    """Whoever announced it may have read the registrations already."""
    with mldb.open(tmp_path / "s", lock_timeout=0.5) as db:
        db.store_tensor("w", np.arange(5), epoch=0)
        state = db._log.state
        state.announce(state.next_number)  # by a process that died then
        with db.at(0) as snapshot:
            assert len(snapshot["w"]) == 5
        with mldb.open(tmp_path / "s", mode="r", lock_timeout=0.2) as reader:
            other = OsFileSystem(tmp_path / "s").lock(LOCK)
            assert other.try_acquire()
            with reader.at(0) as snapshot:  # waits for as long as it may, and goes on
                assert len(snapshot["w"]) == 5
            other.close()
            with reader.at(0) as snapshot:
                assert len(snapshot["w"]) == 5
