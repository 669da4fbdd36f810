"""Repositories of sharded safetensors files, both ways, and the public import and export."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import (
    CorruptError,
    InvalidTypeError,
    InvalidValueError,
    MissingError,
    StorageFullError,
)
from mldb.tools.formats import whole as whole_module

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

INDEX = "model.safetensors.index.json"


def _state() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    return {f"layer.{i}.weight": torch.rand((16, 16), generator=draw) for i in range(8)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with eight tensors of 1 KiB, one of which is a twin, and metadata."""
    with mldb.open(tmp_path / "run") as db, db.transaction(epoch=2) as txn:
        for name, tensor in _state().items():
            txn.store_tensor(f"m/{name}", tensor, {"about": name})
    return tmp_path / "run"


def _exported(store: Path, folder: Path, **options: Any) -> mldb.ExportReport:
    return mldb.export_file(
        store, folder, prefix="m/", strip_prefix="m/", shard_bytes=3 << 10, **options
    )


def test_shards_and_their_index_are_what_others_read(store: Path, tmp_path: Path) -> None:
    report = _exported(store, tmp_path / "out")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert report.shards == (*names, INDEX)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(report.shards)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"] == {"total_size": 8 << 10}
    for name, tensor in _state().items():
        shard = safetensors_torch.load_file(tmp_path / "out" / index["weight_map"][name])
        assert torch.equal(shard[name], tensor)


def test_transformers_reads_them(store: Path, tmp_path: Path) -> None:
    utils = pytest.importorskip("transformers.trainer_utils")
    _exported(store, tmp_path / "out")
    model = torch.nn.ModuleDict(
        {"layer": torch.nn.ModuleList(torch.nn.Linear(16, 16, bias=False) for _ in range(8))}
    )
    utils.load_sharded_checkpoint(model, str(tmp_path / "out"))
    for name, tensor in _state().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("what", ["", INDEX])
def test_they_come_back_with_metadata(store: Path, tmp_path: Path, what: str) -> None:
    _exported(store, tmp_path / "out")
    report = mldb.import_file(tmp_path / "back", tmp_path / "out" / what)
    assert (report.tensors, report.bytes) == (8, 8 << 10)
    with mldb.open(tmp_path / "back", mode="r") as db:
        for name, tensor in _state().items():
            np.testing.assert_array_equal(db[name], tensor.numpy())
            assert db.metadata(name) == {"about": name}


def test_ties_come_back_from_shards(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run") as db:
        for name in ("a", "b", "c"):
            db[name] = np.full(1 << 16, ord(name), np.float32)
        db["z"] = db["a"]
        report = mldb.export_file(db, tmp_path / "out", shard_bytes=256 << 10, once=True)
    assert (report.tensors, report.shared) == (3, {"z": "a"})
    back = mldb.import_file(tmp_path / "back", tmp_path / "out")
    assert (back.tensors, back.shared) == (4, {"z": "a"})


def test_one_shard_is_a_plain_file_without_an_index(store: Path, tmp_path: Path) -> None:
    report = mldb.export_file(store, tmp_path / "out", shard_bytes=1 << 30)
    assert report.shards == ("model.safetensors",)
    assert mldb.import_file(tmp_path / "back", tmp_path / "out").tensors == 8
    same = mldb.import_file(tmp_path / "back", tmp_path / "out" / "model.safetensors", prefix="p/")
    assert same.tensors == 8


# --- what does not fit ----------------------------------------------------------------------------


def _change_index(folder: Path, change: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def _moved(where: str) -> Any:
    def change(places: dict[str, str]) -> None:
        places["layer.0.weight"] = where

    return change


@pytest.mark.parametrize(
    "change, error, said",
    [
        (_moved("../model.safetensors"), CorruptError, "leads elsewhere"),
        (_moved("/tmp/model.safetensors"), CorruptError, "leads elsewhere"),
        (_moved("..\\model.safetensors"), CorruptError, "leads elsewhere"),
        (_moved("model.bin"), CorruptError, "no safetensors file"),
        (_moved("gone.safetensors"), MissingError, "gone.safetensors"),
        (_moved("model-00003-of-00003.safetensors"), CorruptError, "alone"),
        (lambda places: places.pop("layer.1.weight"), CorruptError, "the shard alone"),
        (lambda places: places.update(x=places["layer.0.weight"]), CorruptError, "the index alone"),
        (lambda places: places.clear(), CorruptError, "no weight_map"),
    ],
)
def test_an_index_is_not_believed(
    store: Path, tmp_path: Path, change: Any, error: type[Exception], said: str
) -> None:
    _exported(store, tmp_path / "out")
    _change_index(tmp_path / "out", change)
    with pytest.raises(error, match=said):
        mldb.import_file(tmp_path / "back", tmp_path / "out")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": {"a": 1}}', '{"a":1,"a":2}'])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CorruptError):
        mldb.import_file(tmp_path / "back", tmp_path)


def test_folders_without_a_choice(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no file"):
        mldb.import_file(tmp_path / "back", tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidValueError, match="name one of them"):
        mldb.import_file(tmp_path / "back", tmp_path)


def test_a_folder_that_is_there_is_kept(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    _exported(store, out)  # an empty one may be there
    with pytest.raises(InvalidValueError, match="replace=True"):
        _exported(store, out)
    (out / "config.json").write_text("{}")
    with pytest.raises(InvalidValueError, match=r"config\.json"):
        _exported(store, out, replace=True)
    (out / "config.json").unlink()
    report = mldb.export_file(store, out, shard_bytes=1 << 30, replace=True)
    assert os.listdir(out) == list(report.shards)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidValueError, match="no folder"):
        _exported(store, tmp_path / "file")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_nothing(
    store: Path, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if there:
        _exported(store, out)
    before = sorted(os.listdir(out)) if there else None

    def full(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_module, "_sync_file", full)
    with pytest.raises(StorageFullError):
        _exported(store, out, replace=there)
    assert (sorted(os.listdir(out)) if out.exists() else None) == before
    assert not list(tmp_path.glob(".*"))


def test_the_old_folder_comes_back_when_the_new_one_gets_no_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _exported(store, out)
    rename, calls = os.rename, []

    def second_fails(source: str, target: str) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(KeyboardInterrupt):
        mldb.export_file(store, out, shard_bytes=1 << 30, replace=True)
    assert INDEX in os.listdir(out)
    assert not list(tmp_path.glob(".*"))


# --- the public functions -------------------------------------------------------------------------


def test_stores_snapshots_and_paths_are_exported(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run") as db:
        for epoch in (1, 2):
            db.store_tensor("w", np.full(3, epoch), epoch=epoch)
        mldb.export_file(db, tmp_path / "db.npz", as_of=1)
        with db.at(1) as snapshot:
            mldb.export_file(snapshot, tmp_path / "snapshot.npz")
            with pytest.raises(InvalidTypeError, match="as_of"):
                mldb.export_file(snapshot, tmp_path / "no.npz", as_of=1)
    mldb.export_file(tmp_path / "run", tmp_path / "path.npz", as_of=1)
    for name in ("db", "snapshot", "path"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npz")["w"], np.full(3, 1))


@pytest.mark.parametrize("size", [0, -1])
def test_shards_need_a_size_and_a_format(store: Path, tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidValueError, match="shard_bytes"):
        mldb.export_file(store, tmp_path / "out", format="safetensors", shard_bytes=size)
    with pytest.raises(InvalidValueError, match="not npz"):
        mldb.export_file(store, tmp_path / "out.npz", format="npz", shard_bytes=1)
