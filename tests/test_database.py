"""The database as one process sees it: a mapping, a handle with a life, a folder on disk."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log.fs.memory import MemoryFileSystem

NAMES = ("a", "b", "b/c", "é", "layer.0.weight")

# One step on a mapping: what to do, with which name, with which number.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("set", "del", "pop", "pop_default", "setdefault", "update", "popitem")),
        st.sampled_from(NAMES),
        st.integers(0, 99),
    ),
    max_size=25,
)


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def files_of(path: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder below *path* with length, time of change and inode."""
    return {
        str(item.relative_to(path)): (
            item.stat().st_size if item.is_file() else 0,
            item.stat().st_mtime_ns,
            item.stat().st_ino,
        )
        for item in sorted(path.rglob("*"))
    }


# --- the mapping ----------------------------------------------------------------------------------


def step(mapping: MutableMapping[str, Any], verb: str, name: str, number: int) -> object:
    """Do one step; what it gave, or the exception that it raised."""
    try:
        match verb:
            case "set":
                mapping[name] = number
            case "del":
                del mapping[name]
            case "pop":
                return int(mapping.pop(name))
            case "pop_default":
                return int(mapping.pop(name, number))
            case "setdefault":
                return int(mapping.setdefault(name, number))
            case "update":
                mapping.update({name: number, NAMES[0]: number + 1})
    except KeyError:
        return KeyError
    return None


@given(steps=STEPS)
def test_it_is_the_mapping_that_a_dict_is(steps: list[tuple[str, str, int]]) -> None:
    model: dict[str, Any] = {}
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        for verb, name, number in steps:
            if verb == "popitem":
                if model:
                    key, value = db.popitem()
                    assert model.pop(key) == int(value)
                continue
            assert step(db, verb, name, number) == step(model, verb, name, number)
            assert {key: int(value) for key, value in db.items()} == model
            assert list(db) == sorted(model, key=str.encode)
            assert len(db) == len(model)
            assert [key in db for key in NAMES] == [key in model for key in NAMES]
        assert sorted(int(value) for value in db.values()) == sorted(model.values())
        db.clear()
        assert not db
        assert list(db) == []
        with pytest.raises(KeyError):
            db.popitem()


def test_get_and_contains_take_anything(db: mldb.MLDatabase) -> None:
    db["x"] = [1, 2]
    assert db.get("y") is None
    assert db.get("y", 7) == 7
    assert "x" in db
    foreign: tuple[Any, ...] = (5, None, "..", "", "/x", "\ud800", b"x")
    assert not any(key in db for key in foreign)


def test_iteration_keeps_the_names_of_its_beginning(db: mldb.MLDatabase) -> None:
    db.update({"a": 1, "b": 2, "c": 3})
    seen = []
    for name in db:
        seen.append(name)
        del db[name]
        db[name + "x"] = 1
    assert seen == ["a", "b", "c"]
    assert list(db) == ["ax", "bx", "cx"]


def test_names_are_in_byte_order_and_found_by_prefix(db: mldb.MLDatabase) -> None:
    for name in ("z", "layer1/w", "layer10/w", "layer1", "é", "layer2/w", "Z"):
        db[name] = 0
    assert db.names() == sorted(db.names(), key=str.encode)
    assert db.names("layer1") == ["layer1", "layer1/w", "layer10/w"]
    assert db.names("layer1/") == ["layer1/w"]
    assert db.names("none") == []
    assert db.names("\ud800") == []
    assert db.names("layer", as_of=-1) == []
    with pytest.raises(mldb.InvalidTypeError):
        db.names(3)  # type: ignore[arg-type]


def test_a_handle_equals_itself_only(db: mldb.MLDatabase, store_path: Path) -> None:
    db["x"] = np.arange(3)
    with mldb.open(store_path) as other:
        assert db == db  # noqa: PLR0124 - a mapping of arrays would compare their values
        assert db != other
        assert db != dict(other)
        assert len({db, other}) == 2


