"""The barest log with an index, as a contender: one file, one dict, one mapping.

No names on disk, no checksums, no transactions, no recovery. It has the interface of the peers, so
that the loops around it are the same, and bounds every workload of many operations.
"""

from __future__ import annotations

import json
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from tests.bench.limits import GATHER_MAX, STEP_BYTES, bytes_of, chunks_of
from tests.bench.peer import Peer, Purpose, RowReader, Store, abilities
from tests.bench.timing import sync_path
from tests.bench.workloads import Array, State

LOG = "limit: log + index + memmap"
PREALLOCATED = "limit: log, preallocated"
_WRITTEN = "limit: log over old blocks"

Blocks: TypeAlias = Literal["new", "allocated", "written"]


class BareLog(Store):
    """Values one after another in one file, a dict of positions, one mapping for reads.

    Synced appends go into a new file, into preallocated blocks, or into blocks that hold data
    already: then a sync has no extent to convert and no length to record.
    """

    def __init__(self, folder: Path, purpose: Purpose, blocks: Blocks = "new") -> None:
        self._folder = folder
        self._writing = purpose != "read"
        self._index: dict[str, list[int]] = {}
        self._epochs: dict[str, list[int]] = {}
        self._position = 0
        path = folder / "log"
        if self._writing:
            self._file = os.open(path, os.O_CREAT | os.O_RDWR)
            if purpose == "durable" and blocks != "new":
                _prepare_blocks(self._file, overwrite=blocks == "written")
            sync_path(folder)
            return
        self._index, self._epochs = json.loads((folder / "index").read_text())
        self._file = os.open(path, os.O_RDONLY)
        self._map = np.frombuffer(mmap.mmap(self._file, 0, prot=mmap.PROT_READ), np.uint8)

    def _note(self, name: str, size: int) -> None:
        self._index[name] = [self._position, size]
        self._position += size

    def _append(self, state: State) -> None:
        values = [bytes_of(value) for value in state.values()]
        offset = self._position
        for first in range(0, len(values), GATHER_MAX):
            offset += os.pwritev(self._file, values[first : first + GATHER_MAX], offset)
        for name, value in state.items():
            self._note(name, value.nbytes)
        os.fdatasync(self._file)

    def put_all(self, prepared: Any) -> None:
        # One call moves at most 2 GiB, and a large value may be written in parts.
        for chunk in chunks_of(prepared, STEP_BYTES):
            for part in chunk:
                os.write(self._file, part)
        for name, value in prepared.items():
            self._note(name, value.nbytes)
        os.fdatasync(self._file)

    def put_batch(self, batch: State) -> None:
        self._append(batch)

    def put_lazily(self, names: list[str], values: list[Array]) -> None:
        file, index, position = self._file, self._index, 0
        for name, value in zip(names, values, strict=True):
            size = os.pwrite(file, value.data, position)
            index[name] = [position, size]
            position += size

    def commit_epoch(self, epoch: int, changed: State, full: State) -> None:
        self._append({f"{name}@{epoch}": value for name, value in changed.items()})
        for name in changed:
            self._epochs.setdefault(name, []).append(epoch)

    def put_rows(self, name: str, matrix: Array) -> None:
        self.put_all({name: matrix})

    def get(self, name: str) -> Array:
        position, size = self._index[name]
        return self._map[position : position + size]

    def get_all(self) -> Iterator[Array]:
        return (self.get(name) for name in self._index)

    def get_as_of(self, name: str, epoch: int) -> Array:
        epochs = self._epochs[name]
        return self.get(f"{name}@{epochs[bisect_right(epochs, epoch) - 1]}")

    def rows(self, name: str, row_values: int) -> RowReader:
        matrix = self.get(name).view(np.float32).reshape(-1, row_values)

        def read(start: int, out: Array) -> None:
            np.copyto(out, matrix[start : start + len(out)])

        return read

    def close(self) -> None:
        os.close(self._file)
        if self._writing:
            (self._folder / "index").write_text(json.dumps([self._index, self._epochs]))


def _prepare_blocks(file: int, *, overwrite: bool) -> None:
    size = 256 << 20
    os.posix_fallocate(file, 0, size)
    if overwrite:
        zeros = bytes(STEP_BYTES)
        for offset in range(0, size, STEP_BYTES):
            os.pwrite(file, zeros, offset)
    os.fsync(file)


def _open_preallocated(folder: Path, purpose: Purpose) -> Store:
    return BareLog(folder, purpose, "allocated")


def _open_written(folder: Path, purpose: Purpose) -> Store:
    return BareLog(folder, purpose, "written")


LIMITS = (
    Peer(
        name=LOG,
        open=BareLog,
        can=abilities("load", "lazy", "batch", "commits", "as_of", "rows"),
    ),
    Peer(
        name=PREALLOCATED,
        open=_open_preallocated,
        can=abilities("batch", "commits"),
    ),
    Peer(
        name=_WRITTEN,
        open=_open_written,
        can=abilities("batch", "commits"),
        notes={
            "batch": "for information: blocks that hold data already",
            "commits": "for information: blocks that hold data already",
        },
    ),
)
