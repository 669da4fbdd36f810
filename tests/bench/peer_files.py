"""Peers that write whole files: safetensors (numpy and torch), torch.save, HDF5."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.peer import Ability, Peer, Purpose, RowReader, Store, abilities, as_torch
from tests.bench.timing import sync_path
from tests.bench.workloads import Array, State

_INDEX = "index.json"


class FilePerSave(Store):
    """One file per save, named by a running number (in a history, the epoch).

    Which tensor is in which file is the user's business: here a dict, written as JSON at close.
    Durable means fsync of the new file and of the folder, which none of these writers does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved = 0
        self._index: dict[str, int] = {}
        self._readers: dict[int, Any] = {}
        if (folder / _INDEX).exists():
            self._index = json.loads((folder / _INDEX).read_text())

    def _save(self, prepared: Any, path: Path) -> None:
        raise NotImplementedError

    def _open_reader(self, path: Path) -> Any:
        """Return an object whose ``[name]`` is a tensor."""
        raise NotImplementedError

    def _convert(self, state: State) -> Any:
        return state

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}"

    def put_all(self, prepared: Any) -> None:
        path = self._path(self._saved)
        self._save(prepared, path)
        sync_path(path)
        sync_path(self._folder)
        for name in prepared:
            self._index[name] = self._saved
        self._saved += 1

    def put_batch(self, batch: State) -> None:
        self.put_all(self._convert(batch))

    def put_lazily(self, names: list[str], values: list[Array]) -> None:
        for number, (name, value) in enumerate(zip(names, values, strict=True)):
            self._save(self._convert({name: value}), self._path(number))
            self._index[name] = number

    def commit_epoch(self, epoch: int, changed: State, full: State) -> None:
        self.put_all(self._convert(full))

    def put_rows(self, name: str, matrix: Array) -> None:
        self.put_all(self._convert({name: matrix}))

    def get(self, name: str) -> Array:
        return np.asarray(self._reader(self._index[name])[name])

    def get_all(self) -> Iterator[Array]:
        reader = self._reader(0)
        return (np.asarray(reader[name]) for name in reader)

    def get_as_of(self, name: str, epoch: int) -> Array:
        return np.asarray(self._open_reader(self._path(epoch))[name])

    def rows(self, name: str, row_values: int) -> RowReader:
        source = self._row_source(name)

        def read(start: int, out: Array) -> None:
            np.copyto(out, source[start : start + len(out)])

        return read

    def _row_source(self, name: str) -> Any:
        return self._reader(0)[name]

    def _reader(self, number: int) -> Any:
        if number not in self._readers:
            self._readers[number] = self._open_reader(self._path(number))
        return self._readers[number]

    def close(self) -> None:
        self._readers.clear()
        if self._saved or self._index:
            (self._folder / _INDEX).write_text(json.dumps(self._index))


class _SafetensorsReader:
    """``[name]`` and iteration over an open safetensors file."""

    def __init__(self, path: Path, framework: str) -> None:
        self.file = import_module("safetensors").safe_open(str(path), framework=framework)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.keys())

    def __getitem__(self, name: str) -> Any:
        return self.file.get_tensor(name)


class Safetensors(FilePerSave):
    """safetensors: one write from the tensors' memory; torch reads views, numpy copies."""

    def __init__(self, folder: Path, framework: str) -> None:
        super().__init__(folder)
        self._framework = framework
        self._writer: Any = import_module(f"safetensors.{framework}").save_file

    def _convert(self, state: State) -> Any:
        return as_torch(state) if self._framework == "torch" else state

    def _save(self, prepared: Any, path: Path) -> None:
        self._writer(prepared, str(path))

    def _open_reader(self, path: Path) -> Any:
        return _SafetensorsReader(path, "pt" if self._framework == "torch" else "np")

    def _row_source(self, name: str) -> Any:
        return self._reader(0).file.get_slice(name)