# --- metadata -------------------------------------------------------------------------------------


def test_metadata_stays_until_it_is_replaced(db: mldb.MLDatabase) -> None:
    db.store_tensor("x", [1], {"type": "weights", "n": 1}, epoch=1)
    db.store_tensor("x", [2], epoch=2)
    assert db.metadata("x") == {"type": "weights", "n": 1}
    db.set_metadata("x", {"n": 2}, epoch=3)
    assert db.metadata("x") == db.tensor("x").metadata == {"n": 2}
    np.testing.assert_array_equal(db["x"], [2])
    db.store_tensor("x", [3], {}, epoch=4)
    assert db.metadata("x") == {}
    assert [db.metadata("x", as_of=epoch).get("n") for epoch in (1, 2, 3, 4)] == [1, 1, 2, None]
    for name in ("y", "..."):
        with pytest.raises((mldb.TensorNotFoundError, mldb.InvalidNameError)):
            db.set_metadata(name, {})
    assert len(db.history("x")) == 3  # metadata is no version of the tensor


def test_deleting_ends_tensor_and_metadata_from_here_on(db: mldb.MLDatabase) -> None:
    db.store_tensor("x", [1], {"n": 1}, epoch=1)
    lsn = db.delete_tensor("x", epoch=2)
    assert lsn == db.lsn
    with pytest.raises(mldb.TensorNotFoundError, match="'x'"):
        db.metadata("x")
    db.store_tensor("x", [2], epoch=3)
    assert db.metadata("x") == {}
    assert db.metadata("x", as_of=1) == {"n": 1}
    assert [version.epoch for version in db.history("x")] == [1, 3]
    with pytest.raises(KeyError):
        db.delete_tensor("y")


def test_missing_names_come_with_a_suggestion(db: mldb.MLDatabase) -> None:
    db["encoder/weight"] = 1
    with pytest.raises(mldb.TensorNotFoundError, match="Did you mean 'encoder/weight'"):
        db["encoder/wieght"]
    with pytest.raises(mldb.TensorNotFoundError, match="at commit 0") as caught:
        db.query_tensor("encoder/weight", as_of=-1)
    assert "Did you mean" not in str(caught.value)


# --- relationships --------------------------------------------------------------------------------


def test_relationships_in_every_direction_and_as_of(db: mldb.MLDatabase) -> None:
    db.create_relationship("conv1", "pool1", "feeds_into", {"n": 1}, epoch=1)
    db.create_relationship("conv10", "pool1", "feeds_into", epoch=2)
    db.create_relationship("conv1", "bn1", "feeds_into", epoch=2)
    db.create_relationship("conv1", "pool1", "shares", epoch=2)
    lsn = db.create_relationship("conv1", "pool1", "feeds_into", {"n": 2}, epoch=3)

    def found(**query: Any) -> list[tuple[str, str, str]]:
        return [(r.source, r.kind, r.target) for r in db.relationships(**query)]

    everything = [
        ("conv1", "feeds_into", "bn1"),
        ("conv1", "feeds_into", "pool1"),
        ("conv1", "shares", "pool1"),
        ("conv10", "feeds_into", "pool1"),
    ]
    assert found() == everything
    assert found(source="conv1") == everything[:3]
    assert found(target="pool1") == everything[1:]
    assert found(kind="shares") == [everything[2]]
    assert found(source="conv1", target="pool1") == everything[1:3]
    assert found(target="pool1", kind="feeds_into") == [everything[1], everything[3]]
    assert found(source="conv1", kind="feeds_into", target="pool1") == [everything[1]]
    assert found(source="conv") == []
    assert db.relationships("conv1", "pool1", "feeds_into")[0].metadata == {"n": 2}
    assert db.relationships("conv1", "pool1", "feeds_into")[0].lsn == lsn
    assert db.relationships("conv1", "pool1", "feeds_into", as_of=2)[0].metadata == {"n": 1}
    assert found(as_of=1) == [everything[1]]
    db.delete_relationship("conv1", "pool1", "feeds_into", epoch=4)
    assert found() == [everything[0], *everything[2:]]
    assert found(as_of=3) == everything
    with pytest.raises(mldb.MissingError, match="conv1"):
        db.delete_relationship("conv1", "pool1", "feeds_into")
    with pytest.raises(KeyError):
        db.delete_relationship("x", "y", "z")


