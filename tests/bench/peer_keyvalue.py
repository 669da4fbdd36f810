"""Peers that are key-value stores of opaque bytes: LMDB and RocksDB.

History is hand-made: the key is (name, epoch of the change), an as-of read is a floor seek.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.peer import Peer, Purpose, RowReader, Store, abilities
from tests.bench.timing import sync_path
from tests.bench.workloads import Array, State

LMDB = "lmdb"
LMDB_COMMIT_EACH = "lmdb, commit per put"
LMDB_READ_EACH = "lmdb, transaction per read"
_MAP_BYTES = 8 << 30
_ROW_BLOCK = 64  # rows per value where a store cannot read a part of one


def _epoch_key(name: str, epoch: int) -> bytes:
    return name.encode() + b"\0" + epoch.to_bytes(8, "big")


def _block(name: str, number: int) -> str:
    return f"{name}/{number:08d}"


def _array(value: Any) -> Array:
    return np.frombuffer(value, np.uint8)


class Lmdb(Store):
    """LMDB: memory-mapped B-tree, one fdatasync per commit, reads are views inside a transaction.

    ``writemap`` (pages are written in place) is the faster setting for large and for unsynced
    writes and the slower one for small synced commits, so it is on for the first two only.
    """

    def __init__(self, folder: Path, purpose: Purpose, commit_each: bool = False) -> None:
        lmdb: Any = import_module("lmdb")
        self._folder = folder
        self._commit_each = commit_each
        self._environment = lmdb.open(
            str(folder),
            map_size=_MAP_BYTES,
            readonly=purpose == "read",
            writemap=purpose in ("bulk", "lazy"),
            sync=purpose != "lazy",
            metasync=purpose != "lazy",
        )
        self._reader = self._environment.begin(buffers=True) if purpose == "read" else None
        self._cursor = None if self._reader is None else self._reader.cursor()

    def put_all(self, prepared: Any) -> None:
        self._put_items((name.encode(), value) for name, value in prepared.items())

    def put_batch(self, batch: State) -> None:
        self.put_all(batch)

    def _put_items(self, items: Iterable[tuple[bytes, Array]]) -> None:
        with self._environment.begin(write=True) as transaction:
            for key, value in items:
                transaction.put(key, value.data)
        sync_path(self._folder)

    def put_lazily(self, names: list[str], values: list[Array]) -> None:
        begin = self._environment.begin
        if self._commit_each:
            for name, value in zip(names, values, strict=True):
                with begin(write=True) as transaction:
                    transaction.put(name.encode(), value.data)
            return
        with begin(write=True) as transaction:
            put = transaction.put
            for name, value in zip(names, values, strict=True):
                put(name.encode(), value.data)

    def commit_epoch(self, epoch: int, changed: State, full: State) -> None:
        self._put_items((_epoch_key(name, epoch), value) for name, value in changed.items())

    def put_rows(self, name: str, matrix: Array) -> None:
        self.put_all({name: matrix})

    def get(self, name: str) -> Array:
        assert self._reader is not None, "opened for writing"
        return _array(self._reader.get(name.encode()))

    def get_all(self) -> Iterator[Array]:
        assert self._cursor is not None, "opened for writing"
        return (_array(value) for _key, value in self._cursor)

    def get_as_of(self, name: str, epoch: int) -> Array:
        cursor = self._cursor
        assert cursor is not None, "opened for writing"
        if cursor.set_range(_epoch_key(name, epoch + 1)):
            cursor.prev()
        else:
            cursor.last()
        return _array(cursor.value())

    def rows(self, name: str, row_values: int) -> RowReader:
        matrix = self.get(name).view(np.float32).reshape(-1, row_values)

        def read(start: int, out: Array) -> None:
            np.copyto(out, matrix[start : start + len(out)])

        return read

    def close(self) -> None:
        if self._reader is not None:
            self._reader.abort()
        self._environment.close()


class NewestLmdb(Lmdb):
    """LMDB as it sees what others committed since the last read: each in a transaction of its own.

    The transaction stays open until the next read, since what was read is a view inside it.
    """

    def get_as_of(self, name: str, epoch: int) -> Array:
        assert self._reader is not None, "opened for writing"
        self._reader.abort()
        self._reader = self._environment.begin(buffers=True)
        self._cursor = self._reader.cursor()
        return super().get_as_of(name, epoch)


class RocksDb(Store):
    """RocksDB through rocksdict: blob files for values, no compression, sync=True where durable.

    A whole state goes in by the documented bulk load (write a sorted table, ingest it): four times
    as fast as a synced batch, which is written twice, to the log and to a blob file.
    """

    def __init__(self, folder: Path, purpose: Purpose) -> None:
        self._rocksdict: Any = import_module("rocksdict")
        self._folder = folder
        read_only = self._rocksdict.AccessType.read_only()
        access = {"access_type": read_only} if purpose == "read" else {}
        self._database = self._rocksdict.Rdict(str(folder), self._options(blobs=True), **access)
        self._write = self._rocksdict.WriteOptions()
        self._write.sync = purpose != "lazy"

    def _options(self, *, blobs: bool) -> Any:
        options = self._rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(self._rocksdict.DBCompressionType.none())
        options.set_write_buffer_size(64 << 20)
        if blobs:
            options.set_enable_blob_files(True)
            options.set_min_blob_size(1024)
        return options

    def put_all(self, prepared: Any) -> None:
        table = self._folder / "bulk.sst"
        writer = self._rocksdict.SstFileWriter(self._options(blobs=False))
        writer.open(str(table))
        for name in sorted(prepared):
            writer[name.encode()] = prepared[name].tobytes()
        writer.finish()
        ingest = self._rocksdict.IngestExternalFileOptions()
        ingest.set_move_files(True)
        self._database.ingest_external_file([str(table)], ingest)
        sync_path(self._folder)

    def put_batch(self, batch: State) -> None:
        self._put_items((name.encode(), value) for name, value in batch.items())

    def _put_items(self, items: Iterable[tuple[bytes, Array]]) -> None:
        pending = self._rocksdict.WriteBatch(raw_mode=True)
        for key, value in items:
            pending.put(key, value.tobytes())
        self._database.write(pending, self._write)

    def put_lazily(self, names: list[str], values: list[Array]) -> None:
        put, options = self._database.put, self._write
        for name, value in zip(names, values, strict=True):
            put(name.encode(), value.tobytes(), options)

    def commit_epoch(self, epoch: int, changed: State, full: State) -> None:
        self._put_items((_epoch_key(name, epoch), value) for name, value in changed.items())

    def put_rows(self, name: str, matrix: Array) -> None:
        starts = range(0, len(matrix), _ROW_BLOCK)
        self.put_all(
            {
                _block(name, start // _ROW_BLOCK): matrix[start : start + _ROW_BLOCK]
                for start in starts
            }
        )

    def rows(self, name: str, row_values: int) -> RowReader:
        def read(start: int, out: Array) -> None:
            done = 0
            while done < len(out):
                block, skip = divmod(start + done, _ROW_BLOCK)
                data = self.get(_block(name, block)).view(np.float32).reshape(-1, row_values)
                take = min(len(data) - skip, len(out) - done)
                out[done : done + take] = data[skip : skip + take]
                done += take

        return read

    def get(self, name: str) -> Array:
        return _array(self._database[name.encode()])

    def get_all(self) -> Iterator[Array]:
        return (_array(value) for value in self._database.values())

    def get_as_of(self, name: str, epoch: int) -> Array:
        place = self._database.iter()
        place.seek_for_prev(_epoch_key(name, epoch))
        return _array(place.value())

    def close(self) -> None:
        self._database.close()


_ALL = abilities("checkpoint", "load", "lazy", "batch", "commits", "as_of", "rows", "records")

_KEY = "key (name, epoch of change)"

PEERS = (
    Peer(
        name=LMDB,
        open=Lmdb,
        can=_ALL,
        needs=("lmdb",),
        notes={
            "checkpoint": "one transaction, writemap",
            "load": "views inside a transaction",
            "lazy": "one transaction for all puts, writemap",
            "batch": "transaction per batch",
            "commits": _KEY,
            "as_of": "floor seek",
        },
    ),
    Peer(
        name=LMDB_COMMIT_EACH,
        open=lambda folder, purpose: Lmdb(folder, purpose, commit_each=True),
        can=abilities("lazy"),
        needs=("lmdb",),
        notes={"lazy": "unsynced transaction per put, writemap"},
    ),
    Peer(
        name=LMDB_READ_EACH,
        open=NewestLmdb,
        can=abilities("as_of"),
        reads=LMDB,
        needs=("lmdb",),
        notes={"as_of": "floor seek in what is newest then, as query_tensor does"},
    ),
    Peer(
        name="rocksdb",
        open=RocksDb,
        can=_ALL,
        needs=("rocksdict",),
        notes={
            "checkpoint": "bulk load: a sorted table, ingested",
            "load": "copies",
            "lazy": "put per tensor",
            "batch": "synced WriteBatch, blob files",
            "commits": _KEY,
            "as_of": "floor seek",
            "rows": f"values of {_ROW_BLOCK} rows",
        },
    ),
)
