"""References of a batch: confirmed under the commit lock, or stored with bytes after all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb import keys
from mldb.log.backup import backup
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import FileSystem
from mldb.write.duplicates import Duplicates
from tests.support.duplicates import bytes_of, entries, found, owner_of, values
from tests.support.logs import open_log
from tests.support.segments import replace_segments

OPTIONS: dict[str, Any] = {"deduplicate": 1, "durability": "os"}
COUNT = 12_000
Write = Callable[[mldb.MLDatabase], None]


def prepared(fs: MemoryFileSystem, **options: Any) -> mldb.MLDatabase:
    """A store whose tensors "old" and "gone" lie in sealed segments, of which "gone" may be cut."""
    with mldb.MLDatabase.on(fs, segment_entries=1, **OPTIONS, **options) as db:
        db["old"] = values(0, COUNT)
        db["gone"] = values(1, COUNT)
        db["last"] = values(2)
    return mldb.MLDatabase.on(fs, **OPTIONS, **options)


def prune(fs: FileSystem, *names: str) -> None:
    """Do what a compactor does whose retention lets go of these names."""
    with_names = {keys.TENSORS + name.encode() for name in names}
    log = open_log(fs, "r")
    replace_segments(log, 2, lambda key, lsn: key not in with_names)
    log.close()


def single(db: mldb.MLDatabase) -> None:
    db.store_tensor("new", values(1, COUNT), {"k": 1})


def by_batch(db: mldb.MLDatabase) -> None:
    with db.transaction() as txn:
        data = values(1, COUNT)
        txn["kept"] = values(0, COUNT)
        txn.store_tensor("new", data, {"k": 1})
        txn["twice"] = data
        txn["more"] = values(9)
        data[:] = 0


def by_checkpoint(db: mldb.MLDatabase) -> None:
    db.checkpoint({"new": values(1, COUNT), "kept": values(0, COUNT)}, epoch=1)


def behind(db: mldb.MLDatabase) -> None:
    db.checkpoint({"new": values(1, COUNT)}, epoch=1, wait=False).result()


def by_pieces(db: mldb.MLDatabase) -> None:
    with db.create_tensor("new", (COUNT,), "int64", {"k": 1}) as writer:
        writer[...] = values(1, COUNT)


def spilled(db: mldb.MLDatabase) -> None:
    with db.transaction() as txn:
        txn["new"] = values(1, COUNT)
        txn["large"] = values(8, 3 * COUNT)


WAYS: list[Write] = [single, by_batch, by_checkpoint, behind, by_pieces, spilled]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("write", WAYS)
def test_an_owner_that_goes_between_the_look_and_the_lock_costs_its_bytes_and_no_failure(
    write: Write, compression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = MemoryFileSystem()
    db = prepared(fs, compression=compression, spill_bytes=2 * COUNT * 8)
    find = Duplicates.find

    def then_prune(self: Duplicates, *args: Any) -> Any:
        owner = find(self, *args)
        if owner is not None and owner.key[1:] == b"gone":
            monkeypatch.setattr(Duplicates, "find", find)
            prune(fs, "gone")
        return owner

    monkeypatch.setattr(Duplicates, "find", then_prune)
    write(db)
    assert "gone" not in db
    assert owner_of(db, "new") is None
    assert found(db, "owners_gone") == (2 if write is by_batch else 1)
    assert db["new"].tolist() == values(1, COUNT).tolist()
    for name, number in (("kept", 0), ("twice", 1)):
        if name in db:
            assert db[name].tolist() == values(number, COUNT).tolist()
    if "kept" in db:
        assert owner_of(db, "kept") == ("old", 2)
    if "large" in db:
        assert db["large"].tolist() == values(8, 3 * COUNT).tolist()
    assert db.metadata("new") == ({"k": 1} if write in (single, by_batch, by_pieces) else {})
    assert db.verify().ok
    assert fs.list("pending") == []
    db.close()
    with mldb.MLDatabase.on(fs) as again:
        assert again["new"].tolist() == values(1, COUNT).tolist()


@pytest.mark.parametrize("write", WAYS)
def test_an_owner_that_lies_elsewhere_by_then_is_still_the_owner(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = MemoryFileSystem()
    db = prepared(fs, spill_bytes=2 * COUNT * 8)
    find = Duplicates.find

    def then_move(self: Duplicates, *args: Any) -> Any:
        owner = find(self, *args)
        if owner is not None:
            prune(fs)
        return owner

    monkeypatch.setattr(Duplicates, "find", then_move)
    write(db)
    monkeypatch.setattr(Duplicates, "find", find)
    assert owner_of(db, "new") == ("gone", int(entries(db, "gone")[0].commit_lsn))
    assert db["new"].tolist() == values(1, COUNT).tolist()
    assert found(db, "owners_gone") == 0
    assert db.verify().ok
    db.close()


def rewind(other: mldb.MLDatabase) -> None:
    other.rewind(mldb.Lsn(2))


def delete(other: mldb.MLDatabase) -> None:
    del other["gone"]


def overwrite(other: mldb.MLDatabase) -> None:
    other["gone"] = values(50, COUNT)


def seal(other: mldb.MLDatabase) -> None:
    log = other._log
    with log.sequencer.lock.hold() as guard:
        log.state.begin_writing(guard.key)
        log.sequencer.catch_up()
        log.sequencer.seal()
        log.state.end_writing()


@pytest.mark.parametrize("act", [rewind, delete, overwrite, seal])
@pytest.mark.parametrize("write", WAYS)
def test_what_another_writer_does_between_the_look_and_the_lock_takes_no_owner_away(
    write: Write, act: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that is seen no more is there all the same, and a reference finds it."""
    fs = MemoryFileSystem()
    with prepared(fs, spill_bytes=2 * COUNT * 8) as db:
        with mldb.MLDatabase.on(fs, **OPTIONS) as other:
            find = Duplicates.find

            def then_act(self: Duplicates, *args: Any) -> Any:
                owner = find(self, *args)
                monkeypatch.setattr(Duplicates, "find", find)
                act(other)
                return owner

            monkeypatch.setattr(Duplicates, "find", then_act)
            write(db)
        assert db["new"].tolist() == values(1, COUNT).tolist()
        owner = owner_of(db, "new")
        assert owner is not None
        assert owner[0] == "gone"
        assert db.verify().ok