# --- the life of a handle -------------------------------------------------------------------------


def test_open_makes_a_store_and_finds_it_again(store_path: Path) -> None:
    path = store_path / "deeper" / "still"
    with mldb.open(path) as db:
        assert (db.epoch, db.lsn, len(db), db.checkpoints(), db.tags()) == (0, 0, 0, [], {})
        assert db.path == str(path)
        assert "mode=rw" in repr(db)
        lsn = db.store_tensor("x", [1, 2], epoch=3)
        assert (db.epoch, db.lsn, db.last_commit) == (3, lsn, lsn)
        assert isinstance(lsn, mldb.Lsn)
        assert isinstance(db.lsn, mldb.Lsn)
        store_id = db.stats()["store_id"]
    with mldb.MLDatabase(str(path)) as db:
        assert (db.epoch, db.lsn, list(db)) == (3, lsn, ["x"])
        assert db.stats()["store_id"] == store_id
        assert db.recovery.clean
        assert db.storage is db


def test_closing_twice_is_harmless_and_use_after_close_is_refused(store_path: Path) -> None:
    db = mldb.open(store_path)
    db["x"] = np.arange(6.0).reshape(2, 3)
    snapshot, handle, events = db.at(), db.tensor("x"), db.events()
    array = db["x"]
    db.close()
    db.close()
    assert "closed" in repr(db)
    calls: list[Any] = [
        lambda: db["x"],
        lambda: db.store_tensor("x", 1),
        lambda: "x" in db,
        lambda: len(db),
        lambda: list(db),
        db.transaction,
        lambda: db.create_tensor("y", (1,), "f4"),
        lambda: db.checkpoint({}, epoch=1),
        lambda: db.load(None),
        db.at,
        lambda: db.tag("t"),
        lambda: db.rewind(0),
        db.events,
        db.follow,
        db.stats,
        db.verify,
        db.sync,
        lambda: db.backup(store_path.parent / "copy"),
        lambda: snapshot["x"],
    ]
    for call in calls:
        with pytest.raises(mldb.ClosedError, match=r"mldb\.open\("):
            call()
    assert not (store_path.parent / "copy").exists()
    # What was handed out lives on.
    np.testing.assert_array_equal(array, handle.numpy())
    np.testing.assert_array_equal(handle[1], array[1])
    assert [event.lsn for event in events] == [handle.lsn]
    snapshot.close()


def test_nothing_of_a_live_store_is_pickled_or_copied(db: mldb.MLDatabase) -> None:
    db["x"] = 1
    travels: tuple[Any, ...] = (pickle.dumps, copy.copy, copy.deepcopy)
    for thing in (db, db.tensor("x"), db.at()):
        for travel in travels:
            with pytest.raises(mldb.InvalidTypeError, match=r"not pickled.*open"):
                travel(thing)
    with pytest.raises(mldb.InvalidTypeError, match=r"not pickled.*open"):
        pickle.dumps(db.transaction())
    # What a loader's worker needs does travel.
    for plain in (db.options, db.lsn, db.history("x"), list(db.events())):
        assert pickle.loads(pickle.dumps(plain)) == plain  # noqa: S301


