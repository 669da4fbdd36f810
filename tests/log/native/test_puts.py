"""What the compiled twin answers about a commit: the look before it, and the view behind it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.index.address import EMPTY_COMMIT
from mldb.log.lock import LOCK
from mldb.log.view import EMPTY_VIEW, View, view_after
from mldb.tensors.codec import prepare

pytestmark = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")

LSNS = st.integers(0, fmt.LSN_MAX)
PAIRS = st.lists(st.tuples(LSNS, LSNS), min_size=1, max_size=4).map(tuple)


# --- the look before a commit ---------------------------------------------------------------------


def test_a_path_and_a_file_are_looked_at(tmp_path: Path) -> None:
    twin: Any = native.twin
    fs = OsFileSystem(tmp_path)
    for name, size in (("one", 7), ("two", 9)):
        (tmp_path / name).write_bytes(bytes(size))
    path, file = os.fsencode(tmp_path / "one"), fs.open("two", "r")
    seen: Any = fs.look("one")
    assert seen[2] == 7
    assert twin.is_unchanged(path, seen, file, 9) is True
    device, inode, length = seen
    for other in (
        *((device + 1, inode, length), (device, inode + 1, length), (device, inode, length + 1)),
        *((device, inode), (*seen, 0), list(seen), None, (None, None, None)),
    ):
        assert twin.is_unchanged(path, other, file, 9) is False
    for size in (8, 10, 0, -1):
        assert twin.is_unchanged(path, seen, file, size) is False
    assert twin.is_unchanged(b"", seen, file, 9) is False
    assert twin.is_unchanged(os.fsdecode(path), seen, file, 9) is False
    assert twin.is_unchanged(path, seen, MemoryFileSystem(), 9) is False
    file.close()
    assert twin.is_unchanged(path, seen, file, 9) is False
    (tmp_path / "one").unlink()
    assert twin.is_unchanged(path, seen, fs.open("two", "r"), 9) is False


def test_a_store_that_was_moved_away_is_noticed_before_a_commit(tmp_path: Path) -> None:
    """The twin finds another file, or none, and Python says which."""
    place = tmp_path / "store"
    with mldb.open(place, durability="os") as db:
        db["a"] = np.ones(8)
        place.rename(tmp_path / "elsewhere")
        with pytest.raises(mldb.MldbError, match="no longer the store"):
            db["b"] = np.ones(8)
        place.mkdir()
        (place / LOCK).write_bytes(bytes((tmp_path / "elsewhere" / LOCK).stat().st_size))
        with pytest.raises(mldb.MldbError, match="no longer the store"):
            db["b"] = np.ones(8)
        (place / LOCK).unlink()
        place.rmdir()
        (tmp_path / "elsewhere").rename(place)
        db["b"] = np.ones(8)
        assert list(db) == ["a", "b"]


# --- the view behind it ---------------------------------------------------------------------------


@given(PAIRS, LSNS, LSNS)
def test_the_view_of_a_commit_that_follows(pairs: Any, head: int, lsn: int) -> None:
    twin: Any = native.twin
    view = EMPTY_VIEW._replace(commit=EMPTY_COMMIT._replace(lsn=head), intervals=pairs)
    row = EMPTY_COMMIT._replace(lsn=lsn, parent=head)
    made = twin.following_view(view, row)
    assert type(made) is View
    assert made == view_after(view, row)
    assert made.intervals[-1] == (pairs[-1][0], lsn)
    assert all(one is two for one, two in zip(made[2:], view[2:], strict=True))
    other = row._replace(parent=head ^ 1)
    assert twin.following_view(view, other) is None


def test_what_follows_nothing_is_left_to_python() -> None:
    twin: Any = native.twin
    view: Any = EMPTY_VIEW._replace(intervals=((1, 2),))
    odd: Any
    assert twin.following_view(EMPTY_VIEW, EMPTY_COMMIT) is None
    for odd in (tuple(view), None, view._replace(intervals=[(1, 2)]), view._replace(commit=None)):
        assert twin.following_view(odd, EMPTY_COMMIT) is None
    assert twin.following_view(view._replace(intervals=((1, 2, 3),)), EMPTY_COMMIT) is None
    assert twin.following_view(view._replace(intervals=([1, 2],)), EMPTY_COMMIT) is None
    for odd in (tuple(EMPTY_COMMIT), None, 7):
        assert twin.following_view(view, odd) is None


# --- arrays of a transaction ----------------------------------------------------------------------


def test_arrays_are_packed_in_the_thread_of_the_transaction_only() -> None:
    twin: Any = native.twin
    data = np.arange(9.0)
    prepare(data)
    db = mldb.MLDatabase.on(MemoryFileSystem())
    txn = db.transaction()
    assert txn._room == ()
    assert twin.pack_array("early", data, txn._room) is None
    with txn:
        txn.store_tensor("first", data)  # it opens a pack
        room = txn._room
        assert twin.pack_array("second", data, room)
        answers: list[object] = []
        other = threading.Thread(target=lambda: answers.append(twin.pack_array("o", data, room)))
        other.start()
        other.join()
        assert answers == [None]
        for odd in ((), room[:-1], (*room, 0), (None, *room[1:]), (*room[:1], None, *room[2:])):
            assert twin.pack_array("third", data, odd) is None
    assert txn._room == ()
    assert list(db) == ["first", "second"]
    db.close()