def test_a_conflict_is_still_a_conflict() -> None:
    with prepared(MemoryFileSystem()) as db:

        def read_and_refer() -> None:
            with db.transaction() as txn:
                assert txn["last"].shape == (500,)
                txn["new"] = values(1, COUNT)
                db["last"] = values(3)

        with pytest.raises(mldb.ConflictError):
            read_and_refer()
        assert "new" not in db


def test_a_checkpoint_that_gave_up_a_reference_and_is_planned_anew_still_has_its_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bytes belonged to the first try: the second, under another name, lost the tensor."""
    fs = MemoryFileSystem()
    with prepared(fs) as db, mldb.MLDatabase.on(fs, **OPTIONS) as other:
        commit = mldb.MLDatabase._commit
        acts: list[Callable[[], object]] = [
            lambda: prune(fs, "gone"),
            lambda: other.checkpoint({"theirs": values(60)}, epoch=1),
        ]

        def then(self: mldb.MLDatabase, *args: Any, **more: Any) -> Any:
            if self is db and acts:
                acts.pop(0)()
            return commit(self, *args, **more)

        monkeypatch.setattr(mldb.MLDatabase, "_commit", then)
        taken = db.checkpoint({"new": values(1, COUNT), "kept": values(0, COUNT)}, epoch=1)
        assert not acts
        assert taken.name == "epoch-1~2"
        assert (owner_of(db, "new"), owner_of(db, "kept")) == (None, ("old", 2))
        back = db.load(None)
        assert back["new"].tolist() == values(1, COUNT).tolist()
        assert back["kept"].tolist() == values(0, COUNT).tolist()
        assert db.verify().ok


def test_bytes_that_went_with_their_owner_are_an_error_and_no_other_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a failed sync a system may forget what was in a file that is mapped here."""
    fs = MemoryFileSystem()
    db = prepared(fs)
    find = Duplicates.find

    def then_lose(self: Duplicates, *args: Any) -> Any:
        owner = find(self, *args)
        prune(fs, "gone")
        assert owner is not None
        return owner._replace(data=memoryview(bytes(COUNT * 8)))

    def refer_to_it() -> None:
        with db.transaction() as txn:
            txn["new"] = values(1, COUNT)

    monkeypatch.setattr(Duplicates, "find", then_lose)
    with pytest.raises(mldb.StorageIOError, match=r"'new'.*Nothing was stored; store it again"):
        refer_to_it()
    monkeypatch.setattr(Duplicates, "find", find)
    assert "new" not in db
    refer_to_it()
    assert db["new"].tolist() == values(1, COUNT).tolist()
    db.close()


