"""Handles and views across dtypes, modes and lifetimes: small floats, and what outlives what."""

from __future__ import annotations

import gc
import hashlib
import os
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log import native
from mldb.log.fs.memory import MemoryFileSystem

Array = np.ndarray[Any, Any]
SMALL = {
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "float8_e4m3fnuz": torch.float8_e4m3fnuz,
    "float8_e5m2fnuz": torch.float8_e5m2fnuz,
}
OPTIONS = [{"map_bytes": 0}, {"map_bytes": 1 << 40}, {"compression": "zstd"}]


def every_bit_pattern(code: str, rows: int = 64) -> Array:
    """A (rows, 256) array of a small float in which each byte value occurs, NaNs included."""
    dtype = np.dtype(getattr(ml_dtypes, code))
    data = np.arange(rows * 256 * dtype.itemsize, dtype=np.uint32).astype(np.uint8)
    array: Array = data.view(dtype).reshape(rows, 256)
    return array


def bits(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
@pytest.mark.parametrize("code", SMALL)
def test_handles_of_small_floats_slice_and_convert_to_the_bit(
    code: str, options: dict[str, Any], seed: int
) -> None:
    array = every_bit_pattern(code)
    rng = np.random.default_rng(seed)
    with mldb.MLDatabase.on(MemoryFileSystem(), **options) as db:
        db["numpy"] = array
        db["torch"] = torch.from_numpy(array.view(np.uint8)).view(SMALL[code])
        assert db.history("numpy")[0].digest == db.history("torch")[0].digest
        for name in ("numpy", "torch"):
            handle = db.tensor(name)
            assert (handle.shape, handle.dtype) == (array.shape, array.dtype)
            for _ in range(20):
                low, high = sorted(int(place) for place in rng.integers(0, 65, 2))
                column = int(rng.integers(256))
                for key in (slice(low, high), low % 64, (low % 64, slice(column)), (..., column)):
                    found = handle[key]
                    assert found.dtype == array.dtype
                    assert bits(found) == bits(array[key])
            tensor = handle.torch()
            assert (tensor.dtype, tuple(tensor.shape)) == (SMALL[code], array.shape)
            assert bits(tensor.view(torch.uint8).numpy()) == bits(array)
            tensor.view(torch.uint8).zero_()
            for found in (handle.numpy(), db[name], handle[:], np.asarray(handle)):
                assert bits(found) == bits(array)


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_a_torch_view_belongs_to_its_caller_alone(store_path: Path, options: Any) -> None:
    """Written to in every way torch has; the file, handles, readers and other views stay."""
    array = np.arange(120_000, dtype="<f4").reshape(300, 400)
    with (
        mldb.open(store_path, durability="os", **options) as db,
        mldb.open(store_path, **options) as second,
        mldb.open(store_path, mode="r", verify="always") as reader,
    ):
        db.store_tensor("x", array, epoch=1)
        before = digests(store_path)
        views = {
            "array": db["x"],
            "second": second["x"],
            "reader": reader["x"],
            "slice": db.tensor("x")[:],
            "torch": db.tensor("x").torch().numpy(),
            "snapshot": db.at(1)["x"],
        }
        tensor = db.tensor("x").torch()
        tensor[0] = -1
        tensor.mul_(2)
        tensor.numpy()[5:] = 7
        tensor.requires_grad_(True)
        (gradient,) = torch.autograd.grad((tensor * 2).sum(), tensor)
        with torch.no_grad():
            tensor.add_(gradient)
        assert digests(store_path) == before
        for name, view in views.items():
            assert view.tobytes() == array.tobytes(), name
        for handle in (db, second, reader):
            assert handle["x"].tobytes() == array.tobytes()
            assert handle.tensor("x").torch().numpy().tobytes() == array.tobytes()
        db.store_tensor("y", tensor, epoch=2)  # and what was written can be stored
        assert db["y"].tobytes() == tensor.detach().numpy().tobytes()
        assert db["x"].tobytes() == array.tobytes()
        assert reader.verify().ok


def digests(path: Path) -> dict[str, str]:
    files = (path / "segments").iterdir()
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("code", ["float32", *SMALL])
@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_views_outlive_the_handle_its_store_and_its_files(
    store_path: Path, code: str, options: dict[str, Any]
) -> None:
    array = every_bit_pattern(code) if code in SMALL else np.arange(16_384, dtype=code)
    db = mldb.open(store_path, **options)
    db["x"] = array
    handle = db.tensor("x")
    with db.at() as snapshot, db.transaction() as txn:
        kept = [db["x"], handle[:], handle.numpy(), snapshot["x"], txn["x"], np.asarray(handle)]
    tensor = handle.torch()
    db["x"] = np.zeros(3)
    db.close()
    del db, handle, snapshot, txn
    gc.collect()
    for file in sorted(store_path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    filler = [os.urandom(1 << 16) for _ in range(20)]  # freed memory would be taken by these
    for view in kept:
        assert bits(view) == bits(array)
    assert bits(tensor.view(torch.uint8).numpy()) == bits(array)
    tensor.zero_()
    assert not tensor.view(torch.uint8).any()
    assert all(bits(view) == bits(array) for view in kept)
    assert len(filler) == 20


# --- names ----------------------------------------------------------------------------------------

TEXTS = st.text("ab/é\U0001f600", min_size=1, max_size=4)


@given(
    st.sets(TEXTS.filter(lambda name: not name.startswith("/")), max_size=8), TEXTS | st.just("")
)
def test_names_are_listed_in_byte_order_by_prefix(names: set[str], prefix: str) -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        with db.transaction() as txn:
            for name in names:
                txn[name] = 1
        expected = sorted(names, key=str.encode)
        assert list(db) == db.names() == expected
        assert db.names(prefix) == [name for name in expected if name.startswith(prefix)]
        assert len(db) == len(names)
        assert all(name in db for name in names)


@pytest.mark.parametrize("prefix", [None, 5, b"a"])
def test_a_prefix_is_text(prefix: Any) -> None:
    with mldb.MLDatabase.on(MemoryFileSystem()) as db:
        for call in (db.names, lambda value: db.state_dict(prefix=value)):
            with pytest.raises(mldb.InvalidTypeError, match=type(prefix).__name__):
                call(prefix)


def test_a_missing_name_says_where_it_was_looked_for_and_what_is_like_it() -> None:
    with mldb.MLDatabase.on(MemoryFileSystem()) as db:
        lsn = db.store_tensor("encoder/weight", 1, epoch=7)
        for call in (db.query_tensor, db.tensor, db.metadata, db.delete_tensor):
            with pytest.raises(mldb.TensorNotFoundError) as caught:
                call("encoder/wieght")
            message = str(caught.value)
            assert "no tensor is named 'encoder/wieght'" in message
            assert f"commit {lsn} (epoch 7)" in message
            assert "Did you mean 'encoder/weight'?" in message
        with pytest.raises(mldb.TensorNotFoundError) as caught:
            db["z" * 200]
        assert "Did you mean" not in str(caught.value)
        assert "z" * 81 not in str(caught.value)


def test_metadata_is_a_fresh_dict_each_time() -> None:
    with mldb.MLDatabase.on(MemoryFileSystem()) as db:
        db.store_tensor("x", 1, {"list": [1]})
        db.metadata("x")["list"].append(2)
        db.tensor("x").metadata.clear()
        assert db.metadata("x") == {"list": [1]}


def values(db: mldb.MLDatabase, epochs: list[int]) -> list[float]:
    return [float(db.query_tensor("w", as_of=epoch)[0]) for epoch in epochs]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_what_was_read_is_remembered_along_its_lineage_alone(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """A rewind, a commit of another handle and a deletion are seen by the next read."""
    path = tmp_path / "s"
    with native.switched_off(), mldb.open(path, **options) as db, mldb.open(path) as other:
        for epoch in range(8):
            db.store_tensor("w", np.full(3000, epoch, np.float32), epoch=epoch)
        for _ in range(3):
            assert values(db, [0, 3, 6]) == [0, 3, 6]
        epochs, found = db._source.found
        assert epochs is db._state.view.epochs
        assert len(found) == 3
        other.rewind(3)
        other.store_tensor("w", np.full(3000, 50, np.float32), epoch=5)
        for _ in range(2):
            assert values(db, [0, 3, 4, 6]) == [0, 3, 3, 50]
        del db["w"]
        db.store_tensor("v", np.zeros(3), epoch=9)
        with pytest.raises(mldb.errors.TensorNotFoundError):
            db.query_tensor("w", as_of=8)
        assert values(db, [3, 4]) == [3, 3]


def test_what_is_remembered_is_bounded_and_keeps_no_store_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mldb.tensors.scope._KNOWN_MAX", 5)
    with native.switched_off():
        db = mldb.open(tmp_path / "s", map_bytes=0)
        for epoch in range(12):
            db.store_tensor("w", np.full(30, epoch, np.float32), epoch=epoch)
        for epoch in [*range(11), *range(11)]:
            assert values(db, [epoch]) == [epoch]
            assert 1 <= len(db._source.found[1]) <= 5
        gone = weakref.ref(db)
        gc.disable()
        try:
            del db
            assert gone() is None
        finally:
            gc.enable()


def test_names_and_epochs_of_other_types_are_not_taken_for_remembered_ones(tmp_path: Path) -> None:
    """True == 1 == 1.0, with one hash; so a dictionary would find what was never asked for."""
    with native.switched_off(), mldb.open(tmp_path / "s", map_bytes=0) as db:
        for epoch in range(3):
            db.store_tensor("w", np.full(30, epoch, np.float32), epoch=epoch)
        assert values(db, [1, 1]) == [1, 1]
        for odd in (True, 1.0):
            with pytest.raises(mldb.errors.InvalidTypeError):
                db.query_tensor("w", as_of=odd)  # type: ignore[arg-type]
        assert db.query_tensor("w", as_of=mldb.Lsn(2)).shape == (30,)
