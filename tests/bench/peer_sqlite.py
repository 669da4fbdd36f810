"""SQLite as a contender: the database everyone has, storing opaque bytes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.peer import Peer, Purpose, RowReader, Store, abilities
from tests.bench.timing import sync_path
from tests.bench.workloads import Array, State

_MAP_BYTES = 8 << 30
_ROW_BLOCK = 1024  # rows per value


def _array(value: Any) -> Array:
    return np.frombuffer(value, np.uint8)


class Sqlite(Store):
    """SQLite of the standard library, synchronous=FULL where durable.

    A whole state goes in with a rollback journal and pages of 64 KiB (the log would write it
    twice); small commits use the write-ahead log. Row slices are read by incremental blob I/O.
    History is hand-made: the key is (name, epoch of the change).
    """

    def __init__(self, folder: Path, purpose: Purpose) -> None:
        self._folder = folder
        path = folder / "store.sqlite"
        self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=16)
        run = self._connection.execute
        run(f"PRAGMA page_size={16384 if purpose == 'lazy' else 65536}")
        if purpose in ("durable", "lazy"):
            run("PRAGMA journal_mode=WAL")
        run(f"PRAGMA synchronous={'OFF' if purpose == 'lazy' else 'FULL'}")
        run(f"PRAGMA mmap_size={_MAP_BYTES}")
        if purpose != "read":
            run("CREATE TABLE IF NOT EXISTS tensors (name TEXT PRIMARY KEY, data BLOB)")
            run(
                "CREATE TABLE IF NOT EXISTS history (name TEXT, epoch INTEGER, data BLOB, "
                "PRIMARY KEY (name, epoch))"
            )

    def _insert(self, table: str, rows: Iterable[tuple[Any, ...]], width: int) -> None:
        marks = ", ".join("?" * width)
        self._connection.execute("BEGIN")
        self._connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        self._connection.execute("COMMIT")

    def put_all(self, prepared: Any) -> None:
        self._insert("tensors", ((name, value.data) for name, value in prepared.items()), 2)
        sync_path(self._folder)

    def put_batch(self, batch: State) -> None:
        self._insert("tensors", ((name, value.data) for name, value in batch.items()), 2)

    def put_lazily(self, names: list[str], values: list[Array]) -> None:
        run = self._connection.execute
        run("BEGIN")
        for name, value in zip(names, values, strict=True):
            run("INSERT INTO tensors VALUES (?, ?)", (name, value.data))
        run("COMMIT")

    def commit_epoch(self, epoch: int, changed: State, full: State) -> None:
        self._insert("history", ((name, epoch, value.data) for name, value in changed.items()), 3)

    def get(self, name: str) -> Array:
        query = "SELECT data FROM tensors WHERE name = ?"
        return _array(self._connection.execute(query, (name,)).fetchone()[0])

    def get_all(self) -> Iterator[Array]:
        rows = self._connection.execute("SELECT data FROM tensors")
        return (_array(value) for (value,) in rows)

    def get_as_of(self, name: str, epoch: int) -> Array:
        query = "SELECT data FROM history WHERE name = ? AND epoch <= ? ORDER BY epoch DESC LIMIT 1"
        return _array(self._connection.execute(query, (name, epoch)).fetchone()[0])

    def put_rows(self, name: str, matrix: Array) -> None:
        # One value may not exceed 1 GB.
        starts = range(0, len(matrix), _ROW_BLOCK)
        self.put_all(
            {
                f"{name}/{start // _ROW_BLOCK}": matrix[start : start + _ROW_BLOCK]
                for start in starts
            }
        )

    def rows(self, name: str, row_values: int) -> RowReader:
        query = "SELECT rowid FROM tensors WHERE name = ?"
        row_bytes = 4 * row_values
        blobs: dict[int, sqlite3.Blob] = {}

        def blob(block: int) -> sqlite3.Blob:
            if block not in blobs:
                (row,) = self._connection.execute(query, (f"{name}/{block}",)).fetchone()
                blobs[block] = self._connection.blobopen("tensors", "data", row, readonly=True)
            return blobs[block]

        def read(start: int, out: Array) -> None:
            done = 0
            while done < len(out):
                block, skip = divmod(start + done, _ROW_BLOCK)
                take = min(_ROW_BLOCK - skip, len(out) - done)
                source = blob(block)
                source.seek(skip * row_bytes)
                data = np.frombuffer(source.read(take * row_bytes), np.float32)
                out[done : done + take] = data.reshape(take, row_values)
                done += take

        return read

    def close(self) -> None:
        self._connection.close()


PEERS = (
    Peer(
        name="sqlite",
        open=Sqlite,
        can=abilities("checkpoint", "load", "lazy", "batch", "commits", "as_of", "rows", "records"),
        notes={
            "checkpoint": "rollback journal, pages of 64 KiB",
            "load": "copies",
            "lazy": "one transaction for all puts",
            "batch": "transaction per batch, write-ahead log",
            "commits": "key (name, epoch of change)",
            "as_of": "floor query",
            "rows": f"incremental blob reads, values of {_ROW_BLOCK} rows",
        },
    ),
)