# --- who else has to know -------------------------------------------------------------------------


def test_a_reference_without_its_owner_is_told_by_verify_and_is_no_other_value() -> None:
    """Also where another process made the damage: no compactor may drop what is referred to."""
    fs = MemoryFileSystem()
    with prepared(fs) as db:
        single(db)
        db["again"] = values(0, COUNT)
        assert db.verify().ok
    prune(fs, "gone")
    with mldb.MLDatabase.on(fs, **OPTIONS) as db:
        [problem] = db.verify().problems
        assert "'\\x01new'" in problem.message.replace("b'", "'")
        assert "is not there" in problem.message
        assert problem.lsns == (int(entries(db, "new")[0].commit_lsn),)
        with pytest.raises(mldb.CorruptError, match="is not there"):
            db["new"].tolist()
        assert db["again"].tolist() == values(0, COUNT).tolist()
        db["new"] = values(1, COUNT)
        assert owner_of(db, "new") is None
        assert db["new"].tolist() == values(1, COUNT).tolist()


def test_a_backup_has_references_and_owners(tmp_path: Path) -> None:
    fs = MemoryFileSystem()
    with prepared(fs) as db:
        single(db)
        target = MemoryFileSystem()
        backup(db._log, target, None)
        with mldb.MLDatabase.on(target) as copy:
            assert copy["new"].tolist() == values(1, COUNT).tolist()
            assert owner_of(copy, "new") == ("gone", owner_of(db, "new")[1])  # type: ignore[index]
            assert copy.verify().ok


def test_history_and_events_tell_of_a_reference_what_they_tell_of_any_version() -> None:
    told = []
    for deduplicate in (1, False):
        with mldb.MLDatabase.on(MemoryFileSystem(), deduplicate=deduplicate) as db:
            for _ in range(3):
                db.store_tensor("a", values(1), {"n": 1})
            with db.transaction() as txn:
                txn["b"], txn["c"] = values(1), values(2)
            history = [(item.nbytes, item.shape, item.digest) for item in db.history("a")]
            events = [
                (type(event).__name__, event.name, event.nbytes, event.metadata)  # type: ignore[attr-defined]
                for event in db.events()
            ]
            told.append((history, sorted(map(repr, events))))
            stored = [item.stored_bytes for item in db.history("a")]
            assert stored == ([4000, 0, 0] if deduplicate else [4000] * 3)
    assert told[0] == told[1]


def test_thousands_of_references_share_few_frames() -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), **OPTIONS) as db:
        names = [f"layer.{number:05}.weight" for number in range(3000)]
        db["w"] = np.ones(200)
        before = bytes_of(db)
        with db.transaction() as txn:
            for name in names:
                txn[name] = np.ones(200)
        assert (bytes_of(db) - before) / len(names) < 100
        assert sum(1 for event in db.events() if getattr(event, "nbytes", 0) == 1600) == 3001
        assert all(owner_of(db, name) == ("w", 2) for name in names[::100])


def test_references_are_confirmed_again_when_a_commit_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One owner after another goes, each right before the lock."""
    fs = MemoryFileSystem()
    db = prepared(fs)
    commit = mldb.MLDatabase._commit
    left = ["gone", "old"]

    def prune_one(self: mldb.MLDatabase, *args: Any, **more: Any) -> Any:
        if left:
            name = left.pop(0)
            log = open_log(fs, "r")
            count = len(log.head().sealed)
            gone = keys.TENSORS + name.encode()
            replace_segments(log, count, partial(lambda gone, key, lsn: key != gone, gone))
            log.close()
        return commit(self, *args, **more)

    monkeypatch.setattr(mldb.MLDatabase, "_commit", prune_one)
    with db.transaction() as txn:
        txn["a"] = values(1, COUNT)
        txn["b"] = values(0, COUNT)
    assert not left
    assert (owner_of(db, "a"), owner_of(db, "b")) == (None, None)
    assert db["a"].tolist() == values(1, COUNT).tolist()
    assert db["b"].tolist() == values(0, COUNT).tolist()
    db.close()