def test_threads_hammer_one_handle(db: mldb.MLDatabase, seed: int) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        rng = np.random.default_rng(seed + number)
        try:
            for index in range(40):
                value = np.full(int(rng.integers(1, 200)), number * 1000 + index)
                lsn = db.store_tensor(f"own{number}", value)
                np.testing.assert_array_equal(db.query_tensor(f"own{number}", as_of=lsn), value)
                np.testing.assert_array_equal(db[f"own{number}"], value)
                db["shared"] = value
                shared = db["shared"]
                assert (shared == shared[0]).all()
                count = lambda txn: txn.store_tensor("sum", int(txn.get("sum", 0)) + 1)  # noqa: E731
                db.transact(count, retries=100)  # five threads: one of them may lose often
                assert {f"own{number}", "shared", "sum"} <= set(db)
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert int(db["sum"]) == 200
    assert db.verify().ok
    assert [int(v.lsn) for v in db.history("sum")] == sorted({v.lsn for v in db.history("sum")})


def test_two_handles_in_one_process_see_each_other(store_path: Path) -> None:
    with mldb.open(store_path) as one, mldb.open(store_path) as two:
        for number in range(10):
            one[f"one{number}"] = number
            two[f"two{number}"] = number
            assert list(one) == list(two)
            assert one.lsn == two.lsn
        with mldb.open(store_path, mode="r") as reader:
            assert len(reader) == 20
            two["late"] = 1
            assert "late" in reader
    with mldb.open(store_path) as again:
        assert len(again) == 21
        assert again.verify().ok


# --- modes ----------------------------------------------------------------------------------------


def test_reading_writes_nothing(store_path: Path) -> None:
    with mldb.open(store_path, segment_bytes=5000) as db:
        for epoch in range(12):
            db.store_tensor("x", np.full(300_000, epoch, "u1"), epoch=epoch)
        db.checkpoint({"w": np.arange(4)}, epoch=12)
        db.tag("t")
    before = files_of(store_path)
    with mldb.open(store_path, mode="r") as db:
        assert int(db["x"][0]) == 11
        assert int(db.query_tensor("x", as_of=3)[7]) == 3
        assert len(db.history("x")) == 12
        db.tensor("x").numpy()
        db.load(None)
        assert db.verify().ok
        db.stats()
        assert files_of(store_path) == before
        # What must stay readable for longer than a call is registered, where that can be written.
        events = db.events()
        assert len(list((store_path / "readers").iterdir())) == 1
        assert len(list(events)) == 15
    after = files_of(store_path)
    assert after.keys() == before.keys()
    touched = {name for name in before if before[name] != after[name]}
    assert touched <= {"readers", "pending"}, "folders in which the registration came and went"


def test_reading_refuses_every_write(store_path: Path) -> None:
    with pytest.raises(mldb.StorageIOError):
        mldb.open(store_path, mode="r")
    assert not store_path.exists()
    with mldb.open(store_path) as db:
        db["x"] = 1
    with mldb.open(store_path, mode="r") as db:
        calls: list[Any] = [
            lambda: db.store_tensor("x", 2),
            lambda: db.delete_tensor("x"),
            lambda: db.set_metadata("x", {}),
            db.transaction,
            lambda: db.create_tensor("y", (1,), "f4"),
            lambda: db.checkpoint({}, epoch=1),
            lambda: db.checkpoint({}, epoch=1, wait=False),
            lambda: db.create_relationship("a", "b", "c"),
            lambda: db.tag("t"),
            lambda: db.pin(db.lsn),
            lambda: db.rewind(0),
            db.sync,
        ]
        for call in calls:
            with pytest.raises(mldb.ReadOnlyError, match="mode='rw'"):
                call()
        db.backup(store_path.parent / "copy")  # writes elsewhere
    with mldb.open(store_path.parent / "copy") as copied:
        assert int(copied["x"]) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root is not bound by the permissions of a folder")
