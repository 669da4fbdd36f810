"""Histories made by columns, against one version at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.history.versions import Version
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import CommitRow, Lsn, to_time
from mldb.log.index.lineage import is_visible
from mldb.log.moved import MovedIndex
from mldb.log.view import View
from mldb.tensors.codec import unpack_descriptor
from mldb.tensors.scope import Scope
from tests.support.parts import examples

VALUES = [np.float32(1), np.zeros((2, 3), "i8"), np.zeros(0, "u1"), np.ones(40)]

steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "delete", "rewind"]),
        st.sampled_from(["x", "y"]),
        st.integers(0, 3),
        st.integers(0, 2),
    ),
    max_size=14,
)


def play(moves: list[Any], entries: int) -> tuple[mldb.MLDatabase, list[Lsn]]:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os", segment_entries=entries)
    lsns = [Lsn(0)]
    for kind, name, number, later in moves:
        if kind == "put":
            db.store_tensor(name, VALUES[number], epoch=db.epoch + later)
        elif kind == "delete":
            db.pop(name, None)
        else:
            db.rewind(lsns[-1 - number % len(lsns)])
        lsns.append(db.lsn)
    return db, lsns


def one_by_one(scope: Scope, name: str) -> list[Version]:
    found = []
    for entry in scope.view.versions(keys.TENSORS + name.encode()):
        if entry.flags & fmt.ENTRY_TOMBSTONE or not is_visible(entry.commit_lsn, scope.intervals):
            continue
        row = scope.view.commit_at(entry.commit_lsn)
        assert row is not None
        what = unpack_descriptor(entry.attr)
        form = (what.shape, what.dtype, what.nbytes, entry.length, entry.digest.hex())
        found.append(Version(Lsn(row.lsn), row.epoch, to_time(row.time), *form))
    return found


@given(steps, st.integers(1, 6))
@examples(80)
def test_a_history_by_columns_is_the_one_made_version_by_version(
    moves: list[Any], entries: int
) -> None:
    db, lsns = play(moves, entries)
    with db:
        for lsn in lsns:
            for name in ("x", "y", "z"):
                found = db.history(name, as_of=lsn)
                assert found == one_by_one(db._scope(lsn), name)
                assert all(type(version.lsn) is Lsn for version in found)


def test_no_commit_is_looked_up_for_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os", segment_entries=50) as db:
        for epoch in range(220):
            db.store_tensor("x", [epoch], epoch=epoch)
        asked: list[int] = []
        commit_at = View.commit_at

        def noted(view: View, lsn: int) -> CommitRow | None:
            asked.append(lsn)
            return commit_at(view, lsn)

        monkeypatch.setattr(View, "commit_at", noted)
        assert [version.epoch for version in db.history("x")] == list(range(220))
        assert asked == []


def test_versions_of_a_segment_whose_file_was_replaced_are_told_all_the_same() -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os", segment_entries=4) as db:
        for epoch in range(12):
            db.store_tensor("x", [epoch], epoch=epoch)
        expected = db.history("x")
        view = db._log.head()
        head = view._replace()
        part = view.sealed[1]
        moved = MovedIndex(lambda: head, part.info.first_lsn, part.info.last_lsn)

        class Replaced:
            info = part.info
            index = moved

        changed = view._replace(sealed=(view.sealed[0], Replaced(), *view.sealed[2:]))  # type: ignore[arg-type]
        scope = db._scope()._replace(view=changed)
        versions = list(changed.history(keys.TENSORS + b"x", scope.intervals))
        assert sum(len(columns.lsns) for columns in versions) == len(expected) == 12
        assert [key for key, _ in changed.live(keys.TENSORS, scope.intervals)] == [b"\x01x"]


def test_a_version_made_by_columns_is_as_frozen_as_another() -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        db["x"] = 1
        [version] = db.history("x")
        with pytest.raises(AttributeError):
            version.epoch = 2  # type: ignore[misc]
        assert hash(version) == hash(db.history("x")[0])


@settings(max_examples=40)
@given(steps, st.sampled_from([2, 1000]))
def test_a_listing_has_the_version_of_each_handle(moves: list[Any], entries: int) -> None:
    db, lsns = play(moves, entries)
    with db:
        for as_of in (None, *lsns[1:]):
            found = db.listing(as_of=as_of)
            assert list(found) == db.names(as_of=as_of)
            for name, version in found.items():
                handle = db.tensor(name, as_of=as_of)
                assert (version.lsn, version.epoch, version.time) == (
                    *(handle.lsn, handle.epoch, handle.time),
                )
                assert (version.shape, version.nbytes) == (handle.shape, handle.nbytes)
                assert version == db.history(name, as_of=as_of)[-1]
        assert list(db.listing("x")) == db.names("x")
        for limit in range(3):
            assert list(db.listing(limit=limit)) == db.names()[:limit]
        with pytest.raises(mldb.UsageError):
            db.listing(limit=-1)


@settings(max_examples=40)
@given(steps, st.sampled_from([2, 1000]))
def test_every_version_of_a_history_has_a_handle_and_no_other(
    moves: list[Any], entries: int
) -> None:
    db, lsns = play(moves, entries)
    with db:
        for name in ("x", "y"):
            there = {version.lsn for version in db.history(name)}
            for lsn in lsns:
                if lsn in there:
                    assert db.tensor_version(name, lsn).lsn == lsn
                else:
                    with pytest.raises(mldb.VersionGoneError):
                        db.tensor_version(name, lsn)
