"""Snapshots: the whole read surface, fixed at one commit, whatever happens to the store."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mldb
from mldb.log.fs.posix import OsFileSystem
from mldb.log.readers import NEEDS_NOTHING, Reader, registrations


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os", segment_bytes=20_000) as database:
        yield database


def registered(db: mldb.MLDatabase) -> list[Reader]:
    return registrations(OsFileSystem(db.path))


def surface(reader: Any) -> dict[str, Any]:
    """Everything that a database or a snapshot answers, as plain values."""
    return {
        "names": list(reader),
        "count": len(reader),
        "values": {name: reader[name].tolist() for name in reader},
        "query": {name: reader.query_tensor(name).tolist() for name in reader.names()},
        "parts": {name: reader.tensor(name)[:1].tolist() for name in reader},
        "metadata": {name: reader.metadata(name) for name in reader},
        "history": {name: reader.history(name) for name in reader},
        "relationships": reader.relationships(),
        "checkpoints": reader.checkpoints(),
        "state": {key: value.tolist() for key, value in reader.state_dict().items()},
        "loaded": {key: value.tolist() for key, value in reader.load(None).items()},
        "point": (reader.lsn, reader.epoch),
    }


def test_a_snapshot_answers_as_the_database_did(db: mldb.MLDatabase) -> None:
    taken = []
    for epoch in range(6):
        db.store_tensor("x", np.arange(500) + epoch, {"epoch": epoch}, epoch=epoch)
        db.store_tensor(f"only{epoch}", [epoch])
        db.create_relationship("x", f"only{epoch}", "feeds_into", {"epoch": epoch})
        db.checkpoint({"w": torch.full((3,), epoch)}, epoch=epoch)
        taken.append((db.at(), surface(db)))
    db.delete_tensor("only2")
    db.rewind(1)
    db.store_tensor("x", [0], epoch=1)
    db.tag("late")
    for snapshot, expected in taken:
        assert surface(snapshot) == expected
        with db.at(snapshot.lsn) as again:
            assert surface(again) == expected
            assert again.time == snapshot.time
        assert repr(snapshot) == f"<Snapshot epoch={snapshot.epoch} lsn={snapshot.lsn}>"
        snapshot.close()


def test_as_of_inside_a_snapshot_is_seen_from_it(db: mldb.MLDatabase) -> None:
    lsns = [db.store_tensor("x", epoch, epoch=epoch) for epoch in range(5)]
    with db.at(3) as snapshot:
        assert int(snapshot["x"]) == 3
        assert int(snapshot.query_tensor("x", as_of=1)) == 1
        assert int(snapshot.query_tensor("x", as_of=99)) == 3  # beyond its head: its head
        assert int(snapshot.query_tensor("x", as_of=lsns[2])) == 2
        assert int(snapshot.query_tensor("x", as_of=lsns[4])) == 4  # a commit named outright
        assert [v.epoch for v in snapshot.history("x", as_of=1)] == [0, 1]
        db.rewind(0)
        db.store_tensor("x", 77, epoch=2)
        assert int(snapshot.query_tensor("x", as_of=2)) == 2  # along its own lineage
    assert int(db.query_tensor("x", as_of=2)) == 77


def test_a_closed_snapshot_is_refused_and_its_arrays_live_on(db: mldb.MLDatabase) -> None:
    db["x"] = np.arange(5000)
    with db.at() as snapshot:
        array, handle = snapshot["x"], snapshot.tensor("x")
    snapshot.close()
    for call in (lambda: snapshot["x"], lambda: len(snapshot), snapshot.tags, snapshot.checkpoints):
        with pytest.raises(mldb.ClosedError, match=r"db\.at"):
            call()
    assert (snapshot.lsn, snapshot.epoch) == (db.lsn, 0)
    np.testing.assert_array_equal(array, np.arange(5000))
    np.testing.assert_array_equal(handle[10:20], np.arange(10, 20))


def test_a_snapshot_has_no_writing_verbs(db: mldb.MLDatabase) -> None:
    with db.at() as snapshot:
        for verb in ("store_tensor", "delete_tensor", "checkpoint", "rewind", "transaction", "tag"):
            assert not hasattr(snapshot, verb)
        with pytest.raises(TypeError):
            snapshot["x"] = 1  # type: ignore[index]


def test_the_lowest_commit_in_use_is_registered(db: mldb.MLDatabase) -> None:
    lsns = [db.store_tensor("x", number) for number in range(3)]
    assert registered(db) == []
    first, second, again = db.at(lsns[0]), db.at(lsns[1]), db.at(lsns[0])
    for close, lowest in ((None, lsns[0]), (first, lsns[0]), (again, lsns[1])):
        if close is not None:
            close.close()
        (reader,) = registered(db)
        assert reader.lowest == lowest
    second.close()
    (reader,) = registered(db)
    assert reader.lowest == NEEDS_NOTHING
    with mldb.open(db.path, mode="r") as other, other.at(lsns[2]):
        assert sorted(reader.lowest for reader in registered(db)) == [lsns[2], NEEDS_NOTHING]
    with db.transaction() as txn:
        assert registered(db)[0].lowest == NEEDS_NOTHING  # nothing was read yet
        txn["x"]
        assert registered(db)[0].lowest == lsns[2]
    assert registered(db)[0].lowest == NEEDS_NOTHING
    db.close()
    assert list((Path(db.path) / "readers").iterdir()) == []


def test_a_dropped_snapshot_gives_its_commit_free(db: mldb.MLDatabase) -> None:
    """Reading with ``db.at(1)["w"]`` closes nothing."""
    lsns = [db.store_tensor("w", number, epoch=number) for number in range(3)]
    for _ in range(3):
        assert int(db.at(1)["w"]) == 1
    dropped, kept = db.at(0), db.at(2)
    array = dropped["w"]
    gc.collect()
    assert registered(db)[0].lowest == lsns[0]
    del dropped
    gc.collect()
    assert int(array) == 0
    with db.at(2):  # at the latest when the registration is next spoken to
        assert registered(db)[0].lowest == lsns[2]
    kept.close()
    (reader,) = registered(db)
    assert reader.lowest == NEEDS_NOTHING


def test_a_hold_is_given_back_once_however_often_and_by_whom(db: mldb.MLDatabase) -> None:
    lsn = db.store_tensor("w", 0)
    db.store_tensor("w", 1)
    other = db.at(lsn)
    for _ in range(20):
        snapshot = db.at(lsn)
        start = threading.Barrier(4)

        def close(snapshot: mldb.Snapshot = snapshot, start: threading.Barrier = start) -> None:
            start.wait()
            snapshot.close()

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        snapshot.close()
        del snapshot, close
        gc.collect()
        assert registered(db)[0].lowest == lsn  # what another snapshot holds is still held
    other.close()
    assert registered(db)[0].lowest == NEEDS_NOTHING


def test_a_forked_child_gives_nothing_of_its_parent_free(db: mldb.MLDatabase) -> None:
    lsns = [db.store_tensor("w", number) for number in range(2)]
    closed, dropped = db.at(lsns[0]), [db.at(lsns[0])]
    (before,) = registered(db)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            closed.close()
            dropped.clear()
            gc.collect()
            held = db._source.log.registration
            status = 0 if not held._given_up and [*held._needs.values()] == 2 * lsns[:1] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert registered(db) == [before]
    closed.close()
    assert registered(db)[0].lowest == lsns[0]
    dropped.clear()
    with db.at(lsns[1]):
        assert registered(db)[0].lowest == lsns[1]


def test_a_snapshot_that_could_not_be_held_has_nothing_to_give_back(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    db["w"] = 0
    given: list[int] = []

    def refuse(lsn: int) -> None:
        raise mldb.StorageIOError("refused")

    registration = db._source.log.registration
    monkeypatch.setattr(registration, "hold", refuse)
    monkeypatch.setattr(registration, "give_up", given.append)
    monkeypatch.setattr(registration, "release", given.append)
    with pytest.raises(mldb.StorageIOError, match="refused"):
        db.at()
    gc.collect()
    assert given == []


def test_views_stay_as_they_are_through_rewind_close_and_removal(store_path: Path) -> None:
    values = {f"t{n}": np.arange(400_000, dtype="f4") + n for n in range(3)}
    with mldb.open(store_path, durability="os", map_bytes=0, segment_bytes=2_000_000) as db:
        db.update(values)
        views = {name: db[name] for name in db}
        parts = {name: db.tensor(name)[100:200_000] for name in db}
        handles = {name: db.tensor(name) for name in db}
        tensors = {name: handle.torch() for name, handle in handles.items()}
        before = db.lsn
        for number in range(3):
            db[f"t{number}"] = np.zeros(3)
        db.rewind(before)
    with mldb.open(store_path) as db:
        db["t0"] = np.ones(3)
    for file in sorted(store_path.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    for name, value in values.items():
        np.testing.assert_array_equal(views[name], value)
        np.testing.assert_array_equal(parts[name], value[100:200_000])
        np.testing.assert_array_equal(tensors[name].numpy(), value)
        np.testing.assert_array_equal(handles[name][7:9], value[7:9])