class TorchSave(FilePerSave):
    """torch.save to a zip of records; read back with ``mmap=True``, which hands out views."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._torch: Any = import_module("torch")

    def _convert(self, state: State) -> Any:
        return as_torch(state)

    def _save(self, prepared: Any, path: Path) -> None:
        self._torch.save(prepared, path)

    def _open_reader(self, path: Path) -> Any:
        return self._torch.load(path, mmap=True, weights_only=True)


class Hdf5(Store):
    """h5py: contiguous data sets in one file, latest format; a batch is not atomic.

    History is a data set per (tensor, epoch of change) and an index the user keeps, here as JSON.
    """

    def __init__(self, folder: Path, purpose: Purpose) -> None:
        h5py: Any = import_module("h5py")
        self._folder = folder
        self._path = folder / "store.h5"
        self._index_path = folder / _INDEX
        mode = "r" if purpose == "read" else "a"
        self._file = h5py.File(self._path, mode, libver="latest")
        self._epochs: dict[str, list[int]] = {}
        if self._index_path.exists():
            self._epochs = json.loads(self._index_path.read_text())

    def _sync(self) -> None:
        self._file.flush()
        sync_path(self._path)
        sync_path(self._folder)

    def put_all(self, prepared: Any) -> None:
        for name, value in prepared.items():
            self._file.create_dataset(name, data=value)
        self._sync()

    def put_batch(self, batch: State) -> None:
        self.put_all(batch)

    def put_lazily(self, names: list[str], values: list[Array]) -> None:
        create = self._file.create_dataset
        for name, value in zip(names, values, strict=True):
            create(name, data=value)

    def commit_epoch(self, epoch: int, changed: State, full: State) -> None:
        for name, value in changed.items():
            self._epochs.setdefault(name, []).append(epoch)
            self._file.create_dataset(f"{name}/{epoch}", data=value)
        self._sync()

    def put_rows(self, name: str, matrix: Array) -> None:
        self.put_all({name: matrix})

    def get(self, name: str) -> Array:
        return np.asarray(self._file[name][...])

    def get_all(self) -> Iterator[Array]:
        return (np.asarray(self._file[name][...]) for name in self._file)

    def get_as_of(self, name: str, epoch: int) -> Array:
        epochs = self._epochs[name]
        return self.get(f"{name}/{epochs[bisect_right(epochs, epoch) - 1]}")

    def rows(self, name: str, row_values: int) -> RowReader:
        data_set = self._file[name]

        def read(start: int, out: Array) -> None:
            data_set.read_direct(out, source_sel=np.s_[start : start + len(out)])

        return read

    def close(self) -> None:
        self._file.close()
        if self._epochs:
            self._index_path.write_text(json.dumps(self._epochs))


_PER_FILE: dict[Ability, str] = {
    "checkpoint": "fsync added",
    "lazy": "file per put",
    "batch": "file per batch, index kept by the user, fsync added",
    "commits": "full file per epoch",
    "as_of": "full file per epoch",
    "rows": "get_slice",
}
_WHOLE = abilities("checkpoint", "load", "lazy", "batch", "commits", "as_of", "rows")

PEERS = (
    Peer(
        name="safetensors numpy",
        open=lambda folder, purpose: Safetensors(folder, "numpy"),
        can=_WHOLE,
        needs=("safetensors",),
        notes={**_PER_FILE, "load": "copies"},
    ),
    Peer(
        name="safetensors torch",
        open=lambda folder, purpose: Safetensors(folder, "torch"),
        can=_WHOLE - {"lazy", "commits", "as_of"},
        needs=("safetensors", "torch"),
        prepare=as_torch,
        notes={**_PER_FILE, "load": "views of a mapping"},
    ),
    Peer(
        name="torch.save",
        open=lambda folder, purpose: TorchSave(folder),
        can=_WHOLE,
        needs=("torch",),
        prepare=as_torch,
        notes={**_PER_FILE, "load": "load(mmap=True)", "rows": "load(mmap=True)"},
    ),
    Peer(
        name="h5py",
        open=Hdf5,
        can=_WHOLE,
        needs=("h5py",),
        notes={
            "batch": "not atomic",
            "commits": "data set per (tensor, epoch of change), not atomic",
            "as_of": "index of epochs kept by the user",
            "load": "copies",
            "rows": "read_direct",
        },
    ),
)