def test_a_folder_without_write_permission_is_readable(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        db["x"] = 1
    folders = [store_path, *(item for item in store_path.rglob("*") if item.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with mldb.open(store_path, mode="r") as db, db.at() as snapshot:
            assert int(snapshot["x"]) == 1
        with pytest.raises(mldb.MldbError), mldb.open(store_path) as db:
            db["x"] = 2
    finally:
        for folder in folders:
            folder.chmod(0o755)


# --- what is derived ------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["hints", "readers", "both", "garbage", "empty"])
def test_derived_files_may_go_at_any_time(store_path: Path, what: str) -> None:
    array = np.arange(500_000, dtype="f4")
    with mldb.open(store_path, segment_bytes=3_000_000) as db:
        for epoch in range(4):
            db.store_tensor("x", array + epoch, epoch=epoch)
            db.store_tensor("y", [epoch], {"epoch": epoch})
        db["x"]  # measures the border, which becomes a hint
    assert any((store_path / "hints").iterdir())
    for folder in ("hints", "readers") if what == "both" else (what,):
        for file in (store_path / "hints").iterdir() if what in ("garbage", "empty") else ():
            file.write_bytes(b"" if what == "empty" else os.urandom(100))
        if (store_path / folder).exists():
            shutil.rmtree(store_path / folder)
    for mode in ("r", "rw"):
        with mldb.open(store_path, mode=mode) as db:
            for epoch in range(4):
                np.testing.assert_array_equal(db.query_tensor("x", as_of=epoch), array + epoch)
                assert db.metadata("y", as_of=epoch) == {"epoch": epoch}
            assert db.recovery.clean or db.recovery.distrusted
            assert db.verify().ok
    with mldb.open(store_path) as db:
        with db.transaction() as txn:
            txn["z"] = np.zeros(100)
        with db.at() as snapshot:
            assert "z" in snapshot
            assert db.stats()["readers"] == 1


def test_derived_folders_may_go_while_a_handle_is_open(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        db["x"] = 1
        with db.at() as snapshot:
            for folder in ("hints", "readers"):
                for file in (store_path / folder).iterdir():
                    file.unlink()
            db["x"] = 2
            assert int(snapshot["x"]) == 1
            assert int(db["x"]) == 2
        with mldb.open(store_path) as other:
            assert int(other["x"]) == 2
    with mldb.open(store_path) as db:
        assert int(db["x"]) == 2


# --- figures --------------------------------------------------------------------------------------


def test_stats_tell_what_is_there_and_what_was_done(store_path: Path) -> None:
    with mldb.open(store_path, segment_bytes=100_000, map_bytes=10_000) as db:
        for epoch in range(5):
            db.store_tensor("x", np.zeros(50_000, "u1"), epoch=epoch)
        db["y"] = 1
        stats = db.stats()
        assert (stats["epoch"], stats["lsn"], stats["versions"]) == (4, db.lsn, 6)
        assert stats["segments"] > 1
        assert stats["bytes"] >= 250_000
        on_disk = sum(file.stat().st_size for file in (store_path / "segments").iterdir())
        assert stats["bytes"] == on_disk
        assert stats["durable_lsn"] == db.lsn
        assert stats["commits"] == 6
        assert stats["free_bytes"] > 0
        assert stats["distrusted"] == []
        assert stats["spill_bytes"] == db.options.spill_bytes
        border = stats["map_border"]
        assert (border["bytes"], border["origin"]) == (10_000, "option")
        assert (border["mapped_reads"], border["copied_reads"]) == (0, 0)
        db["x"], db["y"]
        border = db.stats()["map_border"]
        assert (border["mapped_reads"], border["copied_reads"]) == (1, 1)
        assert db.stats()["mapped_bytes"] > 0
        with db.at():
            assert db.stats()["readers"] == 1
        assert stats["cache"] == {
            "limit_bytes": db.options.cache_bytes,
            "used_bytes": 0,
            "hits": 0,
            "misses": 0,
        }


@pytest.mark.parametrize("durability", ["commit", "os"])
def test_durability_shows_in_what_is_durable(store_path: Path, durability: Any) -> None:
    with mldb.open(store_path, durability=durability) as db:
        db["x"] = 1
        assert (db.stats()["durable_lsn"] == db.lsn) == (durability == "commit")
        db.sync()
        assert db.stats()["durable_lsn"] == db.lsn
