"""Bad input: what a user gets, what the message says, and that nothing stored is lost.

Every situation ends in a typed error whose message says what happened, where, what is safe and what
to do next. What only one module has to do with is tested beside it: names in test_names.py, dtypes
in tensors/test_dtypes.py, as_of in history/test_as_of.py, epochs and conflicts in
write/test_transaction.py, flipped bits of tensors in tensors/test_handle.py, manifests and hints in
log/test_manifest.py and log/test_hints.py, use after close in test_database.py. Failing machines
are in hostile/test_bad_days.py, damaged folders in hostile/test_bad_files.py.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from tests.support.seen import contents, listing, segments_of

Database = mldb.MLDatabase
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def db(store_path: Path) -> Iterator[Database]:
    with mldb.open(store_path, durability="os") as database:
        database.store_tensor("kept", np.arange(6), {"k": 1}, epoch=3)
        yield database


def stored_through_every_verb(db: Database, name: Any, value: Any) -> list[Callable[[], object]]:
    def transaction() -> None:
        with db.transaction() as txn:
            txn["fine"] = 1
            txn.store_tensor(name, value)

    return [
        lambda: db.store_tensor(name, value),
        lambda: db.__setitem__(name, value),
        transaction,
    ]


# --- arguments ------------------------------------------------------------------------------------

NAMES = ["..", "a/../b", "/a", "a\\b", "a\0b", "", "ü" * 128, "a.", "\ud800"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_is_not_allowed_is_refused_by_every_verb(db: Database, name: str) -> None:
    before = contents(db)
    calls: list[Callable[[], object]] = [
        *stored_through_every_verb(db, name, 1),
        lambda: db.create_tensor(name, (2,), "f4"),
        lambda: db.checkpoint({"a": np.zeros(1)}, epoch=3, name=name),
        lambda: db.create_relationship(name, "b", "c"),
        lambda: db.create_relationship("a", name, "c"),
        lambda: db.create_relationship("a", "b", name),
        lambda: db.set_metadata(name, {}),
        lambda: db.delete_tensor(name),
        lambda: db.tag(name),
        lambda: db.query_tensor(name),
        lambda: db.tensor(name),
        lambda: db.history(name),
    ]
    if name and not name.endswith("."):  # as a part of another name these are allowed
        calls.append(lambda: db.store_model_layer(name, 1, 1))
    for call in calls:
        with pytest.raises(mldb.InvalidNameError) as caught:
            call()
        assert isinstance(caught.value, ValueError)
        assert f"name {repr(name)[:-1][:60]}" in str(caught.value)
        assert "A name is 1 to 255 bytes" in str(caught.value)
        assert "Nothing was changed" in str(caught.value)
    assert contents(db) == before
    assert name not in db


OBJECTS: list[Any] = [
    np.array([1, None], object),
    [None],
    np.zeros(2, [("a", "<i4"), ("b", "O")]),
    np.array(["a", "bc"], object),
]


@pytest.mark.parametrize("value", OBJECTS, ids=repr)
def test_objects_are_refused_with_the_reason_and_the_conversion(db: Database, value: Any) -> None:
    before = contents(db)
    calls: list[Callable[[], object]] = [
        *stored_through_every_verb(db, "x", value),
        lambda: db.checkpoint({"a": np.asarray(value)}, epoch=3),
        lambda: db.store_model_layer("layer", [1], value),
        lambda: db.create_tensor("x", (2,), np.asarray(value).dtype),
    ]
    for call in calls:
        with pytest.raises(mldb.InvalidTypeError) as caught:
            call()
        message = str(caught.value)
        assert isinstance(caught.value, TypeError)
        assert repr(np.asarray(value).dtype) in message
        assert "object arrays would need pickle, which mldb never loads" in message
        assert "convert with" in message or "store each field" in message
    assert contents(db) == before


class Exploding:
    """Unpickling one of these would be noticed."""

    exploded = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Exploding.explode, ()

    @staticmethod
    def explode() -> int:
        Exploding.exploded += 1
        return Exploding.exploded


def object_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Exploding()], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("data", [pickle.dumps(Exploding()), object_npy()], ids=["pickle", "npy"])
def test_pickled_bytes_stay_bytes_and_are_never_loaded(db: Database, data: bytes) -> None:
    db["x"] = data
    db.store_tensor("y", [0], {"blob": data})
    db.checkpoint({"blob": data, "a": np.frombuffer(data, np.uint8)}, epoch=4)
    assert db["x"].dtype == np.uint8
    with mldb.open(db.path, mode="r") as other:
        assert other["x"].tobytes() == data
        assert other.metadata("y") == {"blob": data}
        restored = other.load(None)
        assert (restored["blob"], restored["a"].tobytes()) == (data, data)
        list(other.events())
        assert other.verify().ok
    assert Exploding.exploded == 0
    pickle.loads(pickle.dumps(Exploding()))  # noqa: S301 - the bomb does go off when loaded
    assert Exploding.exploded == 1
    Exploding.exploded = 0


@pytest.mark.parametrize("key", [1.5, float("nan"), b"k", (1, 2.0), np.float32(1)], ids=repr)
def test_keys_that_are_no_names_are_refused(db: Database, key: Any) -> None:
    before = contents(db)
    calls: list[Callable[[], object]] = [
        *stored_through_every_verb(db, key, 1),
        lambda: db.checkpoint({key: np.zeros(1)}, epoch=3),
        lambda: db[key],
        lambda: db.delete_tensor(key),
    ]
    for call in calls:
        with pytest.raises(mldb.InvalidTypeError) as caught:
            call()
        found = key[1] if isinstance(key, tuple) else key
        message = str(caught.value)
        assert type(key).__name__ in message or type(found).__name__ in message
        assert "Nothing was" in message
    assert key not in db
    assert contents(db) == before


SHAPES = [(2**40, 2**40), (2**63,), (2**31, 2**31, 2), (-1,), (3, -5), (1,) * 65, (0, 2**62)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape)[:24])
def test_impossible_shapes_are_refused_before_anything_is_allocated(
    db: Database, shape: tuple[int, ...]
) -> None:
    before, files = contents(db), listing(Path(db.path))
    tracemalloc.start()
    try:
        with pytest.raises(mldb.LimitError) as caught, db.create_tensor("x", shape, "f4"):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert isinstance(caught.value, ValueError)
    assert str(shape) in str(caught.value) or "65 axes" in str(caught.value)
    assert any(limit in str(caught.value) for limit in ("2**63", "64", "negative"))
    assert contents(db) == before
    assert listing(Path(db.path)) == files


def test_an_array_that_claims_more_than_there_is_leaves_the_handle_usable(db: Database) -> None:
    """256 TiB of one broadcast zero: NumPy cannot make it contiguous, and says so itself."""
    before = contents(db)
    claim = np.broadcast_to(np.zeros(1), (2**45,))
    calls: list[Callable[[], object]] = [
        *stored_through_every_verb(db, "x", claim),
        lambda: db.checkpoint({"x": claim}, epoch=3),
    ]
    for call in calls:
        with pytest.raises((MemoryError, mldb.LimitError, mldb.StorageFullError)):
            call()
    assert contents(db) == before
    db["x"] = 1
    assert int(db["x"]) == 1


# --- the path of a store --------------------------------------------------------------------------


def foreign(folder: Path) -> None:
    (folder / "thesis.txt").write_text("the only copy")


def look_alike(folder: Path) -> None:
    (folder / "segments").mkdir()
    (folder / "MANIFEST").write_bytes(b"not one of ours")


def random_manifest(folder: Path) -> None:
    (folder / "MANIFEST-0000000001").write_bytes(np.random.default_rng(0).bytes(500))


def empty_manifest(folder: Path) -> None:
    (folder / "MANIFEST-0000000001").write_bytes(b"")


FOREIGN: list[tuple[Callable[[Path], None], type[mldb.MldbError], str]] = [
    (foreign, mldb.FormatVersionError, "not an mldb store"),
    (look_alike, mldb.FormatVersionError, "not an mldb store"),
    (random_manifest, mldb.FormatVersionError, "not an mldb file"),
    (empty_manifest, mldb.CorruptError, "a file header needs 128"),
]


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("make, kind, words", FOREIGN)
def test_another_folder_is_refused_and_not_touched(
    tmp_path: Path, make: Callable[[Path], None], kind: type[mldb.MldbError], words: str, mode: Any
) -> None:
    make(tmp_path)
    before = {name: entry for name, entry in listing(tmp_path).items() if entry[2]}
    with pytest.raises(kind, match=words) as caught:
        mldb.open(tmp_path, mode=mode)
    assert (str(tmp_path) in str(caught.value)) or "MANIFEST-0000000001" in str(caught.value)
    after = listing(tmp_path)
    assert before == {name: after[name] for name in before}
    if kind is mldb.FormatVersionError and make is not random_manifest:
        assert "Nothing was changed" in str(caught.value)
        assert len(after) == len(before) + (make is look_alike)


def test_a_path_that_cannot_be_a_folder_is_refused_with_the_reason(
    tmp_path: Path, store_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases: list[tuple[Any, Any, type[mldb.MldbError], str]] = [
        (tmp_path / "file", "rw", mldb.StorageIOError, "ENOTDIR"),
        (tmp_path / "file" / "below", "rw", mldb.StorageIOError, "ENOTDIR"),
        (tmp_path / "loop", "rw", mldb.StorageIOError, "ELOOP"),
        (tmp_path / ("a" * 300), "rw", mldb.StorageIOError, "ENAMETOOLONG"),
        (store_path, "r", mldb.StorageIOError, "ENOENT"),
        (f"{tmp_path}/a\0b", "rw", mldb.InvalidNameError, "null"),
        (os.fsencode(store_path), "rw", mldb.InvalidTypeError, "bytes"),
        (5, "rw", mldb.InvalidTypeError, "no path"),
    ]
    for path, mode, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            mldb.open(path, mode=mode)
        assert str(path).replace("\0", "\\x00") in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert not store_path.exists()


@pytest.mark.parametrize("name", ["segments", "active", "MANIFEST-0000000002"])
def test_links_inside_a_store_are_never_followed(
    db: Database, store_path: Path, tmp_path: Path, name: str
) -> None:
    """Whoever can plant a link in the folder must not make a store read or write elsewhere."""
    db.close()
    if name == "active":
        (active,) = segments_of(store_path)
        name = str(active.relative_to(store_path))
    outside = tmp_path / "outside"
    shutil.move(store_path / name, outside)
    (store_path / name).symlink_to(outside)
    before = listing(tmp_path)[outside.name], outside.is_dir() and listing(outside)
    modes: tuple[Any, ...] = ("r", "rw")
    for mode in modes:
        with pytest.raises(mldb.StorageIOError, match=r"ELOOP|ENOTDIR") as caught:
            mldb.open(store_path, mode=mode)["kept"]
        assert str(store_path) in str(caught.value)
    assert (listing(tmp_path)[outside.name], outside.is_dir() and listing(outside)) == before
    (store_path / name).unlink()
    shutil.move(outside, store_path / name)
    with mldb.open(store_path, mode="r") as again:
        assert again["kept"].tolist() == list(range(6))


def test_a_store_by_way_of_a_link_is_the_store(db: Database, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(db.path)
    with mldb.open(tmp_path / "link") as other:
        other["y"] = 1
        assert int(db["y"]) == 1
        with db.transaction() as txn:  # the lock is the same file
            txn["z"] = txn["y"]
    assert int(db["z"]) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root is not bound by permissions")
def test_a_folder_without_permission_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    try:
        with pytest.raises(mldb.StorageIOError, match=f"EACCES.*{tmp_path}/locked"):
            mldb.open(tmp_path / "locked" / "store")
    finally:
        (tmp_path / "locked").chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A new folder that every user may enter, as those of pytest may not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def read_everything(path: Path) -> None:
    """Every read, those that register too: snapshots and iterators."""
    with mldb.open(path, mode="r") as reading:
        assert reading["kept"].tolist() == list(range(6))
        assert [int(reading.query_tensor("large", as_of=4 + n)[9]) for n in range(4)] == [*range(4)]
        reading.tensor("large")[5:10]
        reading.tensor("large").torch().add_(1)
        with reading.at(5) as snapshot:
            assert int(snapshot["large"][0]) == 1
        assert reading.load(None)["w"].tolist() == [0, 1, 2, 3]
        assert len(list(reading.events())) == 7
        assert reading.verify().ok
        reading.stats()


_READER = """
    import os, sys
    from pathlib import Path
    from tests.hostile.test_bad_input import read_everything
    read_everything(Path(sys.argv[1]))  # imports all there is: another user may not read it
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(54_321)
        os.setuid(54_321)
    read_everything(Path(sys.argv[2]))
"""


def read_as_anybody(path: Path, copy: Path) -> None:
    """Read *path* as a user whom permissions bind, in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(_READER), str(copy), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reading_a_read_only_folder_changes_no_name_and_no_time(open_folder: Path) -> None:
    store_path = open_folder / "store"
    with mldb.open(store_path, durability="os") as db:
        db.store_tensor("kept", np.arange(6), {"k": 1}, epoch=3)
        for number in range(4):
            db.store_tensor("large", np.full(300_000, number, "u1"), epoch=4 + number)
        db.checkpoint({"w": np.arange(4)}, epoch=9)
    copy = shutil.copytree(store_path, open_folder / "copy")
    (store_path / "hints" / "leftover").write_bytes(b"of a dead process")
    paths = [store_path, *store_path.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & ~0o222)
    before = listing(store_path)
    try:
        read_as_anybody(store_path, copy)
        assert listing(store_path) == before
    finally:
        for path in paths:
            path.chmod(modes[path])


def test_a_copy_of_a_store_is_another_store_with_the_same_id(
    db: Database, store_path: Path, tmp_path: Path
) -> None:
    """``cp -r`` while nobody writes: both open at once, and what one stores the other lacks."""
    db.close()
    subprocess.run(["cp", "-r", store_path, tmp_path / "copy"], check=True)
    with mldb.open(store_path) as one, mldb.open(tmp_path / "copy") as two:
        assert one.stats()["store_id"] == two.stats()["store_id"]
        assert contents(one) == contents(two)
        one.store_tensor("kept", 1, epoch=4)
        two.store_tensor("kept", 2, epoch=5)
        with one.transaction() as first, two.transaction() as second:
            first["mine"] = first["kept"]
            second["mine"] = second["kept"]
        assert (int(one["mine"]), int(two["mine"])) == (1, 2)
        assert (one.epoch, two.epoch) == (4, 5)
        assert one.verify().ok
        assert two.verify().ok
